"""`backup FILE`: one archive of the home, its store and its artifacts, consistent and checked."""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from retraining import recovery
from retraining.archives import ArchiveWriter, archive_written
from retraining.command_line import Command, print_result
from retraining.errors import EXIT_DONE, PipelineError
from retraining.files import (
    TEMPORARY_PREFIX,
    TEMPORARY_SUFFIX,
    UnusableFile,
    exclusive_lock,
    hash_bytes,
    listed,
    remove_left_overs,
    settled,
    waiting_names,
)
from retraining.ground_truth import STAGING_PREFIX
from retraining.journal import JOURNAL_NAME
from retraining.notices import HEARTBEAT_NAME
from retraining.recovery import NOTE_NAME
from retraining.registry import places
from retraining.settings import Settings, check_home
from retraining.text import now, printable, size_text

KIND = "backup of a home"
FOLDERS = ("new_gts", "used_gts", "withdrawn", "model", "reports", "mlflow_server/artifacts")
STORE = "mlflow_server/backend_db/mlflow.db"
KNOWN_RECORDINGS = ".pipeline_recordings"
FILES = (JOURNAL_NAME, KNOWN_RECORDINGS, HEARTBEAT_NAME, NOTE_NAME)
"""All else that a home has is made again: the cache, the lock."""
EMPTY_FOLDER = ".gitkeep"
MADE_AGAIN = "__pycache__"
STORE_COPY = f"{TEMPORARY_PREFIX}store{TEMPORARY_SUFFIX}"


@dataclass(frozen=True)
class Facts:
    """What a backup tells of the home.

    Parameters
    ----------
    home
        The folder that it was made of.
    homes
        Where the embedded store says that its files lie; none if it is not in the archive.
    at
        When it was made.
    """

    home: str
    homes: list[str]
    at: str


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the archive to write, such as stems.tar")


def _work(settings: Settings, options: argparse.Namespace) -> int:
    print_result(backup(settings, Path(options.file)), {}, as_json=False)
    return EXIT_DONE


def backup(settings: Settings, path: Path) -> list[str]:
    """Write an archive of a home; return what is in it and what is not, in lines.

    Raises
    ------
    PipelineError
        If there is such a file already, it cannot be written, or the store is damaged.
    """
    check_home(settings)
    path = path.expanduser().absolute()
    with exclusive_lock(settings, "backup"):
        recovery.tidy(settings)
        # Of this home alone: others may be writing theirs into the same folder. Also where the
        # archive is there already: a killed backup may have both names of it.
        prefix = f"{TEMPORARY_PREFIX}backup-{hash_bytes(os.fsencode(settings.home))[:16]}-"
        remove_left_overs(path.parent, f"{prefix}*{TEMPORARY_SUFFIX}")
        facts = asdict(Facts(str(settings.home), [], now()))
        outside = settings.folders
        with archive_written(path, KIND, facts, outside=outside, prefix=prefix) as writer:
            homes = _add_store(settings, writer)
            facts["homes"] = [str(one) for one in homes]
            # After the store: a version is written when its files are there.
            left_out = _add_files(settings, writer, {writer.temporary, path})
            lines = _lines(settings, writer, homes, left_out)
    return [f"backup: {path}: {lines[0]}", *lines[1:]]


def _lines(
    settings: Settings, writer: ArchiveWriter, homes: list[Path], left_out: list[str]
) -> list[str]:
    """Say how much is in the archive, and what is not."""
    lines = [f"{len(writer.files)} files, {size_text(writer.n_bytes)}"]
    if places.own_database(settings) is None:
        lines.append(
            f"without the store {printable(settings.store_uri)}, which is not in this home: back "
            "that up, too, as docs/operations.md says"
        )
    elif not homes:
        lines.append("without a store: there is none yet")
    if left_out:
        lines.append(
            f"left out, because they are links, no plain files, unreadable or still being "
            f"written: {listed(left_out)}"
        )
    return lines


def _add_store(settings: Settings, writer: ArchiveWriter) -> list[Path]:
    """Add the embedded store as it is at one moment; return the homes that its places are of."""
    database, copy = places.own_database(settings), settings.home / STORE_COPY
    if database is None or not database.is_file():
        return []
    try:
        places.copy_database(database, copy)
        if damaged := places.damage(copy):
            raise PipelineError(
                f"{database} is damaged ({damaged}); restore it from an older backup; nothing was "
                "written"
            )
        copy.chmod(0o600)
        writer.add_file(STORE, copy)
        return [*dict.fromkeys((settings.home, *places.homes_in(copy, settings)))]
    except sqlite3.Error as error:
        raise places.unreadable(database, error) from error
    finally:
        copy.unlink(missing_ok=True)


def _add_files(settings: Settings, writer: ArchiveWriter, but: set[Path]) -> list[str]:
    """Add all that the home holds; return the names of what is there and cannot be."""
    left_out = []
    waiting = [settings.new_gts / name for name in waiting_names(settings.new_gts)]
    unfinished = {*waiting} - {*settled(waiting)}
    for path, name in _files(settings):
        if path in but:
            continue
        if path in unfinished or not _added(writer, path, name):
            left_out.append(name)
    return left_out


def _added(writer: ArchiveWriter, path: Path, name: str) -> bool:
    """Add a file; say whether that was possible. One that is gone by now is none."""
    try:
        writer.add_file(name, path)
    except UnusableFile:
        return False
    except FileNotFoundError:
        return True
    return True


def _files(settings: Settings) -> Iterator[tuple[Path, str]]:
    """Give all entries of a home but folders, and their names below it."""
    for name in FILES:
        with contextlib.suppress(FileNotFoundError):
            path = settings.home / name
            path.lstat()
            yield path, name
    for folder in FOLDERS:
        yield from _below(settings.home / folder, folder)


def _below(folder: Path, name: str) -> Iterator[tuple[Path, str]]:
    """Give what is in a folder and those below it; none of what a link leads to."""
    try:
        entries = sorted(os.scandir(folder), key=lambda one: one.name)
    except FileNotFoundError:
        return
    except OSError:
        yield folder, name
        return
    for entry in entries:
        path, below = folder / entry.name, f"{name}/{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            if entry.name != MADE_AGAIN and not entry.name.startswith(STAGING_PREFIX):
                yield from _below(path, below)
        elif not is_left_over(entry.name):
            yield path, below


def is_left_over(name: str) -> bool:
    """Say whether a name is none of a home's content."""
    is_temporary = name.startswith(TEMPORARY_PREFIX) and name.endswith(TEMPORARY_SUFFIX)
    return name == EMPTY_FOLDER or is_temporary


def holds_anything(folder: Path) -> bool:
    """Say whether there is any content below a folder."""
    return any(True for _ in _below(folder, ""))


def is_of_a_home(name: str) -> bool:
    """Say whether a member's name is one that a backup of a home has."""
    return name in (*FILES, STORE) or name.startswith(tuple(f"{one}/" for one in FOLDERS))


def is_private(name: str) -> bool:
    """Say whether a member is its owner's alone."""
    return name in (*FILES, STORE)


COMMAND = Command("backup", "write the home and its store into one archive", _add_flags, _work)
