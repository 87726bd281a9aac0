"""Two machines: two network namespaces with a cable between them, a torchrun in each."""

import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest
from tiny_run import assert_same_end, lines, run
from torchrun_jobs import ended, torchrun, until_step

from alexnet_mp.runs import checkpoint_format, checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.process, pytest.mark.usefixtures("one_thread", "quick")]
EPOCHS = ["--epochs", "20", "--checkpoint-every", "5"]
# The command, with seconds in place of minutes.
IMPATIENT = """
import sys
from datetime import timedelta
from alexnet_mp import train
from alexnet_mp.system import launcher, ranks
from alexnet_mp.system.errors import run_command
ranks.PATIENCE, ranks.ANSWERED, launcher.STUCK = timedelta(seconds=10), 3, 5
run_command(lambda: train.main(sys.argv[1:]), several=True)
"""


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True)


@pytest.fixture
def machines():
    """The names of two namespaces, the addresses of their ends of a cable, `cut` and `mend`."""
    if shutil.which("ip") is None:
        pytest.skip("the command ip is not installed (Debian's iproute2)")
    names = [f"alexnet-{os.getpid()}-{end}" for end in "ab"]
    cards, addresses = ["alexnet-a", "alexnet-b"], ["10.91.7.1", "10.91.7.2"]
    try:
        for name in names:
            if (process := ip("netns", "add", name)).returncode:
                pytest.skip(f"the kernel forbids a network namespace: {process.stderr.strip()}")
        peer = ("peer", "name", cards[1], "netns", names[1])
        process = ip("link", "add", cards[0], "netns", names[0], "type", "veth", *peer)
        if process.returncode:
            pytest.skip(f"the kernel forbids a cable between namespaces: {process.stderr.strip()}")
        for name, card, address in zip(names, cards, addresses):
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", card)
            assert ip("-n", name, "link", "set", card, "up").returncode == 0
        yield SimpleNamespace(
            names=names,
            cards=cards,
            addresses=addresses,
            cut=lambda: ip("-n", names[0], "link", "set", cards[0], "down"),
            mend=lambda: ip("-n", names[0], "link", "set", cards[0], "up"),
        )
    finally:
        for name in names:
            ip("netns", "del", name)


def job(machines, data, out, *more, script=None):
    """A torchrun in each machine, of one process each."""
    place = f"{machines.addresses[0]}:29411"
    return [
        torchrun(
            data,
            out,
            *more,
            nodes=(
                *("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-endpoint", place, "--rdzv-id", "two"),
                # By itself torchrun asks the host's name for its addresses, which a namespace doesn't have.
                *("--local-addr", address, "--rdzv-conf", f"is_host={int(address == machines.addresses[0])}"),
            ),
            program=(str(script),) if script else ("-m", "alexnet_mp.train"),
            within=("ip", "netns", "exec", name),
            GLOO_SOCKET_IFNAME=card,
            OMP_NUM_THREADS="1",  # torchrun sets it for several processes alone
        )
        for name, card, address in zip(machines.names, machines.cards, machines.addresses)
    ]


@pytest.mark.parametrize(
    "how, flags", [(["--towers", "apart"], ["--overlap", "off"]), ([], ["--microbatch", 3])], ids=["apart", "two pairs"]
)
def test_a_run_over_a_cable_is_that_of_one_process(how, flags, machines, data, tmp_path, without_bytes):
    processes = job(machines, data, tmp_path / "run", *EPOCHS, *flags, *how)
    (status, output, ours), (other_status, other_output, other_ours) = map(ended, processes)
    assert (status, other_status) == (0, 0) and ours == other_ours == []
    assert sorted(len(text) > 0 for text in (output, other_output)) == [False, True]  # rank 0 alone, on either machine
    assert_same_end(tmp_path / "run", run(data, tmp_path / "one", *EPOCHS, *flags))


def test_a_cable_that_is_cut_ends_both_sides_and_what_was_saved_is_whole(machines, data, tmp_path):
    """Also that whose torchrun waits for an answer of the store, which is on the other side."""
    for number, how in enumerate((["--towers", "apart"], ["--microbatch", 3])):
        script, out = tmp_path / "impatient.py", tmp_path / str(number)
        script.write_text(IMPATIENT)
        processes = job(machines, data, out, "--epochs", 5000, "--checkpoint-every", 5, *how, script=script)
        until_step(processes[0], out, 20)
        machines.cut()
        for status, _, ours in map(ended, processes):
            assert status != 0 and len(ours) == 1, ours
            assert "another process of this job ended, or can't be reached" in ours[0]
        assert checkpoints.listing(out)
        for directory in checkpoints.listing(out).values():
            checkpoint_format.verify(directory)
        assert lines(out)
        machines.mend()
