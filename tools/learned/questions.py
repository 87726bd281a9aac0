"""The questions of docs/what-each-gpu-learned.md: each gives its title, an answer for every arm, a table and how it
was found, or None where no record says anything. `net` is always the record of a network."""

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
    networks = of_two_towers(records)
    if not networks:
        return None
    p = corrected({net["run"]: net["first_layer"]["division_p"] or 1.0 for net in networks})
    rows, answers = [], []
    for arm, sample in by_arm(records).items():
        if arm == "one tower":
            # None where too few kernels learned
            splits = [counts for net in sample if (counts := net["first_layer"]["halves_divided"])]
            hits, n = sum(hit for hit, _ in splits), sum(count for _, count in splits)
            if splits:
                answers.append(f"of one tower's kernels, split at random, {hits} of {n} halves differ, at p of 0.01")
            continue
        difference = over_seeds([abs(np.subtract(*net["first_layer"]["chroma"])) for net in sample])
        hits = sum(p[net["run"]] <= LEVEL for net in sample)
        answers.append(f"{arm}: different in {hits} of {seeds(sample)}, shares of chroma {span(difference, 2)} apart")
        rows += [
            [arm, net["seed"], *(f"{share:.2f}" for share in net["first_layer"]["chroma"]), shown_p(p[net["run"]])]
            for net in sample
        ]
    return (
        "Do the kernels of the first layers differ?",
        answers,
        "p: energy distance between the towers' kernels against 10,000 random deals of them "
        f"(`analysis/specialisation.py`), Holm over the networks ({len(networks)}). Chroma: its share in the energy.",
        table(["arm", "seed", "chroma, tower a", "tower b", "p, Holm"], rows),
    )


def division(records):
    """Does one tower see brightness and the other colour?"""
    networks = of_two_towers(records)
    if not networks:
        return None
    over_pictures = corrected({net["run"]: net["colour"]["p"] for net in networks})
    over_deals = corrected({net["run"]: net["colour"]["p_halves"] for net in networks})
    arms = by_arm(networks)
    arm_p = corrected({arm: division_p(sample) for arm, sample in arms.items()})
    rows, answers = [], []
    for arm, sample in arms.items():
        contrast = over_seeds([abs(net["colour"]["contrast"]) for net in sample])
        chance = over_seeds([float(np.median(np.abs(net["colour"]["halves"]))) for net in sample])
        hits = sum(net["colour"]["p_halves"] <= LEVEL for net in sample)
        answers.append(
            f"{arm}: contrast {span(contrast)} points, random deals of the kernels {span(chance)} (medians); p "
            f"{shown_p(arm_p[arm])} for {seeds(sample)} together, and {hits} of {len(sample)} by themselves "
            f"beyond the deals (p at most {LEVEL:g}, uncorrected)"
        )
        for net in sample:
            brightness = brightness_tower(net)
            shares = net["colour"]["kept"]
            rows.append(
                [
                    arm,
                    net["seed"],
                    "ab"[brightness],
                    *(f"{shares['grey'][tower]:.0f} %" for tower in (brightness, 1 - brightness)),
                    *(f"{shares['colour alone'][tower]:.0f} %" for tower in (brightness, 1 - brightness)),
                    f"{abs(net['colour']['contrast']):.0f}",
                    shown_p(over_pictures[net["run"]]),
                    f"{np.quantile(np.abs(net['colour']['halves']), 0.95):.0f}",
                    f"{net['colour']['p_halves']:.2g}",
                    shown_p(over_deals[net["run"]]),
                ]
            )
    test = pairs(arms, lambda net: abs(net["colour"]["contrast"]))
    if test:
        answers.append(
            f"with links less without, over {test.n} seeds: {test.mean:+.0f} points, p {test.p:.2g} by sign flips, "
            f"at best {test.least_p:.2g}"
        )
    n, deals = (
        sorted({net["colour"]["n"] for net in networks}),
        sorted({len(net["colour"]["halves"]) for net in networks}),
    )
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
    networks = of_two_towers(records)
    p = corrected({(net["run"], look["pictures"]): look["p"] for net in networks for look in net["sight"]})
    for arm, sample in by_arm(records).items():
        by_sort = {sort: [by_name(net["sight"], "pictures", sort) for net in sample] for sort in sorts}
        means = {sort: over_seeds([look["errors"]["whole"] for look in looks]) for sort, looks in by_sort.items()}
        answers.append(
            f"{arm}: {span(means['intact'], 1)} % error on intact pictures, {span(means['grey'], 1)} % on grey ones, "
            f"{span(means['colour alone'], 1)} % on colour alone"
        )
        for sort, looks in by_sort.items():
            row = [arm, sort, f"{span(means[sort], 1)} %"]
            if arm == "one tower":
                rows.append([*row, "-", "-", "-"])
                continue
            by_tower = [
                span(
                    over_seeds(
                        [look["errors"][f"{'ab'[_tower(net, which)]} sees"] for net, look in zip(sample, looks)]
                    ),
                    1,
                )
                for which in (0, 1)
            ]
            hits = sum(p[net["run"], sort] <= LEVEL for net in sample)
            rows.append([*row, *(f"{mean} %" for mean in by_tower), f"{hits} of {len(sample)}"])
    n = sorted({net["lesions"]["n"] for net in records})
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
    networks = of_two_towers(records)
    if not networks:
        return None
    p = corrected(_looks(networks))
    rows, answers = [], []
    for arm, sample in by_arm(networks).items():
        meeting_place = next((lesion["place"] for lesion in sample[0]["lesions"]["links"]), None)
        for number, place in enumerate(dict.fromkeys(lesion["place"] for lesion in sample[0]["lesions"]["towers"])):
            towers, links = (
                [(net, lesion) for net in sample for lesion in net["lesions"][part] if lesion["place"] == place]
                for part in ("towers", "links")
            )
            rows.append(_row_of_place(arm, place, sample, towers, links, p))
            if place == meeting_place:
                answers.append(_where_they_meet(arm, place, towers, links))
            if number == 0:
                answers.append(_wherever_read(arm, sample, towers, p))
    n = sorted({net["lesions"]["n"] for net in networks})
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
    for net in records:
        for lesion in (*net["lesions"]["towers"], *net["lesions"]["links"]):
            looks[net["run"], lesion["place"], lesion["silenced"]] = lesion["p"]
        for contrast in net["lesions"]["contrasts"]:
            looks[net["run"], contrast["place"], "contrast"] = contrast["p"]
    return looks


