"""The plan on paper: its bytes against the ledger and by hand, and the page's table against the command."""

import runpy
import sys
from pathlib import Path

import pytest

from alexnet_mp import mini, paper
from alexnet_mp.recipes.one_weird_trick import owt2014
from alexnet_mp.recipes.shapes import crossings

ROOT = Path(__file__).parents[2]
PLAN = runpy.run_path(str(ROOT / "tools" / "scaling_plan.py"))


def test_the_page_has_what_the_command_prints(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scaling_plan.py"])
    PLAN["main"]()
    assert capsys.readouterr().out in (ROOT / "docs" / "scaling.md").read_text()


def test_a_pairs_bytes_are_the_ledgers():
    for recipe, batch in ((paper(), 128), (mini(), 5)):
        totals = {
            way: sum(size for _, to, _, size in crossings(recipe, batch) if to == way) for way in ("a->b", "b->a")
        }
        assert PLAN["towers"](recipe, batch) == max(totals.values())
    assert PLAN["towers"](paper(), 128) == pytest.approx(30.0e6, rel=1e-3)  # of 60.0 MB a step in both directions


def test_a_ring_by_hand():
    """Of n devices each sends n - 1 of n parts twice: to be summed, and to be told."""
    assert PLAN["ring"](1000, 1) == 0
    assert PLAN["ring"](1000, 2) == 4000
    assert PLAN["ring"](1000, 4) == 6000


def test_pairs_by_hand():
    """Two pairs: half of the crossings, and tower a's 32,531,112 parameters of four bytes once."""
    assert PLAN["pairs"](paper(), 128, 2) == pytest.approx(30.0e6 / 2 + 4 * 32_531_112, rel=1e-3)


def test_one_weird_trick_by_hand(capsys, monkeypatch):
    """Two pairs, four devices of 32 images each: of an image 256 maps of 6x6 and twice 4,096 units go to three others,
    and their gradients return; so do 1,000 sums, without a way back. The convolutions of both towers have 2,334,080
    parameters; the rest, 58.6 million, don't travel."""
    own = 32 * (2 * (256 * 6 * 6 + 2 * 4096) + 1000) * 4
    assert PLAN["owt"](paper(), 128, 2) == pytest.approx(1.5 * 4 * 2_334_080 + 3 * own, rel=1e-12)
    # Of a recipe of one tower two devices, with 256 images each of its own 512; convolutions of 2,469,696 parameters.
    own = 256 * (2 * (256 * 6 * 6 + 2 * 4096) + 1000) * 4
    assert PLAN["owt"](owt2014(), 512, 2) == pytest.approx(4 * 2_469_696 + own, rel=1e-12)
    monkeypatch.setattr(sys, "argv", ["scaling_plan.py", "--recipe", "owt2014", "--pairs", "2"])
    PLAN["main"]()
    assert f"| 2 | owt | {(4 * 2_469_696 + own) / 1e6:.1f} |" in capsys.readouterr().out


def test_the_last_count_that_pays():
    """Over PCIe 2.0 all pairs pay from 28.78 ms on, or none; of owt in a step of half a millisecond two alone."""
    for milliseconds, words in ((28.7, "pairs none, owt 64"), (28.9, "pairs 128"), (0.5, "owt 2 (")):
        line = PLAN["last_counts"](paper(), 128, [1, 2, 4, 8, 64, 128], milliseconds)[0]
        assert line.startswith("- PCIe 2.0 x16 (2012): pairs ") and words in line, line


def test_counts_that_training_refuses_have_no_row_and_wrong_numbers_are_refused(capsys, monkeypatch):
    """An image for each pair, and with owt for each device; and of the 1,000 classes one for each device."""
    for batch, count, schemes in ((128, 64, {"pairs", "owt"}), (128, 128, {"pairs"}), (4096, 512, {"pairs"})):
        assert PLAN["traffic"](paper(), batch, count).keys() == schemes
    for arguments, words in (
        (["--batch", "0"], "at least 1"),
        (["--pairs", "0,1"], "at least 1"),
        (["--pairs", "x"], "as in 1,2,4"),
        (["--pairs", "129"], "128 pairs at most"),
    ):
        monkeypatch.setattr(sys, "argv", ["scaling_plan.py", *arguments])
        with pytest.raises(SystemExit) as system_exit:
            PLAN["main"]()
        assert system_exit.value.code == 2 and words in capsys.readouterr().err
