"""Ground truth files: rejection, requeue, archive, replacement, withdrawal, training folder.

Nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from retraining.errors import PipelineError, TryLaterError, stop_request
from retraining.files import (
    Moves,
    NotOurFolder,
    UnusableFile,
    are_on_one_mount,
    free_name,
    hash_file,
    hash_regular_file,
    is_read_only,
    link_or_copy,
    listed,
    move_files,
    own_folder,
    read_regular_file,
    sync_folder,
    tell_strange,
    waiting_names,
    write_many_durably,
)
from retraining.journal import Memory, Replaced, Withdrawn
from retraining.kept_tables import CACHE_FOLDER, KeptTables
from retraining.marks import Mark
from retraining.settings import Settings
from retraining.text import as_local_time, now, printable
from retraining.training import Training
from retraining.typed_names import name_meant

STAGING_PREFIX = ".training-"
REASON_SUFFIX = ".reason.json"
MAX_REASON_MB = 1.0
PARKED, KNOWN = "parked", "known"
"""Kinds of refused files: a person's `correct` takes one, and with the other nothing is wrong."""
logger = logging.getLogger("pipeline")


# --- What lies there ---


def hashes_in(
    folder: Path, sizes: Collection[int] | None = None, *, max_mb: float = math.inf
) -> dict[str, str]:
    """Return SHA-256 -> name of the CSV files of a folder.

    Parameters
    ----------
    sizes
        Only files of these sizes in bytes: no other can equal a file of such a size.
    max_mb
        Only files up to this size, where others put them: no larger one is a recording.
    """
    return {sha256: path.name for path, sha256 in _hashed(folder, sizes, max_mb)}


def _hashed(
    folder: Path, sizes: Collection[int] | None, max_mb: float
) -> Iterator[tuple[Path, str]]:
    for name in waiting_names(folder):
        stop_request.obey()
        # Of what others put there: what is gone, no file, or not ours to read is no recording.
        with contextlib.suppress(FileNotFoundError, UnusableFile):
            path = folder / name
            n_bytes = path.lstat().st_size
            if n_bytes <= max_mb * 1e6 and (sizes is None or n_bytes in sizes):
                yield path, hash_regular_file(path)


@dataclass(frozen=True)
class Refusal:
    """A file that cannot be used, and why.

    Parameters
    ----------
    name
        Name in new_gts/.
    what
        What is wrong and where.
    remedy
        What to do about it.
    kind
        `PARKED`, `KNOWN`, or empty if it has to be mended.
    """

    name: str
    what: str
    remedy: str
    kind: str = ""


@dataclass(frozen=True)
class GroundTruthFile:
    """One valid ground truth file.

    Parameters
    ----------
    name
        Under which it is known: its own, or that of the waiting file whose place it takes.
    path
        Where it lies.
    sha256
        Of the bytes that `rows` was parsed from.
    n_rows
        Number of rows.
    data_quality
        Note about measurements that were taken as missing; empty if there are none.
    session
        Recordings of one session are never split; empty for one of its own.
    identity, labels
        Digests of its observations and of what people say of them.
    related
        SHA-256 of the contents that a version learnt and that have observations in common.
    recording, night
        What looks name it by, and the night on which it arrived: see `journal.FirstSeen`.
    mark
        Why it was listed for checking; None if no list named it.
    read
        Gives the rows of the file at a path.
    """

    name: str
    path: Path
    sha256: str
    n_rows: int
    data_quality: str = ""
    session: str = ""
    identity: str = ""
    labels: str = ""
    related: frozenset[str] = frozenset()
    recording: str = ""
    night: int = 0
    mark: Mark | None = None
    read: Callable[[Path], Any] = field(default=lambda _path: None, repr=False)

    @property
    def rows(self) -> Any:
        """What the training module's reader returned."""
        return self.read(self.path)

    def was_learnt_as(self, shas: Collection[str]) -> bool:
        """Say whether one of some contents is this recording, a part or a whole of it."""
        return self.sha256 in shas or not self.related.isdisjoint(shas)


