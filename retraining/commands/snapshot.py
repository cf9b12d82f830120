"""What a replay begins with: copies of a home's first version and of its recordings, in order.

Nothing is changed in the home, and no lock is taken: what moves meanwhile is noticed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from retraining import ground_truth
from retraining.errors import PipelineError, TryLaterError, stop_request
from retraining.files import free_name, hash_file, is_private, settled, waiting_names
from retraining.journal import Journal, Memory, Replaced
from retraining.kept_tables import CACHE_FOLDER
from retraining.marks import Triaged, marks
from retraining.registry import Registry, open_registry
from retraining.registry.facts import Manifest, NotInRegistry, RegisteredVersion
from retraining.registry.store import REGISTER_FIRST, create_store
from retraining.settings import Settings
from retraining.training import Training

logger = logging.getLogger("pipeline")


@dataclass(frozen=True)
class Origin:
    """The version that a replay begins with.

    Parameters
    ----------
    version
        As its registry has it.
    files
        A verified copy of its files.
    manifest, out_of_fold
        What it was trained on, and its errors as SHA-256 -> error, where it carries them.
    """

    version: RegisteredVersion
    files: Path
    manifest: Manifest
    out_of_fold: Mapping[str, float]

    @property
    def number(self) -> int:
        """Of the version, in the registry that it comes from."""
        return self.version.number


@dataclass(frozen=True)
class Snapshot:
    """Copies of what a home was at first and of what arrived since.

    Parameters
    ----------
    folder
        Of ours alone.
    nights
        Files that arrive together, the first ones first; no two have one name.
    notes
        What is left out, and what the order is, in a sentence each.
    """

    folder: Path
    origin: Origin
    nights: tuple[tuple[Path, ...], ...]
    notes: tuple[str, ...]

    @property
    def recordings(self) -> list[Path]:
        """All that arrive, in their order."""
        return list(itertools.chain.from_iterable(self.nights))

    @property
    def n_learnt(self) -> int:
        """Recordings of the first version that are at hand."""
        return len(waiting_names(_template(self.folder) / "used_gts"))

    @contextlib.contextmanager
    def home(self, name: str) -> Iterator[Path]:
        """Give a home as it was at first, with an empty store; gone when the block ends.

        What was read of recordings in it is kept for the next one.
        """
        template, home = _template(self.folder), self.folder / name
        shutil.copytree(template, home)
        try:
            yield home
            tables = CACHE_FOLDER.parent
            if (home / tables).is_dir():
                shutil.rmtree(template / tables, ignore_errors=True)
                (home / tables).rename(template / tables)
        finally:
            shutil.rmtree(home, ignore_errors=True)


def _template(folder: Path) -> Path:
    return folder / "first"


def take_snapshot(
    settings: Settings, training: Training, folder: Path, number: int | None
) -> Snapshot:
    """Copy a version, what it learnt, and all recordings that came since.

    Parameters
    ----------
    folder
        An empty one.
    number
        Of the version; None for the oldest one that verifies.

    Raises
    ------
    PipelineError
        If there is no such version, or nothing came since.
    TryLaterError
        If files of the home move meanwhile.
    """
    origin, skipped = _origin(settings, training, folder, number)
    template = _template(folder)
    with _unmoved(settings) as memory:
        at_hand = _at_hand(settings)
        parts = _parts(settings, origin, memory, at_hand)
        learnt = _copied(parts.learnt, template / settings.used_gts.name, origin.manifest.names)
        arriving = _copied(parts.arriving, folder / "arriving")
        left_out = _left_out(settings, origin, memory, at_hand, parts)
    unseen = _unseen(settings, training, origin, arriving)
    if not unseen:
        raise PipelineError(
            f"there is nothing to replay: {settings.used_gts} and {settings.new_gts} hold no "
            f"recording that version {origin.number} did not learn; put new ones into new_gts/"
        )
    _complete(settings, training, template, learnt)
    _remember_lists(settings, training, template, memory)
    _copy_tables(settings, template, {*learnt, *unseen})
    nights, order = _nights(unseen, memory)
    if n_same := len(arriving) - len(unseen):
        left_out.append(f"what version {origin.number} learnt, in other bytes ({n_same})")
    notes = [*skipped, *order, *(f"left out: {one}" for one in left_out)]
    return Snapshot(folder, origin, nights, tuple(notes))


# --- The first version ---


def _origin(
    settings: Settings, training: Training, folder: Path, number: int | None
) -> tuple[Origin, list[str]]:
    """Copy the files of a version, and say which older ones do not verify."""
    registry = open_registry(settings)
    if number is None:
        versions = sorted(registry.versions.all(), key=lambda one: one.number)
    else:
        versions = [registry.versions.get(number)]
    notes: list[str] = []
    for version in versions:
        files = folder / f"version-{version.number}"
        try:
            manifest = registry.versions.manifest(version)
            with registry.models.verified_files(version) as verified:
                shutil.copytree(verified, files)
        except TryLaterError:
            raise
        except PipelineError as error:
            notes.append(f"version {version.number} is no beginning: {error}")
            continue
        _check_use(registry, version, training)
        out_of_fold = registry.versions.out_of_fold_errors(version, training)
        return Origin(version, files, manifest, out_of_fold), notes
    if notes:
        raise PipelineError(notes[0])
    raise NotInRegistry(f"the registry has no version of {settings.model_name!r}; {REGISTER_FIRST}")


def _check_use(registry: Registry, version: RegisteredVersion, training: Training) -> None:
    try:
        registry.models.load_and_try(version, training)
    except TryLaterError:
        raise
    except PipelineError as error:
        raise PipelineError(
            f"the replay would begin with version {version.number}, which cannot be used: {error}; "
            "begin with another one, named by --champion"
        ) from error


# --- The recordings ---


@dataclass(frozen=True)
class _AtHand:
    """The files of a home, by folder: SHA-256 -> path; and how many somebody still writes to."""

    new: Mapping[str, Path]
    used: Mapping[str, Path]
    replaced: Mapping[str, Path]
    n_unsettled: int


@dataclass(frozen=True)
class _Parts:
    """What the first version learnt, what came since, and how often it learnt an older content."""

    learnt: Mapping[str, Path]
    arriving: Mapping[str, Path]
    n_newer: int


@contextlib.contextmanager
def _unmoved(settings: Settings) -> Iterator[Memory]:
    """Give what the home remembers, and notice what moves until the block ends."""
    journal = Journal(settings.home)
    memory = journal.read()
    try:
        yield memory
    except FileNotFoundError as error:
        name = Path(str(error.filename)).name
        raise TryLaterError(f"{name} was moved while it was read; run again") from error
    if journal.read().number != memory.number:
        raise TryLaterError(f"another command is at work in {settings.home}; run again after it")


def _at_hand(settings: Settings) -> _AtHand:
    # In the order in which files move, so that none that moves just now is overlooked.
    waiting = [settings.new_gts / name for name in waiting_names(settings.new_gts)]
    at_rest = {*settled(waiting)}
    most = settings.max_file_mb
    hashed = _hashed(settings.new_gts, most)
    new = {sha256: path for sha256, path in hashed.items() if path in at_rest}
    used = _hashed(settings.used_gts, most)
    replaced = _hashed(settings.replaced_gts, most) if settings.replaced_gts.is_dir() else {}
    return _AtHand(new, used, replaced, len(waiting) - len(at_rest))


def _hashed(folder: Path, max_mb: float) -> dict[str, Path]:
    names = ground_truth.hashes_in(folder, max_mb=max_mb)
    return {sha256: folder / name for sha256, name in names.items()}


def _parts(settings: Settings, origin: Origin, memory: Memory, at_hand: _AtHand) -> _Parts:
    """Tell what a version learnt from what came since; of corrected ones today's content counts."""
    withdrawn = {
        sha256
        for one in ground_truth.withdrawn_recordings(settings, memory).values()
        for sha256 in one.contents
    }
    there = {**at_hand.replaced, **at_hand.new, **at_hand.used}
    known = {*origin.manifest.names}
    for one in memory.all(Replaced):
        if one.old_sha256 in known:
            known.add(one.sha256)
    today = {**at_hand.new, **at_hand.used}
    for sha256 in ground_truth.left_the_training_data(settings, memory):
        today.pop(sha256, None)
    return _Parts(
        learnt={
            sha256: there[sha256]
            for sha256 in origin.manifest.names
            if sha256 in there and sha256 not in withdrawn
        },
        arriving={sha256: path for sha256, path in today.items() if sha256 not in known},
        n_newer=len(today.keys() & known - origin.manifest.names.keys()),
    )


