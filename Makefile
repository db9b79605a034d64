# mpistream: set-up, demo, tests. `make help` lists the targets.

# Debian's Python and OpenMPI. On a cluster, with its own MPI and HDF5:
#   make setup SYSTEM_PACKAGES=no PYTHON=python3 MPICC=cc HDF5_PKGCONFIG= MPI4PY_FLAGS="--no-binary mpi4py"
PYTHON ?= /usr/bin/python3
MPICC ?= mpicc.openmpi
HDF5_PKGCONFIG ?= hdf5-openmpi
SYSTEM_PACKAGES ?= yes
MPI4PY_FLAGS ?=

PACKAGES := build-essential pkg-config python3 python3-venv python3-dev \
            openmpi-bin libopenmpi-dev libhdf5-openmpi-dev etcd-server etcd-client iproute2 nftables \
            slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge libpmix2 numactl rsync shellcheck
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
KERNELS := $(wildcard ext/*.pyx ext/*.h)
FUZZERS := build/fuzz_counting build/fuzz_statistics
FUZZ_SECONDS ?= 60
FUZZ_SEED ?= $(shell date +%s)
FAULT_TRIALS ?= 40
FAULT_SEED ?= $(shell date +%s)
SANITIZERS := address,undefined,float-cast-overflow

.PHONY: help setup demo test test-cluster lint fuzz faults jobs format clean
.DELETE_ON_ERROR:

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: $(VENV)/built ## system packages, the virtual environment .venv, the compiled extension

demo: setup ## a 64 x 65 scan streamed, counted, assembled, opened and shown (KEEP=1 keeps the sector files)
	@$(BIN)/mpistream demo $(if $(KEEP),--keep)

test: setup lint ## the tests, with real MPI, ZeroMQ, etcd, parallel HDF5 and Slurm; all but those of test-cluster
	$(BIN)/python -m pytest tests/unit --numprocesses 2
	$(BIN)/python -m pytest tests/slurm tests/mpi tests/system -m "not cluster" --numprocesses 2 --no-loadscope-reorder
	$(BIN)/python -m pytest tests/faults

test-cluster: setup ## batch jobs at length: every mode, time limits, requeues, dying nodes (as root; ten minutes)
	$(BIN)/python -m pytest tests/slurm tests/system -m cluster --numprocesses 2 --no-loadscope-reorder

lint: setup ## ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: setup $(FUZZERS) ## random frames through the kernels under sanitizers, FUZZ_SECONDS each (60); FUZZ_SEED repeats
	@for fuzzer in $(FUZZERS); do $$fuzzer $(FUZZ_SEED) 1000000000 $(FUZZ_SECONDS) || exit 1; done

build/fuzz_%: tests/fuzz/fuzz_%.c $(wildcard tests/fuzz/*.h ext/*.h)
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O1 -g -ffp-contract=off -fsanitize=$(SANITIZERS) -fno-sanitize-recover=all \
	    -Wall -Wextra -Iext $< -o $@ -lm

faults: setup ## kills, cut links, full disks while scans stream: FAULT_TRIALS kills (40), repeated with FAULT_SEED
	@mkdir -p build
	@$(BIN)/python -m tests.faults campaign --trials $(FAULT_TRIALS) --seed $(FAULT_SEED) --json build/faults.json; \
	    campaign=$$?; $(BIN)/python -m tests.faults soak --json build/soak.json && exit $$campaign

jobs: setup ## jobs/MODE.sh anew, from the templates
	@$(BIN)/mpistream job plain jobs

format: setup ## rewrites the sources as ruff wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## removes what was built and the virtual environment
	rm -rf $(VENV) build *.egg-info mpistream/_ext/*.so demo-output

# Each stamp below is newer than all it was made from; a second run does nothing.

$(VENV)/system: Makefile
	@mkdir -p $(VENV)
	@if [ "$(SYSTEM_PACKAGES)" = yes ]; then \
	    missing=$$(for package in $(PACKAGES); do \
	        dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || echo $$package; done); \
	    if [ -n "$$missing" ]; then \
	        echo "installing Debian packages:" $$missing; \
	        $(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq \
	            --no-install-recommends $$missing >$(VENV)/apt.log 2>&1 || { tail -n 20 $(VENV)/apt.log; exit 1; }; \
	    fi; \
	fi
	@touch $@

# h5py is compiled against the parallel HDF5. Without build isolation it uses the mpi4py installed here;
# with it pip would compile mpi4py again for minutes. -O1 suffices: HDF5 does the work.
$(VENV)/python: $(VENV)/system pyproject.toml
	@echo "making the virtual environment $(VENV) (about two minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade "pip>=24"
	@$(PIP) install "setuptools>=77.0.1,<81" wheel "Cython>=3,<4" pkgconfig packaging "numpy>=2,<3"
	@MPICC=$(MPICC) $(PIP) install $(MPI4PY_FLAGS) "mpi4py>=4.1,<5"
	@if ! $(BIN)/python -c 'import h5py, sys; sys.exit(not h5py.get_config().mpi)' 2>/dev/null; then \
	    echo "compiling h5py against parallel HDF5"; \
	    printf '[build_ext]\nparallel=2\n' > $(VENV)/dist.cfg; \
	    CC=$(MPICC) HDF5_MPI=ON $(if $(HDF5_PKGCONFIG),HDF5_PKGCONFIG_NAME=$(HDF5_PKGCONFIG)) CFLAGS="-O1 -g0" \
	    DIST_EXTRA_CONFIG=$(CURDIR)/$(VENV)/dist.cfg \
	    $(PIP) install --no-build-isolation --no-binary h5py --no-cache-dir "h5py>=3.16,<3.17"; \
	fi
	@touch $@

$(VENV)/built: $(VENV)/python setup.py $(KERNELS)
	@echo "building the extension"
	@$(PIP) install --no-build-isolation --editable ".[test]" >$(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }
	@touch $@
