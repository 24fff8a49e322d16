"""The data of a config, checked as its training would meet them."""

from collections.abc import Iterator, Mapping
from typing import Any

from ppdet_lite.assembly.setup import build_dataset, check_training_data
from ppdet_lite.config.checked_config import Config
from ppdet_lite.data.checking.check import Check, check, check_set, tell


def check_config(config: Config) -> Check:
    """Look at the training and the validation set of a config, and print what is found.

    Whether they are refused is what training itself says: options of the data sets and classes are the config's.
    """

    def training() -> None:
        train = build_dataset(config, "train")
        check_training_data(config, train, build_dataset(config, "val", train.class_names))

    sets = [check_set(*source) for source in files_of(config["data"])]
    found = check(sets, training, config["data"]["loader"]["on_bad_image"] == "skip")
    tell(found)
    return found


def files_of(data: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, image folder and annotation file of both splits, or of each of their parts where they have some."""
    for split in ("train", "val"):
        parts = data[split]["parts"] if "parts" in data[split] else [data[split]]
        for number, part in enumerate(parts, start=1):
            name = split if len(parts) == 1 else f"{split} {number}"
            yield name, part["images"], part["annotations"]
