"""One archive of a home: written whole, with a digest of every member; read without trust.

A plain tar: any system lists it, models are compressed already, and one damaged place costs one
file. The manifest is the last member, so an archive that was cut off has none. Whatever it holds,
an archive writes nothing but the files that its manifest names, into the folders of a home.
Nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from retraining.errors import PipelineError, TryLaterError, stop_request
from retraining.files import UnusableFile, open_regular, sync_files, sync_folder
from retraining.text import printable

MANIFEST_NAME = "manifest.json"
SCHEMA = 1
MAX_MANIFEST_MB = 200.0
MODE = 0o600
BITS_KEPT = 0o755
DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Member:
    """One file of an archive."""

    sha256: str
    n_bytes: int


@dataclass(frozen=True)
class Description:
    """What an archive is of, and what is in it.

    Parameters
    ----------
    home
        The folder that it was made of.
    homes
        Where the embedded store says that its files lie; none if it is not in the archive.
    at
        When it was made.
    members
        Name below the home -> file.
    """

    home: str
    homes: tuple[str, ...]
    at: str
    members: Mapping[str, Member]

    def to_bytes(self) -> bytes:
        """Return it as JSON."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Description:
        """Read it.

        Raises
        ------
        ValueError
            If it is no such thing.
        """
        try:
            facts = json.loads(content)
            if facts["schema"] != SCHEMA:
                raise ValueError(f"has schema {facts['schema']}, this pipeline knows {SCHEMA}")
            members = {
                _checked_name(name): Member(_digest(one["sha256"]), _size(one["n_bytes"]))
                for name, one in facts["members"].items()
            }
            return cls(
                home=_text(facts["home"]),
                homes=tuple(_text(one) for one in facts["homes"]),
                at=_text(facts["at"]),
                members=members,
            )
        except (TypeError, LookupError, AttributeError, RecursionError) as error:
            raise ValueError(f"has a {MANIFEST_NAME} that cannot be read: {error}") from error

    @property
    def n_bytes(self) -> int:
        """Of all members."""
        return sum(one.n_bytes for one in self.members.values())


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _digest(value: Any) -> str:
    if not DIGEST.fullmatch(_text(value)):
        raise ValueError(f"has a member with the digest {value!r}")
    return str(value)


def _size(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"has a member of {value!r} bytes")
    return value


def _checked_name(name: str) -> str:
    """Refuse a name that leads out of the folder, or that says one place in two ways."""
    parts = _text(name).split("/")
    if "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"has a member of the name {name!r}")
    return name


# --- Writing ---


class Writer:
    """Adds files to an archive, and notes what they are.

    Parameters
    ----------
    path
        An empty file of ours.
    """

    def __init__(self, path: Path) -> None:
        self.members: dict[str, Member] = {}
        self._tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed below

    def add(self, path: Path, name: str) -> bool:
        """Add a file under a name below the home; say whether it is one.

        Raises
        ------
        TryLaterError
            If it changed while it was read.
        """
        stop_request.obey()
        try:
            with open_regular(path) as (stream, status):
                self._add(stream, name, status)
        except UnusableFile:
            return False
        return True

    def _add(self, stream: BinaryIO, name: str, status: os.stat_result) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mtime = status.st_size, status.st_mtime_ns / 1e9
        member.mode = stat.S_IMODE(status.st_mode) & BITS_KEPT
        hashed = _Hashed(stream)
        try:
            self._tar.addfile(member, hashed)
        except OSError as error:
            if error.errno is not None:  # of the disk; tarfile's own has none
                raise
            raise TryLaterError(f"{name} changed while it was read; run again") from error
        self.members[name] = Member(hashed.sha256.hexdigest(), status.st_size)

    def end(self, description: Description) -> None:
        """Write the manifest, and close the archive."""
        content = description.to_bytes()
        member = tarfile.TarInfo(MANIFEST_NAME)
        member.size, member.mode = len(content), MODE
        self._tar.addfile(member, io.BytesIO(content))
        self._tar.close()

    def close(self) -> None:
        """Close it without."""
        with contextlib.suppress(OSError, ValueError):
            self._tar.fileobj.close()


class _Hashed:
    """A stream that hashes what is read of it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.sha256 = stream, hashlib.sha256()

    def read(self, n_bytes: int = -1) -> bytes:
        content = self._stream.read(n_bytes)
        self.sha256.update(content)
        return content


# --- Reading ---


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[tarfile.TarFile, Description]]:
    """Give an archive and what it is.

    Raises
    ------
    PipelineError
        If it is none, was cut off, or holds what no home does.
    """
    try:
        with path.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            yield tar, _description(tar)
    except FileNotFoundError as error:
        raise PipelineError(f"there is no file {error.filename or path}") from error
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise PipelineError(
            f"{path} is no whole backup of a home: it {_what(error)}; nothing was changed"
        ) from error


def _what(error: Exception) -> str:
    return str(error) if type(error) is ValueError else f"cannot be read ({error})"


def _description(tar: tarfile.TarFile) -> Description:
    members = tar.getmembers()
    if not members or members[-1].name != MANIFEST_NAME or not members[-1].isreg():
        raise ValueError(
            f"does not end with a {MANIFEST_NAME}, so it was cut off or is another file"
        )
    if members[-1].size > MAX_MANIFEST_MB * 1e6:
        raise ValueError(f"has a {MANIFEST_NAME} of {members[-1].size} bytes")
    stream = tar.extractfile(members[-1])
    description = Description.from_bytes(stream.read() if stream else b"")
    found: dict[str, int] = {}
    for one in members[:-1]:
        # Stricter than the data filter of tarfile: plain files alone, under their exact names.
        if not one.isreg() or one.issparse() or one.name in found:
            raise ValueError(
                f"holds {printable(one.name)}, which is no plain file or is there twice"
            )
        found[_checked_name(one.name)] = one.size
    if found != {name: one.n_bytes for name, one in description.members.items()}:
        raise ValueError(f"does not hold what its {MANIFEST_NAME} says")
    return description


def extract(tar: tarfile.TarFile, description: Description, folder: Path) -> None:
    """Write all members into an empty folder of ours, each compared with its digest, durably.

    Raises
    ------
    PipelineError
        If the disk is too small.
    ValueError
        If a member differs.
    """
    free = shutil.disk_usage(folder).free
    if description.n_bytes > free:
        raise PipelineError(
            f"{folder.parent} has room for {free / 1e6:.0f} MB, the backup needs "
            f"{description.n_bytes / 1e6:.0f} MB; nothing was changed"
        )
    paths = []
    for one in tar.getmembers()[:-1]:
        stop_request.obey()
        path = folder / PurePosixPath(one.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(tar, one, path, description.members[one.name])
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"holds {printable(one.name)} as a file and as a folder") from error
        paths.append(path)
    sync_files(paths)
    for each in {folder, *(path.parent for path in paths)}:
        sync_folder(each)


def _write(tar: tarfile.TarFile, one: tarfile.TarInfo, path: Path, member: Member) -> None:
    stream = tar.extractfile(one)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(path, flags, one.mode & BITS_KEPT | MODE)
    with os.fdopen(descriptor, "wb") as target:
        hashed = _Hashed(stream)  # type: ignore[arg-type]
        shutil.copyfileobj(hashed, target)
    if hashed.sha256.hexdigest() != member.sha256:
        raise ValueError(f"holds {printable(one.name)}, which is not what was backed up")
    os.utime(path, (one.mtime, one.mtime))
