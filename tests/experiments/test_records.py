"""Records of claims: written, read, taken from another machine; README's table and the page of all claims."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from claim_records import THREE, record_of
from inner_cases import every

from alexnet_mp import claims
from alexnet_mp.experiments import page as claim_page
from alexnet_mp.experiments.elsewhere import ELSEWHERE
from alexnet_mp.experiments.figures import draw_claim
from alexnet_mp.experiments.paper_claims import CLAIMS, STUDY
from alexnet_mp.experiments.records import differences, path_of, read_records, take_records, write_record
from alexnet_mp.recipes import ablations
from alexnet_mp.recipes.named import PRESETS
from alexnet_mp.system import durable_files
from alexnet_mp.system.errors import UserError


@pytest.mark.run
def test_a_record_is_read_as_it_was_written(tmp_path):
    record = record_of("difference", ["base", "no_lrn"], THREE)
    path, written = write_record(record, tmp_path / "records")
    assert written
    assert json.loads(path.read_text()) == record and path.with_suffix(".png").stat().st_size > 1000
    assert path.read_text().count("\n") < 40
    other = dict(record, date="2026-11-27T10:00:00+00:00", epochs=20)
    others = [
        other,
        dict(record, runs=[dict(run, devices=["NVIDIA H200"] * 2) for run in record["runs"]]),
        dict(record, search_epochs=2),
        dict(record, arms=[dict(arm, digest="other") for arm in record["arms"]]),
    ]
    assert len({path_of(each, tmp_path / "records") for each in others} | {path}) == 5
    same_records = [
        dict(record, set=["dropout=0.5"], reported_on={"devices": ["another"]}),
        dict(record, runs=[dict(run, devices=["CPU, 64 threads"] * 2) for run in record["runs"]]),
    ]
    assert {path_of(other, tmp_path / "records") for other in same_records} == {path}
    write_record(other, tmp_path / "records")
    (tmp_path / "records" / "foreign.json").write_text("[1]")
    (tmp_path / "records" / "broken.json").write_text("{")
    assert read_records(tmp_path / "records") == {"lrn": [other, record]}  # the newest first


@pytest.mark.run
def test_a_record_of_fewer_runs_does_not_replace_one_of_more(tmp_path):
    whole = record_of("difference", ["base", "no_lrn"], THREE)
    one = record_of("difference", ["base", "no_lrn"], {key: run for key, run in THREE.items() if key[1] == 0})
    assert [write_record(record, tmp_path)[1] for record in (one, whole, one)] == [True, True, False]
    assert read_records(tmp_path) == {"lrn": [whole]}
    rerun = dict(one, runs=[dict(run, commits=["a mended one"]) for run in one["runs"]])
    # which the whole one doesn't have
    assert write_record(rerun, tmp_path)[1] and read_records(tmp_path) == {"lrn": [rerun]}


def test_records_of_another_machine_are_taken_where_they_say_more(tmp_path):
    whole = record_of("difference", ["base", "no_lrn"], THREE)
    one = record_of("difference", ["base", "no_lrn"], {key: run for key, run in THREE.items() if key[1] == 0})
    other = dict(one, runs=[dict(run, commits=["another"]) for run in one["runs"]])
    path, here, there = write_record(whole, tmp_path / "there")[0], tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        (folder / "runs").mkdir(parents=True)
    entry = json.dumps(whole["runs"][0])
    for name in ("new", "other", "mends"):
        np.savez(there / "runs" / f"{name}.npz", conv1=np.full((2, 3, 3, 3), 1 / 3))
        (there / "runs" / f"{name}.json").write_text(entry)
    np.savez(there / "runs" / "right.npz", images=9, **{"ten views": np.zeros((2, 2), np.uint8)})  # the answers alone
    (there / "runs" / "right.json").write_text(entry)
    # A copy that was broken off, there and here; and files with bits that turned, in the second array, too.
    (there / "runs" / "cut.npz").write_bytes((there / "runs" / "new.npz").read_bytes()[:200])
    (there / "runs" / "cut.json").write_text(entry)
    np.savez_compressed(there / "runs" / "turned.npz", conv1=np.zeros((2, 3, 3, 3)), right=np.arange(999))
    content = bytearray((there / "runs" / "turned.npz").read_bytes())
    content[-700] ^= 64
    (there / "runs" / "turned.npz").write_bytes(content)
    (here / "runs" / "mends.npz").write_bytes((there / "runs" / "new.npz").read_bytes())
    (here / "runs" / "mends.json").write_text(entry[:-5])
    np.savez(here / "runs" / "other.npz", conv1=np.zeros((2, 3, 3, 3)))  # what is here stays
    (here / "runs" / "other.json").write_text(entry)
    np.savez(
        here / "runs" / "bare.npz", images=9, **{"ten views": np.zeros((2, 2), np.uint8)}
    )  # without its kernels, too
    np.savez(there / "runs" / "bare.npz", conv1=np.zeros((2, 3, 3, 3)), images=9)
    for folder in (here, there):
        (folder / "runs" / "bare.json").write_text(entry)
    bytes_here = (here / "runs" / "other.npz").read_bytes()
    files = [f"runs/{name}.{ending}" for name in ("mends", "new", "right") for ending in ("json", "npz")]
    durable_files.replace(path.with_suffix(".png"), b"a picture that older code drew")
    assert take_records(there, here) == [path.name, *files]
    draw_claim(whole, tmp_path / "anew.png")
    assert (here / path.with_suffix(".png").name).read_bytes() == (tmp_path / "anew.png").read_bytes()
    assert read_records(here) == {"lrn": [whole]} and (here / "runs" / "other.npz").read_bytes() == bytes_here
    for name in files:
        assert (here / name).read_bytes() == (there / name).read_bytes()
    assert take_records(there, here) == []
    with pytest.raises(UserError, match="--take nowhere: no such directory"):
        take_records("nowhere", here)
    for record in (one, other):  # fewer runs, or others: what is here stays
        durable_files.replace(there / path.name, json.dumps(record).encode())
        os.utime(there / path.name, (2e9, 2e9))
        assert take_records(there, here) == [] and read_records(here) == {"lrn": [whole]}
    target, readme, page = (tmp_path / name for name in ("third", "README.md", "claims.md"))
    readme.write_text("# No table\n")
    words = ["--take", there, "--records", target, "--readme", readme, "--details", page]
    assert claims.main(["table", "--write", *map(str, words)]) == 0
    assert (target / path.name).exists()


@pytest.fixture
def place(tmp_path):
    for name in ("README.md", "claims.md"):
        (tmp_path / name).write_text(f"# Claims\n\n{claim_page.BEGIN}\n{claim_page.END}\n\nThe end.\n")
    return tmp_path, [
        "table",
        "--readme",
        tmp_path / "README.md",
        "--records",
        tmp_path / "records",
        "--details",
        tmp_path / "claims.md",
    ]


def test_recorded_rendered_checked(place, capsys):
    folder, words = place
    record = record_of("difference", ["base", "no_lrn"], THREE)
    record["data"][0]["description"] = "folder a|b"
    write_record(record, folder / "records")
    assert claims.main([*words, "--check"]) == 1
    assert claims.main([*words, "--write"]) == 0 and claims.main([*words, "--check"]) == 0
    text, page = (folder / "README.md").read_text(), (folder / "claims.md").read_text()
    assert all(content.startswith("# Claims\n") and content.endswith("\n\nThe end.\n") for content in (text, page))
    rows = [row for row in page.splitlines() if row.startswith("| [")]
    assert len(rows) == len(CLAIMS) + len(ELSEWHERE)
    assert sum(row.endswith("| not run |") for row in rows) == len(rows) - 1
    (row,) = (row for row in rows if row.startswith("| [lrn](#lrn)"))
    outcome = "no lrn minus base: +2.00 points (-0.48 to +4.48) (on folder a\\|b)"
    assert row.endswith(f"| 1.4 / 1.2 points | {outcome} | 3 | no verdict; too few seeds |")
    readme_rows = [row for row in text.splitlines() if row.startswith("| [")]
    assert [row.split("]")[0] for row in readme_rows] == [f"| [{name}" for name in claim_page.MAIN]
    assert {row.replace("(claims.md#", "(#") for row in readme_rows} < set(rows)
    assert [line for line in page.splitlines() if line.startswith("#")] == [
        "# Claims",
        "## lrn",
        "## Not run here",
        *(f"### {entry.id}" for entry in (*CLAIMS, *ELSEWHERE) if entry.id != "lrn"),
    ]
    assert "**folder a|b; `mini`, 12 epochs, CPU, 1 thread, 2026-11-26**\n\n- no lrn +2.00 ± 1.00 / +1.50" in page
    (picture,) = (folder / "records").glob("*.png")
    assert (
        f"](records/{picture.name})" in page and "\nCommand, at commit abc: `python -m alexnet_mp.claims run x`" in page
    )
    (folder / "claims.md").write_text(page.replace("+2.00 ± 1.00", "+2.50 ± 1.00"))
    assert claims.main([*words, "--check"]) == 1 and claims.main([*words, "--write"]) == 0
    assert (folder / "claims.md").read_text() == page
    (folder / "README.md").write_text(text.replace("+2.00 points", "+2.50 points"))
    capsys.readouterr()
    assert claims.main([*words, "--check"]) == 1 and "differs from the records" in capsys.readouterr().out


def test_a_record_whose_networks_are_others_by_now_names_its_commit():
    claim = next(claim for claim in CLAIMS if claim.id == "lrn")
    for base, epochs in (("mini", 12), ("paper", 90), ("paper", 20)):  # of a plateau's, by --epochs or without
        record = record_of("difference", ["base", "no_lrn"], THREE) | {"base": base, "epochs": epochs}
        for epochs_option in {None, epochs} if epochs == 90 else {epochs}:
            digests = claim_page._digests(claim, record, epochs_option)
            arms = [arm | {"digest": digests[arm["name"]]} for arm in record["arms"]]
            assert claim_page._at_commit(claim, record | {"arms": arms}) == "", (base, epochs, epochs_option)
    for more in ({"base": "gone"}, {"set": ["nosuch=1"]}, {"set": ["fc8.reads=own"]}, {"arms": record["arms"]}):
        assert claim_page._at_commit(claim, record | {"arms": arms} | more) == ", at commit abc", more


@pytest.mark.parametrize("name", ["README.md", "claims.md"])
def test_a_page_without_markers_is_left_alone(place, name):
    folder, words = place
    for text, status in (
        ("# No place\n", 0),
        (f"{claim_page.END}\n{claim_page.BEGIN}\n", 1),
        (f"{claim_page.BEGIN}\n", 1),
    ):
        (folder / name).write_text(text)
        assert claims.main([*words, "--write"]) == status == claims.main([*words, "--check"])
        assert (folder / name).read_text() == text


def test_a_page_of_details_that_is_not_there_is_made(place):
    folder, words = place
    (folder / "claims.md").unlink()
    assert claims.main([*words, "--check"]) == 1 and not (folder / "claims.md").exists()
    assert claims.main([*words, "--write"]) == 0 == claims.main([*words, "--check"])
    assert (folder / "claims.md").read_text().startswith(f"{claim_page.BEGIN}\n| claim |")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_tables_are_printed_unless_they_are_to_be_written(place, capsys):
    folder, words = place
    write_record(record_of("difference", ["base", "no_lrn"], THREE), folder / "records")
    before = contents(folder)
    assert claims.main(words) == 0 and contents(folder) == before
    output, errors = capsys.readouterr()
    assert errors == ""
    assert claims.main(["table", "--records", folder / "elsewhere"]) == 0
    assert "elsewhere: no such directory, so no claim was run" in capsys.readouterr().err
    assert claims.main([*words, "--write"]) == 0
    for name in before:
        table = (folder / name).read_bytes().decode().partition(claim_page.BEGIN)[2].partition(claim_page.END)[0]
        assert len(table) > 1000 and table.replace("](records/", "](").strip() in output.replace(
            f"]({os.path.relpath(folder / 'records', claim_page.DETAILS.parent)}/", "]("
        ).replace("](docs/claims.md#", "](claims.md#")


def test_another_folder_of_records_never_becomes_the_checkouts_tables(place):
    folder, words = place
    for option in ("--readme", "--details", None):
        rest = [word for index, word in enumerate(words) if option not in (word, words[index - 1])]
        if option:
            with pytest.raises(UserError, match=f"^--records {folder / 'records'}: .*name others with --readme FILE"):
                claims.main([*rest, "--write"])
        assert claims.main(rest) == 0


@every("failing", ["README.md.partial", "claims.md.partial"])
def test_both_pages_are_written_or_neither(place, monkeypatch, failing):
    folder, words = place
    before, function = contents(folder), durable_files.write

    def fails(path, parts):
        if str(path).endswith(failing):
            function(path, [b"half"])
            raise OSError(28, "No space left on device", str(path))
        return function(path, parts)

    monkeypatch.setattr(durable_files, "write", fails)
    with pytest.raises(UserError, match=f"cannot write .*{failing}: No space left on device; nothing was written"):
        claims.main([*words, "--write"])
    assert contents(folder) == before


@pytest.mark.slow
@pytest.mark.process
def test_pages_are_utf_8_in_a_locale_that_knows_ascii_alone(place):
    folder, words = place
    for name in contents(folder):
        (folder / name).write_text(f"Zoë ± 1\n{claim_page.BEGIN}\n{claim_page.END}\n", encoding="utf-8")
    (folder / "records").mkdir()
    environment = {**os.environ, "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    code = (
        "import sys; from alexnet_mp import claims; from alexnet_mp.system.errors import run_command; "
        "run_command(lambda: claims.main([*sys.argv[1:], '--write']) or claims.main(sys.argv[1:]))"
    )
    process = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, env=environment)
    assert process.returncode == 0 and process.stdout and not process.stderr, process.stderr.decode(errors="replace")
    for content in contents(folder).values():
        assert content.decode().startswith("Zoë ± 1\n") and len(content) > 1000
    (folder / "README.md").write_bytes("Zoë".encode("latin-1"))
    with pytest.raises(UserError, match="README.md: it is not UTF-8 at byte 2"):
        claims.main([*words, "--write"])


def test_the_readmes_claims_are_the_papers_main_ones():
    """In the paper's order, the study's among them, at least one of every section that says what matters."""
    sections = {claim.id: claim.section for claim in CLAIMS}
    assert len(claim_page.MAIN) == len(set(claim_page.MAIN)) and set(STUDY) < set(claim_page.MAIN)
    main_sections = [sections[id] for id in claim_page.MAIN]
    for section in ("3.1", "3.2", "3.3", "3.4", "4.1", "4.2", "6, table 1", "6, table 2", "6.1", "1, 7"):
        assert section in main_sections
    numbers = [float(section.split(", table")[0].split(", ")[-1]) for section in main_sections]  # "3, 4": of both
    assert numbers == sorted(numbers)


@pytest.mark.run
def test_the_pages_say_what_the_records_say(capsys):
    assert claims.main(["table", "--check"]) == 0
    assert capsys.readouterr().out.count("is what the records say") == 2


def test_a_damaged_record_is_left_alone(tmp_path, capsys):
    for name, content in (
        ("short", '{"format": 1, "claim": "lrn", "kind": "difference", "runs": []}'),
        ("garbage", "{"),
        ("deep", "[" * 100_000),
        ("list", "[]"),
        ("bytes", "\udcff"),
        ("kind", json.dumps(record_of("difference", ["base"], THREE) | {"kind": "unknown"})),
        ("kinds", json.dumps(record_of("difference", ["base"], THREE) | {"kind": []})),
        ("count", json.dumps(record_of("difference", ["base"], THREE) | {"runs": 5})),
        ("run", json.dumps(record_of("difference", ["base"], THREE) | {"runs": [{"seed": 0}]})),
    ):
        (tmp_path / f"{name}.json").write_text(content, errors="surrogateescape")
    assert claims.main(["list", "--records", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("not run here") == len(CLAIMS) + len(ELSEWHERE)


def test_differences_of_recipes_that_lack_layers():
    recipe = PRESETS["paper"]()
    sixth_conv = ablations.sixth_conv(recipe)
    changes = differences(recipe, sixth_conv)
    assert changes.pop("conv6")[0] is None and not changes
    assert differences(sixth_conv, recipe)["conv6"][1] is None
    assert differences(recipe, ablations.no_links(recipe)) == {
        "conv2.maps": [128, 160],
        "conv3.reads": ["both", "own"],
        "fc6.reads": ["both", "own"],
        "fc7.reads": ["both", "own"],
        "fc6.maps": [2048, 4096],
    }
