"""The gate: each criterion alone, what is said of a verdict, and how often an equal model wins."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from conftest import run_sweep
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sampling import Part

from retraining import gate
from retraining.gate import Criterion, Outcome, Verdict, judge, look_significance
from retraining.resampling import Night, NoVerdict, mean_interval, sign_flip_p_values

WORSE = [20.0] * 10
BETTER = [10.0] * 10
UNDECIDED = ([3.0, 0.0] * 3, [0.0, 1.0] * 3)
"""Differences 3, -1, 3, -1, 3, -1: mean 1; 11 of 64 sign flips have a sum of at least 6."""


def criterion(verdict: Verdict, words: str) -> Criterion:
    """Return the one criterion whose name contains these words."""
    (found,) = [one for one in verdict.criteria if words in one.name]
    return found


def exact_p_values(differences: np.ndarray) -> np.ndarray:
    """Return the sign-flip p-value of each row by going through all flips: an oracle."""
    n = differences.shape[1]
    signs = 1 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    return np.array(
        [((signs @ row) >= row.sum() - 1e-9).mean() for row in differences], dtype=float
    )


def errors_of_equal_models(
    n_repetitions: int, n_recordings: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return errors of two models that differ by luck alone, equal on half of the recordings."""
    random = np.random.default_rng(seed)
    shape = (n_repetitions, n_recordings)
    first = random.lognormal(2, 1, shape).round(1)
    second = random.lognormal(2, 1, shape).round(1)
    return first, np.where(random.random(shape) < 0.5, first, second)


