"""Flower on one machine: its options come from the command line and the environment; this closes what they leave open."""

from flower.views import monitor
from tornado import web

# Flower leaves its own /metrics open whatever the sign-in; here it asks like every other page.
monitor.Metrics.get = web.authenticated(monitor.Metrics.get)
