"""What a run shows in VisualDL: scalars, and pictures of predicted and true boxes."""

from collections.abc import Mapping
from pathlib import Path

from ppdet_lite.data.coco import CocoDataset
from ppdet_lite.data.transforms import Preprocess, collate, image_sample
from ppdet_lite.engine.evaluate import detect
from ppdet_lite.engine.visualize import draw_comparison
from ppdet_lite.modeling.faster_rcnn import FasterRCNN


class Board:
    """Writes a run's VisualDL folder: `visualdl --logdir FOLDER` shows it in a browser."""

    def __init__(self, folder: Path) -> None:
        from visualdl import LogWriter  # heavy: only a training run needs it

        self._writer = LogWriter(str(folder))

    def scalars(self, iteration: int, values: Mapping[str, float | None]) -> None:
        """Plot numbers by name; None is left out."""
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, iteration)

    def preview(
        self, iteration: int, model: FasterRCNN, dataset: CocoDataset, preprocess: Preprocess, count: int
    ) -> None:
        """Show the first `count` images of a dataset with predicted and true boxes."""
        for index in range(min(count, len(dataset))):
            image = dataset.load(index)
            sample = image_sample(image, preprocess, dataset.info(index).id)
            (found,) = detect(model, [collate([sample], preprocess)])
            picture = draw_comparison(image, dataset.annotations(index), found, dataset.class_names)
            self._writer.add_image(f"val/{dataset.info(index).id}", picture, iteration)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
