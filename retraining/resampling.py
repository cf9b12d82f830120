"""What luck alone does to errors: sign flips, bootstrap-t intervals, power, and nights to come.

Pure statistics of one or two columns of errors, one per recording; the errors of one session are
not independent of each other, so sessions are flipped and drawn whole. Nothing is decided here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats

from retraining.windows import newest

DIGITS = 9
"""Differences are rounded to a billionth of a point, so that a tie is a tie."""
TIE = 1e-12
"""Of the largest possible sum: what adding up in another order may change."""
MOST_EXACT = {"point": 20, "bound": 15}
"""Flips are all gone through of so many things that decided, and of so many others."""
FLIPS, MOST_FLIPS = 99_999, 9_999_999
TRIGGERED_FLIPS = {"point": 4_000, "bound": 1_000}
MOST_TRIES = {"point": 1_000_000, "bound": 20_000}
"""Where there are too many to go through, flips are drawn until so many are of such a night."""
RESAMPLES, RESAMPLES_IN_A_FLIP, MOST_DRAWN = 9_999, 999, 5_000_000
CONFIDENCE = 0.95
FEWEST_TO_RESAMPLE = 5
WIDEST = 4.0
"""Times Student's t: a few values that are nearly alike make quantiles of any size."""
FUTURES, ROUGH_FLIPS, LEANING = 300, 1_024, 0.8
PART = 4_096


class NoVerdict(ValueError):
    """The errors cannot be compared, so nothing may be promoted.

    Parameters
    ----------
    code
        `INVALID_ERRORS` or `DIFFERENT_RECORDINGS`.
    what
        Is wrong, in words.
    """

    def __init__(self, code: str, what: str) -> None:
        super().__init__(f"{code}: {what}")
        self.code = code


@dataclass(frozen=True)
class Night:
    """Why there was a comparison at all: the champion was over its threshold.

    Parameters
    ----------
    threshold
        Largest mean error of a healthy model.
    decided
        Which recordings decided, shape (n_recordings,): true or false, or how much each weighs in
        the mean, 0 where it did not decide.
    decide
        "point": their mean was above the threshold; "bound": the lower end of its interval.
    """

    threshold: float
    decided: np.ndarray
    decide: str = "point"

    def is_over(self, champion: np.ndarray, sessions: Sequence[str] | None = None) -> bool:
        """Say whether a champion with these errors, one per recording, is over the threshold."""
        places = np.flatnonzero(self.decided)
        errors, weights = champion[places], self.weights[places]
        if self.decide == "bound":
            kept = None if sessions is None else [sessions[int(at)] for at in places]
            return mean_interval(errors, kept, weights=weights)[0] > self.threshold
        return weighted_mean(errors, weights) > self.threshold

    @property
    def weights(self) -> np.ndarray:
        """How much each recording weighs in what decided, shape (n_recordings,)."""
        return np.asarray(self.decided, dtype=float)


# --- Sessions ---


def by_session(values: Any, sessions: Sequence[str] | None) -> np.ndarray:
    """Return one value per session, with the same mean: what is independent of each other.

    Parameters
    ----------
    values
        One per recording, shape (n_recordings,).
    sessions
        Of the recordings, shape (n_recordings,); an empty text is a session of its own; None: all
        are.

    Returns
    -------
    array of shape (n_sessions,)
        In the order in which the sessions come first; `values` themselves where each recording is
        a session of its own.

    Raises
    ------
    NoVerdict
        If there is not one session for each value.

    Notes
    -----
    The sum of the values of a session, times n_sessions / n_recordings. Flipping its sign flips
    all of its recordings together, and a large session weighs as much as its recordings do.

    Examples
    --------
    >>> by_session([3.0, 1.0, 2.0, 2.0], ["a", "", "a", ""]).tolist()
    [3.75, 0.75, 1.5]
    """
    values = np.asarray(values, dtype=float)
    place_of = session_places(sessions, len(values))
    n_sessions = int(place_of.max(initial=-1)) + 1
    if n_sessions == len(values):
        return values
    return np.round(np.bincount(place_of, values) * (n_sessions / len(values)), DIGITS)


