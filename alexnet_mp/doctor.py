"""The machine in one page: devices, versions, kernels, the self-check on each device, and what to install or type next.

examples
  python -m alexnet_mp.doctor            a page to read, and to paste into a report of a fault: no user names, no homes
  python -m alexnet_mp.doctor --json     the same for programs

Ends with status 1 where something is missing that every run needs, or where the self-check finds a fault.
"""

# What is imported here needs the standard library alone: this has to run where anything else is broken.
import json
from collections.abc import Iterator, Mapping, Sequence

from .system import inventory
from .system.advice import advice, faults
from .system.command_line import command_parser
from .system.errors import nobody_reads, run_command
from .training.self_check_of_machine import self_checks

BARE = ("version", "name", "problem")  # parts of a fact that need no word before them


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("doctor", __doc__)
    parser.add_argument("--json", action="store_true", help="print JSON; default: a page to read")
    options = parser.parse_args(arguments)
    report = {}
    for name, section in SECTIONS.items():
        report[name] = inventory.told(section, report)
        if not options.json:
            print("\n".join(lines(name, report[name])), flush=True)
            if nobody_reads():
                return 0
    if options.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
    return 1 if faults(report) else 0


def lines(name: str, section: dict) -> Iterator[str]:
    """A section as a person reads it: a line a fact."""
    yield {"self_check": "self-check"}.get(name, name)
    for key, value in section.items():
        parts = value if isinstance(value, list) else [value]
        if name == "self_check" and isinstance(value, dict) and "problem" not in value:
            parts = summary(value)
        if name == "next" and isinstance(value, list):
            parts = [line for step in value for line in (step["command"], f"    {step['why']}")]
        for number, part in enumerate(parts or ["none"]):
            yield f"  {key.replace('_', ' ') if number == 0 else '':<18} {text(part)}".rstrip()


def text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(
            text(part) if name in BARE else f"{name.replace('_', ' ')} {text(part)}"
            for name, part in value.items()
            if part is not None
        )
    return "none" if value is None else ("yes" if value else "no") if isinstance(value, bool) else str(value)


def summary(outcomes: Mapping[str, str]) -> list[str]:
    """Of {what was checked: outcome}: how many passed, each that didn't, and once why others were not checked."""
    failures = {}
    for what, outcome in outcomes.items():
        if outcome != "passed":
            failures.setdefault(outcome if outcome.startswith("not checked") else what, []).append((what, outcome))
    passes = len(outcomes) - sum(map(len, failures.values()))
    return [
        f"{passes} of {len(outcomes)} checks passed",
        *(
            f"{what}{f' and {len(rest)} more' if rest else ''}: {outcome}"
            for (what, outcome), *rest in failures.values()
        ),
    ]


SECTIONS = {
    "alexnet_mp": inventory.installation,
    "packages": inventory.packages,
    "computer": inventory.computer,
    "devices": inventory.devices,
    "kernels": inventory.kernels,
    "copies": inventory.copies,
    "self_check": self_checks,
    "next": advice,
}

if __name__ == "__main__":
    run_command(main)