class TestVerdict:
    """`judge`: what is promoted, and the reason for each no."""

    def test_a_clearly_better_challenger_is_promoted(self) -> None:
        """With the numbers that matter in one sentence."""
        verdict = judge(WORSE, BETTER, no_model_errors=[50.0] * 10, used_errors=(BETTER, BETTER))
        assert verdict.promote
        assert verdict.reasons == ()
        assert verdict.explain() == "20.0 % -> 10.0 % on 10 recordings, p = 0.00098"
        assert (verdict.champion_mean_error, verdict.challenger_mean_error) == (20, 10)
        assert (verdict.difference, verdict.difference_low, verdict.difference_high) == (10,) * 3
        assert (verdict.n_recordings, verdict.recordings_needed) == (10, None)
        assert {one.outcome for one in verdict.criteria} == {Outcome.PASSED}

    @pytest.mark.parametrize(
        ("champion", "challenger", "options", "reasons"),
        [
            (WORSE, BETTER, {"min_improvement": 10}, {"NOT_BETTER"}),
            (WORSE, BETTER, {"n_leaked": 1}, {"TEST_LEAK"}),
            (WORSE, BETTER, {"no_model_errors": [5.0] * 10}, {"NO_BETTER_THAN_NO_MODEL"}),
            (WORSE, BETTER, {"no_model_errors": BETTER}, {"NO_BETTER_THAN_NO_MODEL"}),
            (WORSE, BETTER, {"used_errors": ([1.0] * 10, [5.0] * 10)}, {"FORGETS"}),
            (*UNDECIDED, {}, {"NOT_SIGNIFICANT"}),
            (WORSE[:4], BETTER[:4], {}, {"TOO_FEW_RECORDINGS", "NOT_SIGNIFICANT"}),
            (
                [20.0] * 4 + [9.0] * 11,
                [10.0] * 4 + [9.0] * 11,
                {},
                {"TOO_FEW_RECORDINGS", "NOT_SIGNIFICANT"},
            ),
            (BETTER, WORSE, {}, {"NOT_BETTER", "NOT_SIGNIFICANT"}),
            (BETTER, BETTER, {}, {"NOT_BETTER", "TOO_FEW_RECORDINGS", "NOT_SIGNIFICANT"}),
        ],
        ids=[
            "gain not above the minimum",
            "leak",
            "worse than no model",
            "equal to no model",
            "forgets",
            "no evidence",
            "four recordings",
            "four that differ",
            "worse",
            "tie",
        ],
    )
    def test_each_failed_criterion_alone_forbids_a_promotion(
        self, champion: Any, challenger: Any, options: dict[str, Any], reasons: set[str]
    ) -> None:
        """Exactly these reasons, each in the explanation; too few is never significant."""
        verdict = judge(champion, challenger, **options)
        assert not verdict.promote
        assert set(verdict.reasons) == reasons
        assert all(f"{reason}: " in verdict.explain() for reason in reasons)

    def test_all_reasons_are_named_at_once(self) -> None:
        """Whoever mends one should know of the others."""
        verdict = judge(
            [1.0],
            [2.0],
            n_leaked=1,
            no_model_errors=[1.0],
            used_errors=([0.0] * 9, [50.0] * 9),
        )
        assert verdict.reasons == (
            "TEST_LEAK",
            "NOT_BETTER",
            "TOO_FEW_RECORDINGS",
            "NOT_SIGNIFICANT",
            "FORGETS",
            "NO_BETTER_THAN_NO_MODEL",
        )
        assert [part.split(": ")[0] for part in verdict.explain().split("; ") if ": " in part] == [
            *verdict.reasons
        ]

    @pytest.mark.parametrize(
        ("champion", "challenger", "promote"),
        [
            ([10.0], [9.9], True),
            ([30.0, 10.0, 10.0], [10.0, 19.0, 19.0], True),
            ([10.0, 20.0], [20.0, 10.0], False),
            ([0.1, 0.2, 0.0], [0.0, 0.0, 0.3], False),
            ([10.0], [10.0], False),
            ([10.0], [10.1], False),
        ],
    )
    def test_significance_one_promotes_the_lower_mean(
        self, champion: list[float], challenger: list[float], promote: bool
    ) -> None:
        """However small the gain and however few the recordings; a tie is none, rounded or not."""
        assert judge(champion, challenger, significance=1).promote is promote

    def test_the_p_value_may_equal_the_significance(self) -> None:
        """Five equal gains: p = 1/32, promoted at 1/32 and not below."""
        five = (WORSE[:5], BETTER[:5])
        too_few = ("TOO_FEW_RECORDINGS", "NOT_SIGNIFICANT")
        assert judge(*five, significance=1 / 32).promote
        assert judge(*five, significance=0.031).reasons == too_few

    @pytest.mark.parametrize(
        ("min_improvement", "promote"), [(0, True), (9.9, True), (10, False), (10.1, False)]
    )
    def test_the_gain_must_exceed_the_minimum(self, min_improvement: float, promote: bool) -> None:
        """A gain of ten points."""
        assert judge(WORSE, BETTER, min_improvement=min_improvement).promote is promote

    @pytest.mark.parametrize(
        ("losses", "max_regression", "outcome"),
        [
            ([2.0] * 10, 2, Outcome.PASSED),
            ([4.4 - 2.4] * 10, 2, Outcome.PASSED),
            ([2.1] * 10, 2, Outcome.FAILED),
            ([0.1] * 10, 0, Outcome.FAILED),
            ([0.0] * 10, 0, Outcome.PASSED),
            ([13.0, 0.0] * 5, 6, Outcome.PASSED),
            ([50.0] * 4, 2, Outcome.PASSED),
            ([50.0] * 5, 2, Outcome.FAILED),
        ],
        ids=[
            "at the limit",
            "at the limit, rounded",
            "above",
            "none allowed",
            "no loss",
            "by chance",
            "four recordings prove nothing",
            "five do",
        ],
    )
    def test_a_loss_on_old_recordings_must_be_proved(
        self, losses: list[float], max_regression: float, outcome: Outcome
    ) -> None:
        """More than the allowed points, with significance."""
        used = ([0.0] * len(losses), losses)
        verdict = judge(WORSE, BETTER, used_errors=used, max_regression=max_regression)
        found = criterion(verdict, "old recordings")
        assert found.outcome is outcome
        assert found.value == pytest.approx(np.mean(losses))
        assert verdict.promote is (outcome is Outcome.PASSED)

    def test_what_cannot_be_checked_is_neither_passed_nor_failed(self) -> None:
        """It is reported, with the reason why."""
        verdict = judge(WORSE, BETTER)
        for words in ("old recordings", "no model"):
            found = criterion(verdict, words)
            assert found.outcome is Outcome.NOT_APPLICABLE
            assert (found.value, found.limit, found.reason) == (None, None, "")
            assert found.explanation
        assert verdict.promote

    def test_it_is_strict_json(self) -> None:
        """Plain values only, every criterion with value, limit and outcome; read back equal."""
        verdict = judge(
            np.array(WORSE), BETTER, no_model_errors=np.array(WORSE), used_errors=(WORSE, BETTER)
        )
        values = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))
        assert values["promote"] is True
        assert values["reasons"] == []
        assert values["p_value"] == 1 / 1024
        assert [one["outcome"] for one in values["criteria"]] == ["passed"] * 6
        refused = json.loads(json.dumps(judge([1], [1]).as_dict(), allow_nan=False))
        assert refused["promote"] is False
        assert refused["criteria"][-1]["outcome"] == "not applicable"

    @hypothesis_settings(max_examples=25, deadline=None, derandomize=True)
    @given(
        pairs=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=8)
    )
    @pytest.mark.slow
    def test_no_two_models_replace_each_other(self, pairs: list[tuple[int, int]]) -> None:
        """Whatever the errors; and the order of the recordings does not matter."""
        first, second = zip(*pairs, strict=True)
        one, other = judge(first, second), judge(second, first)
        assert not (one.promote and other.promote)
        assert judge(first[::-1], second[::-1]).reasons == one.reasons
        assert one.promote is (one.p_value <= 0.05)


