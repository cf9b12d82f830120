"""The gate: p-values by hand, each criterion alone, and how often an equal model wins."""

from __future__ import annotations

import itertools
import json
import math
import re
from typing import Any

import gate_simulation
import numpy as np
import pytest
from conftest import run_sweep
from gate_simulation import Cell
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

from retraining import gate
from retraining.gate import Criterion, Outcome, Verdict, effective_significance, judge

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


class TestPValue:
    """`permutation_p_value`."""

    @pytest.mark.parametrize(
        ("differences", "p_value"),
        [
            ([1, 2, 3], 1 / 8),
            ([1, 2, -3], 5 / 8),
            ([1, 1, -1], 4 / 8),
            ([3, -1], 2 / 4),
            ([-1, -2, -3], 1),
            ([0, 0, 5], 1 / 2),
            ([0, 0, 0], 1),
            ([7] * 10, 1 / 1024),
            ([3, -1, 3, -1, 3, -1], 11 / 64),
            ([5], 1 / 2),
            ([0], 1),
            ([-5], 1),
        ],
    )
    def test_it_is_the_share_of_sign_flips_at_least_as_large(
        self, differences: list[float], p_value: float
    ) -> None:
        """Counted by hand, ties included."""
        found = gate.permutation_p_value(np.array(differences, dtype=float))
        assert found == pytest.approx(p_value, abs=1e-12)

    def test_it_is_never_zero(self) -> None:
        """From random flips: (b + 1) / (m + 1), here about 2^-20 and so b is nearly always 0."""
        found = gate.permutation_p_value(np.ones(20))
        assert 1 / 100_000 <= found <= 5 / 100_000

    def test_a_small_significance_takes_more_flips(self) -> None:
        """At 0.00007 ten times 1/0.00007 = 142,858: all 2^17 of 17 recordings are counted."""
        assert gate.permutation_p_value(np.ones(17), 0.00007) == 2**-17

    def test_random_flips_come_close_to_all_flips(self) -> None:
        """18 recordings: standard error of the estimate at most 0.0016."""
        differences = np.random.default_rng(1).normal(1, 3, 18)
        found = gate.permutation_p_value(differences)
        (exact,) = exact_p_values(differences[None])
        assert found == pytest.approx(exact, abs=0.008)
        assert gate.permutation_p_value(differences) == found


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
        """Five equal gains: p = 1/32, promoted at 1/32 = 0.8 * 5/128 and not below."""
        five = (WORSE[:5], BETTER[:5])
        too_few = ("TOO_FEW_RECORDINGS", "NOT_SIGNIFICANT")
        assert judge(*five, significance=1 / 32, peeking="ignore").promote
        assert judge(*five, significance=0.031, peeking="ignore").reasons == too_few
        assert judge(*five, significance=5 / 128).promote
        assert judge(*five, significance=0.039).reasons == too_few

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
    def test_no_two_models_replace_each_other(self, pairs: list[tuple[int, int]]) -> None:
        """Whatever the errors; and the order of the recordings does not matter."""
        first, second = zip(*pairs, strict=True)
        one, other = judge(first, second), judge(second, first)
        assert not (one.promote and other.promote)
        assert judge(first[::-1], second[::-1]).reasons == one.reasons
        assert one.promote is (one.p_value <= 0.04)


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
            {"peeking": "sometimes"},
            {"earlier_looks": (15, 0)},
            {"earlier_looks": (-1,)},
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
        (shown,) = (list(one) if isinstance(one, tuple) else one for one in limits.values())
        with pytest.raises(ValueError, match=re.escape(str(shown))):
            judge(WORSE, BETTER, used_errors=(BETTER, WORSE), **limits)


