"""Crops and the objects kept in them: by hand, against slow loops, and on painted images."""

import cv2
import numpy as np
import pytest

from ppdet_lite.assembly.setup import load_config
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import Objects
from ppdet_lite.data.loading.augment import Augment, train_sample
from ppdet_lite.data.loading.color_jitter import ColorJitter
from ppdet_lite.data.loading.crops import RandomCrop, ScaleJitter, Window, clip_objects, kept_objects
from ppdet_lite.data.loading.loader import Loader, TrainBatches
from ppdet_lite.data.loading.transforms import Preprocess, collate
from tests.tiny_run import QUICKSTART


def objects_of(*boxes, crowds=()):
    count = len(boxes)
    return Objects(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.arange(count),
        np.array([i in crowds for i in range(count)], bool),
    )


WINDOW = Window(top=10, left=20, height=30, width=40)  # to y 40, x 60


def test_objects_are_kept_by_their_center():
    objects = objects_of(
        [25, 15, 35, 25],  # inside
        [0, 0, 44, 24],  # center (22, 12): inside, cut to 24 x 14
        [0, 0, 38, 24],  # center (19, 12): left of it
        [50, 30, 70, 50],  # center (60, 40): on the far corner, which is outside
        [10, 0, 30, 20],  # center (20, 10): on the near corner, which is inside
        [0, 0, 21, 11],  # a crowd that reaches in by a pixel
        [60, 10, 70, 20],  # a crowd that only touches
        crowds=(5, 6),
    )
    kept = kept_objects(objects, WINDOW)
    assert kept.tolist() == [True, True, False, False, True, True, False]
    boxes = WINDOW.clip_boxes(objects.boxes[kept])
    assert boxes.tolist() == [[5, 5, 15, 15], [0, 0, 24, 14], [0, 0, 10, 10], [0, 0, 1, 1]]
    assert boxes.dtype == np.float32


def test_less_than_a_pixel_is_left_out():
    found = clip_objects(objects_of([0, 0, 21, 50], [0, 0, 20.5, 50], [59.5, 10, 99, 40], [20, 10, 60, 40]), WINDOW)
    assert found.boxes.tolist() == [[0, 0, 1, 30], [0, 0, 40, 30]] and found.classes.tolist() == [0, 3]
    assert clip_objects(objects_of(), WINDOW).boxes.shape == (0, 4)


