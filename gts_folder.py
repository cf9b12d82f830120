"""Everything that touches ground truth files: the lock, intake, hashing and moving.

The one place that moves a file. A file is never overwritten and never lost: moves link the new
name before they remove the old one, so a crash leaves at worst two names of one file, which the
next tidying joins again. Nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import functools
import hashlib
import json
import logging
import os
import shutil
import signal
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_settings import PipelineError, Settings, TryLaterError

if TYPE_CHECKING:
    from training_module import Training

LOCK_NAME = ".pipeline.lock"
STATE_NAME = ".pipeline_state.json"
STAGING_PREFIX = ".training-"
REASON_SUFFIX = ".reason.json"
TEMPORARY_PREFIX = ".pipeline-"
TEMPORARY_SUFFIX = ".tmp"
LONGEST_NAME_BYTES = 230
"""Filesystems allow 255; the rest is room for a number and for the suffix of the reason."""

SETTLE_SECONDS = 1.0
HOLDER_SECONDS = 0.2
HOLDER_LOOKS = 10
KEPT_ROWS = 1_000_000
"""Of a batch; about 100 MB, 200 recordings."""

logger = logging.getLogger("pipeline")


def now() -> str:
    """Return the local time with its offset, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def as_local_time(seconds: float) -> str:
    """Return a moment in the form of `now`.

    Parameters
    ----------
    seconds
        Since 1970.
    """
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


# --- One at a time ---


