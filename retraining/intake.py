"""What lies in new_gts/: new recordings, copies, corrections, parts, mixtures and bad files.

A recording is recognised by its observations, however it is saved: among the files of new_gts/, in
used_gts/, in what production and the version before it learnt, and among the withdrawn ones.
Nothing is changed here.
"""

from __future__ import annotations

import base64
import datetime
import functools
import logging
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from retraining.errors import TryLaterError
from retraining.files import (
    UnusableFile,
    free_name,
    hash_bytes,
    hash_regular_file,
    settled,
    waiting_names,
)
from retraining.ground_truth import (
    KNOWN,
    PARKED,
    GroundTruthFile,
    Refusal,
    contents_today,
    hashes_in,
    withdrawn_recordings,
)
from retraining.identity import Observations, observe
from retraining.journal import (
    COPY,
    CORRECTION,
    WHOLE,
    Arrival,
    FirstSeen,
    Memory,
    Replaced,
    Withdrawn,
)
from retraining.known_recordings import ROW, UNCHECKED, KnownRecordings, Pair, exactly
from retraining.marks import Mark, marks
from retraining.settings import Settings
from retraining.text import now, printable
from retraining.training import Training

KEPT_ROWS = 1_000_000
"""Of a batch; about 100 MB, 200 recordings."""
ALMOST_ALL = 0.7
"""Number formats round a few observations to other values."""
SAME_SIZE = 0.02
MOSTLY_KNOWN = 0.8
LABELS_CHANGED = 0.2
"""By a correction that no person stands for."""
CORRECTIONS_A_NIGHT, NIGHT_HOURS = 3, 20.0
SHOWN_TWINS = 3
logger = logging.getLogger("pipeline")


# --- Values ---


