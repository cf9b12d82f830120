"""Is the challenger really better? Two columns of errors in, a verdict out.

Pure statistics: no files, no MLflow, no pandas. One error per recording, in any unit, lower is
better, and both columns name the same recordings in the same order. Anything missing, NaN or of
different length raises NoVerdict: there is none by default.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from itertools import accumulate
from typing import Any

import numpy as np
from scipy import stats

from retraining.text import error_text, number_text

PERMUTATIONS = 99_999
MOST_PERMUTATIONS = 9_999_999
FIRST_LOOK_SHARE = 0.8
"""Of the significance, for the first time that a champion is judged: see docs/gate.md."""
PEEKING = ("spend", "ignore")
BOOTSTRAP_RESAMPLES = 9_999
CONFIDENCE = 0.95
POWER = 0.8
DIGITS = 9
"""Differences are rounded to a billionth of a point, so that a tie is a tie."""


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


class Outcome(Enum):
    """What became of one criterion."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Criterion:
    """One condition of a promotion.

    Parameters
    ----------
    name
        What is compared, in words.
    value
        What was found; None where it is not applicable.
    limit
        What `value` was compared with.
    outcome
        Passed, failed or not applicable.
    reason
        Code of the failure, such as `NOT_SIGNIFICANT`; empty otherwise.
    explanation
        One sentence with the numbers.
    """

    name: str
    value: float | None
    limit: float | None
    outcome: Outcome
    reason: str
    explanation: str


