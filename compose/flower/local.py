"""Flower on one machine: command line and environment hold its options; this closes what they leave open."""

from flower.views import monitor
from tornado import web

# Flower leaves its own /metrics open whatever the sign-in; here it asks like every other page.
monitor.Metrics.get = web.authenticated(monitor.Metrics.get)
