"""setup.py beside a CUDA build of torch: which runtime library is linked, and what is built when the CUDA part fails;
and what it tells of the package.

The toolkits, their nvcc and the sources are stand-ins. setup.py, setuptools, torch's build and the compiler are real.
"""

import multiprocessing
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import setuptools
import torch
from alexnet_mp.kernels import dispatch
from packaging.requirements import Requirement
from torch.utils import cpp_extension

pytestmark = pytest.mark.compile

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = Path(torch.__file__).parent / "include"
RUNTIME = "libcudart.so.13"
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler (c++)")


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def toolkit(top, release="13.0", libraries="lib64", compiles='exec c++ -shared -fPIC -x c++ -c "$source" -o "$object"'):
    """A stand-in: top/bin/nvcc answers --version and --dryrun as nvcc does, and else runs a line of shell."""
    script(
        top / "bin/nvcc",
        f"""#!/bin/sh
case "$*" in
    --version) echo 'Cuda compilation tools, release {release}, V{release}.88'; exit ;;
    --dryrun*) cat >&2 <<'END'
#$ _HERE_={top}/bin
#$ TOP={top}/bin/..
#$ PATH={top}/bin/../nvvm/bin:/usr/bin
#$ LIBRARIES=  "-L{top}/bin/../{libraries}/stubs" "-L{top}/bin/../{libraries}"
#$ gcc -E -x c++ -D__CUDACC__ "csrc/cuda/lrn_pool.cu" -o "/tmp/lrn_pool.ii"
END
        exit ;;
esac
while [ $# -gt 0 ]; do
    case "$1" in
        *.cu) source=$1 ;;
        -o) shift; object=$1 ;;
    esac
    shift
done
{compiles}
""",
    )
    return top


def wrapper(top, of):
    script(top / "bin/nvcc", f'#!/bin/sh\nexec "{of}/bin/nvcc" "$@"\n')
    return top


