"""The check of datasets as a self-contained HTML page with charts and images, as JSON, and as a CSV of all problems."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.objects import MAX_COORDINATE
from ppdet_lite.data.annotations.problems import Example, Problem, format_value
from ppdet_lite.data.annotations.statistics import LARGE, SMALL, total_rows
from ppdet_lite.data.checking.boxes import PERCENTILES, percentiles
from ppdet_lite.data.checking.check import COLUMNS, Check, ReadSet
from ppdet_lite.data.images.drawing import draw_detections, side_by_side
from ppdet_lite.reporting.box_crops import crop_around, limits_around
from ppdet_lite.reporting.csv_text import csv_text
from ppdet_lite.reporting.html import chart, fill, jpeg
from ppdet_lite.storage.files import write_json, write_text

PAGE, NUMBERS, OCCURRENCES, TEMPLATE = "index.html", "check.json", "problems.csv", "data.html"
SAMPLES, EXAMPLES = 8, 3  # images shown per dataset and per problem
SIDE = 360  # longer side of a shown image, pixels
CONTEXT, MIN_FRACTION = 2.5, 0.3  # side of a crop relative to the box, and its minimum relative to the image
IDENTICAL = ("content_twice", "content_in_both")  # kinds of problems whose examples name two images
MIN_OUTLINED, MARGIN = 8, 4  # pixels: smaller boxes are encircled instead of framed; between a box and its frame
DISTRIBUTIONS = {
    "sides": "square root of the box area, pixels",
    "relative": "square root of box area / image area",
    "aspects": "box height / width",
    "per_image": "boxes per image",
    "widths": "image width, pixels",
    "heights": "image height, pixels",
}


class Figure(NamedTuple):
    """A chart or an image on the page."""

    url: str  # a data: URL
    caption: str


def write_report(check: Check, folder: Path) -> None:
    """Write index.html, check.json and problems.csv into a folder. Raises UserError if it cannot be written."""
    write_json(folder / NUMBERS, check.as_json())
    write_text(folder / OCCURRENCES, csv_text(check.rows(), COLUMNS))
    write_text(folder / PAGE, page(check))
    get_logger().info("written: %s, %s and %s in %s", PAGE, NUMBERS, OCCURRENCES, folder)


def page(check: Check) -> str:
    """Return the page as self-contained HTML."""
    read = {split.name: split.read for split in check.sets if split.read is not None}
    return fill(
        TEMPLATE,
        title=f"Data check: {', '.join(split.name for split in check.sets)}",
        sets=check.sets,
        readable=[split for split in check.sets if split.read is not None],
        between=check.between,
        refusal=check.refusal,
        examples_of=lambda problem: _examples(check, problem),
        counts=_counts(read.values()),
        percentile_names=list(PERCENTILES),
        distributions=_distributions(read),
        charts=_charts(read) if any(len(one.distributions.sides) for one in read.values()) else [],
        classes=_classes(read.values()),
        samples={name: _samples(one) for name, one in read.items()},
    )


def _counts(read: Collection[ReadSet]) -> list[tuple[str, list[int]]]:
    """Return rows of a label and its count in each dataset."""
    return [(label.strip(), counts) for label, counts in total_rows([one.statistics for one in read])]


def _distributions(read: Mapping[str, ReadSet]) -> list[tuple[str, str, list[str]]]:
    """Return rows of a label, the name of a dataset and the percentiles of the labeled quantity in it."""
    rows = []
    for key, label in DISTRIBUTIONS.items():
        for name, one in read.items():
            values = percentiles(getattr(one.distributions, key)) or {}
            rows.append((label, name, [f"{value:.4g}" for value in values.values()]))
    return rows


def _classes(read: Collection[ReadSet]) -> list[tuple[str, list[tuple[int, float]]]]:
    """Return the number of boxes of each class and their fraction per dataset, sorted by the first dataset."""
    counts = [dict(zip(one.dataset.class_names, one.statistics.boxes.tolist(), strict=True)) for one in read]
    totals = [max(sum(of_set.values()), 1) for of_set in counts]
    names = dict.fromkeys(name for of_set in counts for name in of_set)
    rows = [
        (name, [(of_set.get(name, 0), of_set.get(name, 0) / n) for of_set, n in zip(counts, totals)]) for name in names
    ]
    return sorted(rows, key=lambda row: -row[1][0][0])


def _charts(read: Mapping[str, ReadSet]) -> list[Figure]:
    """Return the charts of all datasets together, with their captions."""
    by_name = {name: one.distributions for name, one in read.items()}

    def histogram(axes: Any, key: str, bins: np.ndarray) -> None:
        for name, distributions in by_name.items():
            values = getattr(distributions, key).clip(bins[0], bins[-1])
            if len(values):
                weights = np.full(len(values), 100 / len(values))
                axes.hist(values, bins, weights=weights, histtype="step", linewidth=1.4, label=name)
        axes.set(xlabel=DISTRIBUTIONS[key], ylabel="%")
        axes.legend(frameon=False)

    def sides(axes: Any) -> None:
        histogram(axes, "sides", np.geomspace(2, 2048, 41))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        for limit in (SMALL, LARGE):
            axes.axvline(limit**0.5, color="gray", linestyle=":")

    def aspects(axes: Any) -> None:
        histogram(axes, "aspects", np.geomspace(1 / 16, 16, 41))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:g}")

    def relative(axes: Any) -> None:
        histogram(axes, "relative", np.linspace(0, 1, 41))

    def per_image(axes: Any) -> None:
        most = max(max(distributions.per_image, default=0) for distributions in by_name.values()) + 1
        histogram(axes, "per_image", np.unique(np.linspace(0, most, 41).round()) - 0.5)

    def sizes(axes: Any) -> None:
        for name, measured in by_name.items():
            axes.plot(measured.widths, measured.heights, "o", markersize=4, alpha=0.4, markeredgewidth=0, label=name)
        axes.set(xlabel=DISTRIBUTIONS["widths"], ylabel=DISTRIBUTIONS["heights"], xlim=(0, None), ylim=(0, None))
        axes.legend(frameon=False)

    captions = {
        sides: "Dotted lines: the limits of COCO's small, medium and large boxes.",
        relative: "The size of a box relative to its image.",
        aspects: "Below 1: wider than high.",
        per_image: "Crowd regions are not counted.",
        sizes: "One dot per image.",
    }
    return [Figure(chart(draw, 4.4, 3.1), caption) for draw, caption in captions.items()]


def _samples(read: ReadSet) -> list[Figure]:
    """Return images spread evenly over a dataset, only those with boxes if there are any."""
    with_boxes = np.flatnonzero(read.distributions.per_image).tolist()
    rows = with_boxes or list(range(len(read.dataset)))
    chosen = np.unique(np.linspace(0, len(rows) - 1, SAMPLES).astype(int))
    figures = [_draw(read.dataset, rows[index], read.dataset.info(rows[index]).path) for index in chosen]
    return [figure for figure in figures if figure is not None]


def _examples(check: Check, problem: Problem) -> list[Figure]:
    """Return images of the examples of a problem, as far as these belong to readable images."""
    for split in check.sets:
        if split.read is not None and (problem in split.problems or (problem in check.between and split.is_val)):
            dataset = split.read.dataset
            rows = {image: row for row, image in enumerate(dataset.image_ids.tolist())}
            shown = [example for example in problem.examples if type(example.image) is int and example.image in rows]
            if problem.kind in IDENTICAL:
                return [pair for e in shown[:EXAMPLES] if (pair := _pair(check, split.read, rows[e.image], e))]
            figures = [_draw(dataset, rows[e.image], str(e), _box(e)) for e in shown[:EXAMPLES]]
            return [figure for figure in figures if figure is not None]
    return []


def _pair(check: Check, read: ReadSet, row: int, example: Example) -> Figure | None:
    """Draw an image beside the one with the same content that an example names."""
    other = example.value["as"]
    paths = {other, str(read.dataset.images / other)}
    datasets = [split.read.dataset for split in check.sets if split.read is not None]
    rows = [(one, k) for one in datasets for k in range(len(one)) if one.info(k).path in paths]
    left, right = _pixels(*rows[0]) if rows else None, _pixels(read.dataset, row)
    if left is None or right is None:
        return None
    order = f"left {format_value(other)}, right {format_value(example.file)}"
    return Figure(jpeg(side_by_side(left, right)), f"Identical images, boxes: {example.value['boxes']}; {order}")


def _box(example: Example) -> list[float] | None:
    """Return the bbox of an example, or None if it has none that can be drawn."""
    value = example.value if isinstance(example.value, dict) else {}
    box = value.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) for v in box):
        return None
    return box if all(abs(v) < MAX_COORDINATE for v in box) else None


def _draw(dataset: CocoDataset, row: int, caption: str, xywh: list[float] | None = None) -> Figure | None:
    """Draw the boxes of an image as a figure, only around the box xywh if it is given; see `_pixels`."""
    drawing = _pixels(dataset, row, xywh)
    return None if drawing is None else Figure(jpeg(drawing), caption)


def _pixels(dataset: CocoDataset, row: int, xywh: list[float] | None = None) -> np.ndarray | None:
    """Draw the boxes of an image, only around the box xywh if it is given; return None for an unreadable image."""
    try:
        image = dataset.load(row)
    except UserError:
        return None  # this is a problem of its own on the page
    objects = dataset.annotations(row)
    limits = (0, 0, *image.shape[1::-1])
    if xywh is not None:
        limits = limits_around(xywh, image.shape[:2], CONTEXT, MIN_FRACTION * max(image.shape[:2]))
    crop = crop_around(image, limits, SIDE)
    boxes = crop.convert(objects.boxes)
    visible = crop.overlaps(boxes)
    drawing = draw_detections(crop.pixels, boxes[visible], objects.classes[visible], None, dataset.class_names)
    if xywh is not None:
        x, y, w, h = xywh
        _outline(drawing, crop.convert(np.array([x, y, x + w, y + h])))
    return drawing


def _outline(image: np.ndarray, box: np.ndarray) -> None:
    """Frame an xyxy box in black and white outside its own lines, or encircle it if it is too small to be visible."""
    side = max(image.shape)
    low, high = (corner.clip(-side, 2 * side).round().astype(int) for corner in (box[:2] - MARGIN, box[2:] + MARGIN))
    center, radius = ((low + high) // 2).tolist(), MIN_OUTLINED + int((high - low).max()) // 2
    for color, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        if (high - low).min() < MIN_OUTLINED + 2 * MARGIN:
            cv2.circle(image, center, radius, color, thickness)
        else:
            cv2.rectangle(image, low.tolist(), high.tolist(), color, thickness)
