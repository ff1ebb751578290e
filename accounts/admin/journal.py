"""Staff pages of the journal: every entry and line, to be read only."""

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from unfold.decorators import display

from accounts.models import JournalEntry, JournalLine, Proof
from accounts.proofs import heads_of, meaning_of, named_by
from bankcore.identifiers import parse_id
from bankcore.pages import Panel, ReadOnlyAdmin, amount, moment, page_link

LINES_SHOWN_MAX = 200


def entry_lines(entry: JournalEntry | None) -> Panel:
    lines = entry.lines.order_by("id")[:LINES_SHOWN_MAX] if entry else ()
    return Panel(
        title=f"Journal entry {entry.reference}" if entry else "Journal entry",
        headers=["Account", "Side", "Amount", "Balance after"],
        rows=[
            [
                page_link("accounts_account", line.account_id),
                line.get_side_display(),
                amount(line.amount_minor, entry.currency),
                amount(line.balance_after_minor, entry.currency),
            ]
            for line in lines
            if entry
        ],
        empty="No money has moved.",
    )


@admin.register(JournalEntry)
class JournalEntryAdmin(ReadOnlyAdmin):
    list_display = ["id", "reference", "currency", "when"]
    search_fields = ["id", "reference"]
    search_help_text = "An entry's number, a whole reference such as transfer:<id>, or the id of a transfer."
    fields = ["id", "reference", "currency", "when"]

    def get_search_results(
        self, request: HttpRequest, queryset: "QuerySet[JournalEntry]", search_term: str
    ) -> tuple["QuerySet[JournalEntry]", bool]:
        if (transfer_id := parse_id(search_term.strip())) is not None:
            return queryset.filter(Q(reference=f"transfer:{transfer_id}")), False
        return super().get_search_results(request, queryset, search_term)

    def panels(self, obj: JournalEntry) -> list[Panel]:
        return [entry_lines(obj)]

    @display(description="created (UTC)")
    def when(self, entry: JournalEntry) -> str:
        return moment(entry.created_at)


@admin.register(JournalLine)
class JournalLineAdmin(ReadOnlyAdmin):
    list_display = ["id", "shown_account", "number", "side_label", "shown_amount", "balance_after", "shown_entry"]
    list_select_related = ["entry"]
    search_fields = ["id", "account", "entry"]
    search_help_text = "The number of a line or an entry, or the whole id of an account."
    fields = ["id", "shown_entry", "shown_account", "number", "side_label", "shown_amount", "balance_after"]

    @display(description="account")
    def shown_account(self, line: JournalLine) -> SafeString | str:
        return page_link("accounts_account", line.account_id)

    @display(description="entry")
    def shown_entry(self, line: JournalLine) -> SafeString | str:
        return page_link("accounts_journalentry", line.entry_id, line.entry.reference)

    @display(description="side", label={"Debit": "warning", "Credit": "success"})
    def side_label(self, line: JournalLine) -> str:
        return JournalLine.Side(line.side).label

    @display(description="amount")
    def shown_amount(self, line: JournalLine) -> SafeString | str:
        return amount(line.amount_minor, line.entry.currency)

    @display(description="balance after")
    def balance_after(self, line: JournalLine) -> SafeString | str:
        return amount(line.balance_after_minor, line.entry.currency)


@admin.register(Proof)
class ProofAdmin(ReadOnlyAdmin):
    list_display = ["id", "when", "kind_label", "entries", "took", "verdict", "broken_checks"]
    list_filter = ["kind"]
    fields = ["id", "when", "kind_label", "entries", "took", "verdict"]

    def panels(self, obj: Proof) -> list[Panel]:
        return [
            Panel(
                title="What does not add up",
                headers=["Check", "About", "How"],
                rows=[[in_words(named.check), named.subject, named.detail] for named in named_by(obj)],
                empty="Nothing: the books balance.",
            ),
            Panel(
                title="What was checked",
                headers=["Check", "What it says when all is well", "Found"],
                rows=[
                    [in_words(check), meaning_of(check) or "-", f"{number:,} violation(s)" if number else "nothing"]
                    for check, number in sorted(obj.violations.items(), key=lambda one: -one[1])
                ],
                empty="Nothing was checked.",
            ),
            Panel(
                title="Heads of the chains",
                headers=["Chain", "Block", "Hash"],
                rows=[[head.chain, f"{head.number:,}", head.hex] for head in heads_of(obj)],
                empty="None was sealed yet.",
            ),
        ]

    @display(description="kind", label={"Full": "info", "Increment": "primary"})
    def kind_label(self, proof: Proof) -> str:
        return Proof.Kind(proof.kind).label

    @display(description="took")
    def took(self, proof: Proof) -> str:
        return f"{proof.seconds:,.2f} s"

    @display(description="found")
    def broken_checks(self, proof: Proof) -> str:
        found = [f"{in_words(check)} ({number:,})" for check, number in proof.violations.items() if number]
        return ", ".join(found) or "nothing"

    @display(description="proved (UTC)")
    def when(self, proof: Proof) -> str:
        return moment(proof.proved_at)

    @display(description="verdict", label={"balanced": "success", "broken": "danger"})
    def verdict(self, proof: Proof) -> str:
        return "broken" if any(proof.violations.values()) else "balanced"


def in_words(check: str) -> str:
    return check.replace("_", " ").capitalize()
