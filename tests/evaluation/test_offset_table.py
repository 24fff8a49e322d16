"""Effective dilation and the share of samples outside of boxes, against values computed by hand and tap by tap."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from ppdet_lite.assembly.setup import TrainedModel, build_dataset, build_model, load_config
from ppdet_lite.config.registry import build
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.loading.loader import Loader
from ppdet_lite.data.synthetic.shapes import generate
from ppdet_lite.evaluation.offset_table import Moments, _size_of_cells, effective_dilation, offset_table, outside_share
from ppdet_lite.evaluation.offsets import ConvSamples, deformable_parts
from ppdet_lite.storage.checkpoint import save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/quickstart/shapes_r18_fpn_mdconv.yml"
SMALL = ["model.neck.out_channels=32", "model.box_head.width=32", "data.preprocess.stride=32"]
TAPS = np.indices((3, 3)).reshape(2, -1).T[:, ::-1] - 1
LAYERS = [f"backbone.res{stage}.{block}.conv{k}.conv" for stage in (4, 5) for block in (0, 1) for k in (1, 2)]


def samples(offset: np.ndarray, mask: np.ndarray | None = None, stride: int = 1, in_stride: int = 4) -> ConvSamples:
    mask = np.ones((9, *offset.shape[2:])) if mask is None else mask
    return ConvSamples(offset, mask, TAPS, stride, in_stride, (offset.shape[3] * stride, offset.shape[2] * stride))


def test_effective_dilation_by_hand() -> None:
    """Taps spread to 2.5 times their distance in one cell, shifted alike in a second, one tap moved in a third."""
    offset = np.zeros((9, 2, 1, 3))
    offset[:, :, 0, 0] = 1.5 * TAPS
    offset[:, :, 0, 1] = (3, -7)
    offset[4, :, 0, 2] = (0, 1)  # the middle: distances 2 and 0 down, sqrt(2) twice across, of 12
    expected = [2.5, 1, (8 + 2 + 0 + 2 * np.sqrt(2)) / 12]
    np.testing.assert_allclose(effective_dilation(samples(offset))[0], expected)


def test_a_dilated_layer_has_its_dilation() -> None:
    sample = samples(np.zeros((9, 2, 2, 2)))._replace(taps=2 * TAPS)
    np.testing.assert_allclose(effective_dilation(sample), 2)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((18.4, 18.4, 22.6, 22.6), 1 - 1 / 9),  # 4.2 px around the middle cell, whose center is at 20.5: this alone
        ((16.4, 16.4, 24.6, 24.6), 0),  # the centers of all nine cells, 16.5 to 24.5
        ((16.4, 18.4, 24.6, 22.6), 6 / 9),  # three cells
    ],
)
def test_share_of_a_regular_convolution(box: tuple[float, ...], expected: float) -> None:
    assert outside_share([samples(np.zeros((9, 2, 10, 10)))], np.array(box)) == pytest.approx(expected)


def test_masks_and_bilinear_weights_count() -> None:
    """Two taps are heard: one a quarter of a cell right of the box's last column of centers, with mask 0.5."""
    offset, mask = np.zeros((9, 2, 10, 10)), np.zeros((9, 10, 10))
    offset[5], mask[5], mask[4] = np.array([0.25, 0]).reshape(2, 1, 1), 0.5, 1
    box = np.array([16.4, 16.4, 24.6, 24.6])  # its last centers are at 24.5, cell 6; the tap reads cells 6 and 7
    assert outside_share([samples(offset, mask)], box) == pytest.approx(0.5 * 0.25 / 1.5)
    assert np.isnan(outside_share([samples(offset, 0 * mask)], box))


def test_samples_beyond_the_feature_map_do_not_count() -> None:
    """At the corner of the image five of nine taps read zeros; of the others, one cell is inside."""
    assert outside_share([samples(np.zeros((9, 2, 10, 10)))], np.array([0, 0, 1, 1])) == pytest.approx(3 / 4)


def test_share_of_stacked_convolutions_against_a_walk_over_all_paths() -> None:
    rng = np.random.default_rng(0)
    first = samples(rng.integers(-1, 2, (9, 2, 12, 12)).astype(float), rng.uniform(0, 1, (9, 12, 12)), stride=2)
    second = samples(rng.integers(-1, 2, (9, 2, 12, 12)).astype(float), rng.uniform(0, 1, (9, 12, 12)), in_stride=8)
    box = np.array([36.5, 40.5, 60.5, 56.5])  # its center is that of cell (6, 6)
    total = outside = 0.0
    for k, tap in enumerate(TAPS):
        x, y = np.array([6, 6]) + tap + second.offset[k, :, 6, 6]
        for m, inner in enumerate(TAPS):
            u, v = np.array([2 * x, 2 * y]) + inner + first.offset[m, :, int(y), int(x)]
            weight = second.mask[k, 6, 6] * first.mask[m, int(y), int(x)]
            total += weight
            outside += weight * (not (36.5 <= 4 * u + 0.5 < 60.5 and 40.5 <= 4 * v + 0.5 < 56.5))
    assert 0.1 < outside / total < 0.9
    assert outside_share([first, second], box) == pytest.approx(outside / total)


