"""The exported model compared with the trained one, its description, and failed exports."""

import io
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
import yaml
from paddle import nn

import ppdet_lite
from ppdet_lite.assembly.setup import TrainedModel, build_model, load_config
from ppdet_lite.config.registry import build
from ppdet_lite.core.errors import RunFailed, UserError
from ppdet_lite.data.synthetic.shapes import scene
from ppdet_lite.deployment import detector as detector_module
from ppdet_lite.deployment import export as export_module
from ppdet_lite.deployment.description import Description
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.deployment.export import FORBIDDEN, choose_images, compare, export, graph_operators, save_graph
from ppdet_lite.deployment.predictor import Predictor
from ppdet_lite.storage.checkpoint import save_checkpoint
from ppdet_lite.structures import PackedDetections
from tests.tiny_run import WITHOUT_STAGE_5

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/quickstart/shapes_r18_fpn.yml"
NAMES = ["cat", "dog", "naïve"]
SMALL = [
    *WITHOUT_STAGE_5,
    "model.neck.out_channels=32",
    "model.box_head.width=64",
    "model.rpn.pre_nms_test=50",
    "model.rpn.post_nms_test=40",
    "model.postprocess.score_threshold=0.2",
    "model.postprocess.max_detections=30",
    "data.preprocess.short_side=96",
    "data.preprocess.long_side=160",
]


def make_detector(*overrides: str) -> TrainedModel:
    """A small detector with large weights in its last layers, so that it has many detections."""
    config = load_config(CONFIG, [*SMALL, *overrides])
    model = build_model(config, NAMES)
    nn.initializer.Normal(0, 1.0)(model.predictor.classify.weight)
    nn.initializer.Normal(0, 0.3)(model.predictor.regress.weight)
    model.eval()
    return TrainedModel(model, NAMES, [7, 3, 90], build(config["data"]["preprocess"]), "nowhere")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of different shapes."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, (height, width) in enumerate([(96, 128), (150, 100), (64, 64)]):
        picture = cv2.resize(scene(np.random.default_rng(i), 160)[0], (width, height))
        cv2.imwrite(str(folder / f"{i}.png"), picture[..., ::-1])
    return folder


@pytest.fixture(scope="module")
def detector() -> TrainedModel:
    return make_detector()


@pytest.fixture(scope="module")
def exported(detector: TrainedModel, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "deep" / "model"
    agreement = export(detector, folder, sorted(pictures.iterdir()))
    assert agreement.images == 3 and agreement.detections > 30
    assert agreement.box_gap < 1e-3 and agreement.score_gap < 1e-4
    return folder


@pytest.fixture(scope="module")
def predictor(exported: Path) -> Predictor:
    """Loaded once, since that takes seconds."""
    return Predictor(exported)


def assert_same(detector: TrainedModel, predictor: Predictor, batch: int, height: int, width: int) -> int:
    """Compare raw outputs on noise; returns how many detections there were."""
    rng = np.random.default_rng(height)
    images = rng.normal(size=(batch, 3, height, width)).astype(np.float32)
    sizes = np.stack([[height - 5 * i, width - 3 * i] for i in range(batch)]).astype(np.float32)
    scales = np.stack([[0.5 + i, 0.75] for i in range(batch)]).astype(np.float32)
    rows, counts = predictor(images, sizes, scales)
    with paddle.no_grad():
        found = detector.model(*map(paddle.to_tensor, (images, sizes, scales)))
    assert rows.dtype == np.float32 and rows.shape == (counts.sum(), 6) and counts.dtype == np.int32
    np.testing.assert_array_equal(counts, found.counts.numpy())
    image = np.repeat(np.arange(batch), counts)
    columns = [found.classes.numpy()[:, None], found.scores.numpy()[:, None], found.boxes.numpy()]
    expected = np.concatenate(columns, axis=1)
    ours, theirs = (table[np.lexsort((table[:, 2], table[:, 0], image))] for table in (rows, expected))
    np.testing.assert_allclose(ours[:, :2], theirs[:, :2], atol=1e-4)
    np.testing.assert_allclose(ours[:, 2:], theirs[:, 2:], atol=1e-3)
    return len(rows)


@pytest.mark.parametrize("onednn", [True, False])
def test_same_on_any_batch_and_size(detector: TrainedModel, exported: Path, predictor: Predictor, onednn: bool) -> None:
    if not onednn:
        predictor = Predictor(exported, onednn=False)
    for shape in ((1, 64, 64), (2, 96, 160), (3, 160, 96), (1, 64, 64)):
        assert assert_same(detector, predictor, *shape) > 0


@pytest.mark.parametrize("norm", ["frozen_bn", pytest.param("gn", marks=pytest.mark.slow)])
def test_an_image_without_detections(norm: str, tmp_path: Path) -> None:
    detector = make_detector(f"model.backbone.norm={norm}", "model.postprocess.score_threshold=1.0")
    save_graph(detector.model, tmp_path)
    predictor = Predictor(tmp_path)
    assert [assert_same(detector, predictor, *shape) for shape in ((1, 64, 96), (2, 96, 64))] == [0, 0]
    rows, counts = predictor(np.zeros((2, 3, 64, 64)), np.full((2, 2), 64), np.ones((2, 2)))
    assert rows.shape == (0, 6) and counts.tolist() == [0, 0]


def test_the_graph_has_only_supported_operators(exported: Path) -> None:
    names = graph_operators(exported)
    assert {"pd_op.nms", "pd_op.roi_align", "pd_op.topk", "pd_op.conv2d"} <= names
    assert not [name for name in names for part in FORBIDDEN if part in name]


class Interpolating(nn.Layer):
    """A model with a detector's inputs and outputs, and an operator that is refused."""

    def forward(self, images, image_sizes, scales, original_sizes=None):
        scores = F.interpolate(images, scale_factor=2).flatten(1).mean(axis=1)
        boxes = paddle.concat([image_sizes, scales], axis=1)
        return PackedDetections(boxes, scores, paddle.zeros_like(scores), paddle.ones_like(scores))


def test_an_operator_that_onednn_does_not_support_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"has pd_op\.nearest_interp, for which"):
        save_graph(Interpolating(), tmp_path)


