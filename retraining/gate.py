"""Is the challenger really better? Two columns of errors in, a verdict out.

Pure: no files, no MLflow, no pandas. One error per recording, in any unit, lower is better, and
both columns name the same recordings in the same order. Anything missing, NaN or of different
length raises NoVerdict: there is none by default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from scipy import stats

from retraining.resampling import (
    DIGITS,
    Evidence,
    Night,
    NoVerdict,
    by_session,
    mean_interval,
    session_places,
    sign_flip_p_values,
    weighted_mean,
)
from retraining.text import error_text, number_text
from retraining.windows import fewest_differences

POWER = 0.8
FORESEEN_NIGHTS = (5, 10)
BOTH_ENDS = 0.9
"""Confidence of an interval of which one end alone has 95 %."""
LACKING_EVIDENCE = {"NOT_SIGNIFICANT", "TOO_FEW_RECORDINGS"}


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
    challenger_mean_error_decided
        Over those of them that decided.
    difference, difference_low, difference_high
        Mean of champion minus challenger, and its 95 % interval.
    p_value
        Of the hypothesis that the challenger is no better, given that the night came about.
    unconditional_p_value
        The same of any night; equal where the champion was not over a threshold.
    repeated_looks
        Earlier looks at these very recordings.
    loss_bound
        Upper 95 % bound of the loss on the old recordings; None where it is not applicable.
    power_gain
        Without a promotion: the gain that these recordings would have shown in 80 of 100 nights.
    chances
        If only evidence is lacking: number of nights -> chance that one of them promotes, at the
        observed gain.
    recordings_needed
        If only evidence is lacking: about how many recordings (`independent_things`) a gain of
        the observed size needs in all; None otherwise, and where no window holds so many.
    still_above
        The threshold, if the challenger is promoted and above it as well; None otherwise.
    unit
        Of the errors.
    """

    criteria: tuple[Criterion, ...]
    n_recordings: int
    n_sessions: int
    champion_mean_error: float
    challenger_mean_error: float
    challenger_mean_error_decided: float
    difference: float
    difference_low: float
    difference_high: float
    p_value: float
    unconditional_p_value: float
    repeated_looks: int = 0
    loss_bound: float | None = None
    power_gain: float | None = None
    chances: Mapping[int, float] = field(default_factory=dict)
    recordings_needed: int | None = None
    still_above: float | None = None
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
            said = (
                f"{error_text(self.champion_mean_error, self.unit)} -> "
                f"{error_text(self.challenger_mean_error, self.unit)} on "
                f"{self.recordings_in_words}, p = {self.p_value:.2g}"
            )
            return "; ".join([said, *self.hints])
        failed = [
            f"{one.reason}: {one.explanation}"
            for one in self.criteria
            if one.outcome is Outcome.FAILED
        ]
        return "; ".join([*failed, *self.hints])

    @property
    def hints(self) -> tuple[str, ...]:
        """What else a person should know of the comparison, in short sentences."""
        hints = []
        if self.repeated_looks:
            times = "once" if self.repeated_looks == 1 else f"{self.repeated_looks} times"
            hints.append(f"a repeated look: these recordings were compared {times} before")
        if self.still_above is not None:
            found = error_text(self.challenger_mean_error_decided, self.unit)
            hints.append(
                f"still above the threshold of {self.still_above:g} {self.unit}: {found} on the "
                "newest, which decide"
            )
        if self.power_gain is not None:
            gain = f"{number_text(self.power_gain)} {self.difference_unit}"
            hints.append(
                f"these {self.recordings_in_words} would have shown a gain of {gain} "
                f"{100 * POWER:.0f} % of the time"
            )
        if self.chances:
            chances = " and ".join(
                f"{100 * chance:.0f} % within {nights} nights"
                for nights, chance in self.chances.items()
            )
            hints.append(f"the chance of a promotion at this gain is {chances}")
        if self.recordings_needed:
            needed = f"{self.recordings_needed} {self.independent_things}"
            hints.append(f"a gain of this size needs about {needed}")
        return tuple(hints)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        values = asdict(self)
        for criterion in values["criteria"]:
            criterion["outcome"] = criterion["outcome"].value
        values["chances"] = {str(nights): chance for nights, chance in self.chances.items()}
        return {"promote": self.promote, "reasons": list(self.reasons), **values}


