"""The stages in their order: what is worth most on a machine that may be gone in ten minutes comes first.

A new stage is a line in `table()`; nothing else knows one by name. The seconds are guesses, which say what fits into a
command's minutes; from the second time on `check.py` knows what a stage took. In a command {python}, {out} (a stage's
own folder, packed), {scratch} (its own, not packed), {records} and {commit} are replaced.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILE = (30, 150)  # of a file of tests: seconds guessed, and at most
LONG_FILES = {
    "test_lrn_pool": (150, 420),
    "test_triton_kernels": (90, 300),
    "test_cuda_compile": (60, 300),
    "test_kernels_once": (60, 300),
    "test_device_checks": (120, 420),
    "test_graphed_step": (60, 240),
    "test_graphed_runs": (60, 240),
    "test_torchrun_gpu": (120, 420),
}


@dataclass(frozen=True)
class Stage:
    """One command, and what `check.py` must know of it."""

    name: str
    why: str  # it is here, or in this place
    command: tuple
    seconds: int  # a guess
    limit: int  # seconds after which it is killed
    reads: tuple = ()  # folders beside the package: after a change there it has not passed
    needs: tuple = ()  # "program:", "module:" or "file:" and a name, "gpus:" and a number; else it is skipped
    workers: int = 0  # of pytest-xdist, at most
    dist: str = "load"  # what they share out: tests, or whole files
    journal: str = ""  # which journal of tests (`journal.py`) it goes on from
    each: int = 0  # seconds that one of its tests may take; 0: two thirds of the limit
    still: tuple = ()  # a command that fails where the machine has forgotten what the stage did
    rehearsal: tuple = ()  # the stand-in without a GPU; if there is none, of tests their collection, else the command
    environment: dict = field(default_factory=dict)

    @property
    def longest_test(self):
        """In seconds. A test that hangs has to end before its stage, or all behind it are lost, in every command
        anew."""
        return self.each or 2 * self.limit // 3


def table():
    """Every stage, in order."""
    gpu_files, rest = test_files()
    return [
        Stage(
            "build",
            "everything needs it, and a fresh machine hasn't it",
            facts("build", "{out}/build.json"),
            120,
            360,
            still=facts("built"),
            rehearsal=(
                "{python}",
                "setup.py",
                "build_ext",
                "--build-temp",
                "{scratch}/temp",
                "--build-lib",
                "{scratch}/lib",
            ),
        ),
        tests(
            "kernels-once",
            "whether each kernel is right at all, in one data type: few compilations",
            *named("test_kernels_once"),
            "-k",
            "fp32",
            guess=(45, 180),
            workers=6,
        ),
        tests(
            "graphs",
            "whether a captured step has the bits of an eager one",
            *named("test_graphed_step", "test_graphed_runs", "test_graph_segments", "test_pending_steps"),
            "--gpu-only",
            guess=(90, 300),
            workers=4,
        ),
        train(
            "train-one-device",
            "a whole run, with its drop of the rates, its checkpoints and its test",
            "0",
            "--graphs",
            "on",
            seconds=75,
        ),
        train("train-cpu-and-gpu", "two devices on a machine with one GPU", "cpu,0", seconds=120),
        train("train-two-devices", "what the project is for", "0,1", "--graphs", "on", seconds=75, needs=("gpus:2",)),
        train(
            "train-two-processes",
            "the same by torchrun: a process a tower, and NCCL between them",
            "0,1",
            "--graphs",
            "on",
            seconds=90,
            needs=("gpus:2",),
            apart=True,
        ),
        speed(
            "step-bf16-b128",
            "the first figure that anybody asks for; torch.compile's max-autotune takes minutes",
            "test_speed_step and bf16-b128 and not compile",
            guess=(45, 300),
        ),
        Stage("roof", "what 100 % means here: a copy, and products", facts("roof", "{out}/roof.json"), 15, 90),
        speed(
            "lrn-pool-bf16-b128",
            "the fused kernels beside a copy",
            maps("bf16", "b128", "not compile"),
            guess=(40, 300),
        ),
        speed(
            "lrn-pool-bf16-b1024",
            "the same, far larger than the cache",
            maps("bf16", "b1024", "not compile"),
            guess=(40, 300),
        ),
        speed(
            "step-bf16-b1024",
            "the step where launches cost nothing",
            "test_speed_step and bf16-b1024 and not compile",
            guess=(60, 300),
        ),
        speed(
            "forked",
            "an experiment: layers that read the same as one product, tower b on a forked stream",
            "test_speed_forked",
            guess=(90, 300),
            needs=("file:benchmarks/test_speed_forked.py",),
        ),
        tests(
            "pipeline-dali",
            "the decoder on the GPU",
            *named("test_pipeline_dali"),
            guess=(45, 150),
            needs=("module:nvidia.dali",),
        ),
        tests("pipeline-raw", "the pipeline that every machine has", *named("test_pipeline_raw"), guess=(30, 150)),
        speed(
            "fed-step-bf16-b1024",
            "step-bf16-b1024 on real input: images/s with raw and dali",
            "test_speed_pipeline and bf16-b1024",
            "--rounds",
            "5",
            guess=(120, 400),
        ),
        speed(
            "pipeline",
            "the pipelines alone, and what feeding costs a step",
            "test_speed_pipeline and cuda and not bf16",
            "--rounds",
            "5",
            guess=(150, 400),
        ),
        train("profile", "whether each layer's launches are found", "0", "--profile", "3", "--steps", "8", seconds=40),
        *(
            tests(
                f"tests-{path.stem.removeprefix('test_')}",
                "a file that has something for a GPU, every case",
                str(path),
                guess=LONG_FILES.get(path.stem, FILE),
                workers=12,
            )
            for path in gpu_files
        ),
        speed("lrn-pool-fp32-b128", "what the paper computed in", maps("fp32", "b128", "not compile"), guess=(40, 300)),
        speed(
            "step-fp32-b128",
            "what the paper computed in",
            "test_speed_step and fp32-b128 and not compile",
            guess=(60, 300),
        ),
        speed("sgd", "the update, alone and as bf16 training calls it", "test_sgd and cuda", guess=(45, 300)),
        speed("augmentation", "the raw pipeline's part on the GPU", "test_augmentation and cuda", guess=(90, 300)),
        speed("relu-dropout", "what follows fc6 and fc7", "test_relu_dropout and cuda", guess=(90, 300)),
        speed(
            "exchange-one-gpu", "the four layers that read both towers", "test_exchange and [one-gpu", guess=(40, 300)
        ),
        speed(
            "exchange-two-gpus",
            "the same, with copies between the devices",
            "test_exchange and [two-gpu",
            guess=(40, 300),
            needs=("gpus:2",),
        ),
        speed(
            "towers-one-gpu",
            "the paper's network beside its one-GPU network (3.2), with CUDA graphs and without",
            "test_step_of_towers and [one-gpu",
            guess=(60, 300),
        ),
        speed(
            "towers-two-gpus",
            "the same with a tower a GPU, which the sentence is about, and with a process a tower",
            "test_step_of_towers and [two-gpu",
            guess=(120, 400),
            needs=("gpus:2",),
        ),
        speed(
            "scaling",
            "one process, a process a tower, two pairs of towers",
            "test_scaling and [two-gpu",
            guess=(120, 400),
            needs=("gpus:2",),
        ),
        speed("checkpoint", "what a snapshot costs a step", "test_speed_checkpoint", guess=(60, 300)),
        *(
            speed(
                f"step-{case}-all",
                "the whole group, with torch.compile",
                f"test_speed_step and {case}",
                guess=(180, 500),
            )
            for case in ("bf16-b128", "fp32-b128", "bf16-b1024")
        ),
        *(
            speed(f"lrn-pool-{dtype}-all", "the whole group, with torch.compile", maps(dtype), guess=(180, 500))
            for dtype in ("bf16", "fp32", "fp16")
        ),
        speed("lrn-pool-nchw", "the layout that few use", "test_lrn_pool and cuda and nchw", guess=(150, 500)),
        tests(
            "tests-rest",
            "what asks nothing of a GPU, on this torch and this Python",
            "-m",
            "not network",
            *map(str, rest),
            guess=(240, 540),
            workers=12,
            dist="loadfile",
            environment={"CUDA_VISIBLE_DEVICES": ""},  # some say what a machine without one is told
        ),
        Stage(
            "resources",
            "registers, stack and shared memory of the kernels that were built here",
            facts("resources", "{out}/resources.json"),
            20,
            120,
            needs=("program:cuobjdump",),
            rehearsal=facts("--help"),
        ),
        *(sanitizer(tool) for tool in ("memcheck", "racecheck", "synccheck", "initcheck")),
    ]


def facts(*arguments):
    return ("{python}", "-m", "gpu_check.facts", *arguments)


def tests(name, why, *arguments, guess, **fields):
    """Tests, but for those that have passed in an earlier stage."""
    command = ("{python}", "-m", "pytest", "-q", *arguments)
    return Stage(name, why, command, *guess, ("tests",), journal="tests", **fields)


def speed(name, why, selection, *arguments, guess, needs=()):
    """Benchmarks, into a record."""
    record = ("{python}", "benchmarks/record.py", "--records", "{records}", "--name", name, "--commit", "{commit}")
    options = ("-q", "-k", selection, *arguments)
    return Stage(
        name,
        why,
        (*record, *options),
        *guess,
        ("benchmarks",),
        needs,
        rehearsal=("{python}", "-m", "pytest", "benchmarks", "--benchmark-only", *options, "--collect-only"),
    )


def maps(*words):
    """The selection of the fused map operations' benchmarks on a GPU, in the towers' layout."""
    return " and ".join(("test_lrn_pool", "cuda", "channels_last", *words))


def train(name, why, gpus, *arguments, seconds, needs=(), apart=False):
    """The small network on the embedded pictures, to the end, from its newest checkpoint. It has to learn them.

    apart: a process a tower, by torchrun.
    """
    towers = ("--towers", "apart") if apart else ()
    run = facts("train", "{scratch}/run", "{out}", "--recipe", "mini", "--data", "builtin", "--resume", "auto", *towers)
    return Stage(
        name,
        why,
        (*run, "--gpus", gpus, *arguments),
        seconds,
        300,
        (),
        needs,
        rehearsal=(*run, "--gpus", "cpu", "--steps", "2"),
    )


def sanitizer(tool):
    """Every kernel once, in every data type.

    Errors of the API are no findings: torch and Triton ask for what may not be there, and look at the answer. Without
    torch's cache every tensor is an allocation of its own, whose ends are watched.
    """
    suite = ("{python}", "-m", "pytest", "-q", "-p", "no:cacheprovider", *named("test_kernels_once"), "--gpu-only")
    command = ("compute-sanitizer", "--tool", tool, "--report-api-errors", "no", "--error-exitcode", "9", *suite)
    return Stage(
        tool,
        "slow, and nothing waits for it",
        command,
        120,
        420,
        ("tests",),
        ("program:compute-sanitizer",),
        journal=tool,
        rehearsal=(*suite, "--collect-only"),
        environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )


def named(*stems):
    """Files of tests, wherever in tests/ they are."""
    paths = {path.stem: str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")}
    return [paths[stem] for stem in stems]


def test_files():
    """(files of tests that use a GPU where there is one, or import what does, the short ones first; the others)."""
    uses = {
        path.stem: bool(re.search('(skip|reason).*(GPU|CUDA)|"cuda" if (torch|GPU)', path.read_text(encoding="utf-8")))
        for path in (ROOT / "tests").rglob("*.py")
    }
    gpu_files, rest = [], []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        imports = re.findall(r"^(?:from|import) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        (gpu_files if any(uses.get(name) for name in (path.stem, *imports)) else rest).append(path.relative_to(ROOT))
    return sorted(gpu_files, key=lambda path: LONG_FILES.get(path.stem, FILE)), rest
