"""Risk rules: pure functions from facts to an opinion. They read nothing and write nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple


class Outcome(IntEnum):
    """In order of severity: the most severe opinion decides."""

    APPROVE = 0
    REVIEW = 1
    DENY = 2


class Opinion(NamedTuple):
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the bank allows without a second look. Zero switches a rule off."""

    review_amount_minor: int
    velocity_count: int


class Facts(NamedTuple):
    """What is known of one transfer when it is screened."""

    amount_minor: int
    recent_debits: int
    denied: bool


APPROVE = Opinion(Outcome.APPROVE)


def amount(facts: Facts, limits: Limits) -> Opinion:
    """A large amount is looked at by a person."""
    if limits.review_amount_minor and facts.amount_minor >= limits.review_amount_minor:
        return Opinion(Outcome.REVIEW, "amount_over_limit")
    return APPROVE


def velocity(facts: Facts, limits: Limits) -> Opinion:
    """An account that pays unusually often within the window is looked at by a person."""
    if limits.velocity_count and facts.recent_debits > limits.velocity_count:
        return Opinion(Outcome.REVIEW, "velocity_over_limit")
    return APPROVE


def deny_list(facts: Facts, limits: Limits) -> Opinion:
    """Nothing moves from or to an account on the deny list."""
    return Opinion(Outcome.DENY, "account_on_deny_list") if facts.denied else APPROVE


RULES: Sequence[Callable[[Facts, Limits], Opinion]] = (deny_list, amount, velocity)


def assess(facts: Facts, limits: Limits) -> tuple[Outcome, list[str]]:
    """Ask every rule; return the most severe outcome and the reasons of all that did not approve."""
    opinions = [opinion for rule in RULES if (opinion := rule(facts, limits)).outcome is not Outcome.APPROVE]
    if not opinions:
        return Outcome.APPROVE, []
    return max(opinion.outcome for opinion in opinions), [opinion.reason for opinion in opinions]
