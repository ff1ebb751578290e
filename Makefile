# bankcore's front door: `make help` lists what there is. Needs make, Python >= 3.11 and a package index, no more.
#
# Every target first sees to .venv: made with the newest fitting Python (or PYTHON=...), filled from requirements.txt,
# and filled again when that file has changed.

.PHONY: help demo test up down status bench gameday lint format docs-check requirements clean
.DEFAULT_GOAL := help

ARGS ?=
PYTHON ?=
# Relative on purpose: make splits words at spaces, and the clone's path may have some.
RUN := .venv/bin/python
STAMP := .venv/.installed

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r target text; do \
		printf '%-22s %s\n' "$$target" "$$text"; done
	@echo
	@echo '  Options go in ARGS, for instance: make demo ARGS="--transfers 5000"'

demo: $(STAMP) ## bring up a private stack, send real transfers, prove the books, stop it all
	@$(RUN) -m compose.demo $(ARGS)

test: $(STAMP) ## every test, against private PostgreSQL, RabbitMQ and Redis or Valkey
	@$(RUN) -m compose.local run --servers-only --name test -- $(RUN) -m pytest $(ARGS)

up: $(STAMP) ## the whole stack in the background, until `make down`
	@$(RUN) -m compose.local up $(ARGS)

down: $(STAMP) ## stop what `make up` started (ARGS=--wipe: remove its data as well)
	@$(RUN) -m compose.local down $(ARGS)

status: $(STAMP) ## what `make up` has running
	@$(RUN) -m compose.local status $(ARGS)

bench: $(STAMP) ## pgbench, a naive view and bankcore side by side
	@$(RUN) -m compose.bench $(ARGS)

gameday: $(STAMP) ## faults under load on a private three-node stack, and a verdict
	@$(RUN) -m compose.gameday $(ARGS)

lint: $(STAMP) ## ruff and mypy
	@$(RUN) -m ruff check $(ARGS)
	@$(RUN) -m ruff format --check
	@$(RUN) -m mypy

format: $(STAMP) ## let ruff put the code in shape
	@$(RUN) -m ruff check --fix-only --quiet $(ARGS)
	@$(RUN) -m ruff format

docs-check: $(STAMP) ## migrations and docs/openapi.yaml are in step with the code
	@$(RUN) -m compose.local run --servers-only --name docs-check -- $(RUN) manage.py makemigrations --check --dry-run
	@$(RUN) manage.py spectacular --fail-on-warn --file .bankcore/openapi.yaml
	@diff -u docs/openapi.yaml .bankcore/openapi.yaml || { \
		echo 'docs/openapi.yaml is out of step: python manage.py spectacular --file docs/openapi.yaml' >&2; exit 1; }

requirements: $(STAMP) ## work out requirements.txt anew from requirements.in
	@$(RUN) -m uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url $(ARGS) \
		requirements.in -o requirements.txt

clean: ## remove .venv and .bankcore (stop the stack first)
	@if [ -e .bankcore/stack.json ]; then echo 'A stack may be running: make down first.' >&2; exit 1; fi
	@if [ -x $(RUN) ]; then $(RUN) -m compose.local down --wipe; fi
	@rm -rf .venv .bankcore

# The stamp holds the file that was installed: it is written last, so a half-finished installation is done again.
$(STAMP): FORCE
	@if ! cmp -s requirements.txt $(STAMP) || ! $(RUN) -c '' 2>/dev/null; then sh compose/install.sh '$(PYTHON)'; fi

FORCE:
