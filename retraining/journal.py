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
import getpass
import json
import logging
import os
import re
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, TypeVar

from retraining.errors import PipelineError
from retraining.files import (
    UnusableFile,
    belongs_to_us,
    hash_bytes,
    keep_private,
    open_regular,
    sync_folder,
)
from retraining.text import now

JOURNAL_NAME = ".pipeline_journal"
SCHEMA = 1
COPY, CORRECTION, WHOLE = "copy", "correction", "whole"
"""What takes the place of another file: the same in other bytes, other labels, or more of it."""
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
    """Which home this is, wherever it is moved to; made with the first line, anew for a copy."""

    KIND: ClassVar[str] = "home"
    id: str


@dataclass(frozen=True)
class Vouch(Entry):
    """The home vouches for a version: it stored or verified these files itself.

    Of two for one number the later one holds: MLflow gives the number of the newest version
    again when that is deleted.

    Parameters
    ----------
    digest
        Over all that decides about it; empty in a line of an older pipeline.
    reason, who, at
        Of a person who trusts it.
    """

    KIND: ClassVar[str] = "vouch"
    version: int
    artifact_sha256: str
    manifest_sha256: str
    run_id: str
    model_name: str
    digest: str = ""
    reason: str = ""
    who: str = ""
    at: str = ""


@dataclass(frozen=True)
class BecameProduction(Entry):
    """A version is about to become production, by a command of this home.

    Parameters
    ----------
    replaced
        The production version until now; None if there was none.
    cycle
        Id of the command; empty in a line of an older pipeline, as what follows.
    sequence
        Place in the order of changes, those of other homes among them.
    mean_error_before, mean_error_after
        Of both versions on the same recordings, in `unit`; None where not measured.
    from_by_hand
        Whether somebody had moved the alias to the replaced one, outside the pipeline: that is no
        version to go back to.
    """

    KIND: ClassVar[str] = "became_production"
    version: int
    replaced: int | None
    event: str
    model_name: str
    at: str
    cycle: str = ""
    sequence: int = 0
    mean_error_before: float | None = None
    mean_error_after: float | None = None
    unit: str = ""
    who: str = ""
    why: str = ""
    from_by_hand: bool = False


@dataclass(frozen=True)
class DidNotBecome(Entry):
    """A command that had noted `BecameProduction` died before it was so."""

    KIND: ClassVar[str] = "did_not_become"
    cycle: str


@dataclass(frozen=True)
class Arrival(Entry):
    """A content of a recording was seen for the first time; its place is the order of arrival.

    Parameters
    ----------
    again
        SHA-256 of a content that arrived before, is gone, and had the same observations or a part
        of them; empty for a recording that is new.
    """

    KIND: ClassVar[str] = "arrival"
    sha256: str
    identity: str
    name: str
    at: str
    again: str = ""


@dataclass(frozen=True)
class Replaced(Entry):
    """One content of a recording takes the place of another: written before files are moved.

    Parameters
    ----------
    sha256, old_sha256
        The content that stays, and the one that goes to used_gts/replaced/ as `kept_as`.
    source
        Where the new file lay, below the home.
    folder, name
        Where the old one lies, below the home, and the new one will.
    reason
        `COPY`, `CORRECTION` or `WHOLE`.
    labels_changed
        Of 1 labelled object, against the last content that a person stood for.
    by_person
        Whether somebody named it at a command line.
    """

    KIND: ClassVar[str] = "replaced"
    sha256: str
    old_sha256: str
    source: str
    folder: str
    name: str
    kept_as: str
    reason: str
    labels_changed: float
    by_person: bool
    at: str


@dataclass(frozen=True)
class Withdrawn(Entry):
    """A person took a recording out of the training data: written before its file is moved.

    Parameters
    ----------
    sha256, known
        Its content, and a row of `known_recordings` in base64: so it is recognised when nothing
        else is left of it.
    earlier
        Contents that it had before it was corrected.
    folder, name
        Where it lies, below the home; no folder if it was not at hand.
    kept_as
        Its name in withdrawn/; empty if it is to be deleted.
    """

    KIND: ClassVar[str] = "withdrawn"
    sha256: str
    known: str
    earlier: list[str]
    folder: str
    name: str
    kept_as: str
    reason: str
    who: str
    at: str

    @property
    def contents(self) -> tuple[str, ...]:
        """All that the recording ever was."""
        return (self.sha256, *self.earlier)


