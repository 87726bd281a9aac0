"""Packages and the build of the compiled kernels. Everything else about the project is in pyproject.toml.

What is built follows from what is there: no C++ compiler or no torch, nothing (the reference kernels run everywhere); a CUDA build of
torch and nvcc of the same CUDA, the CUDA kernels too, whether or not a GPU is in sight. The library is not a Python module:
`kernels/choice.py` loads it with torch.ops.load_library.
"""
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from setuptools import setup

COMPILE = ["-std=c++20", "-O3", "-g0", "-fno-math-errno", "-ffp-contract=fast", "-Wno-psabi"]
# Machine code for Ampere and Hopper, and PTX from which a driver makes code for anything newer.
CUDA_TARGETS = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=sm_90",
                "-gencode=arch=compute_90,code=compute_90"]


def extension():
    """(extension modules, command classes): with a compiler and torch, the library; else none, and a line that says why."""
    compiler = shlex.split(os.environ.get("CXX") or "c++")[0]
    if shutil.which(compiler) is None:
        return _nothing(f"there is no C++ compiler ({compiler})")
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        return _nothing("torch is not importable in the build; pip's --no-build-isolation would let it be seen")
    sources = ["csrc/ops.cpp", *sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp"))]
    options = {"cxx": COMPILE}
    cuda = torch.version.cuda is not None and _nvcc_fits(torch.version.cuda, cpp_extension.CUDA_HOME)
    if cuda:
        sources += sorted(str(path) for path in Path("csrc/cuda").glob("*.cu"))
        options["nvcc"] = ["-std=c++20", "-O3", "-DUSE_CUDA", *CUDA_TARGETS]
    kind = cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension
    print("alexnet_mp: building the compiled kernels for the CPU" + (" and for CUDA, sm_80 and sm_90" if cuda else ""))
    build = cpp_extension.BuildExtension.with_options(no_python_abi_suffix=True)
    return [kind("alexnet_mp.kernels.compiled", sources, extra_compile_args=options)], {"build_ext": build}


def _nvcc_fits(version, home):
    """Whether there is the nvcc that torch would call, of the CUDA that torch was built with: with another it refuses to build."""
    nvcc = home and shutil.which(os.path.join(home, "bin", "nvcc"))
    if not nvcc:
        return False
    found = re.search(r"release (\d+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    if found and found[1] == version.split(".")[0]:
        return True
    print(f"alexnet_mp: no CUDA kernels, since {nvcc} is of CUDA {found[1] if found else '(unknown)'} and torch of {version}")
    return False


def _nothing(why):
    print(f"alexnet_mp: no compiled kernels, since {why}; commands run with --kernels reference")
    return [], {}


modules, commands = extension()
setup(
    packages=["alexnet_mp", "alexnet_mp.kernels"],
    # The folder is `kernels`, the import `alexnet_mp.kernels`: a top-level `kernels` would shadow Hugging Face's package.
    package_dir={"alexnet_mp.kernels": "kernels"},
    package_data={"alexnet_mp": ["report_page.html"]},
    ext_modules=modules,
    cmdclass=commands,
)
