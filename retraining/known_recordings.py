"""Which recordings a home knows, and what a new one has in common with them.

One row per content that was ever read: digests, and a sketch of about 2 kB. So what production
learnt is recognised although its file is gone, and thousands are compared in milliseconds, without
reading them. Losing the file costs the reading of used_gts/, and what is known of files that are
gone.
"""

from __future__ import annotations

import io
import logging
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from retraining.files import read_sealed, write_sealed
from retraining.identity import DIGEST_CHARACTERS, SKETCH_SIZE, Observations
from retraining.journal import Journal, who
from retraining.marks import CHOSEN, Triaged, marks_of, members_of
from retraining.text import now
from retraining.training import Training

FILE_NAME = ".pipeline_recordings"
NO_HASH = np.uint32(0xFFFFFFFF)
ROW = np.dtype(
    [
        ("sha256", "S64"),
        ("maker", "S16"),
        ("identity", f"S{DIGEST_CHARACTERS}"),
        ("labels", f"S{DIGEST_CHARACTERS}"),
        ("size", "<i8"),
        ("sketch", "<u4", (SKETCH_SIZE,)),
        ("labels_sketch", "u1", (SKETCH_SIZE,)),
    ]
)
"""`size` is the number of different observations."""
FILTER_BITS = 22
FEWEST_COMMON = 5
"""Fewer common observations are chance, unless a recording has no more."""
NOTICED, RELATED = 0.03, 0.1
"""Containment from which a pair is looked at, and from which it has a recording in common."""
NOTICED_BY_ROWS, RELATED_BY_ROWS = 0.15, 0.3
"""The same where the module does not say what tells recordings apart."""
SHARED_BY_CHANCE = 0.05
"""Where more rows than that are shared, only whole recordings are recognised."""
BLIND_RECORDINGS = 20
"""That sketches cannot tell from a small one; each is read."""
FEWEST_ASKED, PAIRS_ASKED = 3, 100
UNCHECKED = "unchecked"
"""In place of the code that read a content whose labels nobody has seen: it is read again."""
logger = logging.getLogger("pipeline")


@dataclass(frozen=True)
class Pair:
    """What two recordings have in common.

    Parameters
    ----------
    sha256, other
        Their contents.
    n_common
        Observations of both; estimated from the sketches where `is_exact` is false.
    size, other_size
        Observations of each.
    n_seen
        Hashes that both sketches hold.
    """

    sha256: str
    other: str
    n_common: float
    size: int
    other_size: int
    is_exact: bool = False
    n_seen: int = 0

    @property
    def is_sure(self) -> bool:
        """Whether it is more than a chance hit in what little two sketches let compare."""
        return self.is_exact or self.n_seen >= min(FEWEST_COMMON, self.size, self.other_size)

    @property
    def share(self) -> float:
        """Of the first one's observations that the other has."""
        return min(self.n_common / self.size, 1.0) if self.size else 0.0

    @property
    def share_of_other(self) -> float:
        """Of the other's observations that the first one has."""
        return min(self.n_common / self.other_size, 1.0) if self.other_size else 0.0

    @property
    def containment(self) -> float:
        """Of the smaller one's observations that the larger one has."""
        return max(self.share, self.share_of_other)


