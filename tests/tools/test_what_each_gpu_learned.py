"""What each GPU learned, over seeds: toy records whose figures are known by hand, and the page that is in docs."""

import json
from pathlib import Path

import pytest
import what_each_gpu_learned
from learned import across, tables
from learned.page import page
from learned.records import FOLDER, read_all

from alexnet_mp.system.errors import UserError

ROOT = Path(__file__).parents[2]


def change(only_a, only_b, p, **more):
    return {"n": 100, "only_a": only_a, "only_b": only_b, "p": p, **more}


def toy(arm, seed, contrast, deals, classes):
    """A network whose tower a sees brightness if `contrast` is above 0; tower b off costs 10 points, tower a off 20."""
    shares = {"grey": [80.0, 30.0], "colour alone": [20.0, 50.0]}
    if contrast < 0:
        shares = {name: values[::-1] for name, values in shares.items()}
    place = "conv3" if arm == "towers with links" else "fc8"
    off = [
        change(rise, 0, p, place=place, silenced=f"tower {tower}", error=40.0 + rise, halves_error=[50, 55.0, 60])
        for tower, rise, p in (("a", 20, 0.001), ("b", 10, 0.04))
    ]
    errors = {"whole": 40.0, "a sees": 60.0, "b sees": 50.0}
    return {
        "run": f"{arm}-{seed}",
        "arm": arm,
        "recipe": "toy",
        "seed": seed,
        "step": 10,
        "weights": f"{arm} {seed}",
        "data": {"description": "toys", "classes": 3},
        "date": "2026-11-30",
        "command": f"python tools/what_each_gpu_learned.py {seed} --data toys",
        "machine": {"devices": ["abacus"], "python": "3.11", "packages": {"torch": "2"}, "commit": "0123456789"},
        "lesions": {
            "n": 100,
            "error": 40.0,
            "towers": off,
            "links": [],
            "contrasts": [change(15, 5, 0.04, place=place)],
        },
        "sight": [
            change(5, 15, 0.04, pictures=name, errors=errors)
            for name in ("intact", "grey", "colour alone", "shuffled colour", "low frequencies", "high frequencies")
        ],
        "colour": {"n": 50, "kept": shares, "contrast": contrast, "p": 0.01, "halves": deals, "p_halves": 1 / 3},
        "classes": {"n": 300, "spread": 9.0, "by_chance": 3.0, "p": 0.01, "classes": classes},
        "similarity": {
            "n": 100,
            "layers": [{"layer": "conv1", "cka": 0.5 + seed / 10, "p": 0.1}],
            "dealt": [{"layer": "conv1", "own": 0.5, "halves": [0.6, 0.8, 0.9], "p": 0.03}],
        },
        "first_layer": {"chroma": [0.2, 0.6], "division_p": 0.001},
        "growth": {"moments": 4, "begins": 5, "turns": []},
    }


LEANS = [["cat", 100, 30, 10, 0.001], ["dog", 100, 5, 5, 1.0], ["cow", 100, 10, 20, 0.5]]
TURNED = [[name, n, b, a, p] for name, n, a, b, p in LEANS]
RECORDS = [
    toy("towers with links", 1, 80.0, [10.0, -20.0], LEANS),
    toy("towers with links", 2, -80.0, [10.0, -20.0], TURNED),
    toy("towers without links", 1, 30.0, [-40.0, 20.0], LEANS),
    toy("towers without links", 2, 50.0, [-40.0, 20.0], LEANS),
]


def of_seeds(arm, count, cka, recipe="toy"):
    """The record of networks whose towers' CKA is a function of two towers' numbers."""
    pairs = [[a, b, cka(a, b)] for a in range(2 * count) for b in range(a + 1, 2 * count)]
    runs = [{"run": f"{arm}-{seed}", "seed": seed, "weights": f"{arm} {seed}"} for seed in range(1, count + 1)]
    data = {"description": "toys", "classes": 3}
    layers = [{"layer": "conv1", "cka": pairs}]
    return {"arm": arm, "recipe": recipe, "runs": runs, "data": data, "n": 100, "layers": layers}


