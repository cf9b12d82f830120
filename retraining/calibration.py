"""How a model's own doubts become errors: what recordings out of fold teach, kept with a version.

Pure: tables of a training in, numbers out. A calibration says how large errors are where a model
expects so much, how wide an interval of a count must be, and which values of features were learnt.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from retraining.text import printable
from retraining.training import (
    COUNT_SPREAD,
    ERROR,
    PREDICTED_COUNT,
    TRUE_COUNT,
    TrainedModel,
    Training,
)

FEWEST_SESSIONS = 5
"""Fewer say nothing of how errors scatter."""
CONFIDENCE, COUNT_CONFIDENCE = 0.95, 0.9
"""Of the interval of a mean error, and of that of one count."""
TAIL = 0.005
"""Of the learnt values of a feature on each side; the others are the range that was learnt."""
SELDOM_MISSING = 0.05
LEAST_LIMIT, MARGIN = 0.1, 1.5
"""A recording is unlike what was learnt if more than that share of its values, and that many times
as many as of any learnt one, lie outside."""
NUMBERS = re.compile(r"[0-9]+")
MOST_DOUBTS = 500
"""That are kept with a version, the surest first."""


@dataclass(frozen=True)
class Estimate:
    """The estimated mean error of some recordings, and its 95 % interval, in the unit of errors."""

    mean: float
    low: float
    high: float
    n_recordings: int


@dataclass(frozen=True)
class Calibration:
    """What errors out of fold teach about a model's own expectations.

    Parameters
    ----------
    n_recordings, n_sessions
        That taught it; as many sessions where each recording is one of its own.
    scale
        Mean error divided by the mean of what was expected.
    scale_deviation
        Standard error of the scale; errors of one session are not independent.
    scatter
        Of single recordings: standard deviation of error minus scale times expectation, per
        expectation.
    count_factor
        How many times `count_spread` of a recording the distance of the true count is at most, of
        90 of 100 recordings; None where nothing is counted, or of fewer than nine recordings.
    features
        Name -> least and largest learnt value, and share of missing ones.
    outside_limit
        Share of values outside these ranges from which a recording is unlike what was learnt.
    notes
        Kinds of what the recordings' notes on data quality list, see `kinds_of`.
    """

    n_recordings: int
    n_sessions: int
    scale: float
    scale_deviation: float
    scatter: float
    count_factor: float | None = None
    features: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    outside_limit: float = LEAST_LIMIT
    notes: Sequence[str] = ()

    @classmethod
    def of(cls, trained: TrainedModel, training: Training) -> Calibration | None:
        """Learn from a training; None where the module tells nothing, or of too few recordings.

        And where numbers are so large or so small that nothing can be computed of them.
        """
        expected = trained.expected
        if expected is None:
            return None
        session = pd.Series([trained.sessions.get(name, name) for name in expected.index])
        n_sessions = session.nunique()
        if n_sessions < FEWEST_SESSIONS:
            return None
        errors = trained.out_of_fold.loc[expected.index]
        x, y = expected[ERROR].to_numpy(), errors[ERROR].to_numpy(dtype=float)
        if not x.sum() > 0:
            return None
        n = len(x)
        with np.errstate(all="ignore"):
            scale = y.sum() / x.sum()
            residuals = y - scale * x
            together = np.bincount(pd.factorize(session)[0], residuals)
            variance = (together**2).sum() * n_sessions / (n_sessions - 1)
            scale_deviation = np.sqrt(variance) / x.sum()
            scatter = np.sqrt((residuals**2).sum() / (x**2).sum() * n / (n - 1))
        if not np.isfinite([scale, scale_deviation, scatter]).all():
            return None
        features = training.features(trained.examples)
        ranges = _ranges(features)
        by_recording = features.groupby(level=0, sort=False)
        shares = [outside(ranges, one) or 0.0 for _, one in by_recording]
        return cls(
            n_recordings=n,
            n_sessions=n_sessions,
            scale=float(scale),
            scale_deviation=float(scale_deviation),
            scatter=float(scatter),
            count_factor=_count_factor(expected, errors),
            features=ranges,
            outside_limit=max(LEAST_LIMIT, MARGIN * max(shares, default=0.0)),
            notes=sorted(
                {kind for note in trained.data_quality.values() for kind in kinds_of(note)}
            ),
        )

    def mean_error(self, expected: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
        """Estimate the mean error of recordings of which a model expects that.

        Parameters
        ----------
        expected
            Shape (n_recordings,), at least one: `error` of `Training.expected_errors`.
        confidence
            Of both ends of the interval together.

        Notes
        -----
        scale * mean(x), with var = (mean(x) * scale_deviation)^2 + scatter^2 * sum(x^2) / n^2: what
        is not known of the scale, and what single recordings add. The interval is one of Student's
        t with `n_sessions` - 1 degrees of freedom for the logarithm: an error is never negative.
        """
        x = np.asarray(expected, dtype=float)
        mean = self.scale * float(x.mean())
        if mean <= 0:
            return Estimate(0.0, 0.0, 0.0, len(x))
        deviation = math.hypot(
            float(x.mean()) * self.scale_deviation,
            self.scatter * math.sqrt(float((x**2).sum())) / len(x),
        )
        half = stats.t.isf((1 - confidence) / 2, self.n_sessions - 1) * deviation / mean
        return Estimate(mean, mean * math.exp(-half), mean * math.exp(half), len(x))

    def count_interval(self, count: float, spread: float) -> tuple[int, int] | None:
        """Return between which whole numbers a true count lies, 90 times of 100."""
        if self.count_factor is None:
            return None
        half = self.count_factor * spread
        # Inwards: a whole number lies within the interval or not, however its ends are rounded.
        low, high = math.ceil(count - half - 1e-9), math.floor(count + half + 1e-9)
        return max(low, 0), max(high, 0)


def _count_factor(expected: pd.DataFrame, errors: pd.DataFrame) -> float | None:
    """Return the conformal quantile of how far true counts are away, in `count_spread`.

    References
    ----------
    J. Lei, M. G'Sell, A. Rinaldo, R. J. Tibshirani and L. Wasserman, "Distribution-free predictive
    inference for regression", Journal of the American Statistical Association, 2018: locally
    weighted split conformal inference, here with the folds.
    """
    there = {COUNT_SPREAD, PREDICTED_COUNT} <= {*expected} and TRUE_COUNT in errors
    place = math.ceil((len(expected) + 1) * COUNT_CONFIDENCE)
    if not there or place > len(expected) or not (expected[COUNT_SPREAD] > 0).all():
        return None
    distance = (errors[TRUE_COUNT] - expected[PREDICTED_COUNT]).abs() / expected[COUNT_SPREAD]
    return float(np.sort(distance.to_numpy())[place - 1])


def _by_name(table: pd.DataFrame) -> pd.DataFrame:
    """Return a module's table with texts as names, and each name once."""
    named = table.set_axis([str(name) for name in table], axis=1)
    return named.loc[:, ~named.columns.duplicated()]


