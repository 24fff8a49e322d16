"""Visualizations of deformable sampling against positions computed by hand, and statistics of known offsets."""

import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest
from paddle import nn
from visualdl import LogReader

from ppdet_lite.assembly.setup import TrainedModel, build_model, load_config
from ppdet_lite.config.registry import build
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.images.decoding import load_image
from ppdet_lite.data.loading.transforms import collate, image_sample
from ppdet_lite.data.synthetic.shapes import generate
from ppdet_lite.deployment.detect import TrainedNetwork, detect
from ppdet_lite.evaluation.offsets import (
    LONG_SIDE,
    MAGENTA,
    WHITE,
    ConvSamples,
    _detection_rois,
    bin_boxes,
    deformable_parts,
    draw_bins,
    draw_offsets,
    draw_points,
    offset_statistics,
    record_arguments,
    sampling_positions,
)
from ppdet_lite.modeling.resnet import ResNet
from ppdet_lite.ops.boxes import decode_boxes
from ppdet_lite.storage.checkpoint import save_checkpoint
from ppdet_lite.training.loop import train
from ppdet_lite.training.recorder import Recorder

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/quickstart/shapes_r18_fpn.yml"
NAMES = ["cat", "dog"]
SMALL = [
    "model.neck.out_channels=32",
    "model.box_head.width=32",
    "model.rpn.post_nms_test=30",
    "data.preprocess.long_side=640",
    "data.preprocess.short_side=480",
]
CONV, POOL = "{version: 2, stages: [5]}", "{type: DeformRoIPool, modulated: true, hidden: 16}"
NO_CONV, NO_POOL = "null", "{type: RoIAlign}"
NOTHING_FOUND = "model.postprocess.score_threshold=1.0"
LAST = "backbone.res5.1.conv2.conv"
RED = (195, 37, 3)  # of the largest modulation


def make_detector(conv: str = CONV, pool: str = POOL, *overrides: str) -> TrainedModel:
    """A small detector with many detections."""
    parts = [f"model.backbone.deformable={conv}", f"model.roi_pool={pool}"]
    config = load_config(CONFIG, [*SMALL, *parts, *overrides])
    model = build_model(config, NAMES)
    nn.initializer.Normal(0, 1.0)(model.predictor.classify.weight)
    nn.initializer.Normal(0, 0.3)(model.predictor.regress.weight)
    model.eval()
    return TrainedModel(model, NAMES, [7, 3], build(config["data"]["preprocess"]), "nowhere")


def set_offsets(detector: TrainedModel, name: str, dx: float, dy: float, mask_logit: float = 0.0) -> None:
    """Set one offset for all taps of a convolution."""
    layer = deformable_parts(detector.model)[name]
    bias = np.full(layer.offset.bias.shape, mask_logit, np.float32)
    bias[: layer.offset_channels : 2], bias[1 : layer.offset_channels : 2] = dy, dx
    layer.offset.bias.set_value(bias)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """320 x 240 pixels of gray noise, which become 640 x 480 in the network."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = np.random.default_rng(0).integers(60, 200, (240, 320, 1), np.uint8)
    cv2.imwrite(str(path), pixels.repeat(3, axis=2))
    return path


@pytest.fixture(scope="module")
def detector() -> TrainedModel:
    return make_detector()


def centers(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Middles [D, 2] (x, y) of the spots of a color, by y and x."""
    _, _, _, found = cv2.connectedComponentsWithStats((picture == color).all(axis=2).astype(np.uint8))
    found = found[1:]
    return found[np.lexsort(np.rint(found / 9).T)]


def body(picture: np.ndarray, height: int) -> np.ndarray:
    """A visualization without its title."""
    return picture[len(picture) - height :]


