"""The questions of docs/what-each-gpu-learned.md: each gives its title, an answer for every arm, a table and how it
was found, or None where no record says anything."""

from collections.abc import Sequence

import numpy as np

from alexnet_mp.analysis.hypothesis_tests import paired, shown_p

from .likeness import alike, of_other_seeds
from .tables import (
    LEVEL,
    brightness_tower,
    by_arm,
    consistency,
    corrected,
    division_p,
    leanings,
    most_leaning,
    of_two_towers,
    over_seeds,
    points,
)
from .words import Answer, by_name, numbers, seeds, span, steps, table

MOST = 5  # classes each way


def kernels(records):
    """Do the first layers' kernels differ?"""
    two = of_two_towers(records)
    if not two:
        return None
    p = corrected({one["run"]: one["first_layer"]["division_p"] or 1.0 for one in two})
    rows, answers = [], []
    for arm, some in by_arm(records).items():
        if arm == "one tower":
            # None where too few kernels learned
            split = [found for one in some if (found := one["first_layer"]["halves_divided"])]
            hits, of = sum(hit for hit, _ in split), sum(count for _, count in split)
            if split:
                answers.append(f"of one tower's kernels, split at random, {hits} of {of} halves differ, at p of 0.01")
            continue
        apart = over_seeds([abs(np.subtract(*one["first_layer"]["chroma"])) for one in some])
        hits = sum(p[one["run"]] <= LEVEL for one in some)
        answers.append(f"{arm}: different in {hits} of {seeds(some)}, shares of chroma {span(apart, 2)} apart")
        rows += [
            [arm, one["seed"], *(f"{share:.2f}" for share in one["first_layer"]["chroma"]), shown_p(p[one["run"]])]
            for one in some
        ]
    return (
        "Do the kernels of the first layers differ?",
        answers,
        "p: energy distance between the towers' kernels against 10,000 random deals of them "
        f"(`analysis/specialisation.py`), Holm over the networks ({len(two)}). Chroma: its share in the energy.",
        table(["arm", "seed", "chroma, tower a", "tower b", "p, Holm"], rows),
    )


def division(records):
    """Does one tower see brightness and the other colour?"""
    two = of_two_towers(records)
    if not two:
        return None
    over_pictures = corrected({one["run"]: one["colour"]["p"] for one in two})
    over_deals = corrected({one["run"]: one["colour"]["p_halves"] for one in two})
    arms = by_arm(two)
    joint = corrected({arm: division_p(some) for arm, some in arms.items()})
    rows, answers = [], []
    for arm, some in arms.items():
        contrast = over_seeds([abs(one["colour"]["contrast"]) for one in some])
        usual = over_seeds([float(np.median(np.abs(one["colour"]["halves"]))) for one in some])
        beyond = sum(one["colour"]["p_halves"] <= LEVEL for one in some)
        answers.append(
            f"{arm}: contrast {span(contrast)} points, random deals of the kernels {span(usual)} (medians); p "
            f"{shown_p(joint[arm])} for {seeds(some)} together, and {beyond} of {len(some)} by themselves "
            f"beyond the deals (p at most {LEVEL:g}, uncorrected)"
        )
        for one in some:
            light = brightness_tower(one)
            kept = one["colour"]["kept"]
            rows.append(
                [
                    arm,
                    one["seed"],
                    "ab"[light],
                    *(f"{kept['grey'][tower]:.0f} %" for tower in (light, 1 - light)),
                    *(f"{kept['colour alone'][tower]:.0f} %" for tower in (light, 1 - light)),
                    f"{abs(one['colour']['contrast']):.0f}",
                    shown_p(over_pictures[one["run"]]),
                    f"{np.quantile(np.abs(one['colour']['halves']), 0.95):.0f}",
                    f"{one['colour']['p_halves']:.2g}",
                    shown_p(over_deals[one["run"]]),
                ]
            )
    apart = pairs(arms, lambda one: abs(one["colour"]["contrast"]))
    if apart:
        answers.append(
            f"with links less without, over {apart.n} seeds: {apart.mean:+.0f} points, p {apart.p:.2g} by sign flips, "
            f"at best {apart.least_p:.2g}"
        )
    n, deals = (sorted({one["colour"]["n"] for one in two}), sorted({len(one["colour"]["halves"]) for one in two}))
    return (
        "Does one tower see brightness and the other colour?",
        answers,
        f"n: {numbers(n)} pictures a network. Of how many the answer by what a tower sees stays as on the intact "
        "picture when the picture is grey, and when it has its colours at one brightness. Contrast: grey less colour "
        "alone, one tower less the other. p, pictures: exact sign-flip test. Deals: both first layers' kernels dealt "
        f"to two halves at random, {numbers(deals)} times; 95 %: their contrast's; p: the share as far apart, the "
        f"towers counted, so at best {1 / (1 + max(deals)):.2g}. Together: the mean contrast of an arm's seeds against "
        "that of one deal of each, drawn 100,000 times; Holm over the arms. A tower is called by what it sees, since "
        "towers have no order; of any two one would be called so.",
        table(
            [
                "arm",
                "seed",
                "brightness tower",
                "its answers kept on grey",
                "the other's",
                "its on colour alone",
                "the other's",
                "contrast",
                "p, pictures, Holm",
                "deals, 95 %",
                "p, deals",
                "Holm",
            ],
            rows,
        ),
    )


