"""What the records say of each claim, in words: for `claims list` and for docs/claims.md, which is made of records
alone.

Differences are of an arm minus its reference, paired by seed: mean ± standard deviation over the seeds, n, the p of the
exact sign-flip test, and that of Welch's t-test, both two-sided and of the top-1 error where nothing else is said."""

import math
from statistics import mean, stdev

from ..analysis.hypothesis_tests import paired
from ..analysis.learning_curves import step_of_loss
from ..analysis.specialisation import LEVEL as LEVEL_OF_DIVISION
from ..analysis.specialisation import wilson
from .catalogue import LEVEL
from .figures import averaged
from .records import devices_of

FIELDS = ("top1_error", "top5_error")


def findings(record):
    """The sentences that a record supports; [] where it has no run that ended."""
    arms = [arm["name"] for arm in record["arms"] if not arm["larger"]]
    against_first = [(arms[0], arm) for arm in arms[1:]]
    differences = (_difference(record, *pair) for pair in against_first)  # made where they are asked for
    match record["kind"]:
        case "errors":
            found = [_errors(record, arm) for arm in arms]
        case "difference":
            gaps = [_gaps(record, arms)] if record["claim"] == "pooling" else []  # of which 3.4 speaks too
            found = [*differences, *gaps]
        case "overfitting":
            found = [*differences, _gaps(record, arms)]
        case "cumulative":
            found = [_errors(record, arms[0])] + [
                _difference(record, before, arm) for before, arm in zip(arms, arms[1:])
            ]
        case "views":
            found = [_views(record, arms[0])]
        case "dropout":
            found = [*differences, _gaps(record, arms), *(_iterations(record, *pair) for pair in against_first)]
        case "training":
            found = [*(_training(record, *pair) for pair in against_first), *differences]
        case "schedule":
            found = [*(_drops(record, arm) for arm in arms), *differences]
        case "rates":
            found = _rates(record, arms)
        case "moved":
            found = [
                *(_moved(record, arm) for arm in arms),
                *(_when_moved(record, *pair) for pair in against_first),
                *differences,
            ]
        case "ensemble":
            found = _ensembles(record)
        case "iterations":
            at = ", both at the rates of the base"
            found = [*(_iterations(record, arm, first, at) for first, arm in against_first), *differences]
        case "masks":
            found = [_masks(record, arms[0])]
        case "towers":
            found = [_towers(record, arm) for arm in arms]
    diverged = [
        f"{_words(run['arm'])} with seed {run['seed']} diverged at step {run['diverged']:,}"
        for run in record["runs"]
        if "diverged" in run
    ]
    return [sentence for sentence in (*found, *diverged) if sentence]


def setting(record):
    """On what a record was made: data, network, length, devices, date."""
    data = " and ".join(data["description"] for data in record["data"])
    bases = ", ".join(dict.fromkeys(arm["preset"] for arm in record["arms"]))
    length = _count(record["steps"], "step") if record["steps"] is not None else _count(record["epochs"], "epoch")
    changed = f" with {', '.join(f'`{text}`' for text in record['set'])}" if record["set"] else ""
    note = f" ({record['note']})" if record["note"] else ""
    where = " and ".join(devices_of(record)) or "nowhere yet"
    return f"{data}{note}; `{bases}`{changed}, {length}{_falls(record)}, {where}, {record['date'][:10]}"


def _falls(record):
    """At which epochs the rates fall, where --epochs put dates in the place of the base's plateaus."""
    first = record["arms"][0]["of_preset"]
    if record["kind"] == "schedule" or first.get("schedule") != ["plateau", "dated"] or "dates" not in first:
        return ""  # or the arms say it
    epochs = [str(date["epoch"]) for date in first["dates"][1] if date["epoch"] <= record["epochs"]]
    fall = f"fall at epoch{'s' if len(epochs) > 1 else ''} {', '.join(epochs)}" if epochs else "never fall"
    return f", all rates {fall} in place of plateaus"


# --- one sentence each


def _errors(record, arm):
    runs = _ended(record, arm)
    if not runs:
        return None
    sets = [
        (what, [run[key] for run in runs])
        for what, key in (("", "errors"), ("test images: ", "on_test_images"))
        if all(key in run for run in runs)
    ]
    apart = _apart(*(errors for _, errors in sets)) if len(sets) > 1 else ""
    return f"{_words(arm)}: {'; '.join(what + _levels(errors) for what, errors in sets)}{apart}, n = {len(runs)}"


def _apart(validation, test):
    """Test minus validation errors under the protocol that averages views, of the same runs."""
    name = averaged(validation[0])
    points = " / ".join(
        _spread_signed([b[name][field] - a[name][field] for a, b in zip(validation, test)]) for field in FIELDS
    )
    return f"; test minus validation {points} points ({name})"


