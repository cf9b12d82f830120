"""The facts of a page: what changed in the data, what a model relies on, what is gathered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sample_gts
from sample_pages import (
    NAMES,
    ended,
    make_batch,
    make_cycle,
    make_recording,
    make_training,
    read_page,
)

import train_classification_model as stems
from retraining import cross_validation, ground_truth
from retraining.errors import PipelineError
from retraining.files import hash_file
from retraining.ground_truth import Refusal
from retraining.outcome import Outcome
from retraining.registry.facts import Manifest, TrainingFile
from retraining.report import facts
from retraining.report.drift import ChangedData
from retraining.settings import Settings
from retraining.training import load_training_module


class TestChangedData:
    """Whose examples are compared."""

    @staticmethod
    def rows(name: str) -> pd.DataFrame:
        """Return rows whose area tells old and new recordings apart."""
        area = 1.0 if name.startswith("old") else 2.0
        values = {"speed": [0.1, 0.2], "area": area, "kind": "tree", "is_stem": [True, False]}
        return pd.DataFrame(values)

    def test_examples_of_the_challenger(self) -> None:
        """It was trained on both sides; nothing is read again, and the label is no feature."""
        changed = facts.changed_data(make_cycle(make_rows=self.rows))
        assert [one.feature for one in changed.shifts] == ["area", "kind", "speed"]
        assert [one.statistic for one in changed.shifts] == [1.0, 0.0, 0.0]
        assert (changed.n_trained_on, changed.n_new) == (4, 12)

    def test_examples_that_are_rows(self) -> None:
        """Only what a model may look at: never the truth, whatever it is called."""
        training = make_training(LABEL_COLUMN="", examples=None, MODEL_COLUMNS=("speed", "file"))
        changed = facts.changed_data(make_cycle(training=training, make_rows=self.rows))
        assert [one.feature for one in changed.shifts] == ["speed"]

    def test_production_learnt_nothing_that_is_there(self) -> None:
        """No section, and no error."""
        cycle = make_cycle(make_rows=self.rows, names=NAMES)
        cycle.champion = type(cycle.champion)(
            cycle.champion.version, None, type(cycle.champion.manifest)(())
        )
        assert facts.changed_data(cycle) == ChangedData()

    def test_sessions_of_the_challenger(self) -> None:
        """Recordings of one session are shuffled together."""
        cycle = make_cycle(make_rows=self.rows)
        apart = facts.changed_data(cycle)
        assert (apart.n_shuffled, apart.shuffled_things) == ((2, 6), "recordings")
        assert cycle.challenger is not None
        sessions = {"0.csv": "a", "1.csv": "a", "2.csv": "a", "5.csv": "b"}
        object.__setattr__(cycle.challenger.result, "sessions", sessions)
        together = facts.changed_data(cycle)
        assert (together.n_shuffled, together.shuffled_things) == ((2, 4), "sessions")

    def test_sessions_of_what_is_read_again(self, tmp_path: Path) -> None:
        """On a healthy night the old files are read; a file without a session is one of its own."""
        training = load_training_module(Settings())
        content = {
            number: sample_gts.make_recording(number, n_tracks=12).assign(
                session="" if number in (1, 4) else f"s{number % 2}"
            )
            for number in range(8)
        }
        (tmp_path / "used_gts").mkdir()
        for number in range(4):
            content[number].to_csv(tmp_path / "used_gts" / f"{number}.csv", index=False)
        learnt = tuple(
            TrainingFile(path.name, hash_file(path), 1)
            for path in sorted((tmp_path / "used_gts").iterdir())
        )
        new = []
        for number in range(4, 8):
            name = f"{number}.csv"
            rows = training.parse(content[number].to_csv(index=False).encode(), name)
            recording = make_recording(name, rows)
            new.append(replace(recording, session=training.session(rows)))
        cycle = make_cycle(training=training, challenger_errors=None, home=tmp_path)
        cycle.champion = replace(cycle.champion, manifest=Manifest(learnt))
        cycle.batch = replace(cycle.batch, files=tuple(new))
        changed = facts.changed_data(cycle)
        # Old: s0, 1 by itself, s1. New: 4 by itself, s1, s0.
        assert (changed.n_shuffled, changed.shuffled_things) == ((3, 3), "sessions")
        assert (changed.n_trained_on, changed.n_new) == (48, 48)
        assert {one.feature for one in changed.shifts} == set(stems.TRACK_FEATURES)


class TestGathered:
    """What fails is missing, with its reason; the rest is there."""

    def test_each_fact_is_gathered_by_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Four that fail, and what needs no gathering."""

        def fail(*_: Any) -> None:
            raise ZeroDivisionError("a bug")

        for name in ("changed_data", "importances", "lineage"):
            monkeypatch.setattr(facts, name, fail)
        monkeypatch.setattr(ground_truth, "rejected_files", fail)
        told = facts.of_cycle(ended(make_cycle(), Outcome.PROMOTED, "promoted: so", production=2))
        assert set(told.missing) == {"changed", "importances", "lineage", "rejected"}
        assert (told.production, told.message) == ("2", "promoted: so")
        text = read_page(told).text
        assert text.count("This part could not be made: ZeroDivisionError: a bug (test_") == 4
        assert "Version 2 is production now" in text

    def test_a_history_that_is_not_read_costs_no_rollback_its_page(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The store failed after the alias moved."""

        def fail() -> list[Any]:
            raise PipelineError("the MLflow store failed")

        monkeypatch.setattr(facts, "lineage", lambda *_: {})
        told = facts.of_rollback(make_cycle().settings, make_training(), fail, 3, "rolled back")
        text = read_page(told).text
        assert "Version 3 is production again" in text
        assert "This part could not be made: the MLflow store failed. Everything" in text

    def test_this_batch_is_the_last_of_the_history(self) -> None:
        """With its own numbers, threshold and outcome."""
        cycle = make_cycle(challenger_errors=None, threshold=12.5)
        cycle.history = (make_batch(0),)
        last = facts.of_cycle(ended(cycle, Outcome.HEALTHY, production=1)).history[-1]
        assert (last.mean_error, last.interval_low, last.interval_high) == (17.5, 12.5, 22.5)
        assert (last.version, last.batch, last.n_recordings) == ("1", "batch", 6)
        assert (last.unit, last.threshold, last.outcome) == ("%", 12.5, "healthy")

    def test_a_failure_leaves_production_as_it_was(self) -> None:
        """And is told in its words."""
        told = facts.of_failure(make_cycle(), "the cycle failed: no space left")
        assert (told.outcome, told.production) == (Outcome.FAILED, "1")
        assert told.history[-1].outcome == "failed"

    def test_rejected_files_that_cannot_be_listed_cost_their_section_only(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """What lies in new_gts/rejected/ is from outside; a damaged reason is no reason at all."""
        folder = tmp_path / "new_gts" / "rejected"
        folder.mkdir(parents=True)
        (folder / "bad.csv").write_text("1")
        (folder / f"bad.csv{ground_truth.REASON_SUFFIX}").write_text("no JSON")
        (tmp_path / "used_gts").mkdir(exist_ok=True)
        (tmp_path / "new_gts").mkdir(exist_ok=True)
        told = facts.of_failure(make_cycle(home=tmp_path), "it failed")
        assert (told.rejected, told.missing) == ((Refusal("bad.csv", "", ""),), {})

        def fail(_: Settings) -> None:
            raise PermissionError("not for you")

        monkeypatch.setattr(ground_truth, "rejected_files", fail)
        assert set(facts.of_failure(make_cycle(home=tmp_path), "it failed").missing) == {"rejected"}

    def test_lineage_names_all_code(self) -> None:
        """The scripts, the package with its template, and the training module."""
        training = load_training_module(Settings())
        made_of = facts.lineage(Settings(), training)
        code = made_of["Code, SHA-256"]
        for name in (
            "pipeline_orchestrator.py",
            "retraining/gate.py",
            "retraining/report/page.html",
        ):
            assert len(str(code[name])) == 64
        assert code["train_classification_model.py"] == training.code_sha256
        assert made_of["Settings of the verdict"]["threshold"] == training.threshold
        assert {"python", "mlflow", "scikit-learn"} <= set(made_of["Packages"])


class TestImportance:
    """What a model relies on."""

    @pytest.mark.usefixtures("fast_training")
    def test_importance_is_deterministic_and_held_out(self, home: Path) -> None:
        """The same twice; a feature matters, and each track is named after its recording."""
        training = load_training_module(Settings(home=home))
        paths = sorted((home / "used_gts").glob("*.csv"))
        resources = cross_validation.Resources(n_jobs=1)
        results = [
            cross_validation.train(
                training, paths, n_folds=3, random_state=42, resources=resources
            )[0]
            for _ in range(2)
        ]
        first, second = (one.importance for one in results)
        assert first is not None
        assert second is not None
        pd.testing.assert_frame_equal(first, second)
        assert list(first.index) == list(stems.TRACK_FEATURES)
        assert first["mean"].max() > 0
        assert (first["deviation"] >= 0).all()
        assert set(results[0].examples.index) == set(results[0].out_of_fold.index)

    def test_the_most_important_comes_first(self) -> None:
        """By its mean; without a table there is nothing to say."""
        cycle = make_cycle()
        assert facts.importances(cycle) == ()
        assert cycle.challenger is not None
        table = pd.DataFrame({"mean": [0.1, 3.0], "deviation": [0.2, 0.4]}, index=["a", "b"])
        object.__setattr__(cycle.challenger.result, "importance", table)
        assert facts.importances(cycle) == (
            facts.FeatureImportance("b", 3.0, 0.4),
            facts.FeatureImportance("a", 0.1, 0.2),
        )
