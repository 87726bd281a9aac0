"""Text is UTF-8 whatever the locale: no call in the source leaves that to the machine."""

import ast
from pathlib import Path

from inner_cases import every

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("alexnet_mp", "kernels", "benchmarks", "tools", "claims")
BINARY = {"os", "Image", "tarfile", "zipfile", "archive"}  # whose `open` knows no text
PROCESSES = {"run", "Popen", "call", "check_call", "check_output"}
FILES = {"open": (1, "r"), "fdopen": (1, "r"), "TemporaryFile": (0, "w+b"), "NamedTemporaryFile": (0, "w+b")}


def left_to_the_locale(text):
    """(line, call) of every call that reads or writes text and doesn't say in which encoding."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return [(call.lineno, ast.unparse(call)) for call in calls if _is_left(call)]


def _is_left(call):
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    name = call.func.attr if owner is not None else getattr(call.func, "id", None)
    if "encoding" in keywords:
        return isinstance(keywords["encoding"], ast.Constant) and keywords["encoding"].value in (None, "locale")
    if name in ("read_text", "write_text"):
        return len(call.args) <= (name == "write_text")
    if name == "TextIOWrapper":
        return len(call.args) < 2
    if name in PROCESSES:
        return any(_is_true(keywords.get(word)) for word in ("text", "universal_newlines"))
    if name not in FILES or name == "open" and getattr(owner, "id", getattr(owner, "attr", None)) in BINARY:
        return False
    place, mode = FILES[name]
    if name == "open" and owner is not None and not (isinstance(owner, ast.Name) and owner.id in ("io", "gzip", "bz2")):
        place = 0  # Path.open
    if name == "open" and isinstance(owner, ast.Name) and owner.id in ("gzip", "bz2"):
        mode = "rb"
    at = keywords.get("mode", call.args[place] if len(call.args) > place else ast.Constant(mode))
    packed = isinstance(owner, ast.Name) and owner.id in ("gzip", "bz2")
    if not isinstance(at, ast.Constant):
        return True
    return "t" in at.value if packed else "b" not in at.value


def _is_true(value):
    return value is not None and not (isinstance(value, ast.Constant) and not value.value)


@every("folder", [*FOLDERS, "setup.py"])
def test_every_text_has_an_encoding(folder):
    files = [ROOT / folder] if folder.endswith(".py") else sorted((ROOT / folder).rglob("*.py"))
    problems = [
        f"{path.relative_to(ROOT)}:{line}: {call}"
        for path in files
        for line, call in left_to_the_locale(path.read_text(encoding="utf-8"))
    ]
    assert not problems, "\n".join(problems)
    assert files or folder == "claims"


@every("expected", [True, False])
def test_the_calls_are_told_apart(expected):
    texts = {
        True: (
            "open(path)",
            "open(path, 'w')",
            "open(path, mode=mode)",
            "path.open()",
            "path.open('a')",
            "io.open(path, 'r')",
            "os.fdopen(3)",
            "path.read_text()",
            "path.read_text(errors='replace')",
            "path.read_text(encoding=None)",
            "path.write_text(text)",
            "gzip.open(path, 'rt')",
            "tempfile.NamedTemporaryFile('w')",
            "tempfile.TemporaryFile(mode='w+')",
            "io.TextIOWrapper(file)",
            "subprocess.run(words, text=True)",
            "subprocess.Popen(words, universal_newlines=True)",
            "f(g(open(path)))",
        ),
        False: (
            "open(path, 'rb')",
            "open(path, mode='xb')",
            "open(path, encoding='utf-8')",
            "path.open('wb')",
            "os.open(path, os.O_RDONLY)",
            "os.fdopen(3, 'wb')",
            "Image.open(path)",
            "tarfile.open(path)",
            "gzip.open(path)",
            "path.read_text('utf-8')",
            "path.read_text(encoding='utf-8')",
            "path.write_text(text, 'utf-8')",
            "tempfile.TemporaryFile()",
            "subprocess.run(words)",
            "subprocess.run(words, text=True, encoding='utf-8')",
            "trainer.run()",
        ),
    }[expected]
    for text in texts:
        assert bool(left_to_the_locale(text)) is expected, text
