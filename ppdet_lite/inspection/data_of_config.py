"""The data of a config, checked as its training would meet them."""

from ppdet_lite.assembly.setup import build_dataset, check_training_data
from ppdet_lite.config.checked import Config
from ppdet_lite.inspection.data_check import Check, check, check_set, tell


def check_config(config: Config) -> Check:
    """Look at the training and the validation set of a config, and print what is found.

    Whether they are refused is what training itself says: options of the data sets and classes are the config's.
    """

    def training() -> None:
        train = build_dataset(config, "train")
        check_training_data(config, train, build_dataset(config, "val", train.class_names))

    paths = {
        split: (config["data"][split]["images"], config["data"][split]["annotations"]) for split in ("train", "val")
    }
    sets = [check_set(split, *both) for split, both in paths.items()]
    found = check(sets, training, config["data"]["loader"]["on_bad_image"] == "skip")
    tell(found)
    return found