class TestPeeking:
    """`effective_significance`: each look at a champion has a share, all together 5 %."""

    @pytest.mark.parametrize(
        ("n_recordings", "earlier_looks", "share"),
        [
            (15, (), 0.04),
            (600, (), 0.04),
            (20, (15,), 0.15 * (1 / 15 - 1 / 20)),
            (30, (15, 20), 0.15 * (1 / 20 - 1 / 30)),
            (30, (15,), 0.15 * (1 / 15 - 1 / 30)),
            (15, (15,), 0.15 * (1 / 15 - 1 / 16)),
            (12, (15,), 0.15 * (1 / 15 - 1 / 16)),
            (15, (15, 15), 0.15 * (1 / 16 - 1 / 17)),
            (15, (4,), 0.04),
            (15, (3, 5, 4), 0.05 * (1 / 5 - 1 / 15)),
        ],
        ids=[
            "first look",
            "first look, however many",
            "second",
            "third",
            "as much as two",
            "same recordings again",
            "fewer recordings",
            "the same twice",
            "four could prove nothing",
            "five could",
        ],
    )
    def test_each_look_has_its_share(
        self, n_recordings: int, earlier_looks: tuple[int, ...], share: float
    ) -> None:
        """0.04 first, then 0.01 n_1 (1 / n_before - 1 / n_now)."""
        found = effective_significance(0.05, n_recordings, earlier_looks)
        assert found == pytest.approx(share, rel=1e-9)

    @hypothesis_settings(max_examples=200, deadline=None, derandomize=True)
    @given(
        looks=st.lists(st.integers(1, 200), min_size=1, max_size=60),
        significance=st.floats(0.001, 0.999),
    )
    def test_all_shares_together_are_the_significance_at_most(
        self, looks: list[int], significance: float
    ) -> None:
        """In any order and of any size; a look too small to promote has no part in the sum."""
        fewest = math.ceil(-math.log2(0.8 * significance))
        shares = [
            effective_significance(significance, n, looks[:number])
            for number, n in enumerate(looks)
            if n >= fewest
        ]
        assert all(share > 0 for share in shares)
        assert math.fsum(shares) < significance

    def test_more_new_recordings_have_a_larger_share(self) -> None:
        """And the same number of new ones a smaller share the later they come."""
        larger = [effective_significance(0.05, n, (15,)) for n in range(16, 100)]
        later = [effective_significance(0.05, n, (*range(15, n),)) for n in range(16, 100)]
        assert larger == sorted(larger)
        assert later == sorted(later, reverse=True)

    @pytest.mark.parametrize("look", range(1, 4))
    def test_ignored_or_without_a_test_no_look_costs_anything(self, look: int) -> None:
        """5 % each time; and at significance 1 the lower mean wins each time."""
        earlier = (15,) * (look - 1)
        assert effective_significance(0.05, 15, earlier, "ignore") == 0.05
        assert effective_significance(1, 15, earlier) == 1
        assert judge([10.0], [9.9], significance=1, earlier_looks=earlier).promote

    def test_the_same_evidence_counts_less_at_a_later_look(self) -> None:
        """Ten equal gains, p = 1/1024: enough after one earlier look at five, not after two."""
        assert judge(WORSE, BETTER, earlier_looks=(5,)).promote
        verdict = judge(WORSE, BETTER, earlier_looks=(5, 10))
        assert verdict.reasons == ("TOO_FEW_RECORDINGS", "NOT_SIGNIFICANT")
        # 0.05 * (1/10 - 1/11) = 0.000455, and 2^-11 = 0.00049 is above it, 2^-12 is not
        assert criterion(verdict, "p-value").limit == pytest.approx(0.05 * (1 / 10 - 1 / 11))
        assert criterion(verdict, "differ").limit == 12
        assert (
            "NOT_SIGNIFICANT: p = 0.000977, at most 0.000455 is needed at look 3, "
            "0.05 over all looks"
        ) in verdict.explain()
        assert judge(WORSE, BETTER, earlier_looks=(5, 10), peeking="ignore").promote

    def test_old_recordings_are_protected_at_every_look(self) -> None:
        """What can only forbid a promotion is held against the whole significance."""
        used = ([0.0] * 5, [50.0] * 5)
        verdict = judge(WORSE, BETTER, earlier_looks=(5,), used_errors=used)
        assert verdict.reasons == ("FORGETS",)