def test_tables_over_seeds_by_hand():
    linked, free = tables.by_arm(RECORDS).values()
    assert [tables.brightness_tower(record) for record in linked] == [0, 1]
    # Of the 3 x 3 ways to take a deal of each, 1 has 80 + 80; 40 + 50, 40 + 40 and 30 + 50 are at least 30 + 50.
    for group, share in ((linked, 1 / 9), (free, 3 / 9)):
        deals = [(record["colour"]["contrast"], record["colour"]["halves"]) for record in group]
        assert tables.joint_p(deals) == pytest.approx(share, abs=0.01)
    assert tables.leanings(linked) == {"cat": [20.0, 20.0], "dog": [0.0, 0.0], "cow": [-10.0, -10.0]}
    assert tables.most_leaning(linked, 1) == (["cat"], ["cow"])
    # A class of one picture leans by 100 points and leads no list; where nothing else leans, it is there.
    with_owl = [
        {**one, "classes": {"classes": [["owl", 1, *owl, 1.0], *one["classes"]["classes"]]}}
        for one, owl in zip(linked, ((1, 0), (0, 1)))
    ]
    assert tables.leanings(with_owl)["owl"] == [100.0, 100.0]
    assert tables.most_leaning(with_owl, 2) == (["cat", "owl"], ["cow"])
    alike, p, counts = tables.consistency(linked)
    assert alike == pytest.approx(1) and p == pytest.approx(1 / 6, abs=0.02)  # 6 of the 36 orders of three classes
    assert counts == (1, 2) and tables.consistency([linked[0], RECORDS[2], {**linked[1], **linked[0]}])[2] == (1, 4)
    assert tables.consistency([linked[0], {**linked[1], "colour": linked[0]["colour"]}])[2] == (2, 2)  # it is -1
    assert tables.corrected({"a": 0.01, "b": 0.04}) == {"a": 0.02, "b": 0.04}