# --- Rejected files ---


def reject(settings: Settings, refusals: Iterable[Refusal]) -> None:
    """Move refused files to new_gts/rejected/, each beside its reason.

    What cannot go there stays in new_gts/, is told, and keeps nothing else from going on.
    """
    refused = {one.name: one for one in refusals}
    if not refused:
        return
    try:
        with own_folder(settings.rejected_gts, settings.home, make=True) as rejected:
            moves = _rejected(settings, refused, rejected)
    except NotOurFolder as error:
        what = listed([f"{one.name} ({one.what})" for one in refused.values()])
        logger.warning("%s; what is bad stays in new_gts/ until then: %s", error, what)
        return
    for path in (*moves.moved, *moves.left):
        one = refused[path.name]
        then = "" if one.kind else " (then: pipeline_orchestrator.py requeue)"
        if path in moves.left:
            then = f"; it {moves.left[path]}"
        logger.warning(
            "rejected %r: %s; %s%s",
            *(printable(text) for text in (one.name, one.what, one.remedy)),
            then,
        )


def _rejected(settings: Settings, refused: Mapping[str, Refusal], rejected: Path) -> Moves:
    """Move refused files into a folder, each beside its reason; none stays beside nothing."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for name in refused:
        names[name] = free_name(name, rejected, taken)
        while (rejected / f"{names[name]}{REASON_SUFFIX}").is_dir():  # nothing else is in the way
            taken.add(names[name])
            names[name] = free_name(name, rejected, taken)
        taken.add(names[name])
    reasons = {
        f"{names[one.name]}{REASON_SUFFIX}": {
            "file": one.name,
            "what": one.what,
            "remedy": one.remedy,
            "kind": one.kind,
            "rejected_at": now(),
        }
        for one in refused.values()
    }
    write_many_durably(
        rejected, {name: json.dumps(each, indent=2).encode() for name, each in reasons.items()}
    )
    moves = move_files({settings.new_gts / name: names[name] for name in refused}, rejected)
    for name in refused:
        if settings.new_gts / name not in moves.moved:
            (rejected / f"{names[name]}{REASON_SUFFIX}").unlink()
    return moves


@contextlib.contextmanager
def rejected_folder(settings: Settings) -> Iterator[Path | None]:
    """Give a path of new_gts/rejected/ that stays it; None if it is missing or not ours."""
    folder = None
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(FileNotFoundError, NotOurFolder):
            folder = stack.enter_context(own_folder(settings.rejected_gts, settings.home))
        yield folder


def rejected_problem(settings: Settings) -> str:
    """Say what stands where rejected files belong; empty if all is well."""
    try:
        with own_folder(settings.rejected_gts, settings.home):
            return ""
    except FileNotFoundError:
        return ""
    except NotOurFolder as error:
        return str(error)


def rejected_names(settings: Settings) -> list[str]:
    """Return the names of the files in new_gts/rejected/, reasons left out."""
    with rejected_folder(settings) as folder:
        return [] if folder is None else _rejected_names(folder)


def _rejected_names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".") and not entry.name.endswith(REASON_SUFFIX)
        )


def rejected_files(settings: Settings) -> tuple[Refusal, ...]:
    """Return the files in new_gts/rejected/ with the reasons that lie beside them."""
    found = []
    with rejected_folder(settings) as folder:
        if folder is None:
            return ()
        for name in _rejected_names(folder):
            reason = _reason(folder / f"{name}{REASON_SUFFIX}")
            texts = (str(reason.get(key, "")) for key in ("what", "remedy", "kind"))
            found.append(Refusal(name, *texts))
    return tuple(found)


def rejected_times(settings: Settings) -> dict[str, int]:
    """Return name -> when its reason was written in ns, of the files that have one."""
    found: dict[str, int] = {}
    with rejected_folder(settings) as folder:
        if folder is None:
            return found
        for name in _rejected_names(folder):
            with contextlib.suppress(OSError):
                found[name] = (folder / f"{name}{REASON_SUFFIX}").lstat().st_mtime_ns
    return found


def check_reasons(settings: Settings, paths: Iterable[Path]) -> None:
    """Refuse to put back a file of new_gts/rejected/ that nobody rejected.

    Raises
    ------
    PipelineError
        With its name and what to do.
    """
    for path in paths:
        if path.parent == settings.rejected_gts and not _has_our_reason(path.parent, path.name):
            raise PipelineError(
                f"{path} has no reason of the pipeline beside it; move it to new_gts/ yourself if "
                "it is right; nothing was changed"
            )


def _has_our_reason(folder: Path, name: str) -> bool:
    """Say whether a rejected file has beside it what only a rejection writes."""
    return isinstance(_reason(folder / f"{name}{REASON_SUFFIX}").get("file"), str)


def _reason(path: Path) -> dict[str, Any]:
    """Return what lies beside a rejected file; nothing of what is no such file any more."""
    try:
        return dict(json.loads(read_regular_file(path, MAX_REASON_MB)))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def requeue(settings: Settings, names: list[str]) -> list[str]:
    """Put mended files back into new_gts/ and return their names there.

    Raises
    ------
    PipelineError
        If a name is not there; nothing is moved then.
    """
    with contextlib.ExitStack() as stack:
        try:
            rejected = stack.enter_context(own_folder(settings.rejected_gts, settings.home))
            there = _rejected_names(rejected)
        except FileNotFoundError:
            rejected, there = settings.rejected_gts, []
        names = [name_meant(name, [], there) for name in names]
        missing = sorted(set(names) - set(there))
        if missing:
            raise PipelineError(
                f"{settings.rejected_gts} holds no {', '.join(missing)}; "
                f"it holds: {', '.join(there) or 'nothing'}"
            )
        wanted = list(dict.fromkeys(names or there))
        ours = [name for name in wanted if _has_our_reason(rejected, name)]
        _tell_planted(settings, set(wanted) - set(ours))
        return _put_back(settings, ours, rejected) if ours else []


def _tell_planted(settings: Settings, names: Collection[str]) -> None:
    """Say of which files nobody knows why they lie in rejected/."""
    if names:
        logger.warning(
            "%s holds %s without a reason of the pipeline beside it: left there; look at it, and "
            "move it to new_gts/ yourself if it is right",
            *(settings.rejected_gts, listed(names)),
        )


def _put_back(settings: Settings, names: Iterable[str], rejected: Path) -> list[str]:
    """Move rejected files to new_gts/, and remove their reasons."""
    moves = move_files({rejected / name: "" for name in names}, settings.new_gts)
    _tell_left(moves)
    for path in moves.moved:
        (rejected / f"{path.name}{REASON_SUFFIX}").unlink(missing_ok=True)
    sync_folder(rejected)
    return [path.name for path in moves.moved.values()]


def _tell_left(moves: Moves) -> None:
    """Say which files another user does not let us move."""
    for path, why in moves.left.items():
        copied = " was copied, but" if path in moves.moved else ""
        logger.warning("%s%s %s", printable(path.name), copied, why)


# --- Archive ---


def archive(settings: Settings, manifest_hashes: Collection[str]) -> list[str]:
    """Move the new files that production was trained on to used_gts/; return their new names.

    Parameters
    ----------
    manifest_hashes
        SHA-256 of every file that the production version was trained on.

    Notes
    -----
    Recognised by content: a file that changed while the cycle ran stays as new. First, files that
    a crash left under two names lose the old one. A true copy of a file in used_gts/ is a
    duplicate and is left to intake.
    """
    _join_interrupted_moves(settings)
    learnt: dict[str, Path] = {}
    sizes = set()
    for path, sha256 in _hashed(settings.new_gts, None, settings.max_file_mb):
        if sha256 in manifest_hashes and sha256 not in learnt:
            with contextlib.suppress(FileNotFoundError):
                sizes.add(path.lstat().st_size)
                learnt[sha256] = path
    used = hashes_in(settings.used_gts, sizes) if learnt else {}
    if not are_on_one_mount(settings.new_gts, settings.used_gts):
        # A crash came between the copy to the other disk and this.
        _remove(*(path for sha256, path in learnt.items() if sha256 in used))
    paths = [path for sha256, path in learnt.items() if sha256 not in used]
    return _archived(settings, paths, manifest_hashes)


def _archived(settings: Settings, paths: Collection[Path], contents: Collection[str]) -> list[str]:
    """Move files to used_gts/, where nobody else may write to them; return their names there.

    Parameters
    ----------
    contents
        SHA-256 of what they may hold: one that another put in its place meanwhile goes back.
    """
    if not paths:
        return []
    moves = move_files(dict.fromkeys(paths, ""), settings.used_gts, own_inode=True)
    _tell_left(moves)
    return [
        target.name
        for source, target in moves.moved.items()
        if not _taken_back(target, source, contents)
    ]


def _taken_back(target: Path, source: Path, contents: Collection[str]) -> bool:
    """Move what is not of these contents back; say whether it was."""
    with contextlib.suppress(UnusableFile):
        if hash_regular_file(target) in contents:
            return False
    logger.warning("%s changed while it was moved; it goes back", printable(source.name))
    move_files({target: source.name}, source.parent)
    return True


def _remove(*paths: Path) -> None:
    """Remove files; say which ones another user does not let us remove."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            if not (isinstance(error, PermissionError | IsADirectoryError) or is_read_only(error)):
                raise
            _tell_left(Moves({}, {path: f"may not be removed ({error.strerror}): remove it"}))
    for folder in {path.parent for path in paths}:
        sync_folder(folder)


