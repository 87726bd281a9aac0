"""Packages and the build of the compiled kernels. Everything else about the project is in pyproject.toml.

What is built follows from what is there: no C++ compiler or no torch, nothing (the reference kernels run everywhere); a
CUDA build of torch and nvcc of the same CUDA, the CUDA kernels too, whether or not a GPU is in sight. If these can't be
built, one line says why and the CPU kernels are built alone. The library is not a Python module: `kernels/dispatch.py`
loads it with torch.ops.load_library.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from pathlib import Path

import setuptools

# Without build isolation nobody reads what [build-system] requires; a new environment of Python 3.11 has 65.
if int(setuptools.__version__.partition(".")[0]) < 77:
    sys.exit(f"alexnet_mp: setuptools is {setuptools.__version__}, 77 or newer builds it: pip install -U setuptools")

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel

LIBRARY = "alexnet_mp.kernels.compiled"
# The oldest torch that is supported, 2.11, as torch's headers write it: the library asks for nothing that came later,
# so that what is built with one torch is loaded by all of them.
TARGET = [("TORCH_TARGET_VERSION", "0x020b000000000000")]
COMPILE = ["-std=c++20", "-O3", "-g0", "-fno-math-errno", "-ffp-contract=fast", "-Wno-psabi"]
# Machine code for Ampere and Hopper, and PTX from which a driver makes code for anything newer.
CUDA_TARGETS = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=sm_90",
    "-gencode=arch=compute_90,code=compute_90",
]
# How nvcc, compilers, linkers, shells and Python tell of an error.
COMPLAINT = re.compile(r"error\s*:|fatal\s*:|\bld:(?!.*warning)|not found", re.IGNORECASE)


def extension():
    """(extension modules, command classes): with a compiler and torch, the library; else none, and a line that says
    why."""
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    if shutil.which(compiler[0]) is None:
        return _nothing(f"there is no C++ compiler ({compiler[0]})")
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        return _nothing("torch is not importable in the build")
    sources = ["csrc/ops.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))]
    library = without_cuda = cpp_extension.CppExtension(
        LIBRARY, sources, define_macros=TARGET, extra_compile_args={"cxx": COMPILE}
    )
    runtime = torch.version.cuda and _cuda_runtime(torch.version.cuda, cpp_extension.CUDA_HOME, compiler)
    if runtime:
        options = {"cxx": COMPILE, "nvcc": ["-std=c++20", "-O3", "-DUSE_CUDA", *CUDA_TARGETS]}
        sources = sources + sorted(map(str, Path("csrc/cuda").glob("*.cu")))
        library = cpp_extension.CUDAExtension(
            LIBRARY, sources, define_macros=TARGET, extra_compile_args=options, extra_objects=[runtime]
        )
        library.libraries.remove("cudart")  # a linker looks for it as libcudart.so, a name that only full toolkits have
    print(
        "alexnet_mp: building the compiled kernels for the CPU" + (" and for CUDA, sm_80 and sm_90" if runtime else "")
    )

    class Build(cpp_extension.BuildExtension.with_options(no_python_abi_suffix=True)):
        def build_extensions(self):
            self.force = True  # dates don't tell for which torch, and with or without CUDA, an older library was built
            if not runtime:
                return super().build_extensions()
            with tempfile.TemporaryFile() as output:
                try:
                    with _output_in(output):
                        super().build_extensions()
                        _load(self.get_ext_fullpath(LIBRARY))
                except Exception as error:
                    _no_cuda_kernels(f"their build failed: {_complaint(output, error)}")
                    vars(library).update(vars(without_cuda))  # in place: setuptools has named the object's file
                    super().build_extensions()

    return [library], {"build_ext": Build, "bdist_wheel": Wheel}


class Wheel(bdist_wheel):
    """The library calls torch's C functions and none of Python's: one wheel is for every Python."""

    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


def _cuda_runtime(version, home, compiler):
    """The path of the runtime library for the CUDA kernels; None, and a line that says why, if they can't be built.

    version: torch's CUDA, "13.0". home: the folder whose bin/nvcc torch calls, or None. compiler: the C++ compiler's
    command, a list.
    """
    nvcc = home and shutil.which(os.path.join(home, "bin", "nvcc"))
    if not nvcc:
        place = f"in {home}/bin" if home else "on PATH"
        return _no_cuda_kernels(f"torch is of CUDA {version} and there is no nvcc {place}")
    major = version.split(".")[0]
    match = re.search(r"release (\d+)", _output_of(nvcc, "--version"))
    if not match or match[1] != major:  # with another CUDA torch refuses to build
        return _no_cuda_kernels(f"{nvcc} is of CUDA {match[1] if match else '(unknown)'} and torch of {version}")
    # nvcc may be a script that calls one in another folder. A dry run tells where the toolkit is. The script stays the
    # compiler, since it may add options.
    dry_run = _output_of(nvcc, "--dryrun", "csrc/cuda/lrn_pool.cu")
    toolkit = dict(re.findall(r"^#\$ (TOP|LIBRARIES)=(.*)$", dry_run, re.MULTILINE))
    folders = [Path(word[2:]) for word in shlex.split(toolkit.get("LIBRARIES", "")) if word.startswith("-L")]
    folders += [Path(top, lib) for top in (toolkit.get("TOP"), home) if top for lib in ("lib64", "lib")]
    # torch's packages for CUDA 13 and 12: nvidia/cu13/lib, nvidia/cuda_runtime/lib.
    folders += [folder for place in sys.path for folder in sorted(Path(place).glob("nvidia/*/lib"))]
    # Only full toolkits have libcudart.so, the linker's name; all have the loader's.
    name = f"libcudart.so.{major}"
    for folder in folders:
        if (folder / name).exists():
            return str((folder / name).resolve())
    # The compiler looks in its own folders and in LIBRARY_PATH.
    library = _output_of(*compiler, f"-print-file-name={name}").strip()
    if os.path.isabs(library) and os.path.exists(library):
        return library
    return _no_cuda_kernels(f"the runtime library {name} is neither in the toolkit of {nvcc} nor in torch's packages")


def _output_of(*command):
    """What a program prints; nothing if it can't be started."""
    try:
        process = subprocess.run(command, capture_output=True, text=True, errors="replace", encoding="utf-8")
    except OSError:
        return ""
    return process.stdout + process.stderr


