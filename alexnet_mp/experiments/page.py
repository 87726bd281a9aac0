"""The claims on paper: README's table, a line a claim, and docs/claims.md with all that is known of each; both made of records alone."""
import difflib
import math
import os
from pathlib import Path

from ..system import durable_files
from ..system.terminal import say
from .catalogue import CLAIMS, command
from .elsewhere import ELSEWHERE
from .findings import findings, setting
from .records import RECORDS, path_of, read_records
from .verdict import NOT_RUN, verdicts

README = RECORDS.parent.parent / "README.md"
DETAILS = README.parent / "docs" / "claims.md"
BEGIN, END = "<!-- claims: begin -->", "<!-- claims: end -->"
HEAD = """# The claims of the paper, one by one

Written by `python -m alexnet_mp.claims table` from `claims/records/`. How verdicts are made stands in
[claims/desk-study.md](../claims/desk-study.md). Errors are in % (top-1 / top-5), differences in points, second minus first, paired by
seed, ± the standard deviation over the seeds; intervals are 95 %.
"""


def render(folder):
    """README's table: claim, paper, here, n, verdict."""
    records = read_records(folder)
    found, rows = verdicts(records, folder), [_row("claim", "paper", "here", "n", "verdict"), _row("---", "---", "---", "---:", "---")]
    for claim in CLAIMS:
        verdict = found[claim.id]
        n = min((outcome.n for outcome in _primary(claim, verdict)), default="") if verdict.record else ""
        word = verdict.word if verdict.word == NOT_RUN or not verdict.remark or verdict.outcomes else f"{verdict.word}: {verdict.remark}"
        rows.append(_row(f"`{claim.id}` {claim.sentence} ({claim.section})", claim.paper, _here(claim, verdict), n, word))
    for other in ELSEWHERE:
        told = "; ".join(other.told(folder, records))
        rows.append(_row(f"`{other.id}` {other.sentence} ({other.section})", other.paper, told, "", "no verdict" if told else NOT_RUN))
    return "\n".join(rows)


def details(folder, path):
    """docs/claims.md as text; pictures are linked from where it will lie, `path`."""
    records = read_records(folder)
    found, lines = verdicts(records, folder), [HEAD]
    for claim in CLAIMS:
        lines += [f"## {claim.id}", "", f"{claim.sentence} ({claim.section})", "", f"- paper: {claim.paper}", f"- 2012 notes: {claim.source}",
                  f"- verdict: {_told(found[claim.id])}"]
        lines += [f"  - {_outcome(outcome)}" for outcome in found[claim.id].outcomes]
        lines += [f"- needs: {claim.needs}"] if claim.needs else []
        lines += [f"- command: `{command(claim)}`", ""]
        for record in records.get(claim.id, []):
            if sentences := findings(record):
                picture = os.path.relpath(path_of(record, folder).with_suffix(".png"), Path(path).parent)
                lines += [f"**{setting(record)}**", "", *(f"- {sentence}" for sentence in sentences), "", f"Command: `{record['command']}`", "",
                          f"![{claim.id}]({Path(picture).as_posix()})", ""]
    for other in ELSEWHERE:
        told = other.told(folder, records) or ["not run here"]
        lines += [f"## {other.id}", "", f"{other.sentence} ({other.section})", "", f"- paper: {other.paper}", f"- 2012 notes: {other.source}",
                  *(f"- here: {sentence}" for sentence in told), f"- command: `{other.command}`", ""]
    return "\n".join(lines).rstrip() + "\n"


def _primary(claim, verdict):
    return verdict.outcomes if claim.every else verdict.outcomes[:1]


def _here(claim, verdict):
    """The primary outcome in short."""
    if verdict.record is None:
        return ""
    cells = []
    for outcome in _primary(claim, verdict):
        cells.append(f"{outcome.what}: {_mean(outcome)}")
    return "; ".join(cells) or verdict.remark


def _mean(outcome):
    """"+1.52 points (0.90 to 2.14)"; a factor where logarithms are compared."""
    if outcome.unit == "times":
        low_high = outcome.interval and " ({:.2f} to {:.2f})".format(*map(math.exp, outcome.interval))
        return f"{'at least ' if outcome.at_least else ''}{math.exp(outcome.mean):.2f} times{low_high or ''}"
    low_high = outcome.interval and " ({:+.2f} to {:+.2f})".format(*outcome.interval)
    return f"{outcome.mean:+.2f} points{low_high or ''}"


def _outcome(outcome):
    """A comparison with all that its verdict rests on."""
    text = f"{outcome.what}: {_mean(outcome)}, n = {outcome.n}"
    if outcome.sd is not None:
        values = [math.exp(value) for value in outcome.prediction] if outcome.unit == "times" else outcome.prediction
        text += f", p = {outcome.p:.2g} (paired t-test), another seed's in {values[0]:+.2f} to {values[1]:+.2f}"
    return text


def _told(verdict):
    told = verdict.word + (f" ({verdict.remark})" if verdict.remark else "")
    return told + (f", p = {verdict.p:.2g}, {verdict.corrected:.2g} corrected for all claims" if verdict.corrected is not None else "")


def _row(*cells):
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"


def update(readme, folder, page, check):
    """Write README's table between its markers, and the page of details, or compare both (check).

    Returns 0, or 1 where they differ or a marker is missing. A README without markers has no table; page: None for no details.
    """
    readme = Path(readme)
    text = readme.read_text(encoding="utf-8")
    wanted = {}
    if BEGIN not in text and END not in text:
        say(f"{readme} has no place for the claims' table: {BEGIN} and {END}")
    elif text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        say(f"{readme}: {BEGIN} and {END} have to be there once each, in this order")
        return 1
    else:
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        wanted[readme] = f"{before}{BEGIN}\n{render(folder)}\n{END}{after}"
    if page is not None:
        wanted[Path(page)] = details(folder, page)
    status = 0
    for path, content in wanted.items():
        there = path.read_text(encoding="utf-8") if path.exists() else ""
        if there == content:
            say(f"{path} is what the records say")
        elif check:
            say("\n".join(difflib.unified_diff(there.splitlines(), content.splitlines(), str(path), "records", lineterm="")))
            say(f"{path} differs from the records; python -m alexnet_mp.claims table writes it anew")
            status = 1
        else:
            durable_files.replace(path, content.encode())
            say(f"wrote {path}")
    return status