class TestEvidence:
    """How much is needed, how sure it is, and how often luck is taken for a gain."""

    @pytest.mark.parametrize(
        ("champion", "challenger", "options", "needed"),
        [
            # mean 1, variance 24/5; ((1.6449 + 0.8416)^2 * 4.8 = 29.7
            (*UNDECIDED, {"peeking": "ignore"}, 30),
            # at 0.01: (2.3263 + 0.8416)^2 * 4.8 = 48.2
            (*UNDECIDED, {"peeking": "ignore", "significance": 0.01}, 49),
            # at the second look 0.01 * (1 - 6/50) = 0.0088: (2.3739 + 0.8416)^2 * 4.8 = 49.6
            (*UNDECIDED, {}, 50),
            # six are no look at 0.008, which takes seven: (2.4089 + 0.8416)^2 * 4.8 = 50.7
            (*UNDECIDED, {"significance": 0.01}, 51),
            # one recording: the deviation is taken as large as the gain, 6.7
            ([9.0], [3.0], {}, 7),
            # no deviation at all: five signs give 1/32, ten 1/1024 and eleven 1/2048
            (WORSE[:4], BETTER[:4], {}, 5),
            (WORSE[:4], BETTER[:4], {"significance": 0.001, "peeking": "ignore"}, 10),
            (WORSE[:4], BETTER[:4], {"significance": 0.001}, 11),
            # looks at 15 and, counted as 16, at 4: 0.15 * (1/16 - 1/17) = 0.00055
            (WORSE[:4], BETTER[:4], {"earlier_looks": (15,)}, 11),
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

    def test_the_interval_of_a_mean_is_as_wide_as_theory_says(self) -> None:
        """100 values of N(50, 10): 2 * 1.96 * 10 / sqrt(100) = 3.9, around the mean."""
        values = 50 + 10 * stats.norm.ppf((np.arange(100) + 0.5) / 100)
        low, high = gate.mean_interval(values)
        assert low < 50 < high
        assert high - low == pytest.approx(3.9, rel=0.05)
        assert (low + high) / 2 == pytest.approx(50, abs=0.2)
        assert gate.mean_interval(values) == (low, high)

    @pytest.mark.parametrize("values", [[7.0], [7.0, 7.0, 7.0]])
    def test_values_without_spread_have_an_interval_without_width(
        self, values: list[float]
    ) -> None:
        """One recording tells nothing about the others."""
        assert gate.mean_interval(values) == (7, 7)

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
        """2000 times 12 recordings, all judged: at most 5 % and three standard errors."""
        first, second = errors_of_equal_models(2000, 12, seed=1)
        promoted = sum(judge(*pair).promote for pair in zip(first, second, strict=True))
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

    def test_a_session_counts_as_its_recordings_together(self) -> None:
        """Sums 5, 1 and 2 of three sessions and four recordings, times 3 / 4; the mean is 2."""
        found = gate.by_session([3.0, 1.0, 2.0, 2.0], ["a", "", "a", ""])
        assert found.tolist() == [3.75, 0.75, 1.5]
        assert found.mean() == 2

    @hypothesis_settings(max_examples=100, deadline=None, derandomize=True)
    @given(
        recordings=st.lists(
            st.tuples(st.integers(-500, 500), st.sampled_from(["", "a", "b", "c"])), min_size=1
        )
    )
    def test_the_mean_stays(self, recordings: list[tuple[int, str]]) -> None:
        """Whatever the sessions and their sizes."""
        values, sessions = zip(*recordings, strict=True)
        found = gate.by_session(np.array(values) / 7, sessions)
        assert len(found) == len(set(sessions) - {""}) + sessions.count("")
        assert found.mean() == pytest.approx(np.mean(values) / 7, abs=1e-8)

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
        assert gate.mean_interval(champion, sessions) == gate.mean_interval(champion)

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
            "NOT_SIGNIFICANT: p = 0.125, at most 0.04 is needed at look 1, 0.05 over all looks; "
            "a gain of this size needs about 5 sessions"
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

    def test_a_later_look_is_at_sessions_too(self) -> None:
        """0.2 * 0.05 * 5 * (1/5 - 1/10) after five: ten recordings are ten, of six sessions six."""
        assert criterion(judge(WORSE, BETTER, earlier_looks=(5,)), "p-value").limit == (
            pytest.approx(0.05 * (1 / 5 - 1 / 10))
        )
        sessions = ["", "", "a", "a", "b", "b", "c", "c", "d", "d"]
        verdict = judge(WORSE, BETTER, sessions=sessions, earlier_looks=(5,))
        assert criterion(verdict, "p-value").limit == pytest.approx(0.05 * (1 / 5 - 1 / 6))

    @pytest.mark.parametrize(("n_sessions", "outcome"), [(4, "passed"), (5, "failed")])
    def test_a_loss_on_old_sessions_must_be_proved(self, n_sessions: int, outcome: str) -> None:
        """20 old recordings of four sessions prove nothing, of five they do."""
        used = ([0.0] * 20, [50.0] * 20)
        sessions = [f"s{number % n_sessions}" for number in range(20)]
        verdict = judge(WORSE, BETTER, used_errors=used, used_sessions=sessions)
        found = criterion(verdict, "old recordings")
        assert found.outcome.value == outcome
        assert f"on 20 old recordings of {n_sessions} sessions, p = " in found.explanation

    def test_an_interval_draws_whole_sessions(self) -> None:
        """Wider than by recording where a session is alike, and of means of sessions."""
        values = [1.0] * 4 + [2.0] * 2 + [6.0] * 4 + [3.0] * 5
        sessions = ["a"] * 4 + ["b"] * 2 + ["c"] * 4 + ["d"] * 5
        low, high = gate.mean_interval(values, sessions)
        by_recording = gate.mean_interval(values)
        assert 1 <= low < by_recording[0] < 47 / 15 < by_recording[1] < high <= 6

    def test_sessions_of_different_size_alone_widen_no_interval(self) -> None:
        """Means of 5.0 and 5.1 in sessions of one and of nine recordings."""
        low, high = gate.mean_interval([5.0] + [5.1] * 9, ["a"] + ["b"] * 9)
        assert (low, high) == pytest.approx((5.0, 5.1))

    def test_one_session_is_no_spread(self) -> None:
        """As one recording tells nothing about others."""
        assert gate.mean_interval([1.0, 3.0], ["a", "a"]) == (2, 2)

    def test_a_session_for_each_recording_is_needed(self) -> None:
        """No verdict by default."""
        with pytest.raises(gate.NoVerdict, match="10 recordings and 9 sessions"):
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
        by_recording = (exact_p_values(champion - challenger) <= 0.04).mean()
        pairs = zip(champion, challenger, strict=True)
        by_session = np.mean([judge(*pair, sessions=sessions).promote for pair in pairs])
        figure("false promotions, by recording and by session", (by_recording, by_session))
        assert by_recording > 0.1
        assert 0 < by_session <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_folder")
class TestRealSplits:
    """Real models on real recordings."""

    def test_twins_are_kept_and_a_better_generation_is_promoted(self) -> None:
        """A sample of the splits; `make real-splits` takes them all."""
        printed = run_sweep("real_splits.py", "--twins", "4", "--generations", "2")
        print(f"\n{printed}")
        assert json.loads(printed.splitlines()[-1])["as promised"]


class TestSimulation:
    """`gate_simulation`: the error rates of `docs/gate.md`."""

    @pytest.mark.parametrize(("n_recordings", "n_rows"), [(2, 8), (7, 8), (12, 8), (16, 1)])
    def test_its_p_values_are_those_of_the_gate(self, n_recordings: int, n_rows: int) -> None:
        """All flips, ties and zeros included."""
        for name in gate_simulation.ERRORS:
            cell = Cell(name, n_recordings)
            ((champion, challenger),) = gate_simulation.nights(cell, n_rows, 1)
            found = gate_simulation.sign_flip_p_values(champion - challenger)
            for row, p_value in zip(champion - challenger, found, strict=True):
                assert gate.permutation_p_value(row) == pytest.approx(p_value, abs=1e-3)

    @pytest.mark.parametrize("n_recordings", [20, 40])
    def test_its_random_p_values_come_close_to_those_of_the_gate(self, n_recordings: int) -> None:
        """Five standard errors of 999 flips above its first limit, of 9,999 below."""
        cells = [Cell("skewed like real ones", n_recordings, gain) for gain in (0, 2)]
        batches = [next(gate_simulation.nights(cell, 8)) for cell in cells]
        differences = np.vstack([champion - challenger for champion, challenger in batches])
        found = gate_simulation.sign_flip_p_values(differences)
        assert found.min() < 0.05
        assert found.max() > 0.08
        for row, p_value in zip(differences, found, strict=True):
            expected = gate.permutation_p_value(row)
            n_flips = 999 if p_value > 0.08 else 9_999
            error = math.sqrt(expected * (1 - expected) / n_flips)
            assert p_value == pytest.approx(expected, abs=5 * error + 1e-4)

    def test_it_spends_as_the_gate_does(self) -> None:
        """The candidate in bold is `effective_significance`."""
        sizes = [15, 17, 18, 21, 60]
        shares = [effective_significance(0.05, n, sizes[:look]) for look, n in enumerate(sizes)]
        assert gate_simulation.spent_by_recordings(np.array(sizes), 0.8) == pytest.approx(shares)

    def test_old_recordings_keep_the_errors_of_the_champion(self) -> None:
        """Recordings are only added; equal models have equal means, a gain is as large as asked."""
        cell = Cell("50 % ties", 15, gain=2)
        batches = list(gate_simulation.nights(cell, 2000))
        for before, after in itertools.pairwise(batches):
            n_before, n_after = before[0].shape[1], after[0].shape[1]
            assert 1 <= n_after - n_before <= 3
            assert np.array_equal(before[0], after[0][:, :n_before])
        champion, challenger = batches[-1]
        assert champion.mean() == pytest.approx(10, abs=0.1)
        assert (champion - challenger).mean() == pytest.approx(2, abs=0.1)
        assert (champion == challenger).mean() == pytest.approx(0.5, abs=0.01)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", gate_simulation.ERRORS)
    @pytest.mark.parametrize("n_first", [7, 15, 30])
    def test_an_equal_model_is_rarely_promoted_in_the_life_of_a_champion(
        self, name: str, n_first: int
    ) -> None:
        """2000 champions: 5 % and three standard errors at one look and over 20; not if ignored."""
        most = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
        for carried in (0.0, 0.9):
            found = gate_simulation.promoting_looks(Cell(name, n_first, carried=carried), 2000)
            print(name, n_first, carried, gate_simulation.percent(np.isfinite(found["spend"])))
            assert (found["ignore"] == 1).mean() <= most
            assert np.isfinite(found["spend"]).mean() <= most
            assert np.isfinite(found["ignore"]).mean() > most

    @pytest.mark.slow
    def test_a_gain_of_four_points_is_found_at_the_first_look(self) -> None:
        """15 recordings with errors like real ones; one in twenty less than without spending."""
        found = gate_simulation.promoting_looks(Cell("skewed like real ones", 15, gain=4), 2000)
        assert (found["spend"] == 1).mean() > 0.7
        assert (found["spend"] == 1).mean() > (found["ignore"] == 1).mean() - 0.05
        assert np.isfinite(found["spend"]).mean() > 0.95
