# Each target brings its own set-up: python3 (3.11 to 3.13), git and make are all that it needs.

.DEFAULT_GOAL := help
.PHONY: help validate test check lint setup compat

MODEL ?= tiny
ARGS ?=
VENV ?= .venv
WORKERS ?= auto
RUN := $(VENV)/bin/python

# The first of these that is a Python this package runs on; `make PYTHON=...` names another.
PYTHON ?= $(shell for name in python3 python3.12 python3.13 python3.11; do \
	"$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && echo "$$name" && break; done)

# openmm-torch for what the GPU's driver can run, else for the CPU; `make EXTRA=cuda12` decides.
CUDA_VERSION := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9]*\).*/\1/p' | head -n 1)
ifeq ($(CUDA_VERSION),)
EXTRA ?= cpu
else ifeq ($(CUDA_VERSION),12)
EXTRA ?= cuda12
else
EXTRA ?= cuda13
endif

# Stamps: what has been installed is not installed again until one of these two files changes.
CREATED := $(VENV)/.created
RUNNING := $(VENV)/.installed-$(EXTRA)
TESTING := $(VENV)/.installed-$(EXTRA)-for-tests
OTHERS := $(filter-out $(VENV)/.installed-$(EXTRA)%,$(wildcard $(VENV)/.installed-*))
VERSIONS := pyproject.toml constraints.txt

help: ## list the targets
	@echo "make validate   install into $(VENV), then run: omm-mlff validate --model $(MODEL) $(ARGS)"
	@echo "make test       install what the tests need, then run them on all cores with coverage"
	@echo "make check      lint, format, types and tests"
	@echo "make lint       lint, format and types only"
	@echo "make compat     the smoke tests in the oldest and newest versions that are admitted: some GB"
	@echo "make setup      install only, with everything that tests and training need"
	@echo
	@echo "variables: MODEL=$(MODEL)  ARGS='--profile standard'  EXTRA=$(EXTRA) (cpu, cuda12, cuda13)"
	@echo "           PYTHON=$(PYTHON)  VENV=$(VENV)  WORKERS=$(WORKERS) (processes of make test)"

# A verdict was reached: 0 approved, 1 rejected or not recommended, 3 undecided. All else failed.
validate: $(RUNNING)
	@$(VENV)/bin/omm-mlff validate --model $(MODEL) $(ARGS); code=$$?; \
	case $$code in 0|1|3) exit 0 ;; *) exit $$code ;; esac

test: $(TESTING)
	$(RUN) -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder \
		--cov=omm_mlff --cov-report=term:skip-covered --cov-fail-under=80

lint: $(TESTING)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

check: lint test

compat: $(TESTING)
	PYTHON=$(abspath $(RUN)) scripts/compat.sh $(LAYERS)

setup: $(TESTING)
	@echo "$(VENV) is ready: $(VENV)/bin/omm-mlff --help"

$(CREATED):
	@if [ -z "$(PYTHON)" ]; then \
		echo "error: omm-mlff needs Python 3.11 to 3.13; found $$(python3 --version 2>&1)." \
			"Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "error: omm-mlff needs Python 3.11 to 3.13; $(PYTHON) is $$("$(PYTHON)" --version 2>&1)" >&2; \
		exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "error: $(PYTHON) lacks venv; on Debian or Ubuntu: apt-get install python3-venv" >&2; \
		exit 1; }
	@echo "creating $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv --clear "$(VENV)"
	@touch $@

# $(call install,EXTRAS): the three plugin wheels share files, so another one goes first.
define install
	@case "$(EXTRA)" in cpu|cuda12|cuda13) ;; *) \
		echo "error: EXTRA is cpu, cuda12 or cuda13, not '$(EXTRA)'" >&2; exit 2 ;; esac
	@if [ -n "$(OTHERS)" ]; then rm -f $(OTHERS); \
		$(RUN) -m pip uninstall -qq -y acellera-openmmtorch-cpu acellera-openmmtorch-cu12 \
			acellera-openmmtorch-cu13; fi
	@echo "installing omm-mlff[$(1)] into $(VENV): some GB and some minutes the first time"
	@$(RUN) -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[$(1)]"
	@touch $@
endef

$(RUNNING): $(CREATED) $(VERSIONS)
	$(call install,$(EXTRA))

$(TESTING): $(CREATED) $(VERSIONS)
	$(call install,$(EXTRA)$(comma)report$(comma)teacher$(comma)xtb$(comma)ml$(comma)ase$(comma)physics$(comma)dev)
	@touch $(RUNNING)

comma := ,
