"""Chain append-only tables by hashes, block by block, behind the writers: nobody waits for it, and it waits for nobody.

A row's hash is SHA-256 over PostgreSQL's binary form of its columns (record_send: count, then type, length and bytes of
each). A block's digest is SHA-256 over its rows' hashes in id order, and its head binds it to the block before. So no
row and no block can be changed, added, removed or swapped without changing every later head, and one head kept
elsewhere vouches for all that came before it.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import NamedTuple

from django.db import transaction

from bankcore.database import execute, fetch_all

log = logging.getLogger(__name__)

SEAL_LOCK = 7217
BLOCK_ROWS_MAX = 1000
# In one call: a chain that is far behind (a first start on an old database) catches up over several.
BLOCKS_MAX = 200
BEFORE_EVERY_ID = -(2**63)
LEAF_BYTES = 12


@dataclass(frozen=True, slots=True)
class Chain:
    """A table whose rows are chained. `forms` are its byte forms, the newest last; blocks remember which they have.

    A form lists every column that means something, with a cast that stays when the column's own type changes. A column
    that is added later asks for a further form: old blocks go on being checked in theirs.
    """

    table: str
    noun: str
    forms: tuple[str, ...]

    def row_hash(self, form: int) -> str:
        """SQL of the hash of a row `t` in this form."""
        return f"sha256(record_send(ROW({self.forms[form - 1]})))"


EVENTS = Chain(
    "messaging_event",
    "event",
    (
        "t.id, t.type::text, t.partition_key::text, t.subject::text, t.data, t.request_id::text, t.actor::text,"
        " t.created_at",
    ),
)
AUDIT = Chain(
    "messaging_auditentry",
    "audit entry",
    ("t.id, t.at, t.actor::text, t.action::text, t.subject::text, t.reason::text, t.details, t.request_id::text",),
)
CHAINS: tuple[Chain, ...] = (EVENTS, AUDIT)


class ChainBroken(Exception):
    """The chain's last block is not where its mark says. The sealer never mends a chain: the books proof tells."""


@dataclass(frozen=True, slots=True)
class Block:
    """What a head is computed from."""

    chain: str
    number: int
    form: int
    after_id: int
    last_id: int
    row_count: int
    digest: bytes
    leaves: bytes
    sealed_at: datetime

    def head(self, previous: bytes) -> bytes:
        """SHA-256 over the block's line of text, its digest, the hash of its leaves, and the head before it."""
        line = (
            f"{self.chain}|{self.number}|{self.form}|{self.after_id}|{self.last_id}|{self.row_count}"
            f"|{self.sealed_at.astimezone(UTC).isoformat(timespec='microseconds')}|"
        )
        return sha256(line.encode() + self.digest + sha256(self.leaves).digest() + previous).digest()


def seal(chains: Iterable[Chain]) -> Mapping[str, int]:
    """Chain what is new in each table, and return how many rows that was.

    Takes no lock that a writer could wait for, and does not wait for writers: rows of a transaction that has not ended,
    and those with ids above, are left for a later call. Repeating is harmless. Of two sealers one does nothing.
    """
    sealed = {}
    for chain in chains:
        try:
            sealed[chain.table] = _seal_chain(chain)
        except ChainBroken as error:
            log.error("%s is not sealed any further: %s", chain.table, error)
            sealed[chain.table] = 0
    return sealed


def _seal_chain(chain: Chain) -> int:
    if not _settle(chain):
        return 0
    total = 0
    for _ in range(BLOCKS_MAX):
        rows = _seal_block(chain)
        total += rows
        if rows < BLOCK_ROWS_MAX:
            break
    return total


# -- how far rows may be sealed ----------------------------------------------------------------------------------------

_TRY_LOCK = "SELECT pg_try_advisory_xact_lock(%s)"
_MARK = "INSERT INTO messaging_sealmark (chain, head, holders) VALUES (%s, %s, '{}') ON CONFLICT DO NOTHING"
# The moment first, the id after it: what was committed by then has an id up to this one.
_SAMPLE = (
    "SELECT statement_timestamp(), coalesce(pg_sequence_last_value(pg_get_serial_sequence(%s, 'id')::regclass), 0)"
)
_HOLDERS = """
SELECT array_agg(DISTINCT virtualtransaction::text)
  FROM pg_locks
 WHERE locktype = 'relation' AND relation = pg_get_serial_sequence(%s, 'id')::regclass
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND mode = 'RowExclusiveLock' AND pid IS DISTINCT FROM pg_backend_pid()
"""
_SETTLE = """
UPDATE messaging_sealmark
   SET settled_id = CASE WHEN %(free)s THEN %(id)s WHEN holders && %(holders)s THEN settled_id ELSE sampled_id END,
       settled_at = CASE WHEN %(free)s THEN %(at)s WHEN holders && %(holders)s THEN settled_at ELSE sampled_at END,
       sampled_id = CASE WHEN holders && %(holders)s THEN sampled_id ELSE %(id)s END,
       sampled_at = CASE WHEN holders && %(holders)s THEN sampled_at ELSE %(at)s END,
       holders = CASE WHEN holders && %(holders)s THEN holders ELSE %(holders)s END
 WHERE chain = %(chain)s
"""


