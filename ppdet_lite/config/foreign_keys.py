"""Names of settings in other projects, and ours for them. The config check suggests these for unknown keys."""

from collections.abc import Iterable

from ppdet_lite.config.messages import did_you_mean, join_with_or

NUM_CLASSES = "is derived from the categories in the annotations, remove it"

# ours: names in PaddleDetection, mmdetection, detectron2, torchvision, Ultralytics and Lightning, in lower case
_OURS = {
    "optimizer.base_lr": "lr learning_rate learningrate lr0 initial_lr init_lr",
    "optimizer.base_batch": "reference_world_size base_batch_size auto_scale_lr",
    "optimizer.clip_norm": "grad_clip clip_grad clip_grad_norm clip_gradients gradient_clip_val max_norm",
    "optimizer.momentum": "momentum",
    "optimizer.weight_decay": "weight_decay regularizer wd l2",
    "optimizer.norm_decay": "weight_decay_norm norm_decay_mult",
    "optimizer.lr_scales": "paramwise_cfg backbone_multiplier",
    "optimizer": "optimizerbuilder optim_wrapper solver",
    "schedule": "lr_config lr_scheduler scheduler lr_schedule param_scheduler schedulers",
    "schedule.milestones": "milestones step steps decay_epochs lr_steps",
    "schedule.gamma": "gamma lr_gamma decay_rate",
    "schedule.warmup_iterations": "warmup warmup_iters warmup_steps warmup_epochs linearwarmup",
    "schedule.warmup_factor": "warmup_ratio start_factor",
    "train.length: 12 epochs": "epoch epochs max_epochs max_epoch num_epochs total_epochs schedule_epochs",
    "train.length: 90000 iterations": "iters max_iter max_iters iterations num_iters max_steps total_iters",
    "train.log_every": "log_iter log_interval print_freq log_period log_every_n_steps",
    "train.checkpoint_every": "snapshot_epoch snapshot_iter checkpoint_config checkpoint_interval checkpoint_period",
    "train.evaluate_every": "eval_interval eval_period eval_epoch val_interval check_val_every_n_epoch",
    "train.keep_last": "max_keep_ckpts save_total_limit",
    "train.best_metric": "save_best save_best_model target_metrics",
    "train.accumulate": "accumulate_grad_batches accumulation_steps gradient_accumulation_steps accumulative_counts",
    "train.ema: {decay: 0.9998}": "use_ema ema ema_decay model_ema",
    "train.early_stop": "patience early_stopping earlystopping",
    "train.freeze": "freeze freeze_layers",
    "train.amp: float16": "amp use_amp fp16 amp_level mixed_precision precision",
    "data.loader.batch_size": "batch_size batch batchsize samples_per_gpu ims_per_batch imgs_per_gpu total_batch_size",
    "data.loader.threads": "num_workers worker_num workers workers_per_gpu threads",
    "data.loader": "trainreader evalreader testreader train_dataloader val_dataloader dataloader",
    "data.train": "traindataset train_dataset",
    "data.val": "evaldataset testdataset val_dataset test_dataset datasets",
    "data.train.images": "image_dir img_dir img_prefix dataset_dir data_root image_root",
    "data.train.annotations": "anno_path ann_file json_file annotation annotation_file",
    "data.preprocess.short_side and long_side": "target_size img_scale image_size img_size imgsz input_size resize "
    "min_size max_size min_size_train max_size_train min_size_test max_size_test",
    "data.preprocess.mean and std": "pixel_mean pixel_std image_mean image_std img_norm_cfg normalizeimage",
    "data.preprocess.stride": "size_divisor size_divisibility pad_to_stride pad_size_divisor",
    "data.augment": "transforms sample_transforms batch_transforms pipeline train_pipeline augmentation augmentations",
    "data.augment.flip": "flip flip_ratio flip_prob random_flip randomflip fliplr",
    "model": "architecture detector",
    "model.backbone.depth": "depth layers",
    "model.backbone.norm": "norm_type norm_cfg norm_eval sync_bn",
    "model.backbone.frozen_stages": "freeze_at frozen_stages trainable_layers trainable_backbone_layers",
    "model.backbone.deformable": "dcn dcn_v2_stages stage_with_dcn deform_on_per_stage",
    "model.postprocess.score_threshold": "score_thr score_thresh score_threshold score_thresh_test conf conf_thres",
    "model.postprocess.nms_iou": "nms nms_thr nms_thresh nms_threshold nms_thresh_test iou_threshold",
    "model.rpn.nms_iou": "nms nms_thr nms_thresh nms_threshold rpn_nms_thresh",
    "model.postprocess.max_detections": "max_per_img keep_top_k detections_per_image detections_per_img max_det",
    "model.rpn.anchors.sizes": "anchor_sizes anchor_scales anchor_generator",
    "model.rpn.anchors.ratios": "aspect_ratios anchor_ratios",
    "runtime.seed": "seed random_seed",
    "runtime.device": "device use_gpu gpu use_cuda gpu_ids gpus accelerator",
    "pretrain_weights": "pretrained pretrain load_from init_cfg finetune pretrained_weights weights",
    "output": "save_dir work_dir output_dir outdir project",
    "eval": "metric metrics evaluator test_evaluator val_evaluator test test_cfg",
    "the option --resume auto": "resume resume_from resume_checkpoint auto_resume",
}
FOREIGN_KEYS: dict[str, list[str]] = {}
for _ours, _theirs in _OURS.items():
    for _name in _theirs.split():
        FOREIGN_KEYS.setdefault(_name, []).append(_ours)


def suggest(key: str, section: str, names: Iterable[str]) -> str:
    """Return the end of a message about an unknown key, "; use X" or "; did you mean X?", or "" without a suggestion.

    section: dotted path of the section that contains the key; "" for the root. names: its known keys. What belongs into
    this section takes precedence, except at the root, where other projects' names would resemble ours by chance.
    """
    ours = FOREIGN_KEYS.get(key.lower(), [])
    here = [name for name in ours if section and name.startswith(f"{section}.")]
    similar = did_you_mean(key, names) if section or not ours else ""
    if similar and not here:
        return similar
    return f"; use {join_with_or(here or ours)}" if ours else ""
