"""Luck alone: sign flips against an oracle, intervals that cover, and what nights can show."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

from retraining import resampling
from retraining.resampling import (
    Evidence,
    Night,
    NoVerdict,
    by_session,
    mean_interval,
    rough_flips,
    rough_p_values,
    sign_flip_p_values,
    weighted_mean,
)

THRESHOLD = 10.0


def columns(differences: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return errors of champion and challenger with these differences."""
    found = np.array(differences, dtype=float)
    return np.maximum(found, 0), np.maximum(-found, 0)


def any_night(differences: Sequence[float], significance: float = 0.05) -> float:
    """Return the p-value of these differences without a condition."""
    given_night, p_value = sign_flip_p_values(*columns(differences), significance=significance)
    assert given_night == p_value
    return p_value


def counted_p_values(
    champion: Sequence[float],
    challenger: Sequence[float],
    sessions: Sequence[str] | None,
    night: Night,
) -> tuple[float, float]:
    """Return both p-values by swapping whole sessions in every way, one after the other."""
    labels = [one or f"alone {at}" for at, one in enumerate(sessions or [""] * len(champion))]
    names = sorted(set(labels))
    pairs = list(zip(champion, challenger, strict=True))
    observed = math.fsum(old - new for old, new in pairs)
    given_night, everywhere = [], []
    for swapped in itertools.product([False, True], repeat=len(names)):
        is_swapped = dict(zip(names, swapped, strict=True))
        flipped = [
            pair[::-1] if is_swapped[name] else pair
            for pair, name in zip(pairs, labels, strict=True)
        ]
        is_large = math.fsum(old - new for old, new in flipped) >= observed - 1e-6
        everywhere.append(is_large)
        if night.is_over(np.array([old for old, _ in flipped]), sessions):
            given_night.append(is_large)
    return float(np.mean(given_night)), float(np.mean(everywhere))


def skewed(seed: int, n: int, mean: float = 8.0) -> tuple[np.ndarray, np.ndarray]:
    """Return independent errors of two equal models, as skewed as real ones."""
    random = np.random.default_rng(seed)
    first, second = random.gamma(1, mean, (2, n)).round(2)
    return first, second


