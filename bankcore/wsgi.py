"""The door for a WSGI server (granian)."""

import os

from bankcore.lanes import Lanes

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bankcore.settings")
application = Lanes()