@transaction.atomic
def _settle(chain: Chain) -> bool:
    """Move the id up to which every row is there or will never be; say whether this call may seal.

    Ids are given out before the commit, so a lower id may appear later. But whoever has taken one holds a lock on the
    sequence until the transaction ends: once all who held it when `sampled_id` was the newest are gone, no id up to
    there is open any more. (The lock is taken before the id, which no snapshot's xmin can say: see the decision.)
    """
    if not fetch_all(_TRY_LOCK, (SEAL_LOCK,))[0][0]:
        return False
    execute(_MARK, (chain.table, bytes(32)))
    at, newest = fetch_all(_SAMPLE, (chain.table,))[0]
    # After the sample, in a statement of its own.
    holders = fetch_all(_HOLDERS, (chain.table,))[0][0] or []
    execute(_SETTLE, {"chain": chain.table, "free": not holders, "id": newest, "at": at, "holders": holders})
    return True


# -- one block ---------------------------------------------------------------------------------------------------------

_LAST = """
SELECT m.number, m.head, m.settled_id, s.last_id, s.head, clock_timestamp()
  FROM messaging_sealmark m LEFT JOIN messaging_seal s ON s.chain = m.chain AND s.number = m.number
 WHERE m.chain = %s FOR UPDATE OF m
"""
_INSERT = """
INSERT INTO messaging_seal (chain, number, form, after_id, last_id, row_count, digest, leaves, sealed_at, head)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""
_ADVANCE = """
UPDATE messaging_sealmark
   SET number = coalesce(%(number)s, number), head = coalesce(%(head)s, head),
       sealed_through = CASE WHEN %(all)s THEN settled_at ELSE sealed_through END
 WHERE chain = %(chain)s
"""


def leaf(row_hash: str) -> str:
    """SQL of what a block remembers of each row `r`, given the block's `last_id`."""
    return f"int4send(least(last_id - id, 2147483647)::int) || substr({row_hash}, 1, 8)"


@transaction.atomic
def _seal_block(chain: Chain) -> int:
    if not fetch_all(_TRY_LOCK, (SEAL_LOCK,))[0][0]:
        return 0
    number, head, settled_id, last_id, last_head, now = fetch_all(_LAST, (chain.table,))[0]
    if number and head != last_head:
        raise ChainBroken(f"the mark names block {number}, which is missing or another")
    after_id = last_id if number else BEFORE_EVERY_ID
    form = len(chain.forms)
    found = fetch_all(
        f"""
        WITH taken AS MATERIALIZED (
            SELECT t.id, {chain.row_hash(form)} AS hash, max(t.id) OVER () AS last_id
              FROM (SELECT * FROM {chain.table} WHERE id > %s AND id <= %s ORDER BY id LIMIT {BLOCK_ROWS_MAX}) AS t)
        SELECT count(*)::int, max(id), sha256(string_agg(hash, ''::bytea ORDER BY id)),
               string_agg({leaf("hash")}, ''::bytea ORDER BY id)
          FROM taken
        """,
        (after_id, settled_id),
    )
    rows, last_id, digest, leaves = found[0]
    advanced: dict[str, object] = {"chain": chain.table, "number": None, "head": None, "all": rows < BLOCK_ROWS_MAX}
    if rows:
        block = Block(chain.table, number + 1, form, after_id, last_id, rows, digest, leaves, now)
        advanced |= {"number": block.number, "head": block.head(head)}
        values = (block.chain, block.number, form, after_id, last_id, rows, digest, leaves, now, advanced["head"])
        execute(_INSERT, values)
    execute(_ADVANCE, advanced)
    return int(rows)


# -- heads -------------------------------------------------------------------------------------------------------------


class Head(NamedTuple):
    """The newest block of a chain: its number, its head in hex, and the last id it covers."""

    number: int
    hex: str
    last_id: int


def heads() -> dict[str, Head]:
    """Each chain's newest block. Keep the hex of its head where the database's owner cannot write."""
    rows = fetch_all(
        "SELECT DISTINCT ON (chain) chain, number, encode(head, 'hex'), last_id"
        "  FROM messaging_seal ORDER BY chain, number DESC"
    )
    return {chain: Head(number, head, last_id) for chain, number, head, last_id in rows}


class Lag(NamedTuple):
    """How far a chain is behind: for how long rows may have waited for a block, and how many ids they span."""

    seconds: float
    ids: int


def lag(chain: Chain) -> Lag:
    """Measure how far this chain is behind. Nothing was ever sealed and rows are there: infinitely."""
    sql = f"""
        SELECT coalesce(n.id - greatest(coalesce(s.last_id, 0), 0), 0),
               coalesce(extract(epoch FROM statement_timestamp() - m.sealed_through)::float8, 'inf')
          FROM (SELECT max(id) AS id FROM {chain.table}) n
          LEFT JOIN messaging_sealmark m ON m.chain = %s
          LEFT JOIN messaging_seal s ON s.chain = m.chain AND s.number = m.number"""
    ids, seconds = fetch_all(sql, (chain.table,))[0]
    return Lag(max(0.0, seconds), ids) if ids > 0 else Lag(0.0, 0)
