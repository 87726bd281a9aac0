"""Whether a claim of the paper came out: one number a seed, its test, and a verdict in words.

The rules are those of claims/desk-study.md, which was written before the runs that they judge: paired t-tests, Holm's
correction over its claims with a direction, no verdict from fewer than `FEWEST` seeds, and none on the study's pictures
before all `SEEDS` have run. `specialisation` and `init` are counted instead. A claim of the study that has no p yet
counts with 1 in the correction: no later run takes a verdict back."""

import math
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..analysis.hypothesis_tests import holm, wilson
from ..analysis.random_deals import MOST_NETWORKS
from ..analysis.specialisation import matching
from . import kept_answers
from .claim import Claim
from .entries import (
    STUDY_PICTURES,
    ended,
    error,
    first_seed,
    is_divided,
    of_other_pictures,
    pictures,
    repeated,
    seeds_of,
    words,
)
from .outcome import Outcome, ratio_of_times
from .paper_claims import CLAIMS, STUDY
from .plan import arm_recipe
from .sentences import count
from .time_kinds import steps

COMES_OUT, OPPOSITE, UNDECIDED, NOT_RUN, NO_VERDICT = (
    "comes out",
    "opposite",
    "not to be told apart",
    "not run",
    "no verdict",
)
TOO_FEW, ONE_DIFFERENCE = "too few seeds", "one difference, so no test"
LEVEL, FEWEST = 0.05, 5
SEEDS = 6  # of the study; of which all have to meet a criterion, if runs are counted
COUNTED = ("specialisation", "init")  # they count runs; all others compare
# The claims whose records of the study share one correction. Two more have no direction, and one has one difference.
FAMILY = tuple(name for name in STUDY if name not in (*COUNTED, "order", "sixth-conv", "ensemble7"))
EXTRAS = ("crops", "flips")  # which the study makes last, if it is asked for them; they share another correction
LINKS = {"base": "with links", "no_links_same_width": "without links"}  # the arms of `specialisation`
UNTRAINED = 98.0  # % top-1 error: a network of `init` with a lower one has learned something


@dataclass(frozen=True)
class Verdict:
    """What the records say of a claim."""

    word: str
    outcomes: tuple[Outcome, ...] = ()
    p: float | None = None  # of the claim: the largest of its outcomes'
    corrected: float | None = None  # by Holm's rule
    among: int = 0  # over so many claims,
    missing: int = 0  # of which so many have no p yet
    remark: str = ""
    record: dict | None = None
    counted: str = ""  # what was counted, in short; of claims that are no comparison
    n: int | None = None  # seeds that were counted
    of_study: bool = False  # whether the record is one of the study


def verdicts(records: Mapping[str, list[dict]], folder: str | Path) -> dict[str, Verdict]:
    """{claim's id: `Verdict`}. records: of `read_records`, in `folder`, where the first layers of their runs lie too.

    Of several records of a claim those of the study count, then the one with most seeds in every arm, then the newest.
    """
    study = _study(records)
    chosen_records = {claim.id: _fullest_record(study[claim.id] or records.get(claim.id, [])) for claim in CLAIMS}
    judgements = {claim.id: _first_verdict(claim, chosen_records[claim.id], folder) for claim in CLAIMS}
    names = [claim.id for claim in CLAIMS if judgements[claim.id].p is not None]
    planned_families = [[name for name in names if name in ids and study[name]] for ids in (FAMILY, EXTRAS)]
    rest = [name for name in names if not any(name in family for family in planned_families)]
    corrections = {}
    for family, size in zip([*planned_families, rest], (len(FAMILY), len(EXTRAS), len(rest))):
        missing = size - len(family)
        for name, corrected in zip(family, holm([judgements[name].p for name in family] + [1.0] * missing)):
            corrections[name] = corrected, size, missing
    judgements |= {
        claim.id: _corrected_verdict(claim, judgements[claim.id], *corrections[claim.id])
        for claim in CLAIMS
        if claim.id in corrections
    }
    return {name: replace(verdict, of_study=bool(study[name])) for name, verdict in judgements.items()}


def verdict_of(record: dict, records: Mapping[str, list[dict]], folder: str | Path) -> Verdict:
    """The `Verdict` of one record among other claims' of the same setting, length and first seed that share a data set
    with it."""
    peers = {name: [other for other in group if _alike(other, record)] for name, group in records.items()}
    return verdicts(peers | {record["claim"]: [record]}, folder)[record["claim"]]