def errors(records):
    """What does it cost the network to lose colours or brightness?"""
    rows, answers = [], []
    sorts = ("intact", "grey", "colour alone", "shuffled colour", "low frequencies", "high frequencies")
    two = of_two_towers(records)
    p = corrected({(one["run"], seen["pictures"]): seen["p"] for one in two for seen in one["sight"]})
    for arm, some in by_arm(records).items():
        seen = {sort: [by_name(one["sight"], "pictures", sort) for one in some] for sort in sorts}
        whole = {sort: over_seeds([each["errors"]["whole"] for each in found]) for sort, found in seen.items()}
        answers.append(
            f"{arm}: {span(whole['intact'], 1)} % error on intact pictures, {span(whole['grey'], 1)} % on grey ones, "
            f"{span(whole['colour alone'], 1)} % on colour alone"
        )
        for sort, found in seen.items():
            row = [arm, sort, f"{span(whole[sort], 1)} %"]
            if arm == "one tower":
                rows.append([*row, "-", "-", "-"])
                continue
            by_tower = [
                span(
                    over_seeds([each["errors"][f"{'ab'[_tower(one, which)]} sees"] for one, each in zip(some, found)]),
                    1,
                )
                for which in (0, 1)
            ]
            hits = sum(p[one["run"], sort] <= LEVEL for one in some)
            rows.append([*row, *(f"{each} %" for each in by_tower), f"{hits} of {len(some)}"])
    n = sorted({one["lesions"]["n"] for one in records})
    return (
        "What does it cost to lose colours, or brightness?",
        answers,
        f"n: {numbers(n)} pictures a network, top-1 error, mean and range over seeds. What a tower sees: the other is "
        f"at its mean where the towers first meet. Apart: McNemar's exact test of the two, Holm over {len(p)} looks "
        "(every network and sort of pictures, single hues among them).",
        table(["arm", "pictures", "whole network", "brightness tower sees", "the other sees", "seeds apart"], rows),
    )


def needed(records):
    """Is each tower needed, and where?"""
    two = of_two_towers(records)
    if not two:
        return None
    p = corrected(_looks(two))
    rows, answers = [], []
    for arm, some in by_arm(two).items():
        first = next((lesion["place"] for lesion in some[0]["lesions"]["links"]), None)
        for number, place in enumerate(dict.fromkeys(lesion["place"] for lesion in some[0]["lesions"]["towers"])):
            off, cut = (
                [(one, lesion) for one in some for lesion in one["lesions"][part] if lesion["place"] == place]
                for part in ("towers", "links")
            )
            rows.append(_row_of_place(arm, place, some, off, cut, p))
            if place == first:
                answers.append(_where_they_meet(arm, place, off, cut))
            if number == 0:
                answers.append(_wherever_read(arm, some, off, p))
    n = sorted({one["lesions"]["n"] for one in two})
    return (
        "Is each tower needed, and where?",
        answers,
        f"n: {numbers(n)} pictures a network. Points of top-1 error, mean and range over seeds and both towers (or "
        "both directions of a link), and in how many of them it is worse than the whole network. Halves: 20 random "
        "halves of both towers' maps at the same place (medians). Apart: the error with tower a off less that with b "
        f"off, its size, and in how many seeds it is not 0. McNemar's exact test, Holm over all {len(p)} looks.",
        table(["arm", "read by", "one tower off", "a random half off", "one link cut", "a off against b off"], rows),
    )


