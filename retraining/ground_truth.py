"""Ground truth files: rejection, requeue, archive, replacement, withdrawal, training folder.

Nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retraining.errors import PipelineError, TryLaterError
from retraining.files import (
    free_name,
    hash_file,
    link_or_copy,
    move_file,
    read_regular_file,
    sync_folder,
    waiting_names,
    write_durably,
)
from retraining.journal import Memory, Replaced, Withdrawn
from retraining.kept_tables import CACHE_FOLDER, KeptTables
from retraining.settings import Settings
from retraining.text import as_local_time, now, printable
from retraining.training import Training

STAGING_PREFIX = ".training-"
REASON_SUFFIX = ".reason.json"
MAX_REASON_MB = 1.0
PARKED, KNOWN = "parked", "known"
"""Kinds of refused files: a person's `correct` takes one, and with the other nothing is wrong."""
logger = logging.getLogger("pipeline")


# --- What lies there ---


def hashes_in(folder: Path, sizes: Collection[int] | None = None) -> dict[str, str]:
    """Return SHA-256 -> name of the CSV files of a folder.

    Parameters
    ----------
    sizes
        Only files of these sizes in bytes: no other can equal a file of such a size.
    """
    found = {}
    for name in waiting_names(folder):
        path = folder / name
        status = path.lstat()
        if path.is_file() and not path.is_symlink() and (sizes is None or status.st_size in sizes):
            found[hash_file(path)] = name
    return found


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
    """Move refused files to new_gts/rejected/, each beside its reason."""
    for refusal in refusals:
        logger.warning(
            "rejected %r: %s; %s%s",
            *(printable(text) for text in (refusal.name, refusal.what, refusal.remedy)),
            "" if refusal.kind else " (then: pipeline_orchestrator.py requeue)",
        )
        settings.rejected_gts.mkdir(exist_ok=True)
        name = free_name(refusal.name, settings.rejected_gts)
        reason = {
            "file": refusal.name,
            "what": refusal.what,
            "remedy": refusal.remedy,
            "kind": refusal.kind,
            "rejected_at": now(),
        }
        write_durably(
            settings.rejected_gts / f"{name}{REASON_SUFFIX}",
            json.dumps(reason, indent=2).encode(),
        )
        move_file(settings.new_gts / refusal.name, settings.rejected_gts, name)


def rejected_names(settings: Settings) -> list[str]:
    """Return the names of the files in new_gts/rejected/, reasons left out."""
    if not settings.rejected_gts.is_dir():
        return []
    with os.scandir(settings.rejected_gts) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".") and not entry.name.endswith(REASON_SUFFIX)
        )


def rejected_files(settings: Settings) -> tuple[Refusal, ...]:
    """Return the files in new_gts/rejected/ with the reasons that lie beside them."""
    found = []
    for name in rejected_names(settings):
        reason = _reason(settings.rejected_gts / f"{name}{REASON_SUFFIX}")
        texts = (str(reason.get(key, "")) for key in ("what", "remedy", "kind"))
        found.append(Refusal(name, *texts))
    return tuple(found)


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
    there = rejected_names(settings)
    missing = sorted(set(names) - set(there))
    if missing:
        raise PipelineError(
            f"{settings.rejected_gts} holds no {', '.join(missing)}; "
            f"it holds: {', '.join(there) or 'nothing'}"
        )
    back = []
    for name in dict.fromkeys(names or there):
        moved = move_file(settings.rejected_gts / name, settings.new_gts)
        (settings.rejected_gts / f"{name}{REASON_SUFFIX}").unlink(missing_ok=True)
        back.append(moved.name)
    return back


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
    moved = []
    _join_interrupted_moves(settings)
    for name in waiting_names(settings.new_gts):
        path = settings.new_gts / name
        if path.is_symlink() or not path.is_file():
            continue
        sha256 = hash_file(path)
        if sha256 not in manifest_hashes:
            continue
        if sha256 in hashes_in(settings.used_gts, {path.stat().st_size}):
            if path.stat().st_dev != settings.used_gts.stat().st_dev:
                path.unlink()  # a crash came between the copy to the other disk and this
            continue
        moved.append(move_file(path, settings.used_gts, own_inode=True).name)
    return moved