@dataclass(frozen=True)
class Verdict:
    """Whether to promote, and why.

    Parameters
    ----------
    criteria
        All conditions, in the order in which they were checked.
    n_recordings
        Recordings that both models were scored on.
    n_sessions
        Of these recordings; as many where each is a session of its own.
    champion_mean_error, challenger_mean_error
        Over these recordings.
    difference, difference_low, difference_high
        Mean of champion minus challenger, and its 95 % interval.
    p_value
        Of the hypothesis that the challenger is no better.
    recordings_needed
        If only evidence is lacking: about how many recordings (`independent_things`) a gain of
        the observed size needs in all; None otherwise.
    unit
        Of the errors.
    """

    criteria: tuple[Criterion, ...]
    n_recordings: int
    n_sessions: int
    champion_mean_error: float
    challenger_mean_error: float
    difference: float
    difference_low: float
    difference_high: float
    p_value: float
    recordings_needed: int | None
    unit: str = "%"

    @property
    def promote(self) -> bool:
        """Whether no criterion failed."""
        return not self.reasons

    @property
    def difference_unit(self) -> str:
        """Unit of the difference."""
        return difference_unit(self.unit)

    @property
    def independent_things(self) -> str:
        """What the test, the interval and the number needed count."""
        return _independent_things(self.n_sessions, self.n_recordings)

    @property
    def recordings_in_words(self) -> str:
        """How many recordings there are, and of how many sessions where that tells them apart."""
        return _recordings_in_words(self.n_sessions, self.n_recordings)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Codes of the criteria that failed."""
        return tuple(one.reason for one in self.criteria if one.outcome is Outcome.FAILED)

    def explain(self) -> str:
        """Say in one sentence why the challenger is promoted or not."""
        if self.promote:
            return (
                f"{error_text(self.champion_mean_error, self.unit)} -> "
                f"{error_text(self.challenger_mean_error, self.unit)} on "
                f"{self.recordings_in_words}, p = {self.p_value:.2g}"
            )
        failed = "; ".join(
            f"{one.reason}: {one.explanation}"
            for one in self.criteria
            if one.outcome is Outcome.FAILED
        )
        if self.recordings_needed:
            needed = f"{self.recordings_needed} {self.independent_things}"
            failed += f"; a gain of this size needs about {needed}"
        return failed

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        values = asdict(self)
        for criterion in values["criteria"]:
            criterion["outcome"] = criterion["outcome"].value
        return {"promote": self.promote, "reasons": list(self.reasons), **values}


def judge(  # noqa: PLR0913 - one keyword per criterion reads better than a bag of limits
    champion_errors: Any,
    challenger_errors: Any,
    *,
    sessions: Sequence[str] | None = None,
    significance: float = 0.05,
    earlier_looks: Sequence[int] = (),
    peeking: str = "spend",
    min_improvement: float = 0.0,
    max_regression: float = 2.0,
    no_model_errors: Any = None,
    used_errors: tuple[Any, Any] | None = None,
    used_sessions: Sequence[str] | None = None,
    n_leaked: int = 0,
    unit: str = "%",
) -> Verdict:
    """Decide whether the challenger replaces the champion.

    Parameters
    ----------
    champion_errors, challenger_errors
        Shape (n_recordings,): both models on recordings that neither was trained on.
    sessions
        Of these recordings, shape (n_recordings,): the errors of one session are not independent.
        An empty text is a session of its own; None: all are.
    significance
        Largest probability that an equal challenger is promoted; 1 promotes on the lower mean
        error alone, at every look.
    earlier_looks
        Number of sessions each earlier time that this champion was judged, oldest first.
    peeking
        "spend": `significance` holds over the whole life of the champion, each look has its
        share of it. "ignore": it holds for each look by itself, and false promotions add up.
    min_improvement
        That the mean must fall by, at least.
    max_regression
        That the old recordings may lose in the mean.
    no_model_errors
        Shape (n_recordings,): of predictions that need no model. None: not applicable.
    used_errors
        Out-of-fold errors (champion, challenger) on the old recordings, each of shape (n_used,).
        None: not applicable.
    used_sessions
        Of the old recordings, as `sessions`.
    n_leaked
        New recordings that the champion was trained on; any forbids a promotion.
    unit
        Of the errors.

    Returns
    -------
    Verdict
        Ties are no improvement.

    Raises
    ------
    NoVerdict
        If the columns are empty, not finite, negative or of different length.
    ValueError
        If the significance, an earlier look, the peeking or another limit is out of range.

    Notes
    -----
    The p-value is that of the paired sign-flip permutation test on the mean difference: under
    the hypothesis of equal models the sign of each recording's difference is arbitrary, and those
    of one session are flipped together (`by_session`). Exact up to 16 sessions, else from 99,999
    random flips or more with (b + 1) / (m + 1). It is held against `effective_significance`; the
    loss on the old recordings, which can only forbid a promotion, against `significance` itself.

    References
    ----------
    E. J. G. Pitman, "Significance tests which may be applied to samples from any populations",
    Supplement to the Journal of the Royal Statistical Society 4, 1937.
    B. Phipson and G. K. Smyth, "Permutation p-values should never be zero", Statistical
    Applications in Genetics and Molecular Biology 9, 2010.
    """
    if not (0 <= min_improvement < math.inf and 0 <= max_regression < math.inf):
        raise ValueError(f"limits {min_improvement} and {max_regression}: must be 0 or more")
    champion, challenger = _paired(champion_errors, challenger_errors)
    differences = np.round(champion - challenger, DIGITS)
    mean = round(float(differences.mean()), DIGITS)
    independent = by_session(differences, sessions)
    effective = effective_significance(significance, len(independent), earlier_looks, peeking)
    p_value = permutation_p_value(independent, effective)
    criteria = (
        _no_leak(n_leaked),
        _improves(mean, min_improvement, unit),
        _enough_recordings(
            independent, effective, _independent_things(len(independent), len(differences))
        ),
        _is_significant(p_value, effective, significance, look=len(earlier_looks) + 1),
        _remembers(used_errors, used_sessions, max_regression, significance, unit),
        _beats_no_model(challenger, no_model_errors, unit),
    )
    failed = {one.reason for one in criteria if one.outcome is Outcome.FAILED}
    lacks_evidence = failed and failed <= {"NOT_SIGNIFICANT", "TOO_FEW_RECORDINGS"}
    low, high = mean_interval(differences, sessions)
    return Verdict(
        criteria=criteria,
        n_recordings=len(differences),
        n_sessions=len(independent),
        champion_mean_error=float(champion.mean()),
        challenger_mean_error=float(challenger.mean()),
        difference=mean,
        difference_low=low,
        difference_high=high,
        p_value=p_value,
        recordings_needed=recordings_needed(independent, significance, earlier_looks, peeking)
        if lacks_evidence
        else None,
        unit=unit,
    )


def difference_unit(unit: str) -> str:
    """Return the unit of a difference of two errors.

    Parameters
    ----------
    unit
        Of the errors.

    Examples
    --------
    >>> difference_unit("%"), difference_unit("mm")
    ('percentage points', 'mm')
    """
    return "percentage points" if unit == "%" else unit


def by_session(values: Any, sessions: Sequence[str] | None) -> np.ndarray:
    """Return one value per session, with the same mean: what is independent of each other.

    Parameters
    ----------
    values
        One per recording, shape (n_recordings,).
    sessions
        Of the recordings, as for `judge`.

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
    if sessions is None:
        return values
    if len(sessions) != len(values):
        raise NoVerdict(
            "DIFFERENT_RECORDINGS", f"{len(values)} recordings and {len(sessions)} sessions"
        )
    places: dict[object, int] = {}
    # A number as stand-in: no text that names a session equals it.
    place_of = [places.setdefault(one or at, len(places)) for at, one in enumerate(sessions)]
    if len(places) == len(values):
        return values
    return np.round(np.bincount(place_of, values) * (len(places) / len(values)), DIGITS)


