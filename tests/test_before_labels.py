"""The figures of docs/before_labels_figures.md: their engine, and a sample of each."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import before_labels
import numpy as np
import pandas as pd
import pytest
import triage_replays
import unlabelled_lives
from conftest import ROOT
from graded_seasons import OLD, Production, described
from triage_replays import AT_RANDOM, TRIAGE, Checked, Replay, Rules
from unlabelled_lives import HEALTHY, NIGHTS, STRONG, Pool, alarms, at_confidence, estimates

from retraining.calibration import Calibration, Estimate

PAGE = ROOT / "docs" / "before_labels_figures.md"
SURE = Calibration(n_recordings=30, n_sessions=30, scale=0.5, scale_deviation=0.02, scatter=0.1)


class TestLives:
    """A life alarms as the product does."""

    def test_a_change_is_met_by_the_window_of_the_newest(self) -> None:
        """5 % for 60 nights, then 20 %: the estimate is all of the new ones after 15 of them."""
        before, after = Pool(np.full(9, 10.0), np.full(9, 5.0)), Pool(np.full(9, 40.0), np.zeros(9))
        found = estimates(SURE, before, after, np.random.default_rng(0))
        assert len(found) == NIGHTS
        assert [round(one.mean) for one in (found[0], found[59], found[-1])] == [5, 5, 20]
        assert 15 <= found[-1].n_recordings <= 17
        early, late = alarms(found, changes=True)
        assert early == math.inf
        assert 1 < late <= 15
        assert alarms(found, changes=False) == (60 + late, math.inf)

    def test_the_interval_of_another_confidence_is_that_of_the_product(self) -> None:
        """Both ways; at 0 it is the mean."""
        x = [4.0, 9.0, 12.0]
        wide, narrow = SURE.mean_error(x), SURE.mean_error(x, confidence=0.5)
        assert at_confidence(wide, 0.5, 30).low == pytest.approx(narrow.low)
        assert at_confidence(wide, 0.0, 30).low == pytest.approx(wide.mean)
        nothing = Estimate(0.0, 0.0, 0.0, 3)
        assert at_confidence(nothing, 0.5, 30) == nothing


class TestReplays:
    """A replay checks, weighs and judges as the product does."""

    @pytest.mark.slow
    def test_both_orders_check_a_degraded_season_until_production_is_replaced(self) -> None:
        """From the first look on; what triage lists is partly drawn at random."""
        tables = described(OLD, 12, 1)
        season = [Checked.of(one) for one in described(STRONG.after or OLD, 20, 2)]
        rules = Rules(a_night=5, min_new_files=10, window=20)
        production = Production.trained_on(tables)
        replay = Replay([Checked.of(one) for one in tables], season, production, rules, 3)
        for order in (TRIAGE, AT_RANDOM):
            done = replay.run(order)
            assert done.truth > 15
            assert done.retrainings <= done.looks <= 3
            assert done.labels in (10, 15, 20)
            assert math.isnan(done.chosen_alone) is (order == AT_RANDOM)
            assert (done.measured == done.unweighted) is (order == AT_RANDOM)

    def test_a_healthy_production_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is trained where nothing is over the threshold; all are checked."""
        monkeypatch.setattr(triage_replays, "out_of_fold", None)  # nobody may call it
        tables = described(OLD, 12, 1)
        season = [Checked.of(one) for one in described(OLD, 12, 2)]
        rules = Rules(a_night=4, min_new_files=8, threshold=90.0)
        learnt = [Checked.of(one) for one in tables]
        production = Production.trained_on(tables)
        done = Replay(learnt, season, production, rules, 3).run(TRIAGE)
        assert dataclasses.replace(done, truth=0, measured=0, unweighted=0, chosen_alone=0) == (
            triage_replays.Replayed(12, 0, looks=2, measured=0, unweighted=0, chosen_alone=0)
        )


class TestCorruptions:
    """What is done to a recording."""

    @pytest.mark.parametrize("name", before_labels.CORRUPTIONS)
    def test_it_changes_the_recording(self, name: str) -> None:
        """And keeps its columns."""
        rows, other = OLD.draw((1, 1)), OLD.draw((1, 2))
        make, _ = before_labels.CORRUPTIONS[name]
        changed = make(rows, other)
        assert set(changed) == set(rows)
        assert not changed.equals(rows)
        if "two recordings" in name:
            assert changed["object_id"].nunique() == sum(
                one["object_id"].nunique() for one in (rows, other)
            )
            assert len(changed.drop_duplicates(["object_id", "frames"])) == len(changed)

    def test_numbers_anew_go_forward_in_time(self) -> None:
        """As a tracker numbers objects."""
        make, _ = before_labels.CORRUPTIONS["two recordings over one another, numbered anew"]
        begins = make(OLD.draw((1, 1)), OLD.draw((1, 2))).groupby("object_id")["frames"].min()
        assert begins.is_monotonic_increasing
        assert isinstance(begins, pd.Series)


class TestPage:
    """docs/before_labels_figures.md."""

    def test_every_section_stands_there(self) -> None:
        """With what was asked, as of its last run."""
        text = PAGE.read_text(encoding="utf-8")
        for title in before_labels.TITLES.values():
            assert text.count(f"\n## {title}\n") == 1
        assert "at least 0.7" in text
        assert text.count("python tests/tools/before_labels.py") == len(before_labels.TITLES)


@pytest.mark.slow
def test_a_small_sample_of_what_needs_no_recordings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make before-labels` measures all of it; only what the page misses, too, may be missed."""
    monkeypatch.setattr(before_labels, "RECORDINGS", tmp_path / "none")
    monkeypatch.setattr(before_labels, "WORLDS", (HEALTHY, STRONG))
    monkeypatch.setattr(before_labels, "HELD_OUT", 6)
    monkeypatch.setattr(unlabelled_lives, "POOL", 40)
    monkeypatch.setattr(triage_replays, "POOL", 100)
    words = ["--calibrations", "4", "--productions", "2", "--lives", "4", "--replays", "1"]
    words += ["--healthy-replays", "1", "--replayed-productions", "1", "--jobs", "1"]
    before_labels.main([*words, "--errors-allowed", "4"])
    printed = capsys.readouterr().out
    assert printed.count("left out, there are no real recordings") == 2
    assert (
        re.findall(r"^## (.*)$", printed, re.MULTILINE) == list(before_labels.TITLES.values())[2:]
    )
    missed = re.findall(r"^\| ([^|]*) \|.*\*\*no\*\* \|$", printed, re.MULTILINE)
    # One replay proves nothing of the others.
    assert all("one another" in name or "below" in name or "degraded" in name for name in missed)
