"""What the records say of each claim, in words: for `claims list` and for docs/claims.md, which is made of records
alone.

Differences are of an arm minus its reference, paired by seed: mean ± standard deviation over the seeds, n, the p of the
exact sign-flip test, two-sided and of the top-1 error where nothing else is said."""

from .entries import words
from .error_kinds import errors_of, gaps_of
from .paper_claims import CLAIMS, KINDS
from .records import devices_of
from .sentences import count


def findings(record: dict) -> list[str]:
    """The sentences that a record supports; [] if it has no run that ended."""
    arms = [arm["name"] for arm in record["arms"] if not arm["larger"]]
    sentences = KINDS[record["kind"]].findings(record, arms)
    if any(claim.id == record["claim"] and claim.tells_gaps for claim in CLAIMS):
        sentences = [*sentences, gaps_of(record, arms)]
    divergences = [
        f"{words(run['arm'])} with seed {run['seed']} diverged at step {run['diverged']:,}"
        for run in record["runs"]
        if "diverged" in run
    ]
    on_more_classes = [errors_of(record, arm["name"], "on more classes, ") for arm in record["arms"] if arm["larger"]]
    return [sentence for sentence in (*sentences, *on_more_classes, *divergences) if sentence]


def setting(record: dict) -> str:
    """On what a record was made: data, network, length, devices, date."""
    data = " and ".join(data["description"] for data in record["data"])
    bases = ", ".join(dict.fromkeys(arm["preset"] for arm in record["arms"]))
    preset_epochs, _ = record["arms"][0]["of_preset"].get("epochs", (record["epochs"], None))
    shortening = f" of the recipe's {preset_epochs}" if preset_epochs > record["epochs"] else ""
    length = (
        count(record["steps"], "step") if record["steps"] is not None else count(record["epochs"], "epoch") + shortening
    )
    changes = f" with {', '.join(f'`{text}`' for text in record['set'])}" if record["set"] else ""
    note = f" ({record['note']})" if record["note"] else ""
    devices = " and ".join(devices_of(record)) or "nowhere yet"
    return f"{data}{note}; `{bases}`{changes}, {length}{_falls(record)}, {devices}, {record['date'][:10]}"


def _falls(record):
    """At which epochs the rates fall, where --epochs put dates in the place of the base's plateaus."""
    first = record["arms"][0]["of_preset"]
    dated = first.get("schedule") == ["plateau", "dated"] and "dates" in first
    if KINDS[record["kind"]].tells_schedule or not dated:
        return ""
    epochs = [str(date["epoch"]) for date in first["dates"][1] if date["epoch"] <= record["epochs"]]
    fall = f"fall at epoch{'s' if len(epochs) > 1 else ''} {', '.join(epochs)}" if epochs else "never fall"
    return f", all rates {fall} in place of plateaus"