def test_sampling_positions_by_hand() -> None:
    """Two layers with two taps: 8 pixels per cell and stride 1 after 4 pixels per cell and stride 2."""
    first, second = np.zeros((2, 2, 6, 5)), np.zeros((2, 2, 6, 5))
    second[0], second[1] = [[[0.75]], [[0]]], [[[0]], [[-1]]]
    first[0, :, 3, 3], first[0, :, 2, 3] = (1, 0.5), (-2, 0)  # the first tap of the units (3, 3) and (3, 2)
    first_mask = np.zeros((2, 6, 5))
    first_mask[:, 3, 3], first_mask[:, 2, 3] = (0.1, 0.2), (0.3, 0.4)
    second_mask = np.array([0.5, 0.25]).reshape(2, 1, 1) * np.ones((2, 6, 5))
    convs = [
        ConvSamples(first, first_mask, np.array([[0, 0], [1, 0]]), 2, 4, (10, 12)),
        ConvSamples(second, second_mask, np.array([[0, 0], [1, 0]]), 1, 8, (5, 6)),
    ]
    # The pixel of index (16, 24) is cell (2, 3), which reads cells (2.75, 3) and (3, 2) of the map that the first
    # layer made. Nearest to these are its units (3, 3) and (3, 2), which read 2 * 2.75 + (0, 1), 2 * 3 + (0, 1), ...
    places, modulation = sampling_positions(convs, np.array([16.5, 24.5]))
    cells = [[5.5 + 1, 6 + 0.5], [5.5 + 1, 6], [6 - 2, 4], [6 + 1, 4]]
    np.testing.assert_allclose(places, 4 * np.array(cells) + 0.5)
    np.testing.assert_allclose(modulation, [0.5 * 0.1, 0.5 * 0.2, 0.25 * 0.3, 0.25 * 0.4])


def test_samples_outside_of_a_map_are_dropped() -> None:
    offset = np.zeros((3, 2, 4, 4))
    offset[1, 0], offset[2, 1] = -1.5, 3.5
    conv = ConvSamples(offset, np.ones((3, 4, 4)), np.zeros((3, 2)), 1, 8, (4, 4))
    places, _ = sampling_positions([conv, conv], np.array([8.5, 8.5]))
    # the second tap of unit (1, 1) reads (-0.5, 1), near unit (0, 1); the third reads (1, 4.5), where nothing is
    expected = [[1, 1], [-0.5, 1], [1, 4.5], [-0.5, 1], [-2, 1], [-0.5, 4.5]]
    np.testing.assert_allclose(places, 8 * np.array(expected) + 0.5)


@pytest.mark.parametrize(("pixel", "is_center"), [(14 * 8, True), (14 * 8 + 3.5, False)])
def test_a_cell_is_centered_on_the_pixel_of_stride_times_its_index(pixel: float, is_center: bool) -> None:
    """With equal weights, rising and falling ramps through the center give the same value in a cell of stride 8."""
    backbone = ResNet(18, out_stages=[3])
    for parameter in backbone.parameters():
        if parameter.ndim == 4:
            parameter.set_value(paddle.full_like(parameter, 1 / parameter[0].size))
    slope = paddle.arange(224, dtype="float32") - pixel
    images = (300 + paddle.stack([slope, -slope])).reshape([2, 1, 1, 224]).expand([2, 3, 224, 224])
    backbone.eval()
    with paddle.no_grad():
        up, down = backbone(images)[0][:, 0, 14, 14].tolist()
    assert (abs(up - down) < 1e-3 * up) == is_center


def test_dots_are_where_the_offsets_move_them(photo: Path, tmp_path: Path) -> None:
    """Half a cell to the right and a quarter up, on a map of stride 32 of an image enlarged twice."""
    detector = make_detector(CONV, NO_POOL)
    set_offsets(detector, LAST, dx=0.5, dy=-0.25)
    files = draw_offsets(detector, photo, tmp_path, [(160, 120), (12, 12)])
    assert [file.name for file in files] == ["photo_point1.png", "photo_point2.png"]
    zoom = LONG_SIDE / 320
    middle, corner = (body(load_image(str(file)), 750) for file in files)
    steps = np.arange(-3, 4)
    for picture, xs, ys in (
        (middle, 160 + 8 + 16 * steps, 120 - 4 + 16 * steps),
        (corner, [4, 20, 36, 52, 68], [8, 24, 40, 56]),  # the rest lies outside of the image
    ):
        expected = np.array([[x, y] for y in ys for x in xs]) * zoom
        np.testing.assert_allclose(centers(picture, RED), np.floor(expected), atol=0.51)
    np.testing.assert_allclose(centers(middle, MAGENTA), [[500, 375]], atol=0.51)
    np.testing.assert_allclose(centers(corner, MAGENTA), [[37, 37]], atol=0.51)