def nights_over(n_nights: int, n: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return errors of equal models on nights on which the champion was over the threshold."""
    random = np.random.default_rng(seed)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    while len(found) < n_nights:
        champion, challenger = random.gamma(1, 8, (2, n))
        if champion.mean() > THRESHOLD:
            found.append((champion, challenger))
    return found


class TestAnyNight:
    """`sign_flip_p_values` without a condition."""

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
        assert any_night(differences) == pytest.approx(p_value, abs=1e-12)

    @pytest.mark.parametrize("seed", range(6))
    def test_it_is_what_scipy_says(self, seed: int) -> None:
        """`permutation_test` of pairs, which goes through all flips as well."""
        champion, challenger = skewed(seed, 7 + seed % 6)
        expected = stats.permutation_test(
            (champion, challenger),
            lambda one, other, axis: (one - other).mean(axis=axis),
            permutation_type="samples",
            alternative="greater",
            n_resamples=math.inf,
            vectorized=True,
        ).pvalue
        assert sign_flip_p_values(champion, challenger) == pytest.approx((expected, expected))

    def test_all_flips_of_forty_recordings_are_counted(self) -> None:
        """Only one of 2^40 is as large, and only 41 are with one sign turned."""
        assert any_night([1] * 40) == 2**-40
        assert any_night([1] * 39 + [-1]) == pytest.approx(41 * 2**-40)

    def test_drawn_flips_never_say_never(self) -> None:
        """From random flips: (b + 1) / (m + 1), and b is 0 for 2^-50."""
        assert 1 / 110_000 <= any_night([1] * 50) <= 1 / 100_000

    def test_a_small_significance_takes_more_flips(self) -> None:
        """Ten times 1/0.00002 = 500,000."""
        assert any_night([1] * 50, 0.00002) <= 1 / 500_000

    @pytest.mark.parametrize("n", [41, 80, 300])
    def test_drawn_flips_come_close_to_the_normal_approximation(self, n: int) -> None:
        """Standard error of 100,000 flips at most 0.0016, of the approximation about 0.005."""
        champion, challenger = skewed(n, n)
        differences = champion - challenger
        expected = stats.norm.sf(differences.sum() / math.sqrt((differences**2).sum()))
        found = sign_flip_p_values(champion, challenger)
        assert found == pytest.approx((expected, expected), abs=0.01)
        assert sign_flip_p_values(champion, challenger) == found

    @pytest.mark.slow
    def test_thousands_of_recordings_take_seconds(self) -> None:
        """A hundred thousand flips of 3,000 at most."""
        champion, challenger = skewed(0, 3000)
        start = time.monotonic()
        sign_flip_p_values(champion, challenger + 1, None, Night(5, np.arange(3000) >= 2970))
        assert time.monotonic() - start < 30


class TestGivenTheNight:
    """`sign_flip_p_values`: only flips under which the champion is over its threshold count."""

    def test_it_counts_what_would_have_been_compared(self) -> None:
        """Champion 20, 20, 0: over 10 with two or three times 20, and all four are as large."""
        night = Night(10, np.ones(3, dtype=bool))
        found = sign_flip_p_values(np.array([20.0, 20, 0]), np.array([0.0, 0, 20]), None, night)
        assert found == (4 / 4, 4 / 8)

    def test_a_night_that_only_this_order_makes_is_no_evidence(self) -> None:
        """Any swap would have left the champion at 18 or less: p = 1, not 1/32."""
        errors = np.full(5, 20.0), np.full(5, 10.0)
        assert sign_flip_p_values(*errors, None, Night(19, np.ones(5, bool))) == (1, 1 / 32)
        assert sign_flip_p_values(*errors, None, Night(17.9, np.ones(5, bool))) == (1 / 6, 1 / 32)

    def test_what_did_not_decide_is_evidence_whatever_the_night(self) -> None:
        """Two decided, and only as they are; of the other five one of 32 flips is as large."""
        decided = np.arange(7) >= 5
        errors = np.full(7, 20.0), np.full(7, 10.0)
        assert sign_flip_p_values(*errors, None, Night(19, decided)) == (1 / 32, 1 / 128)

    @pytest.mark.parametrize("threshold", [10.0, 10.1, 50.0])
    def test_without_an_exceeded_threshold_there_is_no_condition(self, threshold: float) -> None:
        """The comparison was asked for: one of 1,024 flips; at the threshold is not above it."""
        errors = np.full(10, 10.0), np.full(10, 5.0)
        night = Night(threshold, np.ones(10, dtype=bool))
        assert sign_flip_p_values(*errors, None, night) == (1 / 1024, 1 / 1024)

    def test_equal_errors_are_no_evidence_on_any_night(self) -> None:
        """Ties of all recordings."""
        errors = np.full(10, 20.0)
        assert sign_flip_p_values(errors, errors, None, Night(5, np.ones(10, bool))) == (1, 1)

    @pytest.mark.parametrize("seed", range(12))
    def test_it_is_what_swapping_one_by_one_finds(self, seed: int) -> None:
        """1 to 12 recordings, with and without sessions, decided by all or by the newest."""
        random = np.random.default_rng(seed)
        n = seed + 1
        champion, challenger = skewed(seed, n, 12)
        challenger = np.where(random.random(n) < 0.2, champion, challenger)
        decided = np.arange(n) >= random.integers(0, n)
        threshold = float(champion[decided].mean()) * random.uniform(0.6, 0.99)
        for sessions in (None, [str(one or "") for one in random.integers(0, 5, n)]):
            night = Night(threshold, decided)
            expected = counted_p_values(champion.tolist(), challenger.tolist(), sessions, night)
            found = sign_flip_p_values(champion, challenger, sessions, night)
            assert found == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize("seed", range(4))
    def test_by_the_bound_it_is_nearly_what_swapping_one_by_one_finds(self, seed: int) -> None:
        """Ten times as many resamples inside a flip move a few flips over the threshold."""
        n = 6 + seed
        champion, challenger = skewed(seed, n, 12)
        sessions = None if seed % 2 else ["", "a", "a", *[""] * (n - 3)]
        decided = np.arange(n) >= seed % 3
        low = mean_interval(champion[decided], sessions and sessions[seed % 3 :])[0]
        night = Night(low - 0.3 * abs(low), decided, "bound")
        expected = counted_p_values(champion.tolist(), challenger.tolist(), sessions, night)
        found = sign_flip_p_values(champion, challenger, sessions, night)
        assert found[1] == pytest.approx(expected[1], abs=1e-12)
        assert found[0] == pytest.approx(expected[0], abs=0.06)

    @pytest.mark.parametrize("decide", ["point", "bound"])
    def test_few_things_decide_by_student(self, decide: str) -> None:
        """Below five sessions there is nothing to resample; one alone has no spread."""
        champion, challenger = np.array([40.0, 42, 41]), np.array([1.0, 2, 3])
        night = Night(THRESHOLD, np.ones(3, dtype=bool), decide)
        expected = counted_p_values(champion.tolist(), challenger.tolist(), None, night)
        assert sign_flip_p_values(champion, challenger, None, night) == pytest.approx(expected)
        alone = Night(THRESHOLD, np.ones(1, dtype=bool), decide)
        assert sign_flip_p_values(np.array([40.0]), np.array([1.0]), None, alone) == (1, 0.5)

    @pytest.mark.parametrize("sessions", [False, True])
    @pytest.mark.parametrize("decide", ["point", "bound"])
    def test_drawn_flips_come_close_to_all_flips(
        self, decide: str, sessions: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """14 recordings, all flips and a few thousand; standard error at most 0.016."""
        champion, challenger = skewed(5, 14, 14)
        names = ["", "a", "a", *[""] * 11] if sessions else None
        decided = np.arange(14) >= 4
        night = Night(0.7 * float(mean_interval(champion[decided])[0]), decided, decide)
        exact = sign_flip_p_values(champion, challenger, names, night)
        monkeypatch.setitem(resampling.MOST_EXACT, decide, 3)
        monkeypatch.setitem(resampling.MOST_EXACT, "point", 3)
        drawn = sign_flip_p_values(champion, challenger, names, night)
        assert drawn != exact
        assert drawn == pytest.approx(exact, abs=0.05)

    def test_a_rare_night_still_has_its_flips(self) -> None:
        """60 recordings of which 25 decide, in one of thousands of flips as high as they are."""
        champion, challenger = np.full(60, 12.0), np.full(60, 9.0)
        challenger[:35] = 12.0
        night = Night(11.6, np.arange(60) >= 35)
        given_night, everywhere = sign_flip_p_values(champion, challenger, None, night)
        # at most three of the 25 may be swapped: 1 + 25 + 300 + 2300 flips
        assert given_night == pytest.approx(1 / 2626, abs=0.02)
        assert everywhere < 0.00005

    @pytest.mark.parametrize("swapped", [False, True])
    def test_adding_up_in_another_order_is_no_other_error(self, swapped: bool) -> None:
        """The observed night counts, however near the threshold its mean is."""
        champion = np.array([0.1, 0.2, 0.3, 0.7, 49.1])
        challenger = np.array([0.3, 0.2, 0.1, 0.7, 0.4])
        if swapped:
            champion, challenger = champion[::-1], challenger[::-1]
        threshold = np.nextafter(champion.mean(), 0)
        found = sign_flip_p_values(champion, challenger, None, Night(threshold, np.ones(5, bool)))
        assert 0 < found[0] <= 1

    def test_an_equal_model_is_rarely_promoted_given_the_night(self) -> None:
        """600 nights of 15 recordings: 5 % and three standard errors; over 10 % without."""
        found = np.array(
            [
                sign_flip_p_values(*errors, None, Night(THRESHOLD, np.ones(15, bool)))
                for errors in nights_over(600, 15)
            ]
        )
        given_night, everywhere = (found <= 0.05).mean(axis=0)
        assert 0.01 < given_night <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)
        assert everywhere > 0.1

    def test_an_equal_model_is_rarely_promoted_given_a_weighted_night(self) -> None:
        """400 nights of 10 hard recordings, each a tenth of one, and 5 easy ones: as above."""
        random = np.random.default_rng(7)
        found: list[tuple[float, float]] = []
        night = Night(THRESHOLD, np.repeat([0.15, 2.7], [10, 5]))
        while len(found) < 400:
            champion, challenger = random.gamma(1, np.repeat([20.0, 8.0], [10, 5]), (2, 15))
            if night.is_over(champion):
                found.append(sign_flip_p_values(champion, challenger, None, night))
        given_night, everywhere = (np.array(found) <= 0.05).mean(axis=0)
        assert 0.01 < given_night <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
        assert everywhere > 0.06

    @pytest.mark.sampled(0.34)
    @pytest.mark.slow
    @pytest.mark.parametrize("n", [7, 15, 30])
    def test_its_p_values_are_uniform_under_the_swap_hypothesis(self, n: int, figure: Any) -> None:
        """At every level, in 3,000 nights, the newest half of the recordings decided."""
        decided = np.arange(n) >= n // 2
        random = np.random.default_rng(n)
        found: list[float] = []
        while len(found) < 3000:
            champion, challenger = random.gamma(1, 8, (2, n))
            night = Night(THRESHOLD, decided)
            if night.is_over(champion):
                found.append(sign_flip_p_values(champion, challenger, None, night)[0])
        shares = {level: float((np.array(found) <= level).mean()) for level in (0.025, 0.05, 0.2)}
        figure(f"promoted given the night, {n} recordings", shares)
        for level, share in shares.items():
            assert share <= level + 3 * math.sqrt(level * (1 - level) / 3000)


class TestNight:
    """`Night.is_over`."""

    @pytest.mark.parametrize(
        ("errors", "is_over"), [([10, 10], False), ([10, 10.1], True), ([50, 9], True)]
    )
    def test_the_mean_must_be_above_the_threshold(self, errors: list[float], is_over: bool) -> None:
        """Of those that decided alone."""
        night = Night(THRESHOLD, np.array([False, True, True]))
        assert night.is_over(np.array([99.0, *errors])) is is_over

    def test_by_the_bound_the_whole_interval_must_be(self) -> None:
        """A mean above the threshold that may be luck is none."""
        errors = np.array([4.0, 30, 9, 12, 25, 1])
        decided = np.ones(6, dtype=bool)
        low, _ = mean_interval(errors)
        assert low < THRESHOLD < errors.mean()
        assert Night(THRESHOLD, decided).is_over(errors)
        assert not Night(THRESHOLD, decided, "bound").is_over(errors)
        assert Night(low - 0.01, decided, "bound").is_over(errors)
        assert not Night(low, decided, "bound").is_over(errors)


class TestWeights:
    """What decided is a weighted mean."""

    def test_a_night_of_three_by_hand(self) -> None:
        """Weights 1, 1 and 4: of eight swaps those count that leave (a + b + 4 c) / 6 above 8."""
        champion, challenger = np.array([12.0, 6, 10]), np.array([6.0, 12, 4])
        night = Night(8, np.array([1.0, 1, 4]))
        assert night.is_over(champion)
        assert not Night(8, np.array([1.0, 4, 1])).is_over(champion)  # 46 / 6, and 28 / 3 of equals
        # As it was 58; the first swapped 52, the second 64, both 58; the third at most 40, not 48.
        # Differences sum up to 6, -6, 18 and 6 then; to 6 once more of the other four swaps.
        found = sign_flip_p_values(champion, challenger, None, night)
        assert found == (3 / 4, 4 / 8)

    @pytest.mark.parametrize("seed", range(8))
    @pytest.mark.parametrize("n_drawn", [0, 12])
    def test_it_is_what_swapping_one_by_one_finds(
        self, seed: int, n_drawn: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With and without sessions, all flips or some; some recordings did not decide."""
        random = np.random.default_rng(seed)
        n = n_drawn or seed + 2
        champion, challenger = skewed(seed, n, 12)
        weights = random.uniform(0.1, 3, n) * (np.arange(n) >= random.integers(0, n))
        threshold = weighted_mean(champion, weights) * random.uniform(0.6, 0.99)
        if n_drawn:
            monkeypatch.setitem(resampling.MOST_EXACT, "point", 3)
        for sessions in (None, [str(one or "") for one in random.integers(0, 9, n)]):
            night = Night(threshold, weights)
            expected = counted_p_values(champion.tolist(), challenger.tolist(), sessions, night)
            found = sign_flip_p_values(champion, challenger, sessions, night)
            assert found == pytest.approx(expected, abs=0.05 if n_drawn else 1e-12)

    def test_by_the_bound_it_is_nearly_what_swapping_one_by_one_finds(self) -> None:
        """With the interval of the weighted mean."""
        champion, challenger = skewed(2, 8, 12)
        weights = np.array([0.0, 1, 1, 0.3, 0.3, 0.3, 2, 2])
        low, high = mean_interval(champion[1:], weights=weights[1:])
        assert low < weighted_mean(champion, weights) < high
        night = Night(low - 0.3 * abs(low), weights, "bound")
        expected = counted_p_values(champion.tolist(), challenger.tolist(), None, night)
        found = sign_flip_p_values(champion, challenger, None, night)
        assert found == pytest.approx(expected, abs=0.06)
        assert expected[0] != pytest.approx(expected[1], abs=0.01)

    def test_weights_of_one_change_nothing(self) -> None:
        """Bit for bit, as true and false, as numbers and as any other same number for all."""
        champion, challenger = skewed(4, 17, 12)
        sessions = ["", "a", "a", *[""] * 14]
        decided = np.arange(17) >= 5
        for decide in ("point", "bound"):
            night, same = (
                Night(0.8 * float(champion[decided].mean()), each, decide)
                for each in (decided, decided.astype(float))
            )
            found = sign_flip_p_values(champion, challenger, sessions, night)
            assert found == sign_flip_p_values(champion, challenger, sessions, same)
            with_night = [
                Evidence.of(champion, challenger, sessions, each, 0.05) for each in (night, same)
            ]
            assert len({one.power_gain(0.8) for one in with_night}) == 1
        interval = mean_interval(champion, sessions)
        assert mean_interval(champion, sessions, weights=np.ones(17)) == interval
        twice = mean_interval(champion, sessions, weights=np.full(17, 2.0))
        assert twice == pytest.approx(interval, rel=1e-9)
        assert weighted_mean(champion, np.ones(17)) == weighted_mean(champion) == champion.mean()

    def test_the_interval_covers_the_mean_of_a_pool(self) -> None:
        """10 hard ones of 40 and 10 of the other 190, again and again: about 95 of 100."""
        random, hits = np.random.default_rng(5), 0
        for _ in range(200):
            pool = random.gamma(2, np.repeat([10.0, 4.0], [40, 190]))
            checked = [*random.choice(40, 10, False), *(40 + random.choice(190, 10, False))]
            weights = np.repeat([40 / 10, 190 / 10], 10)
            low, high = mean_interval(pool[checked], weights=weights)
            hits += low <= pool.mean() <= high
        assert 0.88 <= hits / 200 <= 1

    def test_rough_p_values_come_close(self) -> None:
        """20 nights of 16 recordings, five standard errors; and of sessions of two."""
        champion, challenger = np.random.default_rng(3).gamma(1, 12, (2, 20, 16))
        night = Night(THRESHOLD, np.repeat([0.0, 0.4, 1.6], [4, 6, 6]))
        found, happened = rough_p_values(champion, challenger, night, *rough_flips(16, 20_000))
        assert happened.tolist() == [night.is_over(one) for one in champion]
        for row in np.flatnonzero(happened):
            exact, _ = sign_flip_p_values(champion[row], challenger[row], None, night)
            assert found[row] == pytest.approx(exact, abs=0.1 * math.sqrt(exact) + 0.001)
        pairs = [str(at // 2) for at in range(16)]
        evidence = Evidence.of(champion[0], challenger[0], pairs, night, 0.05)
        assert evidence.night is not None
        assert evidence.night.decided.tolist() == [0, 0, 0.4, 0.4, 0.4, 1.6, 1.6, 1.6]


class TestBySession:
    """`by_session`."""

    def test_a_session_counts_as_its_recordings_together(self) -> None:
        """Sums 5, 1 and 2 of three sessions and four recordings, times 3 / 4; the mean is 2."""
        found = by_session([3.0, 1.0, 2.0, 2.0], ["a", "", "a", ""])
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
        found = by_session(np.array(values) / 7, sessions)
        assert len(found) == len(set(sessions) - {""}) + sessions.count("")
        assert found.mean() == pytest.approx(np.mean(values) / 7, abs=1e-8)

    def test_a_session_named_as_a_place_is_another_one(self) -> None:
        """A recording without a session is one of its own, whatever others are called."""
        assert by_session([1.0, 2.0, 3.0, 4.0], ["1", "", "1", "2"]).tolist() == [3, 1.5, 3]

    def test_a_session_for_each_recording_is_needed(self) -> None:
        """No verdict by default."""
        with pytest.raises(NoVerdict, match="DIFFERENT_RECORDINGS: 3 recordings and 2 sessions"):
            by_session([1.0, 2.0, 3.0], ["a", "b"])


def covered(n: int, n_samples: int, seed: int) -> tuple[float, float, float]:
    """Return how often an interval of skewed errors covers the mean, and each end alone."""
    random = np.random.default_rng(seed)
    mean = 8.0
    found = np.array([mean_interval(random.gamma(1, mean, n)) for _ in range(n_samples)])
    low, high = found[:, 0] <= mean, found[:, 1] >= mean
    return float((low & high).mean()), float(low.mean()), float(high.mean())


class TestMeanInterval:
    """`mean_interval`."""

    @pytest.mark.parametrize("n", [15, 30])
    def test_it_covers_the_mean_of_skewed_errors(self, n: int) -> None:
        """92 to 96 % and three standard errors of 400 samples; the percentile interval has 89 %."""
        error = 3 * math.sqrt(0.05 * 0.95 / 400)
        both, low, high = covered(n, 400, seed=n)
        assert 0.92 - error <= both <= 0.96 + error
        assert min(low, high) > 0.93

    @pytest.mark.sampled(0.5)
    @pytest.mark.slow
    @pytest.mark.parametrize("n", [15, 30])
    def test_it_covers_the_mean_of_skewed_errors_in_many_samples(self, n: int, figure: Any) -> None:
        """92 to 96 % of 5,000."""
        both, low, high = covered(n, 5000, seed=100 + n)
        figure(f"covered by the interval of {n}, both ends and each", (both, low, high))
        assert 0.92 <= both <= 0.96

    def test_it_is_the_bootstrap_t_of_the_book(self) -> None:
        """Efron and Tibshirani, 12.5: quantiles of (mean* - mean) / error*, taken crosswise."""
        values = np.random.default_rng(3).gamma(1, 8, 15)
        random = np.random.default_rng(11)
        drawn = values[random.integers(0, 15, (20_000, 15))]
        t = (drawn.mean(axis=1) - values.mean()) / stats.sem(drawn, axis=1)
        low, high = np.quantile(t, [0.025, 0.975])
        error = stats.sem(values)
        expected = values.mean() - high * error, values.mean() - low * error
        assert mean_interval(values) == pytest.approx(expected, abs=0.15 * error)

    def test_it_is_as_wide_as_theory_says(self) -> None:
        """100 values of N(50, 10): 2 * 1.96 * 10 / sqrt(100) = 3.9, around the mean."""
        values = 50 + 10 * stats.norm.ppf((np.arange(100) + 0.5) / 100)
        low, high = mean_interval(values)
        assert low < 50 < high
        assert high - low == pytest.approx(3.9, rel=0.06)
        assert (low + high) / 2 == pytest.approx(50, abs=0.2)
        assert mean_interval(values) == (low, high)

    def test_less_confidence_is_narrower(self) -> None:
        """Of 90 % each end alone has 95 %."""
        values = skewed(1, 20)[0]
        wide, narrow = mean_interval(values), mean_interval(values, confidence=0.9)
        assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]

    @pytest.mark.parametrize("values", [[7.0], [7.0, 7.0, 7.0]])
    def test_values_without_spread_have_an_interval_without_width(
        self, values: list[float]
    ) -> None:
        """One recording tells nothing about the others."""
        assert mean_interval(values) == (7, 7)

    @pytest.mark.parametrize("n", [2, 3, 4])
    def test_of_fewer_than_five_it_is_that_of_student(self, n: int) -> None:
        """There is too little to resample."""
        values = skewed(2, n)[0]
        expected = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
        assert mean_interval(values) == pytest.approx(expected)

    @pytest.mark.parametrize("n", [5, 7, 15, 30, 200])
    @pytest.mark.parametrize("n_errors", [1, 2])
    def test_errors_that_are_mostly_zero_have_a_finite_interval(
        self, n: int, n_errors: int
    ) -> None:
        """Many a resample has no spread of its own; Student's end stands in."""
        values = np.array([0.0] * (n - n_errors) + [5.0, 30.0][:n_errors])
        low, high = mean_interval(values)
        assert -math.inf < low < values.mean() < high < math.inf
        assert mean_interval(-values) == pytest.approx((-high, -low), rel=0.2)

    @pytest.mark.parametrize("at_least", [-math.inf, -1.0, 0.0, 3.0])
    def test_no_end_is_below_what_a_mean_can_be(self, at_least: float) -> None:
        """But the mean itself is in the interval whatever is asked."""
        values = [0.0, 0.0, 0.0, 0.0, 0.0, 4.0, 0.0, 0.0]
        low, high = mean_interval(values, at_least=at_least)
        free = mean_interval(values)
        assert free[0] < 0
        assert (low, high) == (max(free[0], min(at_least, 0.5)), free[1])

    def test_it_draws_whole_sessions(self) -> None:
        """Wider than by recording where a session is alike."""
        values = [1.0] * 4 + [2.0] * 2 + [6.0] * 4 + [3.0] * 5 + [4.0] * 3 + [2.5] * 2
        sessions = ["a"] * 4 + ["b"] * 2 + ["c"] * 4 + ["d"] * 5 + ["e"] * 3 + ["f"] * 2
        low, high = mean_interval(values, sessions)
        by_recording = mean_interval(values)
        assert low < by_recording[0] < float(np.mean(values)) < by_recording[1] < high

    @pytest.mark.parametrize("n_sessions", [2, 4, 6, 9])
    def test_sessions_of_one_size_are_as_their_means(self, n_sessions: int) -> None:
        """Three recordings each: the ratio of sums is the mean of means."""
        values = skewed(4, 3 * n_sessions)[0]
        sessions = [f"s{number // 3}" for number in range(len(values))]
        expected = mean_interval(values.reshape(n_sessions, 3).mean(axis=1))
        assert mean_interval(values, sessions) == pytest.approx(expected)

    def test_sessions_of_different_size_alone_widen_no_interval(self) -> None:
        """Means of about 5 in sessions of one and of nine recordings: no more than their own."""
        values, sessions = [], []
        for number, size in enumerate([1, 9] * 4):
            values += [5 + 0.01 * number] * size
            sessions += [f"s{number}"] * size
        low, high = mean_interval(values, sessions)
        assert high - low < 0.1

    def test_one_session_is_no_spread(self) -> None:
        """As one recording tells nothing about others."""
        assert mean_interval([1.0, 3.0], ["a", "a"]) == (2, 2)

    @pytest.mark.slow
    def test_many_thousands_of_recordings_take_seconds(self) -> None:
        """The number of resamples falls, as luck does."""
        values = skewed(0, 50_000)[0]
        start = time.monotonic()
        low, high = mean_interval(values)
        assert time.monotonic() - start < 20
        assert high - low == pytest.approx(2 * 1.96 * stats.sem(values), rel=0.15)


class TestRoughPValues:
    """`rough_p_values`."""

    @pytest.mark.parametrize("threshold", [None, THRESHOLD])
    @pytest.mark.parametrize("gain", [0.0, 4.0, 8.0])
    def test_they_come_close_to_the_exact_ones(self, threshold: float | None, gain: float) -> None:
        """40 nights of 20 recordings, the newest 12 decided; about five standard errors."""
        champion, challenger = np.random.default_rng(2).gamma(1, 12, (2, 40, 20))
        challenger *= 1 - gain / 12
        decided = np.arange(20) >= 8
        night = None if threshold is None else Night(threshold, decided)
        flips, weights = rough_flips(20, 20_000)
        found, happened = rough_p_values(champion, challenger, night, flips, weights)
        is_over = [threshold is None or one[decided].mean() > threshold for one in champion]
        assert happened.tolist() == is_over
        assert happened.sum() > 20
        for row in np.flatnonzero(happened):
            exact, _ = sign_flip_p_values(champion[row], challenger[row], None, night)
            assert found[row] == pytest.approx(exact, abs=0.1 * math.sqrt(exact) + 0.001)

    def test_a_gain_that_makes_such_nights_rare_is_seen(self) -> None:
        """12 points against 2 with a threshold of 10: at most two of 15 may be swapped, 1/121."""
        errors = np.full((1, 15), 12.0), np.full((1, 15), 2.0)
        night = Night(THRESHOLD + 0.5, np.ones(15, dtype=bool))
        (found,), _ = rough_p_values(*errors, night, *rough_flips(15))
        assert found == pytest.approx(1 / 121, abs=0.005)

    @pytest.mark.parametrize("n", [1, 4, 9])
    def test_of_few_recordings_they_are_exact(self, n: int) -> None:
        """All flips of nine are gone through."""
        champion, challenger = np.random.default_rng(3).gamma(1, 12, (2, 20, n))
        found, _ = rough_p_values(champion, challenger, None, *rough_flips(n))
        for row in range(20):
            exact, _ = sign_flip_p_values(champion[row], challenger[row])
            assert found[row] == pytest.approx(exact, abs=1e-12)

    def test_thousands_of_recordings_are_no_trouble(self) -> None:
        """Weights of flips that lean so much are nothing, not an error."""
        champion, challenger = np.random.default_rng(4).gamma(1, 12, (2, 3, 3000))
        found, _ = rough_p_values(champion, challenger - 1, None, *rough_flips(3000))
        assert np.isfinite(found).all()


def pair_with_gain(seed: int, n: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Return errors of a champion above the threshold, and of one better by a gain, and luck."""
    random = np.random.default_rng(seed)
    champion = 14 + random.gamma(1, 6, n)
    luck = random.normal(0, 5, n)
    return champion, champion - gain - luck + luck.mean()


class TestPower:
    """`Evidence.power_gain`."""

    @pytest.mark.sampled(0.5)
    @pytest.mark.parametrize("n", [15, 30])
    @pytest.mark.parametrize("threshold", [None, 16.0])
    @pytest.mark.slow
    def test_that_gain_is_found_four_times_out_of_five(
        self, n: int, threshold: float | None
    ) -> None:
        """Other nights are drawn here and judged exactly: 80 % and three standard errors."""
        champion, challenger = pair_with_gain(1, n, 2)
        night = None if threshold is None else Night(threshold, np.ones(n, dtype=bool))
        gain = Evidence.of(champion, challenger, None, night, 0.05).power_gain(0.8)
        assert gain is not None
        scale = (champion.mean() - gain) / challenger.mean()
        random, found = np.random.default_rng(99), list[bool]()
        while len(found) < 300:
            drawn = random.integers(0, n, n)
            old = champion[drawn]
            new = challenger[drawn] * scale
            if night is None or night.is_over(old):
                found.append(sign_flip_p_values(old, new, None, night)[0] <= 0.05)
        assert np.mean(found) == pytest.approx(0.8, abs=3 * math.sqrt(2 * 0.16 / 300))

    def test_more_recordings_show_a_smaller_gain(self) -> None:
        """And more power or a smaller significance takes a larger one."""
        champion, challenger = pair_with_gain(2, 10, 2)
        few, many = (
            Evidence.of(np.tile(champion, times), np.tile(challenger, times), None, None, 0.05)
            for times in (1, 4)
        )
        gains = few.power_gain(0.8), many.power_gain(0.8), few.power_gain(0.95)
        assert gains[0] is not None
        assert gains[1] is not None
        assert gains[2] is not None
        assert 0 < gains[1] < gains[0] < gains[2]
        strict = Evidence(few.champion, few.challenger, None, 0.005).power_gain(0.8)
        assert strict is not None
        assert strict > gains[0]

    @pytest.mark.parametrize(
        ("champion", "challenger"),
        [([0.0] * 10, [5.0] * 10), ([5.0] * 4, [4.0] * 4), ([20.0, *[0.0] * 9], [0.0] * 10)],
        ids=["no error to lose", "four recordings", "all of it in one"],
    )
    def test_where_no_gain_would_be_shown_none_is_named(
        self, champion: list[float], challenger: list[float]
    ) -> None:
        """Not even that of a challenger without errors."""
        evidence = Evidence.of(np.array(champion), np.array(challenger), None, None, 0.05)
        assert evidence.power_gain(0.8) is None

    def test_it_counts_sessions(self) -> None:
        """The same recordings three times are no more power if they are of the same session."""
        champion, challenger = pair_with_gain(3, 12, 2)
        once = Evidence.of(champion, challenger, None, None, 0.05)
        sessions = [f"s{number}" for number in range(12)] * 3
        night = Night(5, np.arange(36) >= 24)
        often = Evidence.of(np.tile(champion, 3), np.tile(challenger, 3), sessions, night, 0.05)
        assert often.night is not None
        assert often.night.decided.tolist() == [True] * 12
        assert Evidence(often.champion, often.challenger, None, 0.05).power_gain(0.8) == (
            pytest.approx(once.power_gain(0.8), rel=1e-6)
        )


class TestChances:
    """`Evidence.chances`."""

    def test_they_grow_with_the_nights_and_the_gain(self) -> None:
        """Of 3, 1 and no points; between 0 and 1."""
        found = []
        for gain in (3.0, 1.0, 0.0):
            evidence = Evidence.of(*pair_with_gain(4, 12, gain), None, None, 0.05)
            chances = evidence.chances([2, 5, 10], [0] * 12, 2, 30)
            assert list(chances) == [2, 5, 10]
            assert 0 <= chances[2] <= chances[5] <= chances[10] <= 1
            found.append(chances[10])
        assert found == sorted(found, reverse=True)
        assert found[0] > 0.8
        assert found[2] < 0.5

    def test_they_are_how_often_later_nights_promote(self) -> None:
        """15 recordings and two more a night, drawn and judged exactly here, over a threshold."""
        champion, challenger = pair_with_gain(5, 15, 1.2)
        night = Night(16, np.ones(15, dtype=bool))
        evidence = Evidence.of(champion, challenger, None, night, 0.05)
        found = evidence.chances([5], range(15), 2, 30)[5]
        random, promoted = np.random.default_rng(98), []
        for _ in range(200):
            drawn = np.concatenate([np.arange(15), random.integers(0, 15, 10)])
            ever = False
            for more in range(2, 11, 2):
                old, new = champion[drawn[: 15 + more]], challenger[drawn[: 15 + more]]
                later = Night(16, np.arange(15 + more) >= more)
                p_value = sign_flip_p_values(old, new, None, later)[0]
                ever = ever or (later.is_over(old) and p_value <= 0.05)
            promoted.append(ever)
        assert 0.1 < found < 0.95
        assert found == pytest.approx(np.mean(promoted), abs=4 * 0.5 / math.sqrt(200))

    def test_few_recordings_a_night_are_one_at_least(self) -> None:
        """A night on which nothing comes is no night of these."""
        evidence = Evidence.of(*pair_with_gain(6, 12, 2), None, None, 0.05)
        assert evidence.chances([5], [0] * 12, 0.1, 30) == (evidence.chances([5], [0] * 12, 1, 30))

    def test_a_full_window_drops_its_oldest(self) -> None:
        """With a window of 12 there are never more, so the chance is smaller than with 60."""
        evidence = Evidence.of(*pair_with_gain(7, 12, 1.5), None, None, 0.05)
        assert (
            evidence.chances([10], range(12), 3, 12)[10]
            < evidence.chances([10], range(12), 3, 60)[10]
        )
