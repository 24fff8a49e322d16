"""Conversion of rows to CSV."""

import csv
import io
from collections.abc import Sequence
from typing import Any


def csv_text(rows: Sequence[dict[str, Any]], columns: Sequence[str] = ()) -> str:
    """Return rows, which all have the same keys, as CSV with a header. `columns` is the header if there are no rows."""
    text = io.StringIO()
    columns = list(rows[0]) if rows else columns
    if columns:
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
