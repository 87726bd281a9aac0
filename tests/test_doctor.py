"""The machine in one page, whatever is broken: never a traceback, no user names, no homes."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from alexnet_mp.kernels import dispatch
from checked_devices import needs_kernels
from inner_cases import every
from planted import Forked, plant

from alexnet_mp import doctor
from alexnet_mp.data import pipeline_dali
from alexnet_mp.system import inventory, isolated, machine
from alexnet_mp.training import device_checks, self_check_of_machine

pytestmark = pytest.mark.usefixtures("one_thread")
PACKAGES = set(inventory.PACKAGES.values())  # the tests look for fewer
SECTIONS = ["alexnet_mp", "packages", "computer", "devices", "kernels", "copies", "self_check", "next"]
BROKEN = {
    "raises": (
        "raise RuntimeError('/home/alice/lib/libdali.so: undefined symbol: foo')",
        "RuntimeError: .../libdali.so: undefined symbol: foo",
    ),
    "exits": ("raise SystemExit(3)", "the import ends its process with status 3"),
    "says": ("import sys; sys.exit('no licence for alice')", "no licence for USER"),
    "interrupts": ("raise KeyboardInterrupt", "the import ends its process by signal 2"),
    "base": ("raise BaseException('odd')", "BaseException: odd"),
    "dies": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the import ends its process by signal 11"),
    "leaves": ("import os; os._exit(0)", "the import ends its process with status 0"),
    "syntax": ("def", "SyntaxError: invalid syntax"),
    "lines": ("raise ImportError('libcudart.so.13: cannot open shared object file\\n\\n')", "libcudart.so.13"),
}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A report of seconds, of a user named alice; the processes of the self-check are copies of this one."""
    monkeypatch.setattr(
        inventory, "PACKAGES", {"torch": "torch", "triton": "triton", "nvidia.dali": inventory.DALI[0], "json": "json"}
    )
    monkeypatch.setattr(machine, "imports", lambda names: dict.fromkeys(names))
    monkeypatch.setattr(machine, "deadly", lambda library: None)
    monkeypatch.setattr(self_check_of_machine, "CHECKED", (("mini", "fp32", "pixels"),))
    monkeypatch.setattr(inventory, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(isolated, "_start", Forked)
    monkeypatch.setattr(pipeline_dali, "available", lambda: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in (("HOME", "/home/alice"), ("USER", "alice"), ("LOGNAME", "alice")):
        monkeypatch.setenv(name, value)
    device_checks.prepare((torch.device("cpu"),), frozenset())


@pytest.fixture
def unchecked(monkeypatch):
    monkeypatch.setitem(doctor.SECTIONS, "self_check", lambda report: {"cpu": {"all": "passed"}})


def page(capsys, status=0):
    assert doctor.main([]) == status
    output = capsys.readouterr()
    assert "Traceback" not in output.out + output.err
    return output.out


def report(capsys, status=0):
    assert doctor.main(["--json"]) == status
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    return json.loads(output.out)


# --- here


@pytest.mark.process
def test_the_page_and_the_json_tell_the_same(capsys):
    output, fields = page(capsys), report(capsys)
    assert list(fields) == SECTIONS
    headings = [line for line in output.splitlines() if not line.startswith(" ")]
    assert headings == [name.replace("f_c", "f-c") for name in SECTIONS]
    assert fields["packages"]["torch"] == {"version": metadata.version("torch"), "problem": None}
    assert f"  torch              {metadata.version('torch')}\n" in output
    outcomes = fields["self_check"]["cpu"]
    assert set(outcomes.values()) == {"passed"} and "pipeline raw on cpu, mini, float32" in outcomes
    assert f"{len(outcomes)} of {len(outcomes)} checks passed" in output
    assert re.fullmatch(r"[\d,.]+ GB/s", fields["copies"]["within memory"])
    assert fields["devices"]["threads"] == torch.get_num_threads()
    assert fields["kernels"]["on_cpu"] == dispatch.resolve("auto", "cpu")
    assert "GB" in fields["computer"]["free_disk_here"] and fields["alexnet_mp"]["version"] == "0.1.0"
    if not torch.cuda.is_available():
        assert fields["next"]["type"][-1]["command"] == "python -m alexnet_mp.train --gpus cpu"


@pytest.mark.process
@needs_kernels
def test_a_fault_that_the_self_check_finds(monkeypatch, capsys):
    def raising(real, *arguments):
        raise RuntimeError("/home/alice/kernels/x.cpp: illegal")

    plant(monkeypatch, "lrn_pool_backward", raising)
    output = page(capsys, status=1)
    assert (
        "lrn_max_pool after conv1 by cpu on cpu, mini, float32: left out: raises RuntimeError: .../x.cpp: illegal\n"
        in output
    )
    assert "a fault was found: report it with this page\n" in output and "alice" not in output
    assert dispatch.resolve("auto", "cpu", "lrn_max_pool") == "cpu", "what was left out is forgotten"


# --- what is broken


@pytest.mark.process
def test_imports_that_fail_in_every_way(tmp_path, monkeypatch):
    monkeypatch.undo()
    for name, value in (("HOME", "/home/alice"), ("USER", "alice"), ("PYTHONPATH", str(tmp_path))):
        monkeypatch.setenv(name, value)
    for name, (code, _) in BROKEN.items():
        (tmp_path / f"broken_{name}.py").write_text(code)
    problems = machine.imports([*(f"broken_{name}" for name in BROKEN), "json", "no_such_package"])
    for name, (_, words) in BROKEN.items():
        assert words in problems[f"broken_{name}"] and "\n" not in problems[f"broken_{name}"], problems
    assert problems["json"] is None and problems["no_such_package"].startswith("ModuleNotFoundError: No module")
    assert "alice" not in str(problems)


@pytest.mark.process
def test_an_import_that_hangs(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(machine, "IMPORTING", 0.3)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "broken_hangs.py").write_text("import time; time.sleep(600)")
    assert machine.imports(["broken_hangs"]) == {"broken_hangs": "the import takes more than 0.3 s"}


def importing(monkeypatch, broken, why):
    """These packages can't be imported."""
    monkeypatch.setattr(machine, "imports", lambda names: {name: why if name in broken else None for name in names})


@pytest.mark.process
@pytest.mark.parametrize(
    "broken", [["triton", "nvidia.dali"], ["torch"], ["torch", "triton", "nvidia.dali", "json"]], ids="+".join
)
def test_packages_that_can_t_be_imported(broken, monkeypatch, capsys, unchecked):
    importing(monkeypatch, broken, "ImportError: libcudart.so.13")
    if "torch" in broken:
        monkeypatch.setitem(doctor.SECTIONS, "self_check", self_check_of_machine.self_checks)
    output = page(capsys, status=int("torch" in broken))
    for name in {*broken} - {"json"}:
        assert re.search(rf"  {name} +\S+, can't be imported: ImportError: libcudart\.so\.13\n", output), output
    commands = [step["command"] for step in report(capsys, status=int("torch" in broken))["next"]["type"]]
    assert ("pip install --force-reinstall 'torch<2.15,>=2.11'" in commands) == ("torch" in broken)
    assert ("pip install --force-reinstall 'nvidia-dali-cuda130>=2.4'" in commands) == ("nvidia.dali" in broken)
    assert ("python -m alexnet_mp.train --gpus cpu" in commands) == ("torch" not in broken)
    # torch imports Triton, where it is installed, without a GPU too.
    again = any(re.search("--force-reinstall '?triton", command) for command in commands)  # a torch for CUDA pins one
    assert again == (broken == ["triton", "nvidia.dali"])
    if "torch" in broken:
        assert output.count("ImportError: torch can't be imported") == 4  # devices, kernels, copies, self-check


def test_every_package_that_is_needed_is_looked_for():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in project["dependencies"]}
    assert "scipy" in names and names <= PACKAGES


@pytest.mark.process
def test_packages_that_are_not_installed(monkeypatch, capsys, unchecked):
    importing(monkeypatch, inventory.PACKAGES.keys() - {"torch"}, "ModuleNotFoundError: No module named 'x'")
    monkeypatch.setattr(machine, "version", lambda package: "2.13.0" if package == "torch" else None)
    fields = report(capsys, status=1)
    assert fields["packages"]["triton"] == {"version": None, "problem": "not installed"}
    commands = {step["command"]: step["why"] for step in fields["next"]["type"]}
    assert commands["pip install json"] == "json is not installed"
    assert "pip install 'nvidia-dali-cuda130>=2.4'" in commands
    assert not any("triton" in command for command in commands), "without a GPU nothing needs it"


def test_a_library_that_does_not_load(tmp_path, monkeypatch, capsys, unchecked):
    (tmp_path / "compiled.so").write_bytes(b"not a library")
    monkeypatch.setattr(dispatch, "LIBRARY", tmp_path / "compiled.so")
    monkeypatch.setattr(dispatch, "compiled", dispatch.compiled.__wrapped__)
    monkeypatch.setattr(dispatch, "_built", dispatch._built.__wrapped__)
    output = page(capsys)
    assert re.search(r"  cpu +RuntimeError: \.\.\./compiled\.so does not fit torch", output)
    assert str(tmp_path) not in output
    assert "pip install --no-build-isolation --no-deps -e ." in output
    (tmp_path / "compiled.so").unlink()
    output = page(capsys)
    assert re.search(r"  cpu +not built: there was no C\+\+ compiler", output)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "apt-get install g++" in page(capsys)


def test_a_library_that_kills_who_loads_it(tmp_path, monkeypatch, capsys):
    """One that a full disk cut short ends a process by SIGBUS: the doctor loads it in another one first."""
    monkeypatch.setattr(dispatch, "LIBRARY", tmp_path / "compiled.so")
    monkeypatch.setattr(dispatch, "compiled", lambda: pytest.fail("it would end this process"))
    monkeypatch.setattr(machine, "deadly", lambda library: f"loading {library.name} ends its process by signal 7")
    output = page(capsys, status=1)
    assert re.search(r"  cpu +loading compiled\.so ends its process by signal 7\n", output)
    assert re.search(r"  problem +RuntimeError: loading compiled\.so ends its process by signal 7\n", output)
    assert "pip install --no-build-isolation --no-deps -e ." in output


@pytest.mark.process
def test_what_loading_a_library_does(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    load = "import os, signal\nclass ops:\n def load_library(path): {}"
    for number, (body, problem) in enumerate(
        [
            ("os.kill(os.getpid(), signal.SIGBUS)", "loading 0.so ends its process by signal 7"),
            ("raise OSError('file too short')", None),
            ("raise RuntimeError('odd')", None),
            ("pass", None),
        ]
    ):
        (tmp_path / "torch.py").write_text(load.format(body))
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        assert machine.deadly(tmp_path / f"{number}.so") is None, "there is none"
        machine.deadly.cache_clear()
        (tmp_path / f"{number}.so").write_text("some library")
        assert machine.deadly(tmp_path / f"{number}.so") == problem


def test_checks_that_were_not_made_for_one_reason_are_told_in_one_line():
    outcomes = {"a": "passed", "b": "not checked: x", "c": "left out: y", "d": "not checked: x", "e": "left out: y"}
    assert doctor.summary(outcomes) == [
        "1 of 5 checks passed",
        "b and 1 more: not checked: x",
        "c: left out: y",
        "e: left out: y",
    ]


@pytest.mark.process
@every(
    "error",
    [
        RuntimeError("/home/alice/secret: two\nlines"),
        SystemExit(3),
        BaseException(),
        MemoryError(),
        OSError(28, "No space", "/home/alice/x"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    ],
)
def test_every_section_may_fail(error, monkeypatch, capsys):
    def fail(report):
        raise error

    def fail_otherwise(report):
        raise LookupError("what takes long fails, too")

    for section in SECTIONS[1:]:
        with monkeypatch.context() as patch:
            for name in ("computer", "copies", "self_check"):
                patch.setitem(doctor.SECTIONS, name, fail_otherwise)
            patch.setitem(doctor.SECTIONS, section, fail)
            output = page(capsys, status=1)
            assert type(error).__name__ in output and "alice" not in output
    for name in SECTIONS:
        monkeypatch.setitem(doctor.SECTIONS, name, fail)
    page(capsys, status=1)
    report(capsys, status=1)


def test_ctrl_c_ends_it(monkeypatch):
    monkeypatch.setitem(doctor.SECTIONS, "computer", lambda report: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        doctor.main([])


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("names", [["torch"], ["triton", "nvidia"]], ids="+".join)
def test_the_command_where_packages_raise_anything(names, tmp_path):
    """In a process of its own, up to the first section that needs seconds; torch itself may be what is broken."""
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise BaseException('broken in /home/alice/x')")
    process = subprocess.Popen(
        [sys.executable, "-m", "alexnet_mp.doctor"],
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    output = "".join(process.stdout.readline() for _ in range(9))
    if names == ["torch"]:
        rest, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (1, "")
        assert "pip install --force-reinstall 'torch<2.15,>=2.11'" in rest
    else:
        process.stdout.close()  # as `| head` does
        assert process.wait(60) == 0 and process.stderr.read() == ""
    for name in names:
        assert re.search(rf"{name}\S* +\S+, can't be imported: BaseException: broken in ~/x\n", output), output


# --- machines with GPUs


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs, of which nothing but their names can be had: no CUDA call works, and no kernel for them is built."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(
        torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: key != "CUDA" and has_kernel(name, key)
    )
    monkeypatch.setattr(machine, "driver", lambda: "580.65.06")
    monkeypatch.setattr(machine, "cuda_of_driver", lambda: (13, 0))
    monkeypatch.setattr(machine, "nvcc", lambda: None)
    properties = SimpleNamespace(name="NVIDIA H200", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (138_900_000_000, 139_800_000_000))
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: a == 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.mark.process
@needs_kernels
def test_gpus_are_told_and_what_fails_on_them(gpus, capsys):
    output = page(capsys, status=1)
    for words in (
        "  driver             580.65.06\n",
        "  cuda of driver     13.0\n",
        "  cuda:1             NVIDIA H200, memory 139.8 GB, free 138.9 GB, compute capability 9.0\n",
        "  0 and 1            peer access one way\n",
        "python -m alexnet_mp.train --gpus 0,1 --data DIR",
        "not built: there is no nvcc; torch wants one of CUDA 13\n",
        "install the toolkit of CUDA 13",
    ):
        assert words in output, output
    assert re.search(r"  cuda:0 to cuda:1 +\S+: ", output)
    assert re.search(r"  cuda:0 +0 of \d+ checks passed\n", output)
    assert "not checked: cuda:0 can't be used: " in output and "  cuda:0 and cuda:1" in output


@every(
    "change, command",
    [
        ({"count": 1}, "python -m alexnet_mp.train --gpus 0 --data DIR"),
        (
            {"count": 0, "cuda": None},
            "pip install --force-reinstall --index-url https://pypi.org/simple torch==2.13.0; "
            "pip install --no-build-isolation --no-deps -e .",
        ),
        ({"count": 0, "newest": (12, 4)}, "install a newer NVIDIA driver (https://www.nvidia.com/drivers)"),
        ({"count": 0, "visible": ""}, "unset CUDA_VISIBLE_DEVICES"),
        (
            {"count": 0, "newest": None, "driver": None},
            "install NVIDIA's driver (https://www.nvidia.com/drivers); in a container, start it with --gpus all",
        ),
    ],
)
def test_what_to_do_on_a_machine_with_a_gpu(change, command, gpus, monkeypatch, capsys, unchecked):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: change["count"])
    monkeypatch.setattr(torch.version, "cuda", change.get("cuda", "13.0"))
    monkeypatch.setattr(machine, "cuda_of_driver", lambda: change.get("newest", (13, 0)))
    monkeypatch.setattr(machine, "driver", lambda: change.get("driver", "580.65.06"))
    monkeypatch.setattr(machine, "gpu_on_the_bus", lambda: True)
    monkeypatch.setattr(machine, "version", lambda package: {"torch": "2.13.0+cpu"}.get(package, "1"))
    if "visible" in change:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", change["visible"])
    else:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert command in [step["command"] for step in report(capsys)["next"]["type"]]


def test_what_triton_lacks(gpus, monkeypatch, capsys, unchecked):
    monkeypatch.setattr(inventory.shutil, "which", lambda name: None)
    output = page(capsys)
    assert "can't be used: it needs a C compiler, gcc or clang, on PATH" in output
    assert "apt-get install gcc (Debian, Ubuntu)" in output
    importing(monkeypatch, ["triton"], "OSError: libtriton.so")
    assert re.search(r"pip install --force-reinstall '?triton(<|==)", page(capsys))


# --- facts


def test_the_versions_of_the_driver_and_of_nvcc(monkeypatch):
    outputs = {"nvidia-smi": "580.65.06\n580.65.06\n", "nvcc": "Cuda compilation tools, release 13.0, V13.0.88\n"}
    monkeypatch.setattr(machine, "asked", lambda program, *arguments: outputs.get(os.path.basename(program)))
    monkeypatch.setattr(Path, "read_text", lambda self, **_: (_ for _ in ()).throw(FileNotFoundError(str(self))))
    assert machine.driver() == "580.65.06" and machine.nvcc() == "13.0"
    monkeypatch.setattr(Path, "read_text", lambda self, **_: "570.1\n" if "module" in str(self) else "")
    assert machine.driver() == "570.1"
    line = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue\n"
    monkeypatch.setattr(Path, "read_text", lambda self, **_: line if "proc" in str(self) else "")
    assert machine.driver() == "535.54.03"
    outputs.clear()
    monkeypatch.setattr(Path, "read_text", lambda self, **_: "")
    assert machine.driver() is None and machine.nvcc() is None


@pytest.mark.process
def test_a_program_that_fails_or_hangs_says_nothing(monkeypatch):
    monkeypatch.setattr(machine, "SECONDS", 0.2)
    assert machine.asked("sh", "-c", "echo yes") == "yes\n" and machine.asked("sh", "-c", "echo no; exit 1") is None
    assert machine.asked("sleep", "60") is None and machine.asked("no-such-program") is None


@pytest.mark.compile
def test_the_architectures_of_a_library(tmp_path):
    """From real code for two of them, where there is a compiler."""
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc")
    (tmp_path / "a.cu").write_text("__global__ void f(float* x) { *x += 1; }\nvoid g() { f<<<1, 1>>>(nullptr); }\n")
    targets = [
        f"-gencode=arch={code}"
        for code in ("compute_80,code=sm_80", "compute_90,code=sm_90", "compute_90,code=compute_90")
    ]
    process = subprocess.run(
        ["nvcc", "-shared", "-Xcompiler", "-fPIC", *targets, "-o", tmp_path / "a.so", tmp_path / "a.cu"],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    architectures = machine.architectures(tmp_path / "a.so")
    if architectures is None:
        pytest.skip("there is no cuobjdump")
    assert architectures == ["sm_80", "sm_90", "PTX of sm_90"]


@every(
    "given, shown",
    [
        (
            "/home/alice/.venv/lib/python3.11/site-packages/triton/_C/libtriton.so: undefined symbol: foo",
            ".../libtriton.so: undefined symbol: foo",
        ),
        ("cannot open '/home/bob/data/x.json'", "cannot open '.../x.json'"),
        ("~/x is /home/alice", "~/x is ~"),
        ('File "/opt/alice/x.py", line 3', 'File ".../x.py", line 3'),
        ("/dev/null", ".../null"),
        ("a\nb\t c", "a b c"),
        ("user alice has no right", "user USER has no right"),
        ("malice, alice-in, alices", "malice, alice-in, alices"),
        ("in /home/bob, or /Users/bob: no", "in ~, or ~: no"),
        ("error:/srv/bob/x", "error:.../x"),
        ("no path: 3/4, a/b, https://pypi.org/simple/x", "no path: 3/4, a/b, https://pypi.org/simple/x"),
        ("x" * 400, "x" * 300),
    ],
)
def test_what_is_shown_of_messages(given, shown, monkeypatch):
    assert machine.shown(given) == shown


def test_homes_with_spaces_and_links(monkeypatch, tmp_path):
    folder = tmp_path / "user data" / "alice smith"
    folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "link"))
    for home in (folder, tmp_path / "link"):
        assert machine.shown(f"cannot read {home}/cache/x.bin") == "cannot read .../x.bin"
        assert machine.shown(f"in {home}") == "in ~"
