"""Training with the R-CNN teacher, and that nothing of it is left in what training was for."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest
from safetensors.numpy import save_file
from visualdl import LogReader

from ppdet_lite.assembly.pretrained import load_pretrained
from ppdet_lite.assembly.setup import build_model, load_config
from ppdet_lite.assembly.trained import load_trained
from ppdet_lite.benchmarks.loader import bench_data
from ppdet_lite.benchmarks.model import bench_train
from ppdet_lite.core.errors import RunFailed, UserError
from ppdet_lite.data.images.drawing import draw_strip
from ppdet_lite.data.loading import loader
from ppdet_lite.data.loading.transforms import Preprocess
from ppdet_lite.data.synthetic.shapes import generate
from ppdet_lite.deployment.export import save_graph
from ppdet_lite.storage.checkpoint import load_checkpoint
from ppdet_lite.structures import Patches
from ppdet_lite.training.loop import train
from ppdet_lite.training.metrics_file import read_metrics
from ppdet_lite.training.recorder import Recorder
from ppdet_lite.training.setting_warnings import warn_about_norms
from tests import ranks, tiny
from tests.tiny_run import WITHOUT_STAGE_5
from tests.training import mimic_worker

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/quickstart/shapes_r18_fpn_mimic.yml"
PLAIN = ROOT / "configs/quickstart/shapes_r18_fpn_mdconv_mdpool.yml"
CLASSES = ["bar", "disc"]
SMALL = [
    *WITHOUT_STAGE_5,
    "model.backbone.deformable.stages=[4]",
    "data.preprocess={short_side: 64, long_side: 96, stride: 32}",
    "data.loader.batch_size=2",
    "model.neck.out_channels=32",
    "model.box_head.width=32",
    "model.roi_pool.hidden=32",
    "schedule.warmup_iterations=2",
]
MIMIC = ["model.mimic.crop_size=32", "model.mimic.include_ground_truth=true"]  # a new RPN proposes little


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    generate(folder, train=6, val=2, seed=1, size=128)
    return folder


@pytest.fixture(scope="module")
def data(shapes: Path) -> list[str]:
    return [
        f"data.{split}={{images: {shapes}/{split}, annotations: {shapes}/annotations/instances_{split}.json}}"
        for split in ("train", "val")
    ]


@pytest.fixture(scope="module")
def run(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with the teacher, which comes in after one iteration."""
    folder = tmp_path_factory.mktemp("run")
    length = ["train.length=3 iterations", "train.log_every=1", "train.checkpoint_every=3 iterations"]
    config = load_config(CONFIG, [*data, *SMALL, *MIMIC, *length, "model.mimic.start_iteration=1"])
    train(config, folder)
    return folder


def test_a_branch_that_never_comes_in_is_told(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    length = ["train.length=1 iterations", "schedule.warmup_iterations=0", "model.mimic.start_iteration=1"]
    train(load_config(CONFIG, [*data, *SMALL, *length]), tmp_path / "run")
    told = "mimicking never begins: model.mimic.start_iteration is 1, training ends after 1 iterations"
    assert told in capsys.readouterr().out


def test_what_training_tells(run: Path) -> None:
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["loss_mimic"] > 0 for row in rows] == [row["mimic_rois"] > 0 for row in rows] == [False, True, True]
    assert ["mimic_cosine" in row for row in rows] == ["mimic_accuracy" in row for row in rows] == [False, True, True]
    for row in rows[1:]:
        assert row["loss_mimic"] == pytest.approx(0.1 * (1 - row["mimic_cosine"]), abs=1e-6)
    (log,) = (run / "vdl").iterdir()
    tags = LogReader(file_path=str(log)).get_tags()
    assert {"train/mimic_cosine", "train/mimic_accuracy", "train/loss_mimic"} <= set(tags["scalar"])
    assert "train/mimic_patches" in tags["image"]


