"""Whole lives of a production that is estimated every night on recordings nobody has checked.

A life has 120 nights, 1 to 3 unlabelled recordings each; where the data change, they do so after
60 healthy ones, for good. Every night the newest recordings are estimated and the alarm is that
of the product. Recordings are drawn from a pool, which each production has estimated once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from graded_seasons import OLD, Graded, Production, described, productions, told
from joblib import Parallel, delayed
from scipy import stats

from retraining.calibration import CONFIDENCE, Calibration, Estimate
from retraining.training import ERROR
from retraining.unlabelled import ALARMING, is_alarming
from retraining.windows import newest

NIGHTS, HEALTHY_NIGHTS, MOST_A_NIGHT = 120, 60, 3
MIN_NEW_FILES, THRESHOLD = 15, 10.0
LEARNT, POOL = 30, 200
CONFIDENCES = (ALARMING, 0.0, 0.8, CONFIDENCE)
"""Of the interval whose lower end alarms; the first is the product's, that of 0 is the mean."""


@dataclass(frozen=True)
class World:
    """What production learns, and what comes.

    Parameters
    ----------
    learnt
        The season of its training, and of the first 60 nights.
    after
        Of the other nights; None: nothing changes.
    n_learnt
        Recordings of its training.
    """

    name: str
    learnt: Graded
    after: Graded | None = None
    n_learnt: int = LEARNT


def _noisy(low: float, high: float) -> Graded:
    return dataclasses.replace(OLD, noise=(low, high))


HARD = Graded((0.1, 0.8), OLD.share)
HEALTHY = World("nothing changes", OLD)
HEALTHY_HARD = World("nothing changes, a hard season", HARD)
HARMLESS = World("tracks a little noisier", OLD, _noisy(0.0, 0.2))
MODERATE = World("tracks noisier", OLD, _noisy(0.3, 0.6))
STRONG = World("tracks much noisier", OLD, _noisy(0.7, 1.1))
MODERATE_OF_MANY = World("tracks noisier, 100 recordings learnt", OLD, _noisy(0.3, 0.6), 100)
OTHER_KIND = World("false counts of another kind", OLD, Graded(OLD.ease, (0.7, 1.0)))
ALIKE = World("false counts more like stems", OLD, Graded((0.1, 0.6), OLD.share))
IN_PART = Graded(OLD.ease, OLD.share, noise=(0.7, 1.1), spared=0.65)
"""A third of the recordings is much noisier, the others are as before."""
WORLDS = (
    *(HEALTHY, HEALTHY_HARD, HARMLESS, MODERATE, MODERATE_OF_MANY, STRONG),
    *(OTHER_KIND, ALIKE),
)


@dataclass(frozen=True)
class Pool:
    """What one production expects of the recordings of one pool, and how wrong it truly is.

    Parameters
    ----------
    expected, errors
        Shape (n_recordings,).
    """

    expected: np.ndarray
    errors: np.ndarray

    @classmethod
    def of(cls, production: Production, recordings: Sequence[pd.DataFrame]) -> Pool:
        """Ask a production about recordings."""
        found = told(production.model, recordings)
        return cls(found["expected"].to_numpy(), found[ERROR].to_numpy())


@dataclass(frozen=True)
class Lived:
    """What became of the lives of one world; shapes (n_productions, n_lives_of_each, ...).

    Parameters
    ----------
    early, late
        By confidence of the interval that alarms: night of the first alarm before the change, and
        nights after it until there is one; infinite for none. Without a change all are early.
    before, after
        True mean error of the productions before the change and after it, shape (n_productions,).
    estimated
        Estimate of the last night.
    """

    early: np.ndarray
    late: np.ndarray
    before: np.ndarray
    after: np.ndarray
    estimated: np.ndarray


def estimates(
    calibration: Calibration, before: Pool, after: Pool | None, random: np.random.Generator
) -> list[Estimate]:
    """Return the estimate of each night of one life."""
    found = []
    nights: list[int] = []
    expected: list[float] = []
    for night in range(1, NIGHTS + 1):
        pool = before if after is None or night <= HEALTHY_NIGHTS else after
        drawn = random.integers(0, len(pool.expected), random.integers(1, MOST_A_NIGHT + 1))
        nights += [night] * len(drawn)
        expected += pool.expected[drawn].tolist()
        # no window holds more
        nights, expected = nights[-2 * MIN_NEW_FILES :], expected[-2 * MIN_NEW_FILES :]
        is_in = newest(nights, MIN_NEW_FILES)
        window = [one for one, kept in zip(expected, is_in, strict=True) if kept]
        found.append(calibration.mean_error(window))
    return found


def at_confidence(found: Estimate, confidence: float, n_sessions: int) -> Estimate:
    """Return an estimate whose lower end is that of another interval.

    Parameters
    ----------
    n_sessions
        That taught the calibration.
    """
    ends = [float(stats.t.isf((1 - one) / 2, n_sessions - 1)) for one in (confidence, CONFIDENCE)]
    half = math.log(found.mean / found.low) * ends[0] / ends[1] if found.low > 0 else 0.0
    return dataclasses.replace(found, low=found.mean * math.exp(-half))


def alarms(nights: Sequence[Estimate], *, changes: bool) -> tuple[float, float]:
    """Return the night of the first alarm before the change, and how long one took after it."""
    early = late = math.inf
    was_alarming = False
    for night, found in enumerate(nights, 1):
        was_alarming = is_alarming(found, THRESHOLD, was_alarming=was_alarming)
        if was_alarming and changes and night > HEALTHY_NIGHTS:
            late = min(late, night - HEALTHY_NIGHTS)
        elif was_alarming:
            early = min(early, night)
    return early, late


def live(
    production: Production, before: Pool, after: Pool | None, seed: tuple[int, int]
) -> tuple[np.ndarray, float]:
    """Live one life; return (early, late) by confidence, and the last estimate."""
    nights = estimates(production.calibration, before, after, np.random.default_rng(seed))
    n = production.calibration.n_sessions
    found = [
        alarms([at_confidence(one, each, n) for one in nights], changes=after is not None)
        for each in CONFIDENCES
    ]
    return np.array(found), nights[-1].mean


def live_all(world: World, n_productions: int, n_lives: int, n_jobs: int = 1) -> Lived:
    """Live some lives of each of some productions.

    Parameters
    ----------
    n_lives
        Of each production.
    """
    trained = productions(world.learnt, n_productions, world.n_learnt, n_jobs)
    recordings = described(world.learnt, POOL, 4_000_000, n_jobs)
    changed = described(world.after, POOL, 5_000_000, n_jobs) if world.after else None
    tried = delayed(_lives_of)
    found = Parallel(n_jobs)(
        tried(one, Pool.of(one, recordings), changed and Pool.of(one, changed), number, n_lives)
        for number, one in enumerate(trained)
    )
    nights, last, before, after = (np.array(one) for one in zip(*found, strict=True))
    return Lived(nights[..., 0], nights[..., 1], before, after, last)


def _lives_of(
    production: Production, before: Pool, after: Pool | None, number: int, n_lives: int
) -> tuple[np.ndarray, np.ndarray, float, float]:
    found = [live(production, before, after, (number, life)) for life in range(n_lives)]
    nights, last = zip(*found, strict=True)
    pool = after or before
    return np.array(nights), np.array(last), before.errors.mean(), pool.errors.mean()
