"""Resize, flip, normalize and pad, against numbers computed by hand."""

import cv2
import numpy as np
import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.loading.augment import Augment, train_sample
from ppdet_lite.data.loading.transforms import Preprocess, collate, flip_boxes, image_sample


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),  # 800 / 480 = 1.6667; 640 * 1.6667 = 1066.67
        ((640, 480), (1067, 800)),
        ((427, 640), (800, 1199)),  # 640 * 800 / 427 = 1199.06
        ((300, 1000), (400, 1333)),  # the long side rules: 1.333; 300 * 1.333 = 399.9
        ((1600, 1600), (800, 800)),
        ((1, 2000), (1, 1333)),  # 0.67 rows are rounded to one
        ((1, 9000), (1, 1333)),  # 0.15 rows are not rounded to none
    ],
)
def test_size_after_resize(size, expected):
    resized, scale = Preprocess().resize(np.zeros((*size, 3), np.uint8))
    assert resized.shape == (*expected, 3) and resized.dtype == np.uint8
    np.testing.assert_allclose(scale, [min(800 / min(size), 1333 / max(size))] * 2, rtol=1e-6)
    assert scale.dtype == np.float32


def test_another_short_side():
    assert Preprocess().resize(noise(100, 200), short_side=300)[0].shape == (300, 600, 3)


def test_an_image_of_the_right_size_is_left_alone():
    image = noise(80, 100)
    resized, scale = Preprocess(short_side=80).resize(image)
    assert np.array_equal(resized, image) and scale.tolist() == [1, 1]


def test_resize_is_bilinear_between_pixel_centers():
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 1] = 200
    resized, _ = Preprocess(short_side=2, long_side=4).resize(image)
    # New centers in old pixels: -0.25, 0.25, 0.75, 1.25; outside the first and last center the edge goes on.
    assert resized[0, :, 0].tolist() == [0, 50, 150, 200]