def test_cells_belong_to_the_smallest_box() -> None:
    boxes = np.array([[0, 0, 16, 16], [4, 4, 9, 9], [20, 0, 28, 8.0]])  # large, small, a crowd region
    owners = _size_of_cells(samples(np.zeros((9, 2, 5, 8))), boxes, np.array([2, 0, -1]), np.array([16, 28]))
    expected = np.array(
        [
            [2, 2, 2, 2, 3, -1, -1, -1],  # the last column lies beyond the image
            [2, 0, 0, 2, 3, -1, -1, -1],
            [2, 0, 0, 2, 3, 3, 3, -1],
            [2, 2, 2, 2, 3, 3, 3, -1],
            [-1] * 8,
        ]
    )
    np.testing.assert_array_equal(owners, expected)


def test_moments() -> None:
    values, moments = np.random.default_rng(0).normal(3, 2, 100), Moments()
    for part in (values[:30], np.array([np.nan]), values[30:].reshape(7, 10)):
        moments.add(part)
    assert moments.as_dict() == pytest.approx({"mean": values.mean(), "std": values.std(), "count": 100})
    assert Moments().as_dict() == {"mean": None, "std": None, "count": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training and five validation images, and a detector whose first deformable convolution spreads its taps."""
    folder = tmp_path_factory.mktemp("offsets")
    generate(folder / "shapes", 6, 5)
    return folder


def detector_and_data(folder: Path, *overrides: str) -> tuple[TrainedModel, CocoDataset, list[str]]:
    data = [f"data.val.images={folder}/shapes/val"]
    data.append(f"data.val.annotations={folder}/shapes/annotations/instances_val.json")
    config = load_config(CONFIG, [*SMALL, *data, *overrides])
    dataset = build_dataset(config, "val")
    model = build_model(config, dataset.class_names)
    if deformable_parts(model):
        layer = deformable_parts(model)[LAYERS[0]]
        bias = np.zeros(layer.offset.bias.shape, np.float32)
        bias[:18] = 0.5 * TAPS[:, ::-1].ravel()  # (y, x)
        layer.offset.bias.set_value(bias)
    return TrainedModel(model, dataset.class_names, [], build(config["data"]["preprocess"]), "here"), dataset, data


def test_table_of_a_detector_with_known_offsets(folder: Path) -> None:
    detector, dataset, _ = detector_and_data(folder)
    table = offset_table(detector, dataset, Loader(batch_size=3))
    sides = np.sqrt([(b[2] - b[0]) * (b[3] - b[1]) for i in range(5) for b in dataset.annotations(i).boxes])
    assert table["images"] == 5 and table["objects"] == len(sides)
    np.testing.assert_allclose(table["size_limits"], np.quantile(sides, [1 / 3, 2 / 3]))
    assert list(table["layers"]) == LAYERS and table["stacked"]["layers"] == LAYERS[-3:]
    for name, layer in table["layers"].items():
        expected = 1.5 if name == LAYERS[0] else 1
        for size in ("small", "medium", "large", "background"):
            assert layer["effective_dilation"][size]["mean"] == pytest.approx(expected, abs=1e-5)
            assert layer["effective_dilation"][size]["std"] == pytest.approx(0, abs=1e-2)
        assert sum(moments["count"] for moments in layer["outside_box"].values()) == len(sides)
        changed = layer["outside_box"] != layer["outside_box_without_offsets"]
        assert changed == (name == LAYERS[0])
    share = {size: table["layers"][LAYERS[0]]["outside_box"][size]["mean"] for size in ("small", "medium", "large")}
    assert share["small"] > share["medium"] > share["large"]


def test_the_stage_selects_what_is_stacked(folder: Path) -> None:
    detector, dataset, _ = detector_and_data(folder)
    table = offset_table(detector, dataset, Loader(), stage=4)
    assert table["stacked"]["layers"] == LAYERS[1:4]
    with pytest.raises(UserError, match="--stage 3 has no deformable convolutions; they are in res4, res5"):
        offset_table(detector, dataset, Loader(), stage=3)


def test_what_cannot_be_measured(folder: Path) -> None:
    detector, dataset, _ = detector_and_data(folder, "model.backbone.deformable=null")
    with pytest.raises(UserError, match=r"no deformable convolutions; set model\.backbone\.deformable"):
        offset_table(detector, dataset, Loader())
    empty = json.loads((folder / "shapes/annotations/instances_val.json").read_text())
    (folder / "empty.json").write_text(json.dumps({**empty, "annotations": []}))
    with pytest.raises(UserError, match="no objects, by whose size offsets are measured"):
        offset_table(detector_and_data(folder)[0], CocoDataset(folder / "shapes/val", folder / "empty.json"), Loader())


def test_command(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    detector, _, data = detector_and_data(folder)
    arrays = {name: tensor.numpy() for name, tensor in detector.model.state_dict().items()}
    meta = {"class_names": detector.class_names, "category_ids": [3, 7, 11, 18, 25, 44]}
    save_checkpoint(folder / "model", {"model": arrays}, meta)
    command = ["visualize_offsets.py", "-c", str(CONFIG), "--output", str(folder / "out")]
    monkeypatch.setattr(sys, "argv", [*command, "--split", "val", "-o", f"weights={folder / 'model'}", *SMALL, *data])
    runpy.run_path(str(ROOT / "tools/visualize_offsets.py"), run_name="__main__")
    table = json.loads((folder / "out/offsets.json").read_text())
    assert list(table["layers"]) == LAYERS
    assert (folder / "out/offsets.svg").read_text().count("<svg") == 1
    assert f"{LAYERS[0]}: effective dilation small 1.50, medium 1.50, large 1.50" in capfd.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, "--split", "val", "--input", "photo.jpg"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "tools/visualize_offsets.py"), run_name="__main__")
    assert paddle.is_grad_enabled()
