"""Let the store of a moved, copied or restored home point to it, in one crash-safe step.

A copy of the database is changed and checked, and every version's files are compared with what the
home's journal vouches for; then the journal says so, and the copy takes the place of the store.
Killed anywhere, the store is the old or the new one, and a second call ends it. MLflow is not
imported here: the schema may be that of another one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import sqlite3
import stat
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from retraining.errors import PipelineError, TryLaterError, stop_request
from retraining.files import SHA256, hash_file, sync_file, sync_folder
from retraining.journal import Entry, Home, Journal, Memory, who
from retraining.registry import places
from retraining.registry.facts import (
    PREVIOUS,
    PRODUCTION,
    TABLES,
    TAG_ARTIFACT_HASH,
    TAG_HOME,
    NotInRegistry,
    RegisteredVersion,
)
from retraining.registry.pruned import pruning_of
from retraining.registry.stored_models import MODEL_FILE, folder_digest, older_folder_digest
from retraining.registry.vouches import Vouches
from retraining.settings import Settings
from retraining.text import moment, now, printable

COPY_NAME = ".relocating.db"
IN_USE = (PRODUCTION, PREVIOUS)
"""Without the files of these a home is of no use."""


@dataclass(frozen=True)
class Relocated(Entry):
    """The store was verified and is about to point to where the home is now.

    Parameters
    ----------
    origin, to
        The home that it pointed to, and this one.
    as_copy
        Whether the home got an id of its own, because the original goes on.
    backup
        Name of the archive that the home was restored from; empty if from none.
    """

    KIND: ClassVar[str] = "relocated"
    origin: str
    to: str
    as_copy: bool
    at: str
    who: str
    backup: str = ""


@dataclass(frozen=True)
class Verified:
    """How the files of all versions compare with what is known of them.

    Parameters
    ----------
    n_whole
        Versions that are what they were.
    problems
        What is wrong with others, or that they were pruned, a sentence each.
    fatal
        Those of them that are of the versions in use.
    """

    n_whole: int
    problems: tuple[str, ...]
    fatal: tuple[str, ...]


def relocate(settings: Settings, *, as_copy: bool) -> list[str]:
    """Let the store of a home point to it; return what was done, in lines.

    Parameters
    ----------
    as_copy
        The original goes on: this home gets an id of its own.

    Raises
    ------
    PipelineError
        If the home is a copy and nobody said so, if a version in use is not whole, or the store
        is damaged; nothing is changed then.
    TryLaterError
        If another program has the store open.
    """
    database = places.own_database(settings)
    if database is None:
        raise PipelineError(
            f"the store {printable(settings.store_uri)} is not in {settings.home}: nothing in it "
            "depends on where the home is; nothing was changed"
        )
    if not database.is_file():
        raise NotInRegistry(f"there is no store at {database}; name the right home with --home")
    try:
        found = places.elsewhere(settings)
    except sqlite3.Error as error:
        raise places.unreadable(database, error) from error
    if found is None:
        _check_model(settings, database)
        return _in_place(settings, database, as_copy=as_copy)
    if found.shares_store:
        raise places.shared(settings, found)
    if found.original is not None and not as_copy:
        raise places.a_copy(settings, found.original)
    # Both are files of one disk, and the old one is the copy of a whole one.
    database = database.resolve()
    if _is_open_elsewhere(database):
        raise TryLaterError(
            f"{database} is open in another program, such as MLflow's pages: end that, then run "
            "this again; nothing was changed"
        )
    copy = database.with_name(COPY_NAME)
    try:
        places.copy_database(database, copy)
        remedy = (
            f"put back what it lacks, from {found.homes[0]} or from a backup, then run this again"
        )
        verified = prepare(settings, copy, found.homes, at=settings.home, remedy=remedy)
        _note(settings, found.homes[0], as_copy=as_copy)
        backup = _replace(database, copy)
    except sqlite3.Error as error:
        raise places.unreadable(database, error) from error
    finally:
        copy.unlink(missing_ok=True)
    lines = [
        f"relocated: {database} points to {settings.home} now, it pointed to {found.homes[0]}; "
        f"{verified.n_whole} versions are whole; the store as it was is {backup.name}"
    ]
    return [*lines, *verified.problems, *([HAS_ITS_OWN_ID] if as_copy else [])]


HAS_ITS_OWN_ID = "this home has an id of its own now: it and the original both go on"


def _check_model(settings: Settings, database: Path) -> None:
    """Refuse a name that the store does not know: its places tell nothing of the home then."""
    with places.opened(database) as store:
        names = [str(name) for (name,) in store.execute("SELECT name FROM registered_models")]
    if names and settings.model_name not in names:
        raise PipelineError(
            f"{database} holds no model {settings.model_name!r}, it holds: "
            f"{', '.join(printable(name) for name in names)}; name one with --model-name"
        )


def _in_place(settings: Settings, database: Path, *, as_copy: bool) -> list[str]:
    """Say that the store points here already; a restored home may yet need an id of its own."""
    said = f"{database} points to {settings.home} already"
    last = last_relocation(Journal(settings.home).read(), settings.home)
    if not as_copy or (last is not None and last.as_copy):
        return [f"{said}; nothing to do"]
    _note(settings, Path(last.origin) if last else settings.home, as_copy=True)
    return [said, HAS_ITS_OWN_ID]


def prepare(
    settings: Settings, database: Path, homes: tuple[Path, ...], *, at: Path, remedy: str
) -> Verified:
    """Change a copy of a store, and check it and what it points to.

    Parameters
    ----------
    settings
        With the home that it is to point to.
    database
        The copy.
    homes
        That it points to.
    at
        Where the files of the home are now, its journal among them.
    remedy
        What to do about a version in use that is not whole.

    Raises
    ------
    PipelineError
        If it is damaged, or a version in use is not whole.
    """
    places.rewrite(database, homes, settings.home)
    _close_runs(database, settings)
    if damaged := places.damage(database):
        raise PipelineError(
            f"the store is damaged ({damaged}): copy the home again while no command of the "
            "pipeline is at work, or restore it from an older backup; nothing was changed"
        )
    verified = verify(settings, database, at=at)
    if verified.fatal:
        raise PipelineError(f"{'; '.join(verified.fatal)}; {remedy}; nothing was changed")
    return verified


def _close_runs(database: Path, settings: Settings) -> None:
    """Close what a night had open when the home was moved or copied: it is none of this home."""
    with places.opened(database) as store, store:
        store.execute(
            "UPDATE runs SET status = 'KILLED', end_time = ? WHERE status = 'RUNNING' AND "
            "experiment_id IN (SELECT experiment_id FROM experiments WHERE name = ?) AND "
            "run_uuid IN (SELECT run_uuid FROM tags WHERE key = ?)",
            (round(time.time() * 1000), settings.model_name, TAG_HOME),
        )


def _note(settings: Settings, origin: Path, *, as_copy: bool) -> None:
    """Let the journal say what is about to happen; once, however often it is begun again."""
    memory = Journal(settings.home).read()
    last = last_relocation(memory)
    wanted = (str(origin), str(settings.home), as_copy)
    if last is not None and (last.origin, last.to, last.as_copy) == wanted:
        return
    append(settings.home, settings.home, origin, as_copy=as_copy)


def append(journal_of: Path, home: Path, origin: Path, *, as_copy: bool, backup: str = "") -> None:
    """Write into the journal in a folder that a home is elsewhere now.

    A home that has no journal gets none: its first command begins one with what verifies.
    """
    journal = Journal(journal_of)
    if not journal.read().number:
        return
    new_id = (Home(uuid.uuid4().hex),) if as_copy else ()
    entry = Relocated(str(origin), str(home), as_copy, now(), who(), backup)
    journal.append(*new_id, entry)


def last_relocation(memory: Memory, to: Path | None = None) -> Relocated | None:
    """Return the last time that a home was relocated, if that was to where it is."""
    found = memory.all(Relocated)
    if not found or (to is not None and found[-1].to != str(to)):
        return None
    return found[-1]


def _replace(database: Path, copy: Path) -> Path:
    """Put a checked copy in the place of the store; return where the old one is kept."""
    mode = stat.S_IMODE(database.stat().st_mode)
    backup = database.with_name(f"{database.name}.before_relocating.backup")
    kept = copy.with_suffix(".backup")
    for path, source in ((copy, None), (kept, database)):
        if source is not None:
            places.copy_database(source, path)
        path.chmod(mode)
        sync_file(path)
    kept.replace(backup)
    stop_request.obey()
    copy.replace(database)
    sync_folder(database.parent)
    return backup


def _is_open_elsewhere(path: Path) -> bool:
    """Ask the kernel whether another process has a file open; False where it cannot tell."""
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(descriptor)
    return False


# --- Are its versions whole? ---


def verify(settings: Settings, database: Path, *, at: Path) -> Verified:
    """Compare the files of all versions in a store with what the home vouches for, or their tags.

    Parameters
    ----------
    settings
        With the home that the store points to.
    at
        Where the files of that home are now.
    """
    memory = Journal(at).read()
    n_whole, problems, fatal = 0, [], []
    with places.opened(database) as store:
        for name, alias, place, version in _versions(store):
            stop_request.obey()
            named = dataclasses.replace(settings, model_name=name)
            checked = _Checked(named, memory, version, _files_of(store, version, named, at))
            folder = places.path_of(place, settings.home, at)
            broken = checked.problem(folder, place)
            wrong = broken or checked.pruned(folder)
            if not wrong:
                n_whole += 1
                continue
            text = f"version {version.number} of {printable(name)}"
            text += f", {alias.replace('_', ' ')}, is not whole: {wrong}" if alias else f": {wrong}"
            problems.append(text)
            # A pruned one lacks nothing that the move could have left behind.
            fatal += [text] if broken and alias in IN_USE else []
    return Verified(n_whole, tuple(problems), tuple(fatal))


def _versions(
    store: sqlite3.Connection,
) -> list[tuple[str, str, str, RegisteredVersion]]:
    """Return the name, the alias in use and the place of each version, and the version itself."""
    aliases: dict[tuple[str, int], str] = {}
    for name, alias, number in store.execute(
        "SELECT name, alias, version FROM registered_model_aliases"
    ):
        if aliases.get((name, int(number))) != PRODUCTION and alias in IN_USE:
            aliases[name, int(number)] = alias
    found = []
    rows = (
        "SELECT name, version, run_id, COALESCE(storage_location, source), creation_time FROM "
        "model_versions WHERE current_stage != 'Deleted_Internal' ORDER BY name, version"
    )
    for name, number, run_id, place, created in store.execute(rows).fetchall():
        tags = dict(
            store.execute(
                "SELECT key, value FROM model_version_tags WHERE name = ? AND version = ?",
                (name, number),
            ).fetchall()
        )
        version = RegisteredVersion(int(number), str(run_id or ""), tags, int(created or 0))
        found.append((name, aliases.get((name, int(number)), ""), str(place or ""), version))
    return found


def _files_of(
    store: sqlite3.Connection, version: RegisteredVersion, settings: Settings, at: Path
) -> Path | None:
    """Return where the tables of a version's run lie; None if they are not in this home."""
    row = store.execute(
        "SELECT artifact_uri FROM runs WHERE run_uuid = ?", (version.run_id,)
    ).fetchone()
    return places.path_of(str(row[0] or ""), settings.home, at) if row else None


