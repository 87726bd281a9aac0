"""The options that every command with a network shares: where it runs, and with what."""
from .devices import CHOICES
from .errors import UserError
from .kernels import ops
from .pipelines import PIPELINES


def add_machine_options(parser):
    add_run_options(parser)
    parser.add_argument("--pipeline", choices=PIPELINES, default="auto", help="default: auto")
    parser.add_argument("--workers", type=int, help="processes that read images; default: by the number of cores")


def add_run_options(parser):
    """Of commands that read no data set."""
    parser.add_argument("--gpus", default="auto", help=f"{CHOICES}; default: auto")
    parser.add_argument("--kernels", choices=ops.CHOICES, default="auto",
                        help="who computes norms, pools and the update; default: auto, the fastest built for each device")


def check_kernels(kernels, devices):
    """Refuse `--kernels` that can't compute on one of the devices: UserError, one line."""
    try:
        for device in devices:
            ops.resolve(kernels, device)
    except (ValueError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise UserError(f"--kernels: {error}") from None