TRACED = """
import sys
from pathlib import Path
import ppdet_lite
import paddle
from ppdet_lite.deployment.export import save_graph
from ppdet_lite.structures import PackedDetections

class Corner(paddle.nn.Layer):
    def forward(self, images, image_sizes, scales, original_sizes=None):
        found = image_sizes[:, 0] + scales[:, 0] + images.sum(axis=[1, 2, 3])
        return PackedDetections(found.unsqueeze(1).expand([-1, 4]), found, found.astype("int64"), found.astype("int32"))

save_graph(Corner(), Path(sys.argv[1]))
"""


def test_tracing_causes_no_warnings(tmp_path: Path) -> None:
    """In a separate process, because Paddle converts a function, and warns about it, only once."""
    command = [sys.executable, "-W", "error:Dy2Static", "-c", TRACED, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "model.json").exists(), done.stderr[-2000:]


class Faulty(nn.Layer):
    """A custom layer with an error."""

    def forward(self, images, image_sizes, scales, original_sizes=None):
        return images.no_such_attribute


def test_an_error_in_a_custom_layer_shows_its_line(tmp_path: Path) -> None:
    """Tracing records no stack traces, which is a quarter faster; errors still have theirs."""
    with pytest.raises(
        AttributeError, match=r"test_export\.py\", line \d+, in forward[^~]*no_such_attribute\n +~+ <--- "
    ):
        save_graph(Faulty(), tmp_path)
    assert not hasattr(sys, "tracebacklimit")


def test_the_description_has_paddledetections_keys(detector: TrainedModel, exported: Path) -> None:
    content = yaml.safe_load((exported / "infer_cfg.yml").read_bytes().decode("ascii"))
    ours = content.pop("ppdet_lite")
    assert content == {
        "mode": "paddle",
        "draw_threshold": 0.5,
        "metric": "COCO",
        "use_dynamic_shape": True,
        "arch": "RCNN",
        "min_subgraph_size": 40,
        "Preprocess": [
            {"type": "Resize", "target_size": [96, 160], "keep_ratio": True, "interp": 1},
            {
                "type": "NormalizeImage",
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
                "is_scale": True,
                "norm_type": "mean_std",
            },
            {"type": "Permute"},
            {"type": "PadStride", "stride": 32},
        ],
        "label_list": ["cat", "dog", "naïve"],
    }
    assert ours["versions"] == {"ppdet_lite": ppdet_lite.__version__, "paddle": paddle.__version__}
    assert ours["category_ids"] == [7, 3, 90]
    assert type(detector.preprocess)(**ours["preprocess"]).resize(np.zeros((200, 100, 3), np.uint8))[0].shape == (
        160,
        80,
        3,
    )


