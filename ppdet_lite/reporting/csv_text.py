"""Rows of numbers as CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Any


def csv_text(rows: Sequence[dict[str, Any]], columns: Sequence[str] = ()) -> str:
    """Rows of the same keys with a heading, which is `columns` for no rows."""
    text = io.StringIO()
    columns = list(rows[0]) if rows else columns
    if columns:
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
