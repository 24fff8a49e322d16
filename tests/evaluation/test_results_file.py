"""Reading results files: the fast parser, and the strict one for invalid files."""

import numpy as np
import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.evaluation.results_file import read_results
from tests.tiny_run import tiny_dataset

GOOD = '{"image_id": 7, "category_id": 5, "bbox": [1, 2.5, 3, 4e0], "score": 1, "segmentation": {"counts": "x"}}'


def read(folder, content):
    (folder / "r.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_results(folder / "r.json", tiny_dataset(folder))


@pytest.mark.parametrize(
    "content",
    [
        f"[{GOOD}]",
        f'[{GOOD[:-1]}, "loss": NaN}}]',  # no JSON, but Python writes it
        f"[{GOOD}]".encode("utf-16"),
    ],
)
def test_integers_and_additional_keys_are_accepted(tmp_path, content):
    found = read(tmp_path, content)
    assert [part.tolist() for part in found] == [[7], [5], [[1.0, 2.5, 3.0, 4.0]], [1.0]]
    assert [part.dtype for part in found] == [np.int64, np.int64, np.float64, np.float64]


def test_no_detection_at_all(tmp_path):
    assert [part.shape for part in read(tmp_path, "[]")] == [(0,), (0,), (0, 4), (0,)]


@pytest.mark.parametrize(
    "change",
    [
        ('"score": 1', '"score": Infinity'),
        ('"score": 1', '"score": 1e999'),
        ('"score": 1', '"score": true'),
        ('"image_id": 7', '"image_id": 7.0'),
        ('"image_id": 7', f'"image_id": {2**70}'),
        ('"image_id": 7, ', ""),
        ("[1, 2.5, 3, 4e0]", "[1, 2.5, 3, 4e0, 5]"),
    ],
)
def test_an_invalid_record_is_reported_with_its_number(tmp_path, change):
    with pytest.raises(UserError, match=r"r\.json: entry 2 is not \{image_id, category_id, bbox"):
        read(tmp_path, f"[{GOOD}, {GOOD.replace(*change)}]")


def test_invalid_utf8(tmp_path):
    with pytest.raises(UserError, match=r"r\.json are not JSON"):
        read(tmp_path, b"[\xff\xfe\xfa")