def off(predictor: Predictor) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Return a function that runs an exported model and modifies its results."""

    def run(*arguments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, counts = predictor(*arguments)
        if len(counts) == 2:
            rows[counts[0] + 3, 4] += 0.25  # x2 of the fourth detection in the second image
        return rows, counts

    return run


def test_a_mismatch_is_an_error_and_changes_no_file(
    detector: TrainedModel,
    exported: Path,
    predictor: Predictor,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export_module, "save_graph", lambda model, folder, preprocess: copy_model(exported, folder))
    monkeypatch.setattr(detector_module, "Predictor", lambda folder: off(predictor))
    text = r"1\.png, batch size 2: only the trained model finds .* at \[.*\]; the other .* nearest differs by 0\.25 px"
    with pytest.raises(RunFailed, match=text):
        export(detector, tmp_path / "new", sorted(pictures.iterdir()))
    assert list(tmp_path.iterdir()) == []
    copy_model(exported, tmp_path / "old")
    with pytest.raises(RunFailed, match=text):
        export(detector, tmp_path / "old", sorted(pictures.iterdir()))
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old/model.json").read_bytes() == (exported / "model.json").read_bytes()


def copy_model(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.yml"))


def test_only_an_export_is_replaced(
    detector: TrainedModel, exported: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "save_graph", lambda model, folder, preprocess: copy_model(exported, folder))
    monkeypatch.setattr(detector_module, "Predictor", lambda folder: predictor)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").touch()
    (tmp_path / "file").touch()
    for name in ("mine", "file"):
        with pytest.raises(UserError, match=f"{name} exists and is not an exported model"):
            export(detector, tmp_path / name)
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        export(detector, tmp_path / "file" / "below")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.json").write_text("of an earlier export")
    assert export(detector, tmp_path / "model").images == 4  # drawn ones
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "infer_cfg.yml",
        "model.json",
        "model.pdiparams",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine", "model"]


def test_a_full_disk_is_reported_although_paddle_ignores_it(
    detector: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paddle.jit, "to_static", lambda *_, **__: None)
    monkeypatch.setattr(paddle.jit, "save", lambda *_: None)  # as its own writer, which fails without a word
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: io.FileIO("/dev/full", "w"))
    with pytest.raises(UserError, match="model: cannot be written: No space left on device; free space or choose"):
        export(detector, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_large_images_are_compared_in_network_pixels(
    detector: TrainedModel, predictor: Predictor, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "large.png"), cv2.resize(scene(np.random.default_rng(5), 160)[0], (1600, 960)))

    def shift_first(*arguments):
        rows, counts = predictor(*arguments)
        rows[:1, 2] += shift  # none in the image without extent
        return rows, counts

    shift = 0.008  # 0.0008 pixels of the network input, which is a tenth of the image
    shifted = Detector(shift_first, Description.from_trained(detector), "shifted")
    compare(Detector.from_trained(detector), shifted, [tmp_path / "large.png"])
    shift = 0.02
    with pytest.raises(RunFailed, match=r"large\.png, batch size 1"):
        compare(Detector.from_trained(detector), shifted, [tmp_path / "large.png"])


def test_boxes_end_at_the_borders_of_a_large_image(detector: TrainedModel, predictor: Predictor) -> None:
    """1070 x 1738 at 96 / 1070 is 96 x 155.93; from 156, 1739 was recovered."""
    exported = Detector(predictor, Description.from_trained(detector), "exported")
    image = cv2.resize(scene(np.random.default_rng(5), 160)[0], (1738, 1070))
    for network in (Detector.from_trained(detector), exported):
        boxes = network(image).boxes
        assert boxes.min() == 0 and boxes.max(axis=0)[2:].tolist() == [1738, 1070]


def test_predictor_needs_an_exported_model(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not an exported model: model\.json is missing"):
        Predictor(tmp_path)
    shutil.copy(exported / "model.json", tmp_path)
    with pytest.raises(UserError, match=r"model\.pdiparams is missing"):
        Predictor(tmp_path)


def test_images_to_compare_on(pictures: Path, tmp_path: Path) -> None:
    config = load_config(CONFIG, [f"data.val.images={pictures}"])
    names = [path.name for path in choose_images(config, None, 2)]
    assert names == ["0.png", "2.png"]
    assert len(choose_images(config, pictures / "1.png", 8)) == 1
    with pytest.raises(UserError, match="contains no image"):
        choose_images(config, tmp_path, 8)
    assert choose_images(load_config(CONFIG, [f"data.val.images={tmp_path / 'absent'}"]), None, 8) is None
    mixed = f"data.val={{type: MixedDataset, parts: [{{images: {pictures}, annotations: a.json}}]}}"
    assert len(choose_images(load_config(CONFIG, [mixed]), None, 8)) == 3


def test_the_tool(
    detector: TrainedModel,
    exported: Path,
    predictor: Predictor,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrays = {name: value.numpy() for name, value in detector.model.state_dict().items()}
    save_checkpoint(tmp_path / "weights", {"model": arrays}, {"class_names": NAMES, "category_ids": [7, 3, 90]})
    monkeypatch.setattr(export_module, "save_graph", lambda model, folder, preprocess: copy_model(exported, folder))
    weights, output = f"weights={tmp_path / 'weights'}", str(tmp_path / "out")
    arguments = ["-c", str(CONFIG), "-o", *SMALL, weights, "--output", output, "--images", str(pictures)]
    tool = str(ROOT / "tools/export_model.py")
    monkeypatch.setattr(sys, "argv", [tool, *arguments])
    runpy.run_path(tool, run_name="__main__")
    assert yaml.safe_load((tmp_path / "out/infer_cfg.yml").read_text())["label_list"] == NAMES
    monkeypatch.setattr(detector_module, "Predictor", lambda folder: off(predictor))
    monkeypatch.setattr(sys, "argv", [tool, *arguments, "--output", str(tmp_path / "other")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(tool, run_name="__main__")
    assert stop.value.code == 1 and not (tmp_path / "other").exists()
