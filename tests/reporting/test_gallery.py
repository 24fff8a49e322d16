"""The mistakes in the galleries, and the crops that show them."""

import base64

import cv2
import numpy as np

from ppdet_lite.data.images.drawing import class_color
from ppdet_lite.evaluation.results_file import read_results
from ppdet_lite.reporting.box_crops import limits_around
from ppdet_lite.reporting.gallery import (
    CONTEXT,
    IMAGE_SIDE,
    MIN_CROP_SIDE,
    SIDE,
    show_false_positives,
    show_images,
    show_misses,
    worst_false_positives,
    worst_misses,
)
from ppdet_lite.reporting.summary import analyze
from tests.reporting.scenes import read_scene, write_scene


def box(image, category, x, y, side, score=None):
    item = {"image_id": image, "category_id": category, "bbox": [x, y, side, side]}
    return item if score is None else {**item, "score": score}


def scene(folder):
    """Image 30 has four false cats, one of them where a dog is; image 4 two objects, one found at a low score."""
    objects = [box(30, 9, 100, 100, 50), box(4, 3, 10, 10, 30), box(4, 3, 200, 100, 60), box(17, 9, 0, 0, 20)]
    detections = [box(30, 3, 100, 100, 50, 0.8)] + [box(30, 3, 250, 10 + 40 * n, 20, 0.9 - n / 100) for n in range(3)]
    detections += [box(4, 3, 10, 10, 30, 0.3), box(4, 3, -40, 150, 30, 0.4), box(17, 9, 0, 0, 20, 0.7)]
    write_scene(folder, objects, detections)
    for image in (30, 4):
        cv2.imwrite(str(folder / "images" / f"{image}.jpg"), np.full((200, 300, 3), 128, np.uint8))
    dataset, *_ = read_scene(folder)
    return dataset, analyze(dataset, read_results(folder / "bbox.json", dataset))


def test_the_worst_come_first_and_no_image_has_all(tmp_path):
    _, analysis = scene(tmp_path)
    assert analysis.detections.scores[worst_false_positives(analysis, 9)].tolist() == [0.9, 0.89, 0.4]
    assert worst_false_positives(analysis, 1) == [0]
    # found at no score: the larger cat and the dog; then the cat that is found below the score
    assert analysis.ground_truth.xywh[worst_misses(analysis, 0.5, 9), 2].tolist() == [60, 50, 30]
    assert analysis.ground_truth.xywh[worst_misses(analysis, 0.2, 9), 2].tolist() == [60, 50]


def test_drawings_show_the_mistake(tmp_path):
    dataset, analysis = scene(tmp_path)
    rows = np.flatnonzero((analysis.detections.scores == 0.8) | (analysis.detections.scores == 0.4)).tolist()
    first, second = show_false_positives(dataset, analysis, rows, 0.5)
    assert (first.title, first.detail, first.file) == ("cat 0.80", "classification: annotated as dog", "30.jpg")
    assert (second.title, second.detail) == ("cat 0.40", "background")  # beyond the left side, but still drawn
    drawings = [decode(item) for item in (first, second)]
    assert drawings[0].shape == (SIDE, SIDE, 3)  # 2.2 times 50 pixels, enlarged
    assert drawings[0][:40].std() < 20 < drawings[0][60:240, 60:240].std()  # lines in the middle only
    (miss,) = show_misses(dataset, analysis, worst_misses(analysis, 0.5, 1), 0.5)
    assert (miss.title, miss.detail, miss.file) == ("cat", "60 x 60 pixels", "4.jpg")


def test_pictures_name_the_classes_in_them(tmp_path):
    dataset, analysis = scene(tmp_path)
    (row,) = np.flatnonzero(analysis.detections.scores == 0.8)
    (item,) = show_false_positives(dataset, analysis, [int(row)], 0.5)
    assert item.classes == [("cat", class_color(0)), ("dog", class_color(2))]  # the cats to the right are not in it


def test_a_whole_image_shows_only_mistakes(tmp_path):
    """Image 4: a large missed cat; the small one is missed at 0.5 and found at 0.2, where a false one counts."""
    dataset, analysis = scene(tmp_path)
    image = dataset.image_ids.tolist().index(4)
    for score, detail, small in ((0.5, "0 wrong, 2 missed", True), (0.2, "1 wrong, 1 missed", False)):
        (item,) = show_images(dataset, analysis, [image], score)
        assert (item.title, item.detail, item.classes) == ("4.jpg", detail, [("cat", class_color(0))])
        pixels = decode(item)
        zoom = IMAGE_SIDE / 300
        assert pixels.shape[:2] == (round(200 * zoom), IMAGE_SIDE)
        corner = pixels[round(8 * zoom) : round(12 * zoom), round(8 * zoom) : round(42 * zoom)]  # its upper side
        assert (corner.std() > 20) == small
        assert pixels[round(95 * zoom) : round(105 * zoom), round(200 * zoom) : round(260 * zoom)].std() > 20


def test_images_that_cannot_be_read_have_a_reason(tmp_path):
    dataset, analysis = scene(tmp_path)
    (tmp_path / "images/4.jpg").unlink()
    (item,) = show_images(dataset, analysis, [dataset.image_ids.tolist().index(4)], 0.5)
    assert item.drawing == "" and item.detail == "0 wrong, 2 missed" and "cannot read image" in item.error


def decode(item):
    content = base64.b64decode(item.drawing.removeprefix("data:image/jpeg;base64,"))
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


def limits(xywh):
    return limits_around(np.array(xywh), (200, 300), CONTEXT, MIN_CROP_SIDE)


def test_the_crop_is_around_the_box_and_within_the_image():
    assert limits([100.0, 80.0, 60.0, 40.0]) == (64, 34, 196, 166)  # 2.2 x 60 around (130, 100)
    assert limits([0.0, 0.0, 10.0, 10.0]) == (0, 0, 53, 53)  # 96 around (5, 5)
    left, top, right, bottom = limits([500.0, -90.0, 10.0, 10.0])  # beyond the image
    assert 0 <= left < right <= 300 and 0 <= top < bottom <= 200
