# How to work on facereel: `make help` lists the targets. Set-up is automatic; nothing outside the folder is changed.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
UV = $(shell command -v uv || echo "$(PYTHON) -m uv")
PYTHON ?= python3.11
DEMO_DIR ?= runs/demo
JOBS ?= auto
NONE_CHOSEN = test $$? -eq 5 -a -n "$(ARGS)"
LOCK = $(UV) pip compile --quiet --generate-hashes --python-version 3.11 --no-header --no-emit-index-url --no-annotate
export RAY_DATA_USE_DATASOURCE_V2 ?= 0

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 16

.PHONY: setup
setup: .venv/.done  ## build .venv from the locks (done by every other target when needed)

.venv/.done: requirements.lock requirements-dev.lock
	@command -v uv >/dev/null || $(PYTHON) -m uv --version >/dev/null 2>&1 || $(PYTHON) -m pip install --quiet --user uv \
	  || $(PYTHON) -m pip install --quiet --user --break-system-packages uv
	@test -x $(PY) || $(UV) venv --quiet --python $(PYTHON) .venv
	$(UV) pip sync --quiet --compile-bytecode --require-hashes --python $(PY) requirements.lock requirements-dev.lock
	@touch $@

.PHONY: demo
demo: setup  ## draw a catalog, train both tasks, promote, score it twice, write runs/demo/report.html
	$(PY) -m ray_jobs demo --dir $(DEMO_DIR)

.PHONY: demo-promotion
demo-promotion: setup  ## three scorers before the gates of a promotion, and the way back; pages in runs/demo-promotion
	$(PY) -m ray_jobs demo --story promotion --dir runs/demo-promotion

.PHONY: serve
serve: setup  ## the service with the registry's champions, page at http://127.0.0.1:8000/ (ARGS='--port 9000')
	$(PY) -m serve $(ARGS)

.PHONY: stack
stack: setup .venv-stack/.done  ## Postgres, S3, MLflow, a Ray cluster and Prometheus on free loopback ports; says what is where
	$(PY) -m infra.stack up

.PHONY: stack-test
stack-test: setup  ## check the stack: train, score and serve through ray job submit, S3, and every query of the dashboard
	@test -f runs/stack/env || { echo "no stack runs here: make stack" >&2; exit 2; }
	. runs/stack/env && FACEREEL_TEST_STACK=1 $(PY) -m pytest tests/stack tests/integration/test_storage_s3.py $(ARGS)

.PHONY: stack-down
stack-down: setup  ## stop exactly what `make stack` started; data and logs stay in runs/stack
	$(PY) -m infra.stack down

.venv-stack/.done: requirements-stack.lock
	@test -x .venv-stack/bin/python || $(UV) venv --quiet --python $(PYTHON) .venv-stack
	$(UV) pip sync --quiet --require-hashes --python .venv-stack/bin/python requirements-stack.lock
	@touch $@

.PHONY: test
test: lint types unit  ## everything that CI runs: lint, types and all tests

# A thread for each process of the first half, and in the second none that waits by spinning: the threads of several
# networks on the same CPUs took minutes for a test of one second. The second's time limit bounds hanging, not speed.
.PHONY: unit
unit: setup  ## the tests alone (ARGS='-k decode' to choose); those without a cluster on all CPUs
	@$(PY) -m infra.stack fetch
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/unit tests/integration tests/chaos -m "not ray and not slow" --numprocesses $(JOBS) --dist loadfile $(ARGS) || $(NONE_CHOSEN)
	OMP_WAIT_POLICY=PASSIVE $(PY) -m pytest tests/integration tests/chaos -m "ray and not slow" --timeout 1800 $(ARGS) || $(NONE_CHOSEN)

.PHONY: chaos
chaos: setup  ## kill drivers, workers, decoders and nodes, and count rows (ARGS='--kills 50 --seed 7')
	$(PY) -m tests.chaos.history $(ARGS)

.PHONY: nodes
nodes: setup  ## four nodes that are lost and join while scoring, training and serving go on: the long form
	$(PY) -m pytest -m "ray or slow" tests/chaos/test_nodes.py --timeout 3600 $(ARGS)

.PHONY: promotion
promotion: setup  ## three scorers before the gates, trained on the cluster and with the whole catalog: the long form
	$(PY) -m pytest -m slow tests/integration/test_promoting.py --timeout 3600 $(ARGS)

.PHONY: lint
lint: setup  ## ruff: lint and format check
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

.PHONY: format
format: setup  ## ruff: mend what can be mended
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

.PHONY: types
types: setup  ## mypy, strict for models/ and infra/
	$(PY) -m mypy

.PHONY: bench
bench: .venv-bench/.done  ## the measured claims: decoding side by side with other libraries
	.venv-bench/bin/python -m benchmarks.decode $(ARGS)

.PHONY: bench-pools
bench-pools: setup  ## the measured claims: CPU and memory of decoders, predictors and training workers
	$(PY) -m benchmarks.pools $(ARGS)

.PHONY: bench-plan
bench-plan: setup  ## the measured claims: plans of 100 thousand to 10 million videos
	$(PY) -m benchmarks.plan $(ARGS)

.PHONY: bench-dataset
bench-dataset: setup  ## the measured claims: finishing a dataset of 10 thousand and 100 thousand crops
	$(PY) -m benchmarks.dataset $(ARGS)

.PHONY: bench-noise
bench-noise: setup  ## the measured claims: planted wrong labels that a review finds (ARGS='--dataset runs/fs2k')
	$(PY) -m benchmarks.label_noise $(ARGS)

.PHONY: bench-training
bench-training: setup  ## the measured claims: what the reader costs (ARGS='losses workers resume': those side by side)
	$(PY) -m benchmarks.training $(ARGS)

.PHONY: bench-serving
bench-serving: setup  ## the measured claims: the service beside bare FastAPI (ARGS='overload': under five times its load)
	$(PY) -m benchmarks.serving $(ARGS)

.PHONY: bench-scale
bench-scale: setup  ## the measured claims: where 100 million videos stand (ARGS=measure: what a row, a block, a commit cost here)
	$(PY) -m benchmarks.scale $(ARGS)

.PHONY: soak
soak: setup  ## 200 changes of the champion under load, 20 of them to broken artifacts (CHANGES=1000)
	CHANGES=$(or $(CHANGES),200) $(PY) -m pytest -m slow tests/unit/test_serve_following.py tests/integration/test_serving.py --timeout 3600

.venv-bench/.done: requirements.lock requirements-bench.lock
	@test -x .venv-bench/bin/python || $(UV) venv --quiet --python $(PYTHON) .venv-bench
	$(UV) pip sync --quiet --require-hashes --python .venv-bench/bin/python requirements.lock requirements-bench.lock
	@touch $@

.PHONY: lock
lock:  ## rewrite the lock files from requirements*.in
	$(LOCK) requirements.in -o requirements.lock
	$(LOCK) requirements-dev.in -o requirements-dev.lock
	$(LOCK) requirements-bench.in -o requirements-bench.lock
	$(LOCK) requirements-stack.in -o requirements-stack.lock

.PHONY: clean
clean:  ## remove runs and caches (keeps .venv)
	rm -rf runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
