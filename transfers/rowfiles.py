"""Reading the rows of a batch that comes as lines of JSON or as CSV. What the rows mean is checked like any other's."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings

from bankcore.api import parse_json
from bankcore.errors import FieldError, Invalid, MalformedJson
from bankcore.money import AMOUNT_MINOR_MAX
from transfers.errors import BatchTooLarge
from transfers.orders import TransferOrder

# What an amount looks like in CSV, where there are no numbers; anything else stays text, and is refused as such.
_AMOUNT = re.compile(r"[1-9][0-9]{0,17}")
_WRONG_AMOUNTS = (
    (re.compile(r"-[0-9]+|0+"), "An amount is at least 1; from which account to which, the columns say."),
    (re.compile(r"0[0-9]+"), "Write the amount without leading zeros."),
    (re.compile(r"[1-9][0-9]*"), f"An amount is at most {AMOUNT_MINOR_MAX}."),
    (re.compile(r"[0-9]*[.,][0-9]*"), "An amount is in minor units (cents): no point and no comma."),
)
# A row of JSON is one line, and which one is said already.
_PLACE_IN_LINE = re.compile(r": line 1 (column \d+) \(char \d+\)$")
_NO_AMOUNT = "An amount is the digits 0 to 9 alone: no sign, no space, no separator, no currency."
_OTHER_DELIMITERS = (";", "\t", "|")
# metadata has no form in a cell.
_COLUMNS = tuple(name for name in TransferOrder.model_fields if name != "metadata")
_NEEDED = tuple(name for name in _COLUMNS if TransferOrder.model_fields[name].is_required())
WHY_CHARS_MAX = 500
_NAMES_SHOWN, _NAME_CHARS_SHOWN = 5, 30


class BrokenRow(str):
    """Stands in the place of a row that cannot be read, and says why."""


class WrongAmount(str):
    """What stands in CSV where an amount should: refused like any other text, and says why."""

    __slots__ = ()

    @property
    def why(self) -> str:
        return next((why for form, why in _WRONG_AMOUNTS if form.fullmatch(self)), _NO_AMOUNT)


@dataclass(slots=True)
class RowFile:
    """The rows, and the line on which each of them begins."""

    rows: list[Any] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    def add(self, row: Any, line: int) -> None:
        """Take one more row.

        Raises:
            BatchTooLarge: there are more than a batch may have; the rest is not read.
        """
        if len(self.rows) >= settings.BATCH_TRANSFERS_MAX:
            raise BatchTooLarge(f"At most {settings.BATCH_TRANSFERS_MAX:,} transfers come in one batch.")
        self.rows.append(row)
        self.lines.append(line)


def rows_of_ndjson(body: bytes) -> RowFile:
    """Read one JSON value a line; empty lines are skipped. A line that is no JSON becomes a broken row."""
    file = RowFile()
    for line, row in ndjson_rows(io.BytesIO(body.removeprefix(b"\xef\xbb\xbf"))):
        file.add(row, line)
    return file


def ndjson_rows(lines: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """Yield each row with its line, as rows_of_ndjson reads them; the lines come without a byte order mark."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = parse_json(line.rstrip(b"\r\n"))
            except MalformedJson as error:
                row = BrokenRow(_PLACE_IN_LINE.sub(r", at \1", error.detail))
            yield number, row


def rows_of_csv(body: bytes) -> RowFile:
    """Read rows under a line of field names; an empty cell is a field not given. A row of another width is broken.

    Raises:
        Invalid: it is not CSV in UTF-8 with commas, or its first line does not name the columns; says on which line.
    """
    file = RowFile()
    # Its own line ends, and no others that Unicode knows, are those of the file.
    for line, row in csv_rows(io.StringIO(_text(body), newline="")):
        file.add(row, line)
    return file


def csv_rows(lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    """Yield each row with the line on which it begins, as rows_of_csv reads them from text that is checked.

    Raises:
        Invalid: as rows_of_csv.
    """
    reader = csv.reader(lines, strict=True)
    begin = 1
    try:
        names = next(reader, None)
        if names is None:
            return
        _check_names(names)
        begin = reader.line_num + 1
        for cells in reader:
            if cells:
                yield begin, _row(names, cells)
            begin = reader.line_num + 1
    except csv.Error as error:
        raise malformed(begin, f"{error}.") from error


def _text(body: bytes) -> str:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise malformed(body.count(b"\n", 0, error.start) + 1, "This is not UTF-8.") from error
    if (nul := text.find("\0")) >= 0:
        raise malformed(text.count("\n", 0, nul) + 1, "The text holds NUL.")
    return text


def _check_names(names: list[str]) -> None:
    if len(names) == 1 and (other := next((d for d in _OTHER_DELIMITERS if d in names[0]), None)):
        raise malformed(1, f"The columns are separated by {other!r}; separate them by commas.")
    if len(set(names)) != len(names):
        raise malformed(1, "It names a column twice.")
    if why := _wrong_with(names):
        raise malformed(1, why)


def _wrong_with(names: list[str]) -> str:
    """Say what is wrong with the names of the columns, all at once. One without a name may stand there, if empty."""
    listed = ", ".join(_COLUMNS)
    if not any(names):
        return f"It is empty. The names of the columns stand here: {listed}."
    if not set(names) & {*_COLUMNS, "metadata"}:
        return f"It names no column that there is ({_shown(names)}); the first line holds the names: {listed}."
    unknown = [name for name in names if name and name not in _COLUMNS]
    missing = [name for name in _NEEDED if name not in names]
    found = []
    if "metadata" in unknown:
        unknown.remove("metadata")
        found.append("metadata cannot come in CSV: leave the column out, or send JSON.")
    if unknown:
        found.append(f"There is no column {_shown(unknown)}.")
    if missing:
        found.append(f"Without the column {', '.join(missing)} there is no transfer.")
    if unknown:
        found.append(f"Names are written exactly so, in small letters, without spaces: {listed}.")
    return " ".join(found)


def _shown(names: list[str]) -> str:
    shown = [repr(name[:_NAME_CHARS_SHOWN]) for name in names[:_NAMES_SHOWN]]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def malformed(line: int, why: str) -> Invalid:
    """Say on which line a file cannot be read, and why."""
    return Invalid(errors=[FieldError("body", "malformed_csv", f"Line {line}: {why}"[:WHY_CHARS_MAX])])


def _row(names: list[str], cells: list[str]) -> Any:
    if len(cells) != len(names):
        return BrokenRow(f"There are {len(cells)} cells under {len(names)} names.")
    row: dict[str, Any] = {name: cell for name, cell in zip(names, cells, strict=True) if cell}
    if amount := row.get("amount_minor"):
        row["amount_minor"] = int(amount) if _AMOUNT.fullmatch(amount) else WrongAmount(amount)
    return row
