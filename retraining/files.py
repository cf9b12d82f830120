"""Any file, whatever is in it: the lock, durable writes, hashes, safe reads and moves.

The one place that moves a file. A file is never overwritten and never lost: moves link the new
name before they remove the old one, so a crash leaves at worst two names of one file, which the
next tidying joins again. Nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from retraining.errors import PipelineError, TryLaterError
from retraining.settings import Settings
from retraining.text import now

LOCK_NAME = ".pipeline.lock"
TEMPORARY_PREFIX = ".pipeline-"
TEMPORARY_SUFFIX = ".tmp"
NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK)
LONGEST_NAME_BYTES = 230
"""Filesystems allow 255; the rest is room for a number and for the suffix of the reason."""
SEAL_BYTES = 64
SETTLE_SECONDS = 1.0
HOLDER_SECONDS = 0.2
HOLDER_LOOKS = 10
logger = logging.getLogger("pipeline")
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


# --- One at a time ---


@contextlib.contextmanager
def exclusive_lock(settings: Settings, command: str) -> Iterator[None]:
    """Hold the home folder for one command; the lock file itself is never deleted.

    Parameters
    ----------
    command
        Written into the lock file for whoever comes second.

    Raises
    ------
    TryLaterError
        If another process holds it.
    """
    path = settings.home / LOCK_NAME
    descriptor = _open_itself(path, os.O_RDWR | os.O_CREAT)
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

    Raises
    ------
    TryLaterError
        If a changing command is at work.
    """
    path = settings.home / LOCK_NAME
    try:
        descriptor = _open_itself(path)
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
    """Make names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


@contextlib.contextmanager
def written_whole(
    target: Path, *, mode: int = 0o644, durable: bool = True, overwrite: bool = True
) -> Iterator[Path]:
    """Give the path of a temporary file, which becomes `target` whole when the block ends well.

    Parameters
    ----------
    durable
        Whether it must outlive a power cut.
    overwrite
        Whether it may take the place of another file; if not, FileExistsError.
    """
    descriptor, name = tempfile.mkstemp(
        dir=target.parent, prefix=TEMPORARY_PREFIX, suffix=TEMPORARY_SUFFIX
    )
    temporary = Path(name)
    try:
        try:
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
        yield temporary
        if durable:
            sync_file(temporary)
        if overwrite:
            temporary.replace(target)
        else:
            _rename_new(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync_folder(target.parent)


def write_durably(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file whole or not at all, and keep it through a power cut."""
    with written_whole(path, mode=mode) as temporary:
        temporary.write_bytes(content)


def write_sealed(path: Path, name: str, content: bytes, *, durable: bool = True) -> None:
    """Write a file of ours alone (0600) with a digest over its name and content in front."""
    with written_whole(path, mode=0o600, durable=durable) as temporary:
        temporary.write_bytes(_seal(name, content) + content)


def read_sealed(path: Path, name: str, *, note_use: bool = False) -> bytes | None:
    """Return what `write_sealed` wrote under that name; None of anything else.

    Parameters
    ----------
    note_use
        Whether the time of the file says when it was last read.
    """
    with contextlib.suppress(OSError, UnusableFile), open_regular(path) as (stream, status):
        if belongs_to_us(status):
            if note_use:
                os.utime(stream.fileno())
            entry = stream.read()
            content = entry[SEAL_BYTES:]
            return content if entry[:SEAL_BYTES] == _seal(name, content) else None
    return None


def _seal(name: str, content: bytes) -> bytes:
    return hash_bytes(name.encode() + b"\n" + content).encode()


def remove_left_overs(folder: Path) -> None:
    """Remove half-written files of dead processes from one folder.

    Parameters
    ----------
    folder
        One that nobody else writes to now; may be missing.
    """
    for left_over in folder.glob(f"{TEMPORARY_PREFIX}*{TEMPORARY_SUFFIX}"):
        left_over.unlink()


# --- Look and read ---


def waiting_names(folder: Path) -> list[str]:
    """Return the names in a folder that look like finished CSV files, sorted.

    Notes
    -----
    By name only, so that a night without news costs one directory listing. Uploads in progress
    are hidden or end in .part, .tmp, .crdownload and the like: not in .csv.
    """
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_candidate(entry.name))


def _is_candidate(name: str) -> bool:
    return name.lower().endswith(".csv") and not name.startswith(".")


