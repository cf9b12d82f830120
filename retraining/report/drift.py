"""Old and new examples -> how far each feature moved, and whether chance alone would move it so.

Examples of one recording are alike, so recordings are shuffled, never examples. Nothing heavy is
imported here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from retraining.text import printable

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

MOST_CATEGORIES = 6
"""Texts are compared by their most frequent values; rarer ones count together."""
OTHER_KNOWN, OTHER_NEW = "other known ones", "other new ones"
NUMBERS = {"integer", "floating", "mixed-integer-float", "decimal"}
"""What pandas calls a column of numbers, whatever type it is kept in."""
MOST_ARRANGEMENTS = 1000
"""The real one and 999 shuffles; fewer where there are no more."""
MOST_CELLS = 256
"""More distinct values are shuffled in so many cells of about equally many values."""
SHARE_DIGITS = 6
"""To which values are equally frequent."""
ROUNDING = 1e-6
"""Distances that differ by less are equal: single precision knows no more."""


@dataclass(frozen=True)
class Share:
    """How many of 1 example have a value: of those trained on, and of the new ones."""

    value: str
    trained_on: float
    new: float


@dataclass(frozen=True)
class FeatureShift:
    """How far a feature of the new examples is from what production was trained on.

    Parameters
    ----------
    statistic
        Distance of the two distributions, from 0 (alike) to 1 (apart).
    p_value
        Share of the arrangements of whole recordings that are as far apart in this feature.
    trained_on, new
        Known values, one per example: finite numbers, or texts.
    missing
        Share of examples without such a value: of those trained on, and of the new ones.
    missing_p_value
        As `p_value`, of the difference of these shares.
    categories
        Of texts, the most frequent first; empty for numbers.
    """

    feature: str
    statistic: float
    p_value: float
    trained_on: np.ndarray
    new: np.ndarray
    missing: tuple[float, float] = (0.0, 0.0)
    missing_p_value: float = 1.0
    categories: tuple[Share, ...] = ()


@dataclass(frozen=True)
class ChangedData:
    """The new examples beside those that production was trained on.

    Parameters
    ----------
    shifts
        Of the features that both sides know, the most shifted one first.
    lost, gained
        Features that production learnt from and that no new example knows, and the reverse.
    n_trained_on, n_new
        How many examples there are.
    p_value
        Of all features together: share of the arrangements whose most unusual feature is as unusual
        as that of the real one. None where nothing was compared.
    n_arrangements
        From which the p-values come.
    n_shuffled
        How many recordings were trained on, and how many are new; sessions, where they share some.
    shuffled_things
        What these are.
    """

    shifts: Sequence[FeatureShift] = ()
    lost: Sequence[str] = ()
    gained: Sequence[str] = ()
    n_trained_on: int = 0
    n_new: int = 0
    p_value: float | None = None
    n_arrangements: int = 0
    n_shuffled: tuple[int, int] = (0, 0)
    shuffled_things: str = "recordings"


# --- The comparison ---


def compare_examples(
    trained_on: pd.DataFrame, new: pd.DataFrame, sessions: Mapping[str, str] | None = None
) -> ChangedData:
    """Compare the distribution of each feature of old and new examples.

    Parameters
    ----------
    trained_on, new
        One row per example; the index is its recording.
    sessions
        Recording -> session; one that is not named, or has an empty one, is a session of its own.

    Notes
    -----
    Of numbers the distance is the statistic of the two-sample Kolmogorov-Smirnov test: the largest
    vertical distance of the two cumulative distributions. Of texts (and whatever else is no
    number) it is the total variation: half the sum of the differences of all shares, that is the
    share of examples that would have to take another value. Rare values count together, those that
    production has seen apart from those that it has not: many rare values would be far apart by
    chance alone.

    The p-values come from permutations: were old and new recordings of one kind, any of them might
    have been the new ones. As many whole sessions as there are new ones are called new, at random
    or, if there are at most 1,000 ways, in all of them; p is the share of arrangements, the real
    one included, that are at least as far apart. That is exact whatever is alike within a session.
    A session with old and new recordings counts as one on each side, which makes p rather larger.
    With more than 256 distinct values the real and the shuffled distances of p are taken at 256 of
    their quantiles; the distance that is shown is that of all values.

    The overall p-value takes the distances of all features, and the differences of the shares of
    missing values, each less its mean over the arrangements and over their standard deviation, and
    compares the largest of each arrangement: the max-T method.

    References
    ----------
    N. V. Smirnov, "Table for estimating the goodness of fit of empirical distributions", Annals of
    Mathematical Statistics 19, 1948.

    A. L. Gibbs and F. E. Su, "On choosing and bounding probability metrics", International
    Statistical Review 70, 2002.

    P. H. Westfall and S. S. Young, "Resampling-Based Multiple Testing", Wiley, 1993.
    """
    lost, gained = lost_features(trained_on, new), lost_features(new, trained_on)
    if not len(trained_on) or not len(new):
        return ChangedData((), lost, gained, len(trained_on), len(new))
    columns = list(dict.fromkeys((*trained_on.columns, *new.columns)))
    # The new sessions come first: so the first one of all combinations is the real arrangement.
    found, n_new = _by_session(new.reindex(columns=columns), sessions or {}, 0)
    old, n_old = _by_session(trained_on.reindex(columns=columns), sessions or {}, n_new)
    is_new = arrangements(n_old + n_new, n_new)
    shifts, distances = [], []
    for feature in columns:
        shift, those = _shift(str(feature), old[feature], found[feature], is_new)
        shifts += [shift] if shift else []
        distances += those
    n_recordings = trained_on.index.nunique() + new.index.nunique()
    return ChangedData(
        shifts=sorted(shifts, key=lambda one: (-one.statistic, one.feature)),
        lost=lost,
        gained=gained,
        n_trained_on=len(trained_on),
        n_new=len(new),
        p_value=_overall_p_value(distances),
        n_arrangements=len(is_new),
        n_shuffled=(n_old, n_new),
        shuffled_things="sessions" if n_old + n_new < n_recordings else "recordings",
    )


def lost_features(trained_on: pd.DataFrame, new: pd.DataFrame) -> tuple[str, ...]:
    """Return the features that have values in the one table and none in the other."""
    return tuple(
        str(feature)
        for feature in trained_on.columns
        if trained_on[feature].notna().any()
        and (feature not in new or not new[feature].notna().any())
    )


def _by_session(
    table: pd.DataFrame, sessions: Mapping[str, str], first: int
) -> tuple[pd.DataFrame, int]:
    """Return the table with the number of its session as index of each row, and how many."""
    import pandas as pd

    # By name: a page must not depend on the order in which recordings were read.
    codes, names = pd.factorize(table.index, sort=True)
    places: dict[Hashable, int] = {}
    of_recording = [
        places.setdefault(("session", sessions[one]) if sessions.get(one) else one, len(places))
        for one in names
    ]
    return table.set_axis(pd.Index(of_recording)[codes] + first), len(places)


def _shift(
    feature: str, old: pd.Series[Any], new: pd.Series[Any], is_new: np.ndarray
) -> tuple[FeatureShift | None, list[np.ndarray]]:
    """Compare one feature; None where one side knows no value.

    Returns
    -------
    Beside it the distances of all arrangements: of the values, and of missing ones if there are.
    """
    old_known, new_known = _as_numbers(old), _as_numbers(new)
    compare, distances_of = _number_shift, _number_distances
    if old_known is None or new_known is None:
        old_known, new_known = _as_texts(old), _as_texts(new)
        compare, distances_of = _category_shift, _category_distances
    n_known, distances, missing_p_value = len(old_known) + len(new_known), [], 1.0
    if n_known:
        distances.append(distances_of(old_known, new_known, is_new))
    if n_known < len(old) + len(new):
        distances.append(_missing_distances((old_known, new_known), (old, new), is_new))
        missing_p_value = p_value(distances[-1])
    if not len(old_known) or not len(new_known):
        return None, distances
    statistic, categories = compare(old_known, new_known)
    shift = FeatureShift(
        feature,
        statistic,
        p_value(distances[0]),
        trained_on=old_known.to_numpy(),
        new=new_known.to_numpy(),
        missing=(1 - len(old_known) / len(old), 1 - len(new_known) / len(new)),
        missing_p_value=missing_p_value,
        categories=categories,
    )
    return shift, distances


def _as_numbers(values: pd.Series[Any]) -> pd.Series[Any] | None:
    """Return the finite values; None if they are no numbers. Without a value, they may be."""
    import numpy as np
    import pandas as pd

    known = values.dropna()
    if len(known) and pd.api.types.infer_dtype(known) not in NUMBERS:
        return None
    numbers = known.astype(float)
    return numbers[np.isfinite(numbers)]


def _as_texts(values: pd.Series[Any]) -> pd.Series[Any]:
    """Return the known values as they read."""
    return values.dropna().astype(object).map(printable)


def _number_shift(old: pd.Series[Any], new: pd.Series[Any]) -> tuple[float, tuple[Share, ...]]:
    import numpy as np

    values = np.unique(np.concatenate([old, new]))
    of_old, of_new = (
        np.searchsorted(np.sort(each.to_numpy()), values, side="right") / len(each)
        for each in (old, new)
    )
    return float(np.abs(of_old - of_new).max()), ()


def _category_shift(old: pd.Series[Any], new: pd.Series[Any]) -> tuple[float, tuple[Share, ...]]:
    import pandas as pd

    counts = pd.DataFrame([each.value_counts() for each in (old, new)], index=[0, 1]).fillna(0).T
    shares = counts / counts.sum()
    # A small batch counts as much as all that is known; the name settles ties.
    both = shares.sum(axis=1).round(SHARE_DIGITS).sort_index()
    order = both.sort_values(ascending=False, kind="stable").index
    shown, rare = order[:MOST_CATEGORIES], counts.loc[order[MOST_CATEGORIES:]]
    together = counts.loc[shown]
    for name, part in ((OTHER_KNOWN, rare[rare[0] > 0]), (OTHER_NEW, rare[rare[0] == 0])):
        if len(part):
            together = pd.concat([together, part.sum().rename(name).to_frame().T])
    shares = together / together.sum()
    statistic = min(float((shares[0] - shares[1]).abs().sum() / 2), 1.0)
    return statistic, tuple(Share(str(name), *of_1) for name, *of_1 in shares.itertuples())


# --- By chance ---


def arrangements(n_sessions: int, n_new: int) -> np.ndarray:
    """Return ways to call some sessions new, the first ones in the first row.

    Returns
    -------
    array of shape (n_arrangements, n_sessions)
        1 for new and 0 for old; all ways if they are at most `MOST_ARRANGEMENTS`, else random ones.
    """
    import numpy as np

    if math.comb(n_sessions, n_new) <= MOST_ARRANGEMENTS:
        chosen = np.array(list(itertools.combinations(range(n_sessions), n_new)))
        is_new = np.zeros((len(chosen), n_sessions), np.float32)
        np.put_along_axis(is_new, chosen, 1, axis=1)
        return is_new
    first = (np.arange(n_sessions) < n_new).astype(np.float32)
    is_new = np.random.default_rng(0).permuted(np.tile(first, (MOST_ARRANGEMENTS, 1)), axis=1)
    is_new[0] = first
    return is_new


def p_value(distances: np.ndarray) -> float:
    """Return the share of arrangements that are at least as far apart as the first, the real one.

    NaN is the distance of an arrangement that leaves one side without a value.
    """
    import numpy as np

    known = distances[~np.isnan(distances)]
    return float((known >= distances[0] - ROUNDING).sum() / max(len(known), 1))


def _overall_p_value(distances: Sequence[np.ndarray]) -> float | None:
    import numpy as np

    known = [each for each in distances if not np.isnan(each).all()]
    if not known:
        return None
    # Also what the real arrangement leaves unknown: else it would choose what it is judged by.
    table = np.column_stack(known).astype(float)
    mean, deviation = np.nanmean(table, axis=0), np.nanstd(table, axis=0)
    varies = deviation > ROUNDING
    if not varies.any():
        return 1.0
    real_first = np.vstack([table[0] - ROUNDING, table])[:, varies]
    unusual = (real_first - mean[varies]) / deviation[varies]
    most_unusual = np.where(np.isnan(unusual), -np.inf, unusual).max(axis=1)
    return float((most_unusual[1:] >= most_unusual[0]).mean())


def _number_distances(old: pd.Series[Any], new: pd.Series[Any], is_new: np.ndarray) -> np.ndarray:
    """Return the Kolmogorov-Smirnov distance of each arrangement."""
    import numpy as np
    import pandas as pd

    values = pd.concat([old, new])
    distinct, place, n_each = np.unique(values, return_inverse=True, return_counts=True)
    cells = np.arange(len(distinct))
    if len(distinct) > MOST_CELLS:
        cells = (n_each.cumsum() - 1) * MOST_CELLS // len(values)
    counts = _by_cell(values.index, cells[place], is_new.shape[1])
    return _largest_distances(counts.cumsum(axis=1), is_new)


def _missing_distances(
    known: Sequence[pd.Series[Any]], every: Sequence[pd.Series[Any]], is_new: np.ndarray
) -> np.ndarray:
    """Return by how much the share of missing values differs in each arrangement."""
    import numpy as np

    n_known, n_all = (
        sum(np.bincount(each.index, minlength=is_new.shape[1]) for each in both)
        for both in (known, every)
    )
    return _largest_distances(np.column_stack([n_known, n_all]), is_new)


def _category_distances(old: pd.Series[Any], new: pd.Series[Any], is_new: np.ndarray) -> np.ndarray:
    """Return the total variation of each arrangement, rare values together as they are shown."""
    import numpy as np
    import pandas as pd

    values = pd.concat([old, new])
    n_each = values.value_counts()
    if len(n_each) > MOST_CELLS:
        # Not some of those that are as frequent: their names may tell when they were given.
        n_each = n_each[n_each > n_each.iloc[MOST_CELLS - 1]]
    frequent = n_each.index.sort_values()
    # -1, what is not among them, becomes the last cell.
    counts = _by_cell(values.index, frequent.get_indexer(values) % MOST_CELLS, is_new.shape[1])
    sides = [each.astype(float) for each in _both_sides(counts, is_new)]
    with np.errstate(invalid="ignore"):
        of_old, of_new = (each / each.sum(axis=1, keepdims=True) for each in sides)
    order = np.argsort(-(of_old + of_new).round(SHARE_DIGITS), axis=1, kind="stable")
    change = np.take_along_axis(of_new - of_old, order, axis=1)
    is_known = np.take_along_axis(of_old > 0, order, axis=1)[:, MOST_CATEGORIES:]
    shown, rare = change[:, :MOST_CATEGORIES], change[:, MOST_CATEGORIES:]
    together = [(rare * part).sum(axis=1) for part in (is_known, ~is_known)]
    return np.abs(np.column_stack([shown, *together])).sum(axis=1) / 2


def _by_cell(session: Any, cells: np.ndarray, n_sessions: int) -> np.ndarray:
    """Return how many values of each session are in each cell, shape (n_sessions, n_cells)."""
    import numpy as np

    n_cells = int(cells.max()) + 1
    places = np.asarray(session) * n_cells + cells
    return np.bincount(places, minlength=n_sessions * n_cells).reshape(n_sessions, n_cells)


def _both_sides(counts: np.ndarray, is_new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts of old and new in each arrangement, each (n_arrangements, n_cells)."""
    import numpy as np

    # Single precision is five times as fast, and exact for counts up to 16 million.
    counts = counts.astype(np.float32)
    new = is_new @ counts
    return counts.sum(axis=0) - new, new


def _largest_distances(cumulative: np.ndarray, is_new: np.ndarray) -> np.ndarray:
    """Return the largest distance of both cumulative distributions in each arrangement.

    Parameters
    ----------
    cumulative
        Of each session, shape (n_sessions, n_cells); the last column is its number of values.
    """
    import numpy as np

    old, new = _both_sides(cumulative, is_new)
    with np.errstate(invalid="ignore"):
        return np.abs(old / old[:, -1:] - new / new[:, -1:]).max(axis=1)