def _looks(records):
    """{(run, place, what is silenced, or "contrast"): p}."""
    looks = {}
    for one in records:
        for lesion in (*one["lesions"]["towers"], *one["lesions"]["links"]):
            looks[one["run"], lesion["place"], lesion["silenced"]] = lesion["p"]
        for contrast in one["lesions"]["contrasts"]:
            looks[one["run"], contrast["place"], "contrast"] = contrast["p"]
    return looks


def _row_of_place(arm, place, some, off, cut, p):
    """Of the table of `needed`. off, cut: (record, lesion) of the towers that are silenced there, and of the links."""
    apart = [(one, by_name(one["lesions"]["contrasts"], "place", place)) for one in some]
    hits = sum(p[one["run"], place, "contrast"] <= LEVEL for one, _ in apart)
    return [
        arm,
        "all of these" if place == "all" else place,
        rise(off, p),
        span(over_seeds([half(*one) for one in off]), 1),
        rise(cut, p) if cut else "-",
        f"{span(over_seeds([abs(points(each)) for _, each in apart]), 1)}; {hits} of {len(some)}",
    ]


def _where_they_meet(arm, place, off, cut):
    costs = [points(lesion) for _, lesion in off], [half(*one) for one in off], [points(lesion) for _, lesion in cut]
    of_tower, of_half, of_link = (span(over_seeds(each), 1) for each in costs)
    return (
        f"{arm}, at {place}, where they first meet: one tower off costs {of_tower} points, a random half of both "
        f"{of_half}, one link cut {of_link}"
    )


def _wherever_read(arm, some, off, p):
    whole, errors_off, of_halves = (
        span(over_seeds(each), 1)
        for each in (
            [one["lesions"]["error"] for one in some],
            [lesion["error"] for _, lesion in off],
            [lesion["halves_error"][1] for _, lesion in off],
        )
    )
    hits = sum(p[one["run"], lesion["place"], lesion["silenced"]] <= LEVEL for one, lesion in off)
    return (
        f"{arm}: error {whole} % whole, {errors_off} % with one tower silenced wherever it is read, worse in {hits} of "
        f"{len(off)} cases; {of_halves} % with a random half of both silenced there"
    )


def classes(records):
    """Which classes lean on which tower?"""
    two = of_two_towers(records)
    if not two:
        return None
    p = corrected({one["run"]: one["classes"]["p"] for one in two})
    each = corrected({(one["run"], name): p for one in two for name, _, _, _, p in one["classes"]["classes"]})
    arms = by_arm(two)
    same = {arm: consistency(some) for arm, some in arms.items() if len(some) > 1}
    same_p = corrected({arm: found[1] for arm, found in same.items()})
    rows, answers = [], []
    for arm, some in arms.items():
        spread, chance = (over_seeds([one["classes"][name] for one in some]) for name in ("spread", "by_chance"))
        hits = sum(p[one["run"]] <= LEVEL for one in some)
        answer = (
            f"{arm}: the classes' leanings spread by {span(spread, 1)} points, {span(chance, 1)} by chance; more than "
            f"chance in {hits} of {seeds(some)}"
        )
        if arm in same:
            answer += (
                f"; once the towers are named by what they see, the leanings of two seeds correlate by "
                f"{same[arm][0]:.2f} (p {shown_p(same_p[arm])}); {same[arm][2][0]} of the {same[arm][2][1]} ways to "
                "name the towers, this one among them, give as much"
            )
        answers.append(answer)
        lean = leanings(some)
        for names, word in zip(most_leaning(some, MOST), ("brightness", "colour")):
            for name in names:
                values = over_seeds(lean[name])
                sure = sum(
                    each[one["run"], name] <= LEVEL and np.sign(value) == np.sign(values.mean)
                    for one, value in zip(some, lean[name])
                )
                rows.append([arm, f"{word} tower", name, f"{span(values)}", f"{sure} of {len(some)}"])
    n = sorted({one["classes"]["n"] for one in two})
    return (
        "Which classes lean on which tower?",
        answers,
        f"n: {numbers(n)} pictures a network. Right answers by what the brightness tower sees less those by what the "
        f"other sees, in points of a class's pictures, mean and range over seeds; the {MOST} classes each way that "
        "come first by the mean over seeds of the end of the 95 % interval that is nearer to 0. Spread: against "
        "2,000 deals of the pictures to classes, Holm over the networks. Sure: "
        f"that way, by McNemar's exact test, Holm over {len(each)} looks (all classes, all networks). Correlation: "
        "against classes dealt at random, Holm over the arms; that the names agree as well, only the ways to name the "
        "towers can say, the actual one counted. The tower's name is from some of the same pictures, and from their "
        "answers, right or wrong.",
        table(["arm", "leans on", "class", "points", "sure in seeds"], rows),
    )


