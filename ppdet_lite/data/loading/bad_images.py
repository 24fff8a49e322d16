"""Training images that cannot be used and are replaced: counted, named, and an end to it where they are most."""

from collections.abc import Mapping, Sequence

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger

NAMED = 10  # bad images that get a line of their own
JUDGED = 20  # images to look at before most of them can be called bad


class BadImages:
    """What was met among so many images of a dataset. For one thread alone, that which takes the batches."""

    def __init__(self, images: int) -> None:
        self._met = np.zeros(images, bool)
        self._is_bad = np.zeros(images, bool)
        self._first = ""

    @property
    def count(self) -> int:
        """How many different images were bad so far."""
        return int(self._is_bad.sum())

    def note(self, met: Sequence[int], bad: Mapping[int, str]) -> None:
        """Note the images that a batch took looking at, and why those of them that are bad are; log new ones.

        Raises UserError once more than half of the images met, JUDGED or all of them at least, are bad.
        """
        self._met[met] = True
        for index, reason in bad.items():
            if not self._is_bad[index]:
                self._is_bad[index] = True
                self._first = self._first or reason
                if self.count <= NAMED:
                    rest = "; further ones are only counted" if self.count == NAMED else ""
                    get_logger().warning("replaced by another image: %s%s", reason, rest)
        met_in_all = int(self._met.sum())
        if bad and met_in_all >= min(JUDGED, len(self._met)) and 2 * self.count > met_in_all:
            raise UserError(mostly_bad(self.count, met_in_all, self._first))

    def tell(self) -> None:
        """Log how many there were, if any."""
        if self.count:
            met = int(self._met.sum())
            get_logger().warning("%d of %d training images met could not be used and were replaced", self.count, met)


def mostly_bad(bad: int, met: int, first: str) -> str:
    """The line that ends a run."""
    return f"{bad} of {met} training images cannot be used, too many to be replaced; the first: {first}"
