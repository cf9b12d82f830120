"""What makes a recording itself, however it is saved: its observations, and what people say of it.

Observations are values that tell recordings apart, as the training module names them; their order
does not matter, nor do the bytes that they were read from. A sample of them, the sketch, tells how
much two recordings have in common when neither is at hand. Pure: tables and arrays only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from retraining.training import Training

if TYPE_CHECKING:
    import pandas as pd

SKETCH_SIZE = 448
"""Observations in a sketch: 2.2 kB with their labels."""
DIGEST_CHARACTERS = 32
SIGNIFICANT_DIGITS = 2
"""Of numbers where the module does not say what tells recordings apart; never coarser than 1."""
NAN = np.array(np.nan).view(np.uint64)[()]
MISSING_TEXT = np.uint64(0x9E3779B97F4A7C15)
"""The bits of what is missing."""
AMBIGUOUS = np.uint64(0)


@dataclass(frozen=True)
class Observations:
    """The observations of one recording, whatever their order.

    Parameters
    ----------
    hashes
        Shape (n,), ascending, each once: 64-bit hashes of the observations.
    labels
        Shape (n,): hashes of what people say of each; `AMBIGUOUS` where it was made twice and they
        say different things.
    objects
        Shape (n,): the thing that bears the label.
    is_labelled
        Shape (n,): whether that label counts.
    digest
        Of all observations.
    labels_digest
        Of these together with what people say of them and of the recording.
    session
        What must not be split between training and test; empty where nothing is said.
    """

    hashes: np.ndarray
    labels: np.ndarray
    objects: np.ndarray
    is_labelled: np.ndarray
    digest: str
    labels_digest: str
    session: str = ""

    def __len__(self) -> int:
        """Return the number of different observations."""
        return len(self.hashes)

    @property
    def sketch(self) -> np.ndarray:
        """The least hashes, shortened to 32 bits: shape (at most `SKETCH_SIZE`,)."""
        return (self.hashes[:SKETCH_SIZE] >> np.uint64(32)).astype(np.uint32)

    @property
    def labels_sketch(self) -> np.ndarray:
        """A byte of the labels of the same observations; 0 for `AMBIGUOUS`."""
        labels = self.labels[:SKETCH_SIZE]
        return np.where(labels == AMBIGUOUS, 0, labels % np.uint64(255) + np.uint64(1)).astype("u1")

    def common(self, other: Observations) -> int:
        """Return how many observations both have."""
        return int(self._known_to(other).sum())

    def covered_by(self, others: Iterable[Observations]) -> float:
        """Return the share of the observations that any of the others has, too."""
        known = np.zeros(len(self), dtype=bool)
        for other in others:
            known |= self._known_to(other)
        return float(known.mean()) if len(self) else 0.0

    def _known_to(self, other: Observations) -> np.ndarray:
        if not len(other):
            return np.zeros(len(self), dtype=bool)
        return other.hashes[self._places_in(other)] == self.hashes

    def _places_in(self, other: Observations) -> np.ndarray:
        """Return where another one, which is not empty, would have the observations."""
        return np.searchsorted(other.hashes, self.hashes).clip(max=len(other) - 1)

    def labels_changed(self, other: Observations) -> float:
        """Return of how many of 1 labelled object another one says something else.

        Of those that it knows. What it says of other objects counts as well: nobody hides behind
        objects whose label is not used.
        """
        labelled, knows, differs = self._objects_in(other)
        return _share(differs, labelled & knows)

    def labels_lost(self, other: Observations) -> float:
        """Return the same, with the labelled objects of which another one says nothing clear."""
        labelled, knows, differs = self._objects_in(other)
        return _share((labelled & ~knows) | differs, labelled)

    def _objects_in(self, other: Observations) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Say of each object whether it is labelled, and for another one known and another."""
        _, objects = np.unique(self.objects, return_inverse=True)
        is_clear = self.labels != AMBIGUOUS
        known = np.zeros(len(self), dtype=bool)
        differs = known
        if len(other):
            theirs = other.labels[self._places_in(other)]
            known = is_clear & self._known_to(other) & (theirs != AMBIGUOUS)
            differs = known & (self.labels != theirs)
        labelled, knows, other_label = (
            np.bincount(objects, which) > 0
            for which in (is_clear & self.is_labelled, known, differs)
        )
        return labelled, knows, other_label


def _share(some: np.ndarray, labelled: np.ndarray) -> float:
    """Return how many objects some are, as a share of the labelled ones, at most 1."""
    return min(float(some.sum()) / max(int(labelled.sum()), 1), 1.0)


