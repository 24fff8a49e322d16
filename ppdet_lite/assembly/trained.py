"""Loading of the trained model in `weights:`."""

from ppdet_lite.assembly.converted_settings import MODEL, warn_about_conversion
from ppdet_lite.assembly.setup import (
    TrainedModel,
    build_dataset,
    build_uninitialized,
    detection_arrays,
    read_detector,
    state_shapes,
)
from ppdet_lite.assembly.trained_preprocess import warn_about_preprocess
from ppdet_lite.assembly.zoo import trained_weights
from ppdet_lite.config.checked_config import Config
from ppdet_lite.config.registry import build
from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.peers.names import find_peer
from ppdet_lite.storage.weights import match_weights


def load_trained(config: Config) -> TrainedModel:
    """Load the model in `weights:`. Raises UserError unless the file contains every weight of the model."""
    if config["weights"] is None:
        raise UserError("no weights given; add -o weights=output/NAME or another checkpoint, .safetensors or .pdparams")
    weights = read_detector(trained_weights(config["weights"]))
    if (peer := find_peer(weights.arrays)) is not None:
        raise UserError(
            f"{weights.source}: weights of another project; convert them: "
            f"ppdet-lite convert-weights --from {peer} -c CONFIG {weights.source} FOLDER"
        )
    if "class_names" in weights.meta:
        class_names, category_ids = weights.meta["class_names"], weights.meta["category_ids"]
    else:  # a bare weights file: use the class order of the training annotations
        dataset = build_dataset(config, "train")
        class_names, category_ids = dataset.class_names, dataset.category_ids.tolist()
        get_logger().warning("%s has no class names; using those of %s", weights.source, dataset.file)
    model = build_uninitialized(config, class_names)
    report = match_weights(state_shapes(model), detection_arrays(weights))
    report.require_complete(weights.source)
    model.set_state_dict(report.matched)
    model.eval()
    preprocess = build(config["data"]["preprocess"])
    warn_about_preprocess(preprocess, weights)
    warn_about_conversion(config, weights, MODEL)
    return TrainedModel(model, class_names, category_ids, preprocess, weights.source)