def test_dots_are_colored_by_modulation_and_clipped() -> None:
    image = np.full((100, 200, 3), 128, np.uint8)
    places = np.array([[20.5, 50], [100, 50], [180, 50], [-3, 50], [203, 50], [50, -200], [50, 1e9], [np.nan, 5]])
    picture = body(draw_points(image, places, np.array([0.1, 0.4, 0.9, *[1.0] * 5]), (100, 90), ["a", "b"]), 500)
    assert picture.shape == (500, 1000, 3)
    dots = [picture[250, x].astype(int) for x in (102, 500, 900)]
    assert dots[0].argmax() == 2 and dots[1].argmax() == 1 and tuple(dots[2]) == RED
    assert tuple(picture[450, 500]) == MAGENTA
    assert (picture[100:150] == 128).all() and (picture[:, 200:300] == 128).all()
    expected = 3 * np.pi * 4**2 + np.pi * 8**2  # nothing else is drawn
    assert (picture != 128).any(axis=2).sum() == pytest.approx(expected, rel=0.05)


def test_bins_by_hand() -> None:
    """A RoI of 40 x 60 at (10, 20), 2 x 2 bins; gamma 0.1 makes an offset of 1 a tenth of the RoI."""
    offset = np.zeros((2, 2, 2))
    offset[0, 0, 1], offset[1, 1, 0], offset[:, 1, 1] = 1, -2, (0.5, 3)
    bins, moved = bin_boxes(np.array([10.0, 20, 50, 80]), offset, 0.1)
    np.testing.assert_allclose(bins, [[10, 20, 30, 50], [30, 20, 50, 50], [10, 50, 30, 80], [30, 50, 50, 80]])
    np.testing.assert_allclose(moved - bins, [[0] * 4, [4, 0, 4, 0], [0, -12, 0, -12], [2, 18, 2, 18]], atol=1e-12)


def test_bins_are_drawn_around_the_roi() -> None:
    image = np.full((300, 300, 3), 128, np.uint8)
    bins = np.array([[100.0, 100, 120, 150]])
    moved = np.array([[110.0, 105, 130, 155], [100, 1e12, 120, 1e12], [-1e12, 120, -1e11, 130]])
    picture = draw_bins(image, bins, moved, np.array([0.2, 0.9, 0.4]), np.array([90.0, 90, 130, 150]))
    # Seen is [90, 90, 130, 150] and half of its size around it: [70, 60, 150, 180], 120 high. Zoom 1000 / 120.
    picture, zoom = body(picture, LONG_SIDE), LONG_SIDE / 120
    assert picture.shape[1] == round(80 * zoom)

    def at(x: float, y: float) -> tuple[int, ...]:
        return tuple(picture[round((y - 60) * zoom), round((x - 70) * zoom)].tolist())

    assert at(100, 140) == at(105, 100) == WHITE
    blue = at(110, 120)
    assert blue == at(115, 105) == at(115, 155) and np.argmax(blue) == 2
    assert at(90, 100) == at(120, 90) == at(130, 140) == MAGENTA
    assert at(80, 70) == at(95, 97) == at(145, 175) == (128, 128, 128)
    assert not (picture == RED).all(axis=2).any()  # that bin is far away


def test_visualizations_of_the_best_detections(detector: TrainedModel, photo: Path, tmp_path: Path) -> None:
    files = draw_offsets(detector, photo, tmp_path / "deep" / "out")
    assert [file.name for file in files] == [f"photo_{kind}{i}.png" for kind in ("point", "bins") for i in (1, 2, 3)]
    image = load_image(str(photo))
    (found,) = detect(
        TrainedNetwork(detector.model), [collate([image_sample(image, detector.preprocess, 0)], detector.preprocess)]
    )
    for file, box in zip(files[:3], found.boxes, strict=False):
        marked = centers(body(load_image(str(file)), 750), MAGENTA)
        np.testing.assert_allclose(marked, [(box[:2] + box[2:]) / 2 * LONG_SIDE / 320], atol=1)


def test_the_rois_drawn_are_those_that_became_the_detections(detector: TrainedModel, photo: Path) -> None:
    """Each RoI, decoded with its own deltas for the detected class, is the detection."""
    model = detector.model
    batch = collate([image_sample(load_image(str(photo)), detector.preprocess, 0)], detector.preprocess)
    with record_arguments({"predictor": model.predictor, "roi_pool": model.roi_pool}) as calls, paddle.no_grad():
        (found,) = detect(TrainedNetwork(model), [batch])
        rois, offset, mask = _detection_rois(found, model, calls, np.float32([2, 2]), (320, 240))
        deltas = model.predictor(*calls["predictor"]).deltas.reshape([len(calls["roi_pool"][1].boxes), -1, 4])
    everything = calls["roi_pool"][1].boxes
    assert len(rois) == len(found.boxes) > 5 and offset.shape[1:] == (2, 7, 7) and mask.shape[1:] == (7, 7)
    decoded = decode_boxes(everything.unsqueeze(1), deltas, model.predictor.delta_weights).numpy()
    decoded = decoded.clip(0, [640, 480, 640, 480]) / 2
    for roi, box, k in zip(rois, found.boxes, found.classes, strict=True):
        (rows,) = np.nonzero((everything.numpy() == roi).all(axis=1))
        assert np.abs(decoded[rows, k if decoded.shape[1] > 1 else 0] - box).max(axis=1).min() < 1e-3