NAN, INFINITE = math.nan, math.inf


class TestNoVerdictByDefault:
    """What is missing or inconsistent is an error, never a promotion."""

    @pytest.mark.parametrize(
        ("champion", "challenger"),
        [
            ([NAN, 1.0], [0.0, 0.0]),
            ([1.0, 1.0], [0.0, NAN]),
            ([INFINITE, 1.0], [0.0, 0.0]),
            ([1.0, 1.0], [0.0, -INFINITE]),
            ([1.0, 1.0], [0.0, -0.1]),
            ([-1.0, 1.0], [0.0, 0.0]),
            ([], []),
            ([1.0], []),
            ([1.0, 1.0], [0.0]),
            ([1.0], [0.0, 0.0]),
            ([[1.0], [1.0]], [[0.0], [0.0]]),
            (1.0, 0.0),
            (None, [0.0]),
            ([None], [0.0]),
            (["many"], [0.0]),
        ],
    )
    def test_bad_columns_are_refused(self, champion: Any, challenger: Any) -> None:
        """On the new, on the old recordings and against no model."""
        with pytest.raises(ValueError, match=r"."):
            judge(champion, challenger, significance=1)
        with pytest.raises(ValueError, match=r"."):
            judge(WORSE, BETTER, used_errors=(champion, challenger))

    @pytest.mark.parametrize("no_model", [[NAN] * 10, [1.0] * 9, [], [-1.0] * 10, 5.0])
    def test_bad_errors_without_a_model_are_refused(self, no_model: Any) -> None:
        """One per recording is needed here too."""
        with pytest.raises(ValueError, match=r"."):
            judge(WORSE, BETTER, no_model_errors=no_model)

    @pytest.mark.parametrize(
        "limits",
        [
            {"significance": 0},
            {"significance": -0.1},
            {"significance": 1.1},
            {"significance": NAN},
            {"repeated_looks": -1},
            {"decide": "sometimes"},
            {"min_improvement": NAN},
            {"min_improvement": INFINITE},
            {"min_improvement": -1},
            {"max_regression": NAN},
            {"max_regression": INFINITE},
            {"max_regression": -1},
        ],
    )
    def test_bad_limits_are_refused(self, limits: dict[str, Any]) -> None:
        """A limit that is NaN would let everything pass."""
        (shown,) = limits.values()
        with pytest.raises(ValueError, match=re.escape(str(shown))):
            judge(WORSE, BETTER, used_errors=(BETTER, WORSE), **limits)

    @pytest.mark.parametrize("decided", [[True] * 9, [True] * 11, [False] * 10, []])
    def test_a_decision_on_other_recordings_is_refused(self, decided: list[bool]) -> None:
        """Each recording decided or it did not, and one did at least."""
        with pytest.raises(NoVerdict, match="of 10 recordings decided"):
            judge(WORSE, BETTER, threshold=5, decided=decided)

    @pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
    def test_a_weight_that_is_none_is_refused(self, bad: float) -> None:
        """It would let any night be over the threshold, or none."""
        with pytest.raises(NoVerdict, match="a weight is missing, infinite or negative"):
            judge(WORSE, BETTER, threshold=5, decided=[1.0] * 9 + [bad])


NIGHTS_OF_TWENTY = ([12.0] * 10, [11.0] * 3 + [3.0] * 7)
"""Differences 1 three times and 9 seven times."""