def session_places(sessions: Sequence[str] | None, n_recordings: int) -> np.ndarray:
    """Return the number of the session of each recording."""
    if sessions is None:
        return np.arange(n_recordings)
    if len(sessions) != n_recordings:
        raise NoVerdict(
            "DIFFERENT_RECORDINGS", f"{n_recordings} recordings and {len(sessions)} sessions"
        )
    places: dict[object, int] = {}
    # A number as stand-in: no text that names a session equals it.
    return np.array(
        [places.setdefault(one or at, len(places)) for at, one in enumerate(sessions)], dtype=int
    )


def weighted_mean(values: Any, weights: Any = None) -> float:
    """Return a mean over recordings.

    Parameters
    ----------
    values
        One per recording, shape (n_recordings,).
    weights
        Shape (n_recordings,), from 0, not all 0; None where all weigh the same.

    Examples
    --------
    >>> weighted_mean([4.0, 1.0], [1.0, 2.0])
    2.0
    """
    values = np.asarray(values, dtype=float)
    if weights is not None:
        weights = np.asarray(weights, dtype=float)
        values, weights = values[weights > 0], weights[weights > 0]
        return float((values * weights).sum() / weights.sum())
    return float(values.mean())


# --- Sign flips ---


def sign_flip_p_values(
    champion: np.ndarray,
    challenger: np.ndarray,
    sessions: Sequence[str] | None = None,
    night: Night | None = None,
    significance: float = 0.05,
) -> tuple[float, float]:
    """Return the one-sided p-values of a lower mean error: given the night, and of any night.

    Parameters
    ----------
    champion, challenger
        Paired errors, shape (n_recordings,).
    night
        The condition; None, or one that does not hold, for none: both p-values are the same then.
    significance
        What they will be held against. Flips that are drawn are so many that the least p-value is
        a tenth of it, but at most ten million.

    Notes
    -----
    Under the hypothesis of equal models the two errors of each session may be swapped, which
    flips the sign of its difference. Of any night, the p-value is the share of all flips whose
    mean difference is at least the observed one. There would have been no comparison, though, had
    the champion not been over its threshold: given the night, only those flips count under which
    it would have been, too.

    Exact as long as no more sessions decided, and no more did not, than `MOST_EXACT`: the sums of
    either kind are all gone through and put together by sorting. Else (b + 1) / (m + 1) of drawn
    flips, of which a few thousand are of such a night.

    References
    ----------
    E. J. G. Pitman, "Significance tests which may be applied to samples from any populations",
    Supplement to the Journal of the Royal Statistical Society 4, 1937.

    B. Phipson and G. K. Smyth, "Permutation p-values should never be zero", Statistical
    Applications in Genetics and Molecular Biology 9, 2010.

    E. Horowitz and S. Sahni, "Computing partitions with applications to the knapsack problem",
    Journal of the ACM 21, 1974.
    """
    if night is not None and not night.is_over(champion, sessions):
        night = None
    flips = _Flips.of(champion, challenger, sessions, night)
    if not flips.differences.any():
        return 1.0, 1.0
    return flips.exact() if flips.are_few else flips.drawn(significance)


