"""The data check says whether the boxes of images with the same content are the same."""

import shutil

import pytest

from ppdet_lite.data.checking.check import check_set
from tests.data.conftest import CocoFiles

SECOND = ([30, 10, 12.5, 8], 90)
CASES = {
    "the same": ([([0, 0, 30, 40], 7), SECOND], "the same"),
    "in another order": ([SECOND, ([0, 0, 30, 40], 7)], "the same"),
    "of another class": ([([0, 0, 30, 40], 3), SECOND], "different"),
    "of another size": ([([0, 0, 30, 39], 7), SECOND], "different"),
    "fewer": ([SECOND], "different"),
}


@pytest.mark.parametrize(("boxes", "word"), CASES.values(), ids=CASES)
def test_boxes_of_identical_images_are_compared(tmp_path, boxes, word):
    files = CocoFiles(tmp_path / "set", [(40, 60)] * 3)
    files.add(0, [10, 5, 20, 10], 3)
    for box, category in ([0, 0, 30, 40], 7), SECOND:
        files.add(1, box, category)
    for box, category in boxes:
        files.add(2, box, category)
    shutil.copy(files.images / "1.png", files.images / "2.png")
    files.write()
    found = check_set("data", str(files.images), str(files.json))
    (problem,) = [problem for problem in found.problems if problem.kind == "content_twice"]
    assert problem.examples[0].value == {"as": "1.png", "boxes": word}
