"""From a config to models, data sets and devices; weights that fit and weights that do not."""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle.vision import models
from safetensors.numpy import save_file

from ppdet_lite.assembly.pretrained import load_pretrained
from ppdet_lite.assembly.setup import (
    build_dataset,
    build_model,
    check_training_data,
    load_config,
    log_notes,
    run_folder,
    use_device,
)
from ppdet_lite.assembly.trained import load_trained
from ppdet_lite.config.checked_config import Config
from ppdet_lite.core.errors import UserError
from ppdet_lite.modeling.box_head import ConvFCHead
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.storage.checkpoint import save_checkpoint

CLASSES = ["cat", "dog", "cow"]
META = {"class_names": ["x", "y", "z"], "category_ids": [7, 8, 2]}  # of a checkpoint
IDS = {"cow": 9, "cat": 3, "dog": 5}  # in the order of ids: cat, dog, cow
CHAIN = "".join(f"a{i}: ${{a{i - 1}}}\n" for i in range(1, 3000))
CONFIG = """
model:
  type: FasterRCNN
  backbone: {{type: ResNet, depth: 18, norm: gn, frozen_stages: 0, out_stages: [3, 4]}}
  neck: {{type: FPN, out_channels: 32}}
  rpn: {{anchors: {{sizes: [32, 64, 128], ratios: [0.5, 1.0]}}, delta_weights: [1, 1, 2, 2]}}
  roi_pool: {{type: RoIAlign, output_size: 3, levels: 2, canonical_stride: 16}}
  box_head: {{type: TwoFCHead, width: 64}}
  predictor: {{class_agnostic: true}}
  postprocess: {{max_detections: 7}}
data:
  train: {{images: {folder}, annotations: {folder}/train.json}}
  val: {{images: {folder}, annotations: {folder}/val.json}}
  preprocess: {{short_side: 64, long_side: 96, stride: 32}}
optimizer: {{type: SGD}}
schedule: {{type: CosineSchedule}}
train: {{length: 1 epoch}}
runtime: {{seed: 3}}
output: {folder}/runs
"""


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    """A config for two pyramid levels, and annotations without images: their ids differ from those of val.json."""
    (tmp_path / "tiny.yml").write_text(CONFIG.format(folder=tmp_path), encoding="utf-8")
    for name, shift in (("train", 0), ("val", 100)):
        write_annotations(tmp_path / f"{name}.json", {key: value + shift for key, value in IDS.items()})


def write_annotations(path: Path, ids: Mapping[str, int]) -> None:
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 64, "width": 64}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": key, "bbox": [1, 1, 20, 20 + i], "area": 400, "iscrowd": 0}
            for i, key in enumerate(ids.values(), start=1)
        ],
        "categories": [{"id": key, "name": name} for name, key in ids.items()],
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def load(tmp_path: Path, *overrides: str) -> Config:
    return load_config(tmp_path / "tiny.yml", overrides)