def _levels(errors):
    """The mean errors of several runs under their protocols."""
    fields = [
        (protocol, [[of_run[protocol][field] for of_run in errors] for field in FIELDS])
        for protocol in reversed(errors[0])
    ]
    return ", ".join(f"{_spread(top1)} / {_spread(top5)} % {protocol}" for protocol, (top1, top5) in fields)


def _difference(record, reference, arm):
    a, b = _pairs(record, reference, arm)
    if not a:
        return None
    parts = []
    for protocol in reversed(a[0]["errors"]):
        fields = [[[run["errors"][protocol][field] for run in runs] for runs in (a, b)] for field in FIELDS]
        signed = " / ".join(_signed(paired(*pair)) for pair in fields)
        parts.append((f"{signed} points", protocol, paired(*fields[0]), fields))
    (first, protocol, test, fields), *others = parts
    level = " / ".join(f"{mean(pair[0]):.2f}" for pair in fields)
    centre = "".join(f"; {other} {points}" for points, other, *_ in others)
    return f"{_words(arm)} {first} against {_words(reference)}'s {level} % ({protocol}), {_test(test)}{centre}"


def _views(record, arm):
    runs = _ended(record, arm)
    if not runs:
        return None
    name = averaged(runs[0]["errors"])
    fields = [
        [[run["errors"][protocol][field] for run in runs] for protocol in (name, "centre view")] for field in FIELDS
    ]
    tests = [paired(*pair) for pair in fields]
    level = " / ".join(f"{mean(pair[0]):.2f}" for pair in fields)
    return (
        f"centre view {_signed(tests[0])} / {_signed(tests[1])} points against {level} % of {name}, {_test(tests[0])}"
    )


def _gaps(record, arms):
    """Validation minus training error of every arm, and how much more that is than the first arm's, paired by seed."""
    parts, gaps = [], {}
    for arm in arms:
        runs = [run for run in _ended(record, arm) if "on_training_images" in run]
        gaps[arm] = {
            run["seed"]: run["errors"]["centre view"]["top1_error"] - run["on_training_images"]["top1_error"]
            for run in runs
        }
        if runs:
            trained = mean(run["on_training_images"]["top1_error"] for run in runs)
            parts.append(f"{_words(arm)} {_spread(list(gaps[arm].values()))} points (training images {trained:.2f} %)")
    for arm in arms[1:]:
        seeds = sorted(gaps[arms[0]].keys() & gaps[arm].keys())
        if seeds:
            wider = paired(*([gaps[name][seed] for seed in seeds] for name in (arms[0], arm)))
            parts.append(f"{_words(arm)} {_signed(wider)} points against {_words(arms[0])}, {_test(wider)}")
    return "validation minus training error, centre view, network in test mode: " + ", ".join(parts) if parts else None


def _iterations(record, slow, fast, at=""):
    """How many times as many steps the first arm takes to the same training loss: the lowest that both curves come
    to."""
    ratios, levels = [], []
    for a, b in zip(*_pairs(record, slow, fast)):
        levels.append(max(min(run["curve"]["loss"]) for run in (a, b)))
        ratios.append(step_of_loss(a["curve"], levels[-1]) / step_of_loss(b["curve"], levels[-1]))
    if not ratios:
        return None
    return (
        f"{_words(slow)} takes {_spread(ratios)} times the steps of {_words(fast)} to the same training loss (as "
        "it is in training, "
        f"with dropout where there is any), {_spread(levels)}, the lowest that both curves come to{at}, "
        f"n = {len(ratios)}"
    )


def _masks(record, arm):
    runs = [run["masks"] for run in _ended(record, arm) if "masks" in run]
    if not runs:
        return None
    of = {key: [run[key] for run in runs] for key in runs[0]}
    return (
        f"top-1 error on {runs[0]['images']:,} validation pictures, centre view: {_spread(of['halved'])} % of the "
        f"network with outputs times one minus dropout, {_spread(of['geometric'])} % of the geometric mean of "
        f"{runs[0]['masks']} sampled networks ({_spread(of['arithmetic'])} % of their arithmetic mean), "
        f"{_spread(of['one_mask'])} % of one of them; the first two agree on {_spread(of['agree'], 1)} % of the "
        f"pictures, {_spread(of['divergence'], 4)} nats apart (two halves of the masks {_spread(of['noise'], 4)}, "
        f"one sampled network {_spread(of['one_mask_divergence'], 3)}), n = {len(runs)}"
    )


