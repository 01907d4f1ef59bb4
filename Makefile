# `make help` lists the targets; it is made from the comments behind `##`.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

# Where datasets are kept and where runs are written; environment or make variables.
DATA_ROOT ?= data
RUNS_ROOT ?= runs
export DATA_ROOT RUNS_ROOT

# What the training targets run: OPT="sgd adam adamw adahessian" SEEDS="1 2 3" or SEEDS=1-5, and
# further settings as ARGS="epochs=30 batch_size=128".
OPT ?= adahessian
SEEDS ?= 1
ARGS ?=
# Where they run: here, or as jobs of a profile of slurm/profiles/.
CLUSTER ?=
SWEEP ?= configs/sweeps/digits-lr.yaml
BENCHMARK ?= smoke
DATASET ?= cifar10

empty :=
comma := ,
list = $(subst $(empty) $(empty),$(comma),$(strip $(1)))
# `FILE... [key=value ...]`, the same here and on a cluster.
benchmark_file = $(if $(wildcard $(BENCHMARK)),$(BENCHMARK),configs/benchmarks/$(BENCHMARK).yaml)
train = $(PY) -m $(if $(CLUSTER),slurm.submit --profile $(CLUSTER),experiments.run)

# Only these can be set on make's command line: a misspelt one would have no effect, unnoticed.
variables := PYTHON DATA_ROOT RUNS_ROOT OPT SEEDS ARGS CLUSTER SWEEP BENCHMARK DATASET FUZZ_MINUTES
given := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
unknown := $(filter-out $(variables) MAKE% SHELL -%,$(given))
define explain
import sys; from experiments.errors import nearest; \
known, names = sys.argv[1].split(), sys.argv[2].split(); \
print(*(f"unknown variable {name}; {nearest(name.upper(), known)}" for name in names), sep="; ")
endef
ifneq ($(unknown),)
settings := $(foreach name,$(filter-out $(shell echo $(unknown) | tr a-z A-Z),$(unknown)),$(name)=$($(name)))
$(error $(shell $(PYTHON) -c '$(explain)' '$(variables)' '$(unknown)')$(if $(settings),; settings go into ARGS="$(settings)"))
endif

.DEFAULT_GOAL := help

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-24s %s\n", $$1, $$2}'
	@echo
	@echo '  Training targets take OPT="sgd adam adamw adahessian" SEEDS=1-5 ARGS="key=value ...";'
	@echo '  CLUSTER=slurm (or a profile) sends them to a cluster, CLUSTER=local to the background;'
	@echo '  DATA_ROOT (now $(DATA_ROOT)) and RUNS_ROOT (now $(RUNS_ROOT)) move data and results.'

setup: $(VENV)/.ready ## Create .venv and install the harness; does nothing where it is in place

# The stamps make a second `make setup` free, and a change of the requirements install again.
# uv installs in seconds what takes pip minutes; where it cannot be had, pip does the same.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed: make setup PYTHON=/path/to/python3.11' >&2; exit 2; }
	$(call install,harness)

# What only the tests need: JAX, the trainers, the packages that serve as oracles.
$(VENV)/.ready-for-tests: $(VENV)/.ready
	$(call install,harness$(comma)dev$(comma)jax$(comma)oracle$(comma)bench$(comma)trainers$(comma)paper-corpora)

# One make at a time: the second one waits, and finds what the first one has done. A venv without
# pip is what a make leaves that was ended while it made one.
define lock
import fcntl
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("Another make is installing: waiting for it ...", flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)
except OSError:  # a file system without locks
    pass
endef
export lock
define install
	@exec 9>>.venv.lock && $(PYTHON) -c "$$lock" || exit; \
	test -e $@ && test -z "$$(find $^ -newer $@)" && exit; \
	export PATH="$$PATH:$$PWD/$(VENV)/bin"; \
	test -x $(PY) && { command -v uv || $(PY) -m pip --version; } >/dev/null 2>&1 || \
		$(PYTHON) -m venv $(VENV) || exit; \
	echo 'Installing $(1) into $(VENV) ...'; \
	command -v uv >/dev/null || $(PY) -m pip install -q uv || true; \
	if command -v uv >/dev/null; then \
		uv pip install -q -p $(PY) -c constraints.txt -e '.[$(1)]'; \
	else \
		$(PY) -m pip install -q -c constraints.txt -e '.[$(1)]'; \
	fi && touch $@
endef

quickstart: setup ## Train on real images that need no download (about 5 minutes), then report
	$(PY) -m experiments.run configs/digits/resnet20.yaml epochs=30 optimizer=sgd,adam,adamw,adahessian seed=1-3
	$(PY) -m experiments.report --dataset digits

translation: setup ## German to English on CLDR's sentences, no download (about 5 minutes), then report
	$(PY) -m experiments.run configs/cldr/transformer.yaml optimizer=sgd,adamw,adahessian $(ARGS)
	$(PY) -m experiments.report --dataset cldr

language-model: setup ## The King James Bible, no download (about 8 minutes), then report
	$(PY) -m experiments.run configs/kjv/transformer.yaml optimizer=sgd,adamw,adahessian $(ARGS)
	$(PY) -m experiments.report --dataset kjv