def touched(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def cuda_runtime(monkeypatch, tmp_path):
    """setup.py's function, where the machine has no other runtime than a test's."""
    text = (ROOT / "setup.py").read_text()
    names = {}
    exec(text[: text.index("modules, commands =")], names)
    monkeypatch.setattr(
        sys,
        "path",
        [str(tmp_path / "site-packages"), *(place for place in sys.path if not Path(place, "nvidia").is_dir())],
    )
    monkeypatch.delenv("LIBRARY_PATH", raising=False)
    script(tmp_path / "no-compiler", "#!/bin/sh\necho libcudart.so.13\n")
    return lambda version, home, compiler=(str(tmp_path / "no-compiler"),): names["_cuda_runtime"](
        version, home and str(home), compiler
    )


def test_the_description_for_pypi_has_links_that_lead_somewhere():
    """README's own links and its pictures, and none of its code; without an address it is README."""
    text = (ROOT / "setup.py").read_text()
    names = {}
    exec(text[: text.index("modules, commands =")], names)
    readme, address = (ROOT / "README.md").read_text(), "https://example.org/me/alexnet_mp"
    description = names["long_description"](readme, address + "/")
    links = re.findall(r"\]\(([^)\s]+)\)", "".join(description.split("```")[::2]))
    assert len(links) > 20 and all(link.startswith(("https://", "#")) for link in links), links
    matches = [re.fullmatch(rf"{address}/(blob|raw)/HEAD/([^#]+)(#.+)?", link) for link in links]
    assert all((ROOT / link[2]).exists() and (link[1] == "raw") == link[2].endswith(".png") for link in matches if link)
    assert {link[1] for link in matches if link} == {"raw", "blob"}
    assert re.sub(rf"{address}/(blob|raw)/HEAD/", "", description) == readme == names["long_description"](readme, None)
    example = names["long_description"](
        "![a](b.svg) [c\nd](e.md#f) [g](#h) [i](http://j)\n```\nk[l](m)\n```\n", address
    )
    assert example == (
        f"![a]({address}/raw/HEAD/b.svg) [c\nd]({address}/blob/HEAD/e.md#f) [g](#h) [i](http://j)\n```\nk[l](m)\n```\n"
    )


def says_why(capsys, what):
    lines = capsys.readouterr().out.splitlines()
    return len(lines) == 1 and lines[0].startswith("alexnet_mp: no CUDA kernels, since ") and what in lines[0]


@pytest.mark.parametrize(
    "said, why",
    [
        ("release 12.8, V12.8.1", "is of CUDA 12 and torch of 13.0"),
        ("no nvcc at all", "is of CUDA (unknown) and torch of 13.0"),
    ],
)
def test_the_cuda_of_torch_alone(said, why, tmp_path, capsys, cuda_runtime):
    """torch refuses to build with another."""
    touched(tmp_path / "lib64" / RUNTIME)
    script(tmp_path / "bin/nvcc", f"#!/bin/sh\necho '{said}'\n")
    assert cuda_runtime("13.0", tmp_path) is None
    assert says_why(capsys, f"{tmp_path}/bin/nvcc {why}")


def test_no_nvcc_and_one_that_cannot_be_started(tmp_path, capsys, cuda_runtime):
    assert cuda_runtime("13.0", None) is None
    assert says_why(capsys, "torch is of CUDA 13.0 and there is no nvcc on PATH")
    assert cuda_runtime("13.0", tmp_path) is None
    assert says_why(capsys, f"torch is of CUDA 13.0 and there is no nvcc in {tmp_path}/bin")
    script(tmp_path / "bin/nvcc", "\x7fELF for another processor\n")
    assert cuda_runtime("13.0", tmp_path) is None
    assert says_why(capsys, "is of CUDA (unknown)")


@pytest.mark.parametrize("folder", ["lib64", "lib", "targets/x86_64-linux/lib"])
def test_the_runtime_is_in_the_toolkit_that_a_wrapper_calls(folder, tmp_path, capsys, cuda_runtime):
    """Without the linker's name libcudart.so, beside a runtime of another CUDA, in a folder with a space."""
    home = wrapper(tmp_path / "usr", of=toolkit(tmp_path / "a toolkit", libraries="targets/x86_64-linux/lib"))
    runtime = touched(tmp_path / "a toolkit" / folder / RUNTIME)
    touched(home / "lib" / "libcudart.so.12")
    touched(home / "lib" / "libcudart.so")
    assert cuda_runtime("13.0", home) == str(runtime)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "version, package",
    [("13.0", "nvidia/cu13/lib/libcudart.so.13"), ("12.8", "nvidia/cuda_runtime/lib/libcudart.so.12")],
)
def test_the_runtime_is_in_torchs_packages(version, package, tmp_path, capsys, cuda_runtime):
    home = toolkit(tmp_path / "toolkit", release=version)
    (home / "lib64").mkdir()
    (home / "lib64" / Path(package).name).symlink_to(tmp_path / "nowhere")
    runtime = touched(tmp_path / "site-packages" / package)
    touched(tmp_path / "site-packages/nvidia/cublas/lib/libcublas.so")
    assert cuda_runtime(version, home) == str(runtime)
    assert capsys.readouterr().out == ""


@needs_compiler
def test_the_runtime_is_where_the_compiler_looks(tmp_path, monkeypatch, cuda_runtime):
    """LIBRARY_PATH, and the folders of distributions that have CUDA among their own packages."""
    home = toolkit(tmp_path / "toolkit")
    runtime = touched(tmp_path / "libraries" / RUNTIME)
    monkeypatch.setenv("LIBRARY_PATH", str(runtime.parent))
    assert cuda_runtime("13.0", home, ["c++", "-O2"]) == str(runtime)


def test_no_runtime_at_all(tmp_path, capsys, cuda_runtime):
    home = wrapper(tmp_path / "usr", of=toolkit(tmp_path / "toolkit"))
    touched(tmp_path / "toolkit/lib64/libcudart.so.12")
    touched(tmp_path / "toolkit/lib64/libcudart_static.a")
    assert cuda_runtime("13.0", home) is None
    assert says_why(capsys, f"{RUNTIME} is neither in the toolkit of {home}/bin/nvcc nor in torch's packages")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH (the CUDA toolkit)")
