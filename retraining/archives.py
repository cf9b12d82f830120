"""One archive of many files: a tar whose last member names the SHA-256 of all others.

A plain tar: any system lists it, models are compressed already, and one damaged place costs one
file. Written whole or not at all; one that was cut off lacks its last member. Read without trusting
it: only plain files below one folder come out of it, no more and no larger ones than it names, and
none whose content is not the one that is named. Nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import shutil
import stat
import tempfile
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from retraining.errors import PipelineError, TryLaterError, stop_request
from retraining.files import (
    SHA256,
    TEMPORARY_PREFIX,
    UnusableFile,
    hash_bytes,
    open_regular,
    sync_files,
    sync_folder,
    written_whole,
)
from retraining.text import printable, size_text

if TYPE_CHECKING:
    import tarfile

CONTENTS = "archive.json"
"""The last member: what the archive is, and the digests of all others."""
SCHEMA = 1
MOST_FILES = 1_000_000
MOST_CONTENTS_BYTES = 200_000_000
LONGEST_READ = 4_000_000
"""tarfile reads what describes a member at once, however long it says that is."""
LONGEST_NAME = 4000
LONGEST_PART_BYTES = 255
PLAIN = (b"0", b"\0")
"""Types of members: a regular file, and as older programs wrote one."""
OWN_MODE = 0o600
MODE_KEPT = 0o755
Value = TypeVar("Value")


@dataclass(frozen=True)
class Member:
    """One file of an archive."""

    sha256: str
    n_bytes: int


class _Hashed:
    """A stream that hashes what is read of it."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._sha256 = stream, hashlib.sha256()

    def read(self, n_bytes: int = -1) -> bytes:
        """Read so much."""
        content: bytes = self._stream.read(n_bytes)
        self._sha256.update(content)
        return content

    @property
    def digest(self) -> str:
        """Of all that was read."""
        return self._sha256.hexdigest()


# --- Writing ---