def _open_itself(path: Path, flags: int = os.O_RDONLY, mode: int = 0o644) -> int:
    """Open a file, never what a link points to, without waiting for the writer of a pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)


@contextlib.contextmanager
def open_regular(
    path: Path, flags: int = os.O_RDONLY, mode: int = 0o644
) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    """Give a stream of a regular file and its status, without following a link or waiting.

    Parameters
    ----------
    flags, mode
        Of `os.open`; the stream reads, whatever they are.

    Raises
    ------
    UnusableFile
        For anything that is no regular file, and for one that may not be read.
    """
    not_a_file = UnusableFile("is not a regular file", "put one CSV per recording there")
    try:
        descriptor = _open_itself(path, flags, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            what, remedy = "is a symbolic link", "put the file itself into the folder"
            raise UnusableFile(what, remedy) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            what, remedy = "is not readable", "give the pipeline's user the right to read it"
            raise UnusableFile(what, remedy) from error
        if error.errno in (errno.ENXIO, errno.EISDIR):
            raise not_a_file from error
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise not_a_file
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            yield stream, status
    finally:
        os.close(descriptor)


def hash_bytes(content: bytes) -> str:
    """Return the SHA-256 of a content in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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

    def __reduce__(self) -> tuple[type[UnusableFile], tuple[str, str]]:
        """Come back from another process as it was."""
        return UnusableFile, (self.what, self.remedy)


def read_regular_file(path: Path, max_file_mb: float) -> bytes:
    """Return the content of a regular file.

    Raises
    ------
    UnusableFile
        As `open_regular`, and for a larger one.
    """
    limit = int(max_file_mb * 1e6)
    with open_regular(path) as (stream, _):
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise UnusableFile(f"is larger than {max_file_mb:g} MB", "split it or raise --max-file-mb")
    return content


def is_private(folder: Path) -> bool:
    """Say whether a folder and the one above are ours alone to write, and no links."""
    for each in (folder.parent, folder):
        try:
            status = each.lstat()
        except OSError:
            return False
        if not (stat.S_ISDIR(status.st_mode) and belongs_to_us(status)):
            return False
    return True


def belongs_to_us(status: os.stat_result) -> bool:
    """Say whether this user owns a file and no other may write it."""
    return status.st_uid == os.geteuid() and not status.st_mode & WRITABLE_BY_OTHERS


# --- Is anybody writing it? ---


def settled(paths: list[Path]) -> list[Path]:
    """Return the files that nobody is writing any more."""
    at_rest, unsure = [], []
    for path in paths:
        state = _being_written(path)
        if state is None:
            unsure.append((path, _size_and_time(path)))
        elif not state:
            at_rest.append(path)
    if unsure:
        time.sleep(SETTLE_SECONDS)
    at_rest += [path for path, before in unsure if _size_and_time(path) == before]
    for path in sorted(set(paths) - set(at_rest)):
        logger.info("%s is still being written; left for the next run", path.name)
    return sorted(at_rest)


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
        descriptor = _open_itself(path)
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


# --- Move ---


def free_name(name: str, folder: Path, taken: Collection[str] = ()) -> str:
    """Return the name, or NAME-1.csv, NAME-2.csv ... if it is taken; shortened if too long."""
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


def move_file(source: Path, folder: Path, name: str = "", *, own_inode: bool = False) -> Path:
    """Move one file into a folder without ever overwriting or losing it, and return its new path.

    Parameters
    ----------
    source
        The file, link or whatever stands there.
    folder
        Where it goes, made if it is missing; if the wished name is taken, under a free one. A
        name that a crash has given to this very file already is no other one.
    name
        The wished name; its own by default.
    own_inode
        Copy a regular file that others may still write to, because it belongs to somebody else or
        has a second name.
    """
    _make_folder(folder)
    status = source.lstat()
    plain = stat.S_ISREG(status.st_mode)
    while True:
        target = folder / (name or source.name)
        if not (os.path.lexists(target) and os.path.samestat(target.lstat(), status)):
            target = folder / free_name(target.name, folder)
            if own_inode and plain and not _is_ours_alone(status):
                _copy_whole(source, target)
            else:
                try:
                    os.link(source, target, follow_symlinks=False)
                except FileExistsError:
                    continue
                except OSError as error:
                    if error.errno not in NO_LINKS:
                        raise
                    if not plain:
                        source.rename(target)
                        break
                    _copy_whole(source, target)
        sync_folder(folder)
        source.unlink()
        break
    sync_folder(folder)
    sync_folder(source.parent)
    return target


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir()
        sync_folder(folder.parent)


def _is_ours_alone(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and status.st_nlink == 1


def _copy_whole(source: Path, target: Path) -> None:
    """Copy to another filesystem: temporary name, verify, fsync, then the final name."""
    with written_whole(target, overwrite=False) as temporary:
        shutil.copyfile(source, temporary)
        shutil.copystat(source, temporary)
        if hash_file(temporary) != hash_file(source):
            raise PipelineError(f"the copy of {source} in {target.parent} differs; check the disk")


def _rename_new(source: Path, target: Path) -> None:
    """Rename without overwriting, as far as the filesystem knows how to."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # no hard links here, such as on FAT; the name was free a moment ago
        source.rename(target)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where that is not possible."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copyfile(source, target)
