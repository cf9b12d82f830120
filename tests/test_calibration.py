"""What errors out of fold teach about a model's own expectations: numbers worked out by hand."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from retraining.calibration import BeforeLabels, Calibration, kinds_of, outside
from retraining.estimates import Estimator, RecordingEstimate
from retraining.training import COUNT_SPREAD, DOUBT, ERROR, FILE, PREDICTED_COUNT, TRUE_COUNT

TRAINING: Any = SimpleNamespace(features=lambda table: table)
NAMES = [f"{number}.csv" for number in range(45)]
RANGES = {"speed": (0.0, 1.0, 0.0), "area": (5.0, 9.0, 0.5)}
NOTHING_TOLD: Any = SimpleNamespace(expected=None, doubts=None)


def trained(
    expected: list[float],
    errors: list[float],
    counts: tuple[list[int], list[int]] | None = None,
    **more: Any,
) -> Any:
    """Return what a training leaves, as far as it is asked here."""
    index = pd.Index(NAMES[: len(errors)], name=FILE)
    told = pd.DataFrame({ERROR: expected}, index=index)
    found = pd.DataFrame({ERROR: errors}, index=index)
    if counts is not None:
        told[PREDICTED_COUNT], found[TRUE_COUNT] = counts
        told[COUNT_SPREAD] = 2.0
    examples = pd.DataFrame({"speed": np.linspace(0, 1, len(errors))}, index=index)
    values = {
        "expected": told,
        "out_of_fold": found,
        "examples": examples,
        "data_quality": {},
        "doubts": None,
        "sessions": {},
        **more,
    }
    return SimpleNamespace(**values)


def calibration_of(*values: Any, **more: Any) -> Calibration:
    """Return a calibration that there is."""
    found = Calibration.of(trained(*values, **more), TRAINING)
    assert found is not None
    return found


class TestMeanError:
    """Expectations in scale, with how little is known of it."""

    def test_the_scale_is_a_ratio_of_means(self) -> None:
        """Errors of 1, 2, 3, 4, 5 where 2, 2, 2, 4, 4 was expected: 15 / 14."""
        found = calibration_of([2, 2, 2, 4, 4], [1, 2, 3, 4, 5])
        scale = 15 / 14
        squares = sum(
            (error - scale * told) ** 2
            for error, told in zip([1, 2, 3, 4, 5], [2, 2, 2, 4, 4], strict=True)
        )
        assert found.scale == pytest.approx(scale)
        assert found.scale_deviation == pytest.approx(math.sqrt(squares / 20) / 2.8)
        assert found.scatter == pytest.approx(math.sqrt(squares / 44 * 5 / 4))

    def test_the_interval_is_one_of_students_t_for_the_logarithm(self) -> None:
        """With the scale's part and that of single recordings."""
        found = Calibration(
            n_recordings=10, n_sessions=10, scale=2.0, scale_deviation=0.5, scatter=1.0
        )
        estimate = found.mean_error([1.0, 3.0])
        deviation = math.hypot(2 * 0.5, math.sqrt(10) / 2)
        half = stats.t.ppf(0.975, 9) * deviation / 4
        assert estimate.mean == pytest.approx(4.0)
        assert estimate.low == pytest.approx(4 * math.exp(-half))
        assert estimate.high == pytest.approx(4 * math.exp(half))

    def test_recordings_of_one_session_tell_the_same_twice(self) -> None:
        """Five sessions of two equal recordings know the scale no better than five recordings."""
        told, errors = [2.0, 2, 2, 4, 4], [1.0, 2, 3, 4, 5]
        one = calibration_of(told, errors)
        sessions = {name: f"session {place % 5}" for place, name in enumerate(NAMES[:10])}
        twice = calibration_of(told * 2, errors * 2, sessions=sessions)
        assert (twice.n_recordings, twice.n_sessions) == (10, 5)
        assert twice.scale == pytest.approx(one.scale)
        assert twice.scale_deviation == pytest.approx(one.scale_deviation)
        assert calibration_of(told * 2, errors * 2).scale_deviation < one.scale_deviation

    def test_where_nothing_is_expected_nothing_is_estimated(self) -> None:
        """No division by zero."""
        found = Calibration(
            n_recordings=10, n_sessions=10, scale=2.0, scale_deviation=0.5, scatter=1.0
        )
        assert found.mean_error([0.0, 0.0]).high == 0.0

    def test_where_no_learnt_recording_had_an_error_nobody_can_tell(self) -> None:
        """It is not 0, however unsure a model is, and not with an interval of nothing."""
        asked = [RecordingEstimate("a.csv", "ab", expected=30.0)]
        for errors, told in ([0.0] * 6, False), ([0.0] * 5 + [1.0], True):
            calibration = calibration_of([1.0] * 6, errors)
            estimate = Estimator(TRAINING, None, calibration).mean(asked)
            assert (estimate is not None) is told

    @pytest.mark.parametrize(
        ("expected", "errors"),
        [
            ([1, 2, 3, 4], [1, 2, 3, 4]),
            ([0] * 6, [1] * 6),
            ([1e-300] * 6, [1] * 6),
            ([1] * 6, [1e308] * 6),
        ],
    )
    def test_too_few_or_nothing_expected_is_no_calibration(
        self, expected: list[float], errors: list[float]
    ) -> None:
        """Nobody can tell then, and nobody does."""
        assert Calibration.of(trained(expected, errors), TRAINING) is None
        assert Calibration.of(NOTHING_TOLD, TRAINING) is None

    def test_the_interval_holds_the_true_mean(self) -> None:
        """About 95 times of 100, of skewed errors, learnt from 30 recordings."""
        random, hits = np.random.default_rng(0), 0
        for _ in range(400):
            told = random.gamma(2, 2, 45)
            errors = 0.5 * told * random.gamma(1.2, 1 / 1.2, 45)
            found = calibration_of(told[:30].tolist(), errors[:30].tolist())
            estimate = found.mean_error(told[30:].tolist())
            hits += estimate.low <= errors[30:].mean() <= estimate.high
        assert 0.91 <= hits / 400 <= 0.99


