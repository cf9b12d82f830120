"""Bring a home back to a good state: the note of an unfinished command, tidying, archiving.

Truth is the registry's alias and that version's manifest; everything here is recomputed from it,
by the same code after a crash as in an ordinary cycle. Nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from retraining import ground_truth, notices
from retraining.errors import PipelineError, TryLaterError
from retraining.files import read_regular_file, remove_left_overs, sync_folder, write_durably
from retraining.journal import Journal
from retraining.looks import Judged, Look
from retraining.registry import Registry, open_registry, places
from retraining.settings import Settings
from retraining.text import now

NOTE_NAME = ".pipeline_state.json"
MAX_NOTE_MB = 1.0

logger = logging.getLogger("pipeline")


# --- The note of an unfinished command ---


@contextlib.contextmanager
def unfinished_until_done(settings: Settings, command: str) -> Iterator[str]:
    """Give an id for what is about to change; an interruption leaves a note of it for `tidy`."""
    cycle_id = uuid.uuid4().hex
    note = {"cycle_id": cycle_id, "command": command, "since": now()}
    write_durably(settings.home / NOTE_NAME, json.dumps(note).encode(), mode=0o600)
    yield cycle_id
    _remove_note(settings)


def _remove_note(settings: Settings) -> None:
    (settings.home / NOTE_NAME).unlink(missing_ok=True)
    sync_folder(settings.home)


def unfinished_command(settings: Settings) -> dict[str, Any] | None:
    """Return what an interrupted command noted, or None."""
    try:
        return dict(json.loads(read_regular_file(settings.home / NOTE_NAME, MAX_NOTE_MB)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError):
        return {}


# --- Tidy ---


def tidy(settings: Settings) -> None:
    """Finish what an interrupted command left; cheap if there is nothing.

    Notes
    -----
    The registry is the truth: what production was trained on goes to used_gts/, what a dead
    cycle registered without a verdict is deleted, its open runs are closed.

    Raises
    ------
    PipelineError
        If the home was moved or copied: nothing is touched then.
    """
    places.check(settings)
    ground_truth.remove_training_folders(settings)
    # One may be of the note that never came to be, or of the page of a night that left no note.
    for folder in (settings.home, settings.reports):
        remove_left_overs(folder)
    note = unfinished_command(settings)
    if note is None:
        return
    logger.info("tidying up after the interrupted command of %s", note.get("since", "unknown"))
    folders = (settings.new_gts, settings.used_gts, settings.replaced_gts, settings.withdrawn_gts)
    for folder in folders:
        remove_left_overs(folder)
    with ground_truth.rejected_folder(settings) as rejected:
        if rejected:
            remove_left_overs(rejected, shown=settings.rejected_gts)
    trained_on: Mapping[str, str] = {}
    if settings.database is None or settings.database.exists():
        registry = open_registry(settings)
        _end_dead_cycle(settings, registry, str(note.get("cycle_id", "")))
        if registry.production.number() is not None:
            try:
                trained_on = registry.learnt_by(registry.production.champion()).names
            except TryLaterError:
                raise
            except PipelineError as error:
                # The note stays: what production learnt must not be taken for new.
                logger.warning("nothing archived, the next start tries again: %s", error)
                return
    ground_truth.finish_all(settings, Journal(settings.home).read())
    archive(settings, trained_on)
    _remove_note(settings)


def _end_dead_cycle(settings: Settings, registry: Registry, cycle_id: str) -> None:
    """Close its runs, complete its outcome, delete its half-made version, tell what it changed."""
    production = registry.production.number()
    registry.runs.close_left_over(cycle_id, production)
    registry.production.settle(cycle_id)
    _complete_outcome(settings, registry, cycle_id)
    kept = {production, registry.production.previous_number()}
    registry.versions.delete_unfinished(cycle_id, kept)
    # At least once: what was told before the power failed may be told again.
    notices.announce_change(settings, registry, cycle_id)
    notices.announce_lost_probation(settings, registry, cycle_id)


def _complete_outcome(settings: Settings, registry: Registry, cycle_id: str) -> None:
    """Let the journal and the monitoring run say to what a dead cycle had come."""
    journal = Journal(settings.home)
    memory = journal.read()
    judged = next((one for one in memory.all(Judged) if one.cycle == cycle_id), None)
    outcome = judged.outcome if judged else ""
    if judged is None and (found := registry.judgements.outcome_of(cycle_id)):
        outcome = found.value
        looks = [one for one in memory.all(Look) if one.cycle == cycle_id]
        if looks:
            journal.append(*(look.ended(outcome, "its challenger was compared") for look in looks))
    if outcome:
        registry.judgements.complete_outcome(cycle_id, outcome)


def archive(settings: Settings, trained_on: Mapping[str, str]) -> list[str]:
    """Move the new files that production was trained on to used_gts/; return their names.

    Parameters
    ----------
    trained_on
        SHA-256 -> name: the production version's manifest. What of it was corrected or withdrawn
        since is left to intake.
    """
    left = ground_truth.left_the_training_data(settings, Journal(settings.home).read())
    moved = ground_truth.archive(settings, trained_on.keys() - left)
    if moved:
        logger.info("archived %d files in %s", len(moved), settings.used_gts)
    return moved
