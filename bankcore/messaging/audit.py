"""The audit log: who did what by hand, written in the transaction of what it tells. It refuses to be edited."""

import getpass
from typing import Any

from bankcore.logs import current_request_id
from bankcore.messaging.models import AuditEntry


def record(
    *, actor: str, action: str, subject: Any, reason: str = "", details: dict[str, Any] | None = None
) -> AuditEntry:
    """Append one entry. Call inside the transaction of the change: the two become true together or not at all.

    `action` is `noun.verb` (`account.freeze`); `details` is JSON and holds no secret.
    """
    return AuditEntry.objects.create(
        actor=actor[:150] or "unknown",
        action=action,
        subject=str(subject),
        reason=reason[:500],
        details=details or {},
        request_id=current_request_id(),
    )


def operator() -> str:
    """Name who works at the command line: `shell:<login>`."""
    try:
        return f"shell:{getpass.getuser()}"
    except (KeyError, OSError):
        return "shell:unknown"
