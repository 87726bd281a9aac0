#!/usr/bin/env bash
# Once a change of versions: builds and tests against the oldest and the newest supported torch, each in an environment of its own.
#
#   tools/torch_versions.sh WORK [VERSION...]      default: 2.11.0 2.14.1, the ends of the range in pyproject.toml
#
# For each version: requirements.txt with that torch, and the Triton that it pins; the kernels built with it, and the test suite.
# Then the library that was built with the pinned torch, if this checkout's environment has one, is loaded beside it, and the tests
# of the kernels run with that: what the wheel does. A line a version tells how it ended; WORK/VERSION/*.log have the rest.
#
# Where PyPI's torch is a CUDA build, some gigabytes each: PIP_EXTRA_INDEX_URL names an index of CPU builds. PYTHON=... names another
# Python than python3.
set -uo pipefail
[ $# -ge 1 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }
repository=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1"
work=$(cd "$1" && pwd)
shift
[ $# -gt 0 ] || set -- 2.11.0 2.14.1

triton_of() {  # as tests/tools/test_setup.py lists them
    case "$1" in
        2.11.*) echo 3.6.0 ;;
        2.12.0) echo 3.7.0 ;;
        2.12.* | 2.13.*) echo 3.7.1 ;;
        *) echo 3.8.0 ;;
    esac
}

check() {  # VERSION FOLDER
    local bin=$2/.venv/bin
    rm -rf "$2" && mkdir -p "$2" || return
    git -C "$repository" archive HEAD | tar -x -C "$2" || return
    "${PYTHON:-python3}" -m venv "$2/.venv" || return
    sed "s/^torch==.*/torch==$1/; s/^triton==[0-9.]*/triton==$(triton_of "$1")/; s/^setuptools==.*/setuptools>=77/" "$2/requirements.txt" >"$2/these.txt"
    "$bin/pip" install --quiet --disable-pip-version-check -r "$2/these.txt" >"$2/install.log" 2>&1 || { echo "no installation"; return 1; }
    (cd "$2" && "$bin/pip" install --disable-pip-version-check -v --no-build-isolation --no-deps -e .) >"$2/build.log" 2>&1 ||
        { echo "no build"; return 1; }
    [ -e "$2/kernels/compiled.so" ] || { echo "no compiled kernels"; return 1; }
    (cd "$2" && OMP_NUM_THREADS=1 "$bin/python" -m pytest -q -n 2 --dist loadfile -m "not slow") >"$2/test.log" 2>&1 ||
        { echo "tests fail: $(tail -n 1 "$2/test.log")"; return 1; }
    [ -e "$repository/kernels/compiled.so" ] || { echo "passed; no library of the pinned torch to load"; return; }
    cp "$repository/kernels/compiled.so" "$2/kernels/compiled.so"
    (cd "$2" && OMP_NUM_THREADS=1 "$bin/python" -m pytest -q tests/kernels -m "not slow") >"$2/pinned.log" 2>&1 ||
        { echo "the pinned torch's library fails: $(tail -n 1 "$2/pinned.log")"; return 1; }
    echo "passed, with its own library and with the pinned torch's"
}

status=0
for version in "$@"; do
    said=$(check "$version" "$work/$version") || status=1
    echo "torch $version: ${said:-failed}"
done
exit $status