def _alike(record, other):
    return (
        bool(pictures(record) & pictures(other))
        and all(record[name] == other[name] for name in ("base", "set", "epochs", "steps"))
        and first_seed(record) == first_seed(other)
    )


def foretold(claim: Claim, record: dict, records: Sequence[dict]) -> tuple[int, int] | None:
    """(how many differences of a record lie in the 95 % prediction intervals of the one that it repeats with other
    seeds alone, of how many); None where it repeats none of the claim's records, or that one foretells nothing."""
    original = _fullest_record([other for other in repeated(record, records) if not seeds_of(record) & seeds_of(other)])
    if original is None:
        return None
    return _hits(claim, record, {outcome.what: outcome.prediction for outcome in outcomes(claim, original)})


def foretold_elsewhere(
    claim: Claim, record: dict, records: Sequence[dict], folder: str | Path
) -> tuple[int, int, int, dict] | None:
    """(how many differences of a record lie in the 95 % prediction intervals of an older one with these seeds that
    differs in its pictures alone, in how many of the intervals of that one's seeds alone, of how many, that one).

    The intervals know how much both means vary with the pictures, by the answers that are kept in `folder`, and
    nothing of how classes vary. None where there is no such record, or none of these answers.
    """
    original = _fullest_record(of_other_pictures(record, records))
    if original is None:
        return None
    with_pictures, of_seeds = {}, {}
    for outcome in outcomes(claim, original):
        errors = [outcome.arms and kept_answers.of_pictures(one, *outcome.arms, folder) for one in (original, record)]
        if None not in errors:
            with_pictures[outcome.what] = outcome.prediction_elsewhere(sum(error**2 for error in errors))
            of_seeds[outcome.what] = outcome.prediction
    hits, alone = (_hits(claim, record, intervals) for intervals in (with_pictures, of_seeds))
    return hits and (hits[0], alone[0], hits[1], original)


def _hits(claim, record, intervals):
    """(how many differences of a record lie in the intervals of {what is compared: interval}, of how many), or None."""
    hits = [
        interval[0] <= value <= interval[1]
        for outcome in outcomes(claim, record)
        if (interval := intervals.get(outcome.what))
        for value in outcome.values
    ]
    return (sum(hits), len(hits)) if hits else None


def outcomes(claim: Claim, record: dict) -> tuple[Outcome, ...]:
    """The `Outcome`s of a claim's comparisons in a record, those without a pair of runs too; the first is the primary
    one.

    The study compares when the loss moves for `biases` alone: of its kind the other, `init`, is counted.
    """
    arms = [arm["name"] for arm in record["arms"] if not arm["larger"]]
    if claim.id == "biases":
        what = "steps until the loss moves, "
        return tuple(ratio_of_times(record, arms[0], arm, "moved", steps, what) for arm in arms[1:])
    return tuple(claim.kind.outcomes(record, arms))


def _first_verdict(claim, record, folder):
    """The `Verdict` before any correction: `UNDECIDED` if p and the correction will tell."""
    if record is None or not record["runs"]:
        return Verdict(NOT_RUN)
    if not any("errors" in run for run in record["runs"]):
        return Verdict(NO_VERDICT, remark=_join("no run came to its end", *_divergences(record)), record=record)
    if claim.id == "specialisation":
        return _towers_verdict(record, folder)
    if claim.id == "init":
        return _starts_verdict(claim, record)
    if not claim.kind.judged:
        return Verdict(NO_VERDICT, record=record)
    comparisons = outcomes(claim, record)
    primary_outcomes, paired_outcomes, divergences = (
        primary(claim, comparisons),
        _with_pairs(comparisons),
        _divergences(record),
    )
    complete = bool(primary_outcomes) and all(outcome.n for outcome in primary_outcomes)
    if reason := _obstacle(claim, record, primary_outcomes, complete):
        report = paired_outcomes if complete or claim.every else ()  # another arm has no part in the claim
        return Verdict(NO_VERDICT, report, remark=_join(reason, *divergences), record=record)
    values = [outcome.p for outcome in primary_outcomes]
    return Verdict(
        UNDECIDED, paired_outcomes, None if None in values else max(values), remark=_join(*divergences), record=record
    )