def arrays(model: paddle.nn.Layer) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def same(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> bool:
    return set(first) == set(second) and all((first[name] == second[name]).all() for name in first)


def message(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


class TestConfig:
    def test_overrides_are_applied(self, tmp_path: Path) -> None:
        config = load(tmp_path, "model.neck.out_channels=64", "runtime.seed=8")
        assert (config["model"]["neck"]["out_channels"], config["runtime"]["seed"]) == (64, 8)
        assert config.origin("runtime.seed") == "command line"

    def test_run_folder_is_named_after_the_config(self, tmp_path: Path) -> None:
        assert run_folder(load(tmp_path), tmp_path / "tiny.yml") == tmp_path / "runs" / "tiny"
        (tmp_path / "runs/tiny/checkpoints").mkdir(parents=True)
        own = tmp_path / "runs/tiny/config.yml"
        assert run_folder(load(tmp_path), own) == tmp_path / "runs/tiny"
        assert run_folder(load(tmp_path, f"output={tmp_path}/other"), own) == tmp_path / "other/tiny"

    @pytest.mark.parametrize(
        ("override", "parts"),
        [
            ("model.backbone.depht=50", ("command line", "depht", "depth")),
            ("model.backbone.depth=20", ("command line", "model.backbone.depth", "20")),
            ("model.neck.type=FNP", ("command line", "FNP", "FPN")),
            ("model.neck.in_channels=[1]", ("command line", "in_channels", "derived")),
            ("train.length=12 steps", ("command line", "train.length", "12 epochs")),
            ("model.predictor.num_classes=3", ("command line", "num_classes", "categories in the annotations")),
        ],
    )
    def test_mistakes_are_reported_before_anything_is_built(
        self, override: str, parts: tuple[str, ...], tmp_path: Path
    ) -> None:
        with pytest.raises(UserError) as error:
            load(tmp_path, override)
        assert all(part in message(error) for part in parts), message(error)

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            (
                "data.preprocess={short_side: 240, long_side: 160}",
                "data.preprocess.short_side: 240 is above long_side",
            ),
            ("data.preprocess.long_side=48", "data.preprocess.short_side: 64 is above long_side 48"),
        ],
    )
    def test_a_short_side_that_never_applies(self, override: str, expected: str, tmp_path: Path) -> None:
        with pytest.raises(UserError) as error:
            load(tmp_path, override)
        assert f": {expected}" in message(error) and "and would never apply" in message(error)
        load(tmp_path, "data.preprocess={short_side: 96, long_side: 96}")

    def test_a_short_side_of_training_that_never_applies(self, tmp_path: Path) -> None:
        """Only training is refused: other tools ignore `augment`."""
        datasets = [build_dataset(load(tmp_path), split) for split in ("train", "val")]
        with pytest.raises(UserError) as error:
            check_training_data(load(tmp_path, "data.augment.short_sides=[80, 112]"), *datasets)
        assert "command line: data.augment.short_sides: 112 is above data.preprocess.long_side 96" in message(error)
        with pytest.raises(UserError, match="1 image has no file"):
            check_training_data(load(tmp_path, "data.augment.short_sides=[80, 96]"), *datasets)

    @pytest.mark.parametrize("text", ["a: " + "[" * 5000 + "]" * 5000, "a0: 1\n" + CHAIN], ids=["lists", "references"])
    def test_deep_nesting(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "deep.yml").write_text(text)
        with pytest.raises(UserError, match="nested too deeply"):
            load_config(tmp_path / "deep.yml")

    @pytest.mark.parametrize(
        "override",
        [
            "model.rpn.pre_nms_train=0",
            "model.rpn.nms_iou=7",
            "model.rpn.beta=0",
            "model.rpn.delta_weights=[1, 1]",
            "model.rpn.matcher.foreground_iou=70",
            "model.rpn.anchors.ratios=[]",
            "model.neck.out_channels=0",
            "model.roi_pool.output_size=0",
            "model.roi_pool.sampling_ratio=-2",
            "model.box_head.width=-1",
            "model.predictor.beta=0",
            "model.predictor.delta_weights=[10, 10, 5]",
        ],
    )
    def test_senseless_numbers_are_refused(self, override: str, tmp_path: Path) -> None:
        with pytest.raises(UserError):
            load(tmp_path, override)


