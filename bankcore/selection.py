"""What staff do with many rows of a list at once: so many at most, shown first, and done when they have confirmed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin import ModelAdmin, helpers
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import reverse

from bankcore.pages import Panel

SELECTED_MAX = 100


@dataclass(frozen=True, slots=True)
class Question:
    """What staff are asked: `button` does the admin's `action` with `keys`. Without one, `why_not` says why."""

    action: str
    title: str
    keys: Sequence[Any]
    panel: Panel
    form: forms.Form
    button: str
    why_not: str = ""


def selected(page: ModelAdmin, request: HttpRequest, rows: "QuerySet[Any]") -> list[Any]:
    """Return the selected rows, or none, having said so, when they are more than SELECTED_MAX."""
    few = list(rows[: SELECTED_MAX + 1])
    if len(few) > SELECTED_MAX:
        page.message_user(request, f"At most {SELECTED_MAX} at a time.", messages.ERROR)
        return []
    return few


def answer(form_class: type[forms.Form], request: HttpRequest) -> forms.Form:
    """Return the form: filled in when staff have confirmed, else empty, to be asked with."""
    return form_class(request.POST if "confirmed" in request.POST else None)


def ask(page: ModelAdmin, request: HttpRequest, question: Question, *, back: str = "") -> TemplateResponse:
    """Show what was selected, and ask once more; the button's answer comes to the same address, a list's action."""
    context = {
        **page.admin_site.each_context(request),
        "title": question.title,
        "opts": page.opts,
        "question": question,
        "checkbox": helpers.ACTION_CHECKBOX_NAME,
        "back": back or reverse(f"admin:{page.opts.app_label}_{page.opts.model_name}_changelist"),
    }
    return TemplateResponse(request, "pages/ask_selected.html", context)
