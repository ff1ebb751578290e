"""Compare rows with the blocks sealed over them, blocks with their chain, and heads with those kept elsewhere."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from bankcore.database import fetch_all
from bankcore.messaging.seals import LEAF_BYTES, Block, Chain, leaf

ROW_CHANGED = "sealed_row_changed"
ROW_MISSING = "sealed_row_missing"
ROW_ADDED = "sealed_row_added"
BLOCK_BROKEN = "seal_block_broken"
CHAIN_CUT = "seal_chain_cut"
HEAD_GONE = "seal_head_gone"
CHECKS = (ROW_CHANGED, ROW_MISSING, ROW_ADDED, BLOCK_BROKEN, CHAIN_CUT, HEAD_GONE)
MEANINGS = {
    ROW_CHANGED: "No row differs from what it was when it was sealed.",
    ROW_MISSING: "No row that was sealed is gone.",
    ROW_ADDED: "No row has come in behind its seal.",
    BLOCK_BROKEN: "Every block of a chain holds the hash of the block before it.",
    CHAIN_CUT: "No block is missing from a chain.",
    HEAD_GONE: "Every head that was noted is still in its chain: none was written anew.",
}

BLOCKS_AT_ONCE = 100


class Finding(NamedTuple):
    """What a check found: about which row or block, and how it differs."""

    check: str
    subject: str
    detail: str


class KeptHead(NamedTuple):
    """A head that was noted before, in the database or outside."""

    chain: str
    number: int
    hex: str


def last_number(chain: Chain) -> int:
    """Tell the number of the chain's newest block; 0 if there is none."""
    return int(fetch_all("SELECT coalesce(max(number), 0) FROM messaging_seal WHERE chain = %s", (chain.table,))[0][0])


def check_blocks(chain: Chain, first: int, last: int) -> Iterator[Finding]:
    """Hash the rows of blocks `first` to `last` again, and name each row and block that is not as it was sealed.

    Reads what the blocks cover, by ranges of the primary key. Up to BLOCKS_AT_ONCE blocks in a statement.
    """
    for start in range(first, last + 1, BLOCKS_AT_ONCE):
        end = min(start + BLOCKS_AT_ONCE - 1, last)
        yield from _check_links(chain, start, end)
        for number in _unlike(chain, start, end):
            yield from _name_rows(chain, number)


# -- rows against blocks -----------------------------------------------------------------------------------------------


def _unlike(chain: Chain, first: int, last: int) -> list[int]:
    found: list[int] = []
    for form in range(1, len(chain.forms) + 1):
        sql = f"""
            SELECT s.number
              FROM messaging_seal s CROSS JOIN LATERAL (
                   SELECT count(*) AS row_count,
                          sha256(coalesce(string_agg(r.hash, ''::bytea ORDER BY r.id), '')) AS digest
                     FROM (SELECT t.id, {chain.row_hash(form)} AS hash FROM {chain.table} t
                            WHERE t.id > s.after_id AND t.id <= s.last_id) r) now
             WHERE s.chain = %s AND s.number BETWEEN %s AND %s AND s.form = %s
               AND (now.row_count <> s.row_count OR now.digest <> s.digest)
             ORDER BY s.number"""
        found += [number for (number,) in fetch_all(sql, (chain.table, first, last, form))]
    return found


def _name_rows(chain: Chain, number: int) -> Iterator[Finding]:
    form, after_id, last_id, sealed, when = fetch_all(
        "SELECT form, after_id, last_id, leaves, sealed_at FROM messaging_seal WHERE chain = %s AND number = %s",
        (chain.table, number),
    )[0]
    sql = f"""
        SELECT coalesce(string_agg({leaf("hash")}, ''::bytea ORDER BY id), '')
          FROM (SELECT t.id, {chain.row_hash(form)} AS hash, %s::bigint AS last_id FROM {chain.table} t
                 WHERE t.id > %s AND t.id <= %s) r"""
    before = _leaves(sealed, last_id)
    after = _leaves(fetch_all(sql, (last_id, after_id, last_id))[0][0], last_id)
    where = f"block {number}, sealed {when:%F %T}"
    named = [
        *(
            Finding(ROW_CHANGED, f"{chain.table} {row}", f"the {chain.noun} is not the one in {where}")
            for row in sorted(before.keys() & after.keys())
            if before[row] != after[row]
        ),
        *(
            Finding(ROW_MISSING, f"{chain.table} {row}", f"the {chain.noun} was in {where}, and is gone")
            for row in sorted(before.keys() - after.keys())
        ),
        *(
            Finding(ROW_ADDED, f"{chain.table} {row}", f"the {chain.noun} was not in {where}, and is there now")
            for row in sorted(after.keys() - before.keys())
        ),
    ]
    yield from named
    if not named:
        detail = "its digest or row count is not that of its rows, though each row is as its leaf says"
        yield Finding(BLOCK_BROKEN, f"{chain.table} block {number}", detail)


