"""Flower in containers: who may look, and what it may not do. Flower reads the names below that are its options."""

import os
from pathlib import Path

from flower.views import monitor
from tornado import web

_secrets = Path(os.environ.get("SECRETS_FOLDER", "/run/bankcore"))

address = "0.0.0.0"  # noqa: S104  inside the container; compose.yaml publishes it on the loopback only.
port = 5555
basic_auth = [(_secrets / "basic_auth").read_text().strip()]
broker_api = (_secrets / "broker_api").read_text().strip()
# Looking is free, acting is not: no revoke, no shutdown, no task sent from here.
read_only = True
# Task events cost every worker a confirmed publish per step; queues and workers are seen without them.
enable_events = False
inspect_timeout = 2000.0
max_tasks = 10000
purge_offline_workers = 300

# Flower leaves its own /metrics open whatever the sign-in; here it asks like every other page.
monitor.Metrics.get = web.authenticated(monitor.Metrics.get)