def _independent_things(n_sessions: int, n_recordings: int) -> str:
    return "sessions" if n_sessions < n_recordings else "recordings"


def _recordings_in_words(n_sessions: int, n_recordings: int, what: str = "recordings") -> str:
    of_sessions = f" of {n_sessions} sessions" if n_sessions < n_recordings else ""
    return f"{n_recordings} {what}{of_sessions}"


def effective_significance(
    significance: float,
    n_recordings: int,
    earlier_looks: Sequence[int] = (),
    peeking: str = "spend",
) -> float:
    """Return the largest p-value of a promotion at this look at the champion.

    Parameters
    ----------
    significance
        Above 0 and at most 1, for all looks together; 1 is 1 at every look.
    n_recordings
        That the champion is judged on this time; sessions, where recordings share one.
    earlier_looks
        The same each earlier time, oldest first.
    peeking
        "spend" or "ignore"; the latter returns `significance`.

    Raises
    ------
    ValueError
        If the significance or the peeking is out of range or an earlier look had no recordings.

    Notes
    -----
    Alpha spending by recordings. With first share s = 0.8 and n_k recordings at look k,

        alpha_1 = s alpha,    alpha_k = (1 - s) alpha n_1 (1 / n_(k-1) - 1 / n_k),

    which adds up to s alpha + (1 - s) alpha (1 - n_1 / n_k), never more than alpha. A look without
    a new recording counts as one recording more, so that it has a share too; a look at fewer
    recordings than alpha_1 takes (5 at 0.05) can promote nothing and spends nothing.

    What is promised: if at every look champion and challenger could swap their errors on each
    recording, independently, without changing their joint distribution (so that all signs of the
    differences are equally likely), then the probability that *any* look promotes is at most
    alpha. By Boole's inequality this holds for any number of looks and whatever the challengers
    of different looks have in common; the numbers of recordings must not depend on the errors.

    Examples
    --------
    >>> [round(effective_significance(0.05, n, looks), 6) for n, looks in [(15, []), (20, [15])]]
    [0.04, 0.0025]

    References
    ----------
    K. K. G. Lan and D. L. DeMets, "Discrete sequential boundaries for clinical trials",
    Biometrika 70, 1983.
    C. E. Bonferroni, "Teoria statistica delle classi e calcolo delle probabilità", 1936.
    """
    if not 0 < significance <= 1:
        raise ValueError(f"significance {significance}: must be above 0 and at most 1")
    if peeking not in PEEKING:
        raise ValueError(f"peeking {peeking!r}: must be one of {', '.join(PEEKING)}")
    if any(n < 1 for n in earlier_looks):
        raise ValueError(f"earlier looks {list(earlier_looks)}: each had at least 1 recording")
    if peeking == "ignore" or significance == 1:
        return significance
    first_share = FIRST_LOOK_SHARE * significance
    looks = [n for n in earlier_looks if n >= _fewest_recordings(first_share)]
    if not looks:
        return first_share
    *_, before = accumulate(looks, lambda before, n: max(n, before + 1))
    now = max(n_recordings, before + 1)
    return (significance - first_share) * looks[0] * (now - before) / (before * now)


