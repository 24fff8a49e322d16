"""How another project names and lays out the weights of a detector: rules from our names to theirs, for both ways."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ppdet_lite.storage.weights import LoadReport, MisShaped

Array = np.ndarray
Shapes = Mapping[str, tuple[int, ...]]


class Layout(NamedTuple):
    """How an array of theirs becomes ours, and back."""

    to_ours: Callable[[Array], Array]
    to_theirs: Callable[[Array], Array] | None  # None: nobody writes their files


def _transposed(array: Array) -> Array:
    return np.ascontiguousarray(array.T)


SAME = Layout(lambda array: array, lambda array: array)
TRANSPOSED = Layout(_transposed, _transposed)  # of a linear layer: Paddle has [in, out], torch [out, in]


@dataclass(frozen=True)
class Rule:
    """Our names that match a pattern are theirs by a template (as in `re.sub`), in another layout perhaps."""

    ours: str
    theirs: str | Callable[[re.Match[str]], str]
    layout: Layout = SAME

    def name(self, ours: str) -> str | None:
        """Their name, None where the rule does not speak of ours."""
        match = re.fullmatch(self.ours, ours)
        if match is None:
            return None
        return match.expand(self.theirs) if isinstance(self.theirs, str) else self.theirs(match)


@dataclass(frozen=True)
class Peer:
    """Another project's naming.

    rules: the first that speaks of a name counts.
    classifier: their name of the bias of the box head's classifier.
    ignored: patterns of their names that hold nothing which a detector needs.
    signs: their names that every file of a detector has.
    older: (pattern, replacement) of names as older versions wrote them.
    class_count: how many classes a classifier of so many outputs tells apart.
    """

    title: str
    rules: Sequence[Rule]
    classifier: str
    ignored: Sequence[str] = ()
    signs: Sequence[str] = ()
    older: Sequence[tuple[str, str]] = ()
    class_count: Callable[[int], int] = lambda outputs: outputs - 1

    def recognises(self, names: Collection[str]) -> bool:
        """Whether names of a file are of this naming."""
        return all(sign in names for sign in self.signs)

    def rule(self, ours: str) -> tuple[str, Layout]:
        """Their name of a weight of ours, and its layout. Raises KeyError where they have none."""
        for rule in self.rules:
            theirs = rule.name(ours)
            if theirs is not None:
                return theirs, rule.layout
        raise KeyError(ours)

    def to_ours(self, wanted: Shapes, theirs: Mapping[str, Array]) -> LoadReport:
        """Their arrays under our names, and what does not fit the wanted names and shapes or is left over.

        Names that they do not have are reported as missing.
        """
        theirs = {self._present_name(name): array for name, array in theirs.items()}
        matched: dict[str, Array] = {}
        missing, mis_shaped, used = [], [], set()
        for name, shape in wanted.items():
            source, layout = self._find(name)
            if source not in theirs:
                missing.append(f"{name} ({source})" if source else name)
                continue
            used.add(source)
            array = layout.to_ours(theirs[source])
            if array.shape == tuple(shape):
                matched[name] = array
            else:
                mis_shaped.append(MisShaped(f"{name} ({source})", tuple(shape), array.shape))
        left = [name for name in theirs if name not in used and not self._is_ignored(name)]
        return LoadReport(matched, missing, left, mis_shaped)

    def to_theirs(self, ours: Mapping[str, Array]) -> dict[str, Array]:
        """Our arrays under their names. Raises KeyError for a name that they do not have."""
        renamed = {}
        for name, array in ours.items():
            theirs, layout = self.rule(name)
            if layout.to_theirs is None:
                raise KeyError(name)
            renamed[theirs] = layout.to_theirs(array)
        return renamed

    def _find(self, ours: str) -> tuple[str, Layout]:
        try:
            return self.rule(ours)
        except KeyError:
            return "", SAME

    def _present_name(self, theirs: str) -> str:
        for pattern, replacement in self.older:
            theirs = re.sub(pattern, replacement, theirs)
        return theirs

    def _is_ignored(self, theirs: str) -> bool:
        return any(re.fullmatch(pattern, theirs) for pattern in self.ignored)


STATISTICS = {"_mean": "running_mean", "_variance": "running_var", "weight": "weight", "bias": "bias"}
"""Our names of a norm's arrays -> torch's."""


def in_torch_resnet(prefix: str, norm: str = "bn") -> list[Rule]:
    """The backbone and the C4 head as torch's ResNets name them, below a prefix; `norm` is the stem of norms' names."""
    return [
        Rule(r"backbone\.stem\.conv\.weight", rf"{prefix}conv1.weight"),
        Rule(r"backbone\.stem\.norm\.(.+)", lambda m: f"{prefix}{norm}1.{STATISTICS[m[1]]}"),
        Rule(
            r"backbone\.res(\d)\.(\d+)\.(.+)", lambda m: f"{prefix}layer{int(m[1]) - 1}.{m[2]}.{_in_block(m[3], norm)}"
        ),
    ]


def _in_block(rest: str, norm: str) -> str:
    """A weight of a residual block: conv2.norm._mean is bn2.running_mean, shortcut.conv.weight downsample.0.weight."""
    part, kind, name = rest.split(".", 2)
    if part == "shortcut":
        return f"downsample.0.{name}" if kind == "conv" else f"downsample.1.{STATISTICS[name]}"
    if kind == "norm":
        return f"{norm}{part[-1]}.{STATISTICS[name]}"
    return f"{part}.{name.replace('offset.', 'conv_offset.')}"


def with_our_epsilon(arrays: Mapping[str, Array], epsilon: float, ours: float = 1e-5) -> dict[str, Array]:
    """Arrays of torch's naming whose batch norms have another epsilon, so that with ours they say the same.

    Statistics stay, weights are scaled. torchvision's published COCO_V1 detectors have an epsilon of 0.
    """
    scaled = dict(arrays)
    for name, variance in arrays.items():
        if name.endswith(".running_var"):
            weight = f"{name.removesuffix('running_var')}weight"
            factor = np.sqrt((variance.astype(np.float64) + ours) / (variance.astype(np.float64) + epsilon))
            scaled[weight] = (arrays[weight] * factor).astype(arrays[weight].dtype)
    return scaled
