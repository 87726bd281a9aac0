"""Packages and, when there are compiled kernels, their build. Everything else about the project is in pyproject.toml."""
from setuptools import setup

setup(
    packages=["alexnet_mp", "alexnet_mp.kernels"],
    # The folder is `kernels`, the import `alexnet_mp.kernels`: a top-level `kernels` would shadow Hugging Face's package.
    package_dir={"alexnet_mp.kernels": "kernels"},
)
