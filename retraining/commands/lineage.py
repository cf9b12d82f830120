"""`lineage`: which versions were trained on a recording? Changes nothing."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retraining.command_line import Command, print_result
from retraining.errors import EXIT_DONE, PipelineError, TryLaterError
from retraining.files import hash_file
from retraining.registry import open_registry
from retraining.settings import Settings, check_home
from retraining.text import as_local_time

logger = logging.getLogger("pipeline")


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
        A path, or a name in used_gts/, new_gts/ or new_gts/rejected/.

    Returns
    -------
    dict
        `file`, `sha256`, `versions` (newest first: `version`, `name`, `at`, `alias`),
        `other_content` (versions that learnt another content under that name) and `unknown`
        (versions whose manifest cannot be read).

    Raises
    ------
    PipelineError
        If there is no such file.
    """
    check_home(settings)
    path = _find(settings, file)
    sha256 = hash_file(path)
    registry = open_registry(settings)
    versions, other, unknown = [], [], []
    for version in registry.versions.all():
        try:
            names = registry.versions.manifest(version).names
        except TryLaterError:
            raise
        except PipelineError as error:
            logger.warning("%s", error)
            unknown.append(version.number)
            continue
        if sha256 in names:
            at = as_local_time(version.created_ms / 1000)
            alias = registry.production.alias_of(version.number)
            learnt = {"version": version.number, "name": names[sha256], "at": at, "alias": alias}
            versions.append(learnt)
        elif path.name in names.values():
            other.append(version.number)
    return {
        "file": str(path),
        "sha256": sha256,
        "versions": versions,
        "other_content": other,
        "unknown": unknown,
    }


def _find(settings: Settings, file: str) -> Path:
    folders = (settings.used_gts, settings.new_gts, settings.rejected_gts)
    for path in (Path(file), *(folder / file for folder in folders)):
        if path.is_file():
            return path.absolute()
    raise PipelineError(
        f"there is no file {file!r}, neither here nor in used_gts/, new_gts/ or new_gts/rejected/"
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
    for key, text in (
        ("other_content", "learnt another content under that name"),
        ("unknown", "unknown: the manifest cannot be read"),
    ):
        lines += [f"version {number}: {text}" for number in found[key]]
    return lines


COMMAND = Command("lineage", "the versions that were trained on a recording", _add_flags, _work)