class TestModel:
    def test_values_derived_from_other_parts_are_passed(self, tmp_path: Path) -> None:
        """The config has no channels, strides and classes."""
        model = build_model(load(tmp_path), CLASSES)
        assert [block.conv.weight.shape[1] for block in model.neck.lateral] == [128, 256]
        assert model.rpn.strides == [8, 16, 32]
        assert model.rpn.conv.weight.shape == [32, 32, 3, 3]
        assert model.rpn.objectness.weight.shape[0] == 2
        assert model.roi_pool.strides == [8, 16]
        assert model.box_head.fc1.weight.shape == [32 * 9, 64]
        assert model.predictor.classify.weight.shape == [64, 4]
        assert model.predictor.regress.weight.shape == [64, 4]

    def test_settings_of_the_config_reach_their_parts(self, tmp_path: Path) -> None:
        model = build_model(load(tmp_path), CLASSES)
        assert model.rpn.delta_weights == (1.0, 1.0, 2.0, 2.0)
        assert model.postprocess.max_detections == 7
        assert model.rpn.anchors.sizes == [32, 64, 128]
        assert model.roi_sampler.sampler.count == 512
        head = build_model(load(tmp_path, "model.box_head={type: ConvFCHead, convs: 2, norm: gn}"), CLASSES).box_head
        assert isinstance(head, ConvFCHead)
        assert len(head.convs) == 2

    def test_classes_are_those_of_the_training_annotations(self, tmp_path: Path) -> None:
        write_annotations(tmp_path / "train.json", {"cat": 1, "dog": 2, "cow": 3, "hen": 4, "pig": 8})
        assert build_model(load(tmp_path)).predictor.num_classes == 5

    def test_one_seed_makes_one_model(self, tmp_path: Path) -> None:
        first, second = (arrays(build_model(load(tmp_path), CLASSES)) for _ in range(2))
        assert same(first, second)
        assert not same(first, arrays(build_model(load(tmp_path, "runtime.seed=4"), CLASSES)))

    def test_padding_has_to_match_the_coarsest_map(self, tmp_path: Path) -> None:
        config = load(tmp_path, "data.preprocess.stride=8")
        with pytest.raises(UserError) as error:
            build_model(config, CLASSES)
        assert (
            "data.preprocess.stride: 8 is not a multiple of 16, the stride of the model's coarsest feature map"
            in message(error)
        )
        with pytest.raises(UserError, match="stride: 24 is not a multiple of 16"):
            build_model(load(tmp_path, "data.preprocess.stride=24"), CLASSES)
        build_model(load(tmp_path, "data.preprocess.stride=16"), CLASSES)


class TestDataset:
    def test_classes_are_ordered_by_id(self, tmp_path: Path) -> None:
        dataset = build_dataset(load(tmp_path), "train")
        assert dataset.class_names == CLASSES
        assert dataset.annotations(0).classes.tolist() == [2, 0, 1]

    def test_classes_are_matched_by_name(self, tmp_path: Path) -> None:
        dataset = build_dataset(load(tmp_path), "val", ["dog", "cow", "cat"])
        assert dataset.category_ids.tolist() == [105, 109, 103]
        assert dataset.annotations(0).classes.tolist() == [1, 2, 0]

    def test_repairs_are_logged(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        content = json.loads((tmp_path / "train.json").read_text())
        content["annotations"][0]["bbox"] = [1, 1, 0, 20]
        (tmp_path / "train.json").write_text(json.dumps(content))
        with caplog.at_level(logging.INFO):
            dataset = build_dataset(load(tmp_path), "train")
            log_notes(dataset)
        assert dataset.problem_messages
        assert [record.getMessage() for record in caplog.records] == dataset.problem_messages
        levels = {
            problem.kind: record.levelname for problem, record in zip(dataset.problems, caplog.records, strict=True)
        }
        assert levels == {"box_dropped": "INFO", "box_corners": "WARNING"}

    def test_classes_that_training_drops_are_dropped_from_validation(self, tmp_path: Path) -> None:
        content = json.loads((tmp_path / "train.json").read_text())
        del content["annotations"][0]  # of cow, whose boxes validation has
        (tmp_path / "train.json").write_text(json.dumps(content))
        config = load(tmp_path, "data.train.drop_empty_classes=true")
        train = build_dataset(config, "train")
        assert train.class_names == ["cat", "dog"]
        val = build_dataset(config, "val", train.class_names)
        assert val.class_names == ["cat", "dog"] and val.annotations(0).classes.tolist() == [0, 1]
        assert [(p.kind, p.count, p.total) for p in val.problems] == [("class_left_out", 1, 3)]
        with pytest.raises(UserError, match=r"data\.val\.annotations: the classes of .*only in the file: cow"):
            build_dataset(load(tmp_path), "val", train.class_names)


class TestDevice:
    @pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason="needs a CPU build")
    def test_a_cpu_build(self, tmp_path: Path) -> None:
        for overrides in ((), ("runtime.device=cpu",)):
            assert use_device(load(tmp_path, *overrides)) == "cpu" == paddle.device.get_device()
        with pytest.raises(UserError) as error:
            use_device(load(tmp_path, "runtime.device=gpu"))
        expected = "command line: runtime.device: gpu, but this Paddle is a CPU build; install paddlepaddle-gpu"
        assert message(error) == expected


