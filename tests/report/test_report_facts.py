"""The facts of a page: what changed in the data, what a model relies on, what is gathered."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sample_pages import (
    NAMES,
    ended,
    make_batch,
    make_cycle,
    make_facts,
    make_training,
    read_page,
)

import train_classification_model as stems
from retraining import cross_validation, ground_truth
from retraining.errors import PipelineError
from retraining.ground_truth import Refusal
from retraining.outcome import Outcome
from retraining.report import facts
from retraining.report.facts import ChangedData, feature_shifts, lost_features
from retraining.settings import Settings
from retraining.training import load_training_module


def shift_of(old: Any, new: Any) -> facts.FeatureShift:
    """Return the shift of one feature."""
    (only,) = feature_shifts(pd.DataFrame({"a": old}), pd.DataFrame({"a": new}))
    return only


class TestNumbers:
    """Features that are numbers."""

    def test_a_shifted_feature_comes_first(self) -> None:
        """Two deviations to the right: a distance of 2 Phi(1) - 1 = 0.68 in expectation."""
        random = np.random.default_rng(1)
        old = pd.DataFrame(random.normal(size=(2000, 3)), columns=["a", "b", "c"])
        new = pd.DataFrame(random.normal(size=(2000, 3)), columns=["a", "b", "c"])
        new["b"] += 2
        first, *others = feature_shifts(old, new)
        assert first.feature == "b"
        assert first.statistic == pytest.approx(0.683, abs=0.04)
        assert first.p_value < 1e-50
        assert max(one.statistic for one in others) < 0.1

    def test_unknown_values_are_left_out(self) -> None:
        """A feature that is known on one side only has no row; a constant one has no distance."""
        old = pd.DataFrame({"a": [1.0, 1.0, np.nan], "b": [np.nan] * 3})
        new = pd.DataFrame({"a": [1.0, 1.0], "b": [1.0, 2.0]})
        (only,) = feature_shifts(old, new)
        assert (only.feature, only.statistic, len(only.trained_on)) == ("a", 0.0, 2)
        assert only.missing == (1 - 2 / 3, 0.0)
        text = read_page(make_facts(changed=ChangedData((only,), (), 3, 2))).text
        assert "Values that are missing" in text
        assert "a33.30.0" in text

    @pytest.mark.parametrize(
        "values",
        [
            [1.0, np.inf, 2.0, -np.inf],
            pd.Series([1, 2, None], dtype="Int64"),
            pd.Series([1, 2.5, None], dtype=object),
            [Decimal("1.5"), Decimal("2.5")],
        ],
        ids=["infinite", "nullable", "objects", "decimals"],
    )
    def test_numbers_of_every_kind(self, values: Any) -> None:
        """The finite ones of them."""
        shift = shift_of(values, values)
        assert len(shift.new) == 2
        assert (shift.statistic, shift.categories) == (0.0, ())
        read_page(make_facts(changed=ChangedData((shift,), (), 3, 3)))

    def test_only_infinite_values_are_none(self) -> None:
        """They are known, but there is nothing to draw."""
        table = pd.DataFrame({"a": [np.inf, np.inf]})
        assert feature_shifts(table, table) == ()

    def test_a_column_of_one_side_is_left_out(self) -> None:
        """The module was changed, and old examples lack what new ones have."""
        assert feature_shifts(pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]})) == ()


class TestTexts:
    """Features that are none."""

    def test_the_distance_is_what_would_have_to_change(self) -> None:
        """Shares of 1/2 and 1/2 become 3/4 and 1/4: a quarter of the examples."""
        shift = shift_of(["oak", "fir"], ["oak", "oak", "oak", "fir"])
        assert shift.statistic == pytest.approx(0.25)
        assert [(one.value, one.trained_on, one.new) for one in shift.categories] == [
            ("oak", 0.5, 0.75),
            ("fir", 0.5, 0.25),
        ]
        # Chi-squared of (1, 1; 3, 1) with Yates' correction is 0: the cells are too few.
        assert shift.p_value == pytest.approx(1.0)
        text = read_page(make_facts(changed=ChangedData((shift,), (), 2, 4))).text
        assert "the total variation: the share that would have to take another value" in text
        assert "Kolmogorov" not in text
        assert "oak50.075.0" in text

    def test_rare_values_count_together(self) -> None:
        """Those that production has seen apart from those that it has not."""
        frequent = [f"{number}" for number in range(6)] * 10
        old = [*frequent, "rare 1", "rare 2"]
        new = [*frequent, "rare 3", "rare 4", "rare 5"]
        shift = shift_of(old, new)
        known, unseen = shift.categories[-2:]
        assert len(shift.categories) == 8
        assert (known.value, known.trained_on, known.new) == (facts.OTHER_KNOWN, 2 / 62, 0)
        assert (unseen.value, unseen.trained_on, unseen.new) == (facts.OTHER_NEW, 0, 3 / 63)

    @pytest.mark.parametrize(
        "values",
        [
            [True, False, None],
            pd.Series(["a", "b", None], dtype="category"),
            [1.5, "unknown", None],
            [["a", "list"], {"a": "dict"}, None],
            [pd.Timestamp(2026, 11, 22), pd.Timestamp(2026, 11, 23), None],
            [1 + 1j, 2 + 0j],
            [b"\xff", "\udcff"],
        ],
        ids=["truth", "category", "mixed", "objects", "dates", "complex", "bytes"],
    )
    def test_values_of_every_kind(self, values: Any) -> None:
        """Compared as they read."""
        column = pd.Series(values)
        shift = shift_of(column, column)
        assert (shift.statistic, len(shift.categories)) == (0.0, 2)
        read_page(make_facts(changed=ChangedData((shift,), (), 3, 3)))

    def test_numbers_that_became_texts(self) -> None:
        """Nobody can subtract them: apart."""
        assert shift_of([1.5, 2.5], ["1,5", "2,5"]).statistic == 1.0

    def test_a_category_that_nobody_has(self) -> None:
        """It is part of the type, not of the data."""
        column = pd.Series(["a"], dtype=pd.CategoricalDtype(["a", "b"]))
        assert [one.value for one in shift_of(column, column).categories] == ["a"]


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

    def test_lost_features(self) -> None:
        """A sensor that broke: what production learnt from is not there any more."""
        old = pd.DataFrame({"a": [1.0, 2.0], "b": [1.0, 2.0], "c": [np.nan] * 2, "d": [1, 2]})
        new = pd.DataFrame({"a": [np.nan, 1.0], "b": [np.nan] * 2, "c": [1.0, 2.0]})
        assert lost_features(old, new) == ("b", "d")
        text = read_page(make_facts(changed=ChangedData((), ("b", "d"), 2, 2))).text
        assert "No new recording has a value of what production was trained with: b, d." in text


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
