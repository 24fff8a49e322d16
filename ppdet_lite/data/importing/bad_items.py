"""Items of a source that cannot be read: the first one ends the import, or all of them are left out and listed."""

import contextlib
import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from ppdet_lite.core.errors import UserError
from ppdet_lite.storage.files import write_text

FILE = "skipped.csv"
_MESSAGE = re.compile(r"(.+?)(?::([0-9]+))?: (.+)")  # file, line if it has one, reason


class BadItem(UserError):
    """An item that ends the import; the message names the option that leaves it out."""


class BadItems:
    """The items that were left out, or none of them: `skip` determines whether a bad item ends the import."""

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.messages: list[str] = []

    @contextlib.contextmanager
    def item(self) -> Iterator[None]:
        """Leave out the item that a block reads if it raises UserError. Raises BadItem if items are not skipped."""
        try:
            yield
        except BadItem:  # of an item inside this one
            raise
        except UserError as error:
            if not self.skip:
                raise BadItem(f"{error}; or leave it out with --skip-bad") from None
            self.messages.append(str(error))

    def remark(self) -> str:
        """Return the end of a message, how many items were left out and the first of them; "" if none was."""
        count = f"{len(self.messages)} items were" if len(self.messages) != 1 else "1 item was"
        return f"; {count} left out by --skip-bad, the first: {self.messages[0]}" if self.messages else ""

    def write(self, folder: Path) -> None:
        """Write file, line and reason of each item that was left out, unless there are none."""
        if not self.messages:
            return
        table = io.StringIO(newline="")
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(("file", "line", "reason"))
        for message in self.messages:
            match = _MESSAGE.fullmatch(message)
            writer.writerow(("", "", message) if match is None else match.groups())
        write_text(folder / FILE, table.getvalue())