def grown(records):
    """When do the towers part?"""
    two = of_two_towers(records)
    if not any(one.get("growth") for one in two):
        return None
    rows, answers = [], []
    for arm, some in by_arm(two).items():
        kept = [one for one in some if one.get("growth")]
        begins = [one["growth"]["begins"] for one in kept if one["growth"]["begins"] is not None]
        # of runs whose first layer was not kept nothing is known
        of = f"{seeds(kept)} whose first layer was kept{'' if len(kept) == len(some) else f' (of {len(some)})'}"
        if not kept:
            answers.append(f"{arm}: no first layer was kept as it grew, in {seeds(some)}")
            continue
        when = f", from step {steps(begins)} of {steps([one['step'] for one in kept])} on" if begins else ""
        turned = sum(bool(one["growth"]["turns"]) for one in kept)
        answers.append(
            f"{arm}: divided at the end in {len(begins)} of {of}{when}; the other tower becomes the more colourful one "
            f"in {turned}"
        )
        rows += [
            [
                arm,
                one["seed"],
                one["growth"]["moments"],
                "not" if one["growth"]["begins"] is None else f"{one['growth']['begins']:,} of {one['step']:,}",
                ", ".join(f"{step:,}" for step in one["growth"]["turns"]) or "none",
            ]
            for one in kept
        ]
    return (
        "When do the towers part?",
        answers,
        "Runs whose first layer was kept as it grew (`--keep-every`); the level is 0.01 at each moment, and all later "
        "ones have to be divided, too. A turn: the step at which the other tower has become the more colourful one. "
        "Means, with the range over seeds.",
        table(["arm", "seed", "moments", "divided from step", "turns at step"], rows),
    )


def answers(records: Sequence[dict], across: Sequence[dict]) -> list[Answer]:
    """What is said of the networks of one data set, question by question. across: records of several seeds."""
    found = [
        division(records),
        needed(records),
        alike(records),
        of_other_seeds(records, across),
        classes(records),
        errors(records),
        kernels(records),
        grown(records),
    ]
    return [each for each in found if each]


def rise(lesions, p):
    risen = over_seeds([points(lesion) for _, lesion in lesions])
    hits = sum(
        p[one["run"], lesion["place"], lesion["silenced"]] <= LEVEL and points(lesion) > 0 for one, lesion in lesions
    )
    return f"{span(risen, 1)}; {hits} of {len(lesions)}"


def half(record, lesion):
    return lesion["halves_error"][1] - record["lesions"]["error"]


def pairs(arms, value):
    """The `Paired` of towers with links less those without, of the seeds that both have; None of fewer than two."""
    free, linked = (
        {one["seed"]: value(one) for one in arms.get(f"towers {word} links", [])} for word in ("without", "with")
    )
    both = shared_seeds(arms)
    return paired([free[seed] for seed in both], [linked[seed] for seed in both]) if len(both) > 1 else None


def shared_seeds(arms):
    """The seeds that the towers with links and those without have, each once."""
    free, linked = ([one["seed"] for one in arms.get(f"towers {word} links", [])] for word in ("without", "with"))
    return [seed for seed in dict.fromkeys(free) if seed in linked]


def _tower(record, which):
    """The brightness tower (0), or the other (1)."""
    return brightness_tower(record) ^ which
