"""`export`: one archive of the registered model with all its history, for another store."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from retraining import recovery
from retraining.archives import ArchiveWriter, archive_written
from retraining.command_line import Command, print_result
from retraining.commands.transfer import (
    JOURNAL_FILE,
    KIND,
    MODEL_FILE,
    as_json,
    entries_of,
)
from retraining.errors import EXIT_DONE, stop_request
from retraining.files import exclusive_lock
from retraining.journal import Journal
from retraining.registry import Registry, open_registry
from retraining.registry.copies import RunCopy, VersionCopy
from retraining.settings import Settings, check_home
from retraining.text import now, size_text

logger = logging.getLogger("pipeline")


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a new one, such as stems.tar")


def _work(settings: Settings, options: argparse.Namespace) -> int:
    print_result(export(settings, options.file), {}, as_json=False)
    return EXIT_DONE


def export(settings: Settings, target: Path) -> list[str]:
    """Write the registered model of the store into one archive; return what was done, in lines.

    Parameters
    ----------
    target
        A file that is not there yet; it is there whole or not at all.

    Raises
    ------
    PipelineError
        If it is there, or if there is no such model.
    """
    check_home(settings)
    target = target.expanduser().absolute()
    with exclusive_lock(settings, "export"):
        recovery.tidy(settings)
        registry = open_registry(settings)
        if not registry.versions.model_exists():
            registry.production.champion()  # says what to do
        if registry.production.number() is not None:  # who imports it must be able to use it
            registry.learnt_by(registry.production.champion())
        memory = Journal(settings.home).read()
        facts: dict[str, Any] = {
            "home_id": memory.home_id,
            "model_name": settings.model_name,
            "exported_at": now(),
        }
        with archive_written(target, KIND, facts, outside=settings.folders) as writer:
            versions, runs = _add_model(registry, writer)
            entries = entries_of(memory, settings.model_name)
            writer.add_bytes(JOURNAL_FILE, as_json(entries))
    return [
        f"exported {len(versions)} versions and {len(runs)} runs of {settings.model_name} to "
        f"{target}, {size_text(target.stat().st_size)}",
        "recordings are not in it: copy used_gts/, new_gts/ and withdrawn/ where they are needed",
    ]


def _add_model(
    registry: Registry, writer: ArchiveWriter
) -> tuple[list[VersionCopy], list[RunCopy]]:
    """Add versions and runs with all their files; return them."""
    copies = registry.copies
    there = sorted(registry.versions.all(), key=lambda one: one.number)
    versions = [copies.version(one) for one in there]
    for version in there:
        stop_request.obey()
        with copies.files_of(version) as folder:
            if folder is None:
                logger.warning("version %d has no files any more", version.number)
            else:
                writer.add_folder(f"versions/{version.number}", folder)
    runs = copies.all_runs(versions)
    for run in runs:
        stop_request.obey()
        with copies.artifacts_of(run.run_id) as folder:
            if folder is not None:
                writer.add_folder(f"runs/{run.run_id}", folder)
    content = {
        "model": dataclasses.asdict(copies.model()),
        "versions": [dataclasses.asdict(one) for one in versions],
        "runs": [dataclasses.asdict(one) for one in runs],
    }
    writer.add_bytes(MODEL_FILE, json.dumps(content, allow_nan=False).encode())
    return versions, runs


COMMAND = Command("export", "one archive of the model for another store", _add_flags, _work)