def coordinates(height, width):
    """Return an image whose pixels contain their own coordinates."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, y * 0], axis=2).astype(np.uint8)


def random_objects(rng, count, height, width):
    corners = np.sort(rng.uniform(0, [[[width], [height]]], (count, 2, 2)), axis=2)
    return objects_of(*corners.transpose(0, 2, 1).reshape(-1, 4), crowds=(1,))


def test_a_crop_is_what_a_slow_loop_says():
    rng, crop, whole = np.random.default_rng(0), RandomCrop(probability=1.0), 0
    for _ in range(300):
        height, width = rng.integers(40, 120, 2).tolist()
        objects = random_objects(rng, 6, height, width)
        image, kept = crop(coordinates(height, width), objects, rng)
        (top, left), (h, w) = image[0, 0, :2].tolist(), image.shape[:2]
        assert np.array_equal(image, coordinates(height, width)[top : top + h, left : left + w])
        if (h, w) != (height, width):
            assert 0.3 * height - 0.5 <= h <= height and 0.3 * width - 0.5 <= w <= width and 0.5 <= w / h <= 2
        expected = []
        for box, number, crowd in zip(*(column.tolist() for column in objects)):
            x1, y1, x2, y2 = box
            centered = left <= (x1 + x2) / 2 < left + w and top <= (y1 + y2) / 2 < top + h
            touches = x1 < left + w and x2 > left and y1 < top + h and y2 > top
            if touches if crowd else centered:
                inside = [max(x1 - left, 0), max(y1 - top, 0), min(x2 - left, w), min(y2 - top, h)]
                expected.append((inside, number, crowd))
        assert [number for _, number, _ in expected] == kept.classes.tolist()
        np.testing.assert_allclose(kept.boxes, [box for box, *_ in expected], atol=1e-4)
        assert (kept.boxes[:, 2:] > kept.boxes[:, :2]).all() and not kept.is_crowd.all()
        whole += (h, w) == (height, width)
    assert whole < 30


def test_a_crop_never_takes_all_objects():
    """Small windows rarely contain a small object in a corner: then the image is not cropped."""
    crop, image = RandomCrop(probability=1.0, sides=(0.1, 0.2)), coordinates(100, 100)
    objects, whole = objects_of([96, 96, 99, 99], [0, 0, 99, 50], crowds=(1,)), 0
    for seed in range(100):
        cropped, kept = crop(image, objects, np.random.default_rng(seed))
        assert 0 in kept.classes
        whole += cropped.shape == image.shape
    assert 20 < whole < 100


def test_an_image_without_objects_is_cropped_too():
    for objects in (objects_of(), objects_of([0, 0, 9, 9], crowds=(0,))):
        cropped, kept = RandomCrop(probability=1.0, sides=(0.5, 0.6))(
            coordinates(50, 60), objects, np.random.default_rng(0)
        )
        assert cropped.shape < (31, 37) and len(kept.boxes) <= len(objects.boxes) and kept.boxes.shape[1] == 4


def test_the_probability_of_a_crop():
    crop, image, objects = RandomCrop(probability=0.3, sides=(0.5, 0.9)), coordinates(50, 60), objects_of()
    rng = np.random.default_rng(0)
    assert 240 < sum(crop(image, objects, rng)[0].shape != image.shape for _ in range(1000)) < 360


COLORS = {0: (250, 0, 0), 1: (0, 250, 0), 2: (0, 0, 250)}  # class -> color of its rectangle
RECTANGLES = {0: (8, 6, 30, 24), 1: (50, 10, 40, 30), 2: (20, 50, 60, 20)}  # xywh; none touches another


@pytest.fixture
def painted(coco_files):
    """One image of 80x100 with a rectangle of each class, and an empty one."""
    files = coco_files([(80, 100), (80, 100)])
    image = np.full((80, 100, 3), 90, np.uint8)
    for number, (x, y, w, h) in RECTANGLES.items():
        image[y : y + h, x : x + w] = COLORS[number]
        files.add(0, [x, y, w, h], category=[3, 7, 90][number])
    (files.images / "0.png").write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
    return files.read()


AUGMENTS = {
    "crop": Augment(crop=RandomCrop(probability=1.0)),
    "jitter": Augment(scale_jitter=ScaleJitter(size=(90, 110), scales=(0.5, 2.0))),
    "all": Augment(
        crop=RandomCrop(), scale_jitter=ScaleJitter((90, 110)), color_jitter=ColorJitter(0.1, 0.1, 0.1, 0.02)
    ),
    "crop and sides": Augment(short_sides=[60, 100], crop=RandomCrop()),
}


@pytest.mark.parametrize("augment", AUGMENTS.values(), ids=AUGMENTS)
def test_boxes_lie_where_the_rectangles_are(painted, augment):
    preprocess, counts = Preprocess(short_side=80, long_side=200), set()
    for seed in range(60):
        sample = train_sample(painted, 0, preprocess, augment, np.random.default_rng(seed))
        image, boxes = sample["image"].astype(int), sample["gt_boxes"]
        height, width = image.shape[:2]
        assert sample["image_size"].tolist() == [height, width]
        assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all() and boxes.dtype == np.float32
        for box, number in zip(boxes.tolist(), sample["gt_classes"].tolist(), strict=True):
            others = [channel for channel in range(3) if channel != number]
            seen = image[..., number] - image[..., others].max(axis=2) > 100
            ys, xs = seen.any(axis=1).nonzero()[0], seen.any(axis=0).nonzero()[0]
            if len(ys):
                extent = [xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]
                np.testing.assert_allclose(extent, box, atol=1.1)
            else:
                assert min(box[2] - box[0], box[3] - box[1]) < 3  # too thin to keep its color
        counts.add(len(boxes))
    assert len(counts) > 1


def test_large_scale_jitter_by_hand(painted):
    """80x100 just fits into 90x110 at 1.1; half of that is 44x55, boxes at 0.55."""
    jitter = Augment(flip=0.0, scale_jitter=ScaleJitter(size=(90, 110), scales=(0.5, 0.5)))
    sample = train_sample(painted, 0, Preprocess(), jitter, np.random.default_rng(0))
    assert sample["image"].shape == (44, 55, 3) and sample["canvas"] == (90, 110)
    np.testing.assert_allclose(sample["scale"], [0.55, 0.55], rtol=1e-6)
    np.testing.assert_allclose(sample["gt_boxes"][0], np.array([8, 6, 38, 30]) * 0.55, rtol=1e-6)
    empty = train_sample(painted, 1, Preprocess(), jitter, np.random.default_rng(0))
    batch = collate([sample, empty], Preprocess(stride=16))
    assert batch["images"].shape == (2, 3, 96, 112) and batch["image_sizes"].tolist() == [[44, 55]] * 2
    assert (batch["images"][:, :, 44:] == 0).all() and (batch["images"][:, :, :, 55:] == 0).all()
    assert batch["targets"][1]["boxes"].shape == (0, 4)


def test_large_scale_jitter_crops_larger_images(painted):
    jitter = ScaleJitter(size=(90, 110), scales=(0.2, 2.0))
    found = {"larger": 0, "smaller": 0}
    for seed in range(60):
        augment = Augment(flip=0.0, scale_jitter=jitter)
        sample = train_sample(painted, 1, Preprocess(), augment, np.random.default_rng(seed))
        ratio = sample["scale"][0] / 1.1
        assert 0.2 <= ratio <= 2.0
        expected = [min(90, round(80 * 1.1 * ratio)), min(110, round(100 * 1.1 * ratio))]
        np.testing.assert_allclose(sample["image"].shape[:2], expected, atol=1)
        found["larger" if ratio > 1 else "smaller"] += 1
    assert min(found.values()) > 10


def test_what_is_off_draws_nothing(painted):
    """Flip and short side are drawn first: those of a run do not change when something else is turned on."""
    plain = Augment(short_sides=[60, 70, 80])
    more = Augment(short_sides=[60, 70, 80], color_jitter=ColorJitter(hue=0.1), crop=RandomCrop())
    for seed in range(20):
        side, flipped = plain.draw(np.random.default_rng(seed))
        for augment in (plain, more):
            sample = train_sample(painted, 0, Preprocess(), augment, np.random.default_rng(seed), keep_original=True)
            assert sample["flipped"] == flipped and min(sample["image"].shape[:2]) == side


def test_the_kept_original_is_what_was_resized(painted):
    """Patches of an R-CNN teacher are cut out of it by RoIs divided by the scale."""
    augment = Augment(flip=0.0, crop=RandomCrop(probability=1.0), color_jitter=ColorJitter(brightness=0.5))
    for seed in range(10):
        sample = train_sample(painted, 0, Preprocess(short_side=64), augment, np.random.default_rng(seed), True)
        again, scale = Preprocess(short_side=64).resize(sample["original_image"])
        assert np.array_equal(again, sample["image"]) and np.array_equal(scale, sample["scale"])


def test_it_does_not_go_with_kept_originals(painted):
    augment = Augment(scale_jitter=ScaleJitter())
    with pytest.raises(UserError, match=r"scale_jitter .*set model.mimic.crop_from to network"):
        TrainBatches(painted, Preprocess(), augment, Loader(), seed=0, keep_original=True)


def test_threads_and_resuming_change_nothing(painted):
    augment = AUGMENTS["all"]
    streams = [
        TrainBatches(painted, Preprocess(), augment, Loader(batch_size=1, threads=threads), seed=5).iterate(start)
        for threads, start in ((0, 0), (2, 0), (1, 3))
    ]
    found = [[next(stream) for _ in range(6 - start)] for stream, start in zip(streams, (0, 0, 3))]
    for stream in streams:
        stream.close()
    for others in (found[1], found[2]):
        for one, other in zip(found[0][-len(others) :], others, strict=True):
            assert np.array_equal(one["images"], other["images"])
            assert np.array_equal(one["targets"][0]["boxes"], other["targets"][0]["boxes"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("crop", "{sides: [0.8, 0.3]}", r"crop.sides: expected the smaller number first, got \[0.8, 0.3\]"),
        ("crop", "{sides: [0.0, 0.3]}", "crop.sides.0: expected more than 0, got 0"),
        ("crop", "{aspect: [1, -2]}", "crop.aspect.1: expected more than 0, got -2"),
        ("crop", "{probability: 2}", "crop.probability: expected at most 1, got 2"),
        ("scale_jitter", "{size: [0, 64]}", "scale_jitter.size.0: expected more than 0, got 0"),
        (
            "scale_jitter",
            "{scales: [2, 0.1]}",
            r"scale_jitter.scales: expected the smaller number first, got \[2, 0.1\]",
        ),
        ("scale_jitter", "{size: 1024}", "scale_jitter.size: expected a list, got 1024"),
    ],
)
def test_a_config_is_checked(key, value, message):
    with pytest.raises(UserError, match=f"command line: data.augment.{message}"):
        load_config(QUICKSTART, [f"data.augment.{key}={value}"])


def test_two_ways_to_choose_the_size_are_refused():
    with pytest.raises(
        UserError, match=r"command line: data.augment.short_sides: cannot be combined with scale_jitter"
    ):
        load_config(QUICKSTART, ["data.augment.scale_jitter={}", "data.augment.short_sides=[64]"])
