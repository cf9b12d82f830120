"""Which recordings to check next: hard ones, unlike what is known and unlike each other.

Pure: what is estimated of recordings and summaries of their features in, a list out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from retraining.calibration import plain_numbers
from retraining.marks import CHOSEN, RANDOM

FARTHEST = 3.0
"""Scaled values are cut there: one odd feature does not outweigh all others."""
NEAR_COPY = 0.2
"""Of the median distance of two recordings: nearer ones tell the same. Of 33 real recordings the
nearest two are at 0.25; a tenth of the tracks left out of one makes a distance of 0.12."""
MOST_COMPARED = 500
"""Recordings for the median distance."""
PART = 1_000


@dataclass(frozen=True)
class Candidate:
    """A recording that nobody has checked.

    Parameters
    ----------
    key
        Names it, whatever its file is called; differs from those of all others.
    informative
        How much is to be learnt of it, from 0, such as its estimated error; None if nobody can say.
    summary
        See `summary_of`; None where the module names no features.
    """

    key: str
    informative: float | None = None
    summary: pd.Series[float] | None = None


@dataclass(frozen=True)
class Pick:
    """A recording of a list.

    Parameters
    ----------
    place
        Among the candidates.
    how
        `CHOSEN` or `RANDOM`.
    novelty
        From 0, a copy of what is known or was chosen before it, to 1, unlike all of that. None
        where there are no features.
    """

    place: int
    how: str
    novelty: float | None


def summary_of(features: pd.DataFrame) -> pd.Series[float]:
    """Return mean and standard deviation of each feature that is a number, NaN where unknown.

    Parameters
    ----------
    features
        Of one recording, shape (n_examples, n_features).

    Returns
    -------
    Series of shape (2 * n_features,)
        Index: name of the feature, and "mean" or "deviation".
    """
    numbers = plain_numbers(features)
    finite = numbers.where(np.isfinite(numbers))
    return pd.concat({"mean": finite.mean(), "deviation": finite.std(ddof=0)}).swaplevel()


def pick(
    candidates: Sequence[Candidate],
    known: Collection[pd.Series[float]],
    count: int,
    random_share: float,
) -> list[Pick]:
    """Choose what to check next, and draw some of the rest; the first one comes first.

    Parameters
    ----------
    candidates
        In any order: their keys decide where they are alike.
    known
        Summaries of recordings whose labels are known.
    count
        Of recordings to list; fewer if there are fewer.
    random_share
        Of the list, from 0 to 1; at least one recording is drawn.

    Notes
    -----
    One after the other is chosen whose product of informative and novelty is largest. With the
    distance d to the nearest recording that is known or was chosen before, novelty is
    1 - exp(-2 (d / m)^2), where m is the median distance of two recordings: what is near one of
    them tells little more, and a near-copy of a chosen one is never chosen. What nobody can say of
    a recording is left out of the product; where nobody can say anything, all are drawn at random.

    The others are drawn from what was not chosen, by a seed that depends on the candidates alone:
    who asks twice gets the same. They stand between the chosen ones: who stops early has checked
    some of both.

    References
    ----------
    T. F. Gonzalez, "Clustering to minimize the maximum intercluster distance", Theoretical
    Computer Science 38, 1985: the farthest first.

    T. N. C. Cardoso, R. M. Silva, S. Canuto, M. M. Moro and M. A. Goncalves, "Ranked batch-mode
    active learning", Information Sciences 379, 2017: one after the other by uncertainty and by the
    distance to what is labelled or ranked already.
    """
    if not candidates:
        return []
    order = sorted(range(len(candidates)), key=lambda at: candidates[at].key)
    in_order = [candidates[at] for at in order]
    total = min(count, len(in_order))
    n_random = min(max(1, round(total * random_share)), total)
    chosen = _chosen(in_order, known, total - n_random)
    drawn = _drawn(in_order, chosen or {}, total if chosen is None else n_random)
    picks = [Pick(order[at], CHOSEN, novelty) for at, novelty in (chosen or {}).items()]
    return _mixed(picks, [Pick(order[at], RANDOM, None) for at in drawn])


def _mixed(chosen: Sequence[Pick], drawn: Sequence[Pick]) -> list[Pick]:
    """Spread the drawn ones evenly among the chosen ones."""
    placed = [
        ((place + 0.5) / len(some), number, one)
        for number, some in enumerate((chosen, drawn))
        for place, one in enumerate(some)
    ]
    return [one for *_, one in sorted(placed, key=lambda each: each[:2])]


def _drawn(candidates: Sequence[Candidate], chosen: Collection[int], n: int) -> list[int]:
    names = "\n".join(one.key for one in candidates)
    seed = int.from_bytes(hashlib.sha256(names.encode()).digest()[:8])
    order = np.random.default_rng(seed).permutation(len(candidates)).tolist()
    return [at for at in order if at not in chosen][:n]


# --- The chosen ones ---


def _chosen(
    candidates: Sequence[Candidate], known: Collection[pd.Series[float]], n: int
) -> dict[int, float | None] | None:
    """Return place -> novelty of what is chosen, in order; None if nobody can say anything."""
    informative = _informative(candidates)
    summaries = [one.summary for one in candidates if one.summary is not None]
    if len(summaries) < len(candidates):
        if informative is None:
            return None
        order = np.argsort(-informative, kind="stable")[:n]
        return dict.fromkeys(order.tolist(), None)
    points = _scaled([*summaries, *known])
    return _farthest(
        points[: len(candidates)],
        points[len(candidates) :],
        np.ones(len(candidates)) if informative is None else informative,
        n,
    )


def _informative(candidates: Sequence[Candidate]) -> np.ndarray | None:
    """Return what is to be learnt of each; None if nobody can say, or all are alike."""
    told = [one.informative for one in candidates if one.informative is not None]
    if not told or not any(told):
        return None
    middle = float(np.median(told))
    return np.array([middle if one.informative is None else one.informative for one in candidates])


def _scaled(summaries: Sequence[pd.Series[float]]) -> np.ndarray:
    """Return robustly scaled summaries, one per row; what is missing is as the middle one."""
    table = pd.DataFrame(list(summaries))
    spread = table.quantile(0.75) - table.quantile(0.25)
    spread = spread.where(spread > 0, table.std(ddof=0))
    table, spread = table.loc[:, spread > 0], spread[spread > 0]
    scaled = ((table - table.median()) / spread).clip(-FARTHEST, FARTHEST).fillna(0.0)
    return scaled.to_numpy(dtype=float) / math.sqrt(max(len(spread), 1))


def _farthest(
    points: np.ndarray, known: np.ndarray, informative: np.ndarray, n: int
) -> dict[int, float | None]:
    middle = _median_distance(np.concatenate([points, known]))
    nearest = _nearest(points, known)
    is_free = np.ones(len(points), dtype=bool)
    chosen: dict[int, float | None] = {}
    while len(chosen) < n and is_free.any():
        novelty = 1 - np.exp(-2 * (nearest / middle) ** 2)
        places = np.flatnonzero(is_free)
        # Where all are alike in one respect the other one tells them apart.
        ranks = np.lexsort((-nearest[places], -(informative * novelty)[places]))
        best = int(places[ranks[0]])
        chosen[best] = float(novelty[best])
        distance = _distances(points, points[best])
        nearest = np.minimum(nearest, distance)
        is_free &= distance > NEAR_COPY * middle
        is_free[best] = False
    return chosen


def _distances(points: np.ndarray, one: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(((points - one) ** 2).sum(axis=1)))


def _nearest(points: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the distance of each point to the nearest known one; infinite without any."""
    from scipy.spatial.distance import cdist

    if not len(known):
        return np.full(len(points), np.inf)
    parts = (points[at : at + PART] for at in range(0, len(points), PART))
    return np.concatenate([cdist(part, known).min(axis=1) for part in parts])


def _median_distance(points: np.ndarray) -> float:
    """Return the median distance of two; 1 where there are no two different ones."""
    from scipy.spatial.distance import pdist

    some = points[:: max(1, math.ceil(len(points) / MOST_COMPARED))]
    return float(np.median(pdist(some))) or 1.0 if len(some) > 1 else 1.0


def informative_of(
    expected: Iterable[float | None], is_unlike: Iterable[bool]
) -> list[float | None]:
    """Return how informative recordings are, given their estimated errors.

    A model may be sure of what is unlike anything it learnt: of that at least as much is to be
    learnt as of the middle one.
    """
    found = [*expected]
    told = [one for one in found if one is not None]
    middle = float(np.median(told)) if told else None
    return [
        max(one, middle) if unlike and one is not None and middle is not None else one
        for one, unlike in zip(found, is_unlike, strict=True)
    ]