def test_the_runtime_of_this_machines_nvcc(cuda_runtime):
    nvcc = shutil.which("nvcc")
    output = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"release (\d+\.\d+)", output)[1]
    runtime = cuda_runtime(version, Path(nvcc).parents[1], ["c++"])
    assert Path(runtime).is_file() and f"libcudart.so.{version.split('.')[0]}" in runtime


@pytest.fixture
def project(tmp_path):
    """A folder with setup.py and small sources, a toolkit that a wrapper calls, and torch's libraries for CUDA."""
    for name, text in (
        ("README.md", ""),
        ("pyproject.toml", '[project]\nname = "alexnet_mp"\nversion = "0"\ndynamic = ["readme"]\n'),
        ("csrc/ops.cpp", 'extern "C" int ops_part() { return 1; }\n'),
        ("csrc/cpu/portable.cpp", 'extern "C" int cpu_part() { return 1; }\n'),
        (
            "csrc/cuda/lrn_pool.cu",
            'extern "C" int cudaGetLastError();\nextern "C" int cuda_part() { return cudaGetLastError(); }\n',
        ),
    ):
        touched(tmp_path / "project" / name).write_text(text)
    for name in ("alexnet_mp", "kernels"):
        (tmp_path / "project" / name).mkdir()
    shutil.copy(ROOT / "setup.py", tmp_path / "project")
    wrapper(tmp_path / "usr", of=toolkit(tmp_path / "toolkit"))
    shared(tmp_path / "toolkit/lib64" / RUNTIME, 'extern "C" int cudaGetLastError() { return 0; }\n')
    for name in ("c10_cuda", "torch_cuda"):
        shared(tmp_path / f"torch/lib{name}.so", "")
    return tmp_path


