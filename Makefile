# `make demo` on a fresh clone does everything; `make help` lists the rest.

PYTHON ?= python3
WORKERS ?= 2
PYTEST_ARGS ?=
FUZZ_SECONDS ?= 600
FUZZ_ARGS ?=
MUTATION_ARGS ?=
CHECKPOINT ?= checkpoints/edge-15m
RECIPE ?= int8
BUNDLE ?= runs/demo.edge
PROMPT ?= My fellow citizens, the condition of our country
TORCH_VERSION ?= 2.13.0

VENV := .venv
PY := $(VENV)/bin/python
CLI := $(VENV)/bin/retnet-edge
PIP := $(PY) -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo
HF4 := .venv-hf4
LM_EVAL := .venv-lm-eval
OPTIMUM := .venv-optimum
PEERS := .venv-peers
DOCS := .venv-docs
MUTATION := .mutation-tools
# A cross compiler and its C library, a second compiler, and what runs programs for ARM.
ARM_PACKAGES := gcc-aarch64-linux-gnu libc6-dev-arm64-cross clang qemu-user
# What builds the C library, what its users build with, and a compiler for Windows.
NATIVE_PACKAGES := gcc g++ binutils cmake make clang pkg-config gcc-mingw-w64-x86-64-win32
PIP_LOG := $(VENV)/pip.log

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow fuzz fuzz-quick fuzz-native fuzz-libfuzzer fuzz-tools test-hf4 test-lm-eval test-optimum mutation lint rooms docs docs-blocks bench bench-peers constraints clean mutation-native kill-test debian-arm debian-native native native-sizes
.DELETE_ON_ERROR:

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'Variables: PYTHON=$(PYTHON) WORKERS=$(WORKERS) RECIPE=$(RECIPE) CHECKPOINT=$(CHECKPOINT) PYTEST_ARGS='

setup: $(STAMP)  ## make .venv and install the project in it (again only when its requirements change)

demo: $(DEMO_STAMP)  ## export, quantize and verify the shipped model, then let it write
	rm -rf -- '$(BUNDLE)'
	mkdir -p '$(dir $(BUNDLE))'
	$(CLI) build '$(CHECKPOINT)' '$(BUNDLE)' --recipe $(RECIPE) --text '$(CHECKPOINT)/heldout.txt'
	$(CLI) info '$(BUNDLE)'
	$(CLI) generate '$(BUNDLE)' --prompt '$(PROMPT)'
	@echo
	@echo 'Report: $(BUNDLE)/reports/report.html'

test: $(STAMP)  ## the fast tests
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

test-slow: $(STAMP)  ## the tests that take minutes
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile -m slow $(PYTEST_ARGS)

# tests/fuzz says what is counted; FUZZ_ARGS="--targets plan --seed 7 --jobs 4" and --replay are its own.
FUZZ := PYTHONPATH=tests:tests/helpers:tests/helpers/bundles OMP_NUM_THREADS=1 $(PY) -m fuzz

NATIVE_FUZZ := '$(PYTHON)' tests/fuzz/native_fuzz.py

fuzz: $(STAMP)  ## damaged files of every kind, for FUZZ_SECONDS: each is read, or refused in a sentence
	$(FUZZ) --seconds $(FUZZ_SECONDS) --jobs $(WORKERS) $(FUZZ_ARGS)
	$(NATIVE_FUZZ) --target packed --seconds $(FUZZ_SECONDS)
	$(NATIVE_FUZZ) --target engine --seconds $(FUZZ_SECONDS)

fuzz-quick: $(STAMP)  ## two minutes of it, half of them in C, always the same cases first: CI runs this
	$(FUZZ) --seconds 60 --seed 0 --jobs $(WORKERS)
	$(MAKE) fuzz-native

fuzz-native:  ## a minute of damaged packed files, states, models and calls in C, under sanitizers (needs gcc)
	$(NATIVE_FUZZ) --target packed --seed 1 --seconds 40
	$(NATIVE_FUZZ) --target engine --seed 1 --seconds 20

fuzz-libfuzzer:  ## the same by coverage, for FUZZ_SECONDS each (needs clang: make fuzz-tools)
	$(NATIVE_FUZZ) --target packed --libfuzzer $(FUZZ_SECONDS) --corpus runs/fuzz/corpus/packed
	$(NATIVE_FUZZ) --target engine --libfuzzer $(FUZZ_SECONDS) --corpus runs/fuzz/corpus/engine

fuzz-tools:  ## what fuzz-libfuzzer needs, from Debian: clang, libclang-rt-dev (as root)
	apt-get install -y clang libclang-rt-dev

test-hf4: $(HF4)/.installed  ## retnet_edge.integrations.transformers on transformers 4.57, in a venv of its own
	OMP_NUM_THREADS=1 $(HF4)/bin/python -m pytest --noconftest $(PYTEST_ARGS) tests/retnet_edge/integrations/test_transformers*.py