@dataclass(frozen=True)
class _Flips:
    """Sums by session, those that decided first.

    Parameters
    ----------
    differences
        Champion minus challenger, shape (n_sessions,).
    champion, challenger, sizes
        Sums of the errors of recordings that decided, times their weights, and of these weights,
        shape (n_sessions,).
    n_decisive
        Sessions with such recordings.
    """

    differences: np.ndarray
    champion: np.ndarray
    challenger: np.ndarray
    sizes: np.ndarray
    n_decisive: int
    night: Night | None

    @classmethod
    def of(
        cls,
        champion: np.ndarray,
        challenger: np.ndarray,
        sessions: Sequence[str] | None,
        night: Night | None,
    ) -> _Flips:
        place = session_places(sessions, len(champion))
        decided = np.zeros(len(champion)) if night is None else night.weights
        sums = [
            np.bincount(place, each).astype(float)
            for each in (
                np.round(champion - challenger, DIGITS),
                champion * decided,
                challenger * decided,
                decided,
            )
        ]
        order = np.argsort(sums[-1] == 0, kind="stable")
        differences, old, new, sizes = (each[order] for each in sums)
        return cls(differences, old, new, sizes, int(np.count_nonzero(sizes)), night)

    @property
    def _decide(self) -> str:
        return self.night.decide if self.night else "point"

    @property
    def _first(self) -> int:
        """How many things are gone through first: all that decided, and of the others some."""
        most = MOST_EXACT[self._decide]
        return max(self.n_decisive, min(most, len(self.differences) - len(self.differences) // 2))

    @property
    def are_few(self) -> bool:
        """Whether all flips can be gone through."""
        n_others = len(self.differences) - self._first
        return self._first <= MOST_EXACT[self._decide] and n_others <= MOST_EXACT["point"]

    @property
    def _least(self) -> float:
        return float(self.differences.sum() - TIE * np.abs(self.differences).sum())

    def exact(self) -> tuple[float, float]:
        """Go through all flips."""
        first = self.differences[: self._first]
        sums, rest = _all_sums(first, -first), self.differences[self._first :]
        others = np.sort(_all_sums(rest, -rest))
        as_large = len(others) - np.searchsorted(others, self._least - sums, side="left")
        any_night = float(as_large.mean() / len(others))
        if self.night is None:
            return any_night, any_night
        if self.night.decide == "bound":
            over = self._over_bound(_all_flips(self._first).T, self.night.threshold)
        else:
            errors = _all_sums(self.champion[: self._first], self.challenger[: self._first])
            over = self._over_point(errors, self.night.threshold)
        over[0] = True  # as it was
        return float(as_large[over].mean() / len(others)), any_night

    def drawn(self, significance: float) -> tuple[float, float]:
        """Draw flips at random."""
        random = np.random.default_rng(0)
        enough = min(math.ceil(10 / significance), MOST_FLIPS)
        wanted = max(TRIGGERED_FLIPS[self._decide], enough)
        most = max(MOST_TRIES[self._decide], enough)
        large, large_and_over = _Share(), _Share()
        while large.n < most and (large.n < max(FLIPS, enough) or large_and_over.n < wanted):
            signs = 1.0 - 2.0 * random.integers(0, 2, (PART, len(self.differences)))
            is_large = signs @ self.differences >= self._least
            large.add(is_large)
            over = slice(None) if self.night is None else self._over(signs, self.night)
            large_and_over.add(is_large[over])
        return large_and_over.p_value, large.p_value

    def _over(self, signs: np.ndarray, night: Night) -> np.ndarray:
        """Say under which flips, one per row, the champion would have been over its threshold."""
        if night.decide == "bound":
            return self._over_bound(signs.T, night.threshold)
        middle, half = (self.champion + self.challenger) / 2, (self.champion - self.challenger) / 2
        return self._over_point(middle.sum() + signs @ half, night.threshold)

    def _over_point(self, errors: np.ndarray, threshold: float) -> np.ndarray:
        return errors > threshold * self.sizes.sum() * (1 + TIE)

    def _over_bound(self, signs: np.ndarray, threshold: float) -> np.ndarray:
        """Do the same with the lower end of the interval; one flip per column."""
        n, size = self.n_decisive, self.sizes[: self.n_decisive]
        drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES_IN_A_FLIP)
        one, other = self.champion[:n, None], self.challenger[:n, None]
        parts = (signs[:n, at : at + PART] for at in range(0, signs.shape[1], PART))
        return np.concatenate(
            [
                _lower_end_is_over(np.where(part > 0, one, other), size, threshold, drawn)
                for part in parts
            ]
        )


@dataclass
class _Share:
    """How many flips there were, and how many of them were as large as what was observed."""

    n: int = 0
    hits: int = 0

    def add(self, hits: np.ndarray) -> None:
        self.n, self.hits = self.n + len(hits), self.hits + int(hits.sum())

    @property
    def p_value(self) -> float:
        return (self.hits + 1) / (self.n + 1)


def _all_sums(plus: np.ndarray, minus: np.ndarray) -> np.ndarray:
    """Return every sum of one of two values for each thing, all of `plus` first."""
    sums = np.zeros(1)
    for one, other in zip(plus[::-1], minus[::-1], strict=True):
        sums = np.concatenate([sums + one, sums + other])
    return sums


def _all_flips(n: int) -> np.ndarray:
    """Return all signs of n things in the order of `_all_sums`, shape (2^n, n)."""
    return 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n)[::-1] & 1)