class TestGivenTheNight:
    """`judge` with a threshold: what would have been compared anyway is no evidence."""

    def test_both_p_values_stand_in_the_verdict(self) -> None:
        """Over 11: at most one of the nines may be swapped, with one of the ones, or the ones."""
        errors = NIGHTS_OF_TWENTY
        verdict = judge(*errors, threshold=11)
        champion, challenger = (np.array(one) for one in errors)
        found = sign_flip_p_values(champion, challenger, None, Night(11, np.ones(10, bool)))
        assert (verdict.p_value, verdict.unconditional_p_value) == found
        # 110 of 120 at least: none of the nines and any of the ones, or one nine and at most one
        # of the ones, whose 9 + 1 = 10 are not above it
        assert found == (1 / (8 + 7), 1 / 1024)
        assert verdict.reasons == ("NOT_SIGNIFICANT",)
        assert criterion(verdict, "p-value").value == verdict.p_value
        assert judge(*errors).promote
        assert judge(*errors, threshold=5).promote
        values = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))
        assert (values["p_value"], values["unconditional_p_value"]) == found

    def test_without_an_exceeded_threshold_it_is_the_test_of_any_night(self) -> None:
        """Asked for by a person: every number and word is the same."""
        for threshold in (12.0, 50.0):
            found = judge(*NIGHTS_OF_TWENTY, threshold=threshold).as_dict()
            assert found == judge(*NIGHTS_OF_TWENTY).as_dict()

    def test_a_night_that_only_this_order_makes_promotes_nothing(self) -> None:
        """Any swap would have left the champion healthy: p = 1."""
        verdict = judge(WORSE, BETTER, threshold=19.5)
        assert (verdict.p_value, verdict.unconditional_p_value) == (1, 1 / 1024)
        assert verdict.reasons == ("NOT_SIGNIFICANT",)

    def test_only_what_decided_is_under_the_condition(self) -> None:
        """The five others bring 1/32."""
        decided = [False] * 5 + [True] * 5
        verdict = judge(WORSE, BETTER, threshold=19.5, decided=decided)
        assert verdict.p_value == 1 / 32
        assert verdict.promote

    def test_what_decided_may_weigh_more_or_less(self) -> None:
        """Weights 1/2 and 2: the two means of five count as 1 to 4, and so do their swaps."""
        champion, challenger = [40.0] * 5 + [12.0] * 5, [0.0] * 5 + [11.0] * 5
        weights = [0.5] * 5 + [2.0] * 5
        verdict = judge(champion, challenger, threshold=17.3, decided=weights)
        # (20 * 5 + 24 * 5) / 12.5 = 17.6; with one of the last five swapped 17.44, two 17.28: of
        # 1024 swaps 1 + 5 are such nights, and of these the first is the largest.
        assert verdict.p_value == 1 / 6
        assert verdict.challenger_mean_error_decided == pytest.approx(11 * 10 / 12.5)
        assert verdict.champion_mean_error == 26
        same = judge(champion, challenger, threshold=17.3, decided=[True] * 10).as_dict()
        assert judge(champion, challenger, threshold=17.3, decided=[1.0] * 10).as_dict() == same

    def test_what_is_known_beside_the_errors_counts_in_the_condition(self) -> None:
        """Three points more on both sides of the threshold are the same night."""
        champion, challenger = [40.0] * 5 + [12.0] * 5, [0.0] * 5 + [11.0] * 5
        weights = [0.5] * 5 + [2.0] * 5
        told = judge(champion, challenger, threshold=20.3, known=3.0, decided=weights)
        assert told.p_value == 1 / 6
        assert told.challenger_mean_error_decided == pytest.approx(3 + 11 * 10 / 12.5)
        assert told.champion_mean_error == 26

    @pytest.mark.parametrize(
        ("threshold", "decided", "still_above"),
        [(15, None, None), (9.9, None, 9.9), (10, None, None), (9.9, [False] + [True] * 9, 9.9)],
    )
    def test_a_promoted_version_that_is_still_too_bad_is_said_to_be(
        self, threshold: float, decided: Any, still_above: float | None
    ) -> None:
        """It is at 10 %, and the mean over those that decided counts."""
        champion = [20.0] + [30.0] * 9
        verdict = judge(champion, BETTER, threshold=threshold, decided=decided)
        assert verdict.promote
        assert verdict.still_above == still_above
        said = "still above the threshold of 9.9 %" in verdict.explain()
        assert said is (still_above is not None)
        assert verdict.as_dict()["still_above"] == still_above

    def test_what_is_not_promoted_is_not_said_to_be_above(self) -> None:
        """Production is, and everything else says so."""
        assert judge(BETTER, WORSE, threshold=5).still_above is None

    def test_by_the_bound_another_condition_holds(self) -> None:
        """The interval's lower end is over the threshold under other flips than the mean."""
        champion = [30.0, 12, 25, 18, 40, 22, 35, 9]
        challenger = [10.0, 13, 12, 14, 15, 8, 20, 9]
        found = set()
        for decide in ("point", "bound"):
            night = Night(15, np.ones(8, dtype=bool), decide)
            expected = sign_flip_p_values(np.array(champion), np.array(challenger), None, night)
            verdict = judge(champion, challenger, threshold=15, decide=decide)
            assert (verdict.p_value, verdict.unconditional_p_value) == expected
            found.add(verdict.p_value)
        assert len(found) == 2