class ArchiveWriter:
    """Adds files to an archive that is being written.

    Parameters
    ----------
    tar
        It, open.
    target
        Where it will be.
    temporary
        Where it is until then.
    """

    def __init__(self, tar: tarfile.TarFile, target: Path, temporary: Path) -> None:
        self._tar = tar
        self._target = target
        self.temporary = temporary
        self.files: dict[str, Member] = {}

    @property
    def n_bytes(self) -> int:
        """Of all files until now."""
        return sum(one.n_bytes for one in self.files.values())

    def add_bytes(self, name: str, content: bytes) -> None:
        """Add a content under a name such as folder/file."""
        self._add(name, io.BytesIO(content), len(content), OWN_MODE, 0.0)

    def add_file(self, name: str, path: Path) -> None:
        """Add a regular file, with its mode and time.

        Raises
        ------
        UnusableFile
            As `files.open_regular`.
        TryLaterError
            If it changed while it was read.
        """
        stop_request.obey()
        with open_regular(path) as (stream, status):
            mode = stat.S_IMODE(status.st_mode) & MODE_KEPT
            self._add(name, stream, status.st_size, mode, status.st_mtime_ns / 1e9)
            now = os.fstat(stream.fileno())
        if (now.st_size, now.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
            raise _changed(name)

    def add_folder(self, name: str, folder: Path) -> None:
        """Add all files below a folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.add_file(f"{name}/{path.relative_to(folder).as_posix()}", path)

    def _add(self, name: str, stream: Any, n_bytes: int, mode: int, mtime: float) -> None:
        if name in self.files or name == CONTENTS or not _is_plain(name):
            raise PipelineError(f"{printable(name)} cannot be a name in an archive")
        if len(self.files) >= MOST_FILES:
            raise _too_many()
        from tarfile import TarInfo

        member = TarInfo(name)
        member.size, member.mode, member.mtime = n_bytes, mode, mtime
        hashed = _Hashed(stream)
        with _told(self._target):
            try:
                self._tar.addfile(member, hashed)
            except OSError as error:
                if error.errno is None:  # tarfile's own: it ended before its length
                    raise _changed(name) from error
                raise
        self.files[name] = Member(hashed.digest, n_bytes)

    def end(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Add the last member, and close the archive."""
        from tarfile import TarInfo

        files = {name: asdict(one) for name, one in self.files.items()}
        text = {"schema": SCHEMA, "kind": kind, "facts": facts, "files": files}
        content = json.dumps(text, allow_nan=False).encode()
        if len(content) > MOST_CONTENTS_BYTES:
            raise _too_many()
        member = TarInfo(CONTENTS)
        member.size, member.mode = len(content), OWN_MODE
        self._tar.addfile(member, io.BytesIO(content))
        self._tar.close()


def _changed(name: str) -> TryLaterError:
    return TryLaterError(f"{printable(name)} changed while it was read; run again")


def _too_many() -> PipelineError:
    return PipelineError(f"an archive holds at most {MOST_FILES} files; nothing was written")


@contextlib.contextmanager
def archive_written(
    target: Path,
    kind: str,
    facts: Mapping[str, Any],
    *,
    outside: Collection[Path] = (),
    prefix: str = TEMPORARY_PREFIX,
) -> Iterator[ArchiveWriter]:
    """Give a writer of an archive, which is there whole when the block ends well.

    Parameters
    ----------
    kind
        What it is, in words such as "backup of a home": a reader asks for that.
    facts
        About all of it; what the block adds to them is written, too.
    outside
        Folders of a home in which the archive would be one of the files.
    prefix
        Of the temporary file's name, by which it is found if this process dies.

    Raises
    ------
    PipelineError
        If there is such a file, or it cannot be written; nothing is left of it.
    """
    import tarfile

    _check_target(target, outside)
    with contextlib.ExitStack() as stack:
        with _told(target):
            temporary = stack.enter_context(
                written_whole(target, mode=OWN_MODE, overwrite=False, prefix=prefix)
            )
            tar = tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - let go below
        stack.callback(_let_go, tar)
        writer = ArchiveWriter(tar, target, temporary)
        yield writer
        with _told(target):
            writer.end(kind, facts)
            stack.close()


def _check_target(target: Path, outside: Collection[Path]) -> None:
    """Refuse a place where no archive can be written, or none should be."""
    for folder in outside:
        if target.resolve().is_relative_to(folder.resolve()):
            raise PipelineError(
                f"{target} would lie in {folder}, a folder of the home; name a file elsewhere"
            )
    if not target.parent.is_dir():
        raise PipelineError(f"{target.parent} is not a folder; create it, or name another file")
    if os.path.lexists(target):
        raise PipelineError(f"{target} is there already; name another file, or remove it")


def _let_go(tar: tarfile.TarFile) -> None:
    """Close a file without writing anything more: a full disk would refuse once more."""
    with contextlib.suppress(OSError, ValueError):
        if tar.fileobj is not None:
            tar.fileobj.close()


@contextlib.contextmanager
def _told(target: Path) -> Iterator[None]:
    """Say which archive was not written, and why. What a caller's block raises is its own."""
    try:
        yield
    except FileExistsError as error:
        raise PipelineError(f"{target} is there by now; name another file") from error
    except OSError as error:
        raise PipelineError(
            f"{target} was not written: {error.strerror or error}; nothing is left of it"
        ) from error


# --- Reading ---


@dataclass(frozen=True)
class Archive:
    """An archive that is open: what it is, and what it holds.

    Parameters
    ----------
    kind, facts
        As they were written.
    files
        Name -> file: each of them is there, with this length, and nothing else is.
    sha256
        Of what names all digests: it stands for the whole archive.
    """

    path: Path
    kind: str
    facts: Mapping[str, Any]
    files: Mapping[str, Member]
    sha256: str
    _stream: BinaryIO

    @property
    def n_bytes(self) -> int:
        """Of all files."""
        return sum(one.n_bytes for one in self.files.values())

    def refused(self, what: str) -> PipelineError:
        """Return what is said of an archive with something that it must not have."""
        return PipelineError(f"{self.path} is no whole {self.kind}: it {what}; nothing was changed")

    def extract(self, folder: Path, *, to_stay: bool = False) -> None:
        """Write all files into an empty folder of ours, each compared with its digest.

        Parameters
        ----------
        to_stay
            Durably, with the modes and times that the files had.

        Raises
        ------
        PipelineError
            If the disk is too small, or a content is not the one that is named.
        """
        free = shutil.disk_usage(folder).free
        if self.n_bytes > free:
            raise PipelineError(
                f"{folder.parent} has room for {size_text(free)}, the {self.kind} needs "
                f"{size_text(self.n_bytes)}: make room there; nothing was changed"
            )
        paths = []
        with _refusing(self.path, self.kind):
            for tar, member in _members(self._stream):
                if member.name == CONTENTS:
                    break
                stop_request.obey()
                path = folder / member.name
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    self._write(tar, member, path, to_stay=to_stay)
                except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
                    raise _Refused(
                        f"holds {printable(member.name, 100)} as a file and as a folder, or twice"
                    ) from error
                paths.append(path)
            if len(paths) != len(self.files):
                raise _Refused("changed while it was read")
        if to_stay:
            sync_files(paths)
            for each in {folder, *(path.parent for path in paths)}:
                sync_folder(each)

    def _write(
        self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, *, to_stay: bool
    ) -> None:
        named = self.files.get(member.name)
        source = _Hashed(tar.extractfile(member))
        mode = member.mode & MODE_KEPT | OWN_MODE if to_stay else OWN_MODE
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, mode), "wb") as target:
            shutil.copyfileobj(source, target)
        if named != Member(source.digest, member.size):
            raise _Refused(f"holds {printable(member.name, 100)}, which is not what was put in")
        if to_stay:
            os.utime(path, (member.mtime, member.mtime))