class TestCounts:
    """A count with the numbers between which the true one lies."""

    def test_the_factor_is_the_conformal_quantile(self) -> None:
        """Of nine distances, 0 to 8 over a spread of 2, the largest: ceil(10 x 0.9) = 9."""
        true, predicted = [10 + number for number in range(9)], [10] * 9
        found = calibration_of([1.0] * 9, [1.0] * 9, (predicted, true))
        assert found.count_factor == 4.0
        assert found.count_interval(10, 2.0) == (2, 18)
        assert found.count_interval(3, 2.0) == (0, 11)

    def test_eight_recordings_are_too_few(self) -> None:
        """No quantile of them holds 90 times of 100."""
        found = calibration_of([1.0] * 8, [1.0] * 8, ([10] * 8, [11] * 8))
        assert found.count_interval(10, 2.0) is None

    def test_a_metric_without_counts_has_no_interval(self) -> None:
        """Of grains none is counted."""
        assert calibration_of([1.0] * 20, [1.0] * 20).count_interval(10, 1.0) is None


class TestOutside:
    """Which share of a recording lies outside what was learnt."""

    def test_values_below_above_and_missing_count(self) -> None:
        """Missing ones where they seldom are: of the speed, not of the area."""
        table = pd.DataFrame(
            {"speed": [-1.0, 0.5, np.nan, 2.0], "area": [6.0, np.nan, 9.5, 7.0], "more": 1.0}
        )
        assert outside(RANGES, table) == pytest.approx(4 / 8)

    def test_other_features_cannot_be_compared(self) -> None:
        """Those of another training module."""
        assert outside(RANGES, pd.DataFrame({"speed": [1.0]})) is None
        assert outside({}, pd.DataFrame({"speed": [1.0]})) is None
        assert outside(RANGES, pd.DataFrame({"speed": [], "area": []})) is None

    def test_texts_are_no_features_with_a_range(self) -> None:
        """Numbers alone are compared."""
        examples = pd.DataFrame({"kind": ["a"] * 6, "size": range(6)}, index=NAMES[:6])
        found = calibration_of([1.0] * 6, [1.0] * 6, examples=examples)
        assert list(found.features) == ["size"]

    def test_times_and_odd_names_cost_no_training(self) -> None:
        """What is not a real number has no range; a number where a text is named is one."""
        spans = pd.to_timedelta(range(6), "s")
        examples = pd.DataFrame({"span": spans, "wave": 1j, 3: range(6)}, index=NAMES[:6])
        found = calibration_of([1.0] * 6, [1.0] * 6, examples=examples)
        assert list(found.features) == ["3"]
        assert outside(found.features, examples.iloc[:1].assign(**{"3": 9})) == 1.0
        assert outside(found.features, examples.assign(**{}).astype({3: object})) == 1.0


