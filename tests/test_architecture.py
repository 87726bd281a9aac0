"""docs/architecture.md is true to the code: its names can be imported, its files are there, its imports hold."""

import ast
import importlib
import re
from pathlib import Path

from inner_cases import every
from pages import PAGES, blocks, sections, spans, text, typed

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "alexnet_mp"
PAGE = "docs/architecture.md"
OWN_FILES = {"docs/claims.md", "docs/deviations.md", "docs/pretraining.md"}  # they cite files of the 2012 release
TABLE = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in sections(PAGE)["Who may import whom"].splitlines()
    if line.startswith("| `")
]


def names():
    dotted_names = {span for span in spans(PAGE) if re.fullmatch(r"[a-z]\w*(\.\w+)+", span)}
    return sorted(name for name in dotted_names - {"run.json"} if not name.endswith((".py", ".md")))


def test_every_name_is_there():
    """package.module.thing, below alexnet_mp; of a private or misspelt one the import or getattr fails."""
    missing = [name for name in names() if not is_there(name)]
    assert missing == []


def is_there(name):
    parts = name.split(".")
    for length in range(len(parts), -1, -1):
        module = ".".join(["alexnet_mp", *parts[:length]])
        try:
            owner = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise  # of something else
        else:
            break
    for attribute in parts[length:]:
        if not hasattr(owner, attribute):
            return False
        owner = getattr(owner, attribute)
    return True


def test_the_page_tells_both_paths():
    assert len(names()) > 60
    batch, flag = sections(PAGE)["The path of a batch"], sections(PAGE)["The path of a flag"]
    places = [batch.index(f"`{package}.") for package in ("data", "training", "network", "kernels")]
    assert places == sorted(places)
    assert flag.index("`train.py`") < flag.index("`training/run.py`") < flag.index("`recipes.recipe.override`")


def test_every_section_of_the_paper_has_its_file():
    for section in (
        "3.1 ReLU",
        "3.2 two GPUs",
        "3.2 crossing at conv3",
        "3.3",
        "3.4",
        "3.5",
        "4.1 crops and flips",
        "4.1 colour",
        "4.1 ten views",
        "4.2 dropout",
        "5 update",
        "5 plateau",
        "5 initial weights",
        "figure 3",
        "figure 4, left",
        "figure 4, right",
    ):
        assert re.search(rf"^\| {re.escape(section)}", sections(PAGE)["From the paper to the files"], re.M), section


def test_files_that_pages_name_are_there():
    for page in (page for page in PAGES if page not in OWN_FILES):
        for span in spans(page):
            file = re.fullmatch(r"[\w*-][\w/.*-]*\.(py|sh|md|h|cuh|cu|cpp)", span)
            if file or re.fullmatch(r"(csrc|kernels|tests|tools)/[\w/]*", span):
                assert any(ROOT.glob(span)) or any(PACKAGE.glob(span)), f"{page}: {span}"


def test_the_readmes_map_is_the_tree():
    (tree,) = (block for block in blocks("README.md") if block[0].startswith("alexnet_mp/"))
    folders = [word for line in tree for word in re.match(r"((?: *[a-z_]+/)+)", line)[1].split()]
    assert all((ROOT / name).is_dir() or (PACKAGE / name).is_dir() for name in folders)
    assert {f"{row[0].strip('`')}/" for row in TABLE} <= set(folders)
    assert {path.parent.name for path in PACKAGE.glob("*/*.py")} - {"kernels"} == {row[0].strip("`") for row in TABLE}


def test_what_contributing_names_can_be_typed():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    words = typed("CONTRIBUTING.md")
    assert {line[1] for line in words if line[0] == "make"} <= set(targets)
    for line in words:
        for word in line[:2]:
            assert not re.match(r"(tools|benchmarks|tests)/", word) or (ROOT / word).exists(), line


# --- the table of imports

MAY = {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[2])) for row in TABLE}


def reachable(package):
    """What a package may import: itself, what its row names, and what those may import."""
    packages, queue = {package, "system"}, [package]
    while queue:
        for other in MAY[queue.pop()] - packages:
            packages.add(other)
            queue.append(other)
    return packages


def imported(path):
    """[(line, package or root module)] of all that a file of ours imports of ours, wherever in the file it does."""
    here = path.relative_to(ROOT).parent.parts
    here = ("alexnet_mp", *here) if here[0] == "kernels" else here
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                whole = (*base, alias.name)
                if whole[0] == "alexnet_mp" and len(whole) > 1:
                    yield node.lineno, whole[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name.split(".")
                if whole[0] == "alexnet_mp" and len(whole) > 1:
                    yield node.lineno, whole[1]


@every("package", [*MAY, "kernels"])
def test_imports_go_one_way(package):
    folder = ROOT / "kernels" if package == "kernels" else PACKAGE / package
    assert any(folder.glob("*.py"))
    packages = {"kernels"} if package == "kernels" else reachable(package) | {"kernels"}
    packages -= {"retrieval"} if package == "training" else set()  # as the page says
    violations = [
        f"{path.relative_to(ROOT)}:{line} imports {other}"
        for path in sorted(folder.glob("*.py"))
        for line, other in imported(path)
        if other not in packages
    ]
    assert violations == []


def test_the_table_has_no_circle():
    for package in MAY:
        assert all(package not in reachable(other) for other in MAY[package]), package
    assert text(PAGE).count("| package | holds | imports |") == 1
