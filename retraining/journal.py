"""What a home remembers beside the registry, in one file that is only ever appended to.

One line is one append: a JSON object with a schema version, a running number, a checksum that
chains it to the line before, and its entries. Each append is on the disk when the call returns. A
last line that a crash or a power cut left unfinished was never relied upon and is dropped; any
other line that is not what was written stops everything with a message, so that nothing damaged
is ever believed. The file is its owner's alone (0600) and is never opened through a link.

A new kind of entry is one frozen dataclass with a `KIND`, here or where it is used::

    @dataclass(frozen=True)
    class Arrival(Entry):
        KIND: ClassVar[str] = "arrival"
        sha256: str
        name: str = ""  # a field that came later needs a default

    journal.append(Arrival(sha256))
    journal.read().all(Arrival)

Kinds and fields that this code does not know, of a newer one, stay in the file and are left out;
what older code must not read raises `SCHEMA`. Nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, TypeVar

from retraining.errors import PipelineError
from retraining.files import UnusableFile, belongs_to_us, hash_bytes, open_regular, sync_folder
from retraining.text import now

JOURNAL_NAME = ".pipeline_journal"
SCHEMA = 1
LINE = re.compile(rb'\{"chain": "([0-9a-f]{64})", (.+)')
"""The checksum is over the very bytes that follow it: nothing has to be written the same again."""
NO_LINE_BEFORE = "0" * 64
OURS_ALONE = (
    "it must be a file of the pipeline's user that no other may write: make it one (chown, "
    "chmod 600) if you trust it"
)
logger = logging.getLogger("pipeline")


@dataclass(frozen=True)
class Entry:
    """Something that a home remembers: fields of texts, numbers, truths, None and lists of them."""

    KIND: ClassVar[str] = ""


@dataclass(frozen=True)
class Home(Entry):
    """Which home this is, wherever it is moved to; made once, with the first line."""

    KIND: ClassVar[str] = "home"
    id: str


@dataclass(frozen=True)
class Vouch(Entry):
    """The home vouches for a version: these are the files that it verified itself.

    Of two for one number the later one holds: MLflow gives the number of the newest version
    again when that is deleted.
    """

    KIND: ClassVar[str] = "vouch"
    version: int
    artifact_sha256: str
    manifest_sha256: str
    run_id: str
    model_name: str


SomeEntry = TypeVar("SomeEntry", bound=Entry)


@dataclass(frozen=True)
class Memory:
    """What a journal held when it was read.

    Parameters
    ----------
    found
        The entries as they are written, oldest first.
    number
        How many appends there were; 0 for a journal that is yet to begin.
    chain
        Checksum of the last one.
    n_bytes
        Length of what is whole.
    """

    found: tuple[Mapping[str, Any], ...] = ()
    number: int = 0
    chain: str = NO_LINE_BEFORE
    n_bytes: int = 0

    def all(self, kind: type[SomeEntry]) -> list[SomeEntry]:
        """Return the entries of one kind, oldest first."""
        names = {field.name for field in dataclasses.fields(kind)}
        return [
            kind(**{name: value for name, value in one.items() if name in names})
            for one in self.found
            if one["kind"] == kind.KIND
        ]

    @property
    def home_id(self) -> str:
        """The home's id; empty for a journal that is yet to begin."""
        homes = self.all(Home)
        return homes[0].id if homes else ""

    def vouches(self, model_name: str) -> dict[int, Vouch]:
        """Return what this home vouches for of a registered model: number of a version -> vouch."""
        return {one.version: one for one in self.all(Vouch) if one.model_name == model_name}


