"""A check of data as a page that stands alone, with charts and pictures, as JSON, and as a table of every place."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.objects import LARGEST
from ppdet_lite.data.annotations.problems import Example, Problem
from ppdet_lite.data.annotations.statistics import LARGE, SMALL
from ppdet_lite.data.checking.boxes import MEASURES, measures
from ppdet_lite.data.checking.check import COLUMNS, Check, SetCheck
from ppdet_lite.data.images.drawing import draw_detections
from ppdet_lite.reporting.csv_text import csv_text
from ppdet_lite.reporting.html import chart, fill, jpeg
from ppdet_lite.storage.files import write_json, write_text

PAGE, NUMBERS, PLACES, TEMPLATE = "index.html", "check.json", "problems.csv", "data.html"
SAMPLES, EXAMPLES = 8, 3  # pictures of a set, and of a problem
SIDE, MOST_ZOOM = 360, 4.0  # pixels of a picture's longer side, and how much it is enlarged at most
CONTEXT, LEAST_PART = 2.5, 0.3  # what is shown around a box: so many times its side, that share of the image's at least
SMALLEST = 8  # pixels; what is smaller is encircled
DISTRIBUTIONS = {
    "sides": "box side, root of the area, pixels",
    "relative": "box side / image side",
    "aspects": "box height / width",
    "per_image": "boxes in an image",
    "widths": "image width, pixels",
    "heights": "image height, pixels",
}


class Picture(NamedTuple):
    """A picture of the page."""

    address: str
    caption: str


def write_report(found: Check, folder: Path) -> None:
    """Write index.html, check.json and problems.csv into a folder. Raises UserError where it cannot be written."""
    write_json(folder / NUMBERS, found.as_json())
    write_text(folder / PLACES, csv_text(found.rows(), COLUMNS))
    write_text(folder / PAGE, page(found))
    get_logger().info("%s, %s and %s written into %s", PAGE, NUMBERS, PLACES, folder)


def page(found: Check) -> str:
    """The page as HTML, with all that it shows inside."""
    read = [each for each in found.sets if each.numbers is not None]
    return fill(
        TEMPLATE,
        sets=found.sets,
        read=read,
        between=found.between,
        refusal=found.refusal,
        pictures_of=lambda problem: _examples(found, problem),
        counts=_counts(read),
        measure_names=list(MEASURES),
        distributions=_distributions(read),
        charts=_charts(read) if any(len(each.numbers.sides) for each in read) else [],
        classes=_classes(read),
        samples={each.name: _samples(each) for each in read},
    )


def _counts(read: Sequence[SetCheck]) -> list[tuple[str, list[int]]]:
    rows = {
        "images": lambda s: s.images,
        "without boxes": lambda s: s.empty_images,
        "boxes": lambda s: int(s.boxes.sum()),
        "small, below 32 x 32": lambda s: s.small,
        "medium": lambda s: s.medium,
        "large, from 96 x 96": lambda s: s.large,
        "crowd regions": lambda s: s.crowds,
    }
    return [(label, [value(each.statistics) for each in read]) for label, value in rows.items()]


def _distributions(read: Sequence[SetCheck]) -> list[tuple[str, str, list[str]]]:
    rows = []
    for key, label in DISTRIBUTIONS.items():
        for each in read:
            found = measures(getattr(each.numbers, key)) or {}
            rows.append((label, each.name, [f"{value:.4g}" for value in found.values()]))
    return rows


def _classes(read: Sequence[SetCheck]) -> list[tuple[str, list[tuple[int, float]]]]:
    """The boxes of each class and their share of the set's, most of the first set first."""
    counted = [dict(zip(each.dataset.class_names, each.statistics.boxes.tolist(), strict=True)) for each in read]
    totals = [max(sum(counts.values()), 1) for counts in counted]
    names = dict.fromkeys(name for counts in counted for name in counts)
    rows = [
        (name, [(counts.get(name, 0), counts.get(name, 0) / n) for counts, n in zip(counted, totals)]) for name in names
    ]
    return sorted(rows, key=lambda row: -row[1][0][0])


