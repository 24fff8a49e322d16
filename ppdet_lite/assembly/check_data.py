"""The check of a config's datasets, with the options that its training would use."""

from collections.abc import Iterator, Mapping
from typing import Any

from ppdet_lite.assembly.setup import build_dataset, check_training_data
from ppdet_lite.config.checked_config import Config
from ppdet_lite.data.checking.check import Check, check, check_set, print_check


def check_config(config: Config) -> Check:
    """Check the training and the validation set of a config, print the problems and return them.

    `Check.refusal` is the error with which training would refuse the data, under the config's options and classes.
    """

    def check_for_training() -> None:
        train = build_dataset(config, "train")
        check_training_data(config, train, build_dataset(config, "val", train.class_names))

    sets = [check_set(*source) for source in dataset_files(config["data"])]
    result = check(sets, check_for_training, config["data"]["loader"]["on_bad_image"] == "skip")
    print_check(result)
    return result


def dataset_files(data: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (name, image folder, annotation file) of both splits, or of each part of a split that has parts."""
    for split in ("train", "val"):
        parts = data[split]["parts"] if "parts" in data[split] else [data[split]]
        for number, part in enumerate(parts, start=1):
            name = split if len(parts) == 1 else f"{split} {number}"
            yield name, part["images"], part["annotations"]
