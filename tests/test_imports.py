"""Imports go in no circle, and `kernels` and the commands have their places. docs/architecture.md has the table of who
may import whom: `test_architecture.py`."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "alexnet_mp"
KERNELS = ROOT.with_name("kernels")  # the package alexnet_mp.kernels


def root_of(path):
    """The folder that stands for alexnet_mp in the path of a file."""
    return KERNELS.parent if path.parent == KERNELS else ROOT


def imported(path):
    """{module: line} of what a file of the package imports of alexnet_mp, as "data.batches" or "train"."""
    lines, here = {}, path.relative_to(root_of(path)).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level] + tuple((node.module or "").split(".") if node.module else ())
            for alias in node.names:
                inner = (KERNELS.parent if base[:1] == ("kernels",) else ROOT).joinpath(*base, alias.name)
                module = base + (alias.name,) if inner.with_suffix(".py").exists() or inner.is_dir() else base
                lines[".".join(module)] = node.lineno
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            lines |= {name.removeprefix("alexnet_mp."): node.lineno for name in names if name.startswith("alexnet_mp.")}
    return lines


def test_no_modules_import_each_other_in_a_circle():
    graph = {}
    for path in [*ROOT.rglob("*.py"), *KERNELS.glob("*.py")]:
        module = ".".join(path.relative_to(root_of(path)).with_suffix("").parts)
        graph[module.removesuffix(".__init__")] = imported(path)
    done, open_ = set(), []

    def visit(module):
        assert module not in open_, f"a circle: {' -> '.join([*open_[open_.index(module) :], module])}"
        if module in done or module not in graph:
            return
        open_.append(module)
        for other in graph[module]:
            visit(other)
        open_.pop()
        done.add(module)

    for module in graph:
        visit(module)


def test_kernels_import_nothing_else_of_the_package():
    assert {module.split(".")[0] for path in KERNELS.glob("*.py") for module in imported(path)} == {"kernels"}


def test_no_file_of_kernels_bears_the_name_of_a_public_function():
    """As an attribute of the package, the module would hide the function."""
    public = {
        alias.name
        for node in ast.walk(ast.parse((KERNELS / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert "lrn" in public and not public & {path.stem for path in KERNELS.glob("*.py")}


def test_only_commands_lie_at_the_root():
    commands = {path.stem for path in ROOT.glob("*.py")} - {"__init__", "command_options"}
    for name in commands:
        text = (ROOT / f"{name}.py").read_text()
        assert "def main(arguments: Sequence[str" in text and "run_command(main" in text, name
