"""Any file, whatever is in it: the lock, durable writes, hashes, safe reads and moves.

The one place that moves a file. A file is never overwritten and never lost: moves link the new
name before they remove the old one, so a crash leaves at worst two names of one file, which the
next tidying joins again. Nothing that others can put into a folder is followed or waited for, and
what they own and we may not move is left and told. Nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from retraining.errors import PipelineError, TryLaterError
from retraining.settings import Settings
from retraining.text import now, printable

LOCK_NAME = ".pipeline.lock"
TEMPORARY_PREFIX = ".pipeline-"
TEMPORARY_SUFFIX = ".tmp"
NO_FAULT_OF_LINKS = (
    *(errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ESTALE),
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO),
)
"""Every other number is how some filesystem says that it has no hard links."""
REFUSED = (errno.EACCES, errno.EPERM)
NO_MODES = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
"""How filesystems without owners and modes, such as CIFS and FAT, refuse to change them."""
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
LONGEST_NAME_BYTES = 230
"""Filesystems allow 255; the rest is room for a number and for the suffix of the reason."""
MOST_NUMBERED = 100
SEAL_BYTES = 64
SHA256 = re.compile(r"[0-9a-f]{64}")
SETTLE_SECONDS = 1.0
HOLDER_SECONDS = 0.2
HOLDER_LOOKS = 10
SYNCING_THREADS = 32
"""What they wait for together, the filesystem writes together."""
SHOWN_NAMES = 5
logger = logging.getLogger("pipeline")
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
FOR_OTHERS = stat.S_IRWXG | stat.S_IRWXO


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
    descriptor = _open_lock(path, os.O_RDWR | os.O_CREAT)
    try:
        keep_private(descriptor, os.fstat(descriptor))
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
        # For writing if we may: NFS gives no lock on any other descriptor.
        descriptor = _open_lock(path, os.O_RDWR, or_else=os.O_RDONLY)
    except FileNotFoundError:
        yield
        return
    try:
        _take_lock(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: Path, flags: int, or_else: int | None = None) -> int:
    """Open the lock file, which nobody else may open: whoever can read it can hold it."""
    foreign = PipelineError(
        f"the lock {path} belongs to another user; work as that user, or remove it if no command "
        "of the pipeline is at work"
    )
    try:
        descriptor = _open_itself(path, flags, 0o600)
    except OSError as error:
        if or_else is not None and error.errno in (*REFUSED, errno.EROFS):
            return _open_lock(path, or_else)
        if isinstance(error, PermissionError):
            raise foreign from error
        raise
    if os.geteuid() not in (os.fstat(descriptor).st_uid, 0):
        os.close(descriptor)
        raise foreign
    return descriptor


def keep_private(descriptor: int, status: os.stat_result) -> None:
    """Let nobody else read a file of ours, which an older edition may have left readable."""
    if status.st_uid == os.geteuid() and status.st_mode & FOR_OTHERS:
        set_mode(descriptor, 0o600)


def set_mode(descriptor: int, mode: int) -> None:
    """Change the mode of a file of ours where the filesystem has modes."""
    try:
        os.fchmod(descriptor, mode)
    except OSError as error:
        if error.errno not in NO_MODES:
            raise


def _take_lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # the second one on CIFS
        raise TryLaterError(
            f"{path} is held by {_holder(descriptor)}; wait for it to end"
        ) from error
    except OSError as error:
        if error.errno == errno.EBADF:
            raise PipelineError(
                f"{path} may only be read here, and NFS locks only what may be written: work as "
                "the user that owns it"
            ) from error
        if error.errno not in NO_LOCKS:
            raise
        raise PipelineError(
            f"the filesystem of {path} gives no lock ({error.strerror}), and two runs at once "
            "would do harm: move the home to a local disk, or mount it with locks (NFS: start "
            "rpc.statd on both sides, or mount with local_lock=flock where only this machine works)"
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


def sync_files(paths: Collection[Path]) -> None:
    """Make the contents of many files durable, at the cost of a few."""
    if len(paths) < SYNCING_THREADS:
        for path in paths:
            sync_file(path)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(SYNCING_THREADS) as threads:
        list(threads.map(sync_file, paths))


@contextlib.contextmanager
def written_whole(
    target: Path,
    *,
    mode: int = 0o644,
    durable: bool = True,
    overwrite: bool = True,
    prefix: str = TEMPORARY_PREFIX,
) -> Iterator[Path]:
    """Give the path of a temporary file, which becomes `target` whole when the block ends well.

    Parameters
    ----------
    mode
        The umask takes from it, as from that of folders and of what MLflow writes.
    durable
        Whether it must outlive a power cut.
    overwrite
        Whether it may take the place of another file; if not, FileExistsError.
    prefix
        Of the temporary file's name, by which it is found if this process dies.
    """
    temporary = target.with_name(f"{prefix}{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    os.close(_open_itself(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    try:
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


def write_many_durably(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files of a folder, each whole or not at all, and wait for the disk once."""
    with contextlib.ExitStack() as stack:
        temporaries = []
        for name, content in contents.items():
            temporary = stack.enter_context(written_whole(folder / name, durable=False))
            temporary.write_bytes(content)
            temporaries.append(temporary)
        sync_files(temporaries)
    sync_folder(folder)


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


