"""Columns written down in one go arrive in the database as what they were."""

from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.adapt import PyFormat, Transformer

from bankcore.columns import Packed, pack
from bankcore.database import execute, fetch_all

COLUMNS = {
    "uuid": st.uuids(),
    "bigint": st.integers(min_value=-(2**63), max_value=2**63 - 1),
    "text": st.text(st.characters(exclude_characters="\x00", exclude_categories=("Cs",))),
    "bytea": st.binary(max_size=40),
    "boolean": st.booleans(),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_is_written_as_psycopg_writes_it(name):
    @given(st.lists(COLUMNS[name], min_size=1, max_size=20))
    def check(values):
        packed = pack(values)
        assert isinstance(packed, Packed)
        if name == "bigint":  # psycopg takes the narrowest type that holds them all.
            numbers = [packed.data[at : at + 8] for at in range(24, len(packed.data), 12)]
            assert [int.from_bytes(number, signed=True) for number in numbers] == values
        else:
            assert bytes(Transformer().dump_sequence([values], [PyFormat.BINARY])[0]) == packed.data

    check()


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("uuid", [uuid4(), UUID(int=0)]),
        ("bigint", [2**63 - 1, -(2**63), 0]),
        ("smallint", [1, -1]),
        ("int", [2**31 - 1]),
        ("text", ["", "ä€😀", "NULL", '{"a"}', "same", "same"]),
        ("bytea", [b"\x00\xff", b""]),
        ("boolean", [True, False]),
        ("text", ["a", None]),
        ("bigint", []),
    ],
)
def test_a_column_arrives_as_it_was(name, values):
    assert fetch_all(f"SELECT %b::{name}[]", [values])[0][0] == values
    assert fetch_all(f"SELECT %(it)b::{name}[]", {"it": values})[0][0] == values


@pytest.mark.django_db
def test_a_number_that_does_not_fit_is_refused_by_the_database_and_not_cut_off():
    with pytest.raises(Exception, match="out of range"):
        execute("SELECT %b::smallint[]", [[2**15]])


@pytest.mark.parametrize("value", [[], [None], [2**63], ["a", None], ["a", 1], [[1]], ("a",), "a", 1, None])
def test_what_is_no_column_of_one_of_the_types_is_left_to_psycopg(value):
    assert pack(value) is value