test-lm-eval: $(LM_EVAL)/.installed  ## lm-eval on the shipped checkpoint, in a venv of its own
	OMP_NUM_THREADS=1 $(LM_EVAL)/bin/python -m pytest --noconftest -m slow $(PYTEST_ARGS) tests/retnet_edge/integrations/test_lm_eval.py

test-optimum: $(OPTIMUM)/.installed  ## the optimum bridge on optimum-onnx 0.1, in a venv of its own
	OMP_NUM_THREADS=1 $(OPTIMUM)/bin/python -m pytest --noconftest $(PYTEST_ARGS) tests/retnet_edge/integrations/test_optimum_*.py

kill-test: $(STAMP)  ## kill -9, 200 times, in the commands that make things (some 20 minutes)
	OMP_NUM_THREADS=1 $(PY) -m pytest -m slow -s $(PYTEST_ARGS) tests/test_kill.py

mutation: $(STAMP) $(MUTATION)  ## small faults put into the heart, one at a time: which do the tests miss? (an hour on two cores)
	OMP_NUM_THREADS=1 PYTHONPATH='$(MUTATION)' $(PY) -W ignore::DeprecationWarning tests/mutation $(MUTATION_ARGS)

mutation-native:  ## small faults put into the C, one at a time: which do its tests miss? (half an hour on two cores)
	'$(PYTHON)' tests/mutation/native.py $(MUTATION_NATIVE_ARGS)

lint: $(STAMP)  ## ruff, mypy, and the directions in which rooms may import each other
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-logo

docs: $(DOCS)/.installed  ## the site of docs/, strictly: no dead link, every public name documented
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict
	@echo 'Open site/index.html'

docs-blocks: $(STAMP)  ## how many blocks of the documentation the tests run, and why not the others
	@PYTHONPATH=tests/docs $(PY) -m doc_blocks

debian-arm:  ## what the ARM kernels are tested with: a cross compiler, Clang and QEMU (Debian or Ubuntu, as root)
	@$(call debian_install,$(ARM_PACKAGES))

debian-native:  ## what the C library's builds are tested with: CMake, compilers, pkg-config (Debian or Ubuntu, as root)
	@$(call debian_install,$(NATIVE_PACKAGES))

native:  ## the C library by itself, with CMake, in build/native; its checks are run
	cmake -S native -B build/native -DRETNET_BUILD_TESTS=ON
	cmake --build build/native
	cd build/native && ctest --output-on-failure

native-sizes:  ## how large the C library is, and which names it has and needs, on x86-64 and 64-bit ARM
	'$(PYTHON)' -m benchmarks.native_sizes

rooms: $(STAMP)  ## the pictures and the table of rooms in docs/architecture.md (Debian: apt install graphviz)
	@command -v dot >/dev/null || { echo 'Graphviz draws the rooms (Debian: apt install graphviz).' >&2; exit 1; }
	$(PY) docs/tools/draw_rooms.py

bench: $(STAMP) $(BUNDLE)/manifest.json  ## the measurements of benchmarks/ on the demo's bundle
	$(PY) -m benchmarks.base_install '$(BUNDLE)'

bench-peers: $(STAMP) $(PEERS)/.installed  ## edge-135m beside llama.cpp (builds it; half an hour on two quiet cores)
	$(PY) -m benchmarks.speed.backends --preset edge-135m --calibration '$(CHECKPOINT)/heldout.txt' --build-only \
	  --backends onnx --recipes int8 int8-weight int4 int4-weight
	$(PEERS)/bin/python -m benchmarks.peers.gguf_files runs/peers
	$(PY) -m benchmarks.peers measure --out runs/peers/peers.json

$(BUNDLE)/manifest.json:
	$(MAKE) demo

clean:  ## remove the venvs, caches, build leftovers and the demo's bundle
	rm -rf -- $(VENV) $(HF4) $(LM_EVAL) $(OPTIMUM) $(PEERS) $(DOCS) $(MUTATION) site build dist *.egg-info runtime/backends/native/_native.* .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis '$(BUNDLE)'
	find retnet_edge export quantize runtime tests benchmarks docs -name __pycache__ -prune -exec rm -rf {} +

