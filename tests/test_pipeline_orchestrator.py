"""The cycle from trigger to archive, on real files and a real store."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import (
    BATCH,
    FAST,
    FULL_SIZE,
    OLD_SEASON_FILES,
    QUICK_PROCESS,
    ROOT,
    Domain,
    both_modules,
    both_modules_in_time,
    copy_home,
    make_home,
    script,
    write_mislabelled,
)
from resaved import cells
from sample_gts import make_recording, write_recordings

from pipeline_orchestrator import main, run_orchestrator, should_retrain
from retraining import cross_validation, cycle, intake, notices
from retraining.commands.history import history
from retraining.commands.requeue import requeue
from retraining.commands.rollback import rollback
from retraining.commands.status import as_lines, status
from retraining.cycle import Monitoring
from retraining.errors import PipelineError, TryLaterError
from retraining.outcome import Outcome
from retraining.recorder import Recorder
from retraining.registry import Registry, open_registry
from retraining.registry.judgements import Judgements
from retraining.registry.production import Production
from retraining.registry.stored_models import StoredModels
from retraining.training import load_training_module

SettingsOf = Callable[..., Any]
History = Callable[..., tuple[Path, Any]]

pytestmark = pytest.mark.usefixtures("fast_training")


def snapshot(home: Path) -> dict[str, tuple[str, int]]:
    """Return path -> (SHA-256, modification time) of every file of a home."""
    return {
        str(path.relative_to(home)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(home.rglob("*"))
        if path.is_file()
    }


def contents(folder: Path) -> list[str]:
    """Return the hashes of the CSV files of a folder."""
    return sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.csv"))


def registry_of(settings: Any) -> Registry:
    """Open the store of a home."""
    return open_registry(settings)


def runs_of(settings: Any, name: str) -> list[Any]:
    """Return the finished runs of that name as MLflow has them, the newest first."""
    return registry_of(settings).runs._finished(name, {})


def client_of(settings: Any) -> Any:
    """Return MLflow's client of a store."""
    return registry_of(settings).runs.connection.client


