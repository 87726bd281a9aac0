#!/usr/bin/env bash
# What a machine with a GPU must tell of this installation, most valuable first; it goes on where it stopped.
#
#   tools/gpu_check.sh [RESULTS] [--minutes 9] [--from EARLIER] [--wheels FOLDER]      --help tells all
#
# PYTHON=... names another Python than .venv's. tools/gpu_check/stages.py lists the stages, with the reasons.
here=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-$("$here/.venv/bin/python" -c '' 2>/dev/null && echo "$here/.venv/bin/python" || echo python3)}
PYTHONPATH=$here/tools${PYTHONPATH:+:$PYTHONPATH} exec "$PYTHON" -m gpu_check "$@"
