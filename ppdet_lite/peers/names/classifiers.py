"""Weight names of pretrained classifiers: PaddleDetection's, and Caffe2's, which detectron2 uses."""

import dataclasses

from ppdet_lite.peers.names.ppdet import ppdet
from ppdet_lite.peers.names.rules import Peer, Rule, Shapes

CAFFE2_STATISTICS = {"weight": "gamma", "bias": "beta", "_mean": "running_mean", "_variance": "running_var"}


def ppdet_classifier(shapes: Shapes) -> Peer:
    """Return the naming of PaddleDetection's backbones: res2.res2a.branch2a..., with or without "backbone."."""
    return dataclasses.replace(
        ppdet(shapes),
        ignored=[r".*\b(fc|out)\..*"],
        legacy_names=[(r"^(?=conv1\.|res[2-4]\.)", "backbone."), (r"^(?=res5\.)", _owner_of_stage_5(shapes))],
    )


def _owner_of_stage_5(shapes: Shapes) -> str:
    in_head = any(name.startswith("box_head.res5.") for name in shapes)
    return "bbox_head.head." if in_head else "backbone."


def caffe2_classifier(shapes: Shapes) -> Peer:
    """Return the naming of files such as ImageNetPretrained/MSRA/R-50.pkl, for ResNets of variant "a"."""

    def norm(name: str) -> str:
        return f"bn_{CAFFE2_STATISTICS[name]}"

    return Peer(
        "Caffe2",
        [
            Rule(r"backbone\.stem\.conv\.weight", "conv1_w"),
            Rule(r"backbone\.stem\.norm\.(.+)", lambda m: f"res_conv1_{norm(m[1])}"),
            Rule(r"(?:backbone|box_head)\.(res\d)\.(\d+)\.shortcut\.conv\.weight", r"\1_\2_branch1_w"),
            Rule(
                r"(?:backbone|box_head)\.(res\d)\.(\d+)\.shortcut\.norm\.(.+)",
                lambda m: f"{m[1]}_{m[2]}_branch1_{norm(m[3])}",
            ),
            Rule(
                r"(?:backbone|box_head)\.(res\d)\.(\d+)\.conv(\d)\.conv\.weight",
                lambda m: f"{m[1]}_{m[2]}_branch2{'abc'[int(m[3]) - 1]}_w",
            ),
            Rule(
                r"(?:backbone|box_head)\.(res\d)\.(\d+)\.conv(\d)\.norm\.(.+)",
                lambda m: f"{m[1]}_{m[2]}_branch2{'abc'[int(m[3]) - 1]}_{norm(m[4])}",
            ),
        ],
        classifier="fc1000_b",
        ignored=["fc1000_[wb]", "conv1_b"],
    )
