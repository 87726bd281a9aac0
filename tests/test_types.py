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
        static = any(isinstance(each, ast.Name) and each.id == "staticmethod" for each in node.decorator_list)
        arguments = (node.args.posonlyargs + node.args.args)[bool(place) and not static :]
        arguments += node.args.kwonlyargs + [each for each in (node.args.vararg, node.args.kwarg) if each]
        lacking = [each.arg for each in arguments if each.annotation is None]
        if node.returns is None and node.name != "__init__":
            lacking.append("return")
        if lacking:
            yield f"{place}{node.name}: {', '.join(lacking)}"


def test_public_functions_are_typed():
    found = {
        str(path.relative_to(ROOT)): lacking
        for path in FILES
        if (lacking := list(untyped(ast.parse(path.read_text(encoding="utf-8")).body)))
    }
    assert not found


def test_an_untyped_function_is_found():
    code = (
        "class A:\n    def b(self, c: int, *d): ...\n    def _e(self, f): ...\ndef g(h: int) -> int: ...\ndef i(): ..."
    )
    assert list(untyped(ast.parse(code).body)) == ["A.b: d, return", "i: return"]