def remove_left_overs(
    folder: Path,
    pattern: str = f"{TEMPORARY_PREFIX}*{TEMPORARY_SUFFIX}",
    *,
    shown: Path | None = None,
) -> None:
    """Remove half-written files of dead processes from one folder; leave and tell all others.

    Parameters
    ----------
    folder
        One that no process of ours writes to now; may be missing.
    shown
        Its name for people, if another one.
    """
    strange = []
    for left_over in sorted(folder.glob(pattern)):
        try:
            status = left_over.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                left_over.unlink()
            else:
                strange.append(left_over.name)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno not in (*REFUSED, errno.EISDIR):
                raise
            strange.append(left_over.name)
    tell_strange(strange, shown or folder)


def tell_strange(names: Collection[str], folder: Path) -> None:
    """Say what has a name of ours, and is not ours."""
    if names:
        logger.warning(
            "%s holds %s, which the pipeline did not make: left there; remove it",
            *(folder, listed(names)),
        )


def listed(names: Collection[str]) -> str:
    """Return some names, and how many more there are."""
    shown = ", ".join(printable(name) for name in sorted(names)[:SHOWN_NAMES])
    return f"{shown} and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else shown


# --- Folders of ours ---


class NotOurFolder(PipelineError):
    """Where a folder of ours belongs stands something else; nothing is read or written there."""


@contextlib.contextmanager
def own_folder(folder: Path, home: Path, *, make: bool = False) -> Iterator[Path]:
    """Give a path that stays this very folder, whatever is put in its place meanwhile.

    Parameters
    ----------
    folder
        Others may be able to put something in its place; it is never a link.
    home
        Whoever owns it may own the folder, too.
    make
        Make it if it is missing.

    Raises
    ------
    FileNotFoundError
        If it is missing.
    NotOurFolder
        With what stands there and what to do.
    """
    if make:
        make_folder(folder)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(folder, flags)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _not_ours(folder, "is a link" if folder.is_symlink() else "is no folder") from error
    try:
        if os.fstat(descriptor).st_uid not in (os.geteuid(), home.stat().st_uid):
            raise _not_ours(folder, "belongs to another user")
        held = Path(f"/proc/self/fd/{descriptor}")
        held = held if held.is_dir() else folder
        if not os.access(held, os.W_OK | os.X_OK):
            raise _not_ours(folder, "may not be written to")
        yield held
    except OSError as error:
        if str(error.filename).startswith("/proc/self/fd/"):
            error.filename = str(folder / Path(str(error.filename)).name)
        raise
    finally:
        os.close(descriptor)


def _not_ours(folder: Path, what: str) -> NotOurFolder:
    return NotOurFolder(
        f"{folder} {what}, where the pipeline keeps a folder of its own: move it away, the next "
        "command makes one that is right"
    )


def make_folder(folder: Path, mode: int = 0o755) -> None:
    """Make a folder and those above it that are missing, for no other user to write to.

    Raises
    ------
    NotOurFolder
        If it may not be made.
    """
    if os.path.lexists(folder):
        return
    make_folder(folder.parent, mode)
    try:
        folder.mkdir(mode=mode)
    except FileExistsError:
        return
    except OSError as error:
        if not (isinstance(error, PermissionError) or is_read_only(error)):
            raise
        what = f"cannot be made: {error.strerror}; let the pipeline's user write to"
        raise NotOurFolder(f"{folder} {what} {folder.parent}") from error
    sync_folder(folder.parent)


def is_open_to_others(folder: Path) -> bool:
    """Say whether another user can change what is in a folder; its user's own group is none."""
    status = folder.stat()
    if status.st_uid not in (os.geteuid(), 0) and os.geteuid() != 0:
        return True
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not _is_private_group(status)


