"""Reading the rows of a batch that comes as lines of JSON or as CSV. What the rows mean is checked like any other's."""

import csv
import re
from typing import Any

from bankcore.api import parse_json
from bankcore.errors import FieldError, Invalid, MalformedJson

# What an amount looks like in CSV, where there are no numbers; anything else stays text, and is refused as such.
_AMOUNT = re.compile(r"[1-9][0-9]{0,17}")


def rows_of_ndjson(body: bytes) -> list[Any]:
    """Read one JSON value a line; empty lines are skipped.

    Raises:
        MalformedJson: naming the line.
    """
    rows = []
    for number, line in enumerate(body.split(b"\n"), start=1):
        if line.strip():
            try:
                rows.append(parse_json(line))
            except MalformedJson as error:
                raise MalformedJson(f"Line {number}: {error.detail}") from error
    return rows


def rows_of_csv(body: bytes) -> list[Any]:
    """Read rows under a line of field names; an empty cell is a field not given.

    Raises:
        Invalid: it is not CSV in UTF-8, names a column twice, or a row has more cells than there are columns.
    """
    try:
        text = body.decode("utf-8-sig")
        if "\0" in text:
            raise ValueError("The text holds NUL.")
        lines = [line for line in csv.reader(text.splitlines(keepends=True), strict=True) if line]
    except (ValueError, csv.Error) as error:
        raise Invalid(errors=[FieldError("body", "malformed_csv", str(error)[:200])]) from error
    names, *rows = lines or [[]]
    if len(set(names)) != len(names):
        raise Invalid(errors=[FieldError("body", "malformed_csv", "The first line names a column twice.")])
    if uneven := [place for place, cells in enumerate(rows) if len(cells) != len(names)]:
        raise Invalid(
            errors=[FieldError(f"transfers.{uneven[0]}", "malformed_csv", f"A row has {len(names)} cells here.")]
        )
    return [_row(dict(zip(names, cells, strict=True))) for cells in rows]


def _row(cells: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {name: cell for name, cell in cells.items() if cell}
    if _AMOUNT.fullmatch(row.get("amount_minor", "")):
        row["amount_minor"] = int(row["amount_minor"])
    return row