def counts(settings: Any) -> tuple[int, int]:
    """Return the numbers of runs and versions in a store."""
    import mlflow

    registry_of(settings)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(settings.model_name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    return len(runs), len(client.search_model_versions(f"name = '{settings.model_name}'"))


class TestTrigger:
    """Step 1."""

    def test_too_few_files_wait(self, home: Path, settings_of: SettingsOf) -> None:
        """One file below the trigger: say how many are waiting, touch nothing."""
        result = run_orchestrator(settings_of(home, min_new_files=BATCH + 1))
        assert result.outcome is Outcome.WAITING
        assert result.message == f"waiting: {BATCH} of {BATCH + 1} new ground truth files"
        assert len(list((home / "new_gts").glob("*.csv"))) == BATCH

    def test_nothing_heavy_is_imported_below_the_trigger(self, tmp_path: Path) -> None:
        """A night without news imports neither mlflow, sklearn, pandas nor numpy."""
        home = make_home(tmp_path / "home")
        code = (
            "import sys, pipeline_orchestrator as o\n"
            f"status = o.main(['--home', {str(home)!r}])\n"
            "heavy = {'mlflow', 'sklearn', 'pandas', 'numpy', 'scipy'} & set(sys.modules)\n"
            "sys.exit(f'{status} {heavy}' if status or heavy else 0)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "waiting: 0 of 15 new ground truth files\n"

    def test_invalid_files_do_not_count(self, home: Path, settings_of: SettingsOf) -> None:
        """A bad file goes to rejected/ with its reason; the good ones wait for more."""
        bad = sorted((home / "new_gts").glob("*.csv"))[0]
        bad.write_text("object_id,frames\n1,2\n")
        result = run_orchestrator(settings_of(home))
        assert result.message == f"waiting: {BATCH - 1} of {BATCH} new ground truth files"
        reason = json.loads((home / "new_gts/rejected" / f"{bad.name}.reason.json").read_text())
        assert "lacks the columns" in reason["what"]
        assert (home / "new_gts/rejected" / bad.name).read_text() == "object_id,frames\n1,2\n"
        assert counts(settings_of(home)) == (2, 1)

    @both_modules_in_time
    def test_a_copy_of_a_used_recording_is_refused_as_a_duplicate(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """Neither model may be judged on what it was trained on."""
        used = sorted((home / "used_gts").glob("*.csv"))[0]
        shutil.copy(used, home / "new_gts" / "swapped.csv")
        run_orchestrator(settings_of(home, threshold=1000))
        reason = (home / "new_gts/rejected/swapped.csv.reason.json").read_text()
        assert "duplicate" in reason
        assert f"delete it: used_gts/{used.name} holds the same bytes" in reason

    @both_modules_in_time
    def test_the_only_copy_of_a_used_recording_is_archived(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """It is no evidence either, but nobody is told to delete it."""
        used = sorted((home / "used_gts").glob("*.csv"))[0]
        content = used.read_bytes()
        used.rename(home / "new_gts" / "swapped.csv")
        result = run_orchestrator(settings_of(home, threshold=1000))
        assert result.notes == ("archived: swapped.csv is what production learnt",)
        assert (home / "used_gts" / "swapped.csv").read_bytes() == content
        assert not (home / "new_gts" / "rejected").exists()
        assert "swapped.csv" not in {one.name for one in result.recordings}

    def test_a_missing_folder_is_named(self, tmp_path: Path, settings_of: SettingsOf) -> None:
        """A wrong home is an error, not a new empty pipeline."""
        with pytest.raises(PipelineError, match="new_gts is not a folder"):
            run_orchestrator(settings_of(tmp_path))
        assert list(tmp_path.iterdir()) == []

    def test_a_half_written_note_does_not_stay(
        self, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """Killed before the state file had its name: the next night removes the piece."""
        home = make_home(tmp_path / "home")
        piece = home / ".pipeline-abc.tmp"
        piece.write_text("{")
        run_orchestrator(settings_of(home))
        assert not piece.exists()


class TestHealthyProduction:
    """Steps 2 and 3 without retraining."""

    def test_a_healthy_model_stays(self, home: Path, settings_of: SettingsOf) -> None:
        """Below the threshold nothing is trained and no file is moved."""
        settings = settings_of(home, threshold=1000)
        result = run_orchestrator(settings)
        assert result.outcome is Outcome.HEALTHY
        assert registry_of(settings).production.number() == 1
        assert len(list((home / "new_gts").glob("*.csv"))) == BATCH

    def test_a_batch_larger_than_memory_is_scored_in_parts(
        self, home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Read again and scored one recording at a time: the same errors, to the last bit."""
        settings = settings_of(home, threshold=1000)
        expected = run_orchestrator(settings).facts
        monkeypatch.setattr(intake, "KEPT_ROWS", 0)
        monkeypatch.setattr(cycle, "PART_ROWS", 1)
        assert run_orchestrator(settings, force=True).facts == expected

    def test_the_run_tells_the_error_of_each_recording(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """`ModelMonitoring` carries metrics, table, dataset, tags and its outcome."""
        settings = settings_of(home, threshold=1000)
        result = run_orchestrator(settings)
        (run,) = runs_of(settings, "ModelMonitoring")
        metrics = run.data.metrics
        assert metrics["mean_error"] == pytest.approx(result.facts["mean_error"])
        assert metrics["mean_error_low"] <= metrics["mean_error"] <= metrics["mean_error_high"]
        assert metrics["recordings"] == BATCH
        assert run.data.tags["pipeline_outcome"] == "healthy"
        assert run.data.params["threshold"] == "1000.0"
        assert run.data.params["min_new_files"] == str(BATCH)
        assert "tracking_uri" not in run.data.params
        assert run.inputs.dataset_inputs[0].dataset.name == "new_gts"
        table = client_of(settings).load_table(
            run.info.experiment_id, "errors_by_recording.json", [run.info.run_id]
        )
        assert table["error"].mean() == pytest.approx(metrics["mean_error"])
        assert sorted(table["file"]) == sorted(p.name for p in (home / "new_gts").glob("*.csv"))

    def test_impossible_measurements_are_shown(
        self, home: Path, settings_of: SettingsOf, caplog: pytest.LogCaptureFixture
    ) -> None:
        """In the log once, and with the run; they are no reason to reject."""
        damaged = home / "new_gts" / "new_01.csv"
        rows = pd.read_csv(damaged)
        rows.loc[3:5, "aspect_ratio"] = 2.7e16
        rows.to_csv(damaged, index=False)
        note = f"aspect_ratio: 3 of {len(rows)} values missing or impossible"
        settings = settings_of(home, threshold=1000)
        run_orchestrator(settings)
        assert f"data quality: new_01.csv: {note}" in caplog.text
        (run,) = runs_of(settings, "ModelMonitoring")
        stored = registry_of(settings).runs.artifact(run.info.run_id, "data_quality.json")
        assert json.loads(stored or b"") == {"new_01.csv": note}
        caplog.clear()
        run_orchestrator(settings)
        assert "data quality" not in caplog.text

    def test_the_same_batch_is_not_judged_twice(self, home: Path, settings_of: SettingsOf) -> None:
        """Same batch, same champion, same settings: say so and write nothing."""
        settings = settings_of(home, threshold=1000)
        run_orchestrator(settings)
        before = counts(settings)
        result = run_orchestrator(settings)
        assert result.outcome is Outcome.ALREADY_JUDGED
        assert "healthy" in result.message
        assert counts(settings) == before
        assert run_orchestrator(settings, force=True).outcome is Outcome.HEALTHY
        other = settings_of(home, threshold=999)
        assert run_orchestrator(other).outcome is Outcome.HEALTHY


class TestPromotion:
    """Steps 4 to 7."""

    @pytest.fixture
    def promoted(
        self, history_of: History, domain: Domain, settings_of: SettingsOf, tmp_path: Path
    ) -> tuple[Path, Any, Any]:
        """Give a home after a promotion, its settings and the result."""

        def promote(home: Path) -> Any:
            return run_orchestrator(settings_of(home))

        home, result = history_of(domain, "promoted", promote, tmp_path / "home")
        return home, settings_of(home), result

    @both_modules
    def test_a_better_challenger_becomes_production(self, promoted: tuple[Path, Any, Any]) -> None:
        """The alias moves, the old version stays within reach, the files are archived."""
        home, settings, result = promoted
        assert result.outcome is Outcome.PROMOTED
        registry = registry_of(settings)
        assert (registry.production.number(), registry.production.previous_number()) == (2, 1)
        assert list((home / "new_gts").glob("*.csv")) == []
        assert len(list((home / "used_gts").glob("*.csv"))) == OLD_SEASON_FILES + BATCH
        assert not (home / ".pipeline_state.json").exists()
        assert list(home.glob(".training-*")) == []

    @both_modules_in_time
    def test_the_second_run_changes_nothing(self, promoted: tuple[Path, Any, Any]) -> None:
        """No file, run or version is new."""
        home, settings, _ = promoted
        before, runs_before = contents(home / "used_gts"), counts(settings)
        assert run_orchestrator(settings).outcome is Outcome.WAITING
        assert (contents(home / "used_gts"), counts(settings)) == (before, runs_before)

    @both_modules_in_time
    def test_the_version_tells_why(self, promoted: tuple[Path, Any, Any]) -> None:
        """Verdict, manifest and digests stand on the version, the details beside its run."""
        home, settings, result = promoted
        registry = registry_of(settings)
        version = registry.versions.get(2)
        assert version.tags["verdict"] == "promote"
        assert float(version.tags["p_value"]) <= 0.05
        assert set(registry.versions.manifest(version).names) == set(contents(home / "used_gts"))
        errors = registry.versions.out_of_fold_errors(version, load_training_module(settings))
        assert len(errors) == OLD_SEASON_FILES + BATCH
        criteria = result.facts["verdict"]["criteria"]
        assert [one["outcome"] for one in criteria].count("failed") == 0
        assert {one["outcome"] for one in criteria} == {"passed", "not applicable"}

    def test_the_runs_are_named_and_ended(self, promoted: tuple[Path, Any, Any]) -> None:
        """One run each for monitoring, retraining and promotion, all finished."""
        _, settings, _ = promoted
        for name, number in (
            ("ModelMonitoring", 1),
            ("ModelRetraining", 1),
            ("ModelPromotion", 2),
            ("Registering Initial Production Model", 1),
        ):
            assert len(runs_of(settings, name)) == number, name
        assert counts(settings) == (5, 2)

    @pytest.mark.slow
    def test_production_loads_elsewhere(
        self, promoted: tuple[Path, Any, Any], tmp_path: Path
    ) -> None:
        """In another folder and process the model predicts for raw rows, from its own code."""
        _, settings, _ = promoted
        make_recording(77, "new").to_csv(tmp_path / "raw.csv", index=False)
        code = (
            "import mlflow, pandas as pd\n"
            f"mlflow.set_tracking_uri({settings.store_uri!r})\n"
            f"model = mlflow.sklearn.load_model('models:/{settings.model_name}@production')\n"
            "rows = pd.read_csv('raw.csv').drop(columns='ground_truth')\n"
            "verdict = model.predict(rows)\n"
            "assert verdict.dtype == bool and verdict.shape == (len(rows),)\n"
            "print(verdict.mean())\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert 0.3 < float(done.stdout) < 1

    def test_history_and_status_tell(self, promoted: tuple[Path, Any, Any]) -> None:
        """Every change of production, and the state of things."""
        _, settings, _ = promoted
        changes = history(settings)
        assert [(one["from"], one["to"]) for one in changes] == [(1, 2), (None, 1)]
        assert changes[0]["mean_error_before"] > changes[0]["mean_error_after"]
        assert changes[0]["who"].endswith("unattended")
        state = status(settings, max_age_hours=1)
        assert (state["production"], state["waiting"], state["problems"]) == (2, 0, [])
        assert state["cycles"][0]["outcome"] == "promoted"
        text = "\n".join(as_lines(state))
        assert text.startswith("production: version 2 since ")
        assert "mean error, oldest first: █ " in text

    def test_history_answers_for_a_time(
        self, promoted: tuple[Path, Any, Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Which version was production then; none before the first; the alias moved by hand."""
        home, settings, _ = promoted
        changes = history(settings)
        capsys.readouterr()
        for at, found in [
            (changes[0]["at"], "version 2"),
            (changes[1]["at"], "version 1"),
            ("2000-01-01T12:00", "none"),
        ]:
            assert main(["history", "--at", at, "--home", str(home)]) == 0
            assert capsys.readouterr().out == f"production at {at}: {found}\n"
        assert main(["history", "--at", "yesterday", "--home", str(home)]) == 2
        client_of(settings).set_registered_model_alias(settings.model_name, "production", "1")
        assert main(["history", "--home", str(home)]) == 0
        assert capsys.readouterr().out.startswith("time unknown  2 -> 1  unrecorded")
        assert main(["history", "--at", changes[0]["at"], "--home", str(home)]) == 0
        said = "version 2, or 1: the alias was moved outside this pipeline, at an unknown time"
        assert capsys.readouterr().out.endswith(f"{said}\n")

    def test_rollback_restores_the_version_before(self, promoted: tuple[Path, Any, Any]) -> None:
        """Back to version 1, recorded; and forth again by number."""
        _, settings, _ = promoted
        assert "version 1 is production" in rollback(settings, None)
        registry = registry_of(settings)
        assert (registry.production.number(), registry.production.previous_number()) == (1, 2)
        assert "version 2" in rollback(settings, 2)
        assert "nothing changed" in rollback(settings, 2)
        assert history(settings)[0]["why"] == "rollback from version 1"
        assert registry.versions.get(2).tags["rolled_back"] == "rollback from version 2"

    def test_a_rolled_back_version_is_not_promoted_by_the_same_batch(
        self, promoted: tuple[Path, Any, Any]
    ) -> None:
        """Even if somebody puts its files back into new_gts/."""
        home, settings, _ = promoted
        rollback(settings, None)
        for path in (home / "used_gts").glob("new_*.csv"):
            path.rename(home / "new_gts" / path.name)
        result = run_orchestrator(settings)
        assert result.outcome is Outcome.ALREADY_JUDGED
        assert "version 2, was promoted and rolled back" in result.message
        assert registry_of(settings).production.number() == 1

    def test_a_damaged_version_is_not_rolled_back_to(
        self, promoted: tuple[Path, Any, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Production stays; the message names the version."""
        home, settings, _ = promoted
        registry = registry_of(settings)
        for model in (home / "mlflow_server/artifacts").rglob("model.skops"):
            model.write_bytes(model.read_bytes() + b"x")
        with pytest.raises(PipelineError, match="no previous production version that can be used"):
            rollback(settings, None)
        assert "version 1 is no way back: the files of version 1 are not those" in caplog.text
        assert (registry.production.number(), registry.production.previous_number()) == (2, 1)

    def test_a_rollback_needs_no_manifest_of_what_it_leaves(
        self, promoted: tuple[Path, Any, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        """A failed cycle left its note, and production lost the list of its files."""
        home, settings, _ = promoted
        (home / ".pipeline_state.json").write_text('{"cycle_id": "dead"}')
        registry = registry_of(settings)
        run = registry.runs.connection.client.get_run(registry.versions.get(2).run_id)
        Path(run.info.artifact_uri.removeprefix("file://"), "training_files.json").unlink()
        with pytest.raises(PipelineError, match=r"training_files.json of version 2 is missing"):
            write_recordings(home / "new_gts", BATCH, "new", seed=4, prefix="late")
            run_orchestrator(settings)
        assert "nothing archived, the next start tries again" in caplog.text
        assert "version 1 is production" in rollback(settings, None)
        assert not (home / ".pipeline_state.json").exists()

    def test_a_store_that_fails_after_the_alias_moved(
        self, promoted: tuple[Path, Any, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The change did happen: the next run completes the history and tells of it."""
        home, settings, _ = promoted
        command, told = recorder(home)
        settings = dataclasses.replace(settings, on_promotion=command)
        registry = registry_of(settings)

        def fail(*_: Any) -> None:
            raise OSError("the store is gone")

        with monkeypatch.context() as patch, pytest.raises(OSError, match="is gone"):
            patch.setattr(type(registry.runs.connection.client), "set_model_version_tag", fail)
            rollback(settings, None)
        assert registry.production.number() == 1
        assert run_orchestrator(settings).outcome is Outcome.WAITING
        newest = history(settings)[0]
        assert (newest["event"], newest["from"], newest["to"]) == ("rollback", 2, 1)
        assert [one["event"] for one in told()] == ["rollback"]

    def test_rollback_brings_the_same_predictions_back(
        self,
        promoted: tuple[Path, Any, Any],
        registered_template: Path,
        settings_of: SettingsOf,
        figure: Callable[[str, Any], None],
    ) -> None:
        """What production says after a rollback is what it said before the promotion."""
        _, settings, _ = promoted
        began = time.monotonic()
        rollback(settings, None)
        figure("seconds for a rollback beyond imports", f"{time.monotonic() - began:.2f}")
        rows = make_recording(78, "new").drop(columns="ground_truth").assign(file="a.csv")
        said = []
        for one in (settings, settings_of(registered_template)):
            registry = registry_of(one)
            model = registry.models.load(
                registry.production.champion(), load_training_module(settings)
            )
            said.append(model.predict(rows).tolist())
        assert said[0] == said[1]

    def test_same_names_with_other_content_are_kept(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """An archived file never overwrites another of its name."""
        new = sorted((home / "new_gts").glob("*.csv"))[0]
        new.rename(home / "new_gts" / "old_01.csv")
        before = contents(home / "used_gts") + contents(home / "new_gts")
        assert run_orchestrator(settings_of(home)).outcome is Outcome.PROMOTED
        assert contents(home / "used_gts") == sorted(before)
        assert (home / "used_gts" / "old_01-1.csv").exists()


class TestDecide:
    """Step 3."""

    @pytest.mark.parametrize(
        ("decide", "mean_error", "low", "retrain"),
        [
            ("point", 10.0, 8.0, False),
            ("point", 10.1, 8.0, True),
            ("point", float("nan"), 8.0, True),
            ("bound", 10.1, 8.0, False),
            ("bound", 12.0, 10.1, True),
        ],
    )
    def test_the_mean_or_the_lower_end_decides(
        self, decide: str, mean_error: float, low: float, retrain: bool
    ) -> None:
        """A missing error is never healthy."""
        monitoring = Monitoring(pd.DataFrame(), mean_error, low, 14.0, mean_of_all=9.0)
        assert should_retrain(monitoring, 10.0, decide) is retrain

    @pytest.mark.slow
    def test_a_bound_above_the_mean_error_waits(self, home: Path, settings_of: SettingsOf) -> None:
        """The verdict names the interval, and the other way to decide is another question."""
        settings = settings_of(home, threshold=25)
        bound = settings_of(home, threshold=25, decide="bound")
        result = run_orchestrator(bound)
        assert result.outcome is Outcome.HEALTHY
        low, high = result.facts["mean_error_interval"]
        assert low < 25 < result.facts["mean_error"] < high
        assert f"(95 % interval {low:.1f} to {high:.1f})" in result.message
        assert "the lower end may be at most 25 %" in result.message
        # So near to the threshold, hardly any swap of errors leaves production above it.
        result = run_orchestrator(settings)
        assert result.outcome is Outcome.NOT_PROMOTED
        assert "given that production was over its threshold" in result.message


class TestNoPromotion:
    """A challenger that is not better."""

    @both_modules_in_time
    def test_a_loser_stays_a_challenger(self, home: Path, settings_of: SettingsOf) -> None:
        """Registered with its verdict, files stay, production stays; then nothing is repeated."""
        settings = settings_of(home, min_improvement=90)
        result = run_orchestrator(settings)
        assert result.outcome is Outcome.NOT_PROMOTED
        assert "NOT_BETTER" in result.message
        registry = registry_of(settings)
        assert registry.production.number() == 1
        assert registry.versions.get(2).tags["verdict"] == "reject"
        assert len(list((home / "new_gts").glob("*.csv"))) == BATCH
        before = counts(settings)
        again = run_orchestrator(settings)
        assert again.outcome is Outcome.ALREADY_JUDGED
        assert "version 2" in again.message
        assert counts(settings) == before

    @pytest.mark.slow
    @pytest.mark.parametrize(("n_sessions", "promoted"), [(3, False), (BATCH, True)])
    def test_sessions_count_in_place_of_recordings(
        self, home: Path, settings_of: SettingsOf, n_sessions: int, *, promoted: bool
    ) -> None:
        """A batch of three sessions promotes nothing; one of a session for each recording does."""
        for number, path in enumerate(sorted((home / "new_gts").glob("*.csv"))):
            rows = pd.read_csv(path).assign(session=f"day {number % n_sessions}")
            rows.to_csv(path, index=False)
        settings = settings_of(home)
        result = run_orchestrator(settings)
        verdict = result.facts["verdict"]
        assert (verdict["n_recordings"], verdict["n_sessions"]) == (BATCH, n_sessions)
        assert verdict["promote"] is promoted
        (enough,) = [one for one in verdict["criteria"] if "models differ" in one["name"]]
        if promoted:
            assert enough["name"] == "recordings on which the models differ"
            return
        assert verdict["reasons"] == ["TOO_FEW_RECORDINGS", "NOT_SIGNIFICANT"]
        assert "the models differ on 3 sessions; below 5 no test can tell" in result.message
        assert "a gain of this size needs about" in result.message
        assert result.message.count(" sessions") >= 2

    @pytest.mark.slow
    def test_a_new_recording_asks_again(self, home: Path, settings_of: SettingsOf) -> None:
        """More evidence: the batch is another one, and the look as good as the first."""
        settings = settings_of(home, min_improvement=90)
        limits = [run_orchestrator(settings).facts["verdict"]["criteria"][3]["limit"]]
        write_recordings(home / "new_gts", 1, "new", seed=9, prefix="late")
        limits.append(run_orchestrator(settings).facts["verdict"]["criteria"][3]["limit"])
        assert counts(settings)[1] == 3
        assert limits == [0.05, 0.05]

    def test_degraded_production_is_a_problem(self, home: Path, settings_of: SettingsOf) -> None:
        """`status` exits 1 while no challenger beats a production above the threshold."""
        run_orchestrator(settings_of(home, min_improvement=90))
        (problem,) = status(settings_of(home), None)["problems"]
        assert problem.startswith("degraded")

    @pytest.mark.slow
    def test_losing_again_and_again_calls_a_person(
        self, home: Path, settings_of: SettingsOf, caplog: pytest.LogCaptureFixture
    ) -> None:
        """In the verdict, as a warning and in `status`, after `stuck_after` looks at others."""
        settings = settings_of(home, min_improvement=90, threshold=1, stuck_after=2)
        assert "stuck" not in run_orchestrator(settings).message
        assert "stuck" not in run_orchestrator(settings, force=True).message
        write_recordings(home / "new_gts", BATCH, "new", seed=9, prefix="late")
        result = run_orchestrator(settings)
        assert "stuck: production version 1 is surely above the threshold" in result.message
        assert "lost 2 looks in a row" in result.message
        warnings = [one.message for one in caplog.records if one.levelname == "WARNING"]
        assert warnings == [result.stuck]
        assert status(settings, None)["problems"] == [result.stuck]
        assert run_orchestrator(settings).stuck == result.stuck
        healthy = settings_of(home, threshold=1000, stuck_after=2)
        assert run_orchestrator(healthy).outcome is Outcome.HEALTHY
        assert status(settings, None)["problems"] == []

    @pytest.mark.slow
    def test_a_challenger_that_forgets(
        self, home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Better on the new recordings, worse on the old ones: the stored errors tell."""
        settings = settings_of(home)
        assert run_orchestrator(settings).outcome is Outcome.PROMOTED
        write_mislabelled(home / "new_gts", seed=5)
        train = cross_validation.train

        def train_a_forgetful_one(*values: Any, **named: Any) -> Any:
            result, n_known = train(*values, **named)
            old = ~result.out_of_fold.index.str.startswith("wrong")
            result.out_of_fold["error"] = 60.0 * old
            return result, n_known

        monkeypatch.setattr(cross_validation, "train", train_a_forgetful_one)
        result = run_orchestrator(settings)
        assert result.outcome is Outcome.NOT_PROMOTED
        assert result.facts["verdict"]["reasons"] == ["FORGETS"]

    @pytest.mark.slow
    def test_a_moved_alias_stays_where_it_was_put(
        self, home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Somebody rolls back by hand during training: the run stops and leaves it."""
        settings = settings_of(home)
        assert run_orchestrator(settings).outcome is Outcome.PROMOTED
        write_recordings(home / "new_gts", BATCH, "old", seed=5, prefix="third")
        record = Judgements.record

        def move_then_record(judgements: Judgements, *values: Any) -> None:
            record(judgements, *values)
            client_of(settings).set_registered_model_alias(settings.model_name, "production", "1")

        monkeypatch.setattr(Judgements, "record", move_then_record)
        loose = settings_of(home, threshold=0, significance=1)
        monkeypatch.setattr("pipeline_orchestrator.should_retrain", lambda *_: True)
        monkeypatch.setattr("retraining.gate.Verdict.promote", True)
        monkeypatch.setattr(Production, "on_probation_against", lambda *_: None)
        with pytest.raises(PipelineError, match="was moved to version 1 while this ran"):
            run_orchestrator(loose)
        assert registry_of(settings).production.number() == 1
        assert len(list((home / "new_gts").glob("*.csv"))) == BATCH


class TestNoVerdict:
    """What cannot be compared is never promoted."""

    @both_modules_in_time
    @pytest.mark.parametrize(
        ("spoil", "text"),
        [
            (lambda errors: errors * float("nan"), "count_errors gave the error nan"),
            pytest.param(
                *(lambda errors: errors.iloc[:0], "must have one row for each file"),
                marks=pytest.mark.slow,
            ),
        ],
    )
    def test_incomparable_errors_are_an_error(
        self,
        home: Path,
        settings_of: SettingsOf,
        monkeypatch: pytest.MonkeyPatch,
        domain: Domain,
        spoil: Callable[[pd.DataFrame], pd.DataFrame],
        text: str,
    ) -> None:
        """Missing errors, or errors of other recordings: one line that says so."""
        fit, count_errors = domain.module.fit, domain.module.count_errors
        fitted: list[Any] = []

        def fit_and_note(examples: pd.DataFrame, random_state: int) -> Any:
            fitted.append(fit(examples, random_state))
            return fitted[-1]

        def count_and_spoil(rows: pd.DataFrame, predicted: Any) -> pd.DataFrame:
            errors = count_errors(rows, predicted)
            return spoil(errors) if fitted else errors

        settings = settings_of(home)
        before = contents(home / "new_gts")
        with monkeypatch.context() as patch, pytest.raises(PipelineError, match=text):
            patch.setattr(domain.module, "fit", fit_and_note)
            patch.setattr(domain.module, "count_errors", count_and_spoil)
            run_orchestrator(settings)
        assert registry_of(settings).production.number() == 1
        assert contents(home / "new_gts") == before
        assert run_orchestrator(settings).outcome is Outcome.PROMOTED

    @both_modules_in_time
    def test_a_used_recording_among_the_new_ones_is_a_leak(
        self, home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Even if intake did not know that production was trained on it."""
        (home / "used_gts" / "old_01.csv").rename(home / "new_gts" / "smuggled.csv")
        take_in: Any = intake.take_in
        monkeypatch.setattr(intake, "take_in", lambda *given: take_in(*given[:-1], intake.Learnt()))
        result = run_orchestrator(settings_of(home))
        assert result.outcome is Outcome.NOT_PROMOTED
        assert result.facts["verdict"]["reasons"] == ["TEST_LEAK"]

    @both_modules_in_time
    def test_the_same_inputs_have_the_same_verdict(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """Byte for byte, in another process state and at another time."""
        first, second = (run_orchestrator(settings_of(home), dry_run=True) for _ in range(2))
        assert json.dumps(first.facts) == json.dumps(second.facts)


class TestProbation:
    """A new version meets its first new recordings beside the one that it replaced."""

    @pytest.fixture
    def misled(
        self, history_of: History, domain: Domain, settings_of: SettingsOf, tmp_path: Path
    ) -> tuple[Path, Any]:
        """Give a home whose version 2 learnt a batch that was labelled the wrong way round."""

        def mislead(home: Path) -> None:
            shutil.rmtree(home / "new_gts")
            write_mislabelled(home / "new_gts", seed=2)
            assert run_orchestrator(settings_of(home)).outcome is Outcome.PROMOTED

        home, _ = history_of(domain, "misled", mislead, tmp_path / "home")
        return home, settings_of(home)

    def test_the_better_predecessor_comes_back(
        self, misled: tuple[Path, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Recorded, with a warning; the files stay for the version that is production again."""
        home, settings = misled
        write_recordings(home / "new_gts", BATCH, "old", seed=3, prefix="right")
        assert run_orchestrator(settings, dry_run=True).outcome is Outcome.ROLLED_BACK
        assert registry_of(settings).production.number() == 2
        result = run_orchestrator(settings)
        assert result.outcome is Outcome.ROLLED_BACK
        assert result.message.startswith("rolled back: version 1 is production again, version 2")
        registry = registry_of(settings)
        assert (registry.production.number(), registry.production.previous_number()) == (1, 2)
        assert "version 2 lost its probation: back to 1" in caplog.text
        newest = history(settings)[0]
        assert (newest["event"], newest["from"], newest["to"]) == ("probation", 2, 1)
        assert newest["mean_error_before"] > newest["mean_error_after"]
        run = runs_of(settings, "ModelMonitoring")[0]
        stored = json.loads(registry.runs.artifact(run.info.run_id, "probation.json") or b"")
        assert (stored["against_version"], stored["promote"]) == (1, True)
        assert run.data.tags["pipeline_outcome"] == "rolled_back"
        assert len(list((home / "new_gts").glob("right*.csv"))) == BATCH
        assert run_orchestrator(settings).outcome is not Outcome.ROLLED_BACK

    @pytest.mark.slow
    def test_it_is_passed_once(
        self, home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A good version stays, and later recordings are not compared with its predecessor."""
        settings = settings_of(home)
        run_orchestrator(settings)
        asked = []
        ask = Production.on_probation_against

        def count(production: Production, champion: Any) -> Any:
            asked.append(ask(production, champion))
            return asked[-1]

        monkeypatch.setattr(Production, "on_probation_against", count)
        healthy = settings_of(home, threshold=1000)
        for seed in (3, 4):
            write_recordings(home / "new_gts", BATCH, "new", seed=seed, prefix=f"late{seed}")
            assert run_orchestrator(healthy).outcome is Outcome.HEALTHY
        assert asked == [1, None]

    def test_a_predecessor_that_is_gone_is_only_a_warning(
        self, misled: tuple[Path, Any], caplog: pytest.LogCaptureFixture, settings_of: SettingsOf
    ) -> None:
        """Nothing can be compared, so nothing is rolled back."""
        home, _ = misled
        settings = settings_of(home, threshold=1000)
        registry = registry_of(settings)
        uri = registry.runs.connection.client.get_model_version_download_uri(
            settings.model_name, "1"
        )
        shutil.rmtree(uri.removeprefix("file://"))
        write_recordings(home / "new_gts", BATCH, "new", seed=3, prefix="right")
        assert run_orchestrator(settings).outcome is Outcome.HEALTHY
        assert "version 2 has no probation: the files of version 1 are missing" in caplog.text

    def test_a_predecessor_that_was_deleted_is_only_a_warning(
        self, misled: tuple[Path, Any], caplog: pytest.LogCaptureFixture, settings_of: SettingsOf
    ) -> None:
        """The history still names it."""
        home, _ = misled
        settings = settings_of(home, threshold=1000)
        client_of(settings).delete_model_version(settings.model_name, "1")
        write_recordings(home / "new_gts", BATCH, "new", seed=3, prefix="right")
        assert run_orchestrator(settings).outcome is Outcome.HEALTHY
        assert "version 2 has no probation: there is no version 1" in caplog.text
        with pytest.raises(PipelineError, match="no previous production version and no other one"):
            rollback(settings, None)

    def test_a_predecessor_that_cannot_predict_any_more_is_only_a_warning(
        self,
        misled: tuple[Path, Any],
        caplog: pytest.LogCaptureFixture,
        settings_of: SettingsOf,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Its code is another, and needs a column that is no longer read."""
        home, _ = misled
        load_verified = StoredModels.load

        class Predecessor:
            def predict(self, _rows: pd.DataFrame) -> Any:
                raise PipelineError("version 1 needs the columns scores")

        def load(models: StoredModels, version: Any, module: Any) -> Any:
            model = load_verified(models, version, module)
            return Predecessor() if version.number == 1 else model

        monkeypatch.setattr(StoredModels, "load", load)
        write_recordings(home / "new_gts", BATCH, "new", seed=3, prefix="right")
        assert run_orchestrator(settings_of(home, threshold=1000)).outcome is Outcome.HEALTHY
        assert "version 2 has no probation: version 1 needs the columns" in caplog.text

    def test_a_rollback_that_died_is_told(
        self, misled: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The aliases had moved, then the power failed: the next run calls for attention."""
        home, settings = misled
        command, told = recorder(home)
        settings = dataclasses.replace(settings, on_attention=command)
        write_recordings(home / "new_gts", BATCH, "old", seed=3, prefix="right")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Recorder, "concluded", interrupt)
            run_orchestrator(settings)
        assert told() == []
        run_orchestrator(settings)
        assert told()[0]["message"].startswith("rolled back: version 1 is production again")


class TestKnownRecordings:
    """A recording is itself, however it is saved: measured cases of what went wrong before."""

    @staticmethod
    def save_again(folder: Path, paths: Sequence[Path], line_end: str = "\r\n") -> None:
        """Write the same recordings in other bytes, under other names."""
        for path in paths:
            content = cells(path.read_bytes()).to_csv(lineterminator=line_end).encode()
            (folder / f"again_{path.name}").write_bytes(content)

    @both_modules_in_time
    def test_used_recordings_saved_again_are_no_news(
        self, domain: Domain, home: Path, settings_of: SettingsOf
    ) -> None:
        """Before, production was healthy on what it had learnt."""
        new = sorted((home / "new_gts").glob("*.csv"))
        for path in new:
            path.unlink()
        self.save_again(home / "new_gts", sorted((home / "used_gts").glob("*.csv")))
        settings = settings_of(home)
        before = counts(settings)
        result = run_orchestrator(settings)
        assert result.message == f"waiting: 0 of {BATCH} new ground truth files"
        assert counts(settings) == before

    @both_modules_in_time
    @pytest.mark.slow
    def test_copies_beside_new_recordings_change_no_number(
        self, domain: Domain, home: Path, settings_of: SettingsOf, tmp_path: Path
    ) -> None:
        """Before, copies of used ones hid a degradation, and each new one dropped twice was two."""
        alone = copy_home(home, tmp_path / "alone")
        new = sorted((home / "new_gts").glob("*.csv"))
        self.save_again(home / "new_gts", [*new, *sorted((home / "used_gts").glob("*.csv"))])
        expected = run_orchestrator(settings_of(alone))
        result = run_orchestrator(settings_of(home))
        assert result.outcome is expected.outcome
        assert result.facts["verdict"] == expected.facts["verdict"]
        assert [one.name for one in result.recordings] == [path.name for path in new]
        assert contents(home / "used_gts") == contents(alone / "used_gts")


class TestDryRun:
    """`--dry-run`."""

    def test_it_tells_the_verdict_and_changes_nothing(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """No file differs, not even in time; no run, no version."""
        settings = settings_of(home)
        runs_before = counts(settings)
        before = snapshot(home)
        result = run_orchestrator(settings, dry_run=True)
        assert result.outcome is Outcome.PROMOTED
        assert result.message.startswith("dry run, nothing changed: promoted: the challenger")
        assert snapshot(home) == before
        assert counts(settings) == runs_before

    def test_bad_files_are_only_named(
        self, home: Path, settings_of: SettingsOf, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A file that would be rejected stays where it is."""
        (home / "new_gts" / "bad.csv").write_text("nonsense\n")
        run_orchestrator(settings_of(home, threshold=1000), dry_run=True)
        assert "would reject 'bad.csv'" in caplog.text
        assert (home / "new_gts" / "bad.csv").exists()


class TestRegistryFailsClosed:
    """Anything missing: no promotion, an error that says what."""

    def test_five_different_messages(self, home: Path, settings_of: SettingsOf) -> None:
        """No store, unreachable store, empty registry, no alias, artifact missing, no load."""
        settings = settings_of(home)
        messages = {}

        def fails(name: str, broken: Any) -> None:
            with pytest.raises(PipelineError) as caught:
                run_orchestrator(broken)
            messages[name] = str(caught.value)

        fails("other model", settings_of(home, model_name="Other"))
        fails("unreachable", settings_of(home, tracking_uri="http://127.0.0.1:9"))
        client = client_of(settings)
        client.delete_registered_model_alias(settings.model_name, "production")
        fails("no alias", settings)
        client.set_registered_model_alias(settings.model_name, "production", "1")
        (model,) = (home / "mlflow_server/artifacts").rglob("model.skops")
        good = model.read_bytes()
        model.write_bytes(good[:-1])
        fails("tampered", settings)
        model.unlink()
        shutil.move(model.parent, home / "elsewhere")
        fails("missing artifact", settings)
        settings.database.unlink()
        fails("no store", settings)
        expected = {
            "other model": f"the store holds other models: {settings.model_name}",
            "unreachable": "does not answer",
            "no alias": "the alias 'production' of",
            "tampered": "not those that were registered",
            "missing artifact": "are missing at",
            "no store": "there is no store",
        }
        for name, text in expected.items():
            assert text in messages[name], name
        assert len(set(messages.values())) == len(expected)
        assert len(list((home / "new_gts").glob("*.csv"))) == BATCH

    def test_an_unreachable_store_is_tried_later(self, home: Path, settings_of: SettingsOf) -> None:
        """Exit status 75."""
        with pytest.raises(TryLaterError):
            run_orchestrator(settings_of(home, tracking_uri="http://127.0.0.1:9"))


class TestCommandLine:
    """Output rules and exit statuses of real processes."""

    def words(self) -> list[str]:
        """Return the quick settings as flags."""
        return [
            word
            for key, value in {**FAST, "threshold": 1000}.items()
            for word in ("--" + key.replace("_", "-"), str(value))
        ]

    def test_the_verdict_is_one_line_on_stdout(self, home: Path) -> None:
        """Dated log lines go to stderr."""
        done = script("pipeline_orchestrator.py", *self.words(), home=home)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("healthy: production version 1 errs by")
        assert done.stdout.count("\n") == 1
        assert all(line[:2] == "20" for line in done.stderr.splitlines()), done.stderr

    @pytest.mark.slow
    def test_json_is_one_document(self, home: Path) -> None:
        """With a schema version."""
        done = script("pipeline_orchestrator.py", "run", "--json", *self.words(), home=home)
        document = json.loads(done.stdout)
        assert document["schema_version"] == 2
        assert document["outcome"] == "healthy"

    @pytest.mark.slow
    def test_quiet_prints_nothing(self, home: Path) -> None:
        """Nobody must look."""
        done = script("pipeline_orchestrator.py", "--quiet", *self.words(), home=home)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_a_second_start_is_told_to_wait(self, home: Path) -> None:
        """Status 75 while another process holds the lock."""
        from retraining.files import exclusive_lock
        from retraining.settings import Settings

        with exclusive_lock(Settings(home=home), "a test"):
            done = script("pipeline_orchestrator.py", home=home)
        assert done.returncode == 75
        assert done.stdout == ""
        assert f"pid {os.getpid()}, a test" in done.stderr
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize(
        ("words", "status", "text"),
        [
            (["--threshold", "much"], 2, "--threshold 'much': must be a number"),
            (["--n-folds", "1"], 2, "--n-folds 1: must be from 2 to 100"),
            (["--wrong"], 2, "unrecognized arguments: --wrong"),
            (["rollback", "--to", "one"], 2, "--to"),
            (["rollback", "--to", "7"], 1, "7"),
            (["requeue", "unknown.csv"], 1, "holds no unknown.csv"),
            (["rollback"], 1, "there is no previous production version"),
        ],
    )
    def test_wrong_words_are_one_line(
        self, home: Path, words: list[str], status: int, text: str, capsys: Any
    ) -> None:
        """Which flag or name, and the documented status."""
        try:
            found = main([*words, "--home", str(home)])
        except SystemExit as stopped:
            found = int(stopped.code or 0)
        error = capsys.readouterr().err
        assert (found, error.count("\n")) == (status, 1), error
        assert text in error

    @pytest.mark.sampled(0.34)
    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_a_signal_stops_between_steps(self, home: Path, number: signal.Signals) -> None:
        """Exit 128 + n; the next run finishes the cycle and closes what was left."""
        words = [word.replace("1000", "10") for word in self.words()]
        # Under nohup, or in the background of a shell, some of them are ignored from the start.
        inherited = signal.signal(number, signal.SIG_DFL)
        process = subprocess.Popen(
            [sys.executable, "pipeline_orchestrator.py", *words, "--home", str(home)],
            cwd=ROOT,
            env={**os.environ, **QUICK_PROCESS},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        signal.signal(number, inherited)
        assert process.stderr is not None
        for line in process.stderr:
            if "4. retrain" in line:
                process.send_signal(number)
                break
        _, error = process.communicate(timeout=120)
        assert process.returncode == 128 + number, error
        assert "Traceback" not in error
        settings_file = home / ".pipeline_state.json"
        assert settings_file.exists()
        done = script("pipeline_orchestrator.py", *words, home=home)
        assert done.stdout.startswith("promoted: version 2 replaces version 1"), done.stderr
        assert not settings_file.exists()

    @pytest.mark.slow
    def test_the_hook_gets_the_details(self, home: Path, settings_of: SettingsOf) -> None:
        """As JSON on standard input; a failing hook is only a warning."""
        target = home / "hook.json"
        hook = home / "hook.py"
        hook.write_text(
            f"import sys, pathlib\npathlib.Path({str(target)!r}).write_text(sys.stdin.read())\n"
        )
        run_orchestrator(settings_of(home, on_promotion=f"{sys.executable} {hook}"))
        details = json.loads(target.read_text())
        assert (details["event"], details["production"], details["replaced"]) == ("promotion", 2, 1)
        failing = settings_of(home, on_promotion="/bin/false")
        assert "version 1" in rollback(failing, None)


def recorder(home: Path) -> tuple[str, Callable[[], list[dict[str, Any]]]]:
    """Return a command that keeps what it is told, and a reader of that."""
    told, hook = home.parent / "told.jsonl", home.parent / "hook.py"
    hook.write_text(f"import sys\nopen({str(told)!r}, 'a').write(sys.stdin.read() + chr(10))\n")

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []

    return f"{sys.executable} {hook}", read


class TestNotifications:
    """The operator's commands."""

    @both_modules_in_time
    def test_a_change_is_told_even_after_a_crash(
        self, home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Dead between alias and command: the next run makes up for it, and tags the run."""
        command, told = recorder(home)
        settings = settings_of(home, on_promotion=command)
        with monkeypatch.context() as patch, pytest.raises(SystemError):
            patch.setattr(Recorder, "concluded", power_cut)
            run_orchestrator(settings)
        assert told() == []
        assert run_orchestrator(settings).outcome is Outcome.WAITING
        (details,) = told()
        assert (details["event"], details["production"], details["replaced"]) == ("promotion", 2, 1)
        (run,) = runs_of(settings, "ModelMonitoring")
        assert run.data.tags["pipeline_outcome"] == "promoted"
        run_orchestrator(settings)
        assert len(told()) == 1

    def test_a_blank_command_is_none(self, home: Path, settings_of: SettingsOf) -> None:
        """As an EnvironmentFile may hold; quotes around nothing are only a warning."""
        for words in (" ", "''"):
            settings = settings_of(home, on_promotion=words, on_attention=words)
            rollback(settings, 1)
            notices.call_for_attention(settings, "failed", "all is well")

    def test_a_rejected_file_is_told_once(self, home: Path, settings_of: SettingsOf) -> None:
        """Not every night again, but again if it is rejected again."""
        command, told = recorder(home)
        settings = settings_of(home, threshold=1000, on_attention=command)
        (home / "new_gts" / "bad.csv").write_text("nonsense\n")
        for _ in range(2):
            run_orchestrator(settings)
        (details,) = told()
        assert (details["event"], details["items"]) == ("attention", ["rejected: 'bad.csv'"])
        requeue(settings, [])
        run_orchestrator(settings)
        assert len(told()) == 2

    def test_a_failure_is_told_and_shown(self, home: Path, settings_of: SettingsOf) -> None:
        """With its exit status; `status` shows it until a run succeeds."""
        command, told = recorder(home)
        settings = settings_of(home, threshold=1000, on_attention=command)
        (model,) = (home / "mlflow_server/artifacts").rglob("model.skops")
        whole = model.read_bytes()
        model.write_bytes(whole[:-1])
        with pytest.raises(PipelineError):
            run_orchestrator(settings)
        (details,) = told()
        assert (details["event"], details["exit_status"]) == ("failed", 1)
        assert "not those that were registered" in details["message"]
        model.write_bytes(whole)
        overdue, failed = status(settings, max_age_hours=1)["problems"]
        assert overdue.startswith("overdue: no run ever came to its end")
        assert failed.startswith("failed: the last run")
        assert told()[1]["event"] == "overdue"
        run_orchestrator(settings)
        assert status(settings, max_age_hours=1)["problems"] == []


def interrupt(*_: Any) -> None:
    """Stop without a trace."""
    raise KeyboardInterrupt


def power_cut(*_: Any) -> None:
    """Stop where no handler is."""
    raise SystemError("power cut")


class TestRealServer:
    """The same commands through `MLFLOW_TRACKING_URI`."""

    @pytest.mark.slow
    def test_a_whole_cycle_against_a_server(
        self, registered_template: Path, tmp_path: Path, settings_of: SettingsOf, free_server: Any
    ) -> None:
        """Register, promote and rest, with an `mlflow server` process between."""
        import register_first_model

        home = make_home(tmp_path / "home")
        for name in ("new_gts", "used_gts", "model"):
            shutil.copytree(registered_template / name, home / name, dirs_exist_ok=True)
        settings = settings_of(home, tracking_uri=free_server(tmp_path / "server"))
        message = register_first_model.register_first_model(settings)
        assert message.startswith("registered version 1 as production")
        assert run_orchestrator(settings).outcome is Outcome.PROMOTED
        assert registry_of(settings).production.number() == 2
        assert run_orchestrator(settings).outcome is Outcome.WAITING
        assert list((home / "mlflow_server/backend_db").iterdir()) == []


@pytest.mark.slow
class TestRealRecordings:
    """The cycle on 18 older and 15 newer real recordings."""

    def test_the_whole_story(self, shared_folder: Path, tmp_path: Path) -> None:
        """Train, register and run, cold processes; copies of all 33 change no number.

        Before recordings were recognised, these copies hid the degradation: 6.7 % became 2.1 % on
        30 recordings.
        """
        home = make_home(tmp_path / "home")
        old = {*range(1, 5), *range(6, 9), *range(10, 14), *range(15, 19), *range(20, 23)}
        for path in (shared_folder / "gts").glob("*.csv"):
            folder = "used_gts" if int(path.stem) in old else "new_gts"
            shutil.copyfile(path, home / folder / path.name)
        before = contents(home / "used_gts") + contents(home / "new_gts")
        for name in ("train_classification_model.py", "register_first_model.py"):
            done = script(name, home=home, **FULL_SIZE)
            assert done.returncode == 0, done.stderr
        copies = [*(home / "used_gts").glob("*.csv"), *(home / "new_gts").glob("*.csv")]
        for path in copies:
            other = cells(path.read_bytes()).to_csv(lineterminator="\r\n").encode()
            (home / "new_gts" / f"saved_again_{path.name}").write_bytes(other)
            os.utime(home / "new_gts" / f"saved_again_{path.name}")
        began = time.monotonic()
        words = ("--threshold", "5", "--json")
        done = script("pipeline_orchestrator.py", *words, home=home, **FULL_SIZE)
        print(f"\nthe cycle on 18 + 15 recordings took {time.monotonic() - began:.1f} s")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["recordings"] == 15
        assert found["verdict"]["n_recordings"] == 15
        assert 6.6 < found["verdict"]["champion_mean_error"] < 6.75
        after = contents(home / "used_gts") + contents(home / "new_gts")
        assert sorted(after) == sorted(before)
        refused = [path.name for path in (home / "new_gts" / "rejected").glob("*.csv")]
        assert sorted(refused) == sorted(f"saved_again_{path.name}" for path in copies)
