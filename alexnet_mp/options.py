"""The options that every command with a network shares: where it runs, and with what."""
from .devices import CHOICES
from .kernels import ops
from .pipelines import PIPELINES


def add_machine_options(parser):
    parser.add_argument("--gpus", default="auto", help=f"{CHOICES}; default: auto")
    parser.add_argument("--pipeline", choices=PIPELINES, default="auto", help="default: auto")
    parser.add_argument("--kernels", choices=ops.CHOICES, default="auto", help="default: auto")
    parser.add_argument("--workers", type=int, help="processes that read images; default: by the number of cores")