@dataclass(frozen=True)
class Intake:
    """What became of the files in new_gts/.

    Parameters
    ----------
    files
        Valid ones that are new.
    refusals
        Invalid ones and those that are known.
    replacements
        Those that take the place of another one.
    learnt
        Names of those that production learnt and that used_gts/ lacks.
    known
        With these files among them.
    arrivals
        Contents that were never seen before.
    unlearnt
        Names of those in used_gts/ that production did not learn: after a rollback, or where an
        older store was put back. They are known, and the next retraining learns them.
    """

    files: tuple[GroundTruthFile, ...]
    refusals: tuple[Refusal, ...] = ()
    replacements: tuple[Replaced, ...] = ()
    learnt: tuple[str, ...] = ()
    known: KnownRecordings | None = None
    arrivals: tuple[Arrival, ...] = ()
    unlearnt: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether the module could read any of the files."""
        return bool(self.files or self.replacements or self.learnt)

    @property
    def fingerprint(self) -> str:
        """Hash of the valid recordings, whatever their names, order and bytes."""
        contents = sorted(one.identity + one.labels or one.sha256 for one in self.files)
        return hash_bytes("\n".join(contents).encode())[:16]


@dataclass(frozen=True)
class Learnt:
    """What production and the version before it were trained on: SHA-256 -> name."""

    by_production: Mapping[str, str] = field(default_factory=dict)
    by_the_one_before: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Read:
    """A file of new_gts/ that could be read."""

    path: Path
    sha256: str
    rows: Any
    n_rows: int
    note: str
    session: str
    copies: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.name


def _shown_name(settings: Settings, path: Path) -> str:
    """Return the name of a file, with the folder of one that was parked."""
    return str(path.relative_to(settings.new_gts))


# --- What there is to compare with ---


@dataclass
class _House:
    """Everything that a file may turn out to be a copy of."""

    settings: Settings
    training: Training
    known: KnownRecordings
    memory: Memory
    learnt: Learnt
    used: Mapping[str, str]
    withdrawn: Mapping[str, Withdrawn]
    in_hand: dict[str, Observations]

    @functools.cached_property
    def files(self) -> dict[str, Path]:
        """Contents that lie in a folder: SHA-256 -> path."""
        kept = {}
        if self.settings.replaced_gts.is_dir():
            names = hashes_in(self.settings.replaced_gts)
            kept = {sha256: self.settings.replaced_gts / name for sha256, name in names.items()}
        return kept | {sha256: self.settings.used_gts / name for sha256, name in self.used.items()}

    def observations(self, sha256: str) -> Observations | None:
        """Return all observations of a content that is at hand."""
        if sha256 not in self.in_hand and sha256 in self.files:
            path = self.files[sha256]
            try:
                rows, found = self.training.read(path)
            except (ValueError, OSError):
                return None
            if found == sha256:
                self.in_hand[sha256] = observe(self.training, rows)
        return self.in_hand.get(sha256)

    def labels_changed(self, sha256: str, other: str) -> float:
        """Return of how many of 1 object a content says something else than another one.

        Objects are those of the other one: nobody thins them out by adding some.
        """
        one, two = self.observations(sha256), self.observations(other)
        if one is None or two is None:
            return self.known.labels_changed(sha256, other)
        return two.labels_changed(one)

    def labels_lost(self, sha256: str, other: str) -> float:
        """Return the same, with the objects of which a content says nothing any more."""
        one, two = self.observations(sha256), self.observations(other)
        if one is None or two is None:
            return self.known.labels_changed(sha256, other)
        return two.labels_lost(one)

    def stood_for(self, sha256: str) -> str:
        """Return the content that a person last stood for: small steps are no way around it."""
        steps = {one.sha256: one for one in self.memory.replaced().values()}
        seen = {sha256}
        while sha256 in steps and not steps[sha256].by_person:
            sha256 = steps[sha256].old_sha256
            if sha256 in seen:
                break
            seen.add(sha256)
        return sha256

    def where(self, sha256: str) -> str:
        """Say where a content is, or who learnt it."""
        if sha256 in self.used:
            return f"used_gts/{self.used[sha256]}"
        if sha256 in self.learnt.by_production:
            return f"{self.learnt.by_production[sha256]}, which production learnt"
        return f"{self.learnt.by_the_one_before.get(sha256, '')}, which an earlier version learnt"


def take_in(
    settings: Settings,
    training: Training,
    known: KnownRecordings,
    memory: Memory,
    learnt: Learnt,
    *,
    stood_for: Sequence[Path] = (),
) -> Intake:
    """Read every settled file of new_gts/ and say what it is; change nothing on disk.

    Parameters
    ----------
    known
        Gets the recordings that it lacks.
    memory
        What the home remembers: arrivals, corrections and withdrawals.
    stood_for
        Files that a person named, parked ones among them: they may correct any number of labels.

    Notes
    -----
    Up to `KEPT_ROWS` rows stay in memory; of a larger batch, files are read again when they are
    needed, and the cycle ends if one has changed.
    """
    waiting = settled([settings.new_gts / name for name in waiting_names(settings.new_gts)])
    paths = [*stood_for, *(path for path in waiting if path not in stood_for)]
    house = _House(
        settings=settings,
        training=training,
        known=known,
        memory=memory,
        learnt=learnt,
        used=hashes_in(settings.used_gts),
        withdrawn=withdrawn_recordings(settings, memory),
        in_hand={},
    )
    used = {sha256: settings.used_gts / name for sha256, name in house.used.items()}
    _know(known, training, used)
    _know_withdrawn(house)
    read, refusals = _read(house, paths)
    # First what is to be archived: copies of it are duplicates then.
    read.sort(key=lambda one: (one.path in stood_for, one.sha256 not in learnt.by_production))
    sorter = _Sorter(house, read, stood_for)
    for one in read:
        sorter.sort(one)
    sorter.park_what_no_one_stands_for()
    sorter.refuse_copies(read)
    arrivals = tuple(_arrivals(house, read, sorter))
    first_seen = memory.and_then(*arrivals, *sorter.replacements).first_seen()
    return Intake(
        files=tuple(sorter.files(first_seen)),
        refusals=(*refusals, *sorter.refusals),
        replacements=tuple(sorter.replacements),
        learnt=tuple(sorter.learnt),
        known=known,
        arrivals=arrivals,
        unlearnt=tuple(_unlearnt(house)),
    )


def _unlearnt(house: _House) -> list[str]:
    """Return the names of the used recordings that production learnt in no content."""
    today = contents_today(house.memory)
    learnt = {today.get(sha256, sha256) for sha256 in house.learnt.by_production}
    learnt |= {*house.learnt.by_production}
    return sorted(name for sha256, name in house.used.items() if sha256 not in learnt)


def known_files(settings: Settings, training: Training, paths: Iterable[Path]) -> KnownRecordings:
    """Return the recordings that a home knows, and some files."""
    known = KnownRecordings.of(settings.home, training)
    _know(known, training, {hash_regular_file(path): path for path in paths})
    return known


# --- What nobody has checked ---


@dataclass
class Family:
    """All recordings that a home knows, and those that nobody has checked one after the other.

    Parameters
    ----------
    known
        Gets both, in memory only.
    files
        Those that lie in used_gts/ and new_gts/: SHA-256 -> path.
    places
        Of all that the home knows: SHA-256 -> where, in words.
    """

    training: Training
    known: KnownRecordings
    files: Mapping[str, Path]
    places: Mapping[str, str]
    _new: dict[str, None] = field(default_factory=dict)

    def where(self, sha256: str) -> str:
        """Say where a known recording is, or who learnt it."""
        return self.places[sha256]

    def relatives(self, rows_of: Mapping[str, Any]) -> dict[str, tuple[str, bool]]:
        """Take in recordings; return of which ones the home knows some, or another one holds some.

        Parameters
        ----------
        rows_of
            SHA-256 -> rows, as `Training.parse_unlabelled` returned them.

        Returns
        -------
        dict
            SHA-256 -> (content that it has observations in common with, whether that is one of
            those that nobody has checked). The first one of two such is left.
        """
        known = self.known
        seen = ((sha256, observe(self.training, rows)) for sha256, rows in rows_of.items())
        known.add([one for one in seen if one[0] not in known], UNCHECKED)
        asked = [*rows_of]
        others = [*self.places, *self._new, *asked]
        related: dict[str, list[str]] = defaultdict(list)
        for pair in known.related(asked, others):
            related[pair.sha256].append(pair.other)
        found: dict[str, tuple[str, bool]] = {}
        for sha256 in asked:
            of_home = [one for one in (sha256, *related[sha256]) if one in self.places]
            of_pool = [one for one in related[sha256] if one in self._new]
            if of_home or of_pool:
                found[sha256] = (of_home or of_pool)[0], not of_home
            else:
                self._new[sha256] = None
        return found


def family(settings: Settings, training: Training, memory: Memory, learnt: Learnt) -> Family:
    """Return all recordings that a home knows; what it has not read yet is read, nothing kept."""
    house = _House(
        settings=settings,
        training=training,
        known=KnownRecordings.of(settings.home, training),
        memory=memory,
        learnt=learnt,
        used=hashes_in(settings.used_gts),
        withdrawn=withdrawn_recordings(settings, memory),
        in_hand={},
    )
    new = hashes_in(settings.new_gts, max_mb=settings.max_file_mb)
    files = {sha256: settings.new_gts / name for sha256, name in new.items()}
    files |= {sha256: settings.used_gts / name for sha256, name in house.used.items()}
    _know(house.known, training, files)
    _know_withdrawn(house)
    places = {sha256: house.where(sha256) for sha256 in learnt.by_production}
    places |= {sha256: f"{one.name}, withdrawn" for sha256, one in house.withdrawn.items()}
    places |= {sha256: f"new_gts/{name}" for sha256, name in new.items()}
    places |= {sha256: house.where(sha256) for sha256 in house.used}
    return Family(training, house.known, files, places)


def twins(known: KnownRecordings, names: Mapping[str, str]) -> dict[str, str]:
    """Return which recordings to train on are of one: name -> the first name of that one.

    Parameters
    ----------
    names
        SHA-256 -> name.
    """
    first = {name: name for name in names.values()}
    for pair in known.twins([*names]):
        one, other = first[names[pair.sha256]], first[names[pair.other]]
        if one == other:
            continue
        shown = sorted((names[pair.sha256], names[pair.other]))
        logger.warning(
            "%s and %s hold one recording, %s of the smaller one: it counts twice; to withdraw one "
            "of them: python pipeline_orchestrator.py withdraw %s",
            *(printable(each) for each in shown),
            *(_percent(pair.containment), shlex.quote(shown[1])),
        )
        kept = min(one, other)
        first = {name: kept if group in (one, other) else group for name, group in first.items()}
    return {name: group for name, group in first.items() if group != name}


def _know(known: KnownRecordings, training: Training, files: Mapping[str, Path]) -> None:
    """Read the files that this code has not read yet, given SHA-256 -> path."""
    maker = training.maker()
    found = []
    for sha256, path in files.items():
        if known.was_read_by(sha256, maker):
            continue
        try:
            rows, content = training.read(path)
        except (ValueError, FileNotFoundError) as error:  # training says it, if it comes to that
            logger.debug("%s is not recognised: %s", printable(path.name), error)
            continue
        if content == sha256:
            found.append((sha256, observe(training, rows)))
    if found:
        known.add(found, maker)


def _know_withdrawn(house: _House) -> None:
    """Take in the withdrawn recordings of which the home has nothing but the journal's entry."""
    lost = [one for one in house.withdrawn.values() if one.sha256 not in house.known]
    rows = [np.frombuffer(base64.b64decode(one.known), dtype=ROW) for one in lost if one.known]
    if rows:
        house.known.put(np.concatenate(rows))
    folder = house.settings.withdrawn_gts
    files = {one.sha256: folder / one.kept_as for one in lost if one.kept_as and not one.known}
    _know(house.known, house.training, files)