@dataclass
class KnownRecordings:
    """The recordings that a home knows.

    Parameters
    ----------
    path
        Of the file that they are kept in.
    has_identity
        Whether the training module says what tells recordings apart.
    rows
        Shape (n,), of type `ROW`; the newest last.
    """

    path: Path
    has_identity: bool
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=ROW))
    _places: dict[str, int] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, home: Path, training: Training) -> KnownRecordings:
        """Read what a home knows; nothing of a file that is missing, damaged or not ours."""
        path = home / FILE_NAME
        known = cls(path, training.has_identity)
        content = read_sealed(path, FILE_NAME)
        if content is not None:
            found = np.load(io.BytesIO(content), allow_pickle=False)
            if found.dtype == ROW:
                known.rows = found
        elif path.exists():
            logger.warning("%s is damaged or not ours alone; begun again from used_gts/", path)
        return known

    def save(self) -> None:
        """Keep them, whole or not at all."""
        stream = io.BytesIO()
        np.save(stream, self.rows, allow_pickle=False)
        write_sealed(self.path, FILE_NAME, stream.getvalue())

    # --- One by one ---

    def __contains__(self, sha256: str) -> bool:
        """Say whether a content was read before."""
        return self._place(sha256) is not None

    def _place(self, sha256: str) -> int | None:
        if len(self._places) != len(self.rows):
            self._places = {one.decode(): place for place, one in enumerate(self.rows["sha256"])}
        return self._places.get(sha256)

    def was_read_by(self, sha256: str, maker: str) -> bool:
        """Say whether a content was read by that code."""
        place = self._place(sha256)
        return place is not None and self.rows["maker"][place] == maker.encode()

    def add(self, found: Iterable[tuple[str, Observations]], maker: str) -> None:
        """Take recordings in; what was read by other code before is replaced.

        Parameters
        ----------
        found
            SHA-256 of a content and its observations.
        maker
            Names the code that read them.
        """
        self.put(np.array([_row(sha256, maker, each) for sha256, each in found], dtype=ROW))

    def put(self, rows: np.ndarray) -> None:
        """Take in rows that `row` returned, here or earlier."""
        kept = ~np.isin(self.rows["sha256"], rows["sha256"])
        self.rows = np.concatenate([self.rows[kept], rows])
        self._places = {}

    def row(self, sha256: str) -> np.ndarray | None:
        """Return what is known of a content, shape (1,); None if it was never read."""
        place = self._place(sha256)
        return None if place is None else self.rows[place : place + 1]

    def identity(self, sha256: str) -> str:
        """Return the digest of a recording's observations; empty if it was never read."""
        return self._text("identity", sha256)

    def are_one(self, sha256: str, other: str) -> bool:
        """Say whether two contents have the very same observations."""
        identity = self.identity(sha256)
        return bool(identity) and identity == self.identity(other)

    def equal_ones(self, new: Iterable[str], known: Iterable[str]) -> Iterator[Pair]:
        """Give the pairs with the very same observations."""
        by_identity: dict[str, list[str]] = {}
        for sha256 in known:
            by_identity.setdefault(self.identity(sha256), []).append(sha256)
        for sha256 in new:
            for other in by_identity.get(self.identity(sha256), ()):
                if other != sha256 and self.are_one(sha256, other):
                    size = int(self.rows["size"][self._places[sha256]])
                    yield Pair(sha256, other, size, size, size, n_seen=size)

    def labels(self, sha256: str) -> str:
        """Return the digest of what people say of a recording; empty if it was never read."""
        return self._text("labels", sha256)

    def _text(self, name: str, sha256: str) -> str:
        place = self._place(sha256)
        return "" if place is None else str(self.rows[name][place].decode())

    def labels_changed(self, sha256: str, other: str) -> float:
        """Return of how many of 1 common observations two contents say something else."""
        if sha256 not in self or other not in self:
            return 1.0
        one, two = (self.rows[self._places[name]] for name in (sha256, other))
        _, here, there = np.intersect1d(one["sketch"], two["sketch"], return_indices=True)
        ours, theirs = one["labels_sketch"][here], two["labels_sketch"][there]
        clear = (one["sketch"][here] != NO_HASH) & (ours != 0) & (theirs != 0)
        return float((ours != theirs)[clear].mean()) if clear.any() else 1.0

    # --- All at once ---

    @property
    def noticed(self) -> float:
        """Containment from which a pair is looked at."""
        return NOTICED if self.has_identity else NOTICED_BY_ROWS

    @property
    def related_from(self) -> float:
        """Containment from which two recordings have something in common."""
        return RELATED if self.has_identity else RELATED_BY_ROWS

    def common(
        self, new: Collection[str], known: Collection[str], at_hand: Collection[str] = ()
    ) -> list[Pair]:
        """Return what recordings have in common with known ones, and with each other.

        Parameters
        ----------
        new, known
            SHA-256 of contents; none is compared with itself.
        at_hand
            Those that can be read, where sketches cannot tell.
        """
        if not self.has_identity and self._share_rows(new, known):
            return list(self.equal_ones(new, known))
        # A few recordings are read, however many pieces of them there may be.
        wholes: dict[str, None] = {}
        for pair in self.too_different_in_size(new, [one for one in known if one in at_hand]):
            wholes[pair.other] = None
            if len(wholes) == BLIND_RECORDINGS:
                break
        pairs = self.pairs(new, known, least=self.noticed / 2)
        return [*pairs, *self.too_different_in_size(new, list(wholes))]

    def unrelated(self, new: Iterable[str], known: Collection[str]) -> list[str]:
        """Return the contents that were read and have nothing in common with known ones."""
        asked = [one for one in new if one in self and one not in known]
        pairs = self.common(asked, known)
        related = {one.sha256 for one in pairs if one.containment >= self.related_from}
        return [one for one in asked if one not in related]

    def twins(self, shas: Collection[str]) -> list[Pair]:
        """Return the pairs among some contents that are of one recording, wholly or in part."""
        return self.related(shas, shas)

    def related(self, new: Collection[str], known: Collection[str]) -> list[Pair]:
        """Return the pairs of new recordings and known ones that surely have one in common."""
        return [
            pair
            for pair in self.common(new, known)
            if pair.is_sure and pair.containment >= self.related_from
        ]

    def pairs(
        self, new: Collection[str], known: Collection[str], *, least: float
    ) -> Iterator[Pair]:
        """Give the pairs that have observations in common, by their sketches.

        Parameters
        ----------
        new, known
            SHA-256 of contents; one in both is compared with all but itself.
        least
            Containment below which a pair is left out.
        """
        first, second = self._places_of(new), self._places_of(known)
        hits = _common_hashes(self.rows["sketch"][first], self.rows["sketch"][second])
        for (i, j), n_hits in hits:
            one, other = self.rows[first[i]], self.rows[second[j]]
            if one["sha256"] == other["sha256"]:
                continue
            comparable = min(_below(one, other), _below(other, one))
            containment = n_hits / comparable
            n_common = containment * min(one["size"], other["size"])
            enough = n_common >= min(FEWEST_COMMON, one["size"], other["size"])
            if containment >= least and enough:
                yield Pair(
                    sha256=one["sha256"].decode(),
                    other=other["sha256"].decode(),
                    n_common=float(n_common),
                    size=int(one["size"]),
                    other_size=int(other["size"]),
                    n_seen=n_hits,
                )

    def too_different_in_size(self, new: Collection[str], known: Collection[str]) -> Iterator[Pair]:
        """Give the pairs whose sketches cannot tell: all of one lies beyond the other's."""
        first, second = self._places_of(new), self._places_of(known)
        lowest = self.rows["sketch"][second][:, 0] if len(second) else np.empty(0)
        highest = np.array([_highest(self.rows[place]) for place in second])
        for place in first:
            one = self.rows[place]
            blind = (one["sketch"][0] > highest) | (lowest > _highest(one))
            for other in self.rows[second[np.flatnonzero(blind)]]:
                yield Pair(
                    one["sha256"].decode(),
                    other["sha256"].decode(),
                    0.0,
                    int(one["size"]),
                    int(other["size"]),
                )

    def share_rows(self, shas: Collection[str], n_copies: int = 0) -> bool:
        """Say whether a tenth of the pairs of the newest recordings share rows by chance.

        Then nothing tells a part of one from another one.

        Parameters
        ----------
        n_copies
            Of each recording that may be among them, and tell nothing.
        """
        places = sorted(self._places_of(shas))[-PAIRS_ASKED:]
        asked = [self.rows["sha256"][place].decode() for place in places]
        n_pairs = len(asked) * (len(asked) - 1)
        n_sharing = sum(1 for _ in self.pairs(asked, asked, least=SHARED_BY_CHANCE))
        return n_pairs > 0 and n_sharing - n_copies * len(asked) > n_pairs / 10

    def _share_rows(self, new: Collection[str], known: Collection[str]) -> bool:
        """Say whether the known recordings or the new ones share rows, copies left out."""
        asked = set(new)
        before = [one for one in known if one not in asked]
        if len(before) < FEWEST_ASKED:
            return self.share_rows(known, n_copies=int(len(known) > len(before) + 2))
        return self.share_rows(before) or self.share_rows(new, n_copies=1)

    def _places_of(self, shas: Collection[str]) -> np.ndarray:
        places = [self._place(one) for one in dict.fromkeys(shas)]
        return np.array(
            [one for one in places if one is not None and self.rows["size"][one]], dtype=np.int64
        )