def _join_interrupted_moves(settings: Settings) -> None:
    """Remove the old name of files that a crash left under two names."""
    new_names = {
        inode: name for inode, name in _inodes(settings.new_gts).items() if inode.n_names > 1
    }
    with rejected_folder(settings) as rejected:
        for folder in (settings.used_gts, rejected):
            for inode in _inodes(folder) if folder and new_names else ():
                old_name = new_names.pop(inode, None)
                if old_name is not None:
                    _remove(settings.new_gts / old_name)
    sync_folder(settings.new_gts)


class _Inode(NamedTuple):
    device: int
    number: int
    n_names: int


def _inodes(folder: Path) -> dict[_Inode, str]:
    found = {}
    for name in waiting_names(folder):
        with contextlib.suppress(FileNotFoundError):
            status = (folder / name).lstat()
            found[_Inode(status.st_dev, status.st_ino, status.st_nlink)] = name
    return found


# --- Corrected and withdrawn recordings ---


def finish_replacement(settings: Settings, entry: Replaced) -> None:
    """Let a new file take the place of an old one, which is kept; twice is as good as once."""
    place = settings.home / entry.folder / entry.name
    with contextlib.ExitStack() as stack:
        source = settings.home / entry.source
        if source.parent == settings.rejected_gts:
            try:
                rejected = stack.enter_context(own_folder(source.parent, settings.home))
                source = rejected / source.name
            except (FileNotFoundError, NotOurFolder) as error:
                if isinstance(error, NotOurFolder):
                    logger.warning("%s; %s stays as it is", error, printable(entry.name))
                return
        if _holds(source, entry.sha256):
            if _holds(place, entry.old_sha256):
                _set_aside(place, entry.old_sha256, settings.replaced_gts / entry.kept_as)
            if not os.path.lexists(place):
                moves = move_files({source: place.name}, place.parent, own_inode=True)
                _tell_left(moves)
                for target in moves.moved.values():
                    _taken_back(target, source, {entry.sha256})
            elif source != place and _holds(place, entry.sha256):
                _remove(source)  # a crash came between the copy and this
        if source.parent != settings.new_gts and not os.path.lexists(source):
            _remove(source.parent / f"{source.name}{REASON_SUFFIX}")


