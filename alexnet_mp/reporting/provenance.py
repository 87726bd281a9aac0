"""Where a report's run came from."""

from ..data.dataset import DataSet
from ..recipes.recipe import Recipe, describe
from ..system.provenance import source_commit
from . import page

UNKNOWN = "not recorded"


def provenance(run: dict, recipe: Recipe, step: int, dataset: DataSet | None) -> page.Part:
    """Where the network and this page come from. run: what `read_run` says of its directory; dataset: whose pictures
    the page has, if any."""
    of_training = _data_in_words(run["data"].get("description"), run["data"].get("fingerprint"))
    of_page = _data_in_words(dataset.description, dataset.fingerprint) if dataset else "none"
    rows = [
        *([name, run.get(name) or UNKNOWN] for name in ("command", "started", "commit")),
        *([f"gone on with from step {entry['step']:,}", entry["command"]] for entry in run.get("resumed", [])),
        ["checkpoint", f"step {step:,}"],
        ["devices", devices_of(run) or "none"],
        ["kernels, pipeline", f"{run.get('kernels') or UNKNOWN}, {run.get('pipeline') or UNKNOWN}"],
        ["python", run.get("python") or UNKNOWN],
        ["packages", ", ".join(f"{name} {version}" for name, version in run.get("packages", {}).items() if version)],
        ["data of the training", of_training],
        ["data of this page", of_page],
        ["commit of this page", source_commit() or "not in a checkout"],
    ]
    return page.Part(
        "provenance",
        "Provenance",
        [page.table([], rows, numbers=False), page.heading("Recipe"), page.code(describe(recipe))],
    )


def _data_in_words(description, fingerprint):
    return f"{description or UNKNOWN}, fingerprint {(fingerprint or UNKNOWN)[:16]}"


def devices_of(run: dict) -> str:
    return "; ".join(f"tower {device['tower']}: {device['name']}" for device in run.get("devices", []))
