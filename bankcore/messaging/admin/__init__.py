"""What staff see of messaging: the event log, dead letters, breakers, and who did what."""

from bankcore.messaging.admin import audit_pages, breaker_pages, letter_pages
from bankcore.messaging.admin.audit_pages import audit_trail
from bankcore.messaging.admin.event_pages import timeline
from bankcore.messaging.admin.letter_facts import dead_letters

__all__ = ["audit_pages", "audit_trail", "breaker_pages", "dead_letters", "letter_pages", "timeline"]