def finish_withdrawal(settings: Settings, entry: Withdrawn) -> None:
    """Take a recording out of the training data; twice is as good as once."""
    place = settings.home / entry.folder / entry.name
    if entry.folder and _holds(place, entry.sha256):
        if entry.kept_as:
            _set_aside(place, entry.sha256, settings.withdrawn_gts / entry.kept_as)
        else:
            _remove(place)
    if not entry.kept_as:
        _forget(settings, entry)


def _forget(settings: Settings, entry: Withdrawn) -> None:
    """Delete what a recording was before it was corrected, and what was read of it."""
    if entry.earlier and settings.replaced_gts.is_dir():
        for sha256, name in hashes_in(settings.replaced_gts).items():
            if sha256 in entry.earlier:
                (settings.replaced_gts / name).unlink()
        sync_folder(settings.replaced_gts)
    tables = KeptTables(settings.home / CACHE_FOLDER, maker="", max_mb=settings.cache_mb)
    for sha256 in entry.contents:
        tables.forget(sha256)


def withdrawn_recordings(settings: Settings, memory: Memory) -> dict[str, Withdrawn]:
    """Return SHA-256 -> withdrawal that holds, those of a lost journal among them.

    Files in withdrawn/ that no journal tells of were put there by hand, or their journal is gone.
    """
    hold, told = memory.withdrawn(), {one.sha256 for one in memory.all(Withdrawn)}
    folder = settings.withdrawn_gts
    for sha256, name in hashes_in(folder).items() if folder.is_dir() else ():
        if sha256 not in told:
            hold[sha256] = Withdrawn(
                sha256=sha256,
                known="",
                earlier=[],
                folder=settings.used_gts.name,
                name=name,
                kept_as=name,
                reason="",
                who="",
                at=as_local_time((folder / name).lstat().st_mtime),
            )
    return hold


