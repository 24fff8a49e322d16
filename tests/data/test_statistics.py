"""The numbers of a data set, counted by hand, and their table."""

import numpy as np

from ppdet_lite.data.annotations.statistics import Statistics, format_statistics


def test_a_set_counted_by_hand(coco_files):
    files = coco_files([(200, 300)] * 4)
    files.add(0, [0, 0, 32, 32], area=32 * 32)  # the first that is medium, as COCO has it
    files.add(0, [0, 0, 32, 32], area=32 * 32 - 1)
    files.add(1, [0, 0, 96, 96], category=7, area=96 * 96)
    files.add(1, [0, 0, 96, 96], category=7, area=96 * 96 - 1)
    files.add(2, [0, 0, 200, 100], category=90, iscrowd=1)  # image 3 has nothing at all
    found = files.read().statistics()
    assert found._replace(boxes=found.boxes.tolist()) == Statistics(
        images=4, empty_images=2, crowds=1, boxes=[2, 2, 0], small=1, medium=2, large=1
    )


def test_a_table_of_two_sets():
    train = Statistics(4, 2, 1, np.array([2, 2]), 1, 2, 1)
    val = Statistics(10, 0, 0, np.array([0, 12345]), 12340, 5, 0)
    assert format_statistics({"train": train, "val": val}, ["cat", "dog"]).splitlines() == [
        "                           train       val",
        "images                         4        10",
        "  without boxes                2         0",
        "boxes                          4     12345",
        "  small, below 32 x 32         1     12340",
        "  medium                       2         5",
        "  large, from 96 x 96          1         0",
        "crowd regions                  1         0",
        "boxes per class",
        "  cat                          2         0",
        "  dog                          2     12345",
    ]


def test_of_many_classes_the_ends_are_shown():
    boxes = np.arange(30)[::-1].copy()
    boxes[[3, 20]] = 500, 0  # class 3 is the most frequent, classes 20 and 29 the rarest
    names = [f"class {k}" for k in range(30)]
    table = format_statistics({"train": Statistics(1, 0, 0, boxes, 0, 0, 0)}, names).splitlines()
    shown = [line.split()[1] for line in table if line.startswith("  class")]
    assert shown == ["3", "0", "1", "2", "4", "26", "27", "28", "20", "29"]
    assert "  ... 20 more classes" in table
