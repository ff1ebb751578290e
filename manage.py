#!/usr/bin/env python
"""Run a bankcore command: `.venv/bin/python manage.py help` lists them."""

import os
import sys

try:
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line
    from django.db import OperationalError
except ModuleNotFoundError:
    sys.exit("bankcore's packages are not installed for this Python: use .venv/bin/python (any make target makes it).")

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bankcore.settings")
    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(f"error: {error}")
    except OperationalError as error:
        reason = str(error).strip().splitlines()[0]
        sys.exit(f"error: the database does not answer: {reason}\nStart a stack with `make up`, or set DATABASE_URL.")