def observe(training: Training, rows: pd.DataFrame) -> Observations:
    """Return the observations of a recording.

    Parameters
    ----------
    rows
        As `Training.parse` returned them.
    """
    seen = training.identity(rows)
    bits = [_bits(seen[name]) for name in seen]
    is_missing = [(one == NAN) | (one == MISSING_TEXT) for one in bits]
    something = ~np.logical_and.reduce([np.ones(len(seen), dtype=bool), *is_missing])
    if not something.all():
        seen, bits = seen[something], [one[something] for one in bits]
    seen_rows = rows if len(seen) == len(rows) else rows.loc[seen.index]
    labels = _hashes(seen_rows, sorted(training.label_columns(rows)))
    exact = hashes = _mixed(bits)
    if not training.has_identity:
        hashes = _hashes(seen, seen.columns, exact=False)
    objects = np.arange(len(seen))
    if training.object_column in rows:
        objects = seen_rows[training.object_column].to_numpy()
    if not len(hashes):
        nothing = np.empty(0, dtype=np.uint64)
        return Observations(nothing, nothing, nothing, nothing == 0, "", "")
    order, starts = _order_and_starts(hashes)
    said = labels[order]
    least, most = np.minimum.reduceat(said, starts), np.maximum.reduceat(said, starts)
    if exact is hashes:
        exact_order, exact_starts = order, starts
    else:
        exact_order, exact_starts = _order_and_starts(exact)
    digest, session = _digest(exact[exact_order]), training.session(rows)
    # A sum, which does not depend on the order, where one observation was made twice.
    all_said = np.add.reduceat(labels[exact_order], exact_starts)
    return Observations(
        hashes=hashes[order][starts],
        labels=np.where(least == most, least, AMBIGUOUS),
        objects=objects[order][starts],
        is_labelled=training.is_labelled(seen_rows)[order][starts],
        digest=digest,
        labels_digest=_digest(all_said, digest.encode(), session.encode()),
        session=session,
    )


def _order_and_starts(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what sorts hashes, and where among the sorted ones each begins."""
    order = np.argsort(hashes)
    ascending = hashes[order]
    is_new = np.ones(len(ascending), dtype=bool)
    np.not_equal(ascending[1:], ascending[:-1], out=is_new[1:])
    return order, np.flatnonzero(is_new)


def _digest(hashes: np.ndarray, *more: bytes) -> str:
    return hashlib.sha256(b"".join((hashes.tobytes(), *more))).hexdigest()[:DIGEST_CHARACTERS]


def _hashes(table: pd.DataFrame, columns: Iterable[str], *, exact: bool = True) -> np.ndarray:
    """Return one hash per row, the same in every process, on every machine and with every pandas.

    Parameters
    ----------
    exact
        Of numbers as they are; else of their first digits.
    """
    bits = [_bits(table[name], exact=exact) for name in columns]
    return _mixed(bits or [np.zeros(len(table), dtype=np.uint64)])


def _bits(column: pd.Series, *, exact: bool = True) -> np.ndarray:
    """Return 64 bits for each value; equal values have equal ones, however they are kept."""
    import pandas as pd

    if column.dtype.kind in "iufb":
        numbers = column.to_numpy(dtype=float, na_value=np.nan)
        if not exact:
            numbers = _first_digits(numbers)
        found = (numbers + 0.0).view(np.uint64)  # there is but one zero
        found[np.isnan(numbers)] = NAN
        return found
    codes, values = pd.factorize(column.astype(object))
    texts = [hashlib.sha256(str(one).encode(errors="replace")).digest()[:8] for one in values]
    table = np.append(np.frombuffer(b"".join(texts), dtype="<u8"), MISSING_TEXT)
    return table[codes]


def _first_digits(numbers: np.ndarray) -> np.ndarray:
    """Round to `SIGNIFICANT_DIGITS`, but never coarser than to whole numbers."""
    with np.errstate(divide="ignore", invalid="ignore"):
        decimals = SIGNIFICANT_DIGITS - 1 - np.floor(np.log10(np.abs(numbers)))
        scale = 10.0 ** np.clip(np.nan_to_num(decimals, posinf=0, neginf=0), 0, 15)
        return np.round(numbers * scale) / scale


def _mixed(columns: Iterable[np.ndarray]) -> np.ndarray:
    """Return one well mixed hash of several columns of 64 bits.

    References
    ----------
    G. L. Steele, D. Lea and C. H. Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014: the finalizer of SplitMix64.
    """
    mixed: Any = np.uint64(0)
    for column in columns:
        mixed = (mixed ^ column) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return np.asarray(mixed)
