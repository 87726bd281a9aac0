"""A change that should not move a number proves it: the working tree against an older commit, on one machine.

    python tools/same_numbers.py [COMMIT] [--work DIR] [--only PROBE,...]

COMMIT is checked out elsewhere, and `same_numbers_probe` runs with the code of both: small training runs, tests,
predictions, prepared sets, indices, pages, claims, every operation. Its digests are compared, a line a value: same or
DIFFERS. The status is 1 if one differs or is missing on a side. It takes some minutes of one core. Nothing is kept for
other machines, since processors round differently.

Both use the packages of the running Python. If the sources of the compiled kernels differ, both places build them.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROBE = ROOT / "tools" / "same_numbers_probe"
COMMIT = "6398af7"  # the first whose components of colour are exact; before, their last bits were LAPACK's
LIBRARY = Path("kernels", "compiled.so")
# What setuptools makes of setup.py's `package_dir` for an editable installation, for another folder. It comes first, so
# that nothing else can provide the package.
FINDER = """import sys
from importlib.util import spec_from_file_location
from pathlib import Path

TREE = Path({tree!r})
FOLDERS = {{"alexnet_mp": TREE / "alexnet_mp", "alexnet_mp.kernels": TREE / "kernels"}}


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        folder = FOLDERS.get(name)
        return folder and spec_from_file_location(name, folder / "__init__.py",
                                                  submodule_search_locations=[str(folder)])


sys.meta_path.insert(0, Finder)
"""


def main(arguments=None):
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", nargs="?", default=COMMIT, metavar="COMMIT", help=f"default: {COMMIT}")
    parser.add_argument(
        "--work",
        metavar="DIR",
        help="new or empty; what both made stays there; default: a temporary one, kept if something differs",
    )
    parser.add_argument(
        "--only",
        metavar="PROBE,...",
        type=lambda text: text.split(","),
        default=[],
        help="functions of the probe: recipes,operations,network for a quick look, or prepared,runs "
        "and what reads these; default: all",
    )
    options = parser.parse_args(arguments)
    if _git("rev-parse", "--verify", "--quiet", f"{options.commit}^{{commit}}").returncode:
        parser.error(f"{options.commit} is no commit of {ROOT}; git log lists them")
    work = Path(options.work or tempfile.mkdtemp(prefix="same_numbers-")).resolve()
    if work.exists() and any(work.iterdir()):
        parser.error(f"--work {work}: it is not empty; choose another directory, or remove it")
    work.mkdir(parents=True, exist_ok=True)
    # one probe for both, whatever is edited meanwhile
    probe = Path(shutil.copytree(PROBE, work / "probe" / PROBE.name, ignore=shutil.ignore_patterns("__pycache__")))
    code = work / "code"
    _git("clone", "--quiet", "--shared", "--no-checkout", ROOT, code, check=True)
    _git("-C", code, "checkout", "--quiet", "--detach", _git("rev-parse", options.commit).stdout.strip(), check=True)
    give_library(ROOT, code)
    sides = (code, "before"), (ROOT, "after")
    before, after = (numbers(tree, probe, work, side, options.only) for tree, side in sides)
    lines, same = compare(before, after, (options.commit, "the working tree"))
    print("\n".join(lines))
    if same and options.work is None:
        shutil.rmtree(work)
    elif not same:
        print(f"what both made is in {work}/before and {work}/after")
    return 0 if same else 1


def give_library(tree, checkout):
    """The compiled kernels for another checkout: the tree's own, or built in both if sources or flags differ."""
    if (tree / LIBRARY).exists() and _sources(tree) == _sources(checkout):
        shutil.copy2(tree / LIBRARY, checkout / LIBRARY)
        return
    for place in (tree, checkout):
        print(f"building the compiled kernels in {place}", flush=True)
        subprocess.run(
            [sys.executable, "setup.py", "build_ext", "--inplace"], cwd=place, check=True, stdout=subprocess.DEVNULL
        )


def _sources(tree):
    """All that the compiled kernels are made of."""
    flags = re.findall(r"^COMPILE = .*$", (tree / "setup.py").read_text(encoding="utf-8"), re.MULTILINE)
    files = [path for path in (tree / "csrc").rglob("*") if path.is_file()]
    return flags, {path.relative_to(tree): path.read_bytes() for path in files}


def environment(tree, place):
    """A new virtual environment at `place` in which `alexnet_mp` is the tree's. Returns its Python.

    Everything else comes from where the running Python has it. The .pth files there are not read, those of editable
    installations among them.
    """
    venv.create(place, symlinks=True)
    (packages,) = Path(place).glob("lib/python*/site-packages")
    paths = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "others.pth").write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
    (packages / "tree_finder.py").write_text(FINDER.format(tree=str(tree)), encoding="utf-8")
    (packages / "tree_finder.pth").write_text("import tree_finder\n", encoding="utf-8")
    return Path(place) / "bin" / "python"


def numbers(tree, probe, work, side, only=()):
    """{name: digest} of what the tree's code computes; what it made is left in work/side.

    Both sides have the same paths, which are part of some results. Raises SystemExit if the probe imported other code.
    """
    place, room, file = work / "python", work / "room", work / f"{side}.json"
    python = environment(tree, place)
    room.mkdir()
    print(f"computing with {tree}", flush=True)
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TRITON"))}
    settings = {"PYTHONPATH": str(probe.parent), "OMP_NUM_THREADS": "1"}
    process = subprocess.run([python, "-P", "-m", probe.stem, file, *only], cwd=room, env=variables | settings)
    shutil.rmtree(place)
    room.rename(work / side)
    digests = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    sources = [str(tree / "alexnet_mp"), str(tree / "kernels")]
    if digests and (origins := digests.pop("imported")) != sources:
        sys.exit(f"the code came from {origins} instead of {sources}; nothing was compared")
    # A name that the other side has not: what failed is never the same, even if it failed on both.
    return digests | ({f"the whole probe ({side})": "failed"} if process.returncode else {})


def compare(before, after, names=("before", "after")):
    """(lines, whether all is the same) of two {name: digest}: a line a value, and one that counts."""
    lines, count = [], 0
    for name in dict.fromkeys([*before, *after]):
        missing_sides = [side for side, values in zip(names, (before, after)) if name not in values]
        same = not missing_sides and before[name] == after[name]
        count += not same
        lines.append(
            f"{'same   ' if same else 'DIFFERS'}  {name}" + "".join(f" (missing: {side})" for side in missing_sides)
        )
    summary = f"{count} of {len(lines)} values differ" if count else f"{len(lines)} values, all the same"
    return [*lines, summary if lines else "no value at all"], bool(lines) and not count


def _git(*arguments, check=False):
    return subprocess.run(
        ["git", "-C", str(ROOT), *map(str, arguments)], capture_output=True, text=True, check=check, encoding="utf-8"
    )


if __name__ == "__main__":
    sys.exit(main())