def _training(record, reference, arm):
    a, b = _pairs(record, reference, arm)
    if not a:
        return None
    errors, losses = (
        [[run["on_training_images"][field] for run in runs] for runs in (a, b)] for field in ("top1_error", "loss")
    )
    loss = paired(*losses)
    return (
        f"on the training images (centre view, network in test mode) {_words(arm)} {_signed(paired(*errors))} "
        "points top-1 "
        f"against {_words(reference)}'s {mean(errors[0]):.2f} %, {_test(paired(*errors))}; loss {_signed(loss, 3)}"
    )


def _drops(record, arm):
    runs = [run for run in record["runs"] if run["arm"] == arm]
    if not runs:
        return None
    told = []
    for run in runs:
        epochs = math.ceil(run["steps"] / run["steps_per_epoch"])
        begins = f"at epoch{'s' if len(run['drops']) > 1 else ''} {', '.join(map(str, run['drops']))} of {epochs}"
        told.append((begins if run["drops"] else f"not within {_count(epochs, 'epoch')}") + f" (seed {run['seed']})")
    return f"{_words(arm)}: the rates fall {', '.join(told)}"


def _rates(record, arms):
    found, reached = [], {}
    for arm in arms:
        runs = [run for run in record["runs"] if run["arm"] == arm]
        if not runs:
            return []
        runs = [run for run in runs if "diverged" not in run]  # they have a sentence of their own
        reached[arm] = {run["seed"]: run["epochs_to_level"] for run in runs if run["epochs_to_level"] is not None}
        factor, tried = record["rates"][arm], [entry["factor"] for entry in record["search"] if entry["arm"] == arm]
        how = f"the best of {', '.join(f'{other:g}' for other in tried)}"
        if record["search_epochs"] is not None:
            how += f" after {_count(record['search_epochs'], 'epoch')}"
        if factor in (tried[0], tried[-1]):
            how += ", at the edge of what was tried"
        rate = f"at {factor:g} times its learning rate ({how})"
        missing = [run["steps"] / run["steps_per_epoch"] for run in runs if run["epochs_to_level"] is None]
        found.append(
            f"{_words(arm)} {rate}: {LEVEL:g} % training error "
            + (f"after {_spread(list(reached[arm].values()))} epochs, n = {len(reached[arm])}" if reached[arm] else "")
            + (", " if reached[arm] and missing else "")
            + (f"not within {min(missing):g} epochs with {len(missing)} of {len(runs)} seeds" if missing else "")
        )
    fast, slow = arms
    before, after, least, left_out = _in_time(
        record, fast, slow, "epochs_to_level", lambda run: run["steps"] / run["steps_per_epoch"]
    )
    if before:
        ratios = [b / a for a, b in zip(before, after)]
        test = paired(*([math.log(epochs) for epochs in of_arm] for of_arm in (before, after)))
        found.append(f"ratio {least}{_spread(ratios)}, of the logarithms {_test(test)}{left_out}")
    return found


def _in_time(record, reference, arm, key, length):
    """(values of the reference, of the arm, "at least " or "", what is left out): when two arms came to something, by
    seed.

    An arm that never came to it counts with its run's length, so that a difference is a lower bound; leaving it out
    would hide the strongest evidence. A seed whose reference never came to it says nothing of that kind, and is left
    out."""
    a, b = (
        {run["seed"]: run for run in record["runs"] if run["arm"] == name and "diverged" not in run}
        for name in (reference, arm)
    )
    both = sorted(a.keys() & b.keys())
    seeds = [seed for seed in both if a[seed][key] is not None]
    after = [length(b[seed]) if b[seed][key] is None else b[seed][key] for seed in seeds]
    least = "at least " if any(b[seed][key] is None for seed in seeds) else ""
    lost = len(both) - len(seeds)
    return (
        [a[seed][key] for seed in seeds],
        after,
        least,
        f" (without {_count(lost, 'seed')} of which {_words(reference)} did not come to it)" if lost else "",
    )


def _moved(record, arm):
    runs = [run for run in record["runs"] if run["arm"] == arm]
    if not runs:
        return None
    steps = [
        f"at step {run['moved']:,}" if run["moved"] is not None else f"not within {_count(run['steps'], 'step')}"
        for run in runs
    ]
    signals = [run["signal"] for run in runs if "signal" in run]
    reason = ""
    if signals:  # why: the last layer's gradient has no more of the picture in it than its outputs
        first, last = (mean(list(signal.values())[place] for signal in signals) for place in (0, -1))
        reason = (
            f"; before training the logits differ from picture to picture by {last:.2g} "
            f"(conv1's outputs by {first:.2g})"
        )
    return f"{_words(arm)}: the loss moves {', '.join(steps)}, n = {len(runs)}{reason}"


