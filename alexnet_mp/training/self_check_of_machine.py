"""The self-check of every device that there is, for `doctor`: what runs of two recipes would be checked with.

Nothing of torch is imported before it is asked for: this can be imported where anything else is broken."""

from itertools import combinations

from ..system import machine
from ..system.inventory import names, told, torch_of

CHECKED = (("paper", "fp32", "pixels"), ("source2012", "bf16", "jpeg"))  # recipe, precision, what the data holds


def self_checks(report: dict) -> dict[str, dict[str, str]]:
    """{device, or pair of them: {what was checked: outcome}}."""
    torch = torch_of(report)
    from ..kernels import dispatch
    from ..system.terminal import lines_on_stderr
    from . import needed_checks

    if why := machine.deadly(dispatch.LIBRARY):
        raise RuntimeError(why)
    findings, gpus = {}, names(report)[1:]
    with lines_on_stderr():
        try:
            for name in names(report):
                findings[name] = {}
                for recipe, precision, storage in CHECKED:
                    findings[name] |= told(
                        _check, torch, [name] * 2, recipe, precision, storage, report, needed_checks.checks
                    )
            for pair in combinations(gpus, 2):
                findings[" and ".join(pair)] = told(_check, torch, pair, *CHECKED[0], report, needed_checks.crossings)
        finally:
            dispatch.leave_out(())
    return findings


def _check(torch, devices, recipe, precision, storage, report, needed):
    from ..recipes.named import PRESETS
    from ..system.errors import UserError
    from . import needed_checks, self_check

    devices = tuple(map(torch.device, devices))
    dali = not report["packages"]["nvidia.dali"]["problem"]
    pipeline = "raw" if storage == "pixels" else "dali" if dali else "torch"
    lacks_bf16 = any(device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0) for device in devices)
    dtype = torch.bfloat16 if precision == "bf16" and not lacks_bf16 else torch.float32
    setup = needed_checks.Asked(PRESETS[recipe](), 1000, devices, dtype, "auto", pipeline, storage)
    try:
        findings = self_check.examine(setup, fresh=True, tell=lambda line: None, needed=needed)[1]
    except UserError as error:
        findings = {"the check": str(error)}
    case = f"{recipe}, {str(dtype).removeprefix('torch.')}"
    return {f"{what}, {case}": machine.shown(outcome) for what, outcome in findings.items()}