def _read(house: _House, paths: Sequence[Path]) -> tuple[list[_Read], list[Refusal]]:
    """Read files, the first that arrived first, and take them into what is known."""
    settings, training = house.settings, house.training
    read: dict[str, _Read] = {}
    refusals: list[Refusal] = []
    n_rows = 0
    for path in paths:
        name = _shown_name(settings, path)
        problem = problem_of_name(path.name)
        if problem:
            refusals.append(Refusal(name, f"has a name {problem}", "rename it"))
            continue
        try:
            # Hashed and parsed are the same bytes, whoever writes to the file meanwhile.
            content = training.content(path)
            sha256 = hash_bytes(content)
            if sha256 in house.used:
                refusals.append(_same_bytes(name, f"used_gts/{house.used[sha256]}"))
                continue
            if sha256 in read:
                read[sha256].copies.append(name)
                continue
            rows = training.parse(content, path.name)
        except FileNotFoundError:
            logger.info("%s is gone", printable(name))
            continue
        except ValueError as error:
            refusals.append(_refusal(name, error))
            continue
        house.in_hand[sha256] = observe(training, rows)
        n_rows += len(rows)
        note, session = training.data_quality_note(rows), training.session(rows)
        kept = rows if n_rows <= KEPT_ROWS else None
        read[sha256] = _Read(path, sha256, kept, len(rows), note, session)
    house.known.add([(sha256, house.in_hand[sha256]) for sha256 in read], training.maker())
    arrived = {one.sha256: place for place, one in enumerate(house.memory.all(Arrival))}
    last = len(arrived)
    in_order = sorted(
        read.values(),
        key=lambda one: (arrived.get(one.sha256, last), _modified(one.path), one.name),
    )
    return in_order, refusals


