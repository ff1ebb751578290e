"""Django's settings, read from the environment. Every variable may also be given as `<NAME>_FILE`, a file's content."""

import os
from pathlib import Path

from django.core.management.utils import get_random_secret_key
from limits import parse as parse_limit

from bankcore.environment import Environment
from bankcore.moments import parse_moment
from bankcore.topology import BREAKERS as BREAKERS
from bankcore.topology import ROUTES, Topology

BASE_DIR = Path(__file__).resolve().parent.parent

env = Environment()
# `make up` leaves the running stack's addresses here, so that `manage.py` commands find it without further words.
_stack_env = Path(os.environ.get("BANKCORE_ENV_FILE", BASE_DIR / ".bankcore" / "env"))
if _stack_env.is_file() and os.access(_stack_env, os.R_OK):
    Environment.read_env(_stack_env, overwrite=False)


DEBUG = env.bool("DEBUG", default=False)
# Without a key of its own each process makes one up: safe, but admin sessions then end with the process.
SECRET_KEY = env.str("SECRET_KEY", default="") or get_random_secret_key()
SECRET_KEY_FALLBACKS = env.list("SECRET_KEY_FALLBACKS", default=[])
# Signs the messages between relay and workers (messaging/envelope.py): the first one signs, each of them is believed.
MESSAGE_KEY = env.str("MESSAGE_KEY", default="")
MESSAGE_KEY_IS_SHARED = bool(MESSAGE_KEY or env.str("SECRET_KEY", default=""))
MESSAGE_KEYS = [
    *([MESSAGE_KEY] if MESSAGE_KEY else [SECRET_KEY, *SECRET_KEY_FALLBACKS]),
    *env.list("MESSAGE_KEY_FALLBACKS", default=[]),
]
# While a release that did not sign is replaced: unsigned messages are believed until then (ISO 8601, with the zone).
MESSAGE_UNSIGNED_UNTIL = parse_moment(moment) if (moment := env.str("MESSAGE_UNSIGNED_UNTIL", default="")) else None
MESSAGE_AGE_SECONDS_MAX = env.float("MESSAGE_AGE_SECONDS_MAX", default=7 * 86_400.0)
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["127.0.0.1", "localhost", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])

INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_prometheus",
    "rest_framework",
    "rest_framework_api_key",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "bankcore.messaging",
    "accounts",
    "transfers",
    "notifications",
]

