"""Ground truth files: intake, rejection, requeue, archive and the training folder.

Nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import functools
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
    UnusableFile,
    free_name,
    hash_bytes,
    hash_file,
    link_or_copy,
    move_file,
    read_regular_file,
    settled,
    sync_folder,
    waiting_names,
    write_durably,
)
from retraining.settings import Settings
from retraining.text import now, printable
from retraining.training import Training

STAGING_PREFIX = ".training-"
REASON_SUFFIX = ".reason.json"
MAX_REASON_MB = 1.0
KEPT_ROWS = 1_000_000
"""Of a batch; about 100 MB, 200 recordings."""
logger = logging.getLogger("pipeline")


# --- Intake ---


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
class GroundTruthFile:
    """One valid ground truth file.

    Parameters
    ----------
    name
        Name in new_gts/.
    sha256
        Of the bytes that `rows` was parsed from.
    n_rows
        Number of rows.
    data_quality
        Note about measurements that were taken as missing; empty if there are none.
    read
        Gives the rows.
    """

    name: str
    sha256: str
    n_rows: int
    data_quality: str
    read: Callable[[], Any] = field(repr=False)

    @property
    def rows(self) -> Any:
        """What the training module's reader returned."""
        return self.read()


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
    """

    name: str
    what: str
    remedy: str


@dataclass(frozen=True)
class Intake:
    """What became of the files in new_gts/.

    Parameters
    ----------
    files
        Valid ones.
    refusals
        Invalid ones and duplicates.
    """

    files: tuple[GroundTruthFile, ...]
    refusals: tuple[Refusal, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of the valid contents, whatever their names and order."""
        return hash_bytes("\n".join(sorted(one.sha256 for one in self.files)).encode())[:16]


def take_in(settings: Settings, training: Training, trained_on: Mapping[str, str]) -> Intake:
    """Read every settled file of new_gts/; change nothing.

    Parameters
    ----------
    settings
        Names the folders and the size limit.
    trained_on
        SHA-256 -> name of the files that production was trained on.

    Notes
    -----
    Up to `KEPT_ROWS` rows stay in memory; of a larger batch, files are read again when they are
    needed, and the cycle ends if one has changed.
    """
    files: list[GroundTruthFile] = []
    refusals: list[Refusal] = []
    n_rows = 0
    paths = settled([settings.new_gts / name for name in waiting_names(settings.new_gts)])
    sizes = {path.lstat().st_size for path in paths}
    known = {sha256: f"{name}, which production learnt" for sha256, name in trained_on.items()}
    for sha256, name in hashes_in(settings.used_gts, sizes).items():
        known[sha256] = f"used_gts/{name}"
    for path in paths:
        problem = _problem_of_name(path.name)
        if problem:
            refusals.append(Refusal(path.name, f"has a name {problem}", "rename it"))
            continue
        try:
            # Hashed and parsed are the same bytes, whoever writes to the file meanwhile.
            content = read_regular_file(path, settings.max_file_mb)
            sha256 = hash_bytes(content)
            if sha256 in known:
                what = f"is a duplicate: same content as {known[sha256]}"
                refusals.append(Refusal(path.name, what, "delete it"))
                continue
            rows = training.parse(content, path.name)
        except ValueError as error:
            refusals.append(_refusal(path.name, error))
            continue
        known[sha256] = f"new_gts/{path.name}"
        n_rows += len(rows)
        again = functools.partial(_read_again, settings, training, path.name, sha256)
        read = functools.partial(_identity, rows) if n_rows <= KEPT_ROWS else again
        note = training.data_quality_note(rows)
        files.append(GroundTruthFile(path.name, sha256, len(rows), note, read))
    return Intake(tuple(files), tuple(refusals))


def _identity(rows: Any) -> Any:
    return rows


def _refusal(name: str, error: Exception) -> Refusal:
    """Return what a reader says of a file, in two parts if it has them."""
    kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
    what = getattr(error, "what", None) or f"cannot be read: {kind}{error}"
    return Refusal(name, what, getattr(error, "remedy", "correct the file"))


def _read_again(settings: Settings, training: Training, name: str, sha256: str) -> Any:
    changed = TryLaterError(f"{name} changed while the cycle ran; the next run reads it")
    try:
        content = read_regular_file(settings.new_gts / name, settings.max_file_mb)
    except (FileNotFoundError, UnusableFile) as error:
        raise changed from error
    if hash_bytes(content) != sha256:
        raise changed
    return training.parse(content, name)


def _problem_of_name(name: str) -> str:
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


# --- Rejected files ---


def reject(settings: Settings, refusals: Iterable[Refusal]) -> None:
    """Move refused files to new_gts/rejected/, each beside its reason."""
    for refusal in refusals:
        logger.warning(
            "rejected %r: %s; %s (then: pipeline_orchestrator.py requeue)",
            *(printable(text) for text in (refusal.name, refusal.what, refusal.remedy)),
        )
        settings.rejected_gts.mkdir(exist_ok=True)
        name = free_name(refusal.name, settings.rejected_gts)
        reason = {
            "file": refusal.name,
            "what": refusal.what,
            "remedy": refusal.remedy,
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
        found.append(Refusal(name, str(reason.get("what", "")), str(reason.get("remedy", ""))))
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
        moved.append(move_file(path, settings.used_gts).name)
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


# --- The training folder ---


@contextlib.contextmanager
def training_folder(
    settings: Settings, files: Iterable[GroundTruthFile]
) -> Iterator[tuple[Path, dict[str, str]]]:
    """Give used_gts/ plus the new files as one folder, and name -> SHA-256 of what is in it.

    Parameters
    ----------
    files
        The batch; a name that used_gts/ has too becomes a free one.

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
        for name in waiting_names(settings.used_gts):
            link_or_copy(settings.used_gts / name, folder / name)
            manifest[name] = hash_file(folder / name)
        for one in files:
            name = free_name(one.name, folder)
            link_or_copy(settings.new_gts / one.name, folder / name)
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
