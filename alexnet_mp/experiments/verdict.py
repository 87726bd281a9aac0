"""Whether a claim of the paper came out: one number a seed, its test, and a verdict in words.

The rules are those of claims/desk-study.md, which was written before the runs that they judge: paired t-tests, Holm's
correction over its claims with a direction, and no verdict from fewer than `FEWEST` seeds. `specialisation` and `init`
are counted instead."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..analysis.specialisation import DIVISION_LEVEL, holm, matching, wilson
from . import kept_answers
from .claim import Claim
from .entries import ended, error, words
from .outcome import Outcome, ratio_of_times
from .paper_claims import CLAIMS
from .time_kinds import steps

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
class Verdict:
    """What the records say of a claim."""

    word: str
    outcomes: tuple[Outcome, ...] = ()
    p: float | None = None  # of the claim: the largest of its outcomes'
    corrected: float | None = None  # by Holm's rule
    among: int = 0  # over so many claims that have a p
    remark: str = ""
    record: dict | None = None
    counted: str = ""  # what was counted, in short; of claims that are no comparison
    n: int | None = None  # seeds that were counted


def verdicts(records: Mapping[str, list[dict]], folder: str | Path) -> dict[str, Verdict]:
    """{claim's id: `Verdict`}. records: of `read_records`, in `folder`, where the first layers of their runs lie too.

    Of several records of a claim those of the study count, then the one with most seeds, then the newest.
    """
    chosen = {claim.id: _fullest(records.get(claim.id, [])) for claim in CLAIMS}
    found = {claim.id: _tested(claim, chosen[claim.id], folder) for claim in CLAIMS}
    decided = {}
    for family in (STUDY, [claim.id for claim in CLAIMS if claim.id not in STUDY]):
        judged = [name for name in family if found[name].word == UNDECIDED and found[name].p is not None]
        for name, corrected in zip(judged, holm([found[name].p for name in judged])):
            decided[name] = corrected, len(judged)
    return {
        claim.id: _decided(claim, found[claim.id], *decided[claim.id]) if claim.id in decided else found[claim.id]
        for claim in CLAIMS
    }


def outcomes(claim: Claim, record: dict) -> tuple[Outcome, ...]:
    """The `Outcome`s of a claim's comparisons in a record, those without a pair of runs left out; the first is the
    primary one.

    The study compares when the loss moves for `biases` alone: of its kind the other, `init`, is counted.
    """
    arms = [arm["name"] for arm in record["arms"] if not arm["larger"]]
    if claim.id == "biases":
        what = "steps until the loss moves, "
        found = [ratio_of_times(record, arms[0], arm, "moved", steps, what) for arm in arms[1:]]
    else:
        found = claim.kind.outcomes(record, arms)
    return tuple(outcome for outcome in found if outcome.n)


def _tested(claim, record, folder):
    """The `Verdict` before any correction: `UNDECIDED` if p and the correction will tell."""
    if record is None or not any("errors" in run for run in record["runs"]):
        return Verdict(NOT_RUN)
    if claim.id == "specialisation":
        return _counted_towers(record, folder)
    if claim.id == "init":
        return _counted_starts(claim, record)
    if not claim.kind.judged:
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


def _decided(claim, verdict, corrected, among):
    primary = verdict.outcomes if claim.every else verdict.outcomes[:1]
    signs = {math.copysign(1, outcome.mean) * claim.direction for outcome in primary}
    word, remark = UNDECIDED, ""
    if corrected <= LEVEL and len(signs) == 1:
        word = COMES_OUT if signs == {1.0} else OPPOSITE
    elif claim.effect is not None and all(
        claim.direction * _end(outcome, claim.direction) < claim.effect for outcome in primary
    ):
        remark = "smaller here than the effect that would count"
    return replace(verdict, word=word, corrected=corrected, among=among, remark=remark)


def _end(outcome, direction):
    """The end of an interval on the side of the paper's direction."""
    return outcome.interval[1 if direction > 0 else 0]


def _counted_towers(record, folder):
    """In how many runs the towers are divided, and whether more than towers of different networks are; with links, and
    without.

    All runs, and more: it comes out; none: the opposite. Beside it, in how many of the divided ones it is the share of
    chroma that differs, as the paper says, and Fisher's exact test of the runs with links against those without."""
    counts, told, short = [], [], []
    for arm in record["arms"]:
        runs = [run for run in ended(record, arm["name"]) if "division" in run]
        if not runs:
            continue
        divided = [
            run["division"]
            for run in runs
            if run["division"]["p"] is not None and run["division"]["p"] <= DIVISION_LEVEL
        ]
        chroma = sum(division["measures"]["colourfulness"]["holm_p"] <= LEVEL for division in divided)
        kernels = [kept_answers.first_layer(run, folder) for run in runs]
        _, p = (None, None) if any(of_one is None for of_one in kernels) else matching(kernels)
        low, high = wilson(len(divided), len(runs))
        share = f"{len(divided)} of {len(runs)} runs ({100 * low:.0f} to {100 * high:.0f} %), in chroma in {chroma}"
        short.append(
            f"{words(arm['name'])}: towers differ in {share}" if not short else f"{words(arm['name'])}: {share}"
        )
        counts.append((len(divided), len(runs), p))
        told.append(
            f"{words(arm['name'])}: towers differ in {share} of these; "
            f"against towers of other runs p = {'unknown' if p is None else f'{p:.2g}'}"
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
    return Verdict(word, remark="; ".join(told), record=record, counted="; ".join(short), n=runs)


def _counted_starts(claim, record):
    """Whether every run with the literal initial weights learns: its loss moves for good, and its error is below
    chance."""
    runs = [run for run in record["runs"] if run["arm"] == "literal_init" and ("errors" in run or "diverged" in run)]
    found = outcomes(claim, record)
    if len(runs) < FEWEST:
        return Verdict(NO_VERDICT, found, remark=_too_few(len(runs)), record=record)
    learned = sum("errors" in run and run["moved"] is not None and error(run) < UNTRAINED for run in runs)
    word = COMES_OUT if learned == len(runs) else OPPOSITE if not learned else UNDECIDED
    counted = f"{learned} of {len(runs)} runs learn"
    return Verdict(word, found, remark=counted, record=record, counted=counted, n=len(runs))


def _fullest(records):
    """Of a claim's records, newest first: of those with the study's network, else of all, the one with the most seeds
    that ended."""
    of_study = [record for record in records if record["base"] == "desk" and record["steps"] is None]
    return max(
        of_study or records,
        key=lambda record: len({run["seed"] for run in record["runs"] if "errors" in run}),
        default=None,
    )