# --- Intervals ---


def mean_interval(
    values: Any,
    sessions: Sequence[str] | None = None,
    *,
    weights: Any = None,
    confidence: float = CONFIDENCE,
    at_least: float = -math.inf,
) -> tuple[float, float]:
    """Return the bootstrap-t interval of a mean over recordings.

    Parameters
    ----------
    values
        One per recording, shape (n_recordings,).
    sessions
        Of the recordings, as for `by_session`: whole ones are drawn.
    weights
        Of the recordings, as for `weighted_mean`.
    confidence
        Of both ends together.
    at_least
        What no mean can be below.

    Notes
    -----
    Errors are skewed, and so is the ratio of a mean's error to its standard error: its quantiles
    are taken from resamples, each with a standard error of its own. The mean of drawn sessions is
    that of all their recordings, a sum over a number (or a sum of weights) that both depend on
    what was drawn; its standard error is that of the ratio (linearised). Of fewer than five
    sessions, and where too many resamples have no spread of their own, Student's t.

    References
    ----------
    B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 12.5.

    P. Hall, "Theoretical comparison of bootstrap confidence intervals", Annals of Statistics 16,
    1988.
    """
    values = np.asarray(values, dtype=float)
    place = session_places(sessions, len(values))
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    sums, sizes = np.bincount(place, values * weights), np.bincount(place, weights)
    mean, n = weighted_mean(values, weights), len(sums)
    if n < 2 or np.ptp(values) == 0:
        return mean, mean
    error = float(_standard_errors(sums[None], sizes[None])[0])
    tail = (1 - confidence) / 2
    student = float(stats.t.isf(tail, n - 1))
    low, high = -student, student
    if n >= FEWEST_TO_RESAMPLE:
        t = _studentised_resamples(sums, sizes, error)
        ends = np.quantile(t, tail, method="lower"), np.quantile(t, 1 - tail, method="higher")
        low, high = (
            float(np.clip(found, -WIDEST * student, WIDEST * student))
            if math.isfinite(found)
            else end
            for found, end in zip(ends, (low, high), strict=True)
        )
    return max(mean - high * error, min(at_least, mean)), mean - low * error


