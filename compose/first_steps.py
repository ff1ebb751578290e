"""What a new stack needs before its roles start, in one process to be quick: tables, queues, staff and a token.

Reads {"staff": {name: password}, "token": an earlier one or ""} from standard input, and prints, as its last line,
{"staff": {name: password or null}, "token": token}. Safe to repeat, and never changes a person's password.
"""

from __future__ import annotations

import io
import json
import sys

import django
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command


def main() -> None:
    """Run the commands that an operator would run by hand, in this order."""
    wanted = json.load(sys.stdin)
    django.setup()
    call_command("migrate", interactive=False, verbosity=1)
    call_command("declare_topology")
    staff = {name: _ensure_staff(name, password) for name, password in wanted["staff"].items()}
    print(json.dumps({"staff": staff, "token": _ensure_token(wanted["token"])}))


def _ensure_staff(name: str, password: str) -> str | None:
    from django.contrib.auth import get_user_model

    model = get_user_model()
    user = model.objects.filter(username=name).first()
    if user is None:
        model.objects.create_superuser(username=name, email=f"{name}@bankcore.localhost", password=password)
        return password
    return password if user.check_password(password) else None


def _ensure_token(earlier: str) -> str:
    from accounts.access import SCOPES
    from accounts.models import ApiToken

    if earlier and ApiToken.objects.is_valid(earlier):
        return earlier
    answer = io.StringIO()
    call_command("issue_token", client="local", scopes=" ".join(SCOPES), stdout=answer)
    return answer.getvalue().strip()


if __name__ == "__main__":
    try:
        main()
    except (CommandError, ImproperlyConfigured) as error:
        sys.exit(str(error))