def test_the_page_says_what_the_records_say():
    words = " ".join(page(RECORDS).split())
    for phrase in (
        "towers with links, seeds 1 and 2; towers without links, seeds 1 and 2",
        "contrasts of 30 and 50 points in seeds 1 and 2. In 0 of 2, each uncorrected, that is",
        # contrast 80 in both seeds, and of the others 30 and 50; with less without: 50 and 30, mean 40
        "contrast 80 (80 to 80) points",
        "contrast 40 (30 to 50) points",
        "With links less without, over 2 seeds: +40 points, p 0.5 by sign flips, at best 0.5",
        "so few can't say: the arms differ by +40 points over 2 seeds, p 0.5 by sign flips, and it could be no less",
        "1 of the 2 ways to name the towers, this one among them, give as much",
        "The kernels of the two first layers differ in 2 of 2 seeds of towers with links and in 2 of 2 seeds of",
        "| towers with links | 2 | b | 80 % | 30 % | 20 % | 50 % | 80 |",
        # Holm over 12 looks: 8 lesions, 4 of p 0.001, and 4 contrasts; 4 of the 8 stay below 0.05
        "| towers with links | conv3 | 15.0 (10.0 to 20.0); 2 of 4 | 15.0 (15.0 to 15.0) | - | 10.0 (",
        "| towers with links | conv1 | 0.65 (0.60 to 0.70) | 0.80 (0.80 to 0.80) | 0 of 2 |",
        "| towers with links | brightness tower | cat | 20 (20 to 20) | 2 of 2 |",
        "divided at the end in 2 of 2 seeds whose first layer was kept, from step 5 of 10 on; the other",
        "abacus, Python 3.11, torch 2; 2026-11-30",
    ):
        assert phrase in words, phrase
    # Of the 105 pairings of eight towers, one is that of the networks. The brightness tower of seed 2 is its second.
    several = [
        of_seeds("towers without links", 2, lambda a, b: 0.9 if a // 2 != b // 2 else 0.1),
        of_seeds("towers with links", 4, lambda a, b: 0.2 if a // 2 == b // 2 else 0.6 if (a, b) == (0, 3) else 0.5),
    ]
    words = " ".join(page(RECORDS, several).split())
    networks = [(f"runs/{record['run']}", record) for record in RECORDS]
    assert [[one["seed"] for _, one in group] for group in across.arms([*networks[::-1], networks[0]])] == [[1, 2]] * 2
    for phrase in (
        "Towers with links: less alike at conv1, of 4 networks. - Towers without links: not told apart",
        "not told apart at any layer, of 2 networks; so few can't tell, p is 1/3 at best, and corrected for 2 looks",
        "| towers with links | conv1 | 0.20 (0.20 to 0.20) | 0.50 (0.50 to 0.60) | 0.55 (0.50 to 0.60) | 0.50 (0.50 to",
        "| towers without links | conv1 | 0.10 (0.10 to 0.10) | 0.90 (0.90 to 0.90) | 0.90 (0.90 to 0.90) | 0.90 (0.90",
        "| 0.0095 | 0.019 |",
    ):
        assert phrase in words, phrase
    # When the towers part, if the first layer of some runs alone was kept.
    mixed = [{**record, "growth": record["growth"] if record["seed"] == 1 else None} for record in RECORDS[:3]]
    mixed += [{**RECORDS[1], "seed": 3, "growth": {"moments": 4, "begins": None, "turns": [5]}}]
    words = " ".join(page(mixed).split())
    for phrase in (
        "with links: divided at the end in 1 of 2 seeds whose first layer was kept (of 3), from step 5 of 10 on; the",
        "the more colourful one in 1. - Towers without",
        "Towers without links: divided at the end in 1 of 1 seed whose first layer was kept, from step 5 of 10",
        "| towers with links | 3 | 4 | not | 5 |",
    ):
        assert phrase in words, phrase
    # Six seeds could tell whether the links make a difference, and do if the arms differ in all of them.
    for free, phrase in (
        (5.0, "a difference is suggested: the arms differ by +75"),
        (100.0, "a difference is not suggested"),
    ):
        six = [toy("towers with links", seed, 80.0, [10.0], LEANS) for seed in range(1, 7)]
        six += [toy("towers without links", seed, free if seed > 1 else 5.0, [10.0], LEANS) for seed in range(1, 7)]
        words = " ".join(page(six).split())
        assert phrase in words and "can't say: the" not in words and "no p below 2 / 2^k: 0.03125 with 6" in words, (
            phrase
        )
    # The page in docs is that of the records beside it.
    assert page(*read_all(FOLDER)) == (ROOT / "docs" / "what-each-gpu-learned.md").read_text(encoding="utf-8")


def test_records_that_lack_something_or_differ_in_one_thing_alone(tmp_path):
    """A tower that says the same of all pictures has no CKA, and one whose kernels are noise no halves; two data sets,
    or two recipes on one, have an arm each."""
    single = [
        {**toy("one tower", seed, 1.0, [], []), "colour": None, "first_layer": {"halves_divided": divided}}
        for seed, divided in ((1, None), (2, [3, 100]))
    ]
    bare_record = {**RECORDS[0], "similarity": {"n": 100, "layers": [], "dealt": []}}
    for records, phrase, never in (
        ([*RECORDS, *single], "split at random, 3 of 100 halves differ", None),
        ([*RECORDS, single[0]], "The kernels of the two first layers differ", "split at random, "),
        ([bare_record, RECORDS[1]], "less alike than random halves at conv1 in 1 (of 1 with a CKA) of 2 seeds", None),
        ([bare_record, RECORDS[1]], "| towers with links | conv1 | 0.70 | 0.80 | 1 of 1 |", None),
        ([RECORDS[1], bare_record], "| towers with links | conv1 | 0.70 | 0.80 | 1 of 1 |", None),
        ([bare_record], "Do the towers see alike?", "less alike than random halves at"),
        ([{**RECORDS[0], "command": "python tools/x.py 'my run' --synsets 'my words.txt'"}],
         "``` python tools/x.py RUN... --synsets 'my words.txt' ```", None),
    ):  # fmt: skip
        words = " ".join(page(records).split())
        assert phrase in words and not (never and never in words), (phrase, never)
    # Of two recipes each has its own values.
    comparisons = [of_seeds("towers with links", 4, lambda a, b: 0.2 if a // 2 == b // 2 else 0.5)]
    comparisons += [of_seeds("towers with links", 4, lambda a, b: 0.8 if a // 2 == b // 2 else 0.5, "other")]
    words = " ".join(page(RECORDS, comparisons).split())
    for recipe, own, word in (("toy", "0.20", "less"), ("other", "0.80", "more")):
        assert f"| towers with links, {recipe} | conv1 | {own} ({own} to {own}) |" in words, recipe
        assert f"owers with links, {recipe}: {word} alike at conv1, of 4 networks" in words, recipe
    # A record has a name of its own.
    network = ("runs/a", RECORDS[0])
    others = [("runs/b", {**RECORDS[0], field: value}) for field, value in (
        ("recipe", "other"), ("arm", "towers without links"), ("data", {"description": "toys", "classes": 4})
    )]  # fmt: skip
    paths = {across.path_of(tmp_path, [pair]) for pair in (network, *others)}
    assert len(paths) == 4 and across.path_of(tmp_path, [network]).name == "across-toy-towers-with-links-8270e842.json"
    for record in read_all(FOLDER)[1]:
        assert across.path_of(FOLDER, [("", record)]).exists(), record["arm"]
    with pytest.raises(UserError, match="^two of these runs have one name, which is their record's; rename one$"):
        what_each_gpu_learned.main([str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run"), "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
    path = tmp_path / "run.json"
    what_each_gpu_learned._write(path, RECORDS[0])
    what_each_gpu_learned._write(path, RECORDS[0] | {"step": 9})  # trained further
    with pytest.raises(UserError, match="run.json is the record of another run of this name; rename one of them"):
        what_each_gpu_learned._write(path, RECORDS[0] | {"seed": 77})
    assert json.loads(path.read_text())["step"] == 9