class TestLooks:
    """`look_significance`: each look has the whole of it, a repeated one half of the last."""

    @pytest.mark.parametrize(
        ("significance", "repeated_looks", "largest"),
        [(0.05, 0, 0.05), (0.05, 1, 0.025), (0.05, 3, 0.00625), (0.2, 2, 0.05), (1, 5, 1)],
    )
    def test_a_repeated_look_has_half(
        self, significance: float, repeated_looks: int, largest: float
    ) -> None:
        """All of them together at most twice the significance; 1 is no test at all."""
        assert look_significance(significance, repeated_looks) == largest

    def test_the_same_recordings_count_less_again(self) -> None:
        """Six equal gains, p = 1/64: enough at 0.025, not at 0.0125; said with the reason."""
        six = (WORSE[:6], BETTER[:6])
        assert judge(*six).promote
        again = judge(*six, repeated_looks=1)
        assert again.promote
        assert again.explain().endswith(
            "a repeated look: these recordings were compared once before"
        )
        third = judge(*six, repeated_looks=2)
        assert third.reasons == ("TOO_FEW_RECORDINGS", "NOT_SIGNIFICANT")
        assert criterion(third, "p-value").limit == 0.0125
        assert criterion(third, "differ").limit == 7
        assert (
            "NOT_SIGNIFICANT: p = 0.0156, at most 0.0125 is needed, 0.05 at a first look"
        ) in third.explain()
        assert "these recordings were compared 2 times before" in third.explain()
        assert third.as_dict()["repeated_looks"] == 2

    def test_without_a_test_no_look_costs_anything(self) -> None:
        """At significance 1 the lower mean wins each time."""
        assert judge([10.0], [9.9], significance=1, repeated_looks=3).promote

    def test_old_recordings_are_protected_at_every_look(self) -> None:
        """What can only forbid a promotion is held against the whole significance."""
        used = ([0.0] * 5, [50.0] * 5)
        verdict = judge(WORSE, BETTER, repeated_looks=1, used_errors=used)
        assert verdict.reasons == ("FORGETS",)


