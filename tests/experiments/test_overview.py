"""The picture of all claims: what it shows, read off matplotlib's objects, and what it is held against."""

import pytest
from claim_records import BY_ID, THREE, of_study, record_of
from PIL import Image

from alexnet_mp import claims
from alexnet_mp.experiments import overview
from alexnet_mp.experiments.page import BEGIN, END
from alexnet_mp.experiments.paper_claims import CLAIMS
from alexnet_mp.experiments.records import write_record
from alexnet_mp.experiments.verdict import COMES_OUT, NO_VERDICT, OPPOSITE, Verdict, verdicts
from alexnet_mp.system.errors import UserError


def rows(*records):
    return overview.rows(verdicts({record["claim"]: [record] for record in records}, "nowhere"))


def test_all_that_goes_the_papers_way_lies_at_the_right():
    claim_rows = rows(of_study("lrn", 1.5), of_study("pretraining", -1.5, arms=["scratch", "fine_tuned"]))
    assert [(row.claim, row.what, row.word, row.paper) for row in claim_rows] == [
        ("lrn", "no lrn minus base", COMES_OUT, 1.4),
        ("pretraining", "scratch minus fine tuned", COMES_OUT, 1.7),  # the paper's is a fall
    ]
    for row in claim_rows:
        assert row.mean == pytest.approx(1.5, abs=0.1) and len(row.values) == 6
        assert row.interval[0] < row.mean < row.interval[1] and sum(row.interval) == pytest.approx(2 * row.mean)
    (row,) = rows(of_study("lrn", -1.5))
    assert row.word == OPPOSITE and row.mean < 0 < row.paper


def test_a_claim_of_every_arm_has_them_all_and_what_stands_beside_has_no_verdict():
    claim_rows = rows(of_study("depth", 1.0), of_study("dropout", 3.0), of_study("lrn", 1.5, seeds=2))
    assert [(row.claim, row.what, bool(row.word), row.paper) for row in claim_rows] == [
        ("lrn", "no lrn minus base", True, 1.4),
        ("dropout", "validation minus training error, no dropout minus base", True, None),
        ("dropout", "error, no dropout minus base", False, None),
        *(("depth", f"no conv{number} minus base", True, 2.0) for number in (2, 3, 4, 5)),
    ]
    assert claim_rows[0].word == NO_VERDICT


def test_what_is_no_comparison_in_points_of_the_study_is_left_out():
    elsewhere = record_of("difference", ["base", "no_lrn"], THREE)  # other pictures
    assert rows(elsewhere, of_study("order", 1.0), of_study("biases", 1.0), of_study("init", 1.0)) == []
    assert overview.rows({claim.id: Verdict("not run") for claim in CLAIMS}) == []


def test_it_shows_seeds_means_intervals_and_the_papers_figure():
    claim_rows = rows(of_study("lrn", 1.5), of_study("dropout", 3.0))
    (axes,) = overview.figure_of(claim_rows).axes
    for y, row in enumerate(claim_rows):
        lines = [line for line in axes.lines if len(line.get_ydata()) and all(at == y for at in line.get_ydata())]
        by_marker = {line.get_marker(): [float(x) for x in line.get_xdata()] for line in lines}
        assert by_marker.pop("|") == pytest.approx(row.values) and by_marker.pop("o") == pytest.approx([row.mean])
        # none where all values are equal, as the gaps of these dropout runs
        assert by_marker.pop("None", None) == (pytest.approx(row.interval) if row.interval else None)
        assert by_marker == ({"D": [row.paper]} if row.paper else {})
    assert [row.interval is None for row in claim_rows] == [False, True, False]
    assert [text.get_text() for text in axes.texts] == [
        "comes out, n = 6",
        "not to be told apart, n = 6",
        "no part of the verdict",
    ]
    small = overview.figure_of(rows(of_study("lrn", 0.08), of_study("depth", 1.0))).axes[0].texts
    assert [text.get_text() for text in small] == [
        "not to be told apart, n = 6\nsmaller here than the effect that would count",
        "comes out, n = 6",
        *["part of the same verdict, n = 6"] * 3,
    ]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [f"{row.claim}: {row.what}" for row in claim_rows] and axes.yaxis_inverted()
    assert axes.get_xlabel().endswith("to the right the direction that the plan wrote down")  # some are not the paper's


def test_half_of_the_papers_figure_would_count():
    for claim in CLAIMS:
        assert claim.points is None or claim.effect is None, claim.id
        assert (
            claim.points is None
            or str(claim.points).removesuffix(".0") in claim.paper
            or claim.id
            in (
                "colour",  # over 1 point
                "ensemble5",  # the difference of two errors that it names
                "ensemble7",
                "cifar-lrn",
                "cifar-local",
            )
        )
    assert BY_ID["lrn"].counts == 0.7 and BY_ID["dropout"].counts == 5 and BY_ID["order"].counts is None


def test_a_picture_of_other_records_is_told_and_drawn_anew(tmp_path, capsys):
    folder, pages = tmp_path / "records", [tmp_path / "README.md", tmp_path / "claims.md"]
    for page in pages:
        page.write_text(f"{BEGIN}\n{END}\n")
    words = ["table", "--readme", pages[0], "--details", pages[1], "--records", folder]
    picture = folder / overview.NAME

    def fails():
        capsys.readouterr()
        return claims.main([*words, "--check"]) == 1 and f"{picture} shows other records" in capsys.readouterr().out

    write_record(of_study("lrn", 1.5, seeds=5), folder)
    assert fails() and not picture.exists()
    for damage in (picture.unlink, lambda: picture.write_bytes(b"no picture")):
        assert claims.main([*words, "--write"]) == 0 == claims.main([*words, "--check"])
        assert all(f"](records/{overview.NAME})" in page.read_text() for page in pages)
        before = picture.read_bytes()
        with Image.open(picture) as image:
            assert image.mode == "P"
        assert claims.main([*words, "--write"]) == 0 and picture.read_bytes() == before
        damage()
        assert fails()
    picture.unlink()
    picture.mkdir()
    assert fails()
    with pytest.raises(UserError, match=f"cannot write .*{overview.NAME}.*; nothing was written"):
        claims.main([*words, "--write"])
    picture.rmdir()
    assert claims.main([*words, "--write"]) == 0
    write_record(of_study("lrn", 1.5), folder)
    assert fails()
    assert claims.main([*words, "--write"]) == 0 == claims.main([*words, "--check"])
