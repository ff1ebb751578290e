"""Columns of many rows as PostgreSQL's binary arrays, each written in a few steps for all of its values.

psycopg writes an array one value at a time, in Python, which costs a batch as much as its statements do. The types here
are those that batches are made of; every other list (empty, mixed, with a None in it) is left to psycopg.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from struct import Struct
from typing import Any
from uuid import UUID

import psycopg
from psycopg.abc import DumperKey, PyFormat
from psycopg.adapt import Dumper
from psycopg.postgres import types
from psycopg.pq import Format

# Dimensions, whether a value is missing, type of the values; length and lower bound of the one dimension.
_HEAD = Struct("!iiIii").pack
_LENGTH = Struct("!i").pack
_INT8 = Struct("!iq").pack
_UUID_LENGTH = _LENGTH(16)
_BOOL = {False: _LENGTH(1) + b"\0", True: _LENGTH(1) + b"\1"}


class Packed:
    """One column, written down: the type of the array, and its bytes."""

    __slots__ = ("data", "oid")

    def __init__(self, oid: int, data: bytes) -> None:
        self.oid = oid
        self.data = data


def pack(value: Any) -> Any:
    """Write a list down as one column; what is no list of one of these types comes back as it is.

    Whole numbers are always 8 bytes wide, so that a statement is not prepared anew for the size of its numbers.
    """
    if type(value) is not list or not value:
        return value
    kinds = set(map(type, value))
    known = _KINDS.get(kinds.pop()) if len(kinds) == 1 else None
    if known is None:
        return value
    oid, array_oid, body = known
    try:
        return Packed(array_oid, _HEAD(1, 0, oid, len(value), 1) + body(value))
    except struct.error:
        # A number of more than 8 bytes: the database says so.
        return value


def pack_all(params: Sequence[Any] | Mapping[str, Any]) -> Sequence[Any] | Mapping[str, Any]:
    """Write every list among a statement's parameters down as a column."""
    if isinstance(params, Mapping):
        return {name: pack(value) for name, value in params.items()}
    return [pack(value) for value in params]


def _uuids(values: Sequence[UUID]) -> bytes:
    return _UUID_LENGTH.join([b"", *[value.int.to_bytes(16, "big") for value in values]])


def _int8s(values: Sequence[int]) -> bytes:
    return b"".join([_INT8(8, value) for value in values])


def _texts(values: Sequence[str]) -> bytes:
    return _byteas([value.encode() for value in values])


def _byteas(values: Sequence[bytes]) -> bytes:
    lengths = set(map(len, values))
    if len(lengths) == 1:
        return _LENGTH(lengths.pop()).join([b"", *values])
    return b"".join([part for value in values for part in (_LENGTH(len(value)), value)])


def _bools(values: Sequence[bool]) -> bytes:
    return b"".join([_BOOL[value] for value in values])


def _kind(name: str, body: Callable[[Any], bytes]) -> tuple[int, int, Callable[[Any], bytes]]:
    return types[name].oid, types[name].array_oid, body


_KINDS: Mapping[type, tuple[int, int, Callable[[Any], bytes]]] = {
    UUID: _kind("uuid", _uuids),
    int: _kind("int8", _int8s),
    str: _kind("text", _texts),
    bytes: _kind("bytea", _byteas),
    bool: _kind("bool", _bools),
}


class _PackedDumper(Dumper):
    format = Format.BINARY

    def get_key(self, obj: Packed, format: PyFormat) -> DumperKey:
        return (Packed, obj.oid)  # type: ignore[return-value]  # psycopg's own keys are of classes, its use of them is not.

    def upgrade(self, obj: Packed, format: PyFormat) -> "_PackedDumper":
        dumper = type(self)(self.cls)
        dumper.oid = obj.oid
        return dumper

    def dump(self, obj: Packed) -> bytes:
        return obj.data


# For connections made from here on: every app's models import this, by way of bankcore.database.
psycopg.adapters.register_dumper(Packed, _PackedDumper)