def _paired(first: Any, second: Any) -> tuple[np.ndarray, np.ndarray]:
    columns = (np.asarray(first, dtype=float), np.asarray(second, dtype=float))
    for column in columns:
        if column.ndim != 1 or not len(column):
            raise NoVerdict(
                "INVALID_ERRORS", f"errors of shape {column.shape}; one per recording is needed"
            )
        if not np.isfinite(column).all() or (column < 0).any():
            raise NoVerdict("INVALID_ERRORS", "an error is missing, infinite or negative")
    if len(columns[0]) != len(columns[1]):
        raise NoVerdict(
            "DIFFERENT_RECORDINGS", f"{len(columns[0])} errors against {len(columns[1])}"
        )
    return columns


def permutation_p_value(differences: np.ndarray, significance: float = 0.05) -> float:
    """Return the one-sided p-value of a positive mean by flipping signs.

    Parameters
    ----------
    differences
        Paired differences, shape (n_recordings,).
    significance
        What the p-value will be held against. Where all flips are too many, there are so many
        random ones that the least p-value is a tenth of it, but at most ten million.

    Examples
    --------
    >>> float(permutation_p_value(np.array([1.0, 2.0, 3.0])))
    0.125
    """
    if len(differences) < 2:
        return 0.5 if differences[0] > 0 else 1.0
    if not differences.any():
        return 1.0
    result = stats.permutation_test(
        (differences,),
        lambda sample, axis: np.mean(sample, axis=axis),
        permutation_type="samples",
        alternative="greater",
        n_resamples=min(max(PERMUTATIONS, math.ceil(10 / significance)), MOST_PERMUTATIONS),
        batch=10_000,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def mean_interval(values: Any, sessions: Sequence[str] | None = None) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean over recordings (percentile method).

    Parameters
    ----------
    values
        One per recording, shape (n_recordings,).
    sessions
        Of the recordings, as for `judge`: whole ones are drawn.

    Notes
    -----
    The mean of drawn sessions is that of all their recordings: a sum over a number, of which both
    depend on what was drawn. So sessions of different size alone make no interval wide.

    References
    ----------
    B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    values = np.asarray(values, dtype=float)
    sums, sizes = by_session(values, sessions), by_session(np.ones(len(values)), sessions)
    if len(sums) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    shared = len(sums) < len(values)
    interval = stats.bootstrap(
        (sums, sizes) if shared else (values,),
        _mean_of_sessions if shared else np.mean,
        paired=shared,
        n_resamples=BOOTSTRAP_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _mean_of_sessions(sums: np.ndarray, sizes: np.ndarray, axis: int) -> np.ndarray:
    return sums.sum(axis=axis) / sizes.sum(axis=axis)


def recordings_needed(
    differences: np.ndarray,
    significance: float,
    earlier_looks: Sequence[int] = (),
    peeking: str = "spend",
) -> int | None:
    """Return about how many recordings a gain of the observed size needs; None without a gain.

    Parameters
    ----------
    differences
        Paired differences of this look, shape (n_recordings,), or of `by_session`; what is
        returned counts the same.
    significance, earlier_looks, peeking
        As for `judge`.

    Notes
    -----
    The least n above the present number with n >= ((z(1 - alpha(n)) + z(0.8)) s / d)^2, where d
    and s are mean and standard deviation of the differences: the normal approximation for a power
    of 80 %, if the next look is the one at n recordings and has the significance alpha(n); never
    less than the number at which the permutation test can reach it at all.
    """
    mean = differences.mean()
    if mean <= 0 or significance == 1:
        return None
    deviation = differences.std(ddof=1) if len(differences) > 1 else mean
    looks = (*earlier_looks, len(differences))

    def takes(n: int) -> int:
        effective = effective_significance(significance, n, looks, peeking)
        z = float(stats.norm.isf(effective) + stats.norm.ppf(POWER))
        return max(math.ceil((z * float(deviation / mean)) ** 2), _fewest_recordings(effective))

    low = len(differences) + 1
    high = max(low, takes(low))
    while low < high:  # `takes` falls as n grows: halve the interval
        middle = (low + high) // 2
        low, high = (low, middle) if takes(middle) <= middle else (middle + 1, high)
    return low


def _fewest_recordings(significance: float) -> int:
    """Return how many differences a p-value of that size takes: n signs give at best 2^-n."""
    return math.ceil(-math.log2(significance))


def _criterion(
    name: str, value: float | None, limit: float | None, reason: str, failed: bool, text: str
) -> Criterion:
    outcome = Outcome.FAILED if failed else Outcome.PASSED
    return Criterion(name, value, limit, outcome, reason if failed else "", text)


def _not_applicable(name: str, text: str) -> Criterion:
    return Criterion(name, None, None, Outcome.NOT_APPLICABLE, "", text)


def _no_leak(n_leaked: int) -> Criterion:
    return _criterion(
        "new recordings that the champion was trained on",
        n_leaked,
        0,
        "TEST_LEAK",
        n_leaked > 0,
        f"the champion was trained on {n_leaked} of the new recordings",
    )


def _improves(mean: float, min_improvement: float, unit: str) -> Criterion:
    points = difference_unit(unit)
    return _criterion(
        f"mean improvement, {points}",
        mean,
        min_improvement,
        "NOT_BETTER",
        not mean > min_improvement,
        f"the mean error changes by {number_text(-mean, 2, sign=True)} {points}; "
        f"more than {min_improvement:g} better is needed",
    )


def _enough_recordings(differences: np.ndarray, significance: float, things: str) -> Criterion:
    informative = int(np.count_nonzero(differences))
    needed = _fewest_recordings(significance)
    return _criterion(
        f"{things} on which the models differ",
        informative,
        needed,
        "TOO_FEW_RECORDINGS",
        informative < needed,
        f"the models differ on {informative} {things}; below {needed} no test can tell",
    )


def _is_significant(p_value: float, effective: float, significance: float, look: int) -> Criterion:
    return _criterion(
        "p-value of the improvement",
        p_value,
        effective,
        "NOT_SIGNIFICANT",
        p_value > effective,
        f"p = {p_value:.3g}, at most {effective:.3g} is needed"
        + (f" at look {look}, {significance:g} over all looks" if effective < significance else ""),
    )


def _remembers(
    used_errors: tuple[Any, Any] | None,
    sessions: Sequence[str] | None,
    max_regression: float,
    significance: float,
    unit: str,
) -> Criterion:
    points = difference_unit(unit)
    name = f"loss on the old recordings, {points}"
    if used_errors is None:
        return _not_applicable(name, "the champion carries no out-of-fold errors")
    champion, challenger = _paired(*used_errors)
    loss = np.round(challenger - champion, DIGITS)
    excess = by_session(loss - max_regression, sessions)
    p_value = permutation_p_value(excess)
    failed = loss.mean() > max_regression and p_value <= significance
    old = _recordings_in_words(len(excess), len(loss), "old recordings")
    return _criterion(
        name,
        float(loss.mean()),
        max_regression,
        "FORGETS",
        bool(failed),
        f"{number_text(float(loss.mean()), 2, sign=True)} {points} on {old}, p = {p_value:.3g}",
    )


def _beats_no_model(challenger: np.ndarray, no_model_errors: Any, unit: str) -> Criterion:
    name = f"mean error against no model at all, {unit}"
    if no_model_errors is None:
        return _not_applicable(name, "not measured")
    no_model = _paired(no_model_errors, challenger)[0].mean()
    return _criterion(
        name,
        float(challenger.mean()),
        float(no_model),
        "NO_BETTER_THAN_NO_MODEL",
        not challenger.mean() < no_model,
        f"{number_text(float(challenger.mean()), 2)} {unit} against "
        f"{number_text(float(no_model), 2)} {unit} without a model",
    )
