"""Rules that convert names and layouts of weights between this project (`ours`) and another one (`theirs`)."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ppdet_lite.storage.weights import LoadReport, ShapeMismatch

Array = np.ndarray
Shapes = Mapping[str, tuple[int, ...]]


class Layout(NamedTuple):
    """Conversion of an array between the two projects."""

    to_ours: Callable[[Array], Array]
    to_theirs: Callable[[Array], Array] | None  # None: not supported


def _transposed(array: Array) -> Array:
    return np.ascontiguousarray(array.T)


SAME = Layout(lambda array: array, lambda array: array)
TRANSPOSED = Layout(_transposed, _transposed)  # linear layers: [in, out] in Paddle, [out, in] in torch


@dataclass(frozen=True)
class Rule:
    """Converts our names that match the pattern `ours` by `theirs`, a `re.sub` template or a function of the match."""

    ours: str
    theirs: str | Callable[[re.Match[str]], str]
    layout: Layout = SAME  # conversion of the arrays with these names

    def translate(self, ours: str) -> str | None:
        """Return their name, or None if the rule does not match our name."""
        match = re.fullmatch(self.ours, ours)
        if match is None:
            return None
        return match.expand(self.theirs) if isinstance(self.theirs, str) else self.theirs(match)


@dataclass(frozen=True)
class Peer:
    """The weight names of another project's detector.

    title: the project's name for messages.
    rules: conversions of our names; the first one that matches is used. A part of their name such as {.N} exists only
        in a cascade; N is the stage, counted from 0. Rules receive names without the prefix of an earlier stage.
    classifier: their name of the bias of the box head's classifier, with such parts.
    ignored: patterns of their names that are not needed here.
    required_names: their names that every file of a detector contains, with such parts.
    legacy_names: (pattern, replacement) pairs that convert names written by older versions to current ones.
    class_count: computes the number of classes from the number of the classifier's outputs.
    earlier_stages: number of a cascade's stages before the last; 0 for a Faster R-CNN.
    """

    title: str
    rules: Sequence[Rule]
    classifier: str
    ignored: Sequence[str] = ()
    required_names: Sequence[str] = ()
    legacy_names: Sequence[tuple[str, str]] = ()
    class_count: Callable[[int], int] = lambda outputs: outputs - 1
    earlier_stages: int = 0

    def matches(self, names: Collection[str]) -> bool:
        """Return whether a file with these names is a detector of this project."""
        return all(_find_variant(name, names) for name in self.required_names)

    def find_classifier(self, names: Collection[str]) -> str | None:
        """Return the name of a classifier's bias in a file with these names, or None."""
        return _find_variant(self.classifier, names)

    def translate(self, ours: str) -> tuple[str, Layout]:
        """Return their name of our weight and its layout. Raises KeyError if they have none."""
        stage, name = re.fullmatch(r"(?:earlier\.(\d+)\.)?(.+)", ours).groups()  # type: ignore[union-attr]
        for rule in self.rules:
            theirs = rule.translate(name)
            if theirs is not None and (stage is None or "{" in theirs):
                number = self.earlier_stages if stage is None else int(stage)
                return _in_stage(theirs, number if self.earlier_stages else None), rule.layout
        raise KeyError(ours)

    def to_ours(self, expected: Shapes, theirs: Mapping[str, Array]) -> LoadReport:
        """Convert their arrays to our names and match them with the expected names and shapes.

        Weights for which they have no name are reported as missing. `unexpected` has their names that are not ignored.
        """
        theirs = {self._current_name(name): array for name, array in theirs.items()}
        matched: dict[str, Array] = {}
        missing, mismatched, used = [], [], set()
        for name, shape in expected.items():
            source, layout = self._find(name)
            if source not in theirs:
                missing.append(f"{name} ({source})" if source else name)
                continue
            used.add(source)
            array = layout.to_ours(theirs[source])
            if array.shape == tuple(shape):
                matched[name] = array
            else:
                mismatched.append(ShapeMismatch(f"{name} ({source})", tuple(shape), array.shape))
        unexpected = [name for name in theirs if name not in used and not self._is_ignored(name)]
        return LoadReport(matched, missing, unexpected, mismatched)

    def to_theirs(self, ours: Mapping[str, Array]) -> dict[str, Array]:
        """Convert our arrays to their names. Raises KeyError for a name that they do not have."""
        renamed = {}
        for name, array in ours.items():
            theirs, layout = self.translate(name)
            if layout.to_theirs is None:
                raise KeyError(name)
            renamed[theirs] = layout.to_theirs(array)
        return renamed

    def _find(self, ours: str) -> tuple[str, Layout]:
        try:
            return self.translate(ours)
        except KeyError:
            return "", SAME

    def _current_name(self, theirs: str) -> str:
        for pattern, replacement in self.legacy_names:
            theirs = re.sub(pattern, replacement, theirs)
        return theirs

    def _is_ignored(self, theirs: str) -> bool:
        return any(re.fullmatch(pattern, theirs) for pattern in self.ignored)