def _is_private_group(status: os.stat_result) -> bool:
    """Say whether a folder's group is that of its user alone, as Debian gives each one."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    is_primary = (user.pw_gid, user.pw_name) == (group.gr_gid, group.gr_name)
    return is_primary and {*group.gr_mem} <= {user.pw_name}


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
) -> Iterator[tuple[BufferedReader, os.stat_result]]:
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
        if error.errno == errno.EAGAIN:
            what, remedy = "is held by another program", "wait until that lets it go"
            raise UnusableFile(what, remedy) from error
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


def hash_regular_file(path: Path) -> str:
    """Return the same of a file that others may have put there.

    Raises
    ------
    UnusableFile
        As `open_regular`.
    """
    with open_regular(path) as (stream, _):
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
    at_rest += [path for path, before in unsure if before and _size_and_time(path) == before]
    for path in sorted(set(paths) - set(at_rest)):
        logger.info("%s is still being written; left for the next run", path.name)
    return sorted(at_rest)


def _size_and_time(path: Path) -> tuple[int, int] | None:
    """Return what changes while a file is written; None if it is gone."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns


def _being_written(path: Path) -> bool | None:
    """Ask the kernel whether anybody has the file open for writing; None if it cannot tell."""
    if path.is_symlink() or not path.is_file():
        return False
    if not hasattr(fcntl, "F_SETLEASE"):
        return None
    try:
        descriptor = _open_itself(path)
    except OSError as error:
        return error.errno == errno.EAGAIN  # somebody holds a lease to write
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
    """Return the name, or NAME-1.csv, NAME-2.csv ... if it is taken; shortened if too long.

    After a hundred, something random in place of the number.
    """
    stem, suffix = Path(name).stem, Path(name).suffix
    if len(os.fsencode(name)) > LONGEST_NAME_BYTES:
        stem = os.fsencode(stem)[: LONGEST_NAME_BYTES - len(os.fsencode(suffix))].decode(
            errors="ignore"
        )
    candidate, number = f"{stem}{suffix}", 0
    while os.path.lexists(folder / candidate) or candidate in taken:
        number += 1
        # Thousands of one name would each be tried after the other.
        more = number if number <= MOST_NUMBERED else secrets.token_hex(4)
        candidate = f"{stem}-{more}{suffix}"
    return candidate


@dataclass(frozen=True)
class Moves:
    """What became of files that were to be moved.

    Parameters
    ----------
    moved
        Old path -> new one.
    left
        Old paths that are still there, and why; of those in `moved`, too, a copy was made.
    """

    moved: dict[Path, Path]
    left: dict[Path, str]


def move_files(names: Mapping[Path, str], folder: Path, *, own_inode: bool = False) -> Moves:
    """Move files into a folder without ever overwriting or losing one; wait for the disk once.

    Parameters
    ----------
    names
        The file, link or whatever stands there -> the wished name, its own if empty.
    folder
        Where they go, made if it is missing; if a wished name is taken, under a free one. A name
        that a crash has given to this very file already is no other one.
    own_inode
        Copy regular files that others may still write to, because they belong to somebody else or
        have a second name. The copy stays, also where the old name may not be removed.

    Notes
    -----
    The order of a move, for all of them at once: contents of copies, new names, then old names.
    What is gone is neither moved nor left.
    """
    make_folder(folder)
    moved: dict[Path, Path] = {}
    left: dict[Path, str] = {}
    twice = []
    with contextlib.ExitStack() as stack:
        copies = {}
        for source in names if own_inode else ():
            with _refusal_noted(source, left):
                if _needs_a_copy(source):
                    copies[source] = stack.enter_context(_copied(source, folder))
        sync_files(copies.values())
        for source, name in names.items():
            if source in left:
                continue
            with _refusal_noted(source, left):
                wished = folder / (name or source.name)
                moved[source], keeps_name = _named(source, wished, copies.get(source))
                if keeps_name:
                    twice.append(source)
    sync_folder(folder)
    for source in twice:
        with _refusal_noted(source, left):
            source.unlink()
        if source in left and not own_inode:
            moved.pop(source).unlink()
    for each in (folder, *{source.parent for source in names}):
        sync_folder(each)
    return Moves(moved, left)