def _row_of_place(arm, place, sample, towers, links, p):
    """Of the table of `needed`. towers, links: (network's record, lesion) of each that is silenced there."""
    contrasts = [(net, by_name(net["lesions"]["contrasts"], "place", place)) for net in sample]
    hits = sum(p[net["run"], place, "contrast"] <= LEVEL for net, _ in contrasts)
    return [
        arm,
        "all of these" if place == "all" else place,
        rise(towers, p),
        span(over_seeds([half(*pair) for pair in towers]), 1),
        rise(links, p) if links else "-",
        f"{span(over_seeds([abs(points(contrast)) for _, contrast in contrasts]), 1)}; {hits} of {len(sample)}",
    ]


def _where_they_meet(arm, place, towers, links):
    costs = (
        [points(lesion) for _, lesion in towers],
        [half(*pair) for pair in towers],
        [points(lesion) for _, lesion in links],
    )
    of_tower, of_half, of_link = (span(over_seeds(values), 1) for values in costs)
    return (
        f"{arm}, at {place}, where they first meet: one tower off costs {of_tower} points, a random half of both "
        f"{of_half}, one link cut {of_link}"
    )


def _wherever_read(arm, sample, towers, p):
    whole, of_tower, of_halves = (
        span(over_seeds(values), 1)
        for values in (
            [net["lesions"]["error"] for net in sample],
            [lesion["error"] for _, lesion in towers],
            [lesion["halves_error"][1] for _, lesion in towers],
        )
    )
    hits = sum(p[net["run"], lesion["place"], lesion["silenced"]] <= LEVEL for net, lesion in towers)
    return (
        f"{arm}: error {whole} % whole, {of_tower} % with one tower silenced wherever it is read, worse in {hits} of "
        f"{len(towers)} cases; {of_halves} % with a random half of both silenced there"
    )


