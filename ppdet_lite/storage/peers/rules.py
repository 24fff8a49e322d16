"""How another project names and lays out the weights of a detector: rules from our names to theirs, for both ways."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ppdet_lite.storage.weights import LoadReport, MisShaped

Array = np.ndarray


class Layout(NamedTuple):
    """How an array of theirs becomes ours, and back."""

    to_ours: Callable[[Array], Array]
    to_theirs: Callable[[Array], Array]


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
    classifier: their name of the bias of the box head's classifier, K + 1 numbers.
    ignored: patterns of their names that hold nothing which a detector needs.
    signs: their names that every file of a detector has.
    """

    title: str
    rules: Sequence[Rule]
    classifier: str
    ignored: Sequence[str] = ()
    signs: Sequence[str] = ()

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

    def to_ours(self, wanted: Mapping[str, tuple[int, ...]], theirs: Mapping[str, Array]) -> LoadReport:
        """Their arrays under our names, and what does not fit the wanted names and shapes or is left over.

        Names that they do not have are reported as missing.
        """
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
            renamed[theirs] = layout.to_theirs(array)
        return renamed

    def _find(self, ours: str) -> tuple[str, Layout]:
        try:
            return self.rule(ours)
        except KeyError:
            return "", SAME

    def _is_ignored(self, theirs: str) -> bool:
        return any(re.fullmatch(pattern, theirs) for pattern in self.ignored)
