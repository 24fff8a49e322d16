"""Drawing: what must be where, by pixels."""

import colorsys
from itertools import combinations

import cv2
import numpy as np
import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import Objects
from ppdet_lite.data.images.decoding import load_image
from ppdet_lite.data.images.drawing import (
    GAP,
    _label,
    _label_size,
    class_color,
    draw_detections,
    draw_overlay,
    draw_strip,
    place_labels,
    write_image,
)
from ppdet_lite.deployment.detect import ImageDetections
from ppdet_lite.evaluation.infer import draw_comparison

GROUND = 128
NAMES = ["cat", "dog", "a class with quite a long name, grüner Specht", "猫 и кошка 🐈"]
NONE = np.empty((0, 4), np.float32), np.empty(0, np.int64)


def gray(height, width):
    return np.full((height, width, 3), GROUND, np.uint8)


def draw(image, *items):
    """Draw (box, class, score) items."""
    boxes, classes, scores = zip(*items, strict=True)
    return draw_detections(image, np.float32(boxes), np.array(classes), np.float32(scores), NAMES)


def changed(picture):
    """The bounding box [x1, y1, x2, y2], inclusive, of what is no longer gray."""
    rows, columns = np.nonzero((picture != GROUND).any(axis=2))
    return [int(value) for value in (columns.min(), rows.min(), columns.max(), rows.max())]


def count(picture, color):
    return int((picture == color).all(axis=2).sum())


def test_a_box_is_drawn_on_its_pixels_in_the_color_of_its_class():
    picture = draw(gray(200, 300), ([100.2, 80.4, 220.4, 150.3], 1, 0.9))
    for y, x in ((80, 160), (150, 160), (115, 100), (115, 220)):  # the middles of the four sides
        assert tuple(picture[y, x]) == class_color(1)
    assert (picture[84:147, 104:217] == GROUND).all()  # nothing inside
    left, top, right, bottom = changed(picture)
    assert (left, right, bottom) == (100, 220, 150) and 55 < top < 72  # the label stands above


def test_the_image_itself_is_not_touched_and_read_only_views_will_do():
    image = gray(64, 64)[::-1, :, ::-1]
    image.flags.writeable = False
    picture = draw(image, ([10, 10, 50, 50], 0, 0.5))
    assert (image == GROUND).all() and (picture != GROUND).any()
    assert picture.dtype == np.uint8 and picture.shape == image.shape


def test_no_boxes_change_nothing():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    for scores in (np.empty(0, np.float32), None):
        np.testing.assert_array_equal(draw_detections(image, *NONE, scores, NAMES), image)


def test_labels_leave_small_objects_and_each_other_to_be_seen():
    """Two small boxes right above the corner of a large one, and one beside the other."""
    boxes = np.array([[60, 48, 72, 58], [78, 48, 90, 58], [60, 60, 260, 180]])
    sizes = np.array([[60, 14]] * 3)
    places = place_labels(boxes, sizes, (200, 300))
    labels = np.array([[left, top, left + 60, top + 14] for left, top in places])
    assert not shared(labels, boxes[:2]).any()  # no small object is hidden
    others = shared(labels, labels)
    assert (others[~np.eye(3, dtype=bool)] == 0).all()
    assert places[2] == (201, 46)  # above the other corner of the large one
    assert place_labels(boxes[2:], sizes[2:], (200, 300)) == [(60, 46)]  # at its usual corner when alone
    assert place_labels(np.empty((0, 4), int), np.empty((0, 2), int), (200, 300)) == []


def shared(some, others):
    return np.array(
        [
            [max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0) for b in others]
            for a in some
        ]
    )


def test_what_is_below_a_label_shines_through():
    image = np.random.default_rng(0).integers(0, 256, (60, 200, 3), np.uint8)
    picture = draw(image, ([2, 40, 190, 58], 0, 0.5))
    width, height = _label_size(image, "cat 0.50")
    ground = picture[40 - height : 40 - height + 2, 2 : 2 + width]
    expected = np.rint(0.3 * image[40 - height : 40 - height + 2, 2 : 2 + width] + 0.7 * np.array(class_color(0)))
    np.testing.assert_allclose(ground, expected, atol=1)


def test_an_overlay_tells_truth_predictions_and_subject_apart():
    truth = np.float32([[10, 10, 50, 50]]), np.array([0])
    predicted = np.float32([[60, 10, 95, 50]]), np.array([1])
    picture = draw_overlay(gray(100, 100), truth, predicted, np.array([20.0, 60.0, 80.0, 120.0]))
    dashes = (picture[10, 10:51] == class_color(0)).all(axis=1)
    assert dashes[[0, 5, 12, 17]].all() and not dashes[[8, 9, 20, 21]].any()
    assert (picture[10, 60:96] == class_color(1)).all()
    across = picture[80, 10:30]  # through the left side of the subject
    assert (across == 255).all(axis=1).any() and (across == 0).all(axis=1).any()
    assert (picture[99, 30:70] == GROUND).all()  # its lower side is beyond the picture


