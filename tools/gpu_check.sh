#!/usr/bin/env bash
# Everything a machine with a GPU must tell of this installation, most valuable first: JSON, and a log a stage, in ROOT/<device>.
#
#   tools/gpu_check.sh [ROOT]       default: benchmarks/records; PYTHON=... names another Python than .venv's
#
#   check.json       the stages, passed or failed, and their seconds
#   build.json       which kernels were built, with which toolkit
#   roof.json        what a copy and matrix products reach on this device
#   resources.json   registers, stack, shared memory and instructions of every compiled CUDA kernel
#   sass.json        instructions per element of the tuned ones (tools/count_sass.py)
#   <date>-<commit>-<stage>.json    the benchmarks' records (benchmarks/record.py)
#
# Each stage leaves <stage>.done when it has passed; a second call on the same source goes on with the others.
set -uo pipefail
here=$PWD
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

device=$($PYTHON -c '
import re
try:
    import torch
except ImportError:
    raise SystemExit("torch is not importable: make install, or name a Python that has it, PYTHON=...")
if not torch.cuda.is_available():
    raise SystemExit("no CUDA device was found: nothing to check")
print(re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-"))') || exit 2
$PYTHON -c '
import importlib.util
missing = [name for name in ("triton", "numpy", "PIL", "pydantic", "safetensors", "rich", "matplotlib", "jinja2", "tensorboard", "pytest",
                             "pytest_benchmark") if importlib.util.find_spec(name) is None]
raise SystemExit(f"not installed: {chr(44).join(missing)}; make install has them all" if missing else 0)' || exit 2
root=${1:-$PWD/benchmarks/records}
case $root in /*) ;; *) root=$here/$root ;; esac
out=$root/$device
mkdir -p "$out"
commit=$(git rev-parse HEAD 2>/dev/null || echo none)
source=$(find alexnet_mp kernels csrc benchmarks tests tools setup.py -type f \( -name '*.py' -o -name '*.c*' -o -name '*.h' -o -name '*.sh' \) \
    -print0 | LC_ALL=C sort -z | xargs -0 sha1sum | sha1sum | cut -c1-40)
failed=0
stages=""

say() {  # say STAGE STATE SECONDS: into check.json, after every stage, since the machine may be gone before the last
    stages+="${stages:+,}
  \"$1\": {\"state\": \"$2\", \"seconds\": $3}"
    printf '{\n "device": "%s",\n "commit": "%s",\n "date": "%s",\n "stages": {%s\n }\n}\n' "$device" "$commit" \
        "$(date -u +%Y-%m-%dT%H:%M:%S)" "$stages" >"$out/check.json"
}

stage() {  # stage NAME COMMAND...
    local name=$1 start=$SECONDS
    shift
    if [ "$(cat "$out/$name.done" 2>/dev/null)" = "$source" ]; then
        echo "== $name: passed before"
        say "$name" "passed before" 0
    elif echo "== $name" && "$@" >"$out/$name.log" 2>&1; then
        echo "$source" >"$out/$name.done"
        tail -n 3 "$out/$name.log"
        say "$name" passed $((SECONDS - start))
    else
        tail -n 30 "$out/$name.log"
        echo "== $name FAILED, its output is in $out/$name.log"
        say "$name" failed $((SECONDS - start))
        failed=1
    fi
}

skip() {  # skip NAME WHY
    echo "== $1: skipped, $2"
    say "$1" "skipped: $2" 0
}

built() {  # whether the CUDA kernels are here and fit this torch
    $PYTHON -c 'from alexnet_mp.kernels import ops; raise SystemExit("cuda" not in ops.built())'
}

build() {
    $PYTHON -m pip install --no-build-isolation --no-deps --editable . && $PYTHON - "$out/build.json" <<'PYTHON' && built
import json, shutil, subprocess, sys
import torch
from alexnet_mp.kernels import ops
nvcc = shutil.which("nvcc")
toolkit = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout.strip().splitlines()[-1] if nvcc else None
facts = {"kernels": list(ops.built()), "auto": ops.resolve("auto", "cuda:0"), "torch": torch.__version__,
         "cuda": torch.version.cuda, "nvcc": toolkit, "capability": torch.cuda.get_device_capability(0)}
with open(sys.argv[1], "w") as file:
    file.write(json.dumps(facts, indent=1) + "\n")
print(ops.description())
PYTHON
}

# Every kernel once on small maps, full and partial tiles, against the reference: short enough for compute-sanitizer.
KERNELS_ONCE='
import torch
from alexnet_mp.kernels import (augment, lrn, lrn_max_pool, max_pool, ops, paper_sgd_, reference, relu_dropout,
                                spatial_norm_max_pool)
torch.manual_seed(0)
for kernels in [name for name in ops.built() if name != "cpu"]:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for shape in ((2, 48, 11, 13), (1, 128, 8, 27), (1, 5, 4, 3)):
            for layout in (torch.channels_last, torch.contiguous_format):
                x = (20 * torch.randn(shape, device="cuda")).to(dtype, memory_format=layout).requires_grad_()
                bias = torch.randn(shape[1], device="cuda", requires_grad=True)
                for ours, plain, extra in (
                        (lrn_max_pool, reference.lrn_max_pool, dict(alpha=1e-3)),
                        (lrn_max_pool, reference.lrn_max_pool, dict(alpha=1e-3, relu="after", ties="all")),
                        (max_pool, reference.max_pool, {}), (lrn, reference.lrn, dict(alpha=1e-3)),
                        (spatial_norm_max_pool, reference.spatial_norm_max_pool, dict(alpha=1e-3))):
                    arguments = (x,) if ours is spatial_norm_max_pool else (x, bias)
                    y = ours(*arguments, **extra, kernels=kernels)
                    torch.autograd.grad(y.float().square().sum(), arguments)
                    torch.testing.assert_close(y, plain(*arguments, **extra))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for shape in ((3, 192, 13, 13), (2, 20, 7, 5), (5, 2048), (3, 1000), (7, 5)):
            layout = torch.channels_last if shape[1] == 192 else torch.contiguous_format
            x = torch.randn(shape, device="cuda").to(dtype, memory_format=layout).requires_grad_()
            bias, step = torch.randn(shape[1], device="cuda", requires_grad=True), torch.tensor(7, device="cuda")
            for probability in (0.0, 0.5):
                arguments = dict(probability=probability, seed=1, step=step, layer=5, tower=1)
                found, plain = relu_dropout(x, bias, **arguments, kernels=kernels), reference.relu_dropout(x, bias, **arguments)
                torch.testing.assert_close(found, plain, rtol=0, atol=0)
                (dx, dbias), (plain_dx, plain_dbias) = (torch.autograd.grad(y.float().sum(), (x, bias)) for y in (found, plain))
                torch.testing.assert_close(dx, plain_dx, rtol=0, atol=0)
                torch.testing.assert_close(dbias, plain_dbias, rtol=1e-5, atol=1e-4)
    tensors = [[torch.randn(size, device="cuda") for size in (1, 4097, 100_003)] for _ in range(3)]
    expected = [[tensor.clone() for tensor in part] for part in tensors]
    for update, (w, g, v) in ((reference.paper_sgd_, expected), (lambda *a, **k: paper_sgd_(*a, **k, kernels=kernels), tensors)):
        update(w, g, v, learning_rates=[0.1, 0.0, 0.01], momentum=0.9, weight_decays=[5e-4] * 3)
    torch.testing.assert_close(tensors, expected)
    pictures = torch.randint(0, 256, (3, 40, 40, 3), dtype=torch.uint8, device="cuda")
    arguments = (pictures, torch.tensor([0, 3, 8]), torch.tensor([8, 0, 5]), torch.tensor([True, False, True]),
                 255 * torch.rand(40, 40, 3, device="cuda"), torch.randn(3, 3), 0.9)
    for follows in (True, False):
        found, plain = (augment(*arguments, crop=32, mean_follows_crop=follows, kernels=who) for who in (kernels, "reference"))
        torch.testing.assert_close(found, plain, rtol=0, atol=0)
torch.cuda.synchronize()
print("every kernel agrees with the reference:", ", ".join(ops.built()))
'
sanitize() {  # sanitize TOOL; without torch's cache, every tensor is an allocation whose ends are watched
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 1 "$PYTHON" -c "$KERNELS_ONCE"
}

roof() {
    $PYTHON - "$out/roof.json" <<'PYTHON'
import json, statistics, sys
import torch

def seconds(run, repeats=20):
    times = []
    for _ in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(); run(); end.record(); torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times[3:])

x = torch.randn(2**30 // 4, device="cuda")
y = torch.empty_like(x)
facts = {"device": torch.cuda.get_device_name(0), "copy_gb_per_s": 2 * x.nbytes / seconds(lambda: y.copy_(x)) / 1e9}
for name, dtype, tf32 in (("bf16", torch.bfloat16, False), ("tf32", torch.float32, True), ("fp32", torch.float32, False)):
    torch.backends.cuda.matmul.allow_tf32 = tf32
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
    facts[f"{name}_tflop_per_s"] = 2 * 8192**3 / seconds(lambda: a @ b) / 1e12
with open(sys.argv[1], "w") as file:
    file.write(json.dumps(facts, indent=1) + "\n")
print(json.dumps(facts))
PYTHON
}

resources() {  # spills are LDL and STL instructions, or a stack above 0
    $PYTHON - "$out/resources.json" kernels/compiled.so <<'PYTHON'
import json, re, subprocess, sys

def lines(*flags):
    return subprocess.run(["cuobjdump", *flags, sys.argv[2]], capture_output=True, text=True, check=True).stdout.splitlines()

kernels, architecture, function = {}, "", ""
for line in lines("-res-usage"):
    if found := re.search(r"arch = (\w+)", line):
        architecture = found[1]
    elif found := re.search(r"Function (\S+):$", line):
        function = found[1]
    elif found := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", line):
        kernels[f"{architecture} {function}"] = dict(zip(("registers", "stack", "shared"), map(int, found.groups()), strict=True),
                                                     instructions=0, local=0)
for line in lines("-sass"):
    if found := re.search(r"arch = (\w+)", line):
        architecture = found[1]
    elif found := re.search(r"Function : (\S+)", line):
        function = found[1]
    elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)", line):
        if (kernel := kernels.get(f"{architecture} {function}")) and found[1] != "NOP":
            kernel["instructions"] += 1
            kernel["local"] += found[1] in ("LDL", "STL")
with open(sys.argv[1], "w") as file:
    file.write("{\n" + ",\n".join(f" {json.dumps(name)}: {json.dumps(facts)}" for name, facts in kernels.items()) + "\n}\n")
spilling = [name for name, facts in kernels.items() if facts["stack"] or facts["local"]]
print(f"{len(kernels)} kernels, {len(spilling)} with a stack or spills", *spilling)
raise SystemExit(not kernels)
PYTHON
}

count_sass() { $PYTHON tools/count_sass.py --json >"$out/sass.json"; }
one_run() { rm -rf "$out/run-$1"; $PYTHON -m alexnet_mp.train --recipe mini --data builtin --out "$out/run-$1" --gpus "$@"; }
bench() { $PYTHON benchmarks/record.py --records "$root" --name "$1" -q -k "$2"; }

built 2>/dev/null || rm -f "$out/build.done"  # a new machine, or another torch
stage build build
stage kernel-tests "$PYTHON" -m pytest -q $(ls tests/test_{lrn_pool,relu,sgd,ops,triton,cuda,augmentation,pipeline}*.py 2>/dev/null)
stage kernels-once "$PYTHON" -c "$KERNELS_ONCE"
stage roof roof
stage graphs "$PYTHON" -m pytest -q tests/test_graphed_step.py tests/test_graphed_runs.py tests/test_segments.py tests/test_taken_steps.py
stage lrn-pool-bf16 bench lrn-pool-bf16 "test_lrn_pool and cuda and bf16 and channels_last"
stage lrn-pool-fp32 bench lrn-pool-fp32 "test_lrn_pool and cuda and fp32 and channels_last"
stage sgd bench sgd "test_sgd and cuda"
for tool in memcheck racecheck synccheck initcheck; do
    if command -v compute-sanitizer >/dev/null; then
        stage "$tool" sanitize "$tool"
    else
        skip "$tool" "compute-sanitizer is not on PATH"
    fi
done
if command -v cuobjdump >/dev/null; then
    stage resources resources
else
    skip resources "cuobjdump is not on PATH"
fi
if command -v nvcc >/dev/null; then
    stage sass count_sass
else
    skip sass "nvcc is not on PATH"
fi
for case in fp32-b128 bf16-b128 bf16-b1024; do
    stage "step-$case" bench "step-$case" "test_speed_step and $case"
done
stage pipeline bench pipeline "test_speed_pipeline and cuda"
stage resume "$PYTHON" -m pytest tests/test_resume_gpu.py tests/test_trainer.py -q
stage checkpoint bench checkpoint test_speed_checkpoint
stage exchange "$PYTHON" -m pytest tests/test_exchange.py tests/test_exchange_overlap.py tests/test_golden.py -q
stage exchange-speed bench exchange "test_exchange and gpu"
stage two-gpus bench two-gpus "test_step_of_towers and gpu and not cpu"
stage train-one-device one_run 0 --graphs on
stage train-cpu-and-gpu one_run cpu,0
if $PYTHON -c 'import sys, torch; sys.exit(torch.cuda.device_count() < 2)'; then
    stage train-two-devices one_run 0,1 --graphs on
else
    skip train-two-devices "there is one GPU"
fi
stage lrn-pool-nchw bench lrn-pool-nchw "test_lrn_pool and cuda and nchw"
stage lrn-pool-fp16 bench lrn-pool-fp16 "test_lrn_pool and cuda and fp16 and channels_last"
stage tests "$PYTHON" -m pytest -q
exit $failed