class TestEvidence:
    """How much is needed, how sure it is, and how often luck is taken for a gain."""

    @pytest.mark.parametrize(
        ("champion", "challenger", "options", "needed"),
        [
            # mean 1, variance 24/5; ((1.6449 + 0.8416)^2 * 4.8 = 29.7
            (*UNDECIDED, {}, 30),
            # at 0.01: (2.3263 + 0.8416)^2 * 4.8 = 48.2
            (*UNDECIDED, {"significance": 0.01}, 49),
            # fresh recordings make no repeated look
            (*UNDECIDED, {"repeated_looks": 2}, 30),
            # no deviation at all: five signs give 1/32, ten 1/1024
            (WORSE[:4], BETTER[:4], {}, 5),
            (WORSE[:4], BETTER[:4], {"significance": 0.001}, 10),
            # one recording tells nothing of others
            ([9.0], [3.0], {}, None),
            (BETTER, WORSE, {}, None),
            (BETTER, BETTER, {}, None),
            (*UNDECIDED, {"n_leaked": 1}, None),
        ],
    )
    def test_it_says_how_many_recordings_a_gain_would_take(
        self, champion: Any, challenger: Any, options: dict[str, Any], needed: int | None
    ) -> None:
        """By the normal approximation, and only where nothing but evidence is lacking."""
        verdict = judge(champion, challenger, **options)
        assert verdict.recordings_needed == needed
        assert ("needs about" in verdict.explain()) is (needed is not None)
        if needed:
            assert f"a gain of this size needs about {needed} recordings" in verdict.explain()

    def test_without_a_test_no_number_is_needed(self) -> None:
        """At significance 1 every gain is promoted."""
        assert gate.recordings_needed(np.array([1.0, 3.0]), 1) is None

    @pytest.mark.parametrize(
        ("champion", "challenger", "options"),
        [
            (WORSE, BETTER, {}),
            (WORSE, BETTER, {"n_leaked": 1}),
            (BETTER, WORSE, {}),
            (*UNDECIDED, {"n_leaked": 1}),
            (*UNDECIDED, {"significance": 1, "n_leaked": 1}),
            ([9.0], [3.0], {}),
        ],
        ids=["promoted", "leak", "worse", "more is lacking", "no test", "one recording"],
    )
    def test_chances_are_told_only_where_evidence_alone_is_lacking(
        self, champion: Any, challenger: Any, options: dict[str, Any]
    ) -> None:
        """Waiting mends nothing else."""
        verdict = judge(champion, challenger, window=30, **options)
        assert verdict.chances == {}
        assert "chance" not in verdict.explain()

    def test_waiting_has_a_chance(self) -> None:
        """Within five and ten nights, in words and as plain values."""
        verdict = judge(*UNDECIDED, window=30, recordings_a_night=2)
        assert list(verdict.chances) == [5, 10]
        assert 0 < verdict.chances[5] < verdict.chances[10] < 1
        five, ten = (f"{100 * verdict.chances[nights]:.0f} %" for nights in (5, 10))
        assert (
            f"the chance of a promotion at this gain is {five} within 5 nights and {ten} "
            "within 10 nights"
        ) in verdict.explain()
        values = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))
        assert values["chances"] == {"5": verdict.chances[5], "10": verdict.chances[10]}

    def test_more_recordings_a_night_are_a_better_chance(self) -> None:
        """And a window that stays as small as it is a smaller one."""
        chances = [
            judge(*UNDECIDED, window=window, recordings_a_night=a_night).chances[10]
            for window, a_night in ((60, 6), (60, 2), (6, 2))
        ]
        assert chances == sorted(chances, reverse=True)
        assert len(set(chances)) == 3

    def test_it_says_what_a_night_could_have_shown(self) -> None:
        """Of whatever was not promoted, once there is a gain that could have been shown."""
        random = np.random.default_rng(1)
        champion = 12 + random.gamma(1, 6, 15)
        verdict = judge(champion, champion * random.gamma(4, 0.25, 15), threshold=10)
        assert not verdict.promote
        assert verdict.power_gain is not None
        assert 1 < verdict.power_gain < 12
        said = re.search(
            r"these 15 recordings would have shown a gain of (\S+) percentage points 80 % of "
            "the time",
            verdict.explain(),
        )
        assert said is not None
        assert float(said[1]) == pytest.approx(verdict.power_gain, abs=0.051)
        assert judge(WORSE, BETTER).power_gain is None
        assert judge(WORSE[:4], BETTER[:4]).power_gain is None

    @pytest.mark.parametrize(
        ("losses", "words"),
        [
            ([0.0] * 10, "is not worse"),
            ([-3.0, -2.0] * 5, "is not worse"),
            ([1.5] * 10, "could still be worse by up to 1.5 percentage points"),
            ([-9.0, 9.0] * 10, "could still be worse by up to 3.9 percentage points"),
        ],
    )
    def test_what_may_be_forgotten_unseen_is_said(self, losses: list[float], words: str) -> None:
        """The upper 95 % bound of the loss: no loss shown is not shown to be none."""
        old = ([10.0] * len(losses), [10 + one for one in losses])
        verdict = judge(WORSE, BETTER, used_errors=old)
        found = criterion(verdict, "old recordings")
        assert found.explanation.endswith(f"; {words}")
        expected = mean_interval(np.array(losses), confidence=0.9)[1]
        assert verdict.loss_bound == pytest.approx(expected)
        assert verdict.as_dict()["loss_bound"] == verdict.loss_bound

    def test_without_old_recordings_nothing_is_said_of_a_loss(self) -> None:
        """Not that there is none."""
        assert judge(WORSE, BETTER).loss_bound is None

    def test_the_interval_is_that_of_the_differences(self) -> None:
        """By bootstrap-t, around the difference."""
        random = np.random.default_rng(4)
        champion, challenger = random.gamma(1, 8, (2, 15))
        verdict = judge(champion, challenger)
        found = verdict.difference_low, verdict.difference_high
        assert found == pytest.approx(mean_interval(champion - challenger), abs=1e-6)
        assert found[0] < verdict.difference < found[1]

    def test_an_equal_model_is_rarely_promoted(self) -> None:
        """300 times 15 recordings: at most 5 %, and three standard errors of that (3.8 %).

        All flips are counted here; the gate judges what comes near its limit, and a sample.
        """
        first, second = errors_of_equal_models(300, 15, seed=0)
        expected = exact_p_values(first - second)
        judged = sorted({*np.flatnonzero(expected < 0.07), *range(10)})
        verdicts = {row: judge(first[row], second[row]) for row in judged}
        for row, verdict in verdicts.items():
            assert verdict.p_value == pytest.approx(expected[row], abs=1e-9)
        promoted = sum(verdict.promote for verdict in verdicts.values())
        assert 0 < promoted <= 300 * 0.05 + 3 * math.sqrt(300 * 0.05 * 0.95)

    @pytest.mark.slow
    def test_an_equal_model_is_rarely_promoted_in_many_repetitions(self) -> None:
        """2000 times 12 recordings: at most 5 % and three standard errors; judged if it is near."""
        first, second = errors_of_equal_models(2000, 12, seed=1)
        near = np.flatnonzero(exact_p_values(first - second) < 0.07)
        promoted = sum(judge(first[row], second[row]).promote for row in near)
        assert 0 < promoted <= 2000 * 0.05 + 3 * math.sqrt(2000 * 0.05 * 0.95)

    def test_a_real_gain_is_found(self) -> None:
        """Half the error on 15 recordings, with luck on top: promoted in most repetitions."""
        random = np.random.default_rng(2)
        champion = random.uniform(10, 30, (10, 15))
        challenger = champion / 2 + random.uniform(0, 8, (10, 15))
        verdicts = [judge(*pair) for pair in zip(champion, challenger, strict=True)]
        assert sum(verdict.promote for verdict in verdicts) >= 9
        assert all(one.difference_low < one.difference < one.difference_high for one in verdicts)


