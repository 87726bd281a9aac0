"""The claims on paper, made of records alone: README has the main ones, docs/claims.md all that is known of each. Both
show the picture of `overview.py`."""

import difflib
import math
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ..system import durable_files
from ..system.errors import UserError
from ..system.terminal import say
from . import kept_answers, overview
from .claim import Claim, command
from .elsewhere import ELSEWHERE
from .entries import words
from .findings import findings, setting
from .paper_claims import CLAIMS, KINDS
from .plan import arm_recipe, digest_of
from .records import RECORDS, kernels_picture, path_of, read_records
from .sentences import count
from .verdict import NO_VERDICT, NOT_RUN, Verdict, foretold, foretold_elsewhere, primary, verdicts

README = RECORDS.parent.parent / "README.md"
DETAILS = README.parent / "docs" / "claims.md"
BEGIN, END = "<!-- claims: begin -->", "<!-- claims: end -->"
ANEW = "python -m alexnet_mp.claims table --write writes it anew"
# README's rows, in the paper's order: what sections 3 and 4 say lowers the error or speeds up training, the results of
# section 6, figure 3, and what 7 says of depth. Any other claim is in docs/claims.md alone.
MAIN = (  # of README's table, in the paper's order
    "cifar-relu",
    "one-gpu",
    "links",
    "lrn",
    "cifar-lrn",
    "pooling",
    "order",
    "curve",
    "crops-flips",
    "augmentation",
    "colour",
    "views",
    "dropout",
    "weight-decay",
    "init",
    "biases",
    "headline-2010",
    "headline-2012",
    "ensemble5",
    "sixth-conv",
    "pretraining",
    "ensemble7",
    "specialisation",
    "depth",
)


def _row(*cells):
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"


_HEAD = _row("claim", "paper", "here", "n", "verdict"), _row("---", "---", "---", "---:", "---")


def contents(folder: str | Path, readme: str | Path, page: str | Path) -> tuple[str, str, list[overview.Row]]:
    """What the records in `folder` say: (README's part, that of the page of details, the rows of the picture).

    README has the picture and a table of MAIN; the page the picture, a table of all, then each by itself.
    """
    records = read_records(folder)
    judgements = verdicts(records, folder)
    rows, claims = overview.rows(judgements), {claim.id: claim for claim in CLAIMS}
    main_rows = [_line(claims[name], judgements[name], _link(page, readme)) for name in MAIN]
    summary = "\n".join([*_picture(rows, folder, readme), *_HEAD, *main_rows])
    table = "\n".join([*_picture(rows, folder, page), _table(folder, records, judgements)])
    return summary, f"{table}\n\n{_each(folder, records, judgements, page)}", rows


def _picture(rows, folder, path):
    alt = "Each claim's differences by seed, their means with intervals, and the paper's figure"
    return [f"![{alt}]({_link(Path(folder) / overview.NAME, path)})", ""] if rows else []


def _link(target, path):
    """From a page at `path`."""
    return Path(os.path.relpath(target, Path(path).parent)).as_posix()


def _table(folder, records, judgements):
    """All claims: claim, paper, here, n, verdict."""
    rows = [*_HEAD, *(_line(claim, judgements[claim.id]) for claim in CLAIMS)]
    for entry in ELSEWHERE:
        here = "; ".join(entry.sentences(folder, records))
        rows.append(_row(_sentence(entry), entry.paper, here, "", "no verdict" if here else NOT_RUN))
    return "\n".join(rows)


def _each(folder, records, judgements, path):
    """Every claim by itself, with what its verdict rests on and the findings of its records."""
    with_records, without_records = [], []
    for claim in CLAIMS:
        of_claim = [record for record in records.get(claim.id, []) if findings(record)]
        lines = with_records if of_claim else without_records
        lines += [*_head(claim, of_claim), f"- verdict: {in_words(judgements[claim.id])}"]
        lines += [
            f"  - {_outcome(outcome)}{_over_pictures(outcome, judgements[claim.id].record, folder)}"
            for outcome in judgements[claim.id].outcomes
        ]
        if len(claim.arms) > 1:
            lines.append(f"- networks: {'; '.join(map(_network, claim.arms))}")
        lines += [f"- needs: {claim.needs}"] if claim.needs else []
        lines += [f"- command: `{command(claim)}`", ""]
        for record in of_claim:
            lines += _record(claim, record, of_claim, folder, path)
    for entry in ELSEWHERE:
        sentences = entry.sentences(folder, records)
        lines = with_records if sentences else without_records
        lines += [
            *_head(entry, sentences),
            *(f"- here: {sentence}" for sentence in sentences),
            f"- command: `{entry.command}`",
            "",
        ]
    if without_records:
        without_records = ["## Not run here", "", *without_records]
    return "\n".join(with_records + without_records).rstrip()


