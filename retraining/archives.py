"""One archive of many files: a tar whose last member names the SHA-256 of all others.

Written whole or not at all. Read without trusting it: only plain files below one folder come out of
it, no more and no larger ones than allowed, and none whose content is not the one that is named.
Nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from retraining.errors import PipelineError
from retraining.files import UnusableFile, hash_bytes, open_regular, written_whole
from retraining.text import printable

if TYPE_CHECKING:
    import tarfile

CONTENTS = "archive.json"
"""The last member: what the archive is, and the digests of all others."""
SCHEMA = 1
MOST_CONTENTS_BYTES = 200_000_000
LONGEST_READ = 4_000_000
"""tarfile reads what describes a member at once, however long it says that is."""
LONGEST_NAME = 1000
LONGEST_PART_BYTES = 255
PLAIN = (b"0", b"\0")
"""Types of members: a regular file, and as older programs wrote one."""


# --- Writing ---


class ArchiveWriter:
    """Adds files to an archive that is being written."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._files: dict[str, dict[str, Any]] = {}

    def add_bytes(self, name: str, content: bytes) -> None:
        """Add a content under a name such as folder/file."""
        self._add(name, io.BytesIO(content), len(content), hash_bytes(content))

    def add_file(self, name: str, path: Path) -> None:
        """Add a regular file.

        Raises
        ------
        UnusableFile
            As `files.open_regular`.
        """
        with open_regular(path) as (stream, status):
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            stream.seek(0)
            self._add(name, stream, status.st_size, digest)

    def add_folder(self, name: str, folder: Path) -> None:
        """Add all files below a folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.add_file(f"{name}/{path.relative_to(folder).as_posix()}", path)

    def _add(self, name: str, stream: Any, n_bytes: int, sha256: str) -> None:
        if name in self._files or not _is_plain(name):
            raise PipelineError(f"{printable(name)} cannot be a name in an archive")
        from tarfile import TarInfo

        member = TarInfo(name)
        member.size, member.mode = n_bytes, 0o600
        self._tar.addfile(member, stream)
        self._files[name] = {"sha256": sha256, "n_bytes": n_bytes}

    def contents(self, kind: str, facts: Mapping[str, Any]) -> bytes:
        """Return the last member."""
        text = {"schema": SCHEMA, "kind": kind, "facts": facts, "files": self._files}
        return json.dumps(text, allow_nan=False).encode()


@contextlib.contextmanager
def archive_written(
    target: Path, kind: str, facts: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[ArchiveWriter]:
    """Give a writer of an archive, which is there whole when the block ends well.

    Parameters
    ----------
    kind
        What it holds: a reader asks for that.
    facts
        About all of it; what the block adds to them is written, too.

    Raises
    ------
    FileExistsError
        If it may not be overwritten and is there.
    """
    import tarfile

    if not overwrite and target.exists():
        raise FileExistsError(target)
    with (
        written_whole(target, mode=0o600, overwrite=overwrite) as temporary,
        tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar,
    ):
        writer = ArchiveWriter(tar)
        yield writer
        content = writer.contents(kind, facts)
        member = tarfile.TarInfo(CONTENTS)
        member.size, member.mode = len(content), 0o600
        tar.addfile(member, io.BytesIO(content))


# --- Reading ---


@dataclass(frozen=True)
class Archive:
    """What came out of an archive, verified.

    Parameters
    ----------
    folder
        A private one with its files.
    facts
        About all of it.
    sizes
        Name -> bytes.
    sha256
        Of what names all digests: it stands for the whole archive.
    """

    folder: Path
    facts: Mapping[str, Any]
    sizes: Mapping[str, int]
    sha256: str


@contextlib.contextmanager
def extracted(path: Path, kind: str, *, most_files: int) -> Iterator[Archive]:
    """Give the files of an archive in a private folder, gone when the block ends.

    Parameters
    ----------
    kind
        Of which it must be.
    most_files
        That it may hold. They are never larger than the archive itself: nothing is compressed.

    Raises
    ------
    PipelineError
        If it is not there, is no such archive, holds what is no plain file, is larger, or if a
        content is not the one that is named. Nothing outside that folder is written.
    """
    import tarfile

    with tempfile.TemporaryDirectory(prefix="pipeline-archive-") as name:
        folder = Path(name)
        try:
            with open_regular(path) as (stream, status):
                found, content = _unpacked(stream, folder, most_files, status.st_size)
            facts, sizes = _verified(content, found, kind)
        except FileNotFoundError as error:
            raise PipelineError(f"there is no archive {path}") from error
        except (tarfile.TarError, UnusableFile, _Refused, EOFError) as error:
            raise PipelineError(
                f"{path} is no whole archive of this kind: {printable(error, 300)}; nothing was "
                "read of it, make it again"
            ) from error
        yield Archive(folder, facts, sizes, hash_bytes(content))


class _Refused(ValueError):
    """What must not be in an archive."""


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
            raise _Refused("a member has a description that is too long")
        return self._stream.read(n_bytes)

    def seek(self, place: int) -> int:
        """Go to a place."""
        return self._stream.seek(place)

    def tell(self) -> int:
        """Return the place."""
        return self._stream.tell()


def _unpacked(
    stream: BinaryIO, folder: Path, most_files: int, most_bytes: int
) -> tuple[dict[str, tuple[str, int]], bytes]:
    """Write the members into a folder; return name -> digest and bytes, and the last one."""
    import tarfile

    found: dict[str, tuple[str, int]] = {}
    with tarfile.open(fileobj=_ShortReads(stream), mode="r:") as tar:  # type: ignore[call-overload]
        for member in tar:
            tar.members = []  # it would keep them all
            # One with holes, of which tarfile reads some from a text, would be as long as it says.
            if (
                member.type not in PLAIN
                or member.sparse is not None
                or member.size > most_bytes
                or not _is_plain(member.name)
            ):
                raise _Refused(f"{printable(member.name, 100)} is no plain file")
            source = tar.extractfile(member)
            if source is None:
                raise _Refused(f"{printable(member.name, 100)} is no plain file")
            if member.name == CONTENTS:
                if member.size > MOST_CONTENTS_BYTES:
                    raise _Refused(f"{CONTENTS} is too long")
                content = io.BytesIO()
                shutil.copyfileobj(source, content)
                return found, content.getvalue()
            if member.name in found or len(found) >= most_files:
                raise _Refused(f"it holds a name twice, or more than {most_files} files")
            target = folder / member.name
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as copy:
                    shutil.copyfileobj(source, copy)
            except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
                raise _Refused(f"{printable(member.name, 100)} is a file and a folder") from error
            with target.open("rb") as copied:
                digest = hashlib.file_digest(copied, "sha256").hexdigest()
            found[member.name] = digest, target.stat().st_size
    raise _Refused(f"{CONTENTS} is missing: it is not complete")


def _verified(
    content: bytes, found: Mapping[str, tuple[str, int]], kind: str
) -> tuple[Mapping[str, Any], dict[str, int]]:
    """Compare what was unpacked with what is named; return the facts, and name -> bytes."""
    try:
        told = json.loads(content)
        schema, files = told["schema"], told["files"]
        if schema != SCHEMA or told["kind"] != kind:
            raise _Refused(f"it is of kind {printable(told['kind'], 60)}, schema {schema}")
        named = {name: (one["sha256"], one["n_bytes"]) for name, one in files.items()}
        facts = dict(told["facts"])
    except (TypeError, LookupError, AttributeError, RecursionError) as error:
        raise _Refused(f"{CONTENTS} cannot be read") from error
    except _Refused:
        raise
    except ValueError as error:
        raise _Refused(f"{CONTENTS} cannot be read") from error
    if named != dict(found):
        wrong = sorted({*named.items()} ^ {*found.items()})
        raise _Refused(f"{printable(wrong[0][0], 100)} is not what {CONTENTS} tells")
    return facts, {name: n_bytes for name, (_, n_bytes) in found.items()}


def _is_plain(name: str) -> bool:
    """Say whether a name leads to a file below a folder, and nowhere else."""
    parts = name.split("/")
    return (
        0 < len(name) <= LONGEST_NAME
        and max(len(os.fsencode(part)) for part in parts) <= LONGEST_PART_BYTES
        and not {"", ".", ".."} & {*parts}
        and "\0" not in name
    )