@dataclass(frozen=True)
class Extracted:
    """What came out of an archive, verified.

    Parameters
    ----------
    folder
        A private one with its files.
    facts, sha256
        Of the archive.
    sizes
        Name -> bytes.
    """

    folder: Path
    facts: Mapping[str, Any]
    sizes: Mapping[str, int]
    sha256: str


@contextlib.contextmanager
def extracted(path: Path, kind: str, *, most_files: int = MOST_FILES) -> Iterator[Extracted]:
    """Give the files of an archive in a private folder, gone when the block ends.

    Raises
    ------
    PipelineError
        As `opened` and `Archive.extract`. Nothing outside that folder is written.
    """
    with (
        opened(path, kind, most_files=most_files) as archive,
        tempfile.TemporaryDirectory(prefix="pipeline-archive-") as name,
    ):
        archive.extract(Path(name))
        sizes = {name: one.n_bytes for name, one in archive.files.items()}
        yield Extracted(Path(name), archive.facts, sizes, archive.sha256)


@contextlib.contextmanager
def opened(path: Path, kind: str, *, most_files: int = MOST_FILES) -> Iterator[Archive]:
    """Give an archive that is whole, as far as lengths can tell.

    Parameters
    ----------
    kind
        Of which it must be.
    most_files
        That it may hold. They are never larger than the archive itself: nothing is compressed.

    Raises
    ------
    PipelineError
        If it is not there, is no such archive, was cut off, or holds what is no plain file.
    """
    with contextlib.ExitStack() as stack:
        try:
            with _refusing(path, kind):
                stream, status = stack.enter_context(open_regular(path))
                found, content = _looked_through(stream, status.st_size, most_files)
                facts, files = _told_by(content, kind)
                named = {name: one.n_bytes for name, one in files.items()}
                if found != named:
                    wrong = sorted({*named.items()} ^ {*found.items()})[0][0]
                    raise _Refused(f"does not hold what {CONTENTS} tells: {printable(wrong, 100)}")
        except FileNotFoundError as error:
            raise PipelineError(f"there is no file {path}") from error
        yield Archive(path, kind, facts, files, hash_bytes(content), stream)


class _Refused(ValueError):
    """What must not be in an archive; its text goes on after "it"."""


@contextlib.contextmanager
def _refusing(path: Path, kind: str) -> Iterator[None]:
    """Say of an archive that cannot be read why that is, whatever it made tarfile do."""
    import tarfile

    try:
        yield
    except (tarfile.TarError, EOFError, ValueError, OverflowError, LookupError) as error:
        what = f"cannot be read ({printable(error, 200)})"
        if isinstance(error, _Refused):
            what = str(error)
        elif isinstance(error, UnusableFile):
            what = error.what
        raise PipelineError(f"{path} is no whole {kind}: it {what}; nothing was changed") from error
    except RecursionError as error:
        raise PipelineError(
            f"{path} is no whole {kind}: it is nested too deeply; nothing was changed"
        ) from error