def shared(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["c++", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-x", "c++", "-", "-o", path],
        input=text,
        text=True,
        check=True,
    )


def run_setup(project, backend):
    """setup.py in a process of its own, a fork, since importing torch takes longer than these builds."""
    output = os.open(project / "output", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = sys.stderr = open(1, "w", closefd=False)
    os.chdir(project / "project")
    os.environ |= {"LIBRARY_PATH": str(project / "torch"), "LD_LIBRARY_PATH": str(project / "toolkit/lib64")}
    torch.version.cuda, cpp_extension.CUDA_HOME = "13.0", str(project / "usr")
    if backend == "distutils":
        cpp_extension.is_ninja_available = lambda: False
    sys.argv = ["setup.py", "-q", "build_ext", "--inplace"]
    runpy.run_path("setup.py", run_name="__main__")


def build(project, backend):
    """(the bytes of the library, the lines that tell why there are no CUDA kernels, the whole output)."""
    process = multiprocessing.get_context("fork").Process(target=run_setup, args=(project, backend))
    process.start()
    process.join()
    output = (project / "output").read_text()
    assert process.exitcode == 0, output
    reports = [line for line in output.splitlines() if line.startswith("alexnet_mp: no CUDA kernels")]
    return (project / "project/kernels/compiled.so").read_bytes(), reports, output


@pytest.mark.slow
@needs_compiler
def test_a_wrapper_and_a_toolkit_without_the_linkers_name(project):
    library, reports, output = build(project, "distutils")
    assert b"cpu_part" in library and b"cuda_part" in library and RUNTIME.encode() in library
    assert reports == [] and "for the CPU and for CUDA" in output


def nvcc_refuses(project):
    message = "nvcc fatal   : Unsupported gpu architecture 'compute_80'"
    toolkit(project / "toolkit", compiles=f'echo "{message}" >&2; exit 1')


def runtime_is_no_library(project):
    (project / "toolkit/lib64" / RUNTIME).write_text("a download that broke off\n")


def kernels_call_what_nobody_defines(project):
    with open(project / "project/csrc/cuda/lrn_pool.cu", "a") as file:
        file.write('extern "C" int nobody();\nextern "C" int more() { return nobody(); }\n')


@needs_compiler
@pytest.mark.parametrize(
    "fault, why, backend",
    [
        (nvcc_refuses, "nvcc fatal : Unsupported gpu architecture 'compute_80'", "ninja"),
        (runtime_is_no_library, f"{RUNTIME}: file format not recognized", "distutils"),
        pytest.param(kernels_call_what_nobody_defines, "undefined symbol: nobody", "ninja", marks=pytest.mark.slow),
    ],
    ids=["compile", "link", "load"],
)
def test_a_cuda_part_that_fails_leaves_the_cpu_part(fault, why, backend, project):
    if backend == "ninja" and shutil.which("ninja") is None:
        pytest.skip("no ninja")
    fault(project)
    library, reports, output = build(project, backend)
    assert b"cpu_part" in library and b"ops_part" in library
    assert b"cuda_part" not in library and RUNTIME.encode() not in library
    assert len(reports) == 1 and "their build failed: " in reports[0] and why in reports[0], output
    assert "Traceback" not in reports[0] and len(reports[0]) < 320


# What the CUDA builds of torch on PyPI pin.
PINS = {
    "2.11.0": "3.6.0",
    "2.12.0": "3.7.0",
    "2.12.1": "3.7.1",
    "2.13.0": "3.7.1",
    "2.14.0": "3.8.0",
    "2.14.1": "3.8.0",
}


def newer_functions(oldest):
    """Names that torch's C interface has since a version after `oldest`, (major, minor)."""
    text = "".join(path.read_text() for path in (INCLUDE / "torch/csrc").rglob("shim.h"))
    names, open_ = set(), []
    for line in text.splitlines():
        if line.startswith("#if"):
            match = re.search(r"TORCH_FEATURE_VERSION >= TORCH_VERSION_(\d+)_(\d+)", line)
            open_.append(bool(match) and tuple(map(int, match.groups())) > oldest)
        elif line.startswith("#endif"):
            open_.pop()
        elif any(open_):
            names.update(re.findall(r"\b(torch_\w+|aoti_torch_\w+)\(", line))
    return names


def test_a_setuptools_that_cannot_build_it_is_said(monkeypatch):
    """That of a fresh environment of Python 3.11, which pip takes without build isolation."""
    monkeypatch.setattr(setuptools, "__version__", "65.5.0")
    with pytest.raises(SystemExit, match="setuptools is 65.5.0, 77 or newer builds it: pip install -U setuptools"):
        runpy.run_path(str(ROOT / "setup.py"))


def test_the_extra_for_gpus_takes_the_triton_of_every_torch():
    """And packages are built with the pinned torch, for the oldest."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = content["project"]
    pinned = re.search(r"^torch==.*$", (ROOT / "requirements.txt").read_text(), re.M)[0]
    assert [line for line in content["build-system"]["requires"] if line.startswith("torch")] == [pinned]
    major, minor = re.search(r"torch>=(\d+)\.(\d+),", " ".join(project["dependencies"])).groups()
    target = int(re.search(r'"TORCH_TARGET_VERSION", "(0x\w+)"', (ROOT / "setup.py").read_text())[1], 16)
    assert target == int(major) << 56 | int(minor) << 48
    new_names = newer_functions((int(major), int(minor)))
    if tuple(map(int, torch.__version__.split(".")[:2])) > (int(major), int(minor)):  # else its headers have none
        assert "torch_stream_native_handle" in new_names
    if dispatch.LIBRARY.exists():
        names = set(re.findall(rb"\0(torch_\w+|aoti_torch_\w+)(?=\0)", dispatch.LIBRARY.read_bytes()))
        assert b"torch_parallel_for" in names and not {name.decode() for name in names} & new_names
    (ours,) = [line for line in map(Requirement, project["dependencies"]) if line.name == "torch"]
    (triton,) = [line for line in map(Requirement, project["optional-dependencies"]["gpu"]) if line.name == "triton"]
    for version, pinned in PINS.items():
        assert version in ours.specifier and pinned in triton.specifier
    assert "2.15.0" not in ours.specifier, "another torch: which Triton does it pin?"
    for line in map(Requirement, metadata.requires("torch") or ()):
        if line.name == "triton" and (line.marker is None or line.marker.evaluate()):
            assert any(pin in line.specifier and pin in triton.specifier for pin in PINS.values()), line
