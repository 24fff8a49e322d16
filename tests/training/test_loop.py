"""The training loop as its users meet it: resuming, refusing, stopping."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import pytest

from ppdet_lite.assembly.batch_tensors import training_arguments
from ppdet_lite.assembly.setup import build_model, load_config
from ppdet_lite.core.errors import RunFailed, UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.optimization.optimizer import freeze
from ppdet_lite.storage.checkpoint import load_checkpoint
from ppdet_lite.training.loop import train
from ppdet_lite.training.metrics_file import read_metrics
from ppdet_lite.training.setting_warnings import warn_about_batch, warn_about_frozen_offsets, warn_about_norms
from ppdet_lite.training.step import train_step
from tests.tiny_run import QUICKSTART, small_shapes

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["bar", "disc"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture(scope="module")
def small(shapes):
    return small_shapes(shapes, train=6, val=3)


@pytest.fixture
def overrides(small, tmp_path):
    train = ["train.length=4 iterations", "train.checkpoint_every=2 iterations", "train.log_every=1"]
    return [*small, *train, f"output={tmp_path}"]


def quickstart(overrides, *more):
    return load_config(QUICKSTART, [*overrides, *more])


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    return load_checkpoint(folder).groups["model"]


def test_killed_and_resumed_run_equals_the_straight_one_bit_for_bit(overrides, tmp_path):
    """All in processes of their own: MKL threads, which other tests change, decide about the last bits."""
    options = ["-o", *overrides, "data.loader.threads=2", "train.accumulate=2", "train.ema={decay: 0.9}"]
    command = [sys.executable, str(ROOT / "tools/train.py"), "-c", str(QUICKSTART), *options]
    subprocess.run([*command, f"output={tmp_path}/straight"], cwd=ROOT, capture_output=True, check=True)

    command.append(f"output={tmp_path}/killed")
    run = tmp_path / "killed/shapes_r18_fpn"
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (run / "checkpoints/iter_00000002").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    resumed = subprocess.run([*command, "--resume", "auto"], cwd=ROOT, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr

    straight, again = (weights_of(f / "checkpoints/iter_00000004") for f in (tmp_path / "straight/shapes_r18_fpn", run))
    assert straight.keys() == again.keys()
    for name, value in straight.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
    logged = [
        [(row["iteration"], row["loss_cls"], row["lr"]) for row in read_metrics(folder / "metrics.jsonl")]
        for folder in (tmp_path / "straight/shapes_r18_fpn", run)
    ]
    assert logged[0] == logged[1] and [row[0] for row in logged[0]] == [1, 2, 3, 4]


def test_a_run_leaves_what_the_contract_names(overrides, tmp_path):
    config = quickstart(overrides, "train.evaluate_every=2 iterations")
    train(config, tmp_path / "run")
    found = {path.name for path in (tmp_path / "run").iterdir()}
    assert found == {
        "config.yml",
        "classes.json",
        "metrics.jsonl",
        "train.log",
        "vdl",
        "checkpoints",
        "bbox.json",
        "metrics.json",
        "curves.png",
    }
    assert {path.name for path in (tmp_path / "run/checkpoints").iterdir()} == {
        "best",
        "iter_00000002",
        "iter_00000004",
    }
    assert load_config(tmp_path / "run/config.yml") == config
    classes = json.loads((tmp_path / "run/classes.json").read_text())
    assert [entry["name"] for entry in classes] == load_checkpoint(tmp_path / "run/checkpoints/best").meta[
        "class_names"
    ]
    row = read_metrics(tmp_path / "run/metrics.jsonl")[0]
    assert row.keys() >= {
        "iteration",
        "epoch",
        "lr",
        "seconds",
        "data_seconds",
        "loss_cls",
        "loss_box",
        "loss_rpn_objectness",
        "loss_rpn_box",
    }
    assert row["lr"] == pytest.approx(config["optimizer"]["base_lr"] / config["optimizer"]["base_batch"] * 1e-3)


def test_a_new_run_does_not_overwrite_an_old_one(overrides, tmp_path):
    config = quickstart(overrides, "train.length=1 iterations")
    train(config, tmp_path / "run")
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(UserError, match=r"contains a run \(iter_00000001\): resume it with --resume auto"):
        train(config, tmp_path / "run")
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*"))


def test_what_is_odd_about_data_and_sizes_is_told_and_logged(overrides, tmp_path, shapes, capsys):
    content = json.loads((shapes / "annotations/instances_train.json").read_text())
    content["annotations"][0]["bbox"] = [5, 5, -3, 20]
    (tmp_path / "odd.json").write_text(json.dumps(content))
    odd = [f"data.train.annotations={tmp_path}/odd.json", "data.augment.short_sides=[80, 96]"]
    train(quickstart(overrides, *odd, "train.length=1 iterations"), tmp_path / "run")
    told, log = capsys.readouterr().out, (tmp_path / "run/train.log").read_text()
    for line in (
        "odd.json: 1 of 18 boxes has no finite area",
        "odd.json: 1 of 18 boxes is clipped or dropped: is bbox x1, y1, x2, y2",
        "\nimages                         6         3\n",
        "\nboxes                         16        15\n",
        "training resizes short sides to 80..96",
        "set data.augment.short_sides=null",
    ):
        assert told.count(line) == log.count(line) == 1


def test_a_bad_image_ends_a_run_or_is_replaced(overrides, tmp_path, shapes, capsys):
    folder = shutil.copytree(shapes / "train", tmp_path / "train")
    bad = sorted(folder.iterdir())[2]
    bad.write_bytes(b"gone bad")
    options = [*overrides, f"data.train.images={folder}", "train.length=1 epoch", "train.checkpoint_every=null"]
    with pytest.raises(UserError, match=f"{bad.name} cannot be decoded"):
        train(quickstart(options), tmp_path / "run")
    assert (tmp_path / "run/checkpoints/iter_00000001").is_dir()  # the steps before it are not lost
    capsys.readouterr()
    train(quickstart(options, "data.loader.on_bad_image=skip"), tmp_path / "skips")
    told, log = capsys.readouterr().out, (tmp_path / "skips/train.log").read_text()
    for line in ("replaced by another image: ", "unusable training images that were replaced: 1 of the 6 read"):
        assert told.count(line) == log.count(line) == 1
    assert len(read_metrics(tmp_path / "skips/metrics.jsonl")) == 6


def test_weights_are_no_start_of_training(overrides, tmp_path):
    with pytest.raises(UserError, match=r"command line: weights: is for evaluation.*starts from pretrain_weights"):
        train(quickstart(overrides, "weights=x.pdparams"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_class_map_without_weights_is_refused(overrides, tmp_path):
    with pytest.raises(UserError, match="pretrain_class_map: has no effect without pretrain_weights; remove it"):
        train(quickstart(overrides, "pretrain_class_map={cat: dog}"), tmp_path / "run")


def test_nothing_to_resume_is_told(overrides, tmp_path, capsys):
    train(quickstart(overrides, "train.length=1 iterations"), tmp_path / "run", resume="auto")
    assert f"no checkpoint in {tmp_path}/run: starting a new run" in capsys.readouterr().out


def test_resuming_tells_what_has_changed(overrides, tmp_path, capsys):
    short = [*overrides, "train.checkpoint_every=null"]
    train(quickstart(short, "train.length=1 iterations"), tmp_path / "run")
    longer = [
        "train.length=2 iterations",
        "optimizer.base_lr=0.0005",
        "model.backbone.deformable={version: 1, stages: [4]}",
    ]
    with pytest.raises(UserError, match="weights are of another model"):
        train(quickstart(short, *longer), tmp_path / "run", resume="auto")
    assert "the config differs" not in capsys.readouterr().out
    train(quickstart(short, *longer[:2]), tmp_path / "run", resume="auto")
    expected = "the config differs from the checkpoint's: optimizer.base_lr: 0.001 -> 0.0005; train.length: 1"
    assert f"{expected} iterations -> 2 iterations" in capsys.readouterr().out


def test_a_torn_checkpoint_that_is_passed_over_is_told(overrides, tmp_path, capsys):
    train(quickstart(overrides), tmp_path / "run")
    torn = tmp_path / "run/checkpoints/iter_00000004/model.safetensors"
    torn.write_bytes(torn.read_bytes()[:1000])
    capsys.readouterr()
    train(quickstart(overrides), tmp_path / "run", resume="auto")
    told = capsys.readouterr().out
    assert "skipped a damaged checkpoint" in told and "iter_00000004" in told and "after iteration 2" in told


def test_a_run_that_has_no_other_checkpoint_goes_on_from_its_best(overrides, tmp_path, capsys):
    every = ["train.length=1 iterations", "train.evaluate_every=1 iterations"]
    train(quickstart(overrides, *every), tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/iter_00000001")
    with pytest.raises(UserError, match=r"contains a run \(best\): resume it with --resume auto"):
        train(quickstart(overrides), tmp_path / "run")
    train(quickstart(overrides, "train.length=2 iterations"), tmp_path / "run", resume="auto")
    assert "best after iteration 1" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_before_the_update(overrides):
    config = quickstart(overrides)
    model = build_model(config, CLASSES)
    model.predictor.classify.weight.set_value(paddle.full_like(model.predictor.classify.weight, float("nan")))
    trained = {name: value for name, value in model.named_parameters() if not value.stop_gradient}
    before = {name: value.numpy().copy() for name, value in trained.items()}
    batch = {
        "images": np.zeros((1, 3, 64, 96), np.float32),
        "image_sizes": np.array([[64, 96]], np.float32),
        "scales": np.ones((1, 2), np.float32),
        "image_ids": np.array([4711]),
        "targets": [
            {"boxes": np.array([[5, 5, 40, 50]], np.float32), "classes": np.array([1]), "is_crowd": np.array([False])}
        ],
    }
    optimizer = paddle.optimizer.SGD(0.1, parameters=model.parameters())
    with pytest.raises(RunFailed, match=r"loss_cls nan.*image ids \[4711\]"):
        train_step(model, optimizer, batch)
    for clip_norm, advice in ((None, r"or set optimizer\.clip_norm"), (1.0, r"or lower optimizer\.clip_norm")):
        with pytest.raises(RunFailed, match=advice):
            train_step(model, optimizer, batch, clip_norm)
    for name, value in trained.items():
        np.testing.assert_array_equal(value.numpy(), before[name])


def test_an_image_without_objects_trains(overrides):
    model = build_model(quickstart(overrides), CLASSES)
    batch = {
        "images": np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32),
        "image_sizes": np.array([[60, 64]], np.float32),
        "scales": np.ones((1, 2), np.float32),
        "image_ids": np.array([1]),
        "targets": [
            {"boxes": np.zeros((0, 4), np.float32), "classes": np.zeros(0, np.int64), "is_crowd": np.zeros(0, bool)}
        ],
    }
    model.train()
    output = model(*training_arguments(batch))
    assert output.losses["loss_box"].item() == 0 and output.losses["loss_rpn_box"].item() == 0
    sum(output.losses.values()).backward()
    gradients = [parameter.grad for parameter in model.parameters() if not parameter.stop_gradient]
    assert all(gradient is not None and np.isfinite(gradient.numpy()).all() for gradient in gradients)


def test_resume_refuses_other_classes(overrides, tmp_path, shapes):
    config = quickstart(overrides, "train.length=1 iterations")
    train(config, tmp_path / "run")
    annotations = json.loads((shapes / "annotations/instances_train.json").read_text())
    annotations["categories"][0]["name"] = "novelty"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(annotations))
    with pytest.raises(UserError, match=r"was trained on .*novelty"):
        train(
            quickstart(overrides, f"data.train.annotations={other}", "data.val=${data.train}"),
            tmp_path / "new",
            resume=str(tmp_path / "run/checkpoints/iter_00000001"),
        )


@pytest.mark.parametrize(
    ("norm", "images", "from_random", "words"),
    [
        ("frozen_bn", 8, True, "a randomly initialized frozen_bn"),
        ("frozen_bn", 8, False, None),
        ("bn", 1, True, "bn is trained on one image per device"),
        ("bn", 8, True, None),
        ("gn", 1, True, None),
    ],
)
def test_norms_that_cannot_work_are_warned_of(overrides, monkeypatch, norm, images, from_random, words):
    warnings = []
    monkeypatch.setattr(get_logger(), "warning", lambda text, *args: warnings.append(text % args))
    warn_about_norms(build_model(quickstart(overrides, f"model.backbone.norm={norm}"), CLASSES), images, from_random)
    assert len(warnings) == (words is not None) and all(words in text for text in warnings)


def test_offsets_that_never_learn_are_warned_of(overrides, caplog):
    deformable = "model.backbone={deformable: {version: 2, stages: [2, 3]}, frozen_stages: 2}"
    model = build_model(quickstart(overrides, deformable), CLASSES)
    warn_about_frozen_offsets(model)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("the offsets of 4 deformable convolutions (backbone.res2.0.conv1.conv, ...)")
    caplog.clear()
    for name, parameter in model.named_parameters():
        if name.startswith("backbone.res2") and name.endswith("offset.weight"):  # as in pretrained weights
            parameter.set_value(parameter + 0.1)
    warn_about_frozen_offsets(model)
    assert not caplog.messages


def test_what_of_the_norms_is_trained_is_told(overrides, caplog):
    """Weights that `train.freeze` holds do not hold a batch norm's statistics."""
    caplog.set_level("INFO", "ppdet_lite")
    model = build_model(quickstart(overrides, "model.backbone={norm: bn, frozen_stages: 2}"), CLASSES)
    warn_about_norms(model, 8, from_random=False)
    assert caplog.messages == ["norms: 5 FrozenBatchNorm frozen, 10 BatchNorm2D trained"]
    freeze(model, ["backbone.res4.*"])
    caplog.clear()
    warn_about_norms(model, 8, from_random=False)
    assert caplog.messages == [
        "norms: 5 FrozenBatchNorm frozen, 5 BatchNorm2D trained, 5 BatchNorm2D frozen",
        "train.freeze freezes the weights of 5 batch norms, but their running statistics still change with every "
        "batch; frozen_bn freezes both",
    ]