class _ShortReads:
    """A stream that gives no more at once than a member's content is read with."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, n_bytes: int = -1) -> bytes:
        """Read so much.

        Raises
        ------
        _Refused
            If it is more than any description needs.
        """
        if not 0 <= n_bytes <= LONGEST_READ:
            raise _Refused("has a member with a description that is too long")
        return self._stream.read(n_bytes)

    def seek(self, place: int) -> int:
        """Go to a place."""
        return self._stream.seek(place)

    def tell(self) -> int:
        """Return the place."""
        return self._stream.tell()


def _members(stream: BinaryIO) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Give the members of an archive from its beginning, plain files all of them.

    Raises
    ------
    _Refused
        Where one is none.
    """
    import tarfile

    stream.seek(0)
    with tarfile.open(fileobj=_ShortReads(stream), mode="r:") as tar:  # type: ignore[call-overload]
        for member in tar:
            tar.members = []  # it would keep them all
            # One with holes, of which tarfile reads some from a text, would be as long as it says.
            if (
                member.type not in PLAIN
                or member.sparse is not None
                or member.size < 0
                or not _is_plain(member.name)
            ):
                raise _Refused(f"holds {printable(member.name, 100)}, which is no plain file")
            yield tar, member


def _looked_through(
    stream: BinaryIO, most_bytes: int, most_files: int
) -> tuple[dict[str, int], bytes]:
    """Return name -> bytes of the members of an archive, and the last one."""
    found: dict[str, int] = {}
    for tar, member in _members(stream):
        if member.size > most_bytes:
            raise _Refused(f"holds {printable(member.name, 100)}, which is longer than itself")
        if member.name == CONTENTS:
            if member.size > MOST_CONTENTS_BYTES:
                raise _Refused(f"has a {CONTENTS} of {size_text(member.size)}")
            content = io.BytesIO()
            shutil.copyfileobj(typing.cast("typing.IO[bytes]", tar.extractfile(member)), content)
            return found, content.getvalue()
        if member.name in found or len(found) >= most_files:
            raise _Refused(f"holds a name twice, or more than {most_files} files")
        found[member.name] = member.size
    raise _Refused(f"does not end with {CONTENTS}, so it was cut off or is another file")


def _told_by(content: bytes, kind: str) -> tuple[Mapping[str, Any], dict[str, Member]]:
    """Return the facts and the files that the last member names."""
    try:
        told = json.loads(content)
        schema, found = told["schema"], told["kind"]
        if schema != SCHEMA:
            raise _Refused(f"has schema {printable(schema, 60)}, this pipeline knows {SCHEMA}")
        if found != kind:
            raise _Refused(f"is another archive: {printable(found, 60)}")
        files = {
            name: Member(_digest(one["sha256"]), _size(one["n_bytes"]))
            for name, one in told["files"].items()
        }
        return dict(told["facts"]), files
    except _Refused:
        raise
    except (TypeError, LookupError, AttributeError, RecursionError, ValueError) as error:
        raise _Refused(f"has a {CONTENTS} that cannot be read") from error


def _digest(value: Any) -> str:
    if not SHA256.fullmatch(checked(value, str)):
        raise ValueError(f"{value!r} is no digest")
    return str(value)


def _size(value: Any) -> int:
    if checked(value, int) < 0:
        raise ValueError(f"{value} is no length")
    return int(value)


def _is_plain(name: str) -> bool:
    """Say whether a name leads to a file below a folder, and nowhere else."""
    parts = name.split("/")
    return (
        0 < len(name) <= LONGEST_NAME
        and max(len(os.fsencode(part)) for part in parts) <= LONGEST_PART_BYTES
        and not {"", ".", ".."} & {*parts}
        and "\0" not in name
    )


# --- Values that come from JSON, not trusted ---


def read_as(kind: type[Value], found: Mapping[str, Any]) -> Value:
    """Return a dataclass of values that come from JSON; names that it does not know are left out.

    Raises
    ------
    TypeError
        If a value is of another type than its field, or one is missing.
    """
    hints = typing.get_type_hints(kind)
    fields = [one.name for one in dataclasses.fields(kind) if one.name in found]  # type: ignore[arg-type]
    return kind(**{name: checked(found[name], hints[name]) for name in fields})


def checked(value: Any, hint: Any) -> Any:
    """Return a value that is of a type.

    Raises
    ------
    TypeError
        If it is of another one.
    """
    if not _is_of(value, hint):
        raise TypeError(f"{str(value)[:60]!r} is no {getattr(hint, '__name__', hint)}")
    return value


def _is_of(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(value, one) for one in inner)
    if origin is list:
        return type(value) is list and all(_is_of(one, inner[0]) for one in value)
    if origin is dict:
        return type(value) is dict and all(_is_of(one, inner[1]) for one in value.values())
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return value is None if hint is types.NoneType else type(value) is hint
