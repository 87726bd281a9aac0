"""What stands for a value, a file or what a command says."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import torch

# What is another one every time, or of the code and not of its numbers. The length of metrics.jsonl follows the digits
# of images/s.
PASSING = {
    "saved",
    "metrics_bytes",
    "images_per_second",
    "started",
    "date",
    "seconds",
    "commit",
    "commits",
    "commit_before",
}
TIMES = re.compile(r"\b[0-9][0-9.,]*( ms| s| min| h| images/s)(?=\W|$)|\d{4}-\d\d-\d\d[T -]?[\d:]*(\+00:00)?")


def digest(value):
    """sha256 of bytes, of a tensor with its shape, dtype and strides, or of anything else as JSON."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        header = f"{tuple(value.shape)} {value.dtype} {value.stride()}".encode()
        bits = value.contiguous().view(torch.uint8) if value.dim() else value.reshape(1).view(torch.uint8)
        value = header + bits.numpy().tobytes()
    elif not isinstance(value, bytes):
        value = json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(value).hexdigest()


def lasting(content, but=frozenset()):
    """JSON without what is another one every time, and without the fields `but`."""
    if isinstance(content, dict):
        return {name: lasting(value, but) for name, value in content.items() if name not in PASSING | but}
    return [lasting(value, but) for value in content] if isinstance(content, list) else content


def timeless(text):
    """A text without dates, durations and commits."""
    return re.sub(r"\b[0-9a-f]{40}\b(\+changes)?", "COMMIT", TIMES.sub("TIME", text))


def of_findings(text):
    """What a long command says of errors and losses, and what it indents: recipes and findings."""
    return digest([line for line in timeless(text).splitlines() if re.search("error|loss|^  ", line)])


def of_json(path, but=frozenset()):
    return digest(lasting(json.loads(Path(path).read_text(encoding="utf-8")), but))


def of_lines(path):
    """A file of one JSON value a line."""
    return digest([lasting(json.loads(line)) for line in Path(path).read_text(encoding="utf-8").splitlines()])


def of_files(folder, *patterns):
    """{name: digest} of a folder's files."""
    paths = sorted({path for pattern in patterns for path in Path(folder).glob(pattern) if path.is_file()})
    if not paths:
        raise FileNotFoundError(f"{folder}: no {', '.join(patterns)}")
    return {str(path): digest(path.read_bytes()) for path in paths}


def command(name, *arguments):
    """Standard output of `python -m alexnet_mp.NAME ARGUMENTS`; kept in said.txt, to look for a difference."""
    words = [f"alexnet_mp.{name}", *map(str, arguments)]
    process = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, encoding="utf-8")
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)}: status {process.returncode}\n{process.stdout}\n{process.stderr}")
    with open("said.txt", "a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(words)}\n{process.stdout}\n")
    return process.stdout