@dataclass(frozen=True)
class Journal:
    """The journal in a home folder.

    Parameters
    ----------
    home
        The folder.
    """

    home: Path

    @property
    def path(self) -> Path:
        """Its file."""
        return self.home / JOURNAL_NAME

    def read(self) -> Memory:
        """Return what the home remembers; nothing of a journal that is not there.

        Raises
        ------
        PipelineError
            If it is no file of ours alone, was damaged, or is of a newer pipeline.
        """
        try:
            with self._opened(os.O_RDONLY) as stream:
                return self._memory(stream.read())
        except FileNotFoundError:
            return Memory()

    def append(self, *entries: Entry) -> None:
        """Remember entries, all or none of them; the caller holds the home's lock.

        Raises
        ------
        PipelineError
            As `read`; nothing is written then.
        OSError
            If the disk refuses; the journal is what it was.
        """
        with self._opened(os.O_RDWR | os.O_APPEND | os.O_CREAT) as stream:
            descriptor, content = stream.fileno(), stream.read()
            memory = self._memory(content)
            # A killed process may have left a line that is on no disk yet: first that one.
            os.fsync(descriptor)
            if memory.n_bytes < len(content):
                logger.info("%s: a line that a crash left unfinished is dropped", self.path)
                os.ftruncate(descriptor, memory.n_bytes)
            begun = () if memory.number else (Home(uuid.uuid4().hex),)
            try:
                _write_all(descriptor, _line(memory, (*begun, *entries)))
                os.fsync(descriptor)
            except BaseException:
                with contextlib.suppress(OSError):  # then the next append drops it
                    os.ftruncate(descriptor, memory.n_bytes)
                raise
        sync_folder(self.home)  # for its name, which the first line needs

    # --- Its file ---

    @contextlib.contextmanager
    def _opened(self, flags: int) -> Iterator[BinaryIO]:
        """Give a stream of the file, which is ours and no link."""
        try:
            with open_regular(self.path, flags, 0o600) as (stream, status):
                if not belongs_to_us(status):
                    other_owner = status.st_uid != os.geteuid()
                    found = "belongs to another user" if other_owner else "can be written by others"
                    raise self._refused(found, OURS_ALONE)
                yield stream
        except UnusableFile as error:
            raise self._refused(error.what, OURS_ALONE) from error

    def _refused(self, found: str, remedy: str) -> PipelineError:
        return PipelineError(
            f"the journal {self.path} {found}; {remedy}, or move it away: the next run begins a "
            "new one with what verifies in the registry"
        )

    def _memory(self, content: bytes) -> Memory:
        """Check every line against the one before; leave out a last one that is unfinished."""
        *lines, rest = content.split(b"\n")
        # Where a power cut left a length without its bytes, there are zeros.
        if lines and not rest and b"\0" in lines[-1]:
            del lines[-1]
        chain, n_bytes = NO_LINE_BEFORE, 0
        found: list[Mapping[str, Any]] = []
        for number, line in enumerate(lines, 1):
            facts = self._parsed(line, number, chain)
            found += facts["entries"]
            chain = facts["chain"]
            n_bytes += len(line) + 1
        return Memory(tuple(found), len(lines), chain, n_bytes)

    def _parsed(self, line: bytes, number: int, chain_before: str) -> Mapping[str, Any]:
        try:
            facts = json.loads(line)
            schema = facts["schema"]
        except (ValueError, TypeError, LookupError, RecursionError):
            facts, schema = {}, SCHEMA
        if isinstance(schema, int) and schema > SCHEMA:
            raise PipelineError(
                f"the journal {self.path} was written by a newer pipeline (line {number} has "
                f"schema {schema}, this one knows {SCHEMA}); use the newer one"
            )
        parts = LINE.fullmatch(line)
        if not parts or parts[1].decode() != _chained(chain_before, parts[2]):
            raise self._refused(
                f"is damaged or was edited: line {number} is not what was written",
                "restore it from a backup",
            )
        return facts


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _line(before: Memory, entries: tuple[Entry, ...]) -> bytes:
    facts = {
        "schema": SCHEMA,
        "number": before.number + 1,
        "at": now(),
        "entries": [{"kind": entry.KIND, **asdict(entry)} for entry in entries],
    }
    body = json.dumps(facts, allow_nan=False).encode()[1:]
    return b'{"chain": "%s", %s\n' % (_chained(before.chain, body).encode(), body)


def _chained(before: str, body: bytes) -> str:
    """Return the checksum of a line: over that of the line before and its own bytes."""
    return hash_bytes(before.encode() + b" " + body)