digits-resnet20: ## ResNet-20 on scikit-learn's digits (no download)
fashion-mnist-resnet20: ## ResNet-20 on Fashion-MNIST
cifar10-resnet20: ## ResNet-20 on CIFAR-10, the paper's protocol
cifar10-resnet32: ## ResNet-32 on CIFAR-10, the paper's protocol
cifar100-resnet32: ## ResNet-32 on CIFAR-100
imagenet-resnet18: ## ResNet-18 on ImageNet (in DATA_ROOT/imagenet), the paper's protocol
imagenet-resnet50: ## ResNet-50 on ImageNet, Sassha's protocol
corpora: setup ## Download what corpora are made of into DATA_ROOT (ARGS=catalogues: for that one)
	@$(PY) -m experiments.corpora $(ARGS)

catalogues-transformer: config = configs/catalogues/transformer-small.yaml
catalogues-transformer: ## A small transformer on the messages of eight programs, German to English (after make corpora)
debian-transformer: config = configs/debian/transformer-small.yaml
debian-transformer: ## The same on LibreOffice, GNOME and a dictionary (after make corpora)
austen-transformer: config = configs/austen/transformer.yaml
austen-transformer: ## A causal transformer on Jane Austen's novels (after make corpora)
iwslt14-transformer: config = configs/iwslt14/transformer-small.yaml
iwslt14-transformer: ## The paper's small transformer, German to English (in DATA_ROOT)
wmt14-transformer: config = configs/wmt14/transformer-base.yaml
wmt14-transformer: ## The paper's base transformer, English to German (in DATA_ROOT)
ptb-transformer: config = configs/ptb/transformer.yaml
ptb-transformer: ## A causal transformer on Penn Treebank (in DATA_ROOT)
wikitext103-transformer: config = configs/wikitext103/transformer.yaml
wikitext103-transformer: ## A causal transformer on Wikitext-103 (in DATA_ROOT)
texts := catalogues-transformer debian-transformer austen-transformer iwslt14-transformer wmt14-transformer ptb-transformer wikitext103-transformer
experiments := digits-resnet20 fashion-mnist-resnet20 cifar10-resnet20 cifar10-resnet32 cifar100-resnet32 imagenet-resnet18 imagenet-resnet50
$(experiments): config = configs/$(subst -resnet,/resnet,$@).yaml
$(experiments) $(texts): setup
	@$(train) $(config) optimizer=$(call list,$(OPT)) seed=$(call list,$(SEEDS)) $(ARGS)

sweep: setup ## All runs of SWEEP=configs/sweeps/NAME.yaml
	@$(train) $(SWEEP) $(ARGS)

benchmark: $(VENV)/.ready-for-tests ## Optimizers to a target, equally tuned: BENCHMARK=NAME of configs/benchmarks/, or a file
	@$(train) $(benchmark_file) $(ARGS); trained=$$?; \
	$(if $(CLUSTER),,$(PY) -m experiments.report --benchmark $(benchmark_file) &&) exit $$trained

# Made of what has run and of what is committed below results/; CLUSTER trains what is missing.
table2: ## Test accuracy of four optimizers beside the paper's (DATASET=digits: on other data)
table6: ## Learning rates off by a factor of 0.5 to 10 (DATASET=iwslt14: on text)
table7: ## Block size of the curvature's average (DATASET=iwslt14: on text)
table8: ## The curvature at every n-th step: accuracy and cost
table3: ## BLEU of three optimizers (IWSLT14, WMT14; DATASET=catalogues, debian, cldr)
table4: ## Perplexity of three optimizers (PTB, Wikitext-103; DATASET=kjv, austen)
table3: DATASET = iwslt14
table4: DATASET = ptb
tables := table2 table6 table7 table8
$(tables) table3 table4: setup
	@$(if $(CLUSTER),\
	$(train) configs/tables/$@.yaml dataset=$(DATASET) $(ARGS),\
	$(PY) -m experiments.paper_table $@ --dataset $(DATASET) $(ARGS))

tables: $(tables) ## Tables 2, 6, 7 and 8

results: setup ## Write the finished runs to results/, as data to be committed
	@$(PY) -m experiments.export $(ARGS)

status: setup ## The state of every run, its result, attempts and job (ARGS="PATTERN --long --watch")
	@$(PY) -m slurm.status $(ARGS)

logs: setup ## What the jobs of runs wrote (ARGS="PATTERN --follow")
	@$(PY) -m slurm.logs $(ARGS)

cancel: setup ## End the jobs of runs, saved first (ARGS=PATTERN; '*' is all)
	@$(PY) -m slurm.cancel $(ARGS)

bench: $(VENV)/.ready-for-tests ## What a step costs in steps of SGD: both ways to H·z, public packages (30 minutes)
	$(PY) -m experiments.benchmarks.step $(ARGS)

bench-train: setup ## Epochs per minute, and where a step goes, beside a plain PyTorch loop (4 minutes)
	$(PY) -m experiments.benchmarks.training $(ARGS)

