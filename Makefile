# Every target is a plain command; the first one builds the environment from the lock file.
PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
UV := .uv/bin/uv
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin/
CHECKS := check-lint check-format check-layers check-words check-mypy check-pyright check-tests
ARGS ?=
KIND ?= consumer
# Compiled modules are kept: without them every process of the tests compiles the libraries again.
export PYTHONDONTWRITEBYTECODE :=
# As pip does: a company's proxy often has a certificate that only the system knows.
export UV_SYSTEM_CERTS ?= true

.DEFAULT_GOAL := help
.PHONY: help demo named example test long lowest check $(CHECKS) bench fairness tenants soak replay crashes outages endurance fleet service mutants fuzz conformance docs site package fmt clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(UV):
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check uv

$(STAMP): $(UV) pyproject.toml uv.lock
	UV_PROJECT_ENVIRONMENT=$(VENV) $(UV) sync --frozen --quiet --python $(PYTHON)
	@touch $@

demo: $(STAMP)  ## run the main job end to end; ARGS="--keep", "--database postgres", "--noisy"
	$(RUN)postroom demo $(ARGS)

named:
	@ls examples/*/README.md | cut -d/ -f2 | grep -qxF -- "$(NAME)" || { \
		test -z "$(NAME)" || echo "there is no example \"$(NAME)\""; \
		echo "name one, such as: make example NAME=fifo"; \
		ls examples/*/README.md | cut -d/ -f2 | sed 's/^/  /'; exit 2; } >&2

example: named $(STAMP)  ## run an example; NAME=fifo, or another directory of examples/
	@case "$(NAME)" in \
		multi_tenant_datasource) $(RUN)postroom demo ;; \
		fastapi_app) $(RUN)python -m examples.fastapi_app ;; \
		testing) $(RUN)pytest examples/testing ;; \
		*) $(RUN)python -m examples.$(NAME).main ;; \
	esac

test: $(STAMP)  ## run the test suite
	$(RUN)pytest -n 4 --dist worksteal $(ARGS)

long: $(STAMP)  ## run what takes ten seconds or more each (crashes, endurance, outages, real processes), and further cases
	$(RUN)pytest -m long $(ARGS)

lowest: $(UV)  ## run the test suite with the oldest Python and the oldest library versions that pyproject.toml allows
	$(UV) venv --quiet --clear --python 3.11 $(LOWEST)
	VIRTUAL_ENV=$(LOWEST) $(UV) pip install --quiet --resolution lowest-direct -r pyproject.toml --all-extras --group test -e .
	$(LOWEST)/bin/pytest -n 4 --dist worksteal $(ARGS)

check: $(STAMP)  ## lint, types, layers, retired words, side by side
	@$(MAKE) --no-print-directory --jobs $(if $(filter output-sync,$(.FEATURES)),--output-sync) $(CHECKS)

$(CHECKS): $(STAMP)
check-lint:
	$(RUN)ruff check .
check-format:
	$(RUN)ruff format --check .
check-layers:
	$(RUN)lint-imports
check-words:
	$(RUN)python tools/language.py --check
check-mypy:
	$(RUN)mypy
check-pyright:
	$(RUN)pyright
check-tests:  # all are collected, which compiles them once for the processes of `make test`
	$(RUN)pytest -q -m typing

bench: $(STAMP)  ## measure side by side, print ratios (about 20 minutes)
	$(RUN)python benchmarks/pipeline.py
	$(RUN)python benchmarks/pool.py
	$(RUN)python benchmarks/scheduling.py
	$(RUN)python -m benchmarks.transport
	$(RUN)python benchmarks/local_broker.py
	$(RUN)python -m benchmarks.consumers $(ARGS)
	$(RUN)python -m benchmarks.consumers_growth
	$(RUN)python -m benchmarks.behaviour
	$(RUN)python -m benchmarks.console

fairness: $(STAMP)  ## simulate noisy tenants, 20 seeds, an hour; ARGS="--quick", ARGS="--write docs"
	$(RUN)python benchmarks/fairness.py $(ARGS)