def _modified(path: Path) -> int:
    try:
        return path.lstat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _same_bytes(name: str, twin: str) -> Refusal:
    return Refusal(
        name,
        f"is a duplicate: same content as {twin}",
        f"delete it: {twin} holds the same bytes",
        KNOWN,
    )


def _refusal(name: str, error: Exception) -> Refusal:
    """Return what a reader says of a file, in two parts if it has them."""
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    what = getattr(error, "what", None) or f"cannot be read: {kind}{error}"
    return Refusal(name, what, getattr(error, "remedy", "correct the file"))


def problem_of_name(name: str) -> str:
    """Say why a name would be a trap in a log, a table or a shell; empty if it is none."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "that is not UTF-8"
    if name.startswith("-"):
        return "that begins with a dash"
    if not name.isprintable():
        return "with a line break or another control character"
    return ""


# --- What each file is ---


class _Sorter:
    """Says of one file after the other what it is, given those before it."""

    def __init__(self, house: _House, read: Sequence[_Read], stood_for: Sequence[Path]) -> None:
        self.house, self.stood_for = house, stood_for
        self.accepted: dict[str, _Read] = {}
        self.names: dict[str, str] = {}
        self.refusals: list[Refusal] = []
        self.replacements: list[Replaced] = []
        self.learnt: list[str] = []
        self.at = now()
        self.arrived = {one.sha256: one.at for one in house.memory.all(Arrival)}
        self.displaced: dict[str, _Read] = {}
        self.before = house.memory
        # Where those that go to used_gts/ will be, and whose place was taken tonight.
        self.placed: dict[str, str] = {}
        self.superseded: set[str] = set()
        self.contested: dict[str, _Read] = {}
        self.related: dict[str, set[str]] = defaultdict(set)
        self.seen_as: dict[str, str] = {}
        self.pairs = self._pairs([one.sha256 for one in read])

    def _pairs(self, new: list[str]) -> dict[str, list[Pair]]:
        """Return what the files have in common with all that is known, and with each other."""
        house, known = self.house, self.house.known
        others = {
            *(*house.used, *house.withdrawn, *new),
            *(*house.learnt.by_production, *house.learnt.by_the_one_before),
            *self.arrived,
        }
        found: dict[str, list[Pair]] = defaultdict(list)
        for pair in known.common(new, others, house.files):
            exact = exactly(pair, house.observations)
            is_noticed = exact.is_sure and exact.containment >= known.noticed
            if is_noticed or known.are_one(pair.sha256, pair.other):
                found[pair.sha256].append(exact)
        for sha256, pairs in found.items():
            versions = {*house.learnt.by_production, *house.learnt.by_the_one_before}
            self.related[sha256] = {
                one.other for one in pairs if one.other in versions and self._is_related(one)
            }
            seen = [one for one in pairs if one.other in self.arrived and self._is_related(one)]
            if seen and sha256 not in self.arrived:
                self.seen_as[sha256] = max(seen, key=lambda one: one.containment).other
        return found

    # --- One file ---

    def sort(self, one: _Read) -> None:
        """Say what a file is."""
        pairs = [pair for pair in self.pairs[one.sha256] if self._counts(pair.other)]
        withdrawn = [
            self.house.withdrawn[other]
            for other in (one.sha256, *(pair.other for pair in pairs if self._is_related(pair)))
            if other in self.house.withdrawn
        ]
        if withdrawn:
            self._refuse_withdrawn(one, withdrawn[0])
            return
        at_hand = [pair for pair in pairs if self._is_at_hand(pair.other)]
        same = [pair for pair in pairs if self._is_same(pair)]
        if any(self._is_same(pair) or self._holds_all(pair) for pair in at_hand):
            # What is gone tells nothing more: what took its place is there.
            pairs, same = at_hand, [pair for pair in at_hand if self._is_same(pair)]
        elif one.sha256 in self.house.learnt.by_production:
            self.learnt.append(one.name)
            self.placed[one.sha256] = free_name(one.name, self.house.settings.used_gts)
            return
        contested = [
            self.contested[pair.other].name
            for pair in self.pairs[one.sha256]
            if pair.other in self.contested and self._is_related(pair)
        ]
        if contested:
            self._park(one.path, f"has observations of {contested[0]}, which is parked")
        elif same:
            self._sort_known(one, max(same, key=self._preference))
        else:
            self._sort_related(one, pairs)

    def _holds_all(self, pair: Pair) -> bool:
        return pair.share >= ALMOST_ALL and self._is_related(pair)

    def _is_at_hand(self, sha256: str) -> bool:
        is_used = sha256 in self.house.used or sha256 in self.placed
        return (is_used and sha256 not in self.superseded) or sha256 in self.accepted

    def _counts(self, other: str) -> bool:
        """Say whether a content is one to be compared with: refused ones of the batch are not."""
        house = self.house
        return (
            self._is_at_hand(other)
            or other in house.withdrawn
            or (other in house.learnt.by_production and other not in self.superseded)
        )

    def _are_one(self, pair: Pair) -> bool:
        return self.house.known.are_one(pair.sha256, pair.other)

    def _is_related(self, pair: Pair) -> bool:
        return pair.containment >= self.house.known.related_from or self._are_one(pair)

    def _is_same(self, pair: Pair) -> bool:
        alike = abs(pair.size - pair.other_size) <= SAME_SIZE * pair.other_size
        return (alike and pair.containment >= ALMOST_ALL) or self._are_one(pair)

    def _preference(self, pair: Pair) -> tuple[bool, bool, float]:
        other = pair.other
        return self._is_at_hand(other), other in self.house.used, pair.containment

    def _sort_known(self, one: _Read, pair: Pair) -> None:
        """Tell a duplicate from a correction."""
        house, twin = self.house, self._where(pair.other)
        if self._say_the_same(one.sha256, pair.other):
            if self._is_at_hand(pair.other):
                self._refuse(
                    one,
                    f"is a duplicate: the observations ({_percent(pair.containment)} in common) "
                    f"and labels of {twin}",
                    f"nothing has to be done: {twin} stands for both",
                )
            else:
                self._replace(one, pair, COPY)
            return
        before = house.memory.earlier_contents(pair.other)
        older = [sha256 for sha256 in before if self._say_the_same(one.sha256, sha256)]
        if older and one.path not in self.stood_for:
            self._park(one.path, f"has the labels that {twin} had before it was corrected")
        else:
            self._replace(one, pair, CORRECTION)

    def _say_the_same(self, sha256: str, other: str) -> bool:
        known = self.house.known
        if known.are_one(sha256, other):
            return known.labels(sha256) == known.labels(other)
        one, two = (self.house.observations(each) for each in (sha256, other))
        of_one_session = one is None or two is None or one.session == two.session
        return of_one_session and self.house.labels_changed(sha256, other) == 0

    def _sort_related(self, one: _Read, pairs: Sequence[Pair]) -> None:
        """Tell a part, a mixture, and a whole of which a part is known, from what is new."""
        related = sorted(
            (pair for pair in pairs if self._is_related(pair)), key=lambda pair: -pair.share
        )
        coverage = self._coverage(one.sha256, pairs)
        if not related and (coverage < MOSTLY_KNOWN or len(pairs) < 2):
            self._accept(one)
        elif len(related) == 1 and self._is_part(related[0], coverage):
            twin = self._where(related[0].other)
            self._refuse(
                one,
                f"is a part of {twin}: {_percent(coverage)} of its observations are there",
                "give whole recordings; nothing has to be done if that one is whole",
            )
        elif len(related) == 1 and related[0].share_of_other >= ALMOST_ALL:
            self._replace(one, related[0], WHOLE)
        else:
            twins = related or sorted(pairs, key=lambda pair: -pair.share)
            shown = [
                f"{_percent(pair.share)} are in {self._where(pair.other)}"
                for pair in twins[:SHOWN_TWINS]
            ]
            more = f" and {len(twins) - SHOWN_TWINS} more" if len(twins) > SHOWN_TWINS else ""
            self._refuse(
                one,
                f"is mixed with known recordings: of its observations {', '.join(shown)}{more}",
                "give one whole recording per file",
            )

    def _is_part(self, pair: Pair, coverage: float) -> bool:
        return pair.size < pair.other_size and coverage >= ALMOST_ALL

    def _coverage(self, sha256: str, pairs: Sequence[Pair]) -> float:
        """Return the share of a file's observations that are known."""
        others = [self.house.observations(pair.other) for pair in pairs]
        if all(other is not None for other in others):
            return self.house.in_hand[sha256].covered_by(one for one in others if one is not None)
        return min(sum(pair.share for pair in pairs), 1.0)

    # --- What becomes of it ---

    def _accept(self, one: _Read) -> None:
        self.accepted[one.sha256] = one
        self.names[one.sha256] = one.name

    def _refuse(self, one: _Read, what: str, remedy: str) -> None:
        self.refusals.append(Refusal(self._shown_name(one), what, remedy, KNOWN))

    def _shown_name(self, one: _Read) -> str:
        return _shown_name(self.house.settings, one.path)

    def _refuse_withdrawn(self, one: _Read, entry: Withdrawn) -> None:
        why = f" ({entry.reason})" if entry.reason else ""
        self._refuse(
            one,
            f"was withdrawn as {entry.name} on {entry.at[:10]}{why}",
            "to use it again: python pipeline_orchestrator.py withdraw --undo "
            f"{shlex.quote(entry.name)}",
        )

    def _park(self, path: Path, what: str) -> None:
        folder = self.house.settings.rejected_gts
        name = path.name if path.parent == folder else free_name(path.name, folder)
        command = f"python pipeline_orchestrator.py correct {shlex.quote(name)}"
        shown = _shown_name(self.house.settings, path)
        self.refusals.append(Refusal(shown, what, f"if it is right: {command}", PARKED))

    def _replace(self, one: _Read, pair: Pair, reason: str) -> None:
        """Let a file take the place of what is known of its recording."""
        house, old = self.house, pair.other
        base = house.stood_for(old)
        lost = house.labels_lost(one.sha256, base)
        by_person = one.path in self.stood_for
        if lost > LABELS_CHANGED and not by_person:
            told = f"{_percent(lost)} of the labels of {self._where(old)}"
            if old in self.accepted and old not in self.arrived:
                # Both came in one night: nobody knows which of them is right.
                other = self.contested[old] = self.accepted.pop(old)
                self._park(other.path, f"contradicts {_percent(lost)} of the labels of {one.name}")
            self._park(one.path, f"contradicts {told}")
            return
        folder = house.settings.new_gts if old in self.accepted else house.settings.used_gts
        name = self.names.get(old) or self.placed.get(old) or house.used.get(old)
        if name is None:  # it is gone, and its name may be another one's by now
            name = free_name(house.learnt.by_production[old], house.settings.used_gts)
        stem, _, suffix = name.rpartition(".")
        taken = [before.kept_as for before in self.replacements]
        kept_as = free_name(f"{stem}.{self.at[:10]}.{suffix}", house.settings.replaced_gts, taken)
        entry = Replaced(
            sha256=one.sha256,
            old_sha256=old,
            source=str(one.path.relative_to(house.settings.home)),
            folder=folder.name,
            name=name,
            kept_as=kept_as,
            reason=reason,
            labels_changed=house.labels_changed(one.sha256, base),
            by_person=by_person,
            at=self.at,
        )
        self.replacements.append(entry)
        # What comes after it tonight is compared with the same that a later night would be.
        house.memory = house.memory.and_then(entry)
        self.superseded.add(old)
        self.superseded.discard(one.sha256)
        if folder == house.settings.used_gts:
            self.placed[one.sha256] = name
        if old in self.accepted:
            self.displaced[one.sha256] = self.accepted.pop(old)
            self.accepted[one.sha256] = one
            self.names[one.sha256] = name

    def park_what_no_one_stands_for(self) -> None:
        """Park corrections that are too many for one night."""
        tonight = datetime.datetime.now().astimezone()
        night = datetime.timedelta(hours=NIGHT_HOURS)
        recent = [
            one
            for one in self.before.replaced().values()
            # To both sides: the clock may have been ahead by years, or go back by a few hours.
            if self._needs_a_person(one)
            and abs(tonight - datetime.datetime.fromisoformat(one.at)) < night
        ]
        changing: list[Replaced] = []
        for one in self.replacements:
            of_one = one.old_sha256 in {before.sha256 for before in changing}
            if of_one or self._needs_a_person(one):
                changing.append(one)
        n_corrections = len(recent) + len(changing)
        if n_corrections <= CORRECTIONS_A_NIGHT:
            return
        self.replacements = [one for one in self.replacements if one not in changing]
        parked = {one.sha256 for one in changing}
        for one in changing:
            self._park(
                self.house.settings.home / one.source,
                f"corrects {one.folder}/{one.name}, one of {n_corrections} corrections in a "
                f"night; {CORRECTIONS_A_NIGHT} are made without a person",
            )
            self.accepted.pop(one.sha256, None)
            if one.sha256 in self.displaced and one.old_sha256 not in parked:
                self._accept(self.displaced[one.sha256])

    def _needs_a_person(self, one: Replaced) -> bool:
        """Say whether it counts as a correction: two of one night that agree are none."""
        is_tonight = one in self.replacements
        before = self.arrived.get(one.old_sha256)
        at_once = before is None if is_tonight else before == one.at
        is_of_a_night = one.folder == self.house.settings.new_gts.name and at_once
        return not (one.by_person or one.reason == COPY or is_of_a_night)

    def refuse_copies(self, read: Sequence[_Read]) -> None:
        """Refuse files with the very bytes of another one, and say where that one will be."""
        parked = {one.name for one in self.refusals}
        for one in read:
            stays = self._is_at_hand(one.sha256) and self._shown_name(one) not in parked
            for name in one.copies:
                if stays:
                    self.refusals.append(_same_bytes(name, self._where(one.sha256)))
                else:
                    what = f"is a duplicate: same content as {one.name}"
                    remedy = f"nothing has to be done: what is said of {one.name} holds for both"
                    self.refusals.append(Refusal(name, what, remedy, KNOWN))

    def files(self, first_seen: Mapping[str, FirstSeen]) -> Iterable[GroundTruthFile]:
        """Give the new recordings, by name."""
        known = self.house.known
        listed = _marks(known, self.before, [*self.accepted])
        for sha256, one in sorted(self.accepted.items(), key=lambda item: self.names[item[0]]):
            name = self.names[sha256]
            rows = one.rows
            if rows is not None and name != one.name:
                rows = rows.assign(file=name)
            read = functools.partial(_rows, rows, name, sha256, self.house.training)
            yield GroundTruthFile(
                name=name,
                path=one.path,
                sha256=sha256,
                n_rows=one.n_rows,
                data_quality=one.note,
                session=one.session,
                identity=known.identity(sha256),
                labels=known.labels(sha256),
                related=frozenset(self.related[sha256]),
                recording=first_seen[sha256].identity,
                night=first_seen[sha256].night,
                mark=listed.get(sha256),
                read=read,
            )

    def _where(self, sha256: str) -> str:
        if sha256 in self.accepted:
            return f"new_gts/{self.names[sha256]}"
        if sha256 in self.placed:
            return f"used_gts/{self.placed[sha256]}"
        return self.house.where(sha256)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _marks(known: KnownRecordings, memory: Memory, contents: Sequence[str]) -> dict[str, Mark]:
    """Return which contents are recordings that were listed for checking, however saved since."""
    found = marks(memory)
    if not found:
        return {}
    age = {sha256: place for place, sha256 in enumerate(found)}
    of_identity = {one.identity: sha256 for sha256, one in found.items() if one.identity}
    listed: dict[str, list[str]] = defaultdict(list)
    for sha256 in contents:
        same = (sha256, of_identity.get(known.identity(sha256), ""))
        listed[sha256] += [one for one in same if one in found]
    for pair in known.common(contents, list(found)):
        if pair.is_sure and pair.containment >= ALMOST_ALL:
            listed[pair.sha256].append(pair.other)
    return {
        sha256: found[max(others, key=lambda one: age[one])]
        for sha256, others in listed.items()
        if others
    }


def _rows(kept: Any, name: str, sha256: str, training: Training, path: Path) -> Any:
    """Return the rows of a file under its name, read again where they were not kept."""
    if kept is not None:
        return kept
    changed = TryLaterError(f"{name} changed while the cycle ran; the next run reads it")
    try:
        content = training.content(path)
    except (FileNotFoundError, UnusableFile) as error:
        raise changed from error
    if hash_bytes(content) != sha256:
        raise changed
    return training.parse(content, name)


def _arrivals(house: _House, read: Sequence[_Read], sorter: _Sorter) -> Iterable[Arrival]:
    """Give what was never seen before, in order; at first all that lies in used_gts/, too."""
    at = sorter.at
    if not sorter.arrived:
        for sha256, name in house.used.items():
            yield Arrival(sha256, house.known.identity(sha256), name, at)
    refused = {one.name for one in sorter.refusals}
    for one in read:
        if (
            one.sha256 not in sorter.arrived
            and _shown_name(house.settings, one.path) not in refused
        ):
            identity, again = house.known.identity(one.sha256), sorter.seen_as.get(one.sha256, "")
            yield Arrival(one.sha256, identity, one.name, at, again)
