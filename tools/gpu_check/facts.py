"""What a machine is asked beside tests and benchmarks, each answer as JSON. With tools/ in PYTHONPATH:

python -m gpu_check.facts environment FILE    devices, driver, versions, processor, memory
python -m gpu_check.facts build FILE          build the kernels; it fails where there are no CUDA ones among them
python -m gpu_check.facts built               the status is 0 if there are CUDA ones
python -m gpu_check.facts roof FILE           what a copy and products reach on the first device
python -m gpu_check.facts resources FILE      registers, stack, shared memory, instructions of the CUDA kernels
python -m gpu_check.facts train RUN FOLDER ...  a training run with these arguments, its metrics into FOLDER; it
                                              fails where nothing was learned, and with --profile where
                                              milliseconds of a device are missing; with --towers apart
                                              torchrun starts it, in two processes
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

LEARNED = 50.0  # per cent of top-1 error: chance is 93.75 on the embedded pictures, and `mini` ends below 1


def write(path, facts):
    Path(path).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def said(*command):
    """What a program prints, None where it isn't there or fails."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60, encoding="utf-8"
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def environment(file):
    import torch  # not the package, which may not be built yet

    devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    packages = sorted((str(dist.metadata["Name"]), dist.version) for dist in importlib.metadata.distributions())
    write(
        file,
        {
            "devices": [
                {
                    "name": device.name,
                    "capability": [device.major, device.minor],
                    "bytes": device.total_memory,
                    "multiprocessors": device.multi_processor_count,
                }
                for device in devices
            ],
            "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if devices else None,
            "nvcc": said("nvcc", "--version"),
            "compiler": said(os.environ.get("CXX", "c++"), "--version"),
            "python": sys.version,
            "kernel": platform.platform(),
            "processors": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "packages": dict(packages),
            "nvidia_smi": said("nvidia-smi"),
            "topology": said("nvidia-smi", "topo", "-m"),
        },
    )


def build(file):
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--verbose",
            "--disable-pip-version-check",
            "--no-build-isolation",
            "--no-deps",
            "--editable",
            ".",
        ],
        check=True,
    )
    # Another process: this one's Python has looked for the package before it was there.
    text = (
        "import json; from alexnet_mp.kernels import dispatch; print(dispatch.description()); "
        "print(json.dumps({'kernels': dispatch.built(), 'auto': dispatch.resolve('auto', 'cuda:0')}))"
    )
    process = subprocess.run(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, text=True, check=True, encoding="utf-8"
    )
    *lines, last = process.stdout.splitlines()
    facts = json.loads(last)
    write(file, facts)
    print(*lines, sep="\n")
    return 0 if "cuda" in facts["kernels"] else 1


def built():
    from alexnet_mp.kernels import dispatch

    return 0 if "cuda" in dispatch.built() else 1


def roof(file):
    import torch

    from alexnet_mp.profiling import machine_limits

    device, facts = torch.device("cuda:0" if torch.cuda.is_available() else "cpu"), {}
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("fp32", torch.float32, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        limits = machine_limits.measure(device, dtype)
        facts |= {
            "copy_gb_per_s": max(limits.bandwidth, facts.get("copy_gb_per_s", 0)),
            "copy_bytes": limits.copy_bytes,
            f"{name}_tflop_per_s": limits.tflops,
            "product_rows": limits.product,
        }
    write(file, facts)
    print(json.dumps(facts))


def resources(file, library="kernels/compiled.so"):
    """Spills are LDL and STL instructions, or a stack above 0."""
    kernels, architecture, function = {}, "", ""
    for line in _cuobjdump("-res-usage", library):
        if match := re.search(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.search(r"Function (\S+):$", line):
            function = match[1]
        elif match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", line):
            numbers = dict(zip(("registers", "stack", "shared"), map(int, match.groups()), strict=True))
            kernels[f"{architecture} {function}"] = numbers | {"instructions": 0, "local": 0}
    for line in _cuobjdump("-sass", library):
        if match := re.search(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.search(r"Function : (\S+)", line):
            function = match[1]
        elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)", line):
            if (kernel := kernels.get(f"{architecture} {function}")) and match[1] != "NOP":
                kernel["instructions"] += 1
                kernel["local"] += match[1] in ("LDL", "STL")
    write(file, kernels)
    spills = [name for name, facts in kernels.items() if facts["stack"] or facts["local"]]
    print(f"{len(kernels)} kernels, {len(spills)} with a stack or spills", *spills)
    return 0 if kernels else 1


def _cuobjdump(*arguments):
    return subprocess.run(
        ["cuobjdump", *arguments], capture_output=True, text=True, check=True, encoding="utf-8"
    ).stdout.splitlines()


def train(run, folder, arguments):
    signal.signal(signal.SIGINT, lambda *_: None)  # the run gets it too; it finishes its step, and saves
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    program = (*(torchrun if "--towers" in arguments else ()), "alexnet_mp.train")
    code = subprocess.run([sys.executable, "-m", *program, "--out", run, *arguments]).returncode
    for name in ("metrics.jsonl", "run.json", "profile.json"):
        if (Path(run) / name).exists():
            shutil.copy(Path(run) / name, folder)
    if code == 0 and "--profile" in arguments:
        return 0 if profiled(Path(run) / "profile.json", arguments[arguments.index("--gpus") + 1]) else 1
    if code or "--steps" in arguments:  # a run that is cut short is not tested
        return code
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    errors = [line["top1_error"] for line in lines if line["kind"] == "val"]
    print(f"top-1 errors of the epochs: {errors}")
    return 0 if errors and errors[-1] <= LEARNED else 1


def profiled(path, gpus):
    """Whether a profile has a table of every device, with milliseconds of both passes of every layer; fc8 is tower
    a's."""
    if not path.exists():
        print("no profile was written")
        return False
    tables = {table["device"]: table for table in json.loads(path.read_text(encoding="utf-8"))["tables"]}
    devices = {name if name == "cpu" else f"cuda:{name}" for name in gpus.split(",")}
    problems = [f"{device}: no table" for device in sorted(devices - tables.keys())]
    for device, table in tables.items():
        rows = {row["row"]: row for row in table["rows"]}
        layers = (*(f"conv{number}" for number in range(1, 6)), "fc6", "fc7")
        for name in (*layers, "fc8") if "a" in table["towers"] else layers:
            if not (name in rows and rows[name]["forward_ms"] and rows[name]["backward_ms"]):
                problems.append(f"{device}: no milliseconds of {name}")
    print(*problems, sep="\n")
    return not problems


def main():
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("environment", "build", "built", "roof", "resources", "train"))
    options, rest = parser.parse_known_args()
    return train(*rest[:2], rest[2:]) if options.what == "train" else globals()[options.what](*rest)


if __name__ == "__main__":
    sys.exit(main())