MIDDLEWARE = [
    "bankcore.logs.RequestIdMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

# Calls of the API authenticate by token: they need no session, no cookie and no CSRF check (bankcore/lanes.py).
CALL_MIDDLEWARE = [
    "bankcore.logs.RequestIdMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "bankcore.lanes.HostMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "bankcore.urls"
WSGI_APPLICATION = "bankcore.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

# -- PostgreSQL --------------------------------------------------------------------------------------------------------

# Without an address there is no database: never one that happens to listen on the usual port.
DATABASES = {"default": env.db_url("DATABASE_URL", default="postgres://nobody@127.0.0.1:1/DATABASE_URL-is-not-set")}
# A statement or a wait for a lock ends before a worker's or a client's patience does (milliseconds).
_session_limits = {
    "statement_timeout": env.int("DATABASE_STATEMENT_TIMEOUT_MS", default=30_000),
    "lock_timeout": env.int("DATABASE_LOCK_TIMEOUT_MS", default=10_000),
    "idle_in_transaction_session_timeout": env.int("DATABASE_IDLE_TIMEOUT_MS", default=60_000),
}
DATABASES["default"] |= {
    "CONN_MAX_AGE": None,
    "OPTIONS": {
        "application_name": env.str("APPLICATION_NAME", default="bankcore"),
        "connect_timeout": 5,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        # The same patience (milliseconds) while something is sent that nobody confirms: no keepalive is sent then, and
        # a worker would hold its partition for a quarter of an hour, asking a server that is gone without a word.
        "tcp_user_timeout": 11_000,
        "options": " ".join(f"-c {name}={value}" for name, value in _session_limits.items()),
    },
}
# Whether fetch_all(..., keep_plan=True) prepares its statement; no other is ever prepared.
DATABASE_PREPARE = env.bool("DATABASE_PREPARE", default=True)
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# -- the pipeline ------------------------------------------------------------------------------------------------------

BROKER_URL = env.str("BROKER_URL", default="amqp://guest:guest@127.0.0.1:5672//")
REDIS_URL = env.str("REDIS_URL", default="redis://127.0.0.1:6379/0")
PARTITIONS = env.int("PARTITIONS", default=4)
MESSAGE_IDS_MAX = env.int("MESSAGE_IDS_MAX", default=500)
TOPOLOGY = Topology(partitions=PARTITIONS)
TOPOLOGY_ROUTES = ROUTES
# Whether workers obey Celery's remote control (shutdown, cancel_consumer, ...), which nobody signs.
REMOTE_CONTROL = env.bool("REMOTE_CONTROL", default=False)
METRICS_PORT = env.int("METRICS_PORT", default=0)
METRICS_ADDRESS = env.str("METRICS_ADDRESS", default="127.0.0.1")

TASK_ATTEMPTS_MAX = env.int("TASK_ATTEMPTS_MAX", default=3)
TASK_RETRY_SECONDS = env.float("TASK_RETRY_SECONDS", default=2.0)
STUCK_SECONDS = env.float("STUCK_SECONDS", default=45.0)
PAUSE_SECONDS_MAX = env.float("PAUSE_SECONDS_MAX", default=10.0)

# Where parked work waits: the room of each task (bankcore/messaging/rooms.py).
WAITING_ROOMS = {
    **dict.fromkeys(["transfers.check_risk", "transfers.post_transfers"], "transfers.unparking.ParkedTransfers"),
    "notifications.deliver": "notifications.undelivered.FailedEmails",
    "notifications.deliver_webhooks": "notifications.undelivered.FailedWebhooks",
}
# What each check of the books proof says when all is well, by its name.
BOOKS_MEANINGS = ["accounts.books.MEANINGS", "bankcore.messaging.seal_checks.MEANINGS", "transfers.books.MEANINGS"]
# Above this, two people replay or discard a parked transfer; 0: always two.
DESK_SECOND_PERSON_AMOUNT_MINOR = env.int("DESK_SECOND_PERSON_AMOUNT_MINOR", default=1_000_000)

RISK_REVIEW_AMOUNT_MINOR = env.int("RISK_REVIEW_AMOUNT_MINOR", default=1_000_000)
RISK_VELOCITY_COUNT = env.int("RISK_VELOCITY_COUNT", default=20_000)
RISK_VELOCITY_WINDOW_SECONDS = env.int("RISK_VELOCITY_WINDOW_SECONDS", default=60)

# Breakers around other people's systems: from how many calls on they judge, and how long they stay open.
BREAKER_CALLS_MIN = env.int("BREAKER_CALLS_MIN", default=5)
BREAKER_OPEN_SECONDS = env.float("BREAKER_OPEN_SECONDS", default=5.0)
BREAKER_OPEN_SECONDS_MAX = env.float("BREAKER_OPEN_SECONDS_MAX", default=120.0)

# A risk provider outside; without an address only our own rules decide.
RISK_PROVIDER_URL = env.str("RISK_PROVIDER_URL", default="")
RISK_PROVIDER_TOKEN = env.str("RISK_PROVIDER_TOKEN", default="")
RISK_PROVIDER_TIMEOUT_SECONDS = env.float("RISK_PROVIDER_TIMEOUT_SECONDS", default=2.0)
RISK_PROVIDER_RATE = env.rate("RISK_PROVIDER_RATE")

BATCH_TRANSFERS_MAX = env.int("BATCH_TRANSFERS_MAX", default=10_000)
REQUEST_BYTES_MAX = env.int("REQUEST_BYTES_MAX", default=64 * 1024)
BATCH_BYTES_MAX = env.int("BATCH_BYTES_MAX", default=8 * 1024 * 1024)
DATA_UPLOAD_MAX_MEMORY_SIZE = BATCH_BYTES_MAX
TOKEN_CACHE_SECONDS = env.float("TOKEN_CACHE_SECONDS", default=1.0)

# Admission (bankcore/messaging/backpressure.py): the longest predicted wait a 202 may have, and how much is taken while
# a stage stands still. DRAIN_RATE_START is believed until the first backlog has been measured.
PROMISE_SECONDS = env.float("PROMISE_SECONDS", default=30.0)
BACKLOG_MAX = env.int("BACKLOG_MAX", default=50_000)
OUTAGE_ACCEPT_SECONDS = env.float("OUTAGE_ACCEPT_SECONDS", default=600.0)
RETRY_AFTER_SECONDS_MAX = env.int("RETRY_AFTER_SECONDS_MAX", default=120)
DRAIN_RATE_START = env.float("DRAIN_RATE_START", default=1000.0)
# What taking in a transfer costs the stages, as a part of working one off: web and database share machines with them.
INTAKE_COST = env.float("INTAKE_COST", default=0.25)
CLIENT_WEIGHTS = env.dict("CLIENT_WEIGHTS", cast={"value": int}, default={})

# Limits per client, such as 100/second or 5000/minute (bankcore/rate_limits.py); auth failures are per address.
RATE_LIMITS = {
    "transfers": env.limit("RATE_LIMIT_TRANSFERS", default="1200000/minute"),
    "auth_failures": env.limit("RATE_LIMIT_AUTH_FAILURES", default="600/minute"),
}
RATE_LIMIT_CLIENTS = {
    client: parse_limit(limit) for client, limit in env.dict("RATE_LIMIT_CLIENTS", default={}).items()
}

# Threads per web process, which wait for the database most of the time: so more than processors is right. Single
# transfers have one of their own (bankcore/front.py).
WEB_THREADS = env.int("WEB_THREADS", default=12)
# Batches that one process takes in at the same time, and the time for waiting and work (bankcore/turns.py).
WEB_BATCHES_AT_ONCE = env.int("WEB_BATCHES_AT_ONCE", default=1)
BATCH_ANSWER_SECONDS = env.float("BATCH_ANSWER_SECONDS", default=0.2)
# Complete requests that may wait for a thread, and how long a body may take to arrive (bankcore/front.py).
WEB_QUEUE_MAX = env.int("WEB_QUEUE_MAX", default=128)
BODY_SECONDS_MAX = env.float("BODY_SECONDS_MAX", default=20.0)

# -- API, pages, mail --------------------------------------------------------------------------------------------------

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["accounts.access.BearerAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["accounts.access.HasScope"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["bankcore.api.StrictJsonParser"],
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "DEFAULT_PAGINATION_CLASS": "bankcore.api.NewestFirst",
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "bankcore.api.problem_response",
    "UNAUTHENTICATED_USER": None,
    "COERCE_DECIMAL_TO_STRING": False,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "bankcore",
    "DESCRIPTION": "An asynchronous bank-transfer API: a transfer is durable with your 202, and posted soon after.",
    "VERSION": "1.0.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_AUTHENTICATION": [],
    "SERVE_PERMISSIONS": [],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_NAME_OVERRIDES": {
        "DeadLetterState": ["open", "replayed", "discarded"],
        "WebhookEndpointState": ["active", "disabled"],
        "WebhookDeliveryState": ["pending", "delivered", "failed"],
        "WebhookDeliveryEnd": ["delivered", "failed"],
    },
}

STATIC_URL = "/static/"
# Assets come straight from the installed packages: no collectstatic step before the first page.
WHITENOISE_USE_FINDERS = True
LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"
USE_TZ = True
EMAIL_CONFIG = env.email_url("EMAIL_URL", default="consolemail://")
vars().update(EMAIL_CONFIG)
if EMAIL_CONFIG["EMAIL_BACKEND"] == "django.core.mail.backends.smtp.EmailBackend":
    EMAIL_BACKEND = "notifications.channels.smtp.EmailBackend"
# For each whole step of the talk with the mail server (connecting is one): seven stay below the database's patience.
EMAIL_TIMEOUT = env.float("EMAIL_TIMEOUT_SECONDS", default=5.0)
# Messages of all workers together, such as 100/second (bankcore/call_rates.py); empty: as many as there are.
EMAIL_RATE = env.rate("EMAIL_RATE")
DEFAULT_FROM_EMAIL = env.str("DEFAULT_FROM_EMAIL", default="bankcore <no-reply@bankcore.invalid>")

# Webhooks: the whole call, how many calls one worker has open to one endpoint at a time, and how many all workers make.
WEBHOOK_TIMEOUT_SECONDS = env.float("WEBHOOK_TIMEOUT_SECONDS", default=10.0)
WEBHOOK_ENDPOINT_CALLS = env.int("WEBHOOK_ENDPOINT_CALLS", default=60)
WEBHOOK_ENDPOINT_RATE = env.rate("WEBHOOK_ENDPOINT_RATE")
# For a test or a look on one machine only: endpoints on the loopback, also without TLS.
WEBHOOK_ALLOW_LOOPBACK = env.bool("WEBHOOK_ALLOW_LOOPBACK", default=False)

# -- security ----------------------------------------------------------------------------------------------------------

SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_AGE = 8 * 3600
# Behind TLS (anything but a loopback demo) set HTTPS=1: cookies, redirects and HSTS follow.
HTTPS = env.bool("HTTPS", default=False)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
# Probes come from inside, without TLS.
SECURE_REDIRECT_EXEMPT = [r"^(livez|readyz|metrics)$"]
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
# Addresses that may read /metrics; everyone else gets a 404.
METRICS_ALLOW_FROM = env.list("METRICS_ALLOW_FROM", default=["127.0.0.0/8", "::1/128"])

LOG_LEVEL = env.str("LOG_LEVEL", default="INFO")
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"request_id": {"()": "bankcore.logs.RequestIdFilter"}},
    "formatters": {"line": {"()": "bankcore.logs.OneLineFormatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["request_id"]}},
    "root": {"handlers": ["stderr"], "level": LOG_LEVEL},
    "loggers": {
        "django.request": {"level": "ERROR"},
        "amqp": {"level": "WARNING"},
        "httpx": {"level": "WARNING"},
        # Two lines for each message that went well say less than the metrics, and cost a tenth of a small one.
        "celery.worker.strategy": {"level": "WARNING"},
        "celery.app.trace": {"level": "WARNING"},
    },
}

UNFOLD = {
    "SITE_TITLE": "bankcore",
    "SITE_HEADER": "bankcore",
    "SITE_SUBHEADER": "Transfers, ledger and desk",
    "SHOW_HISTORY": True,
    "SHOW_VIEW_ON_SITE": False,
    "SIDEBAR": {"navigation": "transfers.admin.desk.navigation"},
    "DASHBOARD_CALLBACK": "transfers.admin.desk.dashboard",
}