def test_normalize():
    preprocess = Preprocess(mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    image = np.array([[[255, 51, 0], [0, 0, 255]]], np.uint8)  # 1x2
    planes = preprocess.normalize(image)
    assert planes.shape == (3, 1, 2) and planes.dtype == np.float32
    np.testing.assert_allclose(planes, [[[1, -1]], [[-0.05, -0.25]], [[0, 0.5]]], atol=1e-7)


def test_normalize_agrees_with_arithmetic_everywhere():
    preprocess, image = Preprocess(), noise(37, 53)
    expected = (image.astype(np.float64) / 255 - preprocess.mean) / preprocess.std
    np.testing.assert_allclose(preprocess.normalize(image), expected.transpose(2, 0, 1), atol=1e-6)


def test_normalize_takes_a_mirrored_view_and_writes_in_place():
    image, out = noise(4, 6), np.full((3, 8, 8), 9, np.float32)
    expected = Preprocess().normalize(image[:, ::-1].copy())
    Preprocess().normalize(image[:, ::-1], out=out[:, :4, 1:7])
    assert np.array_equal(out[:, :4, 1:7], expected)
    assert (out[:, 4:] == 9).all() and (out[:, :, 0] == 9).all() and (out[:, :, 7] == 9).all()


def test_flip_boxes():
    boxes = np.array([[0, 1, 10, 2], [30, 0, 100, 5]], np.float32)
    assert flip_boxes(boxes, 100).tolist() == [[90, 1, 100, 2], [0, 0, 70, 5]]
    assert flip_boxes(np.zeros((0, 4), np.float32), 100).shape == (0, 4)


def test_augment_draws_as_configured():
    rng = np.random.default_rng(0)
    assert {Augment(flip=0.0).draw(rng) for _ in range(50)} == {(None, False)}
    assert {Augment(flip=1.0).draw(rng) for _ in range(50)} == {(None, True)}
    chosen = [Augment(short_sides=[5, 9], flip=0.3).draw(rng) for _ in range(1000)]
    assert {side for side, _ in chosen} == {5, 9} and 230 < sum(flipped for _, flipped in chosen) < 370
    assert 430 < sum(side == 5 for side, _ in chosen) < 570
    ranged = {Augment(short_sides=[9, 5], sampling="range").draw(rng)[0] for _ in range(200)}
    assert ranged == {5, 6, 7, 8, 9}


@pytest.fixture
def dataset(coco_files):
    """One image of 20x30 with a box, and one without any."""
    files = coco_files([(20, 30), (20, 30)])
    files.add(0, [3, 4, 6, 8], category=7)
    files.add(0, [0, 0, 30, 20], iscrowd=1)
    return files.read()


def test_train_sample_scales_and_flips_boxes_with_the_image(dataset):
    preprocess = Preprocess(short_side=40, long_side=100)
    plain = train_sample(dataset, 0, preprocess, Augment(flip=0.0), np.random.default_rng(0))
    assert plain["image"].shape == (40, 60, 3) and plain["image_id"] == 100
    assert plain["image_size"].tolist() == [40, 60] and plain["scale"].tolist() == [2, 2]
    assert plain["gt_boxes"].tolist() == [[6, 8, 18, 24], [0, 0, 60, 40]]
    assert plain["gt_classes"].tolist() == [1, 0] and plain["gt_is_crowd"].tolist() == [False, True]
    flipped = train_sample(dataset, 0, preprocess, Augment(flip=1.0), np.random.default_rng(0))
    assert flipped["gt_boxes"].tolist() == [[42, 8, 54, 24], [0, 0, 60, 40]]
    assert flipped["gt_boxes"].dtype == np.float32
    assert np.array_equal(flipped["image"], plain["image"][:, ::-1])


def test_the_scale_is_exact_though_the_size_is_rounded(dataset):
    sample = train_sample(
        dataset, 0, Preprocess(short_side=33, long_side=99), Augment(flip=0.0), np.random.default_rng(0)
    )
    assert sample["image"].shape == (33, 50, 3)  # 30 * 1.65 = 49.5
    np.testing.assert_allclose(sample["gt_boxes"][0], np.array([3, 4, 9, 12]) * 1.65, rtol=1e-6)
    np.testing.assert_allclose(sample["scale"], [1.65, 1.65], rtol=1e-6)


def test_pixels_are_sampled_at_the_exact_scale():
    ramp = np.tile(np.arange(0, 200, 2, dtype=np.uint8)[:, None], (1, 31))[..., None].repeat(3, axis=2)
    resized, scale = Preprocess(short_side=20, long_side=1000).resize(ramp)  # 100 rows at 20/31 make 64.5 of them
    rows = np.arange(4, 60)
    expected = 2 * ((rows + 0.5) / scale[0] - 0.5)  # where the center of each new row lies on the ramp
    np.testing.assert_allclose(resized[rows, 5, 0], expected, atol=0.8)  # OpenCV weighs in 11 bits


def test_an_image_without_objects(dataset):
    sample = train_sample(dataset, 1, Preprocess(short_side=40), Augment(flip=1.0), np.random.default_rng(0))
    assert sample["gt_boxes"].shape == (0, 4) and sample["gt_classes"].shape == (0,)
    batch = collate([sample], Preprocess())
    assert batch["targets"][0]["boxes"].shape == (0, 4) and batch["targets"][0]["is_crowd"].dtype == bool


def test_originals_are_kept_unflipped_on_request(dataset):
    sample = train_sample(dataset, 0, Preprocess(short_side=40), Augment(flip=1.0), np.random.default_rng(0), True)
    batch = collate([sample], Preprocess())
    assert batch["flipped"].tolist() == [True]
    assert np.array_equal(batch["original_images"][0], Preprocess().normalize(dataset.load(0)))


def test_restoring_undoes_normalizing():
    images = np.stack([noise(20, 30), noise(20, 30)])
    preprocess = Preprocess()
    planes = np.stack([preprocess.normalize(image) for image in images])
    assert np.array_equal(preprocess.denormalize(planes), images)
    assert np.array_equal(preprocess.denormalize(planes[0]), images[0])
    assert preprocess.denormalize(planes[0] + 100).min() == 255


def test_collate_pads_right_and_bottom_to_the_stride():
    preprocess = Preprocess(short_side=40, long_side=100, stride=32)
    images = [noise(20, 30), noise(48, 20)]  # become 40x60 and 96x40
    samples = [image_sample(image, preprocess, image_id) for image_id, image in zip((5, 2**40), images, strict=True)]
    batch = collate(samples, preprocess)
    assert batch["images"].shape == (2, 3, 96, 64) and batch["images"].dtype == np.float32
    assert batch["image_sizes"].tolist() == [[40, 60], [96, 40]] and batch["image_sizes"].dtype == np.float32
    assert batch["scales"].tolist() == [[2, 2], [2, 2]]
    assert batch["image_ids"].tolist() == [5, 2**40]
    for padded, sample in zip(batch["images"], samples, strict=True):
        height, width = sample["image"].shape[:2]
        assert np.array_equal(padded[:, :height, :width], preprocess.normalize(sample["image"]))
        assert not padded[:, height:].any() and not padded[:, :, width:].any()
    assert "targets" not in batch and "original_images" not in batch


def test_a_stride_of_one_pads_to_the_largest_only():
    preprocess = Preprocess(short_side=21, stride=1)
    assert collate([image_sample(noise(7, 9), preprocess, 0)], preprocess)["images"].shape == (1, 3, 21, 27)


@pytest.mark.parametrize(
    ("sizing", "expected"),
    [("exact", (67, 100)), ("unrounded", (67, 100)), ("nearest", (67, 100)), ("floor", (66, 100))],
)
def test_how_a_size_is_rounded(sizing, expected):
    """100 / 150 of 100 x 150 is 66.67 x 100."""
    preprocess = Preprocess(short_side=90, long_side=100, sizing=sizing)
    resized, scale = preprocess.resize(noise(100, 150))
    assert resized.shape[:2] == expected
    wanted = [2 / 3, 2 / 3] if sizing in ("exact", "unrounded") else [expected[0] / 100, expected[1] / 150]
    np.testing.assert_allclose(scale, wanted, rtol=1e-6)


def test_boxes_are_clipped_to_the_size_before_rounding_on_request():
    """426 x 640 (h, w) at 800 / 426 is 800 x 1201.88, of a flipped image too."""
    preprocess, image = Preprocess(sizing="unrounded", interpolation="cubic"), noise(426, 640)
    sample, usual = image_sample(image, preprocess, 0), image_sample(image, Preprocess(interpolation="cubic"), 0)
    assert sample["image_size"].tolist() == [800, np.float32(640 * 800 / 426)]
    assert usual["image_size"].tolist() == [800, 1202] and np.array_equal(sample["image"], usual["image"])
    flipped = image_sample(image, preprocess, 0, flipped=True)
    assert flipped["image_size"].tolist() == sample["image_size"].tolist()
    assert np.array_equal(flipped["image"], preprocess.resize(np.ascontiguousarray(image[:, ::-1]))[0])
    assert preprocess.resized_size(426, 640) == (800, 1202)


def test_a_stretched_image_is_sampled_over_all_of_it():
    """Half-pixel centers of the new size over the old one: 3 columns of 4 read at 1/6, 1.5 and 2 + 5/6."""
    row = np.array([0, 60, 120, 180], np.uint8)
    image = np.repeat(np.broadcast_to(row, (6, 4))[..., None], 3, axis=2)
    resized, scale = Preprocess(short_side=3, long_side=999, sizing="nearest").resize(np.ascontiguousarray(image))
    assert resized.shape[:2] == (5, 3) and resized[0, :, 0].tolist() == [10, 90, 170]
    np.testing.assert_allclose(scale, [5 / 6, 3 / 4], rtol=1e-6)


def test_floating_pixels_are_not_rounded():
    image = noise(40, 60)
    whole, _ = Preprocess(short_side=30).resize(image)
    exact, _ = Preprocess(short_side=30, resize_in="float").resize(image)
    assert exact.dtype == np.float32 and 0.05 < np.abs(exact - whole).max() <= 1.0
    usual = Preprocess()
    expected = (exact / 255 - usual.mean) / usual.std
    np.testing.assert_allclose(usual.normalize(exact), expected.transpose(2, 0, 1), rtol=1e-4, atol=1e-5)


def test_antialiased_shrinking_is_a_mean_of_all_pixels():
    """Of 16 columns, 240 and 0 in turn, each new one takes a triangle of 8: as much of either, but at the borders.

    There it takes 6, of weights 5/8, 7/8, 7/8, 5/8, 3/8, 1/8: 240 * 15/28 = 128.6 on the left.
    """
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, ::2] = 240
    antialiased, _ = Preprocess(short_side=4, sizing="nearest", interpolation="antialias").resize(image)
    assert antialiased[:, :, 0].tolist() == [[129, 120, 120, 111]] * 4


def test_cubic_is_opencvs():
    image = noise(40, 60)
    resized, _ = Preprocess(short_side=30, interpolation="cubic").resize(image)
    assert np.array_equal(resized, cv2.resize(image, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_CUBIC))


def test_caffes_pixels():
    """BGR of 0..255 less a mean, and back."""
    caffe = Preprocess(channels="bgr", pixel_range=255, mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0))
    image = np.full((1, 1, 3), (200, 100, 50), np.uint8)  # RGB
    planes = caffe.normalize(image)
    np.testing.assert_allclose(planes[:, 0, 0], [50 - 103.53, 100 - 116.28, 200 - 123.675], rtol=1e-6)
    assert np.array_equal(caffe.denormalize(planes), image)


def test_antialias_needs_a_size():
    with pytest.raises(UserError, match="antialias requires sizing nearest or floor"):
        Preprocess(interpolation="antialias")
