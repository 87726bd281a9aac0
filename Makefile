# make train     a first run, from nothing to a trained network and its pictures
# make test      the test suite, but for what is slow
# make test-fast what needs neither other processes nor compilers nor whole runs: under a minute
# make test-slow what takes long, or repeats a quicker test with more cases, or needs the network
# make check     ruff: lint and format
# make install   the virtual environment alone
PYTHON ?= python3
BIN := .venv/bin

train: install
	$(BIN)/python -m alexnet_mp.train --recipe mini --data builtin

# Three processes of one thread each, for two cores: the tests are small, threads that wait for each other only cost
# time, and a fifth of the time a test waits for a process that it has started.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile

test: install
	$(PYTEST) -m "not slow"

test-fast: install
	$(PYTEST) -m "not process and not compile and not run and not slow"

test-slow: install
	$(PYTEST) -m slow

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

install: .venv/installed

.venv/installed: requirements.txt pyproject.toml setup.py $(wildcard csrc/*.cpp csrc/*/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=python3.12 names another")'
	$(PYTHON) -m venv .venv
	@case "$$(uname -sm)" in "Linux x86_64") ;; *) echo "triton and nvidia-dali are left out: their packages are for Linux x86-64";; esac
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@$(BIN)/python -c 'from alexnet_mp.kernels import dispatch; print(dispatch.description())'
	@touch $@

clean:
	rm -rf .venv build kernels/compiled.so *.egg-info .pytest_cache .benchmarks

.PHONY: train test test-fast test-slow check install clean
