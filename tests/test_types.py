"""Every public function says the types of its arguments and of its result."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*(ROOT / "alexnet_mp").rglob("*.py"), *(ROOT / "kernels").glob("*.py")])


def untyped(body, place=""):
    """What lacks a type in a body of a module or a class, as "Class.function: argument, return"."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from untyped(node.body, f"{place}{node.name}.")
        public = isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name == "__init__")
        if not public:
            continue
        static = any(
            isinstance(decorator, ast.Name) and decorator.id == "staticmethod" for decorator in node.decorator_list
        )
        arguments = (node.args.posonlyargs + node.args.args)[bool(place) and not static :]
        arguments += node.args.kwonlyargs + [argument for argument in (node.args.vararg, node.args.kwarg) if argument]
        names = [argument.arg for argument in arguments if argument.annotation is None]
        if node.returns is None and node.name != "__init__":
            names.append("return")
        if names:
            yield f"{place}{node.name}: {', '.join(names)}"


def test_public_functions_are_typed():
    problems = {
        str(path.relative_to(ROOT)): names
        for path in FILES
        if (names := list(untyped(ast.parse(path.read_text(encoding="utf-8")).body)))
    }
    assert not problems


def test_an_untyped_function_is_found():
    code = (
        "class A:\n    def b(self, c: int, *d): ...\n    def _e(self, f): ...\ndef g(h: int) -> int: ...\ndef i(): ..."
    )
    assert list(untyped(ast.parse(code).body)) == ["A.b: d, return", "i: return"]