@contextlib.contextmanager
def _refusal_noted(source: Path, left: dict[Path, str]) -> Iterator[None]:
    """Note a file that another user does not let us move; go on without one that is gone."""
    try:
        yield
    except FileNotFoundError:
        if os.path.lexists(source):
            raise
    except (OSError, UnusableFile) as error:
        is_other = isinstance(error, OSError) and error.errno not in (*REFUSED, errno.EXDEV)
        if is_other and not (is_read_only(error) and _on_read_only_mount(source.parent)):
            raise
        remedy = "let the pipeline's user own it or its folder"
        if is_read_only(error):
            remedy = f"mount {source.parent} for writing"
        left[source] = (
            f"may not be moved ({getattr(error, 'strerror', error)}): remove it, or {remedy}"
        )


def is_read_only(error: BaseException) -> bool:
    """Say whether a filesystem that is mounted read-only is the reason."""
    return isinstance(error, OSError) and error.errno == errno.EROFS


def _on_read_only_mount(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def are_on_one_mount(*folders: Path) -> bool:
    """Say whether hard links are possible between folders, as far as one can tell beforehand.

    Notes
    -----
    Two mounts of one disk have one device number, and still no links between them.
    """
    return len({_mount(folder) for folder in folders}) == 1


def _mount(folder: Path) -> tuple[int, str]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        device, number = os.fstat(descriptor).st_dev, ""
        with contextlib.suppress(OSError):  # Linux tells more
            lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
            number = next((line for line in lines if line.startswith("mnt_id:")), "")
    finally:
        os.close(descriptor)
    return device, number


def _needs_a_copy(source: Path) -> bool:
    """Say whether somebody else may still write to a regular file, or keeps its name there."""
    status = source.lstat()
    if not stat.S_ISREG(status.st_mode):
        return False
    is_ours_alone = status.st_uid == os.geteuid() and status.st_nlink == 1
    may_be_written = status.st_mode & stat.S_IWOTH or not os.access(source.parent, os.W_OK)
    return bool(not is_ours_alone or may_be_written)


def _named(source: Path, wished: Path, copy: Path | None) -> tuple[Path, bool]:
    """Give a file, or its copy, a new name; say whether the old one is still there."""
    status = source.lstat()
    if os.path.lexists(wished) and os.path.samestat(wished.lstat(), status):
        return wished, True
    while True:
        target = wished.with_name(free_name(wished.name, wished.parent))
        try:
            if copy is None:
                return target, _linked_or_renamed(source, target, status)
            _rename_new(copy, target)
        except FileExistsError:
            continue
        return target, True


def _linked_or_renamed(source: Path, target: Path, status: os.stat_result) -> bool:
    """Give a file a new name; return whether the old one is still there.

    Notes
    -----
    A file of another user is renamed at once: Linux forbids hard links to one that we may not
    write (protected_hardlinks), we may not be able to read it, and where its old name could not be
    removed, the rename fails as a whole.
    """
    is_plain, other_disk = stat.S_ISREG(status.st_mode), False
    if status.st_uid == os.geteuid():
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError as error:
            if error.errno in NO_FAULT_OF_LINKS:
                raise
            other_disk = error.errno == errno.EXDEV
        else:
            return True
    if not (other_disk and is_plain):
        try:
            source.rename(target)  # the name was free a moment ago
        except OSError as error:
            if error.errno != errno.EXDEV or not is_plain:
                raise
        else:
            return False
    with _copied(source, target.parent) as copy:
        sync_file(copy)
        _rename_new(copy, target)
    return True


@contextlib.contextmanager
def _copied(source: Path, folder: Path) -> Iterator[Path]:
    """Give a temporary copy of a regular file, verified, which no other user may write to."""
    descriptor, name = tempfile.mkstemp(
        dir=folder, prefix=TEMPORARY_PREFIX, suffix=TEMPORARY_SUFFIX
    )
    copy = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as target, open_regular(source) as (stream, status):
            shutil.copyfileobj(stream, target)
            target.flush()
            stream.seek(0)
            if hash_file(copy) != hashlib.file_digest(stream, "sha256").hexdigest():
                raise PipelineError(f"the copy of {source} in {folder} differs; check the disk")
            set_mode(target.fileno(), stat.S_IMODE(status.st_mode) & 0o755 | stat.S_IRUSR)
            with contextlib.suppress(PermissionError):  # as for modes
                os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _rename_new(source: Path, target: Path) -> None:
    """Rename without overwriting, as far as the filesystem knows how to."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # no hard links here, such as on FAT; the name was free a moment ago
        source.rename(target)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where that is not possible.

    Raises
    ------
    UnusableFile
        As `open_regular`, for what is no regular file and cannot be linked.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        with open_regular(source) as (stream, _), target.open("xb") as copy:
            shutil.copyfileobj(stream, copy)