def _charts(read: Sequence[SetCheck]) -> list[Picture]:
    numbers = {each.name: each.numbers for each in read}

    def histogram(axes: Any, key: str, bins: np.ndarray) -> None:
        for name, each in numbers.items():
            values = getattr(each, key).clip(bins[0], bins[-1])
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
            axes.axvline(limit**0.5, color="grey", linestyle=":")

    def aspects(axes: Any) -> None:
        histogram(axes, "aspects", np.geomspace(1 / 16, 16, 41))
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:g}")

    def relative(axes: Any) -> None:
        histogram(axes, "relative", np.linspace(0, 1, 41))

    def per_image(axes: Any) -> None:
        most = max(max(each.per_image, default=0) for each in numbers.values()) + 1
        histogram(axes, "per_image", np.unique(np.linspace(0, most, 41).round()) - 0.5)

    def sizes(axes: Any) -> None:
        for name, each in numbers.items():
            axes.plot(each.widths, each.heights, "o", markersize=4, alpha=0.4, markeredgewidth=0, label=name)
        axes.set(xlabel=DISTRIBUTIONS["widths"], ylabel=DISTRIBUTIONS["heights"], xlim=(0, None), ylim=(0, None))
        axes.legend(frameon=False)

    captions = {
        sides: "Dotted: where COCO's small boxes end and its large ones begin.",
        relative: "How much of the image a box takes.",
        aspects: "Below 1: wider than high.",
        per_image: "Crowd regions are not counted.",
        sizes: "A dot for each image.",
    }
    return [Picture(chart(draw, 4.4, 3.1), caption) for draw, caption in captions.items()]


def _samples(each: SetCheck) -> list[Picture]:
    """Pictures from all over a set, those with boxes first."""
    rows = [row for row, count in enumerate(each.numbers.per_image.tolist()) if count] or list(range(len(each.dataset)))
    chosen = np.unique(np.linspace(0, len(rows) - 1, SAMPLES).astype(int))
    pictures = [_picture(each, rows[place], each.dataset.info(rows[place]).path) for place in chosen]
    return [picture for picture in pictures if picture is not None]


def _examples(found: Check, problem: Problem) -> list[Picture]:
    """Pictures of a problem of images or boxes, where they can be shown."""
    for each in found.sets:
        if each.dataset is not None and (problem in each.problems or (problem in found.between and each.is_val)):
            rows = {image: row for row, image in enumerate(each.dataset.image_ids.tolist())}
            shown = [example for example in problem.examples if type(example.image) is int and example.image in rows]
            made = [_picture(each, rows[e.image], str(e), _box(e)) for e in shown[:EXAMPLES]]
            return [picture for picture in made if picture is not None]
    return []


def _box(example: Example) -> list[float] | None:
    value = example.value if isinstance(example.value, dict) else {}
    box = value.get("bbox")
    usable = isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) and abs(v) < LARGEST for v in box)
    return box if usable else None


def _picture(each: SetCheck, row: int, caption: str, xywh: list[float] | None = None) -> Picture | None:
    """An image with its boxes drawn, or the part of it around one, which is outlined; None if it cannot be read."""
    try:
        image = each.dataset.load(row)
    except UserError:
        return None  # what is wrong with it is told
    objects = each.dataset.annotations(row)
    left, top, right, bottom = (0, 0, *image.shape[1::-1]) if xywh is None else _cut(xywh, image.shape[:2])
    zoom = min(SIDE / max(right - left, bottom - top), MOST_ZOOM)
    way = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    part = cv2.resize(image[top:bottom, left:right], None, fx=zoom, fy=zoom, interpolation=way)
    boxes = (objects.boxes - [left, top, left, top]) * zoom
    seen = ((boxes[:, :2] < part.shape[1::-1]) & (boxes[:, 2:] > 0)).all(axis=1)
    drawn = draw_detections(part, boxes[seen], objects.classes[seen], None, each.dataset.class_names)
    if xywh is not None:
        _outline(drawn, (np.array(xywh) - [left, top, 0, 0]) * zoom)
    return Picture(jpeg(drawn), caption)


def _cut(xywh: list[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part (left, top, right, bottom) of an image (h, w) around a box, not less than a share of the image."""
    height, width = size
    x, y, w, h = xywh
    half = max(CONTEXT * max(w, h), LEAST_PART * max(size)) / 2
    centre_x, centre_y = np.clip(x + w / 2, 0, width), np.clip(y + h / 2, 0, height)
    left, top = int(max(centre_x - half, 0)), int(max(centre_y - half, 0))
    right, bottom = int(np.ceil(min(centre_x + half, width))), int(np.ceil(min(centre_y + half, height)))
    return min(left, width - 1), min(top, height - 1), right, bottom


def _outline(picture: np.ndarray, xywh: np.ndarray) -> None:
    """Outline a box, or encircle it where it is too small to be seen, in black and white."""
    side = max(picture.shape)
    low, high = (corner.clip(-side, 2 * side).round().astype(int) for corner in (xywh[:2], xywh[:2] + xywh[2:]))
    centre, radius = ((low + high) // 2).tolist(), SMALLEST + int((high - low).max()) // 2
    for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        if (high - low).min() < SMALLEST:
            cv2.circle(picture, centre, radius, colour, thickness)
        else:
            cv2.rectangle(picture, low.tolist(), high.tolist(), colour, thickness)