def _row(sha256: str, maker: str, observations: Observations) -> tuple[object, ...]:
    sketch = np.full(SKETCH_SIZE, NO_HASH)
    labels = np.zeros(SKETCH_SIZE, dtype=np.uint8)
    sketch[: len(observations.sketch)] = observations.sketch
    labels[: len(observations.sketch)] = observations.labels_sketch
    digests = observations.digest.encode(), observations.labels_digest.encode()
    return (sha256.encode(), maker.encode(), *digests, len(observations), sketch, labels)


def _highest(row: np.void) -> np.uint32:
    """Return up to which hash a sketch knows all observations."""
    return NO_HASH if row["size"] <= SKETCH_SIZE else row["sketch"][-1]


def _below(row: np.void, other: np.void) -> int:
    """Return how many hashes of a sketch the other one would know, at least 1."""
    n_known = min(int(row["size"]), SKETCH_SIZE)
    limit = min(_highest(row), _highest(other))
    return max(int(np.searchsorted(row["sketch"][:n_known], limit, side="right")), 1)


def _common_hashes(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[tuple[int, int], int]]:
    """Give (row of the first, row of the second) and how many hashes both have.

    Parameters
    ----------
    first, second
        Shape (n, `SKETCH_SIZE`).

    Notes
    -----
    The first hashes set bits of a filter, which all but a few of the second ones fail: the rest is
    looked up one by one.
    """
    of_first = first.ravel()
    order = np.argsort(of_first, kind="stable")
    ascending = of_first[order]
    ascending, order = ascending[ascending != NO_HASH], order[ascending != NO_HASH]
    mask = np.uint32((1 << FILTER_BITS) - 1)
    is_there = np.zeros(1 << FILTER_BITS, dtype=bool)
    is_there[ascending & mask] = True
    of_second = second.ravel()
    candidates = np.flatnonzero(is_there[of_second & mask] & (of_second != NO_HASH))
    begin = np.searchsorted(ascending, of_second[candidates], side="left")
    n_equal = np.searchsorted(ascending, of_second[candidates], side="right") - begin
    repeated = np.repeat(np.arange(len(candidates)), n_equal)
    offsets = np.arange(len(repeated)) - np.repeat(np.cumsum(n_equal) - n_equal, n_equal)
    rows = order[begin[repeated] + offsets] // SKETCH_SIZE
    columns = candidates[repeated] // SKETCH_SIZE
    keys, n_hits = np.unique(rows * max(len(second), 1) + columns, return_counts=True)
    for key, n in zip(keys, n_hits, strict=True):
        yield (int(key) // max(len(second), 1), int(key) % max(len(second), 1)), int(n)


def remember_listed(
    home: Path,
    training: Training,
    read: KnownRecordings,
    *,
    pool: Mapping[str, float | None],
    chosen: Collection[str],
    random: Collection[str],
    run_id: str,
) -> None:
    """Remember what was listed for checking; the caller holds the home's lock.

    Parameters
    ----------
    read
        Holds the observations of what was listed.
    pool
        SHA-256 of the recordings that the list was made from -> estimated error, None where
        nobody could tell.
    chosen, random, run_id
        See `marks.Triaged`.
    """
    contents = [*chosen, *random]
    known = KnownRecordings.of(home, training)
    for sha256 in contents:
        row = read.row(sha256)
        if row is not None and sha256 not in known:
            known.put(row)
    # A crash between the two leaves sketches that nothing refers to.
    known.save()
    identities = [read.identity(one) for one in contents]
    journal, members = Journal(home), members_of(pool)
    # Who checks what one list names, and then what the next one names, takes both from one pool.
    before = [one for one in journal.read().all(Triaged) if one.is_of_pool(members)]
    listed_before = marks_of(before)
    earlier = {sha256: mark for sha256, mark in listed_before.items() if sha256 not in pool}
    # Who is alarmed checks what the alarm names, whether a list names it, too, or not.
    alarmed = {sha256 for one in before if not one.random for sha256 in one.chosen}
    chosen_before = {
        sha256
        for sha256, mark in listed_before.items()
        if mark.how == CHOSEN and (sha256 in earlier or sha256 in alarmed - {*contents})
    }
    listed = Triaged(
        len(pool) + len(earlier),
        [*chosen],
        [*random],
        identities,
        who(),
        now(),
        run_id=run_id,
        n_chosen_before=len(chosen_before),
        members=members,
        group=before[-1].group if before else uuid.uuid4().hex,
    )
    estimates = {**pool}
    for sha256, mark in earlier.items():
        estimates[sha256] = mark.estimate if mark.run_id == run_id else None
    told = [one for one in estimates.values() if one is not None]
    if len(told) == len(estimates):
        mean = sum(told) / len(told)
        own = [pool[one] or 0.0 for one in contents]
        listed = replace(listed, estimates=own, pool_estimate=mean)
    journal.append(listed)


Reading = Callable[[str], Observations | None]
"""Gives the observations of a content where its file is at hand."""


def exactly(pair: Pair, observations: Reading) -> Pair:
    """Compare two recordings by all their observations, where the files of both are at hand."""
    one, other = observations(pair.sha256), observations(pair.other)
    if one is None or other is None:
        return pair
    return Pair(
        pair.sha256, pair.other, float(one.common(other)), len(one), len(other), is_exact=True
    )
