#!/usr/bin/env bash
# Everything a machine with a GPU must tell of this installation, most valuable first: OUT/steps.json, and a log a stage.
#
#   tools/gpu_check.sh [OUT]        default: benchmarks/records/<device>/
#
# Each stage leaves OUT/<stage>.done when it has passed, with the commit; a second call on that commit goes on with the others.
set -uo pipefail
here=$PWD
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

device=$($PYTHON -c '
import re, torch
if not torch.cuda.is_available():
    raise SystemExit("no CUDA device was found: nothing to check")
print(re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-"))') || exit 2
out=${1:-$PWD/benchmarks/records/$device}
case $out in /*) ;; *) out=$here/$out ;; esac
mkdir -p "$out"
commit=$(git rev-parse HEAD 2>/dev/null || echo none)
failed=0

stage() {  # stage NAME COMMAND...
    local name=$1
    shift
    if [ "$(cat "$out/$name.done" 2>/dev/null)" = "$commit" ]; then
        echo "== $name: passed before"
    elif echo "== $name" && "$@" >"$out/$name.log" 2>&1; then
        echo "$commit" >"$out/$name.done"
        tail -n 3 "$out/$name.log"
    else
        tail -n 30 "$out/$name.log"
        echo "== $name FAILED, its output is in $out/$name.log"
        failed=1
    fi
}

import_project() { $PYTHON -c 'import alexnet_mp' 2>/dev/null || $PYTHON -m pip install --no-build-isolation --no-deps --editable .; }
one_run() { rm -rf "$out/run-$1"; $PYTHON -m alexnet_mp.train --recipe mini --data builtin --gpus "$1" --out "$out/run-$1"; }

stage build import_project
stage exchange "$PYTHON" -m pytest tests/test_exchange.py tests/test_golden.py -q
stage steps "$PYTHON" -m pytest benchmarks --benchmark-only -q --benchmark-json="$out/steps.json"
stage train-one-device one_run 0
stage train-cpu-and-gpu one_run cpu,0
if $PYTHON -c 'import sys, torch; sys.exit(torch.cuda.device_count() < 2)'; then
    stage train-two-devices one_run 0,1
else
    echo "== train-two-devices: skipped, there is one GPU"
fi
stage tests "$PYTHON" -m pytest -q
exit $failed