def plain_numbers(features: pd.DataFrame) -> pd.DataFrame:
    """Return the columns that hold real numbers, as such: no times and no complex ones."""
    named = _by_name(features)
    return named.loc[:, [dtype.kind in "iuf" for dtype in named.dtypes]].astype(float)


def _ranges(features: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """Return least and largest usual value and share of missing ones, of numbers only."""
    numbers = plain_numbers(features)
    if numbers.empty:
        return {}
    finite = numbers.where(np.isfinite(numbers))
    low, high, missing = finite.quantile(TAIL), finite.quantile(1 - TAIL), finite.isna().mean()
    return {
        str(name): (float(least), float(most), float(lacking))
        for name, least, most, lacking in zip(numbers, low, high, missing, strict=True)
        if math.isfinite(least)
    }


def kinds_of(note: str) -> dict[str, str]:
    """Return kind -> text of what a note on data quality lists.

    Examples
    --------
    >>> kinds_of("area: 3 missing, only 2 tracks")
    {'area: # missing': 'area: 3 missing', 'only # tracks': 'only 2 tracks'}
    """
    return {NUMBERS.sub("#", one): one for one in note.split(", ") if one}


def outside(
    ranges: Mapping[str, tuple[float, float, float]], features: pd.DataFrame
) -> float | None:
    """Return which share of a recording's values lies outside what was learnt.

    A missing value does where it was seldom missing. None where the features are other ones.
    """
    if not ranges or not set(ranges) <= {str(name) for name in features} or not len(features):
        return None
    # What was a number of all that was learnt may be something else here, and counts as missing.
    known = plain_numbers(features).reindex(columns=list(ranges))
    table = known.to_numpy(dtype=float)
    low, high, missing = np.array(list(ranges.values())).T
    lacks = ~np.isfinite(table)
    is_outside = (table < low) | (table > high) | (lacks & (missing < SELDOM_MISSING))
    return float(is_outside.mean())


# --- As a file ---


def as_records(table: pd.DataFrame, decimals: int) -> list[dict[str, Any]]:
    """Return a dict for each row: numbers and texts, whatever else a module puts there."""
    named = _by_name(table)
    cells = [[_cell(one, decimals) for one in named[name].astype(object)] for name in named]
    names = [*map(str, named)]
    return [dict(zip(names, row, strict=True)) for row in zip(*cells, strict=True)]


def _cell(value: Any, decimals: int) -> str | float | bool | None:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return round(value, decimals) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return None if value is pd.NaT or value is pd.NA else printable(value)


@dataclass(frozen=True)
class BeforeLabels:
    """What a version's training leaves for the time before labels come.

    Parameters
    ----------
    calibration
        None where the module tells nothing.
    doubts
        Labels that models contradicted which never saw them, the surest first: `file`, `sha256` of
        its content then, `doubt`, and what the module tells of each.
    """

    calibration: Calibration | None = None
    doubts: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def of(
        cls, trained: TrainedModel, training: Training, hashes: Mapping[str, str]
    ) -> BeforeLabels:
        """Take what a training found; `hashes` are name -> SHA-256 of its recordings."""
        doubts: list[dict[str, Any]] = []
        if trained.doubts is not None:
            doubts = [
                {**one, "sha256": hashes.get(one["file"], "")}
                for one in as_records(trained.doubts.head(MOST_DOUBTS), 4)
            ]
        return cls(Calibration.of(trained, training), doubts)

    def to_bytes(self) -> bytes:
        """Return its JSON; nothing where there is nothing to tell."""
        if self.calibration is None and not self.doubts:
            return b""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> BeforeLabels:
        """Read what `to_bytes` returned.

        Raises
        ------
        ValueError
            If it is something else.
        """
        if not content:
            return cls()
        try:
            found = json.loads(content)
            calibration, doubts = found["calibration"], found["doubts"]
            if not all(isinstance(one, dict) and "file" in one for one in doubts):
                raise ValueError("a doubt names no file")
            if calibration is not None:
                names = {one.name for one in fields(Calibration)}  # a newer pipeline knows more
                calibration = Calibration(
                    **{name: value for name, value in calibration.items() if name in names}
                )
                numbers = (calibration.scale, calibration.scale_deviation, calibration.scatter)
                if not all(math.isfinite(one) and one >= 0 for one in numbers):
                    raise ValueError("a number of the calibration is none")
                if not calibration.n_sessions >= FEWEST_SESSIONS:
                    raise ValueError("too few sessions")
        except (TypeError, LookupError, AttributeError, RecursionError) as error:
            raise ValueError(printable(error)) from error
        return cls(calibration, tuple(doubts))