@dataclass(frozen=True)
class WithdrawalUndone(Entry):
    """A person took a withdrawal back."""

    KIND: ClassVar[str] = "withdrawal_undone"
    sha256: str
    who: str
    at: str


SomeEntry = TypeVar("SomeEntry", bound=Entry)


@dataclass(frozen=True)
class FirstSeen:
    """When the observations of a content first arrived, whatever they were saved as.

    Parameters
    ----------
    identity
        Their digest then: what a look names a recording by.
    night
        Number of the intake, from 0; recordings of one night have the same.
    """

    identity: str
    night: int


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
        return [one for one in self.in_order(kind) if isinstance(one, kind)]

    def in_order(self, *kinds: type[Entry]) -> list[Entry]:
        """Return the entries of some kinds, oldest first."""
        by_name = {kind.KIND: kind for kind in kinds}
        fields = {kind: {one.name for one in dataclasses.fields(kind)} for kind in kinds}
        wanted = [(by_name[one["kind"]], one) for one in self.found if one["kind"] in by_name]
        return [
            kind(**{name: value for name, value in one.items() if name in fields[kind]})
            for kind, one in wanted
        ]

    @property
    def home_id(self) -> str:
        """The home's id, the last one it got; empty for a journal that is yet to begin."""
        homes = self.all(Home)
        return homes[-1].id if homes else ""

    def and_then(self, *entries: Entry) -> Memory:
        """Return what the journal would hold with some more entries."""
        more = tuple({"kind": one.KIND, **asdict(one)} for one in entries)
        return dataclasses.replace(self, found=(*self.found, *more))

    def first_seen(self) -> dict[str, FirstSeen]:
        """Return SHA-256 -> when the recording first arrived; a correction inherits it."""
        found: dict[str, FirstSeen] = {}
        night, at = -1, ""
        for one in self.in_order(Arrival, Replaced):
            if isinstance(one, Replaced):
                if one.old_sha256 in found:
                    found[one.sha256] = found[one.old_sha256]
            elif isinstance(one, Arrival):
                if one.at != at:
                    night, at = night + 1, one.at
                new = FirstSeen(one.identity or one.sha256, night)
                found.setdefault(one.sha256, found.get(one.again, new))
        return found

    def withdrawn(self) -> dict[str, Withdrawn]:
        """Return the withdrawals that hold: SHA-256 -> withdrawal."""
        hold: dict[str, Withdrawn] = {}
        for one in self.in_order(Withdrawn, WithdrawalUndone):
            if isinstance(one, Withdrawn):
                hold[one.sha256] = one
            elif isinstance(one, WithdrawalUndone):
                hold.pop(one.sha256, None)
        return hold

    def replaced(self) -> dict[str, Replaced]:
        """Return SHA-256 of a content -> what took its place, the last time."""
        return {one.old_sha256: one for one in self.all(Replaced)}

    def earlier_contents(self, sha256: str) -> list[str]:
        """Return the contents whose place a recording's content took, the newest first."""
        before = {one.sha256: one.old_sha256 for one in self.all(Replaced)}
        found = [sha256]
        while before.get(found[-1], sha256) not in found:
            found.append(before[found[-1]])
        return found[1:]

    def productions(self, model_name: str) -> list[BecameProduction]:
        """Return what became production by commands of this home, the oldest first."""
        failed = {one.cycle for one in self.all(DidNotBecome)}
        return [
            one
            for one in self.all(BecameProduction)
            if one.model_name == model_name and not (one.cycle and one.cycle in failed)
        ]

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
                if flags & os.O_RDWR:
                    keep_private(stream.fileno(), status)
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


def who() -> str:
    """Return who is at work: the user, the machine, and whether a person is there."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in some containers
        user = f"uid {os.getuid()}"
    attended = sys.stdin is not None and sys.stdin.isatty()
    return f"{user}@{socket.gethostname()}, {'at a terminal' if attended else 'unattended'}"
