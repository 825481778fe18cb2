# The whole workflow. `make test` and `make bench` first set up what they need: the active Python if it has a suitable
# torch, else .venv with the torch named here; then the package, editable. A second call goes straight to work.
#
#   make test     the test suite, one process a core   make test ARGS="-k nearest" JOBS=1
#                 all of it: make test EXHAUSTIVE=1    the rest alone, of which CI runs a fourth: EXHAUSTIVE=only
#   make sanitize the C++ code under sanitizers        make sanitize FUZZ=1000000    in minutes: make sanitize QUICK=1
#   make bench    a network on a photograph            make bench ARGS="--dtype bfloat16"
#   make gpu      tests and timings on a GPU           make gpu PART=op RESULTS=DIR
#   make engines  other inference engines              make rivals  other networks
#   make arm      the CPU kernels for ARM, emulated: needs aarch64-linux-gnu-g++ and qemu-aarch64
#   make lint     what CI checks besides               make format  rewrites what lint complains about
#   make ray      the example for Ray Data, two workers
#   make docs     docs/_build/html                     warnings are errors
#   make wheel    dist/*.whl, manylinux, checked       make clean   removes what was built here, not .venv
TORCH ?= torch==2.13.0
BASE_PYTHON ?= python3
ARGS ?=
EXHAUSTIVE ?=
JOBS ?= $(shell $(BASE_PYTHON) -c "import os; print(min(8, os.cpu_count() or 1))")

# Prints the active Python where it can be used: not too old, torch >= 2.11, and open to pip.
FIND_PYTHON = import importlib.metadata as m, os, re, sys, sysconfig; \
	old = [int(n) for n in re.findall("[0-9]+", m.version("torch"))[:2]] < [2, 11]; \
	marker = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED"); \
	managed = sys.prefix == sys.base_prefix and os.path.exists(marker); \
	print("" if old or managed else sys.executable)
VENV := .venv/bin/python
PYTHON := $(or $(shell $(BASE_PYTHON) -P -c '$(FIND_PYTHON)' 2>/dev/null),$(VENV))

# Everything is installed again when another Python or torch is asked for, or when that Python has lost the package.
SETTINGS := $(PYTHON) $(if $(filter $(VENV),$(PYTHON)),$(TORCH))
$(shell mkdir -p .make; [ "$$(cat .make/settings 2>/dev/null)" = "$(SETTINGS)" ] || echo "$(SETTINGS)" > .make/settings)
HAS_PACKAGE := $(shell $(PYTHON) -P -c "import importlib.metadata as m; print(m.version('hrnet_fast'))" 2>/dev/null)
BUILT_FROM := setup.py pyproject.toml $(shell find csrc -type f)
CXX_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')
BIN = $(shell $(PYTHON) -c "import sysconfig; print(sysconfig.get_path('scripts'))")

.PHONY: test arm sanitize bench engines rivals gpu ray lint format docs wheel clean always

test: .make/package
	$(PYTHON) -m pytest --numprocesses $(JOBS) --dist worksteal $(if $(EXHAUSTIVE),-m "$(if $(filter only,$(EXHAUSTIVE)),exhaustive)") $(ARGS)

# What is missing is an error here, and not a skip.
arm: .make/package
	@command -v aarch64-linux-gnu-g++ > /dev/null && command -v qemu-aarch64 > /dev/null || { echo "make arm needs aarch64-linux-gnu-g++ and qemu-aarch64 (Debian and Ubuntu: apt-get install g++-aarch64-linux-gnu qemu-user)"; exit 1; }
	HRNET_FAST_ARM_SEEDS=200 $(PYTHON) -m pytest tests/csrc/test_aarch64.py $(ARGS)

# The C++ code under AddressSanitizer and UndefinedBehaviorSanitizer (GCC's): what they find ends the tests.
# QUICK: fewer kinds of errors, a few random cases for each capability of the machine, as CI runs it.
QUICK ?=
SANITIZED = .make/sanitized$(if $(QUICK),-quick)
SANITIZED_TESTS ?= $(addprefix tests/,runtime/cpu $(if $(QUICK),,ops/test_exchange.py ops/test_backward.py) \
  ops/test_random_exchanges.py ops/test_batch_norm_relu.py ops/test_interpolate_argmax.py)
SANITIZED_ARGS = $(if $(QUICK),-k "memory or refused or errors or checked or changed_programs or random_exchanges or against_torch \
  or first_of_equal or all_instruction_sets")