def _leaves(packed: bytes, last_id: int) -> dict[int, bytes]:
    pieces = [packed[at : at + LEAF_BYTES] for at in range(0, len(packed), LEAF_BYTES)]
    return {last_id - int.from_bytes(piece[:4], "big"): piece[4:] for piece in pieces}


# -- blocks against the chain ------------------------------------------------------------------------------------------

_BLOCKS = """
SELECT chain, number, form, after_id, last_id, row_count, digest, leaves, sealed_at, head
  FROM messaging_seal WHERE chain = %s AND number BETWEEN %s AND %s ORDER BY number
"""


def _check_links(chain: Chain, first: int, last: int) -> Iterator[Finding]:
    """Each block's head follows from the one before, and it begins where that one ended."""
    rows = fetch_all(_BLOCKS, (chain.table, first - 1, last))
    blocks = {row[1]: (Block(*row[:-1]), row[-1]) for row in rows}
    for number in range(first, last + 1):
        subject = f"{chain.table} block {number}"
        if number not in blocks:
            yield Finding(CHAIN_CUT, subject, "the block is missing")
            continue
        block, head = blocks[number]
        previous, previous_head = blocks.get(number - 1, (None, bytes(32)))
        if previous is None and number > 1:
            continue
        if block.head(previous_head) != head:
            yield Finding(BLOCK_BROKEN, subject, "its head does not follow from its content and the head before it")
        elif not 1 <= block.form <= len(chain.forms):
            yield Finding(BLOCK_BROKEN, subject, f"form {block.form} is not known to this release")
        elif previous and block.after_id != previous.last_id:
            yield Finding(BLOCK_BROKEN, subject, "it does not begin where the block before ended")


def check_end(chain: Chain) -> Iterator[Finding]:
    """The newest block is the one that the chain's mark names: blocks were not taken off the end."""
    last = last_number(chain)
    rows = fetch_all("SELECT number, head FROM messaging_sealmark WHERE chain = %s", (chain.table,))
    number, head = rows[0] if rows else (0, b"")
    if number != last:
        detail = f"the chain ends at block {last}, its mark says {number}"
        yield Finding(CHAIN_CUT, f"{chain.table} block {max(number, last)}", detail)
    elif number:
        sealed = fetch_all("SELECT head FROM messaging_seal WHERE chain = %s AND number = %s", (chain.table, number))
        if sealed[0][0] != head:
            yield Finding(CHAIN_CUT, f"{chain.table} block {number}", "the mark has another head for it")


def check_heads(kept: Iterable[KeptHead]) -> Iterator[Finding]:
    """Heads that were noted before are still in the chain: it has not been written anew."""
    for chain, number, head in kept:
        sql = "SELECT encode(head, 'hex') FROM messaging_seal WHERE chain = %s AND number = %s"
        found = fetch_all(sql, (chain, number))
        if not found:
            yield Finding(HEAD_GONE, f"{chain} block {number}", "a head was kept for it, and it is not there")
        elif found[0][0] != head.lower():
            yield Finding(HEAD_GONE, f"{chain} block {number}", "its head is not the one that was kept")


def roll(chains: Sequence[Chain], since: Mapping[str, int], blocks_max: int) -> tuple[list[Finding], dict[str, int]]:
    """Check the next `blocks_max` blocks of each chain after those of last time, and begin again at the end.

    Returns what was found and where to go on: block numbers by chain.
    """
    found: list[Finding] = []
    positions: dict[str, int] = {}
    for chain in chains:
        newest = last_number(chain)
        done = since.get(chain.table, 0)
        first = done + 1 if done < newest else 1
        last = min(first + blocks_max - 1, newest)
        found += check_end(chain)
        found += check_blocks(chain, first, last)
        positions[chain.table] = last
    return found, positions