class TestNotes:
    """Which notes on data quality a model has learnt to live with."""

    def test_numbers_make_no_other_kind(self) -> None:
        """However many values are missing."""
        one, two = (kinds_of(f"area: {n} of 70 values missing, odd") for n in (3, 30))
        assert one.keys() == two.keys() == {"area: # of # values missing", "odd"}
        assert kinds_of("") == {}


class TestFile:
    """What is kept with a version."""

    def test_it_comes_back_as_it_was(self) -> None:
        """The calibration, and the surest doubts with the content they are of."""
        doubts = pd.DataFrame({FILE: ["0.csv", "1.csv"], "object": [7, 8], DOUBT: [0.9, 0.6]})
        quality = {"0.csv": "only 2 tracks"}
        told = trained([1.0, 2, 3, 4, 5], [1.0, 2, 3, 4, 6], doubts=doubts, data_quality=quality)
        left = BeforeLabels.of(told, TRAINING, {"0.csv": "ab"})
        back = BeforeLabels.from_bytes(left.to_bytes())
        assert back.calibration is not None
        assert left.calibration is not None
        assert back.calibration.scale == left.calibration.scale
        assert [*back.calibration.notes] == ["only # tracks"]
        assert back.doubts[0] == {FILE: "0.csv", "object": 7, DOUBT: 0.9, "sha256": "ab"}
        assert back.doubts[1]["sha256"] == ""

    def test_whatever_a_module_tells_of_a_label_is_kept(self) -> None:
        """Times, bytes, periods and a name that is there twice, as texts; NaN as nothing."""
        odd = [pd.Timestamp("2026-05-01"), b"\xff", pd.Period("2026-05", "M"), float("nan"), {1: 2}]
        doubts = pd.DataFrame({FILE: "0.csv", "odd": odd, DOUBT: 0.9})
        doubts = pd.concat([doubts, doubts[["odd"]]], axis=1)
        told = trained([1.0] * 5, [1.0] * 5, doubts=doubts)
        back = BeforeLabels.from_bytes(BeforeLabels.of(told, TRAINING, {}).to_bytes())
        found = [one["odd"] for one in back.doubts]
        assert found == ["2026-05-01 00:00:00", "b'\\xff'", "2026-05", None, "{1: 2}"]

    def test_what_a_newer_pipeline_adds_is_left_out(self) -> None:
        """The rest of it holds."""
        told = trained([1.0, 2, 3, 4, 5], [1.0, 2, 3, 4, 6])
        content = json.loads(BeforeLabels.of(told, TRAINING, {}).to_bytes())
        content["calibration"]["more"] = 1
        back = BeforeLabels.from_bytes(json.dumps(content).encode()).calibration
        assert back is not None
        assert back.n_sessions == 5

    def test_where_nothing_is_told_there_is_no_file(self) -> None:
        """A module need not tell."""
        nothing = BeforeLabels.of(NOTHING_TOLD, TRAINING, {})
        assert nothing.to_bytes() == b""
        assert BeforeLabels.from_bytes(b"") == BeforeLabels()

    @pytest.mark.parametrize(
        "content",
        [
            b"{",
            b"[]",
            b'{"calibration": null}',
            b'{"calibration": 3, "doubts": []}',
            b'{"calibration": null, "doubts": [{}]}',
            b'{"calibration": null, "doubts": 3}',
            b"[" * 100_000,
            json.dumps({"calibration": {"scale": 1}, "doubts": []}).encode(),
            *(
                json.dumps(
                    {
                        "calibration": {
                            "n_recordings": 9,
                            "n_sessions": 9,
                            "scale": 1.0,
                            "scale_deviation": 1.0,
                            "scatter": 1.0,
                            **wrong,
                        },
                        "doubts": [],
                    }
                ).encode()
                for wrong in (
                    {"scale": -1.0},
                    {"scatter": math.inf},
                    {"scale": "1"},
                    {"n_sessions": 1},
                )
            ),
        ],
    )
    def test_anything_else_is_refused(self, content: bytes) -> None:
        """One error, whatever it is."""
        with pytest.raises(ValueError, match="."):
            BeforeLabels.from_bytes(content)