def judge(  # noqa: PLR0913 - one keyword per criterion reads better than a bag of limits
    champion_errors: Any,
    challenger_errors: Any,
    *,
    sessions: Sequence[str] | None = None,
    threshold: float | None = None,
    decided: Sequence[float] | None = None,
    known: float = 0.0,
    decide: str = "point",
    significance: float = 0.05,
    repeated_looks: int = 0,
    min_improvement: float = 0.0,
    max_regression: float = 2.0,
    no_model_errors: Any = None,
    used_errors: tuple[Any, Any] | None = None,
    used_sessions: Sequence[str] | None = None,
    n_leaked: int = 0,
    nights: Sequence[int] | None = None,
    window: int = 0,
    recordings_a_night: float = 2.0,
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
    threshold
        Mean error that the champion had to be above for this comparison to be made. None, or one
        that it is not above: the comparison would have been made anyway.
    decided
        On which of the recordings it had to, shape (n_recordings,): how much each weighs in their
        mean, 0 for one that did not decide (false), 1 (true) where all weigh the same. None: on
        all of them.
    known
        What is added to that mean: by how much that of a whole pool is known to differ from it.
    decide
        "point": their mean had to; "bound": the lower end of its 95 % interval.
    significance
        Largest probability that an equal challenger is promoted at a look; 1 promotes on the lower
        mean error alone.
    repeated_looks
        Earlier looks at these very recordings; each halves the significance.
    min_improvement
        That the mean must fall by, at least.
    max_regression
        That the old recordings may lose in the mean.
    no_model_errors
        Shape (n_recordings,): of predictions that need no model. None: not applicable.
    used_errors
        Honest errors (champion, challenger) on all other recordings, each of shape (n_used,).
        None: not applicable.
    used_sessions
        Of the old recordings, as `sessions`.
    n_leaked
        New recordings that the champion was trained on; any forbids a promotion.
    nights, window, recordings_a_night
        On which nights the recordings arrived, shape (n_recordings,) (None: all on one); how many
        are compared at least, once there are so many; how many come. What the chance of the next
        nights depends on.
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
        If the significance, the number of looks or another limit is out of range.

    Notes
    -----
    The p-value is that of `resampling.sign_flip_p_values`, given that the champion was over the
    threshold. It is held against `look_significance`; the loss on the old recordings, which can
    only forbid a promotion, against `significance` itself.
    """
    if not (0 <= min_improvement < math.inf and 0 <= max_regression < math.inf):
        raise ValueError(f"limits {min_improvement} and {max_regression}: must be 0 or more")
    champion, challenger = _paired(champion_errors, challenger_errors)
    differences = np.round(champion - challenger, DIGITS)
    mean = round(float(differences.mean()), DIGITS)
    independent = by_session(differences, sessions)
    effective = look_significance(significance, repeated_looks)
    limit = None if threshold is None else threshold - known
    night = _night(limit, decided, decide, len(champion))
    p_value, unconditional = sign_flip_p_values(champion, challenger, sessions, night, effective)
    remembers, loss_bound = _remembers(
        used_errors, used_sessions, max_regression, significance, unit
    )
    criteria = (
        _no_leak(n_leaked),
        _improves(mean, min_improvement, unit),
        _enough_recordings(
            independent, effective, _independent_things(len(independent), len(differences))
        ),
        _is_significant(p_value, unconditional, effective, significance),
        remembers,
        _beats_no_model(challenger, no_model_errors, unit),
    )
    failed = {one.reason for one in criteria if one.outcome is Outcome.FAILED}
    columns = (champion, challenger, sessions, night)
    can_tell = significance < 1 and len(independent) > 1
    waits = can_tell and failed and failed <= LACKING_EVIDENCE
    foreseen: dict[str, Any] = {}
    if waits:
        needed = recordings_needed(independent, significance)
        foreseen = {
            "chances": Evidence.of(*columns, significance).chances(
                FORESEEN_NIGHTS,
                _nights_of_sessions(nights, sessions, len(differences)),
                recordings_a_night * len(independent) / len(differences),
                window * len(independent) // len(differences),
            ),
            "recordings_needed": needed if not window or (needed or 0) <= window else None,
        }
    low, high = mean_interval(differences, sessions)
    on_decided = max(weighted_mean(challenger, _weights(decided, len(champion))) + known, 0.0)
    is_above = threshold is not None and on_decided > threshold
    return Verdict(
        criteria=criteria,
        n_recordings=len(differences),
        n_sessions=len(independent),
        champion_mean_error=float(champion.mean()),
        challenger_mean_error=float(challenger.mean()),
        challenger_mean_error_decided=on_decided,
        difference=mean,
        difference_low=low,
        difference_high=high,
        p_value=p_value,
        unconditional_p_value=unconditional,
        repeated_looks=repeated_looks,
        loss_bound=loss_bound,
        power_gain=Evidence.of(*columns, effective).power_gain(POWER)
        if failed and can_tell and "TOO_FEW_RECORDINGS" not in failed
        else None,
        still_above=threshold if is_above and not failed else None,
        unit=unit,
        **foreseen,
    )


def _nights_of_sessions(
    nights: Sequence[int] | None, sessions: Sequence[str] | None, n_recordings: int
) -> list[int]:
    """Return on which night the first recording of each session arrived."""
    arrived = [0] * n_recordings if nights is None else [*nights]
    places = session_places(sessions, n_recordings)
    first: dict[int, int] = {}
    for place, night in zip(places.tolist(), arrived, strict=True):
        first[place] = min(night, first.get(place, night))
    return [first[place] for place in sorted(first)]


def _night(
    threshold: float | None, decided: Sequence[float] | None, decide: str, n_recordings: int
) -> Night | None:
    if decide not in ("point", "bound"):
        raise ValueError(f"decide {decide!r}: must be point or bound")
    if threshold is None:
        return None
    return Night(threshold, _weights(decided, n_recordings), decide)


def _weights(decided: Sequence[float] | None, n_recordings: int) -> np.ndarray:
    weights = np.ones(n_recordings) if decided is None else np.asarray(decided, dtype=float)
    if weights.shape != (n_recordings,) or not weights.any():
        raise NoVerdict(
            "DIFFERENT_RECORDINGS",
            f"{np.count_nonzero(weights)} of {n_recordings} recordings decided",
        )
    if not ((weights >= 0) & (weights < np.inf)).all():
        raise NoVerdict("INVALID_ERRORS", "a weight is missing, infinite or negative")
    return weights


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


def _independent_things(n_sessions: int, n_recordings: int) -> str:
    return "sessions" if n_sessions < n_recordings else "recordings"


def _recordings_in_words(n_sessions: int, n_recordings: int, what: str = "recordings") -> str:
    of_sessions = f" of {n_sessions} sessions" if n_sessions < n_recordings else ""
    return f"{n_recordings} {what}{of_sessions}"


def look_significance(significance: float, repeated_looks: int = 0) -> float:
    """Return the largest p-value of a promotion at one look.

    Parameters
    ----------
    significance
        Above 0 and at most 1; 1 stays 1.
    repeated_looks
        Earlier looks at the same recordings.

    Raises
    ------
    ValueError
        If one of them is out of range.

    Notes
    -----
    Whoever looks at the same recordings again, with another seed or setting, has half the chance
    of the look before: all such looks together promote an equal model with a probability of at
    most twice the significance.

    Examples
    --------
    >>> look_significance(0.05), look_significance(0.05, 2)
    (0.05, 0.0125)
    """
    if not 0 < significance <= 1:
        raise ValueError(f"significance {significance}: must be above 0 and at most 1")
    if repeated_looks < 0:
        raise ValueError(f"{repeated_looks} repeated looks: must be 0 or more")
    return significance if significance == 1 else significance * 0.5**repeated_looks


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


def recordings_needed(differences: np.ndarray, significance: float) -> int | None:
    """Return about how many recordings a gain of the observed size needs; None without a gain.

    Parameters
    ----------
    differences
        Paired differences, shape (n_recordings,), or of `by_session`; what is returned counts the
        same.
    significance
        As for `judge`.

    Notes
    -----
    n = ((z(1 - alpha) + z(0.8)) s / d)^2 where d and s are mean and standard deviation of the
    differences: the normal approximation for a power of 80 %; more than there are now, and never
    less than the number at which the test can tell at all.
    """
    mean = differences.mean()
    if mean <= 0 or significance == 1:
        return None
    deviation = differences.std(ddof=1) if len(differences) > 1 else mean
    z = float(stats.norm.isf(significance) + stats.norm.ppf(POWER))
    enough = math.ceil((z * float(deviation / mean)) ** 2)
    return max(enough, fewest_differences(significance), len(differences) + 1)


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
        f"the mean error changes by {number_text(0.0 - mean, 2, sign=True)} {points}; "
        f"more than {min_improvement:g} better is needed",
    )


def _enough_recordings(differences: np.ndarray, significance: float, things: str) -> Criterion:
    informative = int(np.count_nonzero(differences))
    needed = fewest_differences(significance)
    return _criterion(
        f"{things} on which the models differ",
        informative,
        needed,
        "TOO_FEW_RECORDINGS",
        informative < needed,
        f"the models differ on {informative} {things}; below {needed} no test can tell",
    )


def _is_significant(
    p_value: float, unconditional: float, effective: float, significance: float
) -> Criterion:
    found = f"p = {p_value:.3g}"
    if p_value != unconditional:
        found += f" given that production was over its threshold ({unconditional:.3g} of any night)"
    halved = f", {significance:g} at a first look" if effective < significance else ""
    return _criterion(
        "p-value of the improvement",
        p_value,
        effective,
        "NOT_SIGNIFICANT",
        p_value > effective,
        f"{found}, at most {effective:.3g} is needed{halved}",
    )


def _remembers(
    used_errors: tuple[Any, Any] | None,
    sessions: Sequence[str] | None,
    max_regression: float,
    significance: float,
    unit: str,
) -> tuple[Criterion, float | None]:
    """Return the criterion, and the upper 95 % bound of the loss."""
    points = difference_unit(unit)
    name = f"loss on the old recordings, {points}"
    if used_errors is None:
        return _not_applicable(name, "the champion carries no out-of-fold errors"), None
    champion, challenger = _paired(*used_errors)
    loss = np.round(challenger - champion, DIGITS)
    # Flipped is what is above the allowed loss.
    _, p_value = sign_flip_p_values(challenger, champion + max_regression, sessions)
    failed = loss.mean() > max_regression and p_value <= significance
    old = _recordings_in_words(len(by_session(loss, sessions)), len(loss), "old recordings")
    bound = mean_interval(loss, sessions, confidence=BOTH_ENDS)[1]
    found = number_text(float(loss.mean()), 2, sign=True)
    worse = (
        f"could still be worse by up to {number_text(bound)} {points}"
        if bound > 0
        else "is not worse"
    )
    criterion = _criterion(
        name,
        float(loss.mean()),
        max_regression,
        "FORGETS",
        bool(failed),
        f"{found} {points} on {old}, p = {p_value:.3g}; {worse}",
    )
    return criterion, bound


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