def _head(claim, has_run):
    return [
        f"{'##' if has_run else '###'} {claim.id}",
        "",
        f"{claim.sentence} ({claim.section})",
        "",
        f"- paper: {claim.paper}",
        f"- 2012 notes: {claim.source}",
    ]


def _record(claim, record, records, folder, path):
    """What a record of a claim says, with its command and its pictures."""
    place = path_of(record, folder)
    pictures = [place.with_suffix(".png"), kernels_picture(place)]
    sentences = [*findings(record), *repetition(claim, record, records, folder)]
    lines = [f"**{setting(record)}**", "", *(f"- {sentence}" for sentence in sentences), ""]
    if rows := KINDS[record["kind"]].seed_by_seed(record):
        names = list(rows[0])
        lines += [_row(*names), _row("---", *["---:"] * (len(names) - 1)), *(_row(*row.values()) for row in rows), ""]
    lines += [f"Command{_at_commit(claim, record)}: `{record['command']}`", ""]
    for picture in pictures if pictures[1].exists() else pictures[:1]:
        lines += [f"![{claim.id}]({_link(picture, path)})", ""]
    return lines


def repetition(claim: Claim, record: dict, records: Sequence[dict], folder: str | Path) -> list[str]:
    """What a record with other seeds, or of other pictures, says of the claim's earlier one; [] where there is none."""
    sentences = []
    if counts := foretold(claim, record, records):
        sentences.append(f"{counts[0]} of {counts[1]} differences lie where the earlier seeds foretold, at 95 %")
    if elsewhere := foretold_elsewhere(claim, record, records, folder):
        hits, of_seeds, differences, older = elsewhere
        data = older["data"][0]["description"].partition(":")[0]
        sentences.append(
            f"{hits} of {differences} differences lie where the record of other pictures, {data}, has those of a new "
            f"seed, at 95 %, with how much pictures vary; in its interval of the seeds alone {of_seeds}"
        )
    return sentences


def _at_commit(claim, record):
    """The commit that repeats a record, where its networks have another digest by now: the command alone would train
    others."""
    recorded_digests = {arm["name"]: arm["digest"] for arm in record["arms"]}
    # asked for without --epochs, or with
    if any(_digests(claim, record, epochs) == recorded_digests for epochs in (None, record["epochs"])):
        return ""
    commits = dict.fromkeys(commit[:7] for run in record["runs"] for commit in run["commits"])
    return f", at commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}"


def _network(arm):
    name = words(arm.name)
    return f"*{name}*" + (f", {arm.what}" if arm.what != name else "")


def _sentence(claim, page=""):
    return f"[{claim.id}]({page}#{claim.id}) {claim.sentence} ({claim.section})"


def _line(claim, verdict, page=""):
    """A claim in one row: claim, paper, here, n, verdict. page: where its link leads, as README sees it."""
    return _row(_sentence(claim, page), claim.paper, _here(claim, verdict), _count(claim, verdict), _word(verdict))


def _word(verdict):
    """The verdict, with its remark, unless that is of what was counted, which has a column."""
    with_remark = verdict.remark and (not verdict.counted or verdict.word == NO_VERDICT)
    return f"{verdict.word}; {verdict.remark}" if with_remark else verdict.word


def _count(claim, verdict):
    """The seeds that were counted, or the least number of them among the primary outcomes; nothing if there is none."""
    if verdict.n is not None:
        return verdict.n
    return min((outcome.n for outcome in primary(claim, verdict.outcomes)), default="")


def _here(claim, verdict):
    """What was counted or the primary outcome, and what stands beside it, in short; with the data, if they are not the
    study's, or if an arm had others."""
    beside = [outcome for outcome in verdict.outcomes if outcome.beside]
    comparisons = [*primary(claim, verdict.outcomes), *beside]
    here = verdict.counted or "; ".join(f"{outcome.what}: {_mean(outcome)}" for outcome in comparisons)
    if not here:
        return here
    sets = [data["description"].partition(":")[0].removeprefix("prepared set ") for data in verdict.record["data"]]
    if verdict.of_study:  # of several sets the compared arms' is the first
        classes = [data["classes"] for data in verdict.record["data"]]
        return here if len(sets) == 1 else f"{here} (on {classes[0]} classes, pre-training on {max(classes)})"
    return f"{here} (on {', '.join(sets)})"


def _mean(outcome):
    """ "+1.52 points (0.90 to 2.14)"; a factor where logarithms are compared, without an interval if it is a bound."""
    if outcome.unit == "times":
        interval = None if outcome.bounded else outcome.interval
        low_high = interval and " ({:.2f} to {:.2f})".format(*map(math.exp, interval))
        return f"{outcome.bound}{math.exp(outcome.mean):.2f} times{low_high or ''}"
    low_high = outcome.interval and " ({:+.2f} to {:+.2f})".format(*outcome.interval)
    return f"{outcome.mean:+.2f} points{low_high or ''}"