def test_an_earlier_stage_and_version_1(photo: Path, tmp_path: Path) -> None:
    detector = make_detector("{version: 1, stages: [4, 5], groups: 2}", NO_POOL)
    # of two deformable groups the first is drawn
    layer = deformable_parts(detector.model)["backbone.res4.1.conv2.conv"]
    bias = np.full(36, 7, np.float32)
    bias[:18:2], bias[1:18:2] = 0.5, 0
    layer.offset.bias.set_value(bias)
    files = draw_offsets(detector, photo, tmp_path, [(160, 120)], stage=4)
    steps = 8 * np.arange(-3, 4)
    expected = np.array([[160 + x, 120 + 4 + y] for y in steps for x in steps]) * LONG_SIDE / 320
    found = centers(body(load_image(str(files[0])), 750), RED)
    np.testing.assert_allclose(found, np.floor(expected), atol=0.51)


@pytest.mark.parametrize(
    ("parts", "arguments", "text"),
    [
        ([NO_CONV, NO_POOL], {}, "^nowhere: the model has no deformable layers; configure model.backbone.deformable"),
        ([NO_CONV, POOL], {"points": [(1, 1)]}, "^--points and --stage require deformable convolutions; this model"),
        ([NO_CONV, POOL], {"stage": 5}, "^--points and --stage require deformable convolutions; this model has"),
        ([CONV, POOL], {"stage": 4}, "^--stage 4 has no deformable convolutions; they are in res5$"),
        ([CONV, POOL], {"points": [(3, 3), (320, 3)]}, "--points 320,3 is outside of .*, which has 320 x 240 pixels"),
        ([CONV, POOL], {"points": [(float("nan"), 3)]}, "--points nan,3 is outside"),
        ([CONV, POOL, NOTHING_FOUND], {}, "no object is detected; use another image, or give --points$"),
        ([NO_CONV, POOL, NOTHING_FOUND], {}, "no object is detected; use another image$"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    parts: list[str], arguments: dict, text: str, photo: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=text) as error:
        draw_offsets(make_detector(*parts), photo, tmp_path / "out", **arguments)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_points_need_no_detection(photo: Path, tmp_path: Path) -> None:
    files = draw_offsets(make_detector(CONV, POOL, NOTHING_FOUND), photo, tmp_path, [(5, 5)])
    assert [file.name for file in files] == ["photo_point1.png"]


def test_statistics_by_hand(photo: Path) -> None:
    detector = make_detector("{version: 2, stages: [5], mask_scale: 2}")
    set_offsets(detector, LAST, dx=-2.0, dy=1.0, mask_logit=1.0)
    model = detector.model
    bias = np.zeros(3 * 49, np.float32)
    bias[:49], bias[98:] = -3.0, -1.0
    model.roi_pool.offset[-1].bias.set_value(bias)
    model.train()
    batch = collate([image_sample(load_image(str(photo)), detector.preprocess, 0)], detector.preprocess)
    found = offset_statistics(model, batch)
    convs = [f"backbone.res5.{block}.conv{i}.conv" for block in (0, 1) for i in (1, 2)]
    assert list(found) == [f"{name}/{what}" for name in [*convs, "roi_pool"] for what in ("mean", "max", "mask")]
    for name in convs[:3]:
        assert [found[f"{name}/{what}"] for what in ("mean", "max", "mask")] == [0, 0, 1]
    sigmoid = 1 / (1 + np.exp(-1))
    for name, values in ((LAST, [1.5, 2, 2 * sigmoid]), ("roi_pool", [1.5, 3, 1 - sigmoid])):
        shown = [found[f"{name}/{what}"] for what in ("mean", "max", "mask")]
        assert shown == pytest.approx(values, rel=1e-4)
    assert all(layer.training and not layer._forward_pre_hooks for layer in model.sublayers(include_self=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_statistics_without_deformable_parts_run_nothing() -> None:
    plain = make_detector(NO_CONV, NO_POOL).model
    assert offset_statistics(plain, {}) == {}


def test_version_1_has_no_mask(photo: Path) -> None:
    detector = make_detector("{version: 1, stages: [5]}", "{type: DeformRoIPool, modulated: false}")
    batch = collate([image_sample(load_image(str(photo)), detector.preprocess, 0)], detector.preprocess)
    found = offset_statistics(detector.model, batch)
    assert len(found) == 2 * 5 and not [name for name in found if name.endswith("mask")]


def test_hooks_are_removed_after_an_error(detector: TrainedModel) -> None:
    parts = deformable_parts(detector.model)
    with pytest.raises(KeyError), record_arguments(parts):
        assert all(len(layer._forward_pre_hooks) == 1 for layer in parts.values())
        raise KeyError
    assert not any(layer._forward_pre_hooks for layer in parts.values())


def test_training_records_them_at_checkpoints_and_at_the_end(tmp_path: Path) -> None:
    generate(tmp_path / "shapes", train=4, val=2, seed=1)
    shapes = tmp_path / "shapes"
    overrides = [
        *(
            f"data.{split}={{images: {shapes}/{split}, annotations: {shapes}/annotations/instances_{split}.json}}"
            for split in ("train", "val")
        ),
        f"model.backbone.deformable={CONV}",
        f"model.roi_pool={POOL}",
        "data.preprocess={short_side: 64, long_side: 96, stride: 32}",
        "data.loader={batch_size: 1, threads: 0}",
        "train={length: 3 iterations, checkpoint_every: 2 iterations}",
    ]
    train(load_config(CONFIG, overrides), tmp_path / "run")
    (log,) = (tmp_path / "run/vdl").iterdir()
    reader = LogReader(file_path=str(log))
    tags = {tag for tag in reader.get_tags()["scalar"] if tag.startswith("offsets")}
    names = [f"backbone.res5.{block}.conv{i}.conv" for block in (0, 1) for i in (1, 2)]
    assert tags == {f"offsets/{name}/{what}" for name in [*names, "roi_pool"] for what in ("mean", "max", "mask")}
    records = reader.get_data("scalar", f"offsets/{LAST}/mean")
    assert [record.id for record in records] == [2, 3] and records[0].value > 0


def test_the_reason_for_missing_statistics_is_logged(
    detector: TrainedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Damaged:
        def load(self, index: int) -> np.ndarray:
            raise UserError(f"image {index} is damaged")

    recorder = Recorder(tmp_path, total=1, start=0, log_every=1)
    recorder.offsets(1, detector.model, Damaged(), detector.preprocess)
    recorder.close()
    assert "offsets are not recorded: image 0 is damaged" in caplog.text


@pytest.fixture(scope="module")
def weights(detector: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The detector as a checkpoint."""
    folder = tmp_path_factory.mktemp("run") / "weights"
    arrays = {name: value.numpy() for name, value in detector.model.state_dict().items()}
    save_checkpoint(folder, {"model": arrays}, {"class_names": NAMES, "category_ids": [7, 3]})
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--points", "160,120", "8.5,9"], 0, "photo_point2.png"),
        (["--points", "160"], 2, "argument --points: invalid point value: '160'"),
        (["--points", "1000,1"], 2, "error: --points 1000,1 is outside of "),
        (["--stage", "1"], 2, "argument --stage: invalid choice: "),  # Python 3.12.8 and newer put 1 in quotes
    ],
)
def test_the_tool(
    arguments: list[str],
    code: int,
    told: str,
    weights: Path,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tool = str(ROOT / "tools/visualize_offsets.py")
    parts = [f"model.backbone.deformable={CONV}", f"model.roi_pool={POOL}", f"weights={weights}"]
    given = ["-c", str(CONFIG), "-o", *SMALL, *parts, "--input", str(photo), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [tool, *given, *arguments])
    try:
        runpy.run_path(tool, run_name="__main__")
        found = 0
    except SystemExit as stop:
        found = stop.code
    shown = capsys.readouterr()
    assert found == code and told in (shown.err if code else shown.out) and "Traceback" not in shown.err
    drawn = [f"photo_{name}.png" for name in ("bins1", "bins2", "bins3", "point1", "point2")]
    assert sorted(path.name for path in tmp_path.glob("out/*")) == (drawn if code == 0 else [])
