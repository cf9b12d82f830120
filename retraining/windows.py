"""Windows of the newest recordings, and how much two of them have in common."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

LARGEST_OVERLAP = 0.5
"""Of two windows that both count: what they have in common tells the same twice."""


def newest(nights: Sequence[int], at_least: int) -> list[bool]:
    """Say which recordings are in a window: the fewest newest nights that hold at least so many.

    Parameters
    ----------
    nights
        On which each recording arrived; those of one night are all in or all out.

    Examples
    --------
    >>> newest([1, 3, 2, 2, 1], 2)
    [False, True, True, True, False]
    """
    first = min(nights, default=0)
    n_found = 0
    for night, n_of_night in sorted(Counter(nights).items(), reverse=True):
        n_found += n_of_night
        if n_found >= at_least:
            first = night
            break
    return [night >= first for night in nights]


def fewest_differences(significance: float) -> int:
    """Return how many differences a p-value of that size takes: n signs give at best 2^-n.

    Examples
    --------
    >>> fewest_differences(0.05)
    5
    """
    return math.ceil(-math.log2(significance))


def newest_in_words(n_newest: int, n_all: int) -> str:
    """Say how many recordings are in a window, and of how many where those are not all.

    Examples
    --------
    >>> newest_in_words(15, 15), newest_in_words(15, 23)
    ('15', 'the newest 15 of 23')
    """
    return f"{n_all}" if n_newest == n_all else f"the newest {n_newest} of {n_all}"


def overlap(one: Collection[str], other: Collection[str]) -> float:
    """Return what share of the smaller of two windows they have in common."""
    return len(set(one) & set(other)) / max(min(len(set(one)), len(set(other))), 1)


def apart(windows: Iterable[Collection[str]]) -> int:
    """Return how many windows, each less than half made of the one counted before it, there are.

    Parameters
    ----------
    windows
        The newest first.
    """
    counted: list[Collection[str]] = []
    for window in windows:
        if not counted or overlap(window, counted[-1]) < LARGEST_OVERLAP:
            counted.append(window)
    return len(counted)