@pytest.mark.parametrize(
    ("images", "batch_size", "devices", "batches", "words"),
    [
        (8, 64, 1, 1, "a step has 64 images (64 x 1 devices x 1 batches), but .* only 8: .*batch_size to 8 or less"),
        (8, 4, 2, 2, "a step has 16 images (4 x 2 devices x 2 batches), but .* only 8: .*batch_size to 2 or less"),
        (8, 8, 1, 1, None),
        (8, 2, 2, 2, None),
    ],
)
def test_a_batch_of_more_images_than_there_are(monkeypatch, images, batch_size, devices, batches, words):
    warnings = []
    monkeypatch.setattr(get_logger(), "warning", lambda text, *args: warnings.append(text % args))
    warn_about_batch(images, batch_size, devices, batches)
    assert len(warnings) == (words is not None)
    assert all(part in text for text in warnings for part in words.split(".*"))


def test_the_tool_tells_a_users_mistake_in_one_line(tmp_path):
    config = tmp_path / "bad.yml"
    config.write_text(f"_base_: {ROOT}/configs/quickstart/shapes_r18_fpn.yml\nmodel:\n  neck: {{out_chanels: 64}}\n")
    result = subprocess.run(
        [sys.executable, str(ROOT / "tools/train.py"), "-c", str(config), "-o", f"output={tmp_path}/o"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2 and result.stdout == ""
    assert (
        result.stderr == f"error: {config}:3: model.neck.out_chanels: unknown key of FPN; did you mean out_channels?\n"
    )
    assert not (tmp_path / "o").exists()


def test_an_output_that_cannot_be_written_is_one_line(overrides, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        train(quickstart(overrides), blocker / "run")