def _copied(
    paths: Mapping[str, Path], folder: Path, names: Mapping[str, str] | None = None
) -> dict[str, Path]:
    """Copy recordings with their times; return SHA-256 -> where they are.

    Parameters
    ----------
    names
        SHA-256 -> the name that it gets; its own by default.
    """
    folder.mkdir(parents=True)
    copies = {}
    for sha256, source in paths.items():
        stop_request.obey()
        name = names[sha256] if names else source.name
        copies[sha256] = folder / free_name(Path(name).name, folder)
        shutil.copy2(source, copies[sha256])
        if hash_file(copies[sha256]) != sha256:
            raise TryLaterError(f"{source.name} changed while it was copied; run again")
    return copies


def _left_out(
    settings: Settings, origin: Origin, memory: Memory, at_hand: _AtHand, parts: _Parts
) -> list[str]:
    """Say what is not replayed, and why."""
    number, n_learnt = origin.number, len(origin.manifest.files)
    n_withdrawn = len(ground_truth.withdrawn_recordings(settings, memory))
    counted = {
        f"recordings that version {number} learnt and that are not at hand any more": n_learnt
        - len(parts.learnt),
        f"newer contents of recordings that version {number} learnt": parts.n_newer,
        "withdrawn recordings": n_withdrawn,
        "rejected files": len(ground_truth.rejected_names(settings)),
        "replaced files": len(at_hand.replaced.keys() - parts.learnt.keys()),
        "files that are still being written": at_hand.n_unsettled,
    }
    return [f"{what} ({count})" for what, count in counted.items() if count]


