"""Count and log the training images that cannot be used and are replaced; end the run if they are the majority."""

from collections.abc import Mapping, Sequence

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger

MAX_LOGGED = 10  # bad images that are logged one by one
MIN_READ = 20  # images to read before a majority of bad ones ends the run


class BadImages:
    """The bad images of a dataset. Not thread-safe: only the thread that consumes the batches may use it."""

    def __init__(self, image_count: int) -> None:
        self._is_read = np.zeros(image_count, bool)
        self._is_bad = np.zeros(image_count, bool)
        self._first_reason = ""

    @property
    def count(self) -> int:
        """The number of distinct bad images so far."""
        return int(self._is_bad.sum())

    def record(self, read: Sequence[int], bad: Mapping[int, str]) -> None:
        """Record the indices of the images read for a batch and, per bad image, the reason; log new bad ones.

        Raises UserError when more than half of the images read so far are bad, once at least MIN_READ images, or all
        of the dataset, have been read.
        """
        self._is_read[read] = True
        for index, reason in bad.items():
            if not self._is_bad[index]:
                self._is_bad[index] = True
                self._first_reason = self._first_reason or reason
                if self.count <= MAX_LOGGED:
                    suffix = "; further ones are only counted" if self.count == MAX_LOGGED else ""
                    get_logger().warning("replaced by another image: %s%s", reason, suffix)
        total = int(self._is_read.sum())
        if bad and total >= min(MIN_READ, len(self._is_read)) and 2 * self.count > total:
            raise UserError(mostly_bad_message(self.count, total, self._first_reason))

    def log_summary(self) -> None:
        """Log the number of bad images, if there were any."""
        if self.count:
            total = int(self._is_read.sum())
            get_logger().warning("unusable training images that were replaced: %d of the %d read", self.count, total)


def mostly_bad_message(bad: int, read: int, first_reason: str) -> str:
    """Return the message of the error that ends a run with mostly bad images."""
    return f"{bad} of {read} training images cannot be used, too many to replace; the first: {first_reason}"
