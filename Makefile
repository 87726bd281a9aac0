# make train   a first run, from nothing to a trained network and its pictures
# make test    the test suite
# make install the virtual environment alone
PYTHON ?= python3
BIN := .venv/bin

train: install
	$(BIN)/python -m alexnet_mp.train --recipe mini --data builtin

test: install
	$(BIN)/python -m pytest

install: .venv/installed

.venv/installed: requirements.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=python3.12 names another")'
	$(PYTHON) -m venv .venv
	@case "$$(uname -sm)" in "Linux x86_64") ;; *) echo "triton and nvidia-dali are left out: their packages are for Linux x86-64";; esac
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .benchmarks

.PHONY: train test install clean