tenants: $(STAMP)  ## broken, dead and very many tenants, and noise in real time (about ten minutes)
	$(RUN)python benchmarks/tenants/black_hole.py --seeds 5
	$(RUN)python benchmarks/tenants/dead_host.py --seeds 1
	$(RUN)python benchmarks/tenants/crowd.py
	$(RUN)python benchmarks/tenants/wall_clock.py

soak: $(STAMP)  ## search schedules for broken promises, under an hour; ARGS="--minutes 5 --kinds core"
	PYTHONPATH=tests $(RUN)python -m simulation.soak $(ARGS)

replay: $(STAMP)  ## run one seed again with its history; SEED=407 KIND=consumer, queues, core, pool or fleet
	PYTHONPATH=tests $(RUN)python -m simulation.replay $(KIND) $(SEED)

crashes: $(STAMP)  ## kill -9 a consumer fifty times per storage, with and without the inbox, then check the ledger
	POSTROOM_KILLS=50 $(RUN)pytest -m "long or not long" -s tests/integration/faults/test_crashes.py tests/integration/faults/test_outbox_crashes.py

outages: $(STAMP)  ## 100 databases, every adapter, outages of each kind: what is lost, and when it goes on (ten minutes)
	POSTROOM_OUTAGES=20 $(RUN)pytest -m "long or not long" -s tests/integration/faults/test_outages.py

endurance: $(STAMP)  ## ten minutes at full load: descriptors, memory and the server's own count stay flat
	POSTROOM_MINUTES=10 $(RUN)pytest -m "long or not long" -s tests/integration/faults/test_endurance.py

fleet: $(STAMP)  ## eight real replicas, 100,000 starts judged by the databases; ARGS="--starts 0 --minutes 3 --tally FILE" for a piece
	PYTHONPATH=tests $(RUN)python -m integration.fleet.trial --starts 100000 $(ARGS)
	PYTHONPATH=tests $(RUN)python -m integration.fleet.trial --scenes gone --minutes 1.5 $(ARGS)
	$(RUN)python -m benchmarks.fleet

service: $(STAMP)  ## the FastAPI example from the wheel on Python 3.11 and 3.13: types, SIGTERM, traces, checks (five minutes)
	$(RUN)python tools/service.py $(ARGS)

mutants: $(STAMP)  ## plant defects in the consumer and its core and see that each is found
	PYTHONPATH=tests $(RUN)python -m simulation.consumer.mutants
	PYTHONPATH=tests $(RUN)python -m simulation.consumer.many_queues
	PYTHONPATH=tests $(RUN)python -m simulation.consumer.further_mutants
	PYTHONPATH=tests $(RUN)python -m simulation.core.mutants
	PYTHONPATH=tests $(RUN)python -m simulation.fleet.mutants
	PYTHONPATH=tests $(RUN)python -m simulation.fleet.whole_mutants

fuzz: $(STAMP)  ## fuzz what reads other people's bytes, ten minutes for each of five, two at a time
	UV_PROJECT_ENVIRONMENT=$(VENV) $(UV) sync --frozen --quiet --inexact --group fuzz
	$(RUN)python fuzz/run.py -max_total_time=600 $(ARGS)

conformance: $(STAMP)  ## judge any SQS endpoint by the AWS documentation; ENDPOINT=http://...
	POSTROOM_CONFORMANCE_ENDPOINT=$(ENDPOINT) $(RUN)pytest -n 2 tests/conformance/sqs $(ARGS)

docs: $(STAMP)  ## run the documents' code and check their links
	$(RUN)pytest tests/docs

site: $(STAMP)  ## build the documentation site into build/site, every link checked
	UV_PROJECT_ENVIRONMENT=$(VENV) $(UV) sync --frozen --quiet --inexact --group docs
	$(RUN)python tools/reference.py
	$(RUN)python tools/site.py

package: $(STAMP)  ## build sdist and wheel, and check what a stranger gets; ARGS="--against v0.1.0"
	$(RUN)python tools/package.py $(ARGS)

fmt: $(STAMP)  ## format and fix what can be fixed
	$(RUN)ruff format .
	$(RUN)ruff check --fix .

clean:  ## remove the environment and what tools left
	rm -rf $(VENV) $(LOWEST) .uv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
