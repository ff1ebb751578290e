"""Whether the whole broker is away: the relay finds out, and the gate in front of intake has to know.

Told by an advisory lock that the active relay's session holds while no node takes its connection. So it is told at
once, and a relay that dies, is frozen or loses its database says nothing any more: nobody goes on believing it.
"""

import psycopg

BROKER_AWAY_LOCK = 7207

# Part of a statement that asks, and ends with it, whatever becomes of who asks.
IS_AWAY = f"NOT pg_try_advisory_xact_lock_shared({BROKER_AWAY_LOCK})"


class Reachability:
    """What a relay last told in its session."""

    def __init__(self) -> None:
        self.says_away = False

    def tell(self, database: psycopg.Connection, *, away: bool) -> None:
        """Tell it, if it is news. Where somebody is just asking it may not come to be told; so tell it again."""
        if away and not self.says_away:
            row = database.execute("SELECT pg_try_advisory_lock(%s)", (BROKER_AWAY_LOCK,)).fetchone()
            self.says_away = bool(row and row[0])
        elif self.says_away and not away:
            database.execute("SELECT pg_advisory_unlock(%s)", (BROKER_AWAY_LOCK,))
            self.says_away = False