def _standard_errors(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the standard error of the mean of each row of sessions."""
    n, totals = sums.shape[1], sizes.sum(axis=1, keepdims=True)
    residuals = sums - sums.sum(axis=1, keepdims=True) / totals * sizes
    return np.asarray(np.sqrt(n / (n - 1) * (residuals**2).sum(axis=1)) / totals[:, 0])


def _studentised_resamples(sums: np.ndarray, sizes: np.ndarray, error: float) -> np.ndarray:
    """Return (resampled mean - mean) / its standard error; infinite where it has none."""
    n, random = len(sums), np.random.default_rng(0)
    n_resamples = max(min(RESAMPLES, MOST_DRAWN // n), RESAMPLES_IN_A_FLIP)
    found = []
    for start in range(0, n_resamples, PART):
        drawn = random.integers(0, n, (min(PART, n_resamples - start), n))
        drawn_sums, drawn_sizes = sums[drawn], sizes[drawn]
        means = drawn_sums.sum(axis=1) / drawn_sizes.sum(axis=1)
        errors = _standard_errors(drawn_sums, drawn_sizes)
        shift = means - sums.sum() / sizes.sum()
        has_spread = errors > TIE**0.5 * error
        t = np.copysign(np.inf, shift)
        t[np.abs(shift) <= TIE**0.5 * error] = 0.0
        t[has_spread] = shift[has_spread] / errors[has_spread]
        found.append(t)
    return np.concatenate(found)


def _lower_end_is_over(
    sums: np.ndarray, sizes: np.ndarray, threshold: float, drawn: np.ndarray
) -> np.ndarray:
    """Say of which columns of sums the lower end of the interval is above a threshold.

    Parameters
    ----------
    sums, sizes
        Of sessions, shapes (n_sessions, n_columns) and (n_sessions,).
    drawn
        How often each session is in each resample, shape (n_resamples, n_sessions).
    """
    n, total, spread = len(sizes), sizes.sum(), math.sqrt(len(sizes) / max(len(sizes) - 1, 1))
    means = sums.sum(axis=0) / total
    errors = spread * np.sqrt(((sums - means * sizes[:, None]) ** 2).sum(axis=0)) / total
    if n < FEWEST_TO_RESAMPLE:
        student = stats.t.isf((1 - CONFIDENCE) / 2, max(n - 1, 1))
        return np.asarray(means - student * errors > threshold)
    weights = drawn.astype(float)
    totals = (weights @ sizes)[:, None]
    resampled = weights @ sums / totals
    squares = (
        weights @ sums**2
        - 2 * resampled * (weights @ (sums * sizes[:, None]))
        + resampled**2 * (weights @ sizes**2)[:, None]
    )
    their_errors = spread * np.sqrt(np.maximum(squares, 0)) / totals
    with np.errstate(divide="ignore", invalid="ignore"):
        limit = np.where(
            errors > 0, (means - threshold) / errors, np.sign(means - threshold) * np.inf
        )
        below = resampled - means < limit * their_errors
    return np.asarray(below.mean(axis=0) >= 1 - (1 - CONFIDENCE) / 2) & (means > threshold)


# --- What a night could have shown, and what the next ones may ---


@dataclass(frozen=True)
class Evidence:
    """Paired errors of two models, and by what standard they are compared.

    Parameters
    ----------
    champion, challenger
        One per session, shape (n_sessions,).
    night
        Why there is a comparison; None for any night.
    significance
        Largest p-value of a promotion.
    """

    champion: np.ndarray
    challenger: np.ndarray
    night: Night | None
    significance: float

    @classmethod
    def of(
        cls,
        champion: np.ndarray,
        challenger: np.ndarray,
        sessions: Sequence[str] | None,
        night: Night | None,
        significance: float,
    ) -> Evidence:
        """Take errors by recording."""
        if night is not None and sessions is not None:
            place, weights = session_places(sessions, len(champion)), night.weights
            n_decided = np.bincount(place, weights > 0)
            # Those of a session weigh as they do in the mean; how many they are tells its error.
            decided = np.bincount(place, weights) / np.maximum(n_decided, 1)
            night = Night(night.threshold, decided, night.decide)
        return cls(
            by_session(champion, sessions), by_session(challenger, sessions), night, significance
        )

    def power_gain(self, power: float) -> float | None:
        """Return the gain that these recordings would have shown with a power.

        Notes
        -----
        Recordings are drawn from the observed ones, with the challenger's errors scaled to that
        gain; of those nights that there would have been. None if no gain is enough.
        """
        drawn = np.random.default_rng(0).integers(0, self._n, (FUTURES, self._n))
        champion, mean = self.champion[drawn], float(self.champion.mean())
        like = self.challenger if self.challenger.any() else self.champion

        def shows(gain: float) -> bool:
            challenger = like[drawn] * ((mean - gain) / like.mean())
            p_values, happened = self._rough_p_values(champion, challenger, self.night)
            found = p_values[happened] <= self.significance
            return bool(len(found) and found.mean() >= power)

        low, high = 0.0, mean
        if high <= 0 or not shows(high):
            return None
        for _ in range(10):
            middle = (low + high) / 2
            low, high = (low, middle) if shows(middle) else (middle, high)
        return high

    def chances(
        self, ahead: Iterable[int], nights: Sequence[int], a_night: float, window: int
    ) -> dict[int, float]:
        """Return number of nights -> chance that one of the next so many promotes.

        Parameters
        ----------
        ahead
            How many nights to look ahead.
        nights
            On which the recordings arrived, shape (n_sessions,).
        a_night
            New recordings of a night; at least one comes.
        window
            The fewest recordings that are compared, once there are so many.

        Notes
        -----
        The recordings to come are drawn from the observed ones, with the errors of both models;
        where some weigh more than others, each of these weighs 1.
        """
        ahead = [*ahead]
        n_new = [max(math.ceil(a_night * night), night) for night in range(1, max(ahead) + 1)]
        drawn = np.random.default_rng(0).integers(0, self._n, (FUTURES, n_new[-1]))
        columns = [
            np.hstack([np.broadcast_to(each, (FUTURES, self._n)), each[drawn]])
            for each in (self.champion, self.challenger)
        ]
        n_decided = self._n if self.night is None else int(np.count_nonzero(self.night.decided))
        arrived, promoted = [*nights], []
        weights = np.ones(self._n + n_new[-1])
        if self.night is not None:
            weights[: self._n] = np.where(self.night.weights > 0, self.night.weights, 1)
        for night, n_by_then in enumerate(n_new, max(nights) + 1):
            arrived += [night] * (self._n + n_by_then - len(arrived))
            compared = np.flatnonzero(newest(arrived, max(window, n_decided)))
            decided = (weights[: len(arrived)] * newest(arrived, n_decided))[compared]
            later = self.night and Night(self.night.threshold, decided, self.night.decide)
            champion, challenger = (each[:, compared] for each in columns)
            p_values, happened = self._rough_p_values(champion, challenger, later)
            promoted.append(happened & (p_values <= self.significance))
        ever = np.logical_or.accumulate(promoted).mean(axis=1)
        return {night: float(ever[night - 1]) for night in ahead}

    @property
    def _n(self) -> int:
        return len(self.champion)

    def _rough_p_values(
        self, champion: np.ndarray, challenger: np.ndarray, night: Night | None
    ) -> tuple[np.ndarray, np.ndarray]:
        flips, weights = rough_flips(champion.shape[1])
        return rough_p_values(champion, challenger, night, flips, weights)


def rough_flips(n: int, n_flips: int = ROUGH_FLIPS) -> tuple[np.ndarray, np.ndarray]:
    """Return flips of n things and how much each counts: all, or so many that are drawn.

    Notes
    -----
    Every other one is drawn to lean towards what was observed, and counts less for that: few of
    the fair ones are as large, or of such a night, where the gain is large.
    """
    if 2**n <= n_flips:
        return _all_flips(n), np.ones(2**n)
    shares = np.where(np.arange(n_flips) % 2, LEANING, 0.5)
    stays = np.random.default_rng(0).random((n_flips, n)) < shares[:, None]
    n_stay = stays.sum(axis=1)
    likelier = n_stay * math.log(2 * LEANING) + (n - n_stay) * math.log(2 - 2 * LEANING)
    return np.where(stays, 1.0, -1.0), 2 * special.expit(-likelier)


def rough_p_values(
    champion: np.ndarray,
    challenger: np.ndarray,
    night: Night | None,
    flips: np.ndarray,
    weights: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return about what `sign_flip_p_values` would of many nights, and which there would have been.

    Parameters
    ----------
    champion, challenger
        Errors of independent recordings, one night per row, shape (n_nights, n_recordings).
    night
        The same condition for all; the lower end of an interval is about Student's.
    flips, weights
        Of `rough_flips`, shapes (n_flips, n_recordings) and (n_flips,).
    """
    differences = np.round(champion - challenger, DIGITS)
    least = differences.sum(axis=1) - TIE * np.abs(differences).sum(axis=1)
    as_large = differences @ flips.T >= least[:, None]
    if night is None:
        return as_large @ weights / weights.sum(), np.ones(len(champion), dtype=bool)
    decided = night.weights > 0
    weighs = night.weights[decided]
    n, total = len(weighs), weighs.sum()
    one, other = champion[:, decided] * weighs, challenger[:, decided] * weighs
    means = ((one + other).sum(axis=1)[:, None] + (one - other) @ flips[:, decided].T) / (2 * total)
    limit = np.full((len(champion), 1), night.threshold)
    if night.decide == "bound" and n > 1:
        student = stats.t.isf((1 - CONFIDENCE) / 2, n - 1)
        limit += student * _standard_errors(one, weighs[None])[:, None]
    over = means > limit
    happened = one.sum(axis=1) / total > limit[:, 0]
    of_such_nights = over @ weights
    p_values = np.ones(len(champion))
    np.divide((as_large & over) @ weights, of_such_nights, p_values, where=of_such_nights > 0)
    return p_values, happened