@contextlib.contextmanager
def exclusive_lock(settings: Settings, command: str) -> Iterator[None]:
    """Hold the home folder for one command; the lock file itself is never deleted.

    Parameters
    ----------
    settings
        Names the home.
    command
        Written into the lock file for whoever comes second.

    Raises
    ------
    TryLaterError
        If another process holds it.
    """
    path = settings.home / LOCK_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        _take_lock(descriptor, path)
        since = now()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()}, {command}, since {since}\n".encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock_without_writing(settings: Settings) -> Iterator[None]:
    """Keep changing commands out while only looking; writes nothing.

    Parameters
    ----------
    settings
        Names the home.

    Raises
    ------
    TryLaterError
        If a changing command is at work.
    """
    path = settings.home / LOCK_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield
        return
    try:
        _take_lock(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _take_lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise TryLaterError(
            f"{path} is held by {_holder(descriptor)}; wait for it to end"
        ) from error


def _holder(descriptor: int) -> str:
    """Return who holds a lock; whoever has just taken it has a moment to write its name."""
    for _ in range(HOLDER_LOOKS):
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        if holder:
            return holder
        time.sleep(HOLDER_SECONDS / HOLDER_LOOKS)
    return "a process"


# --- Durable writes ---


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable.

    Parameters
    ----------
    folder
        An existing folder.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and keep it through a power cut.

    Parameters
    ----------
    path
        Replaced if it exists.
    content
        The whole file.
    """
    descriptor, temporary = _temporary_in(path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(descriptor, 0o644)  # others read the reason of a rejection
            stream.write(content)
            stream.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _temporary_in(folder: Path) -> tuple[int, Path]:
    descriptor, name = tempfile.mkstemp(
        dir=folder, prefix=TEMPORARY_PREFIX, suffix=TEMPORARY_SUFFIX
    )
    return descriptor, Path(name)


def begin_cycle(settings: Settings, state: dict[str, Any]) -> None:
    """Note durably that a cycle has begun, so that the next start knows there is work to finish.

    Parameters
    ----------
    settings
        Names the home.
    state
        Becomes the state file, as JSON.
    """
    write_durably(settings.home / STATE_NAME, json.dumps(state).encode())


def end_cycle(settings: Settings) -> None:
    """Remove the note of `begin_cycle`.

    Parameters
    ----------
    settings
        Names the home.
    """
    (settings.home / STATE_NAME).unlink(missing_ok=True)
    sync_folder(settings.home)


def unfinished_cycle(settings: Settings) -> dict[str, Any] | None:
    """Return what an interrupted cycle noted, or None.

    Parameters
    ----------
    settings
        Names the home.
    """
    try:
        return dict(json.loads((settings.home / STATE_NAME).read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return {}


# --- Look ---


def waiting_names(folder: Path) -> list[str]:
    """Return the names in a folder that look like finished CSV files, sorted.

    Parameters
    ----------
    folder
        Usually new_gts/.

    Notes
    -----
    By name only, so that a night without news costs one directory listing. Uploads in progress
    are hidden or end in .part, .tmp, .crdownload and the like: not in .csv.
    """
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_candidate(entry.name))


def _is_candidate(name: str) -> bool:
    return name.lower().endswith(".csv") and not name.startswith(".")


def hash_bytes(content: bytes) -> str:
    """Return the SHA-256 of a content in hexadecimal.

    Parameters
    ----------
    content
        The bytes of a file.
    """
    return hashlib.sha256(content).hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal.

    Parameters
    ----------
    path
        A readable file.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hashes_in(folder: Path, sizes: Collection[int] | None = None) -> dict[str, str]:
    """Return SHA-256 -> name of the CSV files of a folder.

    Parameters
    ----------
    folder
        Usually used_gts/.
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


def _settled(paths: list[Path]) -> list[Path]:
    """Return the files that nobody is writing any more."""
    settled, unsure = [], []
    for path in paths:
        state = _being_written(path)
        if state is None:
            unsure.append((path, _size_and_time(path)))
        elif not state:
            settled.append(path)
    if unsure:
        time.sleep(SETTLE_SECONDS)
    settled += [path for path, before in unsure if _size_and_time(path) == before]
    for path in sorted(set(paths) - set(settled)):
        logger.info("%s is still being written; left for the next run", path.name)
    return sorted(settled)


def _size_and_time(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_size, status.st_mtime_ns


def _being_written(path: Path) -> bool | None:
    """Ask the kernel whether anybody has the file open for writing; None if it cannot tell."""
    if path.is_symlink() or not path.is_file():
        return False
    if not hasattr(fcntl, "F_SETLEASE"):
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # A writer who comes right now breaks the lease: by SIGIO, which would end this process.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    else:
        return False
    finally:
        os.close(descriptor)


# --- Intake ---


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


class UnusableFile(ValueError):
    """A file that is not even read.

    Parameters
    ----------
    what
        What is wrong.
    remedy
        What to do about it.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what = what
        self.remedy = remedy


def read_regular_file(path: Path, max_file_mb: float) -> bytes:
    """Return the content of a regular file, without following a link or waiting for a pipe.

    Parameters
    ----------
    path
        The file.
    max_file_mb
        Largest size in megabytes (10^6 bytes).

    Raises
    ------
    UnusableFile
        For anything that is not a readable regular file of at most that size.
    """
    not_a_file = UnusableFile("is not a regular file", "put one CSV per recording there")
    limit = int(max_file_mb * 1e6)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            what, remedy = "is a symbolic link", "put the file itself into the folder"
            raise UnusableFile(what, remedy) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            what, remedy = "is not readable", "give the pipeline's user the right to read it"
            raise UnusableFile(what, remedy) from error
        if error.errno == errno.ENXIO:
            raise not_a_file from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise not_a_file
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            content = stream.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise UnusableFile(f"is larger than {max_file_mb:g} MB", "split it or raise --max-file-mb")
    return content


def take_in(settings: Settings, training: Training, trained_on: Mapping[str, str]) -> Intake:
    """Read every settled file of new_gts/; change nothing.

    Parameters
    ----------
    settings
        Names the folders and the size limit.
    training
        The training module: its reader.
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
    paths = _settled([settings.new_gts / name for name in waiting_names(settings.new_gts)])
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


def reject(settings: Settings, refusals: Iterable[Refusal]) -> None:
    """Move refused files to new_gts/rejected/, each beside its reason.

    Parameters
    ----------
    settings
        Names the folders.
    refusals
        What `take_in` refused.
    """
    for refusal in refusals:
        logger.warning(
            "rejected %r: %s; %s (then: pipeline_orchestrator.py requeue)",
            refusal.name,
            refusal.what,
            refusal.remedy,
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
    """Return the names of the files in new_gts/rejected/, reasons left out.

    Parameters
    ----------
    settings
        Names the folder.
    """
    if not settings.rejected_gts.is_dir():
        return []
    with os.scandir(settings.rejected_gts) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not entry.name.startswith(".") and not entry.name.endswith(REASON_SUFFIX)
        )


def rejected_files(settings: Settings) -> tuple[Refusal, ...]:
    """Return the files in new_gts/rejected/ with the reasons that lie beside them.

    Parameters
    ----------
    settings
        Names the folder.
    """
    found = []
    for name in rejected_names(settings):
        path = settings.rejected_gts / f"{name}{REASON_SUFFIX}"
        reason = json.loads(path.read_bytes()) if path.is_file() else {}
        found.append(Refusal(name, reason.get("what", ""), reason.get("remedy", "")))
    return tuple(found)


def requeue(settings: Settings, names: list[str]) -> list[str]:
    """Put mended files back into new_gts/ and return their names there.

    Parameters
    ----------
    settings
        Names the folders.
    names
        Names in new_gts/rejected/; all by default.

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


# --- Move ---


def free_name(name: str, folder: Path, taken: Collection[str] = ()) -> str:
    """Return the name, or NAME-1.csv, NAME-2.csv ... if it is taken; shortened if it is too long.

    Parameters
    ----------
    name
        The name wished for.
    folder
        Where it must be free.
    taken
        Names that are not free either.
    """
    stem, suffix = Path(name).stem, Path(name).suffix
    if len(os.fsencode(name)) > LONGEST_NAME_BYTES:
        stem = os.fsencode(stem)[: LONGEST_NAME_BYTES - len(os.fsencode(suffix))].decode(
            errors="ignore"
        )
    candidate, number = f"{stem}{suffix}", 0
    while os.path.lexists(folder / candidate) or candidate in taken:
        number += 1
        candidate = f"{stem}-{number}{suffix}"
    return candidate


def move_file(source: Path, folder: Path, name: str = "") -> Path:
    """Move one file into a folder without ever overwriting or losing it, and return its new path.

    Parameters
    ----------
    source
        The file, link or whatever stands there.
    folder
        Where it goes; if the wished name is taken, under a free one.
    name
        The wished name; its own by default.
    """
    while True:
        target = folder / free_name(name or source.name, folder)
        try:
            os.link(source, target, follow_symlinks=False)
        except FileExistsError:
            continue
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                raise
            if source.is_symlink() or not source.is_file():
                source.rename(target)
                break
            _copy_whole(source, target)
        sync_folder(folder)
        source.unlink()
        break
    sync_folder(folder)
    sync_folder(source.parent)
    return target


def _copy_whole(source: Path, target: Path) -> None:
    """Copy to another filesystem: temporary name, fsync, verify, then the final name."""
    descriptor, temporary = _temporary_in(target.parent)
    try:
        with os.fdopen(descriptor, "wb") as copy, source.open("rb") as original:
            shutil.copyfileobj(original, copy)
            copy.flush()
            os.fsync(descriptor)
        shutil.copystat(source, temporary)
        if hash_file(temporary) != hash_file(source):
            raise PipelineError(f"the copy of {source} in {target.parent} differs; check the disk")
        _rename_new(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _rename_new(source: Path, target: Path) -> None:
    """Rename without overwriting, as far as the filesystem knows how to."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # no hard links here, such as on FAT; the name was free a moment ago
        source.rename(target)


def archive(settings: Settings, manifest_hashes: Collection[str]) -> list[str]:
    """Move the new files that production was trained on to used_gts/; return their new names.

    Parameters
    ----------
    settings
        Names the folders.
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
    settings
        Names the folders.
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


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where that is not possible.

    Parameters
    ----------
    source
        A regular file.
    target
        A name that is free.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copyfile(source, target)


def remove_training_folders(settings: Settings) -> None:
    """Remove the training folders of dead processes.

    Parameters
    ----------
    settings
        Names the home.
    """
    for left_over in settings.home.glob(f"{STAGING_PREFIX}*"):
        shutil.rmtree(left_over)


def remove_left_overs(folder: Path) -> None:
    """Remove half-written files of dead processes from one folder.

    Parameters
    ----------
    folder
        One that nobody else writes to now; may be missing.
    """
    for left_over in folder.glob(f"{TEMPORARY_PREFIX}*{TEMPORARY_SUFFIX}"):
        left_over.unlink()
