"""What the figures before labels are measured with is what the product does."""

from __future__ import annotations

import pandas as pd
import pytest
from graded_seasons import OLD, Graded, described, fit, module, out_of_fold, told

import train_classification_model as stems


def test_what_is_told_of_examples_is_what_the_module_tells_of_rows() -> None:
    """Errors, expectations and counts of four recordings, by the same model."""
    model = fit(described(OLD, 6, 1))
    rows = [OLD.draw((2, number)).assign(file=f"{number}.csv") for number in range(4)]
    found = told(model, [stems.examples(one) for one in rows])
    for number, one in enumerate(rows):
        errors = stems.count_errors(one, model.predict(one)).iloc[0]
        (expected,) = module().expected_errors(model, [one.drop(columns="ground_truth")])
        assert expected is not None
        quick, slow = found.loc[number], expected.iloc[0]
        assert quick["error"] == pytest.approx(errors["error_percent"])
        assert quick["true_count"] == errors["true_count"]
        assert quick["predicted_count"] == errors["predicted_count"]
        assert quick["expected"] == pytest.approx(slow["error"])
        for name in ("unsure", "count_spread", "predicted_count"):
            assert quick[name] == pytest.approx(slow[name])


def test_a_recording_out_of_fold_was_never_seen() -> None:
    """The first fold's are told by a model of all others."""
    recordings = described(OLD, 10, 3)
    found = out_of_fold(recordings)
    assert [*found.index] == list(range(10))
    seen = told(fit(recordings), recordings)
    assert found["expected"].mean() > seen["expected"].mean()


def test_a_season_is_the_same_for_the_same_seed() -> None:
    """And its grades are between the two seasons."""
    one, again = (Graded((0.5, 0.5), (0, 1)).draw((7, 7)) for _ in range(2))
    pd.testing.assert_frame_equal(one, again)
    harder = told(fit(described(OLD, 8, 1)), described(Graded((0.0, 0.1), (0, 0)), 8, 4))
    easier = told(fit(described(OLD, 8, 1)), described(Graded((1.0, 1.0), (0, 0)), 8, 4))
    assert harder["error"].mean() > easier["error"].mean() + 10
