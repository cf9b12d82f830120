"""What a cycle decides and compares on, and which looks count as fresh evidence: whole cycles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import BATCH, Domain
from relabel import relabel
from sample_gts import write_recordings

from pipeline_orchestrator import run_orchestrator
from retraining.commands.rollback import rollback
from retraining.commands.status import status
from retraining.outcome import Outcome
from retraining.registry import open_registry

pytestmark = pytest.mark.usefixtures("fast_training")

SettingsOf = Callable[..., Any]
History = Callable[..., tuple[Path, Any]]


def limit_of(verdict: Mapping[str, Any]) -> float:
    """Return the p-value that was needed."""
    (criterion,) = [one for one in verdict["criteria"] if one["name"].startswith("p-value")]
    return float(criterion["limit"])


def move_away(folder: Path) -> None:
    """Leave no recording in a folder."""
    for path in folder.glob("*.csv"):
        path.unlink()


class TestWindows:
    """What is new decides; what is newest is compared."""

    @pytest.mark.slow
    def test_a_bad_season_is_not_hidden_by_healthy_files(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """Three times as many judged files of the old season lie there; both means are told."""
        move_away(home / "new_gts")
        for night in range(3):
            write_recordings(home / "new_gts", BATCH, "old", seed=20 + night, prefix=f"n{night}")
            result = run_orchestrator(settings_of(home))
            assert result.outcome is Outcome.HEALTHY
        assert f"the newest {BATCH} of {3 * BATCH} new recordings (" in result.message
        assert status(settings_of(home), None)["judged"] == 3 * BATCH
        write_recordings(home / "new_gts", BATCH, "new", seed=2, prefix="season")
        state = status(settings_of(home), None)
        assert (state["judged"], state["unseen"]) == (3 * BATCH, BATCH)
        assert state["last_verdict"] == Outcome.HEALTHY.value
        result = run_orchestrator(settings_of(home, window=BATCH))
        assert result.outcome is Outcome.PROMOTED
        assert (result.facts["recordings"], result.facts["decided_on"]) == (4 * BATCH, BATCH)
        assert result.facts["verdict"]["n_recordings"] == BATCH
        decide = {one.name for one in result.recordings if one.window == "decides"}
        assert decide == {f"season_{number:02}.csv" for number in range(1, BATCH + 1)}
        assert not [*(home / "new_gts").glob("*.csv")]

    @pytest.mark.slow
    def test_older_healthy_recordings_tell_whether_it_forgets(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """They are beside the window, and no less evidence than those in used_gts/."""
        write_recordings(home / "new_gts", BATCH, "old", seed=20, prefix="later")
        first = settings_of(home, threshold=1000, window=BATCH)
        assert run_orchestrator(first).outcome is Outcome.HEALTHY
        write_recordings(home / "new_gts", BATCH, "new", seed=21, prefix="newest")
        result = run_orchestrator(settings_of(home, window=BATCH))
        (remembers,) = [
            one for one in result.facts["verdict"]["criteria"] if one["name"].startswith("loss on")
        ]
        assert f"on {2 * BATCH} old recordings" in remembers["explanation"]
        assert "worse" in remembers["explanation"]

    def test_a_night_is_all_in_or_all_out(self, home: Path, settings_of: SettingsOf) -> None:
        """One recording more than before: the newest night alone is too few."""
        assert run_orchestrator(settings_of(home, threshold=1000)).outcome is Outcome.HEALTHY
        write_recordings(home / "new_gts", 1, "new", seed=9, prefix="late")
        result = run_orchestrator(settings_of(home, threshold=1000))
        assert result.facts["decided_on"] == BATCH + 1


class TestLooks:
    """What counts as fresh evidence, and what does not."""

    @pytest.fixture
    def lost(
        self, history_of: History, domain: Domain, settings_of: SettingsOf, tmp_path: Path
    ) -> Path:
        """Return a home whose first challenger lost."""

        def lose(home: Path) -> Any:
            return run_orchestrator(settings_of(home, min_improvement=90))

        home, result = history_of(domain, "a lost look", lose, tmp_path / "home")
        assert result.outcome is Outcome.NOT_PROMOTED
        return home

    @pytest.mark.slow
    def test_another_setting_or_seed_is_a_repeated_look_and_half_as_good(
        self, lost: Path, settings_of: SettingsOf
    ) -> None:
        """It is said; deleting the losers, or renaming the files, changes nothing."""
        settings = settings_of(lost, min_improvement=91)
        open_registry(settings).versions.delete(2)
        for path in (lost / "new_gts").glob("new_*.csv"):
            path.rename(path.with_name(f"renamed_{path.name}"))
        verdict = run_orchestrator(settings).facts["verdict"]
        assert (verdict["repeated_looks"], limit_of(verdict)) == (1, 0.025)
        result = run_orchestrator(settings_of(lost, min_improvement=92, random_state=7))
        assert limit_of(result.facts["verdict"]) == 0.0125
        assert "a repeated look: these recordings were compared 2 times before" in result.message

    @pytest.mark.slow
    def test_a_corrected_recording_is_no_fresh_one(
        self, lost: Path, settings_of: SettingsOf
    ) -> None:
        """Neither for the trigger nor for the level."""
        relabel(lost / "new_gts" / "new_01.csv", lost / "new_gts" / "again.csv")
        same = settings_of(lost, min_improvement=90)
        assert run_orchestrator(same).outcome is Outcome.ALREADY_JUDGED
        verdict = run_orchestrator(same, force=True).facts["verdict"]
        assert verdict["repeated_looks"] == 1

    def test_the_same_look_taken_again_is_no_other_one(
        self, lost: Path, settings_of: SettingsOf
    ) -> None:
        """As after a crash: the same recordings, settings and code."""
        verdict = run_orchestrator(settings_of(lost, min_improvement=90), force=True).facts[
            "verdict"
        ]
        assert (verdict["repeated_looks"], limit_of(verdict)) == (0, 0.05)

    @pytest.mark.slow
    def test_saved_anew_after_it_was_taken_away_it_is_no_fresh_one(
        self, lost: Path, settings_of: SettingsOf
    ) -> None:
        """Its observations arrived before, under other bytes."""
        path = lost / "new_gts" / "new_01.csv"
        rows = pd.read_csv(path)
        path.unlink()
        write_recordings(lost / "new_gts", 1, "new", seed=9, prefix="late")
        settings = settings_of(lost, min_improvement=91)
        assert run_orchestrator(settings).facts["verdict"]["repeated_looks"] == 0
        (lost / "new_gts" / "late_01.csv").unlink()
        rows.iloc[::-1].to_csv(lost / "new_gts" / "anew.csv", index=False)
        settings = settings_of(lost, min_improvement=92)
        assert run_orchestrator(settings).facts["verdict"]["repeated_looks"] == 2

    @pytest.mark.slow
    def test_without_its_journal_a_home_reads_the_looks_from_its_runs(
        self, lost: Path, settings_of: SettingsOf
    ) -> None:
        """They name the recordings, too."""
        (lost / ".pipeline_journal").unlink()
        result = run_orchestrator(settings_of(lost, min_improvement=91))
        assert result.facts["verdict"]["repeated_looks"] == 1

    @pytest.mark.parametrize("content", [None, b"{"])
    def test_a_look_that_cannot_be_read_counts_against_the_challenger(
        self,
        lost: Path,
        settings_of: SettingsOf,
        content: bytes | None,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Deleted or damaged in MLflow, after the journal was lost: with a warning."""
        (look,) = (lost / "mlflow_server").rglob("look.json")
        look.unlink() if content is None else look.write_bytes(content)
        (lost / ".pipeline_journal").unlink()
        verdict = run_orchestrator(settings_of(lost, min_improvement=91)).facts["verdict"]
        assert (verdict["repeated_looks"], limit_of(verdict)) == (1, 0.025)
        (said,) = [one.message for one in caplog.records if one.levelname == "WARNING"]
        assert said.startswith("look.json of run ")
        assert "counts as a look at the same recordings" in said

    @pytest.mark.slow
    def test_fresh_recordings_after_a_rollback_have_the_whole_level(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """However many looks there were."""
        settings = settings_of(home)
        assert run_orchestrator(settings).outcome is Outcome.PROMOTED
        rollback(settings, None)
        write_recordings(home / "new_gts", BATCH, "new", seed=9, prefix="fresh")
        verdict = run_orchestrator(settings).facts["verdict"]
        assert verdict["repeated_looks"] == 0
        assert limit_of(verdict) == 0.05

    @pytest.mark.slow
    def test_better_and_still_above_the_threshold_is_said(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """In the verdict and in `status`, which exits 1 until it is judged again."""
        result = run_orchestrator(settings_of(home, threshold=0.001))
        assert result.outcome is Outcome.PROMOTED
        assert "still above the threshold of 0.001 %" in result.message
        (problem,) = status(settings_of(home), None)["problems"]
        assert problem.startswith("above: version 2 was promoted at ")
        write_recordings(home / "new_gts", BATCH, "new", seed=9, prefix="fresh")
        assert run_orchestrator(settings_of(home, threshold=1000)).outcome is Outcome.HEALTHY
        assert status(settings_of(home), None)["problems"] == []
