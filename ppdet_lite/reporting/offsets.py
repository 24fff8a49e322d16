"""The report of what deformable convolutions sample: a table as JSON, its chart, and a line for each layer."""

from pathlib import Path
from typing import Any

from ppdet_lite.assembly.setup import TrainedModel
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.loading.loader import Loader
from ppdet_lite.evaluation.offset_table import offset_table
from ppdet_lite.reporting.charts import offset_chart
from ppdet_lite.storage.files import output_file, write_json


def report_offsets(
    detector: TrainedModel, dataset: CocoDataset, loader: Loader, output: Path, stage: int | None = None
) -> None:
    """Write offsets.json, see `offset_table`, and offsets.svg into a folder, and log the numbers.

    Raises UserError as `offset_table` does, and for a folder that cannot be written.
    """
    table = offset_table(detector, dataset, loader, stage)
    write_json(output / "offsets.json", table)
    with output_file(output / "offsets.svg") as file:
        file.write(offset_chart(table))
    low, high = table["size_limits"]
    get_logger().info("objects: small up to %.0f px (square root of the box area), large from %.0f px", low, high)
    for name, layer in table["layers"].items():
        get_logger().info("%s: effective dilation %s", name, _line(layer["effective_dilation"]))
    for name, path in {**table["layers"], "stacked": table["stacked"]}.items():
        regular = _line(path["outside_box_without_offsets"])
        get_logger().info("%s: outside of the box %s; without offsets %s", name, _line(path["outside_box"]), regular)
    get_logger().info("written: %s and %s", output / "offsets.json", output / "offsets.svg")


def _line(sizes: dict[str, dict[str, Any]]) -> str:
    """Return the means by size as text."""
    return ", ".join(f"{size} {moments['mean']:.2f}" for size, moments in sizes.items() if moments["count"])