PAIRS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=8)


class TestSessions:
    """Recordings of one session are no evidence for each other."""

    @pytest.mark.slow
    @hypothesis_settings(max_examples=25, deadline=None, derandomize=True)
    @given(pairs=PAIRS, named=st.lists(st.booleans(), min_size=8, max_size=8))
    def test_sessions_of_one_recording_change_nothing(
        self, pairs: list[tuple[int, int]], named: list[bool]
    ) -> None:
        """Every number and word is the same to the last bit, whether they have names or not."""
        champion, challenger = (np.array(one) / 7 for one in zip(*pairs, strict=True))
        old = (challenger, champion)
        sessions = [f"s{number}" if named[number] else "" for number in range(len(pairs))]
        expected = judge(champion, challenger, used_errors=old)
        found = judge(
            champion, challenger, used_errors=old, sessions=sessions, used_sessions=sessions
        )
        assert found.as_dict() == expected.as_dict()
        assert found.explain() == expected.explain()
        assert mean_interval(champion, sessions) == mean_interval(champion)

    @hypothesis_settings(max_examples=25, deadline=None, derandomize=True)
    @given(pairs=PAIRS, n_copies=st.integers(2, 4))
    def test_recordings_like_those_of_their_session_add_no_evidence(
        self, pairs: list[tuple[int, int]], n_copies: int
    ) -> None:
        """Each recording several times, as one session: the verdict is that of each once."""
        champion, challenger = zip(*pairs, strict=True)
        sessions = [f"s{number}" for number in range(len(pairs))] * n_copies
        once = judge(champion, challenger)
        often = judge(champion * n_copies, challenger * n_copies, sessions=sessions)
        assert often.p_value == once.p_value
        assert (often.reasons, often.recordings_needed) == (once.reasons, once.recordings_needed)
        assert (often.n_recordings, often.n_sessions) == (len(sessions), len(pairs))
        interval = (once.difference_low, once.difference_high)
        assert (often.difference_low, often.difference_high) == pytest.approx(interval, abs=1e-6)

    def test_their_signs_are_flipped_together(self) -> None:
        """Sums 3, 3 and -1: two of eight flips have a sum of at least 5."""
        verdict = judge([2, 1, 3, 0], [0, 0, 0, 1], sessions=["a", "a", "b", "c"])
        assert verdict.p_value == 2 / 8
        assert verdict.difference == 1.25

    def test_a_session_whose_differences_cancel_out_says_nothing(self) -> None:
        """0.1 + 0.2 - 0.3 is a tie, rounded or not."""
        verdict = judge([0.1, 0.2, 0.0], [0.0, 0.0, 0.3], sessions=["a", "a", "a"])
        assert criterion(verdict, "differ").value == 0

    def test_few_sessions_cannot_promote(self) -> None:
        """15 recordings, all ten points better, but three sessions; said in these words."""
        sessions = ["a", "b", "c"] * 5
        errors = ([20.0] * 15, [10.0] * 15)
        assert judge(*errors).promote
        verdict = judge(*errors, sessions=sessions)
        assert verdict.reasons == ("TOO_FEW_RECORDINGS", "NOT_SIGNIFICANT")
        assert verdict.explain() == (
            "TOO_FEW_RECORDINGS: the models differ on 3 sessions; below 5 no test can tell; "
            "NOT_SIGNIFICANT: p = 0.125, at most 0.05 is needed; "
            "the chance of a promotion at this gain is 100 % within 5 nights and 100 % within "
            "10 nights; a gain of this size needs about 5 sessions"
        )
        assert criterion(verdict, "sessions on which the models differ").value == 3
        values = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))
        assert (values["n_recordings"], values["n_sessions"]) == (15, 3)
        assert (values["recordings_needed"], verdict.independent_things) == (5, "sessions")

    def test_enough_sessions_promote(self) -> None:
        """The sentence tells both numbers."""
        sessions = [f"s{number // 2}" for number in range(10)]
        verdict = judge(WORSE, BETTER, sessions=sessions)
        assert verdict.explain() == "20.0 % -> 10.0 % on 10 recordings of 5 sessions, p = 0.031"

    @pytest.mark.parametrize(("n_sessions", "outcome"), [(4, "passed"), (5, "failed")])
    def test_a_loss_on_old_sessions_must_be_proved(self, n_sessions: int, outcome: str) -> None:
        """20 old recordings of four sessions prove nothing, of five they do."""
        used = ([0.0] * 20, [50.0] * 20)
        sessions = [f"s{number % n_sessions}" for number in range(20)]
        verdict = judge(WORSE, BETTER, used_errors=used, used_sessions=sessions)
        found = criterion(verdict, "old recordings")
        assert found.outcome.value == outcome
        assert f"on 20 old recordings of {n_sessions} sessions, p = " in found.explanation

    def test_a_session_for_each_recording_is_needed(self) -> None:
        """No verdict by default."""
        with pytest.raises(NoVerdict, match="10 recordings and 9 sessions"):
            judge(WORSE, BETTER, sessions=["a"] * 9)

    @pytest.mark.slow
    def test_an_equal_model_is_rarely_promoted_by_sessions_that_are_alike(
        self, figure: Any
    ) -> None:
        """15 recordings of five sessions, 600 times: above 10 % by recording, 5 % by session."""
        random = np.random.default_rng(3)
        luck_of_session = np.repeat(random.normal(0, 3, (600, 5)), 3, axis=1)
        champion = 20 + luck_of_session + random.normal(0, 1, (600, 15))
        challenger = 20 - luck_of_session + random.normal(0, 1, (600, 15))
        sessions = [f"s{number // 3}" for number in range(15)]
        by_recording = (exact_p_values(champion - challenger) <= 0.05).mean()
        pairs = zip(champion, challenger, strict=True)
        by_session = np.mean([judge(*pair, sessions=sessions).promote for pair in pairs])
        figure("false promotions, by recording and by session", (by_recording, by_session))
        assert by_recording > 0.1
        assert 0 < by_session <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_folder")
class TestRealSplits:
    """Real models on real recordings."""

    def test_twins_are_kept_and_a_better_generation_is_promoted(self, part: Part) -> None:
        """A sample of the splits; `make real-splits` takes them all."""
        printed = run_sweep(
            *("real_splits.py", "--twins", part.of(4, 2), "--generations", part.of(2, 1))
        )
        print(f"\n{printed}")
        assert json.loads(printed.splitlines()[-1])["as promised"]