def _obstacle(claim, record, primary_outcomes, complete):
    """Why there is no verdict, "" where there is one."""
    if not complete:
        return "not all arms have results"
    if claim.direction == 0:
        return "the paper has no direction"
    seeds, n = len({run["seed"] for run in record["runs"]}), min(outcome.n for outcome in primary_outcomes)
    if record["ensembles"]:
        return ONE_DIFFERENCE if n == 1 else TOO_FEW if n < FEWEST else ""
    if _of_plan(claim, record) and seeds < SEEDS:
        return f"{seeds} of {SEEDS} seeds so far"
    return TOO_FEW if n < FEWEST else ""


def fewest_seeds(claim: Claim) -> int:
    """How many seeds a verdict on a claim takes at least; 0 where none is tried, or networks are averaged instead."""
    if claim.id in COUNTED:
        return SEEDS
    return FEWEST if claim.kind.judged and claim.direction and claim.seeds > 1 else 0


def primary(claim: Claim, comparisons: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """The `Outcome`s that the verdict rests on: of a claim that is made of every arm all of them, else the first."""
    candidates = tuple(outcome for outcome in comparisons if not outcome.beside)
    return candidates if claim.every else candidates[:1]


def _with_pairs(comparisons):
    return tuple(outcome for outcome in comparisons if outcome.n)


def _join(*remarks):
    return "; ".join(remark for remark in remarks if remark)


def _divergences(record):
    """What is said of runs that diverged, which are left out with their pairs."""
    counts = Counter(run["arm"] for run in record["runs"] if "diverged" in run)
    return [f"{words(arm)} diverged with {count(number, 'seed')}" for arm, number in counts.items()]


def _corrected_verdict(claim, verdict, corrected, among, missing):
    primary_outcomes = primary(claim, verdict.outcomes)
    # the ends of each interval, those of the paper's direction above 0
    ends = [sorted(claim.direction * end for end in outcome.interval) for outcome in primary_outcomes]
    signs = {math.copysign(1, low + high) for low, high in ends}
    word, remark = UNDECIDED, ""
    if corrected <= LEVEL and len(signs) == 1:
        word = COMES_OUT if signs == {1.0} else OPPOSITE
    known = claim.counts is not None and not any(outcome.bounded for outcome in primary_outcomes)  # how large it is
    if any(low > 0 for low, _ in ends) and any(high < 0 for _, high in ends):
        remark = "its arms go both ways"
    elif known and word != OPPOSITE and all(high < claim.counts for _, high in ends):
        remark = "smaller here than the effect that would count"
    return replace(
        verdict, word=word, corrected=corrected, among=among, missing=missing, remark=_join(remark, verdict.remark)
    )


def _towers_verdict(record, folder):
    """In how many runs the towers are divided, and whether more than towers of different networks are; with links, and
    without.

    All of `SEEDS` runs or more, and more than those: it comes out; none: the opposite. Beside it, in how many of the
    divided ones it is the share of chroma that differs, as the paper says, and Fisher's exact test of the runs with
    links against those without."""
    counts, remarks, shares = {}, [], []
    for arm in record["arms"]:
        runs = [run for run in ended(record, arm["name"]) if "division" in run]
        if not runs:
            continue
        n_divided, chroma, p = _division_counts(runs, folder)
        low, high = wilson(n_divided, len(runs))
        share = f"{n_divided} of {len(runs)} runs ({100 * low:.0f} to {100 * high:.0f} %), in chroma in {chroma}"
        name = LINKS.get(arm["name"], words(arm["name"]))
        shares.append(f"{name}: {share}" if shares else f"{name}: towers differ in {share}")
        counts[arm["name"]] = n_divided, len(runs), p
        first = f" (the first {MOST_NETWORKS})" if len(runs) > MOST_NETWORKS else ""
        remarks.append(
            f"{name}: towers differ in {share} of these; "
            f"against towers of other runs{first} p = {'unknown' if p is None else f'{p:.2g}'}"
        )
    base, *controls = (arm["name"] for arm in record["arms"])
    if base not in counts:
        return Verdict(NO_VERDICT, remark="a record of an older version", record=record)
    n_divided, runs, p = counts[base]
    if runs < SEEDS:
        return Verdict(NO_VERDICT, remark=_join(TOO_FEW, *_divergences(record)), record=record)
    if controls and controls[0] in counts:
        from scipy import stats

        control = counts[controls[0]]
        fisher = stats.fisher_exact([[n_divided, runs - n_divided], [control[0], control[1] - control[0]]]).pvalue
        remarks.append(f"with links against without p = {fisher:.2g}")
    word = COMES_OUT if n_divided == runs and p is not None and p <= LEVEL else OPPOSITE if not n_divided else UNDECIDED
    return Verdict(word, remark="; ".join(remarks), record=record, counted="; ".join(shares), n=runs)


def _division_counts(runs, folder):
    """(how many of an arm's runs are divided, in how many of these the shares of chroma differ, p of `matching`)."""
    divisions = [run["division"] for run in runs if is_divided(run["division"])]
    chroma = sum(division["measures"]["colourfulness"]["holm_p"] <= LEVEL for division in divisions)
    kernels = [kept_answers.first_layer(run, folder) for run in runs[:MOST_NETWORKS]]
    p = None if any(of_one is None for of_one in kernels) else matching(kernels)[1]
    return len(divisions), chroma, p


def _starts_verdict(claim, record):
    """Whether every run with the literal initial weights learns: its loss moves for good, and its error is below
    chance."""
    runs = [run for run in record["runs"] if run["arm"] == "literal_init" and ("errors" in run or "diverged" in run)]
    paired_outcomes, divergences = _with_pairs(outcomes(claim, record)), _divergences(record)
    learners = sum("errors" in run and run.get("moved") is not None and error(run) < UNTRAINED for run in runs)
    share = f"{learners} of {len(runs)} runs learn"
    word, remark = COMES_OUT if learners == len(runs) else OPPOSITE if not learners else UNDECIDED, share
    if len(runs) < SEEDS:
        word, remark = NO_VERDICT, f"{len(runs)} of {SEEDS} seeds so far" if _of_plan(claim, record) else TOO_FEW
    return Verdict(word, paired_outcomes, remark=_join(remark, *divergences), record=record, counted=share, n=len(runs))


def _study(records):
    """{claim's id: its records of the study}: of `desk` as it is, to the end, on the study's pictures; if there is
    none, on the pictures that most claims have, since the same study can be made on others.

    Of the study's set itself before those of the same pictures prepared anew: who repeats it takes no verdict back.
    """
    planned_records = {
        claim.id: [record for record in records.get(claim.id, []) if _as_planned(claim, record)] for claim in CLAIMS
    }
    sets = {name: [pictures(record) for record in group] for name, group in planned_records.items()}
    counts = Counter(data for group in sets.values() for data in set().union(*group))
    main_set = STUDY_PICTURES[0] if STUDY_PICTURES[0] in counts else max(counts, key=counts.get, default=None)
    of_study = {
        name: [record for record, data in zip(group, sets[name]) if main_set in data]
        for name, group in planned_records.items()
    }
    return {
        name: [record for record in group if main_set in {data["fingerprint"] for data in record["data"]}] or group
        for name, group in of_study.items()
    }


def _of_plan(claim, record):
    """Whether a record is one that claims/desk-study.md plans, with so many seeds."""
    planned = claim.id in (*FAMILY, *EXTRAS, "init") and _as_planned(claim, record)
    return planned and STUDY_PICTURES[0] in pictures(record)


def _as_planned(claim, record):
    if claim.data != "any" or record["base"] != "desk" or record["set"] or record["steps"] is not None:
        return False
    if first_seed(record):  # it repeats the study
        return False
    _, recipe = arm_recipe(claim.arms[0], Namespace(base="desk", set=[], epochs=None, gpus="cpu"))
    return record["epochs"] == recipe.epochs


def _fullest_record(records: Sequence[dict]) -> dict | None:
    """Of a claim's records, newest first, the one with most seeds that ended in every arm, then in any; one that
    repeats another only where there is no other."""

    def seeds(record):
        of_arms = [{run["seed"] for run in ended(record, arm["name"])} for arm in record["arms"]]
        return min(map(len, of_arms), default=0), len(set().union(*of_arms))

    return max([record for record in records if not first_seed(record)] or records, key=seeds, default=None)