def _outcome(outcome):
    """A comparison with all that its verdict rests on."""
    text = f"{outcome.what}: {_mean(outcome)}, n = {outcome.n}"
    if outcome.sd is not None:
        text += f", p = {outcome.p:.2g} (t-test)"
    if outcome.prediction:
        times = outcome.unit == "times"
        template = "{:.2f} to {:.2f} times" if times else "{:+.2f} to {:+.2f}"
        values = map(math.exp, outcome.prediction) if times else outcome.prediction
        text += f", another seed's in {template.format(*values)}"
    if outcome.one_average:
        text += "; this is one average, and interval and p are of its members against it"
    return text


def _digests(claim, record, epochs):
    """{arm: the digest of its recipe} by today's code, asked for as a record was; None where it can't be asked for any
    more."""
    options = Namespace(base=record["base"], set=record["set"], epochs=epochs, gpus="cpu")
    try:
        return {arm.name: digest_of(arm_recipe(arm, options)[1]) for arm in claim.arms}
    except (UserError, KeyError):
        return None


def _over_pictures(outcome, record, folder):
    """How far the pictures alone let a difference of errors vary; its interval is over the seeds."""
    error = outcome.arms and kept_answers.of_pictures(record, *outcome.arms, folder)
    return "" if error is None else f"; over other pictures ± {1.96 * error:.2f}"


def in_words(verdict: Verdict) -> str:
    """The verdict with its remark, its p, and how that was corrected."""
    word = verdict.word + (f" ({verdict.remark})" if verdict.remark else "")
    if verdict.corrected is None:
        return word
    family = count(verdict.among, "claim")
    text = f"{word}, p = {verdict.p:.2g}, {verdict.corrected:.2g} by Holm's correction over {family}"
    counts = "has no p yet and counts" if verdict.missing == 1 else "have no p yet and count"
    return f"{text}; {verdict.missing} {counts} with 1" if verdict.missing else text


def show(folder: str | Path) -> int:
    """Print README's table and the page of details, as their files would have them."""
    summary, details, _ = contents(folder, README, DETAILS)
    say(f"{summary}\n\n{details}")
    return 0


def write(readme: str | Path, folder: str | Path, page: str | Path) -> int:
    """Write README's table and the page of details, each between its markers, and their picture beside the records:
    all, or none. Returns 0, or 1 where a marker is missing.

    A page without markers has no table; one that isn't there is made. Raises UserError where one can't be read or
    written.
    """
    summary, details, rows = contents(folder, readme, page)
    if (pages := _pages({readme: summary, page: details})) is None:
        return 1
    updates = {path: new_text.encode() for path, (old_text, new_text) in pages.items() if old_text != new_text}
    if not _is_current(rows, folder):
        updates[Path(folder) / overview.NAME] = overview.as_png(rows)
    try:
        durable_files.replace_all(updates)
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}; nothing was written") from None
    for path in dict.fromkeys([*pages, *updates]):
        say(f"wrote {path}" if path in updates else f"{path} is what the records say")
    return 0


def check(readme: str | Path, folder: str | Path, page: str | Path) -> int:
    """Say how README's table, the page of details and their picture differ from the records. Returns 0, or 1 where they
    do or a marker is missing."""
    summary, details, rows = contents(folder, readme, page)
    if (pages := _pages({readme: summary, page: details})) is None:
        return 1
    if not (current := _is_current(rows, folder)):
        say(f"{Path(folder) / overview.NAME} shows other records; {ANEW}")
    for path, (old_text, new_text) in pages.items():
        if old_text == new_text:
            say(f"{path} is what the records say")
        else:
            lines = difflib.unified_diff(
                old_text.splitlines(), new_text.splitlines(), str(path), "records", lineterm=""
            )
            say("\n".join(lines))
            say(f"{path} differs from the records; {ANEW}")
    return int(not current or any(old_text != new_text for old_text, new_text in pages.values()))


def _is_current(rows, folder):
    """Whether the picture shows the rows; of none there is no picture."""
    return not rows or overview.stamped(Path(folder) / overview.NAME) == overview.stamp(rows)


def _pages(parts):
    """{path: (what is there, what the records say)} of {path: what belongs between its markers}; None, and a line,
    where these are wrong."""
    pages = {}
    for path, part in ((Path(path), text) for path, text in parts.items()):
        try:
            old_text = path.read_bytes().decode() if path.exists() else ""
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise UserError(f"cannot read {path}: it is not UTF-8 at byte {error.start:,}") from None
        text = old_text or f"{BEGIN}\n{END}\n"
        if BEGIN not in text and END not in text:
            say(f"{path} has no place for the claims: {BEGIN} and {END}")
        elif text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
            say(f"{path}: {BEGIN} and {END} have to be there once each, in this order")
            return None
        else:
            pages[path] = old_text, f"{text.partition(BEGIN)[0]}{BEGIN}\n{part}\n{END}{text.partition(END)[2]}"
    return pages