@pytest.mark.parametrize("count", [1, 3, 16, 40])
def test_the_strip_shows_patches_of_the_whole_batch(count: int, tmp_path: Path) -> None:
    preprocess, gray = Preprocess(), np.arange(count) * 6
    pixels = np.broadcast_to(gray[:, None, None, None], (count, 3, 8, 8)) / 255
    mean, std = (np.array(part).reshape(3, 1, 1) for part in (preprocess.mean, preprocess.std))
    recorder = Recorder(tmp_path, 1, 0, 1)
    classes = np.arange(count) % 3
    recorder.patches(1, Patches(tiny.float32((pixels - mean) / std), tiny.int64(classes)), CLASSES, preprocess)
    recorder.close()
    (log,) = (tmp_path / "vdl").iterdir()
    (record,) = LogReader(file_path=str(log)).get_data("image", "train/mimic_patches")
    strip = cv2.imdecode(np.frombuffer(record.image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    chosen = list(range(count)) if count <= 16 else [i * count // 16 for i in range(16)]
    shown = [np.full((8, 8, 3), gray[i], np.uint8) for i in chosen]
    np.testing.assert_array_equal(strip, draw_strip(shown, [[*CLASSES, "background"][classes[i]] for i in chosen]))
    assert strip[-1, ::12, 0].tolist() == [gray[i] for i in chosen]


@pytest.mark.parametrize(
    ("path", "crop_from", "handed_over"),
    [(CONFIG, "original", True), (CONFIG, "network", False), (PLAIN, None, False)],
    ids=["original", "network", "no branch"],
)
def test_original_pixels_are_handed_over_only_where_they_are_used(
    path: Path,
    crop_from: str | None,
    handed_over: bool,
    data: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches = []

    def look(network: paddle.nn.Layer, optimizer: object, step_batches: list[dict], *_: object, **__: object) -> None:
        batches.extend(step_batches)
        raise RunFailed("seen")

    monkeypatch.setattr("ppdet_lite.training.run.train_step", look)
    override = [] if crop_from is None else [f"model.mimic.crop_from={crop_from}"]
    with pytest.raises(RunFailed, match="seen"):
        train(load_config(path, [*data, *SMALL, *override]), tmp_path / "run")
    assert ("original_images" in batches[0]) is handed_over


@pytest.mark.parametrize("path", [CONFIG, PLAIN], ids=["with", "without"])
def test_a_checkpoint_makes_a_detector_without_a_teacher(path: Path, run: Path, data: list[str]) -> None:
    """With the config it was trained with, and with the one that has no `mimic`."""
    saved = load_checkpoint(run / "checkpoints/iter_00000003").groups["model"]
    assert {"mimic.classify.weight", "mimic.classify.bias"} <= set(saved)
    model = load_trained(load_config(path, [*data, *SMALL, f"weights={run}"])).model
    assert model.mimic is None
    found = {name: value.numpy() for name, value in model.state_dict().items()}
    assert set(found) == {name for name in saved if not name.startswith("mimic.")}
    assert all((value == saved[name]).all() for name, value in found.items())


def test_the_exported_graph_has_the_operators_and_weights_of_one_without(
    run: Path, data: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Traced from the detector; with --slow also from a model that still has its teacher."""
    with_teacher = build_model(load_config(CONFIG, [*data, *SMALL]))
    assert with_teacher.mimic is not None
    models = {
        "trained": load_trained(load_config(CONFIG, [*data, *SMALL, f"weights={run}"])).model,
        **({"teacher": with_teacher} if request.config.getoption("--slow") else {}),
        "never": build_model(load_config(PLAIN, [*data, *SMALL])),
    }
    found = {}
    for name, model in models.items():
        model.eval()
        (tmp_path / name).mkdir()
        save_graph(model, tmp_path / name)
        operators = list(operator_names(json.loads((tmp_path / name / "model.json").read_text())))
        graph = paddle.jit.load(str(tmp_path / name / "model"))
        shapes = Counter(tuple(value.shape) for value in graph.state_dict().values())
        found[name] = (operators, shapes, (tmp_path / name / "model.pdiparams").stat().st_size)
    assert len(found["never"][0]) > 300
    assert all(traced == found["never"] for traced in found.values())


def operator_names(node: object) -> Iterator[str]:
    """The kinds of all operators in the JSON of a graph, in their order."""
    if isinstance(node, dict):
        if isinstance(node.get("#"), str):
            yield node["#"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from operator_names(child)


def test_a_teachers_own_backbone_starts_from_the_same_weights(data: list[str], tmp_path: Path) -> None:
    """Those of a classifier or of a detector; what differs in shape is reported as missing."""
    model = build_model(load_config(PLAIN, [*data, *SMALL]), CLASSES)
    trunk = {
        name.removeprefix("backbone."): value.numpy()
        for name, value in model.state_dict().items()
        if name.startswith("backbone.")
    }
    whole = {name: value.numpy() for name, value in model.state_dict().items()}
    for name, arrays in {"trunk": trunk, "whole": whole}.items():
        save_file(arrays, tmp_path / f"{name}.safetensors")
        overrides = [*data, *SMALL, "runtime.seed=5", "model.mimic.backbone=${model.backbone}"]
        other = build_model(load_config(CONFIG, overrides), CLASSES)
        report = load_pretrained(other, str(tmp_path / f"{name}.safetensors"))
        assert not [name for name in report.missing if "backbone" in name]
        for own in ("backbone", "mimic.backbone"):
            for key, value in trunk.items():
                assert (other.state_dict()[f"{own}.{key}"].numpy() == value).all(), key
    smaller = [
        *data,
        *SMALL,
        "model.mimic.backbone={type: ResNet, depth: 34, norm: bn, frozen_stages: 0, out_stages: [2, 3, 4]}",
    ]
    report = load_pretrained(build_model(load_config(CONFIG, smaller), CLASSES), str(tmp_path / "whole.safetensors"))
    assert "mimic.backbone.res3.3.conv1.conv.weight" in report.missing


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.mimic.crop_size=100", "command line: model.mimic.crop_size: 100 is not a multiple of 16"),
        (
            "model.mimic.backbone={type: ResNet, depth: 50}",
            "command line: model.mimic.backbone: has (chan",
        ),
        (
            "model.roi_sampler.append_ground_truth=false",
            "model.mimic.include_ground_truth: the RoIs contain no ground truth",
        ),
        ("model.mimic=true", "model.mimic: expected a mapping of arguments of RCNNTeacher, or null, got true"),
        ("model.mimic.rois=fg", "model.mimic.rois: expected 'foreground', 'background' or 'both', got 'fg'"),
        ("model.mimic.num_classes=3", "model.mimic.num_classes"),
        ("model.mimic.loss_weight=-1", "model.mimic.loss_weight"),
    ],
)
def test_mistakes_are_told_in_one_line(override: str, told: str, data: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build_model(load_config(CONFIG, [*data, *SMALL, *MIMIC, override]), CLASSES)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_the_benchmark_counts_the_patches(data: list[str]) -> None:
    both = load_config(CONFIG, [*SMALL, *MIMIC, "model.mimic.rois=both", "model.mimic.rois_per_image=5"])
    assert bench_train(both, (64, 96), 2, 1, 3)["mimic_rois"] == 5
    assert "mimic_rois" not in bench_train(load_config(PLAIN, SMALL), (64, 96), 1, 1, 3)


@pytest.mark.parametrize(("path", "kept"), [(CONFIG, True), (PLAIN, False)], ids=["with", "without"])
def test_the_benchmark_of_loading_loads_what_training_does(
    path: Path, kept: bool, data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    monkeypatch.setattr(loader, "collate", lambda samples, preprocess: loaded.extend(samples))
    assert bench_data(load_config(path, [*data, *SMALL]), 2, [0])["images_per_second"]["0"] > 0
    assert loaded and all(("original_image" in sample) is kept for sample in loaded)


def test_what_goes_on_from_another_model_is_told_how(run: Path, data: list[str], tmp_path: Path) -> None:
    early = run / "checkpoints/iter_00000003"
    with pytest.raises(UserError, match=r"2 unexpected.*resume with the model it was trained with, or start a new run"):
        train(load_config(PLAIN, [*data, *SMALL, "train.length=4 iterations"]), tmp_path / "run", resume=str(early))


def test_a_teachers_backbone_that_stays_random_is_told(
    data: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frozen = "model.mimic.backbone={type: ResNet, depth: 18, norm: gn, out_stages: [2, 3, 4]}"
    model = build_model(load_config(CONFIG, [*data, *SMALL, frozen]), CLASSES)
    warn_about_norms(model, 8, from_random=True)
    assert "set model.mimic.backbone.frozen_stages=0" in caplog.text
    assert "set model.backbone.frozen_stages=0" not in caplog.text
    arrays = {name: value.numpy() for name, value in model.state_dict().items() if name.startswith("backbone.")}
    part = {name: array for name, array in arrays.items() if "res3.0.conv1.conv" not in name}
    save_file(part, tmp_path / "part.safetensors")
    load_pretrained(model, str(tmp_path / "part.safetensors"))
    assert "lacks" in caplog.text and "backbone arrays, such as backbone.res3.0.conv1.conv.weight" in caplog.text


def test_two_processes_one_of_them_without_a_positive_roi(tmp_path: Path) -> None:
    """Both end, with the mean of the gradients that each would have had alone."""
    processes = ranks.start(2, str(ROOT / "tests/training/mimic_worker.py"), str(tmp_path))
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    found = [dict(np.load(tmp_path / f"rank{rank}.npz")) for rank in range(2)]
    alone = []
    for rank in range(2):
        model = mimic_worker.detector()
        losses = mimic_worker.backward(model, rank)
        np.testing.assert_allclose(found[rank].pop("losses"), losses, rtol=1e-4, atol=1e-7)
        assert (min(losses) > 0) == (rank == 0)
        alone.append(mimic_worker.gradients(model))
    assert set(found[0]) == set(found[1]) == set(alone[0]) == set(alone[1])
    assert all(name in alone[1] for name in ("mimic.classify.weight", "mimic.classify.bias"))
    for name, first in found[0].items():
        np.testing.assert_array_equal(first, found[1][name], err_msg=name)
        expected = (alone[0][name] + alone[1][name]) / 2
        np.testing.assert_allclose(first, expected, rtol=1e-3, atol=1e-5 * max(1, np.abs(expected).max()), err_msg=name)


def test_watching_without_training_disturbs_nothing(data: list[str], tmp_path: Path) -> None:
    """Both weights 0: the detector ends, bit for bit, as without the branch, running statistics included."""
    length = ["train.length=3 iterations", "train.log_every=1", "schedule.warmup_iterations=1"]
    still = ["model.mimic.loss_weight=0", "model.mimic.cls_loss_weight=0"]
    train(load_config(CONFIG, [*data, *SMALL, *MIMIC, *length, *still]), tmp_path / "watched")
    train(load_config(PLAIN, [*data, *SMALL, *length]), tmp_path / "plain")
    watched, plain = (
        load_checkpoint(tmp_path / name / "checkpoints/iter_00000003").groups["model"] for name in ("watched", "plain")
    )
    rows = read_metrics(tmp_path / "watched/metrics.jsonl")
    assert all(row["mimic_rois"] > 0 and row["loss_mimic"] == row["loss_mimic_cls"] == 0 for row in rows)
    assert {name for name in watched if not name.startswith("mimic.")} == set(plain)
    assert all((value == watched[name]).all() for name, value in plain.items())


def test_a_resumed_run_equals_the_straight_one(data: list[str], tmp_path: Path) -> None:
    """Bit for bit: when the branch comes in, what is drawn, and the optimizer's state of the branch's own weights."""
    length = ["train.log_every=1", "train.checkpoint_every=2 iterations", "train.length=4 iterations"]
    start = ["schedule.warmup_iterations=1", "model.mimic.start_iteration=3"]
    config = load_config(CONFIG, [*data, *SMALL, *MIMIC, *length, *start])
    train(config, tmp_path / "straight")
    early = "checkpoints/iter_00000002"
    shutil.copytree(tmp_path / "straight" / early, tmp_path / "resumed" / early)
    train(config, tmp_path / "resumed", resume="auto")
    runs = [load_checkpoint(tmp_path / name / "checkpoints/iter_00000004").groups for name in ("straight", "resumed")]
    for group, name in (("model", "mimic.classify.weight"), ("optimizer", "mimic.classify.weight/moment1")):
        first, second = (run[group] for run in runs)
        assert first.keys() == second.keys() and name in first
        assert all((value == second[key]).all() for key, value in first.items())
    for run in ("straight", "resumed"):
        losses = {row["iteration"]: row["loss_mimic"] for row in read_metrics(tmp_path / run / "metrics.jsonl")}
        assert losses[3] == 0 < losses[4]