def _when_moved(record, reference, arm):
    before, after, least, left_out = _in_time(record, reference, arm, "moved", lambda run: run["steps"])
    if not before:
        return None
    test = paired(before, after)
    steps = _signed(test, 0)
    plural = "" if steps in ("+1", "-1") else "s"
    return f"{_words(arm)} {least}{steps} step{plural} against {_words(reference)}, {_test(test)}{left_out}"


def _ensembles(record):
    """An average of five against its members' mean; one of seven against the average of its first five, as in the
    paper."""
    found = record["ensembles"]
    if not found:
        return []
    name, sentences = averaged(found[0]["errors"]), []
    for what, key in (
        ("averaged plainly", "errors"),
        ("averaged with weights chosen on the validation images, tested on these same images", "weighted"),
    ):
        if "five" in found[0]:
            reference, against = [ensemble["five"][key][name] for ensemble in found], "the average of five of them, "
        else:
            members = [
                [run["errors"][name] for run in record["runs"] if run["directory"] in ensemble["members"]]
                for ensemble in found
            ]
            reference, against = (
                [{field: mean(errors[field] for errors in of) for field in FIELDS} for of in members],
                "their mean of ",
            )
        before, after = (
            [[errors[field] for errors in of] for field in FIELDS]
            for of in (reference, [ensemble[key][name] for ensemble in found])
        )
        tests = [paired(*pair) for pair in zip(before, after)]
        level = " / ".join(f"{mean(values):.2f}" for values in before)
        sentences.append(
            f"{len(found[0]['members'])} networks {what}: {_signed(tests[0])} / {_signed(tests[1])} points "
            f"against {against}{level} % ({name}), {_test(tests[0])}"
        )
    return sentences


def _towers(record, arm):
    """In how many runs the towers' kernels differ, by the test of all three features together, and their shares of
    chroma."""
    runs = [run for run in _ended(record, arm) if "chroma" in run]
    if not runs:
        return _halves(record, arm)
    shares = ", ".join(
        f"{run['chroma'][0]:.2f} / {run['chroma'][1]:.2f} (p = {run['random_split_p']:.2g})" for run in runs
    )
    apart = [abs(run["chroma"][0] - run["chroma"][1]) for run in runs]
    colour = (
        f"share of chroma in the kernels' energy, tower a / b: {shares}; {_spread(apart)} apart, n = {len(runs)}; "
        "p: the share "
        "of random halves of the kernels that are as far apart"
    )
    tested = [run["division"] for run in runs if "division" in run]
    if not tested:  # a record of an older version
        return colour
    divided = sum(of_one["p"] is not None and of_one["p"] <= LEVEL_OF_DIVISION for of_one in tested)
    low, high = wilson(divided, len(tested))
    every = ", ".join("too few kernels" if of_one["p"] is None else f"{of_one['p']:.2g}" for of_one in tested)
    return (
        f"{_words(arm)}: the towers' kernels differ in {divided} of {len(tested)} runs (95 % interval "
        f"{100 * low:.0f} to "
        f"{100 * high:.0f} %; colour, hue, orientation and frequency in one test, p = {every}, counted at "
        f"{LEVEL_OF_DIVISION:g}); {colour}"
    )


def _halves(record, arm):
    found = [run["halves"] for run in _ended(record, arm) if "halves" in run]
    if not found:
        return None
    met, splits = (sum(values) for values in zip(*found))
    return f"{_words(arm)}: random halves of its kernels differ as much in {met} of {splits} splits, n = {len(found)}"


# --- numbers as text


def _ended(record, arm):
    return [run for run in record["runs"] if run["arm"] == arm and "errors" in run]


def _pairs(record, reference, arm):
    """The runs of two arms that ended, those of the same seed in the same place."""
    a, b = ({run["seed"]: run for run in _ended(record, name)} for name in (reference, arm))
    seeds = sorted(a.keys() & b.keys())
    return [a[seed] for seed in seeds], [b[seed] for seed in seeds]


def _words(arm):
    return arm.replace("_", " ")


def _count(number, noun):
    """ "1 epoch", "1,200 steps"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _spread(values, digits=2):
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def _spread_signed(values, digits=2):
    return f"{mean(values):+.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def _signed(test, digits=2):
    return f"{test.mean:+.{digits}f}" + (f" ± {test.sd:.{digits}f}" if test.sd is not None else "")


def _test(test):
    if test.p is None:
        return "n = 1, no p"
    least = ", the least there can be" if test.p == test.least_p else ""
    return f"n = {test.n}, p = {test.p:.2g}{least}" + (
        f" (Welch {test.welch_p:.2g})" if test.welch_p is not None else ""
    )
