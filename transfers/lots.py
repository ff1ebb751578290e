"""Reading a file of any size as lots that fit a batch each: one lot in memory at a time, cut alike each time."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import file_digest
from io import BufferedReader
from typing import Any, BinaryIO, cast

from django.conf import settings
from pydantic import ValidationError

from bankcore.api import field_errors, parse_json
from bankcore.errors import BankError, FieldError, Invalid, PayloadTooLarge
from transfers.orders import BatchOrder
from transfers.rowfiles import csv_rows, malformed, ndjson_rows

FORMATS = {".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "json"}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class FileChanged(BankError):
    """Somebody has written to the file while it was read."""

    code = "file_changed"
    title = "The file has changed while it was read"
    detail = "What is in it is not what was looked at. Wait until nobody writes to it, and begin again."


@dataclass(slots=True)
class Lot:
    """The rows of one batch, and where in the file each begins: its line, or in JSON its number among the rows."""

    number: int
    rows: list[Any] = field(default_factory=list)
    places: list[int] = field(default_factory=list)


@dataclass(slots=True)
class RowSource:
    """A file of rows, open for reading in bytes from the beginning as often as need be, in one of the FORMATS."""

    file: BinaryIO
    format: str
    digest: str = ""
    lots_total: int = 0
    rows_total: int = 0
    # A file of JSON may say so itself.
    atomic: bool = False
    _state: tuple[int, int] = (0, 0)

    def survey(self) -> None:
        """Read the whole file once: learn its SHA-256 and how many rows and lots there are.

        Raises:
            Invalid: it cannot be read to its end, or has no rows; says on which line.
            PayloadTooLarge: it is JSON, which is read whole, and larger than BATCH_BYTES_MAX.
        """
        self._state = self._now()
        self.file.seek(0)
        self.digest = file_digest(cast("BufferedReader", self.file), "sha256").hexdigest()
        for lot in self.lots():
            self.lots_total, self.rows_total = lot.number, self.rows_total + len(lot.rows)
        if not self.rows_total:
            raise Invalid(errors=[FieldError("transfers", "too_short", "There is no row.")])

    @property
    def by_line(self) -> bool:
        return self.format != "json"

    def _rows_of_json(self) -> list[Any]:
        """Read a file of JSON whole, as `POST batches` takes it."""
        self.file.seek(0)
        body = self.file.read(settings.BATCH_BYTES_MAX + 1)
        if len(body) > settings.BATCH_BYTES_MAX:
            raise PayloadTooLarge(
                f"JSON is read whole, and at most {settings.BATCH_BYTES_MAX:,} bytes. Write one row a line (NDJSON) "
                "instead: jq -c '.transfers[]' FILE > FILE.ndjson"
            )
        try:
            order = BatchOrder.model_validate(parse_json(body.removeprefix(_BYTE_ORDER_MARK)))
        except ValidationError as error:
            raise Invalid(errors=field_errors(error)) from error
        self.atomic = order.atomic and "atomic" in order.model_fields_set
        return order.transfers

    def lots(self) -> Iterator[Lot]:
        """Yield the lots, each of at most BATCH_TRANSFERS_MAX rows and about BATCH_BYTES_MAX bytes.

        Raises:
            Invalid: the rest cannot be read.
            FileChanged: it is not the file that was surveyed.
        """
        self.file.seek(0)
        lines = _Lines(self.file)
        if self.format == "json":
            numbered: Iterable[tuple[int, Any]] = enumerate(self._rows_of_json(), start=1)
        elif self.format == "csv":
            numbered = csv_rows(lines.text())
        else:
            numbered = ndjson_rows(lines.raw())
        lot = Lot(1)
        for place, row in numbered:
            lines.end_row()
            lot.rows.append(row)
            lot.places.append(place)
            if len(lot.rows) >= settings.BATCH_TRANSFERS_MAX or lines.lot_bytes >= settings.BATCH_BYTES_MAX:
                self._check_unchanged()
                yield lot
                lot, lines.lot_bytes = Lot(lot.number + 1), 0
        self._check_unchanged()
        if lot.rows:
            yield lot

    def _now(self) -> tuple[int, int]:
        state = os.fstat(self.file.fileno())
        return state.st_size, state.st_mtime_ns

    def _check_unchanged(self) -> None:
        if self._now() != self._state:
            raise FileChanged


class _Lines:
    """The lines of a file, checked one by one: UTF-8 without NUL, and none, and no row, so long that it is no row."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._longest = settings.REQUEST_BYTES_MAX
        self._number = self._row_bytes = self.lot_bytes = 0

    def end_row(self) -> None:
        self.lot_bytes += self._row_bytes
        self._row_bytes = 0

    def raw(self) -> Iterator[bytes]:
        return (line for line, _ in self._checked(iter(lambda: self._file.readline(self._longest + 1), b"")))

    def text(self) -> Iterator[str]:
        return (text for _, text in self._checked(self._lines_of_csv()))

    def _lines_of_csv(self) -> Iterator[bytes]:
        """Yield lines as they are in CSV, where a carriage return alone ends one as well."""
        rest = b""
        while part := self._file.readline(self._longest + 1):
            *lines, rest = (rest + part).splitlines(keepends=True)
            yield from lines
            # The end of a line may be cut in two, and what is too long is for the check to find.
            if rest.endswith(b"\n") or len(rest) > self._longest:
                yield rest
                rest = b""
        if rest:
            yield rest

    def _checked(self, lines: Iterable[bytes]) -> Iterator[tuple[bytes, str]]:
        for line in lines:
            self._number += 1
            self._row_bytes += len(line) if line.strip() else 0
            if self._number == 1:
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if self._row_bytes > self._longest:
                raise malformed(self._number, f"A row has at most {self._longest:,} bytes; a quote may not be closed.")
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise malformed(self._number, "This is not UTF-8.") from error
            if "\0" in text:
                raise malformed(self._number, "The text holds NUL.")
            yield line, text
