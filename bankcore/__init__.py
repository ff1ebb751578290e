"""The project package: wiring on top (settings, topology, celery, urls), foundation underneath (errors, money, api)."""

from bankcore.celery import app as celery_app

__all__ = ["celery_app"]
