"""Settings of a game day's processes: the product's own, and points at which one of them can be told to die."""

import os

# The package's Celery application reads settings while it is imported: the ordinary ones, which these build on.
os.environ["DJANGO_SETTINGS_MODULE"] = "bankcore.settings"

from bankcore.settings import *  # noqa: F403
from bankcore.settings import INSTALLED_APPS

os.environ["DJANGO_SETTINGS_MODULE"] = __name__
INSTALLED_APPS = [*INSTALLED_APPS, "compose.gameday.failpoints.Failpoints"]
