"""`lineage`: which versions were trained on a recording? Changes nothing."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retraining import ground_truth, records
from retraining.command_line import Command, print_result
from retraining.errors import EXIT_DONE, PipelineError
from retraining.files import UnusableFile, hash_file, hash_regular_file
from retraining.journal import Journal, Memory, Replaced, WithdrawalUndone, Withdrawn
from retraining.registry import open_registry
from retraining.settings import Settings, check_home
from retraining.text import as_local_time, moment
from retraining.typed_names import name_meant, path_meant


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("file", metavar="FILE", help="a path, or a name in the home")


def _work(settings: Settings, options: argparse.Namespace) -> int:
    found = lineage(settings, options.file)
    print_result(as_lines(found), found, as_json=options.json)
    return EXIT_DONE


def lineage(settings: Settings, file: str) -> dict[str, Any]:
    """Find the versions that were trained on a recording.

    Parameters
    ----------
    file
        A path, or a name in used_gts/, new_gts/, new_gts/rejected/, used_gts/replaced/ or
        withdrawn/; or that of a withdrawn recording of which nothing is kept.

    Returns
    -------
    dict
        `file`, `sha256`, `versions` (newest first: `version`, `name`, `at`, `alias`),
        `older_content` (versions that learnt it before it was corrected), `other_content` (versions
        that learnt another content under that name), `unknown` (versions whose manifest cannot be
        read) and `changes`: what became of it, in sentences.

    Raises
    ------
    PipelineError
        If there is no such file.
    """
    check_home(settings)
    memory = Journal(settings.home).read()
    path, sha256 = _find(settings, file, memory)
    registry = open_registry(settings)
    before = memory.earlier_contents(sha256)
    versions, older, other, unknown = [], [], [], []
    for version, manifest in registry.versions.manifests():
        names = manifest.names if manifest else {}
        if manifest is None:
            unknown.append(version.number)
        elif sha256 in names:
            at = as_local_time(version.created_ms / 1000)
            alias = registry.production.alias_of(version.number)
            learnt = {"version": version.number, "name": names[sha256], "at": at, "alias": alias}
            versions.append(learnt)
        elif not names.keys().isdisjoint(before):
            older.append(version.number)
        elif path.name in names.values():
            other.append(version.number)
    return {
        "file": str(path),
        "sha256": sha256,
        "versions": versions,
        "older_content": older,
        "other_content": other,
        "unknown": unknown,
        "changes": _changes(memory, [sha256, *before]),
    }


def _changes(memory: Memory, contents: Sequence[str]) -> list[str]:
    """Say when a recording was corrected, completed, withdrawn or returned."""
    found = []
    for one in memory.in_order(Replaced, Withdrawn, WithdrawalUndone):
        if isinstance(one, Replaced) and not {one.sha256, one.old_sha256}.isdisjoint(contents):
            found.append(f"{moment(one.at)}: {records.replacement_text(one)}")
        elif isinstance(one, Withdrawn) and one.sha256 in contents:
            why = f": {one.reason}" if one.reason else ""
            deleted = " and deleted" if one.folder and not one.kept_as else ""
            found.append(f"{moment(one.at)}: withdrawn{deleted} by {one.who}{why}")
        elif isinstance(one, WithdrawalUndone) and one.sha256 in contents:
            found.append(f"{moment(one.at)}: withdrawal undone by {one.who}")
    return found


def _find(settings: Settings, file: str, memory: Memory) -> tuple[Path, str]:
    """Return the path of a recording, where it is or was, and its content."""
    folders = [settings.used_gts, settings.new_gts, settings.replaced_gts, settings.withdrawn_gts]
    if not ground_truth.rejected_problem(settings):
        folders.append(settings.rejected_gts)
    if Path(file).is_file():
        return Path(file).absolute(), hash_file(Path(file))
    places = [folder / file for folder in folders]
    for path in (*places, *map(path_meant, (Path(file), *places))):
        with contextlib.suppress(FileNotFoundError, UnusableFile):
            return path.absolute(), hash_regular_file(path)
    withdrawn = memory.withdrawn().values()
    name = name_meant(file, [], [one.name for one in withdrawn])
    for one in reversed(withdrawn):
        if one.name == name:
            return settings.home / one.folder / one.name, one.sha256
    raise PipelineError(
        f"there is no file {file!r}, neither here nor in used_gts/, new_gts/, new_gts/rejected/, "
        "used_gts/replaced/ or withdrawn/"
    )


def as_lines(found: Mapping[str, Any]) -> list[str]:
    """Return what `lineage` found as lines for a person."""
    lines = [f"{found['file']}: SHA-256 {found['sha256']}"]
    lines += [
        f"version {one['version']} of {one['at']} learnt it as {one['name']!r}"
        + (f"; it is {one['alias']}" if one["alias"] else "")
        for one in found["versions"]
    ]
    if not found["versions"]:
        lines.append("no version was trained on it")
    lines += found["changes"]
    for key, text in (
        ("older_content", "learnt it as it was before"),
        ("other_content", "learnt another content under that name"),
        ("unknown", "unknown: the manifest cannot be read"),
    ):
        lines += [f"version {number}: {text}" for number in found[key]]
    return lines


COMMAND = Command("lineage", "the versions that were trained on a recording", _add_flags, _work)