def classes(records):
    """Which classes lean on which tower?"""
    networks = of_two_towers(records)
    if not networks:
        return None
    p = corrected({net["run"]: net["classes"]["p"] for net in networks})
    class_p = corrected({(net["run"], name): p for net in networks for name, _, _, _, p in net["classes"]["classes"]})
    arms = by_arm(networks)
    agreement = {arm: consistency(sample) for arm, sample in arms.items() if len(sample) > 1}
    agreement_p = corrected({arm: measures[1] for arm, measures in agreement.items()})
    rows, answers = [], []
    for arm, sample in arms.items():
        spread, chance = (over_seeds([net["classes"][name] for net in sample]) for name in ("spread", "by_chance"))
        hits = sum(p[net["run"]] <= LEVEL for net in sample)
        answer = (
            f"{arm}: the classes' leanings spread by {span(spread, 1)} points, {span(chance, 1)} by chance; more than "
            f"chance in {hits} of {seeds(sample)}"
        )
        if arm in agreement:
            answer += (
                f"; once the towers are named by what they see, the leanings of two seeds correlate by "
                f"{agreement[arm][0]:.2f} (p {shown_p(agreement_p[arm])}); {agreement[arm][2][0]} of the "
                f"{agreement[arm][2][1]} ways to name the towers, this one among them, give as much"
            )
        answers.append(answer)
        by_class = leanings(sample)
        for names, word in zip(most_leaning(sample, MOST), ("brightness", "colour")):
            for name in names:
                values = over_seeds(by_class[name])
                count = sum(
                    class_p[net["run"], name] <= LEVEL and np.sign(value) == np.sign(values.mean)
                    for net, value in zip(sample, by_class[name])
                )
                rows.append([arm, f"{word} tower", name, f"{span(values)}", f"{count} of {len(sample)}"])
    n = sorted({net["classes"]["n"] for net in networks})
    return (
        "Which classes lean on which tower?",
        answers,
        f"n: {numbers(n)} pictures a network. Right answers by what the brightness tower sees less those by what the "
        f"other sees, in points of a class's pictures, mean and range over seeds; the {MOST} classes each way that "
        "come first by the mean over seeds of the end of the 95 % interval that is nearer to 0. Spread: against "
        "2,000 deals of the pictures to classes, Holm over the networks. Sure: "
        f"that way, by McNemar's exact test, Holm over {len(class_p)} looks (all classes, all networks). Correlation: "
        "against classes dealt at random, Holm over the arms; that the names agree as well, only the ways to name the "
        "towers can say, the actual one counted. The tower's name is from some of the same pictures, and from their "
        "answers, right or wrong.",
        table(["arm", "leans on", "class", "points", "sure in seeds"], rows),
    )


def grown(records):
    """When do the towers part?"""
    networks = of_two_towers(records)
    if not any(net.get("growth") for net in networks):
        return None
    rows, answers = [], []
    for arm, sample in by_arm(networks).items():
        runs = [net for net in sample if net.get("growth")]
        starts = [net["growth"]["begins"] for net in runs if net["growth"]["begins"] is not None]
        # of runs whose first layer was not kept nothing is known
        basis = f"{seeds(runs)} whose first layer was kept{'' if len(runs) == len(sample) else f' (of {len(sample)})'}"
        if not runs:
            answers.append(f"{arm}: no first layer was kept as it grew, in {seeds(sample)}")
            continue
        onset = f", from step {steps(starts)} of {steps([net['step'] for net in runs])} on" if starts else ""
        turns = sum(bool(net["growth"]["turns"]) for net in runs)
        answers.append(
            f"{arm}: divided at the end in {len(starts)} of {basis}{onset}; the other tower becomes the more "
            f"colourful one in {turns}"
        )
        rows += [
            [
                arm,
                net["seed"],
                net["growth"]["moments"],
                "not" if net["growth"]["begins"] is None else f"{net['growth']['begins']:,} of {net['step']:,}",
                ", ".join(f"{step:,}" for step in net["growth"]["turns"]) or "none",
            ]
            for net in runs
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
    questions = [
        division(records),
        needed(records),
        alike(records),
        of_other_seeds(records, across),
        classes(records),
        errors(records),
        kernels(records),
        grown(records),
    ]
    return [question for question in questions if question]


def rise(lesions, p):
    increase = over_seeds([points(lesion) for _, lesion in lesions])
    hits = sum(
        p[net["run"], lesion["place"], lesion["silenced"]] <= LEVEL and points(lesion) > 0 for net, lesion in lesions
    )
    return f"{span(increase, 1)}; {hits} of {len(lesions)}"


def half(net, lesion):
    return lesion["halves_error"][1] - net["lesions"]["error"]


def pairs(arms, value):
    """The `Paired` of towers with links less those without, of the seeds that both have; None of fewer than two."""
    free, linked = (
        {net["seed"]: value(net) for net in arms.get(f"towers {word} links", [])} for word in ("without", "with")
    )
    both = shared_seeds(arms)
    return paired([free[seed] for seed in both], [linked[seed] for seed in both]) if len(both) > 1 else None


def shared_seeds(arms):
    """The seeds that the towers with links and those without have, each once."""
    free, linked = ([net["seed"] for net in arms.get(f"towers {word} links", [])] for word in ("without", "with"))
    return [seed for seed in dict.fromkeys(free) if seed in linked]


def _tower(net, which):
    """The brightness tower (0), or the other (1)."""
    return brightness_tower(net) ^ which