def _load(library):
    """Raise CalledProcessError if the library can't be loaded beside torch: a linker lets undefined names pass."""
    program = "import sys, torch; torch.ops.load_library(sys.argv[1])"
    subprocess.run([sys.executable, "-P", "-c", program, library], check=True)


@contextlib.contextmanager
def _output_in(file):
    """All that this process and its children print goes into a file, and is printed at the end.

    torch doesn't keep the compilers' output. A pipe would wait for children that stay, like the server of sccache.
    """
    duplicates = [os.dup(descriptor) for descriptor in (1, 2)]
    sys.stdout.flush()
    sys.stderr.flush()
    for descriptor in (1, 2):
        os.dup2(file.fileno(), descriptor)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, duplicate in zip((1, 2), duplicates):
            os.dup2(duplicate, descriptor)
            os.close(duplicate)
        file.seek(0)
        with open(1, "wb", closefd=False) as out:
            shutil.copyfileobj(file, out)


def _complaint(output, error):
    """One line: the first in the output of a failed build that tells of an error, or the exception."""
    output.seek(0)
    lines = output.read().decode(errors="replace").splitlines()
    line = next(filter(COMPLAINT.search, lines), f"{type(error).__name__}: {error}")
    return textwrap.shorten(line, 240)


def _no_cuda_kernels(why):
    print(f"alexnet_mp: no CUDA kernels, since {why}")


def _nothing(why):
    print(f"alexnet_mp: no compiled kernels, since {why}; commands run with --kernels reference")
    return [], {}


def long_description(text, repository):
    """README.md as PyPI shows it: links to files of the repository, and its pictures, lead to the repository's page.

    repository: "https://github.com/OWNER/alexnet_mp", [project.urls] of pyproject.toml; None: the text as it is."""
    if repository is None:
        return text

    def absolute(link):
        path, _, place = link[1].partition("#")
        kind = "raw" if path.endswith((".png", ".svg", ".jpg")) else "blob"
        return f"]({repository.rstrip('/')}/{kind}/HEAD/{path}{'#' * bool(place)}{place})"

    parts = text.split("```")  # every second one is code
    parts[::2] = [re.sub(r"\]\((?!https?:|mailto:|#)([^)\s]+)\)", absolute, part) for part in parts[::2]]
    return "```".join(parts)


modules, commands = extension()
project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
setup(
    long_description=long_description(
        Path("README.md").read_text(encoding="utf-8"), project.get("urls", {}).get("Repository")
    ),
    long_description_content_type="text/markdown",
    packages=[*find_packages(include=["alexnet_mp*"]), "alexnet_mp.kernels"],
    # The folder is `kernels`, the import `alexnet_mp.kernels`: a top-level `kernels` would shadow Hugging Face's
    # package.
    package_dir={"alexnet_mp.kernels": "kernels"},
    package_data={"alexnet_mp.reporting": ["*.html", "*.css", "*.js"]},
    ext_modules=modules,
    cmdclass=commands,
)