FUZZ ?= $(if $(QUICK),3000,20000)
PRELOAD = $(foreach name,asan stdc++,$(shell $(CXX) -print-file-name=lib$(name).so))
SANITIZERS = LD_PRELOAD="$(PRELOAD)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
sanitize: .make/package
	HRNET_FAST_SANITIZE=$(if $(QUICK),quick,all) HRNET_FAST_NO_CUDA=1 $(PYTHON) setup.py --quiet build --build-base $(SANITIZED)-objects --build-lib $(SANITIZED)
	$(SANITIZERS) $(if $(QUICK),HRNET_FAST_FUZZ=200) $(PYTHON) -P -m pytest --override-ini "pythonpath=$(SANITIZED) tests" --numprocesses $(JOBS) --dist worksteal $(SANITIZED_ARGS) $(SANITIZED_TESTS)
	$(SANITIZERS) PYTHONPATH=$(SANITIZED) $(PYTHON) tests/support/fuzz_programs.py 0 $(FUZZ)

bench: .make/package
	$(PYTHON) -m hrnet_fast bench --json bench.json --plot bench.png $(ARGS)

# Everything that needs a GPU, without network: the active Python must have torch, triton, ninja and pytest already.
# PART=build|test|sanitize|memory|op|unit|head|conv|model|rivals|train; each ends within 9 minutes, results are kept as they
# come, and a part that is run again measures what is missing.
RESULTS ?= benchmarks/results/gpu
gpu:
	$(or $(GPU_PYTHON),$(BASE_PYTHON)) -m benchmarks.gpu $(addprefix --part ,$(PART)) --results $(RESULTS)

engines rivals: .make/package
	$(PYTHON) -m pip install --quiet --no-build-isolation --constraint .make/constraint --editable ".[$(if $(filter engines,$@),peers,rivals)]"
	$(PYTHON) -m benchmarks.$@ $(ARGS)

# Not a part of `make test`: Ray is large, and takes long to start.
ray: .make/package
	$(PYTHON) -m pip install --quiet --no-build-isolation --constraint .make/constraint --editable ".[ray]"
	$(PYTHON) -m pytest examples/test_batch_ray.py $(ARGS)

lint: .make/tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(PYTHON) -m benchmarks.readme_table --check

format: .make/tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

docs: .make/docs
	$(PYTHON) -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo docs/_build/html/index.html

# build/lib would bring modules into the wheel that are no longer in the tree. LibTorch's libraries are those of the torch
# that is installed where the wheel is: they are not copied into it.
wheel: .make/publish
	rm -rf build/lib* build/bdist* dist .make/wheel
	$(PYTHON) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir .make/wheel .
ifeq ($(shell uname -s),Linux)
	PATH="$(BIN):$$PATH" $(PYTHON) -m auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir dist .make/wheel/*.whl
else
	mkdir -p dist && mv .make/wheel/*.whl dist
endif
	$(PYTHON) -m twine check --strict dist/*.whl
	@ls dist/*.whl

clean:
	rm -rf .make build dist hrnet_fast.egg-info hrnet_fast/*.so bench.json bench.png docs/_build

# torch comes first and alone: what depends on it must never fetch another one.
.make/torch: .make/settings $(if $(wildcard $(PYTHON)),,always)
ifeq ($(PYTHON),$(VENV))
	$(BASE_PYTHON) -c "import sys; sys.exit('hrnet_fast needs Python 3.11 or newer: make BASE_PYTHON=python3.12 ...' if sys.version_info < (3, 11) else 0)"
	$(BASE_PYTHON) -m venv .venv
	$(PYTHON) -m pip install --quiet "$(TORCH)"
endif
	@touch $@

.make/package: .make/torch $(BUILT_FROM) $(if $(HAS_PACKAGE),,always)
	$(PYTHON) -m pip install --quiet "setuptools>=77" ninja
	@$(PYTHON) -c "import importlib.metadata as m; print('torch==' + m.version('torch'))" > .make/constraint
	$(PYTHON) -m pip install --quiet --no-build-isolation --constraint .make/constraint --editable ".[test]"
	@touch $@

# The package is there already, its compiled modules in place: only what the extra asks for is installed.
.make/tools: .make/package
	HRNET_FAST_NO_EXT=1 $(PYTHON) -m pip install --quiet --no-build-isolation --editable ".[dev]"
	@touch $@

.make/docs .make/publish: .make/package
	HRNET_FAST_NO_EXT=1 $(PYTHON) -m pip install --quiet --no-build-isolation --constraint .make/constraint --editable ".[$(@F)]"
	@touch $@