def finish_return(settings: Settings, entry: Withdrawn) -> str:
    """Put a recording back from where a withdrawal had put it; twice is as good as once.

    Returns
    -------
    str
        Its place below the home, under a free name if another one has taken its own; empty if
        nothing was kept.
    """
    kept = settings.withdrawn_gts / entry.kept_as
    if not entry.kept_as or not _holds(kept, entry.sha256):
        return ""
    moves = move_files({kept: entry.name}, settings.home / entry.folder, own_inode=True)
    _tell_left(moves)
    return str(moves.moved[kept].relative_to(settings.home)) if kept in moves.moved else ""


def finish_all(settings: Settings, memory: Memory) -> None:
    """Do what the journal says was begun: replacements, withdrawals and their undoing."""
    hold, today = memory.withdrawn(), contents_today(memory)
    for replaced in memory.all(Replaced):
        # One that was taken back since must not begin again with a file of its name.
        if replaced.sha256 not in hold and replaced.sha256 == today.get(
            replaced.sha256, replaced.sha256
        ):
            finish_replacement(settings, replaced)
    for entry in {one.sha256: one for one in memory.all(Withdrawn)}.values():
        if entry.sha256 in hold:
            finish_withdrawal(settings, entry)
        else:
            finish_return(settings, entry)


def contents_today(memory: Memory) -> dict[str, str]:
    """Return SHA-256 of a content that another one replaced -> the one in its place today."""
    today: dict[str, str] = {}
    for one in reversed(memory.all(Replaced)):
        # The newest first: a content that came back later is its own successor.
        today.setdefault(one.old_sha256, today.get(one.sha256, one.sha256))
    return today


def left_the_training_data(settings: Settings, memory: Memory) -> set[str]:
    """Return the contents that were corrected since, and those of withdrawn recordings."""
    hold, today = withdrawn_recordings(settings, memory), contents_today(memory)
    gone = {sha256 for sha256, now in today.items() if now != sha256}
    return gone | {sha256 for one in hold.values() for sha256 in one.contents}