@pytest.fixture
def trained(tmp_path: Path) -> FasterRCNN:
    """A model that differs from the one of the config's seed."""
    return build_model(load(tmp_path, "runtime.seed=77"), CLASSES)


class TestDetector:
    def test_from_a_checkpoint(self, trained: FasterRCNN, tmp_path: Path) -> None:
        """Names and ids are read from the weights, not from the data."""
        save_checkpoint(tmp_path / "run" / "checkpoints" / "best", {"model": arrays(trained)}, META)
        detector = load_trained(load(tmp_path, f"weights={tmp_path}/run"))
        assert same(arrays(detector.model), arrays(trained))
        assert (detector.class_names, detector.category_ids) == (["x", "y", "z"], [7, 8, 2])
        assert detector.preprocess.short_side == 64
        assert detector.source == str(tmp_path / "run" / "checkpoints" / "best")
        assert not any(layer.training for layer in detector.model.sublayers(include_self=True))

    def test_bare_weights_take_the_names_of_the_data(
        self, trained: FasterRCNN, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        save_file(arrays(trained), tmp_path / "bare.safetensors")
        detector = load_trained(load(tmp_path, f"weights={tmp_path}/bare.safetensors"))
        assert (detector.class_names, detector.category_ids) == (CLASSES, [3, 5, 9])
        assert same(arrays(detector.model), arrays(trained))
        assert "bare.safetensors has no class names; using those of" in caplog.text

    def test_no_weights(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no weights given; add -o weights="):
            load_trained(load(tmp_path))

    def test_weights_of_another_model(self, trained: FasterRCNN, tmp_path: Path) -> None:
        save_checkpoint(tmp_path / "ckpt", {"model": arrays(trained)}, META)
        with pytest.raises(UserError) as error:
            load_trained(load(tmp_path, f"weights={tmp_path}/ckpt", "model.neck.out_channels=64"))
        assert f"{tmp_path}/ckpt: the weights are of another model" in message(error)
        assert "expected [64, 128, 1, 1], found [32, 128, 1, 1]" in message(error)

    def test_an_array_is_missing(self, trained: FasterRCNN, tmp_path: Path) -> None:
        partial = arrays(trained)
        del partial["rpn.conv.bias"]
        save_checkpoint(tmp_path / "ckpt", {"model": partial}, META)
        with pytest.raises(UserError, match=r"missing rpn\.conv\.bias"):
            load_trained(load(tmp_path, f"weights={tmp_path}/ckpt"))


class TestPretrained:
    def test_a_classifier_fills_the_backbone(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Stage 5 and the classifier are reported as unexpected; neck and heads keep their initial weights."""
        paddle.seed(1)
        theirs = arrays(models.resnet18())
        save_file(theirs, tmp_path / "resnet18.safetensors")
        model = build_model(load(tmp_path, "model.backbone.norm=frozen_bn"), CLASSES)
        before = arrays(model)
        with caplog.at_level(logging.INFO):
            report = load_pretrained(model, str(tmp_path / "resnet18.safetensors"))
        after = arrays(model)
        np.testing.assert_array_equal(after["backbone.stem.conv.weight"], theirs["conv1.weight"])
        np.testing.assert_array_equal(
            after["backbone.res4.0.shortcut.norm._variance"], theirs["layer3.0.downsample.1._variance"]
        )
        assert set(report.matched) == {name for name in after if name.startswith("backbone.")}
        assert (report.missing, report.mismatched) == ([], [])
        assert {name.split(".")[1] for name in report.unexpected} == {"res5", "fc"}
        assert all((after[name] == before[name]).all() for name in after if name not in report.matched)
        assert "backbone.fc.weight" in caplog.text

    def test_a_detector_with_other_classes(self, trained: FasterRCNN, tmp_path: Path) -> None:
        """All but the classifier fits, which keeps its initial weights."""
        save_file(arrays(trained), tmp_path / "detector.safetensors")
        model = build_model(load(tmp_path), ["one", "two"])
        before = arrays(model)
        report = load_pretrained(model, str(tmp_path / "detector.safetensors"))
        after = arrays(model)
        misfits = {"predictor.classify.weight", "predictor.classify.bias"}
        assert {item.name for item in report.mismatched} == misfits
        assert (report.missing, report.unexpected) == ([], [])
        assert all((after[name] == before[name]).all() for name in misfits)
        assert same({k: v for k, v in after.items() if k not in misfits}, report.matched)

    def test_a_partly_filled_backbone_is_warned_about(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        theirs = arrays(models.resnet18())
        whole = {name: array for name, array in theirs.items() if not name.startswith("fc.")}
        save_file(whole, tmp_path / "whole.safetensors")
        deformable = ["model.backbone.norm=frozen_bn", "model.backbone.deformable={version: 2, stages: [4]}"]
        load_pretrained(build_model(load(tmp_path, *deformable), CLASSES), str(tmp_path / "whole.safetensors"))
        assert "backbone arrays" not in caplog.text  # offsets start at zero, whatever the weights
        part = {name: array for name, array in whole.items() if not name.startswith("layer2.")}
        save_file(part, tmp_path / "part.safetensors")
        load_pretrained(build_model(load(tmp_path, *deformable), CLASSES), str(tmp_path / "part.safetensors"))
        assert re.search(r"lacks \d+ backbone arrays, such as backbone\.res3\.0\..*randomly initialized", caplog.text)
        assert "or pretrain_weights: null for random initialization" in caplog.text

    def test_nothing_that_fits(self, tmp_path: Path) -> None:
        save_file({"a": np.zeros(3, np.float32)}, tmp_path / "w.safetensors")
        with pytest.raises(UserError, match="or pretrain_weights: null for random initialization"):
            load_pretrained(build_model(load(tmp_path), CLASSES), str(tmp_path / "w.safetensors"), CLASSES)

    def test_class_layers_without_names_are_used_in_order_with_a_warning(
        self, trained: FasterRCNN, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        save_file(arrays(trained), tmp_path / "w.safetensors")
        load_pretrained(build_model(load(tmp_path), ["one", "two"]), str(tmp_path / "w.safetensors"), ["one", "two"])
        assert "no class names" not in caplog.text  # the file has three classes, its layers are not used
        model = build_model(load(tmp_path), ["a", "b", "c"])
        load_pretrained(model, str(tmp_path / "w.safetensors"), ["a", "b", "c"])
        assert "w.safetensors has no class names: its class layers have the right number of classes" in caplog.text
        np.testing.assert_array_equal(model.predictor.classify.bias.numpy(), trained.predictor.classify.bias.numpy())

    def test_weights_used_only_in_training_are_not_listed(self, trained: FasterRCNN, tmp_path: Path) -> None:
        mimic = {"mimic.classify.weight": np.zeros((4, 3), np.float32)}
        save_file({**arrays(trained), **mimic}, tmp_path / "detector.safetensors")
        report = load_pretrained(build_model(load(tmp_path), CLASSES), str(tmp_path / "detector.safetensors"))
        assert (report.missing, report.unexpected) == ([], [])

    def test_nothing_fits(self, tmp_path: Path) -> None:
        save_file({"a.weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
        with pytest.raises(UserError, match=r"other\.safetensors: no array matches this model"):
            load_pretrained(build_model(load(tmp_path), CLASSES), str(tmp_path / "other.safetensors"))

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"nowhere\.pdparams"):
            load_pretrained(build_model(load(tmp_path), CLASSES), str(tmp_path / "nowhere.pdparams"))
