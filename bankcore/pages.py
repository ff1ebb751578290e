"""How staff pages behave on tables of any size: bounded counts and pages, exact search, look but do not touch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.contrib import admin
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db import OperationalError, connection, transaction
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timezone import localtime
from unfold.admin import ModelAdmin

from bankcore.money import format_minor

COUNT_MAX = 10_000
COUNT_TIMEOUT_MS = 500
PAGES_MAX = 200


class BoundedPaginator(Paginator):
    """Count no further than COUNT_MAX rows and COUNT_TIMEOUT_MS, and page no deeper than PAGES_MAX.

    A whole table is told by PostgreSQL's own estimate once it is larger than that.
    """

    @cached_property
    def count(self) -> int:
        rows = self.object_list
        if not isinstance(rows, QuerySet):
            return len(rows)
        estimate = 0 if rows.query.where else _estimate(rows.model)
        return estimate if estimate > COUNT_MAX else _count(rows)

    @cached_property
    def num_pages(self) -> int:
        return min(super().num_pages, PAGES_MAX)


def _estimate(model: type[Model]) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT reltuples::bigint FROM pg_class WHERE oid = %s::regclass", [model._meta.db_table])
        return cursor.fetchone()[0]


def _count(rows: "QuerySet[Any]") -> int:
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL statement_timeout = {COUNT_TIMEOUT_MS}")
            number = rows.order_by()[: COUNT_MAX + 1].count()
            cursor.execute("SET LOCAL statement_timeout = DEFAULT")
            return number
    except OperationalError:
        # Too rare among too many to be counted in time: the page itself may still be quick.
        return COUNT_MAX + 1


class BoundedAdmin(ModelAdmin):
    """A staff page whose cost does not grow with the table. `search_fields` are matched whole, so name indexed ones."""

    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    list_disable_select_all = True
    list_per_page = 50
    list_max_show_all = 0
    list_fullwidth = True
    # Sorting by anything but the primary key would read the whole table.
    sortable_by = ()

    def get_search_results(
        self, request: HttpRequest, queryset: "QuerySet[Any]", search_term: str
    ) -> tuple["QuerySet[Any]", bool]:
        if not (term := search_term.strip()):
            return queryset, False
        matches = Q()
        for name in self.search_fields:
            try:
                matches |= Q(**{name: self.model._meta.get_field(name).to_python(term)})
            except ValidationError:
                continue
        return (queryset.filter(matches) if matches else queryset.none()), False


@dataclass(frozen=True, slots=True)
class Panel:
    """A table under a page's facts; `empty` is what it says without rows."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Any]]
    empty: str

    @property
    def table(self) -> dict[str, Any]:
        return {"headers": self.headers, "rows": self.rows}


class PanelAdmin(BoundedAdmin):
    """A page with panels of what belongs to the object."""

    change_form_outer_after_template = "pages/panels.html"

    def panels(self, obj: Any) -> Sequence[Panel]:
        return ()

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        obj = self.get_object(request, object_id)
        panels = self.panels(obj) if obj is not None and self.has_view_permission(request, obj) else ()
        return super().change_view(request, object_id, form_url, {"panels": panels, **(extra_context or {})})


class ReadOnlyAdmin(PanelAdmin):
    """To be looked at. What is here is written by the pipeline and never by hand."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def shown_once(
    page: ModelAdmin, request: HttpRequest, *, title: str, about: str, notice: str, secret: str, back: str
) -> TemplateResponse:
    """Show a secret on the one page that ever does: it reaches no cookie, session or log."""
    context = {"title": title, "opts": page.opts, "about": about, "notice": notice, "secret": secret, "back": back}
    return TemplateResponse(request, "pages/shown_once.html", {**page.admin_site.each_context(request), **context})


def page_link(model: str, key: Any, text: Any = None) -> SafeString | str:
    """Link to the page of one object; `model` is `app_model`, as in the names of the admin's addresses."""
    if key is None:
        return "-"
    return format_html(
        '<a class="text-primary-600 dark:text-primary-500" href="{}">{}</a>',
        reverse(f"admin:{model}_change", args=[key]),
        text if text is not None else key,
    )


def list_link(model: str, query: str, text: str) -> SafeString:
    address = f"{reverse(f'admin:{model}_changelist')}?{query}"
    return format_html('<a class="text-primary-600 dark:text-primary-500" href="{}">{}</a>', address, text)


def preformatted(text: str) -> SafeString | str:
    """Show text as it is, line by line: a traceback, JSON."""
    if not text:
        return "-"
    # As a style: the classes for it are not among those that unfold ships.
    return format_html('<pre class="text-xs" style="white-space: pre-wrap; overflow-wrap: anywhere">{}</pre>', text)


def pretty_json(value: Any) -> SafeString | str:
    return preformatted(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)) if value else "-"


def one_line_json(value: Any) -> SafeString | str:
    return preformatted(json.dumps(value, ensure_ascii=False, sort_keys=True)) if value else "-"


def amount(amount_minor: int | None, currency: str) -> SafeString | str:
    if amount_minor is None:
        return "-"
    return format_html('<span class="whitespace-nowrap tabular-nums">{}</span>', format_minor(amount_minor, currency))


def moment(at: Any) -> str:
    """Write a point in time to the millisecond, in UTC as everywhere else."""
    return localtime(at).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] if at else "-"


admin.site.empty_value_display = "-"