def count_earlier_stages(shapes: Shapes) -> int:
    """Return the number of a cascade's stages before the last; 0 for a Faster R-CNN."""
    return len({name.split(".")[1] for name in shapes if name.startswith("earlier.")})


def _in_stage(name: str, stage: int | None) -> str:
    """Return a name with its parts such as {.N} for a stage of a cascade, or without them for None."""
    return re.sub(r"\{(.*?)\}", lambda part: "" if stage is None else part[1].replace("N", str(stage)), name)


def _find_variant(name: str, names: Collection[str]) -> str | None:
    """Return the name as it is among `names`: that of a Faster R-CNN or of a cascade's first stage; None if neither."""
    return next((variant for stage in (None, 0) if (variant := _in_stage(name, stage)) in names), None)


STATISTICS = {"_mean": "running_mean", "_variance": "running_var", "weight": "weight", "bias": "bias"}
"""Names of a norm's arrays: ours (Paddle's) -> torch's."""

EPSILON = 1e-5  # of our batch norms


def in_torch_resnet(prefix: str, norm: str = "bn") -> list[Rule]:
    """Return the rules for a backbone named as torch's ResNets. `prefix` begins every name, `norm` those of norms."""
    return [
        Rule(r"backbone\.stem\.conv\.weight", rf"{prefix}conv1.weight"),
        Rule(r"backbone\.stem\.norm\.(.+)", lambda m: f"{prefix}{norm}1.{STATISTICS[m[1]]}"),
        Rule(
            r"backbone\.res(\d)\.(\d+)\.(.+)", lambda m: f"{prefix}layer{int(m[1]) - 1}.{m[2]}.{_in_block(m[3], norm)}"
        ),
    ]


def _in_block(suffix: str, norm: str) -> str:
    """Convert conv2.norm._mean of a residual block to bn2.running_mean, shortcut.conv.weight to downsample.0.weight."""
    part, kind, name = suffix.split(".", 2)
    if part == "shortcut":
        return f"downsample.0.{name}" if kind == "conv" else f"downsample.1.{STATISTICS[name]}"
    if kind == "norm":
        return f"{norm}{part[-1]}.{STATISTICS[name]}"
    return f"{part}.{name.replace('offset.', 'conv_offset.')}"


def convert_batch_norm_epsilon(arrays: Mapping[str, Array], epsilon: float) -> dict[str, Array]:
    """Scale batch norm weights (torch's names) of another epsilon so that EPSILON computes the same output.

    Statistics are not changed. torchvision's published COCO_V1 detectors have an epsilon of 0.
    """
    scaled = dict(arrays)
    for name, variance in arrays.items():
        if name.endswith(".running_var"):
            weight = f"{name.removesuffix('running_var')}weight"
            factor = np.sqrt((variance.astype(np.float64) + EPSILON) / (variance.astype(np.float64) + epsilon))
            scaled[weight] = (arrays[weight] * factor).astype(arrays[weight].dtype)
    return scaled