def _holds(path: Path, sha256: str) -> bool:
    """Say whether a regular file is there with that content."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, UnusableFile):
        return hash_regular_file(path) == sha256
    return False


def _set_aside(path: Path, sha256: str, target: Path) -> None:
    """Move a file to where it is kept, if a crash has not left a copy there already."""
    if _holds(target, sha256):
        _remove(path)
    else:
        _tell_left(move_files({path: target.name}, target.parent, own_inode=True))


def archive_learnt(
    settings: Settings, names: Iterable[str], contents: Collection[str]
) -> list[str]:
    """Move files of new_gts/ that production learnt to used_gts/, and return their names there.

    Parameters
    ----------
    contents
        SHA-256 of all that it learnt.
    """
    return _archived(settings, [settings.new_gts / name for name in names], contents)


def files_of(
    settings: Settings, training: Training, names: Mapping[str, str]
) -> tuple[GroundTruthFile, ...]:
    """Return files of used_gts/ that are still what they were, given SHA-256 -> name."""

    def read(path: Path) -> Any:
        rows, sha256 = training.read(path)
        if sha256 not in names:
            raise TryLaterError(f"{path.name} changed while the cycle ran; run again")
        return rows

    return tuple(
        GroundTruthFile(name, settings.used_gts / name, sha256, 0, read=read)
        for sha256, name in names.items()
        if _holds(settings.used_gts / name, sha256)
    )


# --- The training folder ---


@contextlib.contextmanager
def training_folder(
    settings: Settings, files: Iterable[GroundTruthFile], stand_ins: Mapping[str, Path]
) -> Iterator[tuple[Path, dict[str, str]]]:
    """Give used_gts/ plus the new files as one folder, and name -> SHA-256 of what is in it.

    Parameters
    ----------
    files
        The batch; a name that used_gts/ has too becomes a free one.
    stand_ins
        Name in used_gts/ -> the file that would take its place, in a dry run.

    Raises
    ------
    PipelineError
        If a file changed since it was read.

    Notes
    -----
    Hard links where the filesystem allows, else copies. A file is hashed under its name in this
    folder, so that the manifest tells what was trained on.
    """
    folder = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=settings.home))
    try:
        manifest = {}
        for name in {*waiting_names(settings.used_gts), *stand_ins}:
            path = stand_ins.get(name, settings.used_gts / name)
            manifest[name] = _staged(path, folder / name)
            if not manifest[name]:
                raise PipelineError(
                    f"{path} cannot be read; let it be a regular file that the pipeline's user may "
                    "read"
                )
        for one in files:
            name = free_name(one.name, folder)
            manifest[name] = _staged(one.path, folder / name)
            if manifest[name] != one.sha256:
                raise TryLaterError(
                    f"{one.name} changed while the cycle ran; the next run reads it"
                )
        repeated = [sha256 for sha256, n in Counter(manifest.values()).items() if n > 1]
        if repeated:
            twins = sorted(name for name, sha256 in manifest.items() if sha256 == repeated[0])
            raise PipelineError(
                f"{settings.used_gts} holds one recording twice, as {' and '.join(twins)}; "
                "delete one of them"
            )
        yield folder, manifest
        for name, sha256 in manifest.items():
            if hash_file(folder / name) != sha256:
                raise TryLaterError(f"{name} changed during training; the next run reads it again")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _staged(source: Path, target: Path) -> str:
    """Put a file into the training folder; return its SHA-256, empty if it is no file of ours."""
    with contextlib.suppress(FileNotFoundError, UnusableFile):
        link_or_copy(source, target)
        return hash_regular_file(target)
    return ""


def remove_training_folders(settings: Settings) -> None:
    """Remove the training folders of dead processes."""
    strange = []
    for left_over in sorted(settings.home.glob(f"{STAGING_PREFIX}*")):
        try:
            with own_folder(left_over, settings.home):
                shutil.rmtree(left_over)
        except (NotOurFolder, PermissionError):
            strange.append(left_over.name)
    tell_strange(strange, settings.home)
