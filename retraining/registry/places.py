"""Where the store of a home says that files lie, and whether that is this home.

MLflow writes absolute places into its database. A home that was moved or copied must not believe
them: it would load nothing, or write into the original. Only a place that lies in a home's layout
(FOLDER/mlflow_server/artifacts/...) says which home it is of; people may keep experiments of their
own wherever they like. Nothing heavy is imported here, and nothing of MLflow.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from retraining.errors import PipelineError, TryLaterError
from retraining.files import set_mode
from retraining.journal import JOURNAL_NAME, Home, Journal
from retraining.settings import Settings

LAYOUT = "/mlflow_server/artifacts"
"""Between a home and a place of it; no scheme of percent-encoding changes it."""
LOCAL = re.compile(r"(?:file:(?://[^/]*)?)?(/.*)", re.DOTALL)
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("workspaces", "default_artifact_root"),
    ("workspaces", "trace_archival_location"),
)
"""Columns of places."""
TAGGED = (
    ("trace_tags", "mlflow.artifactLocation"),
    ("trace_tags", "mlflow.trace.archiveLocation"),
    ("tags", "mlflow.log-model.history"),
)
"""Tables of tags, and the key of those whose value is or holds a place."""
OF_THE_MODEL = (
    "SELECT artifact_location FROM experiments WHERE name = :name",
    "SELECT artifact_uri FROM runs WHERE substr(artifact_uri, 1, :length) != :ours AND "
    "experiment_id IN (SELECT experiment_id FROM experiments WHERE name = :name)",
    "SELECT artifact_location FROM logged_models WHERE substr(artifact_location, 1, :length) "
    "!= :ours AND experiment_id IN (SELECT experiment_id FROM experiments WHERE name = :name)",
    "SELECT source FROM model_versions WHERE name = :name",
    "SELECT storage_location FROM model_versions WHERE name = :name",
)
COPY_AGAIN = (
    "copy the home again while no command of the pipeline is at work, or restore it from a "
    "backup; nothing was changed"
)
NO_SUCH_TABLE = re.compile("no such (table|column)")


@dataclass(frozen=True)
class Elsewhere:
    """What a home's store says of another home.

    Parameters
    ----------
    homes
        The folders that it points to, the one of the experiment first.
    original
        One of them that is still there: this home is a copy of it. None if it was moved.
    shares_store
        Whether the original uses this very file.
    """

    homes: tuple[Path, ...]
    original: Path | None
    shares_store: bool


def own_database(settings: Settings) -> Path | None:
    """Return the store that belongs to a home; None for a server's and for a file of others."""
    if settings.has_own_store or not settings.tracking_uri:
        return settings.database
    return None


def check(settings: Settings) -> None:
    """Refuse a home whose store points to another one; costs about a millisecond.

    Raises
    ------
    PipelineError
        With the command that mends it.
    """
    try:
        found = elsewhere(settings)
    except sqlite3.Error:  # who opens the store says what is wrong with it
        return
    if found is None:
        return
    if found.shares_store:
        raise shared(settings, found)
    if found.original is not None:
        raise a_copy(settings, found.original)
    raise PipelineError(
        f"{settings.home} was moved: its store points to {found.homes[0]}, which is no more; run: "
        "python pipeline_orchestrator.py relocate"
    )


def a_copy(settings: Settings, original: Path) -> PipelineError:
    """Return what is said of a copy whose original is still there."""
    return PipelineError(
        f"{settings.home} looks like a copy: its store points to {original}, which is still there, "
        "and would write models into it. To make the copy a home of its own: python "
        "pipeline_orchestrator.py relocate --copy"
    )


def shared(settings: Settings, found: Elsewhere) -> PipelineError:
    """Return what is said of a copy that uses the very store of its original."""
    return PipelineError(
        f"{settings.home} and {found.original} use one store, {settings.database}: a link in the "
        "copy leads to it. Put a copy of what it leads to in the place of the link, then run: "
        "python pipeline_orchestrator.py relocate --copy"
    )


def elsewhere(settings: Settings) -> Elsewhere | None:
    """Return the other home that a home's store points to; None where all is well.

    Raises
    ------
    sqlite3.Error
        If the store cannot be read.
    """
    database = own_database(settings)
    if database is None or not database.is_file():
        return None
    with opened(database) as connection:
        homes = [one for one in _homes(connection, settings) if not _is_here(one, settings)]
    if not homes:
        return None
    original = next((one for one in homes if is_original(one, settings.home)), None)
    shares = original is not None and _same(
        original / database.relative_to(settings.home), database
    )
    return Elsewhere(tuple(homes), original, shares)


@contextlib.contextmanager
def opened(database: Path) -> Iterator[sqlite3.Connection]:
    """Open a store as it is, never creating one; a dead process may have left a journal."""
    with contextlib.closing(
        sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True)
    ) as connection:
        yield connection


def copy_database(source: Path, target: Path) -> None:
    """Copy a SQLite store and its mode, consistent while others read and write it."""
    for left_over in target.parent.glob(f"{target.name}*"):  # a stale journal would be replayed
        left_over.unlink()
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        set_mode(descriptor, stat.S_IMODE(source.stat().st_mode))
    finally:
        os.close(descriptor)
    with opened(source) as original, contextlib.closing(sqlite3.connect(target)) as copy:
        copy.execute("PRAGMA journal_mode = OFF")  # begun again, if this dies
        original.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")