@pytest.mark.parametrize("size", [(480, 640), (64, 96), (900, 1200), (40, 400)])
@pytest.mark.parametrize("text", [f"{name} 0.87" for name in NAMES])
def test_labels_are_whole_wherever_the_box_is(size, text):
    height, width = size
    labels = []
    for y in (height // 2, 0, height - 1):
        for x in (0, width // 2, width - 1):
            canvas = gray(height, width)
            box = np.array([[x, y, x, y]])
            [(left, top)] = place_labels(box, np.array([_label_size(canvas, text)]), size)
            _label(canvas, text, left, top, (255, 0, 0))
            left, top, right, bottom = changed(canvas)
            labels.append(canvas[top : bottom + 1, left : right + 1])
            assert top == 0 or bottom == y - 1  # above the box's corner, where there is room
    for label in labels:
        np.testing.assert_array_equal(label, labels[0])
    ink = (labels[0] != labels[0][0, 0]).any(axis=2)
    assert labels[0][0, 0].tolist() == [217, 38, 38]  # 0.7 of red over 0.3 of gray
    assert ink.any()
    assert not (ink[0].any() or ink[-1].any() or ink[:, 0].any() or ink[:, -1].any())  # a margin on all sides


def test_the_most_probable_label_is_on_top_and_the_order_does_not_matter():
    likely, unlikely = ([40, 60, 160, 120], 0, 0.9), ([50, 62, 170, 122], 1, 0.3)
    one, other = draw(gray(200, 300), likely, unlikely), draw(gray(200, 300), unlikely, likely)
    np.testing.assert_array_equal(one, other)
    alone = draw(gray(200, 300), likely)
    label = (slice(46, 58), slice(42, 60))
    np.testing.assert_array_equal(one[label], alone[label])


def test_scores_and_names_are_written():
    box = [40, 60, 160, 120]
    pictures = [
        draw(gray(200, 300), (box, 0, 0.9)),
        draw(gray(200, 300), (box, 0, 0.8)),
        draw_detections(gray(200, 300), np.float32([box]), np.array([0]), None, NAMES),
        draw_detections(gray(200, 300), np.float32([box]), np.array([0]), None, ["cow"]),
    ]
    for one, other in combinations(pictures, 2):
        assert (one != other).any()


def test_lines_grow_with_the_image():
    thickness = []
    for scale in (1, 8):
        picture = draw(gray(200 * scale, 300 * scale), (np.array([50, 80, 250, 180]) * scale, 0, 0.9))
        thickness.append(int((picture[140 * scale, : 150 * scale] != GROUND).any(axis=1).sum()))
    assert thickness[0] == 1 and thickness[1] in (6, 7)  # sqrt(200 * 300) / 350 = 0.7; 8 times that: 5.6


def test_neighboring_classes_have_distinct_hues_and_every_class_a_color():
    colors = [class_color(k) for k in range(80)]
    assert len(set(colors)) == 80
    hues = [colorsys.rgb_to_hsv(*(part / 255 for part in color))[0] for color in colors[:8]]
    for one, other in combinations(hues, 2):
        assert min(abs(one - other), 1 - abs(one - other)) > 0.05
    assert class_color(np.int64(3)) == colors[3]


def test_comparison_has_truth_on_the_left_and_good_predictions_on_the_right():
    truth = Objects(np.float32([[20, 40, 60, 80], [70, 10, 95, 70]]), np.array([0, 1]), np.array([False, True]))
    boxes = np.float32([[22, 42, 60, 80], [5, 5, 30, 30]])
    predicted = ImageDetections(7, boxes, np.float32([0.9, 0.4]), np.array([2, 3]))
    picture = draw_comparison(gray(100, 100), truth, predicted, NAMES)
    title = picture.shape[0] - 100
    assert picture.dtype == np.uint8 and picture.shape[1] == 200 + GAP and 12 < title < 40
    strip, left, right = picture[:title], picture[title:, :100], picture[title:, 100 + GAP :]
    assert (strip == 255).mean() > 0.5 and (strip < 128).any()  # dark letters on white
    assert (picture[title:, 100 : 100 + GAP] == 255).all()
    assert [count(left, class_color(k)) > 50 for k in range(4)] == [True, True, False, False]
    assert [count(right, class_color(k)) > 50 for k in range(4)] == [False, False, True, False]
    lower = draw_comparison(gray(100, 100), truth, predicted, NAMES, score_threshold=0.3)
    assert count(lower[title:, 100 + GAP :], class_color(3)) > 50


def test_comparison_without_objects_or_predictions():
    truth = Objects(*NONE, np.empty(0, bool))
    predicted = ImageDetections(7, NONE[0], np.empty(0, np.float32), NONE[1])
    picture = draw_comparison(gray(50, 30), truth, predicted, NAMES)
    assert (picture[-50:, :30] == GROUND).all() and (picture[-50:, -30:] == GROUND).all()


def test_a_strip_has_pictures_side_by_side_each_below_its_label():
    pictures = np.stack([gray(40, 60), gray(40, 60) + 50, gray(40, 60) + 90])
    strip = draw_strip(pictures, ["cat", "dog", "background"])
    assert strip.shape[1] == 3 * 60 + 2 * GAP and strip.dtype == np.uint8
    title = strip.shape[0] - 40
    for i, picture in enumerate(pictures):
        left = i * (60 + GAP)
        assert (strip[title:, left : left + 60] == picture).all()
        assert (strip[:title, left : left + 60] < 128).any()  # letters
    assert (strip[:, 60 : 60 + GAP] == 255).all()
    assert draw_strip(pictures[:1], ["cat"]).shape[1] == 60


def test_a_drawing_too_large_for_its_format_is_scaled_down(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", "ppdet_lite")
    write_image(tmp_path / "a.webp", gray(8, 20000))
    assert load_image(str(tmp_path / "a.webp")).shape == (7, 16383, 3)
    assert "a.webp: scaled down to 16383 x 7 pixels, which .webp permits" in caplog.text
    write_image(tmp_path / "a.png", gray(8, 20000))
    assert load_image(str(tmp_path / "a.png")).shape == (8, 20000, 3)
    monkeypatch.setattr(cv2, "imencode", lambda *_: (False, None))
    with pytest.raises(UserError, match=r"b.bmp: OpenCV cannot write 5 x 4 pixels as .bmp; use .png"):
        write_image(tmp_path / "b.bmp", gray(4, 5))