# What the demo needs and no more: no transformers, ExecuTorch, pyarrow or test tools. pip compiles no
# bytecode, since most of torch is never imported; Python compiles what is, once. All that is set up
# by `make setup` does for the demo too.
$(DEMO_STAMP): pyproject.toml constraints.txt $(wildcard native/*) | $(VENV)/bin/pip
	@if [ ! -e '$(STAMP)' ] || [ -n "$$(find $^ -newer '$(STAMP)')" ]; then \
	  echo 'Installing retnet-edge and what the demo needs into $(VENV): about a minute, once.'; \
	  $(call pip_install,'.[export]',--no-compile); \
	fi
	@touch $@

# Only this file is watched, not pip's state: after a hand-made change in .venv, `make clean`.
$(STAMP): pyproject.toml constraints.txt $(wildcard native/*) | $(VENV)/bin/pip
	@echo 'Installing retnet-edge and its tools into $(VENV): some minutes, once.'
	@$(call pip_install,'.[dev]',)
	@touch $@ $(DEMO_STAMP)

$(VENV)/bin/pip:
	@command -v '$(PYTHON)' >/dev/null || { \
	  echo "No Python named '$(PYTHON)'; name one of 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "retnet-edge needs Python 3.11 or newer; $(PYTHON) is $$('$(PYTHON)' -V 2>&1). Name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module (Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	'$(PYTHON)' -m venv $(VENV)

$(HF4)/.installed: pyproject.toml constraints-hf4.txt
	'$(PYTHON)' -m venv $(HF4)
	$(HF4)/bin/python -m pip install -q -c constraints-hf4.txt setuptools
	$(HF4)/bin/python -m pip install -q -c constraints-hf4.txt --no-build-isolation -e '.[hf]' pytest
	@touch $@

$(LM_EVAL)/.installed: pyproject.toml constraints.txt constraints-lm-eval.txt
	'$(PYTHON)' -m venv $(LM_EVAL)
	$(LM_EVAL)/bin/python -m pip install -q -c constraints.txt setuptools
	$(LM_EVAL)/bin/python -m pip install -q -c constraints.txt -c constraints-lm-eval.txt \
	  --no-build-isolation -e '.[hf]' pytest 'lm-eval[hf]'
	@touch $@

# Editable: optimum-cli must find our file in optimum's namespace that way too.
$(OPTIMUM)/.installed: pyproject.toml constraints-optimum.txt
	'$(PYTHON)' -m venv $(OPTIMUM)
	$(OPTIMUM)/bin/python -m pip install -q -c constraints-optimum.txt setuptools
	$(OPTIMUM)/bin/python -m pip install -q -c constraints-optimum.txt --no-build-isolation -e '.[optimum]' pytest
	@touch $@

$(DOCS)/.installed: pyproject.toml constraints-docs.txt
	'$(PYTHON)' -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install -q -c constraints-docs.txt setuptools
	$(DOCS)/bin/python -m pip install -q -c constraints-docs.txt --no-build-isolation -e '.[docs]'
	@touch $@

# Built for this machine's CPU: a wheel would be built for an older one.
$(PEERS)/.installed: constraints-peers.txt
	'$(PYTHON)' -m venv $(PEERS)
	CMAKE_ARGS=-DGGML_NATIVE=ON $(PEERS)/bin/python -m pip install -q -c constraints-peers.txt \
	  --no-binary llama-cpp-python llama-cpp-python gguf
	@touch $@

# Two libraries without what they ask for: only cosmic-ray's operators are used.
$(MUTATION): constraints-mutation.txt
	rm -rf -- $@
	$(PIP) install -q --no-deps --target $@ -r constraints-mutation.txt

# $(1): what to install, $(2): options. pip's words go to a file, of which a failure shows the end.
pip_install = { $(PIP) install $(2) -c constraints.txt setuptools && \
	  $(PIP) install $(2) -c constraints.txt --no-build-isolation -e $(1); } > $(PIP_LOG) 2>&1 || { \
	  tail -n 25 $(PIP_LOG) >&2; echo 'pip failed; all it said is in $(PIP_LOG)' >&2; exit 1; }

# $(1): packages, of which the missing ones are installed; it says which.
debian_install = missing=''; for package in $(1); do dpkg -s "$$package" >/dev/null 2>&1 || missing="$$missing $$package"; done; \
	if [ -n "$$missing" ]; then echo "Installing$$missing"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing; fi

define PINS
import json, sys

OF_CUDA_TORCH = ("cuda-", "nvidia-", "triton")
found = (package["metadata"] for package in json.load(sys.stdin)["install"])
pins = {p["name"].lower(): p["version"].split("+")[0] for p in found}
for name in sorted(pins):
    if name != "retnet-edge" and not name.startswith(OF_CUDA_TORCH):
        print(f"{name}=={pins[name]}")
endef
export PINS

constraints: $(VENV)/bin/pip  ## resolve the newest versions into constraints.txt
	@$(PIP) install -qq --dry-run --ignore-installed --report $(VENV)/resolved.json \
	  'torch==$(TORCH_VERSION)' '.[dev,executorch]'
	@{ \
	  echo '# The versions that are tested together. Written by `make constraints` (Python 3.11, Linux):'; \
	  echo '# every package of every extra, without what only a CUDA build of torch brings along.'; \
	  $(PY) -c "$$PINS" < $(VENV)/resolved.json; \
	} > constraints.txt.new
	@mv constraints.txt.new constraints.txt
