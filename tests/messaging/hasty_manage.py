"""`manage.py` in a hurry: confirms are waited for two seconds, and housekeeping is due every second."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bankcore.settings")

from django.core.management import execute_from_command_line

from bankcore.celery import app
from bankcore.messaging import publisher

publisher.CONFIRM_SECONDS_MAX = 2.0
for entry in app.conf.beat_schedule.values():
    entry["schedule"] = 1.0

execute_from_command_line(sys.argv)