@dataclass(frozen=True)
class _Checked:
    """A version, and what is known of its files."""

    settings: Settings
    memory: Memory
    version: RegisteredVersion
    tables: Path | None

    def problem(self, folder: Path | None, place: str) -> str:
        """Say what is wrong with its files; empty if nothing is, or nobody can tell from here."""
        if folder is None:
            is_local = bool(places.LOCAL.fullmatch(place))
            return f"its files are outside this home, at {printable(place)}" if is_local else ""
        if not folder.is_dir():
            return f"its files are missing at {folder}"
        is_known = self._expected and not self.pruned(folder)
        if is_known and self._expected not in _digests(folder):
            return f"the files at {folder} are not those that were registered"
        for tag, name in TABLES.items():
            path = self.tables / name if self.tables else None
            expected = self.version.tags.get(tag, "")
            if path is None or not SHA256.fullmatch(expected):  # a word says that it lacks a table
                continue
            if not path.is_file():
                return f"{name} is missing at {path}"
            if hash_file(path) != expected:
                return f"{path} is not what was registered"
        return ""

    def pruned(self, folder: Path | None) -> str:
        """Say when its model file was removed, as far as that is why it is not there."""
        if folder is None or (folder / MODEL_FILE).exists():
            return ""
        entry = pruning_of(self.version, self.memory, self.settings.model_name)
        if entry is None:
            return ""
        return f"pruned on {moment(entry.at)}: its {MODEL_FILE} is gone"

    @property
    def _expected(self) -> str:
        """Digest of its files: by the home's word, or by its tag where the home has none."""
        said = Vouches(self.settings).last(self.version, self.memory)
        return said.artifact_sha256 if said else self.version.tags.get(TAG_ARTIFACT_HASH, "")


def _digests(folder: Path) -> set[str | None]:
    with contextlib.suppress(OSError):
        return {folder_digest(folder), older_folder_digest(folder)}
    return set()
