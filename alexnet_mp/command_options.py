"""The options that every command with a network shares: where it runs, and with what."""
from .data.pipeline import PIPELINES
from .kernels import dispatch
from .system.devices import CHOICES


def add_machine_options(parser):
    add_run_options(parser)
    parser.add_argument("--pipeline", choices=PIPELINES, default="auto", help="default: auto")
    parser.add_argument("--workers", type=int, help="processes that read images; default: by the number of cores")


def add_run_options(parser):
    """Of commands that read no data set."""
    parser.add_argument("--gpus", default="auto", help=f"{CHOICES}; default: auto")
    parser.add_argument("--kernels", choices=dispatch.CHOICES, default="auto",
                        help="who computes norms, pools and the update; default: auto, the fastest built for each device")