def _join_interrupted_moves(settings: Settings) -> None:
    """Remove the old name of files that a crash left under two names."""
    new_names = {}
    for name in waiting_names(settings.new_gts):
        status = (settings.new_gts / name).lstat()
        if status.st_nlink > 1:
            new_names[status.st_dev, status.st_ino] = name
    for folder in (settings.used_gts, settings.rejected_gts):
        for name in waiting_names(folder) if folder.is_dir() else ():
            status = (folder / name).lstat()
            old_name = new_names.pop((status.st_dev, status.st_ino), None)
            if old_name is not None:
                (settings.new_gts / old_name).unlink()
    sync_folder(settings.new_gts)


# --- Corrected and withdrawn recordings ---


def finish_replacement(settings: Settings, entry: Replaced) -> None:
    """Let a new file take the place of an old one, which is kept; twice is as good as once."""
    source = settings.home / entry.source
    place = settings.home / entry.folder / entry.name
    if _holds(source, entry.sha256):
        if _holds(place, entry.old_sha256):
            _set_aside(place, entry.old_sha256, settings.replaced_gts / entry.kept_as)
        if not os.path.lexists(place):
            move_file(source, place.parent, place.name, own_inode=True)
        elif source != place and _holds(place, entry.sha256):
            source.unlink()  # a crash came between the copy and this
    if source.parent == settings.rejected_gts and not os.path.lexists(source):
        (source.parent / f"{source.name}{REASON_SUFFIX}").unlink(missing_ok=True)
    if source.parent.is_dir():
        sync_folder(source.parent)


def finish_withdrawal(settings: Settings, entry: Withdrawn) -> None:
    """Take a recording out of the training data; twice is as good as once."""
    place = settings.home / entry.folder / entry.name
    if entry.folder and _holds(place, entry.sha256):
        if entry.kept_as:
            _set_aside(place, entry.sha256, settings.withdrawn_gts / entry.kept_as)
        else:
            place.unlink()
            sync_folder(place.parent)
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
    path = move_file(kept, settings.home / entry.folder, entry.name)
    return str(path.relative_to(settings.home))


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
    return path.is_file() and not path.is_symlink() and hash_file(path) == sha256


def _set_aside(path: Path, sha256: str, target: Path) -> None:
    """Move a file to where it is kept, if a crash has not left a copy there already."""
    if _holds(target, sha256):
        path.unlink()
        sync_folder(path.parent)
    else:
        move_file(path, target.parent, target.name)


def archive_learnt(settings: Settings, names: Iterable[str]) -> list[str]:
    """Move files of new_gts/ that production learnt to used_gts/, and return their names there."""
    new, used = settings.new_gts, settings.used_gts
    return [move_file(new / name, used, own_inode=True).name for name in names]


def files_of(
    settings: Settings, training: Training, names: Mapping[str, str]
) -> tuple[GroundTruthFile, ...]:
    """Return files of used_gts/ that are still what they were, given SHA-256 -> name."""

    def read(path: Path) -> Any:
        rows, sha256 = training.read(path, settings.max_file_mb)
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
            link_or_copy(stand_ins.get(name, settings.used_gts / name), folder / name)
            manifest[name] = hash_file(folder / name)
        for one in files:
            name = free_name(one.name, folder)
            link_or_copy(one.path, folder / name)
            manifest[name] = hash_file(folder / name)
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


def remove_training_folders(settings: Settings) -> None:
    """Remove the training folders of dead processes."""
    for left_over in settings.home.glob(f"{STAGING_PREFIX}*"):
        shutil.rmtree(left_over)