bench-log: setup ## What a row of steps.jsonl costs, in steps (5 minutes)
	$(PY) -m experiments.benchmarks.step_log $(ARGS)

bench-loader: setup ## Images per second of ImageNet's loader and of the network (2 minutes)
	$(PY) -m experiments.benchmarks.loader $(ARGS)

curvature-accuracy: setup ## Error of the finite difference over a zoo of networks
	$(PY) -m experiments.benchmarks.curvature_accuracy $(ARGS)

# On a bare machine, too: with its own Python where there is no .venv.
gpu: ## Tests and benchmarks for a GPU (9 minutes; goes on where it stopped), then docs/gpu.md
	@$(or $(wildcard $(PY)),$(PYTHON)) -m experiments.benchmarks.gpu $(ARGS); status=$$?; \
	$(or $(wildcard $(PY)),$(PYTHON)) -m experiments.benchmarks.gpu_report && exit $$status

spectrum: setup ## Eigenvalues, trace and density of the newest finished run
	$(PY) -m experiments.spectrum $(ARGS)

jax-digits: $(VENV)/.ready-for-tests ## Adam beside AdaHessian in JAX, on scikit-learn's digits
	$(PY) -m experiments.ports.jax_digits

jax-bench: $(VENV)/.ready-for-tests ## What a JAX step costs, in steps of Adam and beside torch
	$(PY) -m experiments.benchmarks.jax_step

evaluate: setup ## The metrics of the newest finished run's checkpoint, or of ARGS="RUN_DIR --data FOLDER"
	@$(PY) -m experiments.evaluate $(ARGS)

# In an environment of its own, .venv-keras, with TensorFlow.
keras-digits: setup ## Adam beside AdaHessian in Keras on each of its backends, on scikit-learn's digits
	@$(PY) .ci/matrix.py keras --install
	@for backend in tensorflow jax torch; do \
		KERAS_BACKEND=$$backend .venv-keras/bin/python -m experiments.ports.keras_digits $(ARGS) || exit 1; \
	done

figures: setup ## The paper's curves with ours over them, its Fig. 1 and 3, and test functions (80 seconds)
	@$(PY) -m experiments.figures $(ARGS)

landscape-search: setup ## Repeat the search for the settings on Rosenbrock's and Rastrigin's function
	$(PY) -m experiments.landscapes.search

report: setup ## Tables, pictures and a page (report.html) of all runs, or of ARGS="--sweep NAME"
	@$(PY) -m experiments.report $(ARGS)

wandb-sync: setup ## Upload to wandb what it lacks of the runs
	@$(PY) -m experiments.upload

dashboard: setup ## The runs side by side: on wandb with a key, else in the terminal
	@$(PY) -m experiments.dashboard

# What depends on clusters, signals and servers gets a second chance; -ra names what took it.
PYTEST = $(PY) -m pytest -n auto --maxprocesses 4 --reruns 2
test: $(VENV)/.ready-for-tests ## The fast tests, in parallel (17 minutes on 2 cores)
	$(PYTEST) -m 'not slow' --reruns-delay 2

# The report page's tests look at it in a browser. On other systems than Debian's: install one.
browser: ## Install Chromium, for the slow tests (Debian, as root); does nothing where there is one
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
		{ apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium; } || \
		echo 'No Chromium: the tests that need a browser will say so.'

# The slow ones wait more than they compute: one more at a time than there are cores.
test-all: test browser ## The fast tests, and the slow ones after them (35 minutes more)
	PYTEST_XDIST_AUTO_NUM_WORKERS=$$($(PY) -c 'import os; print(os.cpu_count() + 1)') \
		$(PYTEST) -m slow --reruns-delay 5

slurm-test: $(VENV)/.ready-for-tests ## Every fault that a run must survive, on a real Slurm that it starts
	$(PY) -m pytest -s tests/cluster/test_slurm.py tests/cluster/test_sweep.py

FUZZ_MINUTES ?= 120
fuzz: $(VENV)/.ready-for-tests ## Both ways to H·z on random networks, for FUZZ_MINUTES=120
	FUZZ_MINUTES=$(FUZZ_MINUTES) nice $(PY) -m pytest -s tests/library/curvature/test_fuzz.py

docs: $(VENV)/.ready-for-tests ## Build the documentation's site into build/site (20 seconds)
	$(PY) -m tools.site

nightly: $(VENV)/.ready-for-tests browser ## What takes hours: all of .ci/matrix.yaml; writes .ci/nightly.md
	$(PY) .ci/matrix.py --in nightly

lint: $(VENV)/.ready-for-tests ## Check style, formatting, spelling and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell
	$(VENV)/bin/pyrefly check
	$(VENV)/bin/pyrefly check --preset basic experiments slurm

format: $(VENV)/.ready-for-tests ## Repair style and formatting
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

.PHONY: help setup quickstart corpora translation language-model $(experiments) $(texts) $(tables) table3 table4 tables results bench bench-train bench-log bench-loader curvature-accuracy gpu spectrum evaluate jax-digits jax-bench keras-digits figures landscape-search report wandb-sync dashboard sweep status logs cancel slurm-test test browser test-all docs nightly lint format