def _unseen(
    settings: Settings, training: Training, origin: Origin, arriving: Mapping[str, Path]
) -> dict[str, Path]:
    """Return what arrives without what a version learnt in other bytes."""
    from retraining.intake import known_files

    known = known_files(settings, training, arriving.values())
    learnt = {one.identity or known.identity(one.sha256) for one in origin.manifest.files} - {""}
    return {
        sha256: path for sha256, path in arriving.items() if known.identity(sha256) not in learnt
    }


def _complete(
    settings: Settings, training: Training, home: Path, learnt: Mapping[str, Path]
) -> None:
    """Make a home of a folder with recordings: it knows them, and its store is empty."""
    from retraining.intake import known_files

    (home / settings.new_gts.name).mkdir()
    # No night of the past is asked about recordings that nobody has checked today.
    nothing_unchecked = Settings().unlabelled
    first = dataclasses.replace(settings, home=home, tracking_uri="", unlabelled=nothing_unchecked)
    known_files(first, training, sorted(learnt.values())).save()
    create_store(first)


def _remember_lists(settings: Settings, training: Training, home: Path, memory: Memory) -> None:
    """Let a home remember what was listed for checking: it weighs there as it did."""
    from retraining.known_recordings import KnownRecordings

    listed = memory.all(Triaged)
    if not listed:
        return
    ours, first = (KnownRecordings.of(one, training) for one in (settings.home, home))
    for sha256 in marks(memory):
        row = ours.row(sha256)
        if row is not None and sha256 not in first:
            first.put(row)
    first.save()
    Journal(home).append(*listed)


def _nights(
    arrived: Mapping[str, Path], memory: Memory
) -> tuple[tuple[tuple[Path, ...], ...], list[str]]:
    """Return the files of each night and, if need be, a sentence about their order."""
    seen = memory.first_seen()
    known = [seen[sha256].night for sha256 in arrived if sha256 in seen]
    tonight = max(known, default=0) + 1
    nights: dict[int, list[Path]] = {}
    for sha256, path in sorted(arrived.items(), key=_by_time):
        night = seen[sha256].night if sha256 in seen else tonight
        nights.setdefault(night, []).append(path)
    if len(nights) == 1 and len(arrived) > 1:
        in_order = (path for _, path in sorted(arrived.items(), key=_by_time))
        return tuple((path,) for path in in_order), [
            "the journal does not tell the nights of these recordings apart: they come one a "
            "night, in the order of their files' modification times"
        ]
    n_unknown = len(arrived) - len(known)
    said = [f"what no night has seen yet comes last ({n_unknown})"] if n_unknown else []
    return tuple(tuple(nights[night]) for night in sorted(nights)), said


def _by_time(one: tuple[str, Path]) -> tuple[int, str]:
    return one[1].stat().st_mtime_ns, one[1].name


def _copy_tables(settings: Settings, home: Path, contents: Collection[str]) -> None:
    """Copy what was read of these recordings before: without it, it is read again."""
    source, target = settings.home / CACHE_FOLDER, home / CACHE_FOLDER
    if not settings.cache_mb or not is_private(source):
        return
    for folder in (target.parent, target):
        folder.mkdir(mode=0o700)
    for entry in source.iterdir():
        if entry.name.partition("-")[0] in contents:
            with contextlib.suppress(OSError):  # a retraining may trim it just now
                shutil.copy2(entry, target)
