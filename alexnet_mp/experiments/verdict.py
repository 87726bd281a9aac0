"""Whether a claim of the paper came out: one number a seed, its test, and a verdict in words.

The rules are those of claims/desk-study.md, which was written before the runs that they judge: paired t-tests, Holm's
correction over its claims with a direction, and no verdict from fewer than `FEWEST` seeds. `specialisation` and `init`
are counted instead."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..analysis.learning_curves import step_of_loss
from ..analysis.specialisation import LEVEL as DIVIDED
from ..analysis.specialisation import holm, matching, wilson
from . import kept_answers
from .catalogue import CLAIMS

COMES_OUT, OPPOSITE, UNDECIDED, NOT_RUN, NO_VERDICT = (
    "comes out",
    "opposite",
    "not to be told apart",
    "not run",
    "no verdict",
)
LEVEL, FEWEST = 0.05, 5
STUDY = (  # the claims that share one correction; all others share another
    "views",
    "lrn",
    "one-gpu",
    "dropout",
    "crops-flips",
    "colour",
    "augmentation",
    "pooling",
    "depth",
    "links",
    "weight-decay",
    "biases",
    "pretraining",
    "ensemble5",
    "ensemble7",
    "curve",
)
UNTRAINED = 98.0  # % top-1 error: a network of `init` with a lower one has learned something


@dataclass(frozen=True)
class Outcome:
    """One comparison of a claim, one number a seed; above 0 where the second is larger.

    unit: "points", or "times" of logarithms of ratios. Intervals and p are those of the t-test of the mean against 0, n
    - 1 degrees of freedom; None for n = 1, or where all values are equal."""

    what: str
    values: tuple[float, ...]
    unit: str = "points"
    at_least: bool = False  # some run never came to what is timed, and counts with its length

    @property
    def n(self):
        return len(self.values)

    @property
    def mean(self):
        return float(np.mean(self.values))

    @cached_property
    def sd(self):
        """Of one value, None for n = 1 and where they are equal or not finite."""
        sd = float(np.std(self.values, ddof=1)) if self.n > 1 else 0.0
        return sd if 0 < sd < math.inf else None

    @property
    def p(self):
        """Two-sided."""
        if self.sd is None:
            return None
        from scipy import stats  # imported late: it takes half a second

        return float(2 * stats.t.sf(abs(self.mean) / (self.sd / math.sqrt(self.n)), self.n - 1))

    @property
    def interval(self):
        """Of the mean, 95 %."""
        return self._within(math.sqrt(1 / self.n))

    @property
    def prediction(self):
        """Where the value of another seed should lie, 95 %."""
        return self._within(math.sqrt(1 + 1 / self.n))

    def _within(self, factor):
        if self.sd is None:
            return None
        from scipy import stats

        reach = float(stats.t.ppf(0.975, self.n - 1)) * self.sd * factor
        return self.mean - reach, self.mean + reach


@dataclass(frozen=True)
class Verdict:
    """What the records say of a claim."""

    word: str
    outcomes: tuple[Outcome, ...] = ()
    p: float | None = None  # of the claim: the largest of its outcomes'
    corrected: float | None = None
    remark: str = ""
    record: dict | None = None


def verdicts(records, folder):
    """{claim's id: `Verdict`}. records: of `read_records`, in `folder`, where the first layers of their runs lie too.

    Of several records of a claim those of the study count, then the one with most seeds, then the newest.
    """
    chosen = {claim.id: _fullest(records.get(claim.id, [])) for claim in CLAIMS}
    found = {claim.id: _tested(claim, chosen[claim.id], folder) for claim in CLAIMS}
    corrected = {}
    for family in (STUDY, [claim.id for claim in CLAIMS if claim.id not in STUDY]):
        judged = [name for name in family if found[name].word == UNDECIDED and found[name].p is not None]
        corrected |= dict(zip(judged, holm([found[name].p for name in judged])))
    return {
        claim.id: _decided(claim, found[claim.id], corrected[claim.id]) if claim.id in corrected else found[claim.id]
        for claim in CLAIMS
    }


def outcomes(claim, record):
    """The `Outcome`s of a claim's comparisons in a record, those without a pair of runs left out; the first is the
    primary one."""
    arms = [arm["name"] for arm in record["arms"] if not arm["larger"]]
    match claim.kind:
        case "views":
            runs = _ended(record, arms[0])
            pairs = [
                (
                    "centre view minus the average over views",
                    [run["errors"]["centre view"]["top1_error"] - _views(run) for run in runs],
                )
            ]
        case "ensemble":
            pairs = _ensembles(record)
        case "masks":
            pairs = []
        case "iterations":
            pairs = [
                (
                    f"steps to the same training loss, {_words(arm)} minus {_words(arms[0])}",
                    _log_steps(record, arms[0], arm),
                )
                for arm in arms[1:]
            ]
        case "cumulative":
            pairs = [
                (f"{_words(arm)} minus {_words(before)}", _differences(record, before, arm, _views))
                for before, arm in zip(arms, arms[1:])
            ]
        case _:
            value, what = {
                "overfitting": (_gap, "gap, "),
                "dropout": (_gap, "gap, "),
                "training": (_training, "training error, "),
            }.get(claim.kind, (_views, ""))
            if claim.id == "biases":
                value, what = _log_moved, "steps until the loss moves, "
            if claim.kind == "rates":
                value, what = _log_epochs, "epochs to the level, "
            pairs = [
                (f"{what}{_words(arm)} minus {_words(arms[0])}", _differences(record, arms[0], arm, value))
                for arm in arms[1:]
            ]
    unit = "times" if claim.id == "biases" or claim.kind in ("rates", "iterations") else "points"
    timed = unit == "times" and claim.kind != "iterations"
    cut_off = {arm: any(_never(claim, run) for run in _ended(record, arm)) for arm in arms} if timed else {}
    return tuple(
        Outcome(what.replace(" minus ", " over ") if unit == "times" else what, tuple(values), unit, at_least)
        for (what, values), at_least in zip(
            pairs, [cut_off.get(arm, False) for arm in arms[1:]] or [False], strict=True
        )
        if len(values)
    )


def _tested(claim, record, folder):
    """The `Verdict` before any correction: `UNDECIDED` where p and the correction will tell."""
    if record is None or not any("errors" in run for run in record["runs"]):
        return Verdict(NOT_RUN)
    if claim.kind == "towers":
        return _counted_towers(record, folder)
    if claim.id == "init":
        return _counted_starts(claim, record)
    if claim.kind in ("errors", "masks"):
        return Verdict(NO_VERDICT, record=record)
    found = outcomes(claim, record)
    primary = found if claim.every else found[:1]
    if not primary or (claim.every and len(primary) < len([arm for arm in record["arms"] if not arm["larger"]]) - 1):
        return Verdict(NO_VERDICT, found, remark="not all arms have results", record=record)
    fewest = min(outcome.n for outcome in primary)
    if claim.direction == 0:
        return Verdict(NO_VERDICT, found, remark="the paper has no direction", record=record)
    if fewest < FEWEST:
        return Verdict(NO_VERDICT, found, remark=_too_few(fewest), record=record)
    values = [outcome.p for outcome in primary]
    return Verdict(UNDECIDED, found, None if None in values else max(values), record=record)


def _too_few(seeds):
    return f"{seeds} seed{'s' if seeds != 1 else ''}, too few for one"


def _decided(claim, verdict, corrected):
    primary = verdict.outcomes if claim.every else verdict.outcomes[:1]
    signs = {math.copysign(1, outcome.mean) * claim.direction for outcome in primary}
    word, remark = UNDECIDED, ""
    if corrected <= LEVEL and len(signs) == 1:
        word = COMES_OUT if signs == {1.0} else OPPOSITE
    elif claim.effect is not None and all(
        claim.direction * _end(outcome, claim.direction) < claim.effect for outcome in primary
    ):
        remark = "smaller here than the effect that would count"
    return Verdict(word, verdict.outcomes, verdict.p, corrected, remark, verdict.record)


def _end(outcome, direction):
    """The end of an interval on the side of the paper's direction."""
    return outcome.interval[1 if direction > 0 else 0]


def _counted_towers(record, folder):
    """In how many runs the towers are divided, and whether more than towers of different networks are; with links, and
    without.

    All runs, and more: it comes out; none: the opposite. Beside it, in how many of the divided ones it is the share of
    chroma that differs, as the paper says, and Fisher's exact test of the runs with links against those without."""
    counts, told = [], []
    for arm in record["arms"]:
        runs = [run for run in _ended(record, arm["name"]) if "division" in run]
        if not runs:
            continue
        divided = [
            run["division"] for run in runs if run["division"]["p"] is not None and run["division"]["p"] <= DIVIDED
        ]
        chroma = sum(division["measures"]["colourfulness"]["holm_p"] <= LEVEL for division in divided)
        kernels = [kept_answers.first_layer(run, folder) for run in runs]
        _, p = (None, None) if any(of_one is None for of_one in kernels) else matching(kernels)
        low, high = wilson(len(divided), len(runs))
        counts.append((len(divided), len(runs), p))
        told.append(
            f"{_words(arm['name'])}: towers differ in {len(divided)} of {len(runs)} runs ({100 * low:.0f} to "
            f"{100 * high:.0f} %), in chroma "
            f"in {chroma} of these; against towers of other runs p = {'unknown' if p is None else f'{p:.2g}'}"
        )
    if not counts or counts[0][1] < FEWEST:
        return Verdict(
            NO_VERDICT, remark=_too_few(counts[0][1]) if counts else "a record of an older version", record=record
        )
    divided, runs, p = counts[0]
    if len(counts) > 1:
        from scipy import stats

        other = counts[1]
        fisher = stats.fisher_exact([[divided, runs - divided], [other[0], other[1] - other[0]]]).pvalue
        told.append(f"with links against without p = {fisher:.2g}")
    word = COMES_OUT if divided == runs and p is not None and p <= LEVEL else OPPOSITE if not divided else UNDECIDED
    return Verdict(word, remark="; ".join(told), record=record)


def _counted_starts(claim, record):
    """Whether every run with the literal initial weights learns: its loss moves for good, and its error is below
    chance."""
    runs = [run for run in record["runs"] if run["arm"] == "literal_init" and ("errors" in run or "diverged" in run)]
    found = outcomes(claim, record)
    if len(runs) < FEWEST:
        return Verdict(NO_VERDICT, found, remark=_too_few(len(runs)), record=record)
    learned = sum("errors" in run and run["moved"] is not None and _views(run) < UNTRAINED for run in runs)
    word = COMES_OUT if learned == len(runs) else OPPOSITE if not learned else UNDECIDED
    return Verdict(word, found, remark=f"{learned} of {len(runs)} runs learn", record=record)


def _ensembles(record):
    """Of five networks: the average's error minus each member's; of seven: minus the average of the first five, one
    number an ensemble."""
    values = []
    for ensemble in record["ensembles"]:
        average = _views({"errors": ensemble["errors"]})
        if "five" in ensemble:
            values.append(average - _views({"errors": ensemble["five"]["errors"]}))
        elif len(record["ensembles"]) == 1:
            names = {Path(member).name for member in ensemble["members"]}
            values = [average - _views(run) for run in record["runs"] if Path(run["directory"]).name in names]
        else:
            names = {Path(member).name for member in ensemble["members"]}
            values.append(
                average
                - float(np.mean([_views(run) for run in record["runs"] if Path(run["directory"]).name in names]))
            )
    return [
        (
            "the average of seven minus that of five"
            if any("five" in ensemble for ensemble in record["ensembles"])
            else "the average minus its members",
            values,
        )
    ]


# --- one number of a run


def _views(run):
    """Top-1 error in %, averaged over views; of a network that is tested on one view, on that."""
    return list(run["errors"].values())[-1]["top1_error"]


def _training(run):
    return run["on_training_images"]["top1_error"] if "on_training_images" in run else None


def _gap(run):
    """Validation minus training error, centre view, in points."""
    return (
        run["errors"]["centre view"]["top1_error"] - run["on_training_images"]["top1_error"]
        if "on_training_images" in run
        else None
    )


def _log_moved(run):
    """Logarithm of the steps until the loss moves; a loss that never does counts with the length of the run."""
    return math.log(run["steps"] if run["moved"] is None else run["moved"]) if "moved" in run else None


def _log_epochs(run):
    """Logarithm of the epochs to the level of training error; a run that never comes to it counts with its length."""
    reached = run.get("epochs_to_level")
    return math.log(run["steps"] / run["steps_per_epoch"] if reached is None else reached)


def _log_steps(record, reference, arm):
    """Logarithms of how many times as many steps an arm takes to the lowest training loss that both curves of a pair
    come to."""
    a, b = ({run["seed"]: run["curve"] for run in _ended(record, name) if "curve" in run} for name in (reference, arm))
    ratios = []
    for seed in sorted(a.keys() & b.keys()):
        level = max(min(curve["loss"]) for curve in (a[seed], b[seed]))
        ratios.append(math.log(step_of_loss(b[seed], level) / step_of_loss(a[seed], level)))
    return ratios


def _never(claim, run):
    return run.get("epochs_to_level" if claim.kind == "rates" else "moved") is None


def _differences(record, reference, arm, value):
    """value(run of the arm) - value(run of the reference) of every seed that both have."""
    a, b = ({run["seed"]: value(run) for run in _ended(record, name)} for name in (reference, arm))
    return [b[seed] - a[seed] for seed in sorted(a.keys() & b.keys()) if None not in (a[seed], b[seed])]


def _ended(record, arm):
    return [run for run in record["runs"] if run["arm"] == arm and "errors" in run]


def _fullest(records):
    """Of a claim's records, newest first: of those with the study's network, else of all, the one with the most seeds
    that ended."""
    of_study = [record for record in records if record["base"] == "desk" and record["steps"] is None]
    return max(
        of_study or records,
        key=lambda record: len({run["seed"] for run in record["runs"] if "errors" in run}),
        default=None,
    )


def _words(arm):
    return arm.replace("_", " ")