def damage(database: Path) -> str:
    """Return what is wrong with a SQLite file that nobody writes; empty if nothing is."""
    address = f"{database.absolute().as_uri()}?immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
            state = str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    except sqlite3.Error as error:
        return str(error)
    return "" if state == "ok" else state.splitlines()[0]


def unreadable(database: Path, error: sqlite3.Error, remedy: str = COPY_AGAIN) -> PipelineError:
    """Return what is said of a store that SQLite cannot read."""
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
        return TryLaterError(f"{database} is locked by another process")
    return PipelineError(f"{database} is not a readable MLflow store ({error}); {remedy}")


# --- Places ---


def homes_in(database: Path, settings: Settings) -> tuple[Path, ...]:
    """Return the homes that a store names as those of the registered model's files."""
    with opened(database) as connection:
        return tuple(_homes(connection, settings))


def _homes(connection: sqlite3.Connection, settings: Settings) -> list[Path]:
    """Return the homes that the places of the registered model name, each once."""
    ours = f"{settings.artifacts.as_uri()}/"
    values = {"name": settings.model_name, "ours": ours, "length": len(ours)}
    found: dict[Path, None] = {}
    for query in OF_THE_MODEL:
        for (place,) in _rows(connection, query, values):
            found |= dict.fromkeys(_homes_of(place))
    return [*found]


def _rows(
    connection: sqlite3.Connection, query: str, values: dict[str, object]
) -> list[tuple[str]]:
    """Return rows; none of a table that another MLflow's store does not have."""
    try:
        return connection.execute(query, values).fetchall()
    except sqlite3.OperationalError as error:
        if NO_SUCH_TABLE.search(str(error)):
            return []
        raise


def _homes_of(place: str | None) -> list[Path]:
    """Return the home that a place is of, if it says so."""
    found = LOCAL.fullmatch(place or "")
    before, layout, rest = found[1].rpartition(LAYOUT) if found else ("", "", "")
    return [Path(unquote(before) or "/")] if layout and (not rest or rest[0] == "/") else []


def path_of(place: str, home: Path, at: Path) -> Path | None:
    """Return where the files of a place lie; None of what is not in this home.

    Parameters
    ----------
    home
        That the place is of.
    at
        Where its files are.
    """
    if home not in _homes_of(place):
        return None
    rest = place.rpartition(LAYOUT)[2]
    return Path(f"{at}{LAYOUT}{unquote(rest)}")


def _is_here(home: Path, settings: Settings) -> bool:
    """Say whether a folder is the home, by whatever path: a link, another mount."""
    if home == settings.home or _same(home, settings.home):
        return True
    # Its artifacts alone may lie on another disk, which is no home.
    leads_here = _same(Path(f"{home}{LAYOUT}"), settings.artifacts)
    return leads_here and not (home / JOURNAL_NAME).exists() and not (home / "new_gts").exists()


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def is_original(home: Path, journal_of: Path) -> bool:
    """Say whether a home is still there, and not another one that took the place of a moved one.

    Parameters
    ----------
    journal_of
        The folder with the journal of the home that came from there.
    """
    database = home / "mlflow_server" / "backend_db" / "mlflow.db"
    if not (os.path.exists(home / JOURNAL_NAME) or os.path.exists(database)):  # noqa: PTH110 - never raises
        return False
    with contextlib.suppress(PipelineError, OSError):
        theirs, ours = (
            {one.id for one in Journal(each).read().all(Home)} for each in (home, journal_of)
        )
        return not (theirs and ours and theirs.isdisjoint(ours))
    return True


def rewrite(database: Path, homes: tuple[Path, ...], new: Path) -> int:
    """Let all places of some homes in a store be of a new one; return how many there were."""
    changed = 0
    with opened(database) as connection, connection:
        for table, column in PLACES:
            query = f"SELECT DISTINCT {column} FROM {table}"
            for (place,) in _rows(connection, query, {}):
                if not set(homes).isdisjoint(_homes_of(place)):
                    changed += connection.execute(
                        f"UPDATE {table} SET {column} = ? WHERE {column} = ?",
                        (_moved(place, new), place),
                    ).rowcount
        for table, key in TAGGED:
            query = f"SELECT DISTINCT value FROM {table} WHERE key = :key"
            for (text,) in _rows(connection, query, {"key": key}):
                moved = _moved_in_text(text or "", homes, new)
                if moved != (text or ""):
                    changed += connection.execute(
                        f"UPDATE {table} SET value = ? WHERE key = ? AND value = ?",
                        (moved, key, text),
                    ).rowcount
    return changed


def _moved(place: str, new: Path) -> str:
    folder = f"{new}{LAYOUT}"
    root = Path(folder).as_uri() if place.startswith("file:") else folder
    return f"{root}{place.rpartition(LAYOUT)[2]}"


def _moved_in_text(text: str, homes: tuple[Path, ...], new: Path) -> str:
    for home in homes:
        old, folder = Path(f"{home}{LAYOUT}"), Path(f"{new}{LAYOUT}")
        for before, after in ((old.as_uri(), folder.as_uri()), (str(old), str(folder))):
            pattern = re.escape(before) + r'(?=[/"\s]|$)'
            text = re.sub(pattern, after.replace("\\", r"\\"), text)
    return text
