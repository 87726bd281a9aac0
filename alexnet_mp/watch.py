"""Serves one page on a run while it trains, to browsers of this machine: loss, errors, conv1 by tower, the exchange.

examples
  python -m alexnet_mp.watch RUN              http://127.0.0.1:2012/, until Ctrl-C
  python -m alexnet_mp.watch RUN --port 0     on any free port, which is printed

The page updates by itself, and works without scripts. A run that is not there yet is waited for; one that has ended is
shown as it is. Nothing of it is written or locked, and the training doesn't know of it. The server listens on 127.0.0.1
alone and answers under its own name alone; from another machine, ssh -L 2012:127.0.0.1:2012 HOST leads to it."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from .reporting.live import Watched
from .reporting.live_server import HOST, LiveServer
from .runs.directory import RUN
from .system.command_line import command_parser
from .system.errors import run_command
from .system.terminal import printable, say

PORT = 2012
SECONDS = 0.5  # between two looks for a run that is not there yet


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("watch", __doc__)
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--port", type=int, default=PORT, help=f"0: any that is free; default: {PORT}")
    options = parser.parse_args(arguments)
    _wait_for(Path(options.run))
    with LiveServer(Watched(options.run), options.port) as server:
        say(f"{printable(options.run)}: http://{HOST}:{server.server_port}/ until Ctrl-C")
        server.serve_forever()
    return 0


def _wait_for(run):
    """A run makes its directory when it has read its data and checked its devices: until then nothing is there."""
    if os.path.lexists(run) or not run.absolute().parent.is_dir():
        return
    say(f"{printable(str(run))} is not there yet; it is waited for, until Ctrl-C")
    while not os.path.lexists(run / RUN):
        time.sleep(SECONDS)


if __name__ == "__main__":
    run_command(main)
