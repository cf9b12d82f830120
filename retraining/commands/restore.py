"""`restore FILE`: a home from an archive that `backup` wrote, here or elsewhere.

All is extracted and verified beside where it goes; then it is noted that it is whole, and it is
put in place. Killed before the note, a second call begins again, after it, it ends the first one;
in between no other command works in half a home.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from retraining.archives import Archive, opened, read_as
from retraining.command_line import Command, print_result
from retraining.commands.backup import (
    FILES,
    FOLDERS,
    KIND,
    STORE,
    Facts,
    holds_anything,
    is_of_a_home,
    is_private,
)
from retraining.errors import EXIT_DONE, PipelineError
from retraining.files import (
    exclusive_lock,
    make_folder,
    move_files,
    read_regular_file,
    sync_file,
    sync_folder,
    write_durably,
)
from retraining.registry import places
from retraining.registry.relocation import HAS_ITS_OWN_ID, append, prepare
from retraining.settings import RESTORING, RESTORING_NOTE, Settings, check_home
from retraining.text import printable
from retraining.typed_names import path_meant

MAX_NOTE_MB = 10.0


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="an archive that backup wrote")
    parser.add_argument(
        "--copy", action="store_true", help="the original goes on: this home gets an id of its own"
    )


def _work(settings: Settings, options: argparse.Namespace) -> int:
    lines = restore(settings, path_meant(Path(options.file)), as_copy=options.copy)
    print_result(lines, {}, as_json=False)
    return EXIT_DONE


def restore(settings: Settings, path: Path, *, as_copy: bool = False) -> list[str]:
    """Make a home of an archive; return what was done, in lines.

    Parameters
    ----------
    settings
        With a home that is missing or holds nothing of a pipeline.
    as_copy
        The original goes on: this home gets an id of its own.

    Raises
    ------
    PipelineError
        If the archive is not whole, or the home holds something; nothing is changed then.
    """
    path = path.expanduser().absolute()
    home = settings.home
    with opened(path, KIND) as archive:
        facts = _facts_of(archive)
        begun = _begun(home)
        if begun is None:
            _check_empty(home)
        make_folder(home)
        with exclusive_lock(settings, "restore"):
            begun = _begun(home)
            if begun is None:
                _check_empty(home)
                begun = _stage(settings, archive, facts, as_copy=as_copy)
                begun["digest"] = archive.sha256
                write_durably(home / RESTORING_NOTE, json.dumps(begun).encode(), mode=0o600)
            elif begun.get("digest") != archive.sha256:
                raise PipelineError(
                    f"restoring {home} from {begun.get('backup', 'another file')} was cut off; end "
                    "that first, with that file"
                )
            _place(home / RESTORING, home)
            shutil.rmtree(home / RESTORING, ignore_errors=True)
            (home / RESTORING_NOTE).unlink()
            sync_folder(home)
    check_home(settings)
    return [str(line) for line in begun["lines"]]


def _begun(home: Path) -> dict[str, Any] | None:
    """Return what a restore that was cut off noted when all was verified; None if there is none."""
    try:
        return dict(json.loads(read_regular_file(home / RESTORING_NOTE, MAX_NOTE_MB)))
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise PipelineError(f"{home} is a file, no folder; name another one with --home") from error
    except (ValueError, TypeError) as error:
        raise PipelineError(
            f"{home / RESTORING_NOTE} is not what restore wrote; remove {home} and run again"
        ) from error


def _facts_of(archive: Archive) -> Facts:
    """Return what a backup tells; refuse one that would write anything but a home's content."""
    strange = [name for name in archive.files if not is_of_a_home(name)]
    if strange:
        raise archive.refused(f"holds {printable(strange[0])}, which no home has")
    try:
        facts = read_as(Facts, archive.facts)
    except TypeError as error:
        raise archive.refused(f"tells what no backup does ({printable(error)})") from error
    if facts.homes and STORE not in archive.files:
        raise archive.refused(f"lacks {STORE}")
    return facts


def _check_empty(home: Path) -> None:
    """Refuse a home that holds anything that is not made again."""
    for name in (*FILES, STORE):
        if (home / name).exists() or (home / name).is_symlink():
            raise _not_empty(home, name)
    for name in FOLDERS:
        folder = home / name
        if folder.is_symlink() or holds_anything(folder):
            raise _not_empty(home, name)


def _not_empty(home: Path, name: str) -> PipelineError:
    return PipelineError(
        f"{home} has {name} already: nothing is restored over it. Name a folder that is missing or "
        "empty with --home; or move all of this home away first. Nothing was changed"
    )


# --- Verify ---


def _stage(settings: Settings, archive: Archive, facts: Facts, *, as_copy: bool) -> dict[str, Any]:
    """Extract and verify a home beside where it goes; return what is noted of it."""
    home, staged = settings.home, settings.home / RESTORING
    if staged.exists():  # of a restore that was cut off
        shutil.rmtree(staged)
    staged.mkdir(mode=0o700)
    try:
        for each in (settings.new_gts, settings.used_gts):
            (staged / each.name).mkdir()
        archive.extract(staged, to_stay=True)
        for member in archive.files:
            if is_private(member):
                (staged / member).chmod(0o600)
        lines = _verify(settings, facts, archive.path.name, as_copy=as_copy)
        for folder in (staged / STORE).parents:
            sync_folder(folder) if folder.is_dir() else None
            if folder == staged:
                break
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    name, origin = archive.path.name, printable(facts.home)
    said = f"restored: {home} from {name}, made on {printable(facts.at)} of {origin}"
    return {"backup": name, "lines": [f"{said}: {len(archive.files)} files", *lines]}


def _verify(settings: Settings, facts: Facts, name: str, *, as_copy: bool) -> list[str]:
    """Let the extracted store point to the home, and compare its versions with the journal."""
    home, staged, lines = settings.home, settings.home / RESTORING, []
    origin = Path(facts.home)
    if facts.homes:
        homes = tuple(Path(one) for one in facts.homes)
        remedy = "restore from an older backup"
        verified = prepare(settings, staged / STORE, homes, at=staged, remedy=remedy)
        sync_file(staged / STORE)
        lines += [f"{verified.n_whole} versions are whole", *verified.problems]
    else:
        lines.append("it holds no store: that is elsewhere, see docs/operations.md")
    append(staged, home, origin, as_copy=as_copy, backup=name)
    if as_copy:
        lines.append(HAS_ITS_OWN_ID)
    elif origin != home and places.is_original(origin, staged):
        lines.append(
            f"{origin} is still there: if both go on, give this one an id of its own: python "
            "pipeline_orchestrator.py relocate --copy"
        )
    return lines


# --- Put in place ---


def _place(source: Path, target: Path) -> None:
    """Move all that is in a folder into another one, which may have some of its folders."""
    if not source.is_dir():
        return
    files = {}
    for entry in sorted(source.iterdir()):
        goal = target / entry.name
        if not entry.is_dir():
            files[entry] = ""
        elif goal.is_dir():
            _place(entry, goal)
        else:
            entry.rename(goal)
            sync_folder(target)
    if files:
        move_files(files, target)


COMMAND = Command("restore", "make a home of an archive that backup wrote", _add_flags, _work)
