"""Bring a home back to a good state: tidy up, archive, roll back, requeue, upgrade the store.

Truth is the registry's alias and that version's manifest; everything here is recomputed from it,
by the same code after a crash as in an ordinary cycle. Nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator, Mapping

import cycle_pages
import gts_folder
import model_registry
import notifications
from pipeline_settings import PipelineError, Settings, TryLaterError, check_home
from training_module import load_training_module

logger = logging.getLogger("pipeline")


# --- Tidy ---


def tidy(settings: Settings) -> None:
    """Finish what an interrupted command left; cheap if there is nothing.

    Parameters
    ----------
    settings
        Of this home.

    Notes
    -----
    The registry is the truth: what production was trained on goes to used_gts/, what a dead
    cycle registered without a verdict is deleted, its open runs are closed.
    """
    gts_folder.remove_training_folders(settings)
    gts_folder.remove_left_overs(settings.home)  # one may be of the note that never came to be
    state = gts_folder.unfinished_cycle(settings)
    if state is None:
        return
    logger.info("tidying up after the interrupted command of %s", state.get("since", "unknown"))
    folders = (settings.new_gts, settings.rejected_gts, settings.used_gts, settings.reports)
    for folder in folders:
        gts_folder.remove_left_overs(folder)
    trained_on: Mapping[str, str] = {}
    if settings.database is None or settings.database.exists():
        registry = model_registry.open_registry(settings)
        cycle_id = str(state.get("cycle_id", ""))
        registry.close_left_over_runs(cycle_id)
        registry.complete_outcome(cycle_id)
        registry.delete_unfinished_versions(cycle_id)
        notifications.announce_change(settings, registry, cycle_id)
        notifications.announce_lost_probation(settings, registry, cycle_id)
        if registry.production_number() is not None:
            try:
                trained_on = registry.manifest(registry.champion()).names
            except TryLaterError:
                raise
            except PipelineError as error:
                logger.warning("nothing archived, the next start tries again: %s", error)
                return
    archive(settings, trained_on)
    gts_folder.end_cycle(settings)


@contextlib.contextmanager
def unfinished_until_done(settings: Settings, command: str) -> Iterator[str]:
    """Give an id for what is about to change; an interruption leaves the note for `tidy`.

    Parameters
    ----------
    settings
        Of this home.
    command
        Its name.
    """
    cycle_id = uuid.uuid4().hex
    gts_folder.begin_cycle(
        settings, {"cycle_id": cycle_id, "command": command, "since": gts_folder.now()}
    )
    yield cycle_id
    gts_folder.end_cycle(settings)


def archive(settings: Settings, trained_on: Mapping[str, str]) -> list[str]:
    """Move the new files that production was trained on to used_gts/; return their names.

    Parameters
    ----------
    settings
        Name the folders.
    trained_on
        SHA-256 -> name: the production version's manifest.
    """
    moved = gts_folder.archive(settings, trained_on)
    if moved:
        logger.info("archived %d files in %s", len(moved), settings.used_gts)
    return moved


# --- Commands ---


def rollback(settings: Settings, to: int | None) -> str:
    """Make an earlier version production again, after verifying that it loads and predicts.

    Parameters
    ----------
    settings
        Of this home.
    to
        Number of the version; the one before by default.

    Raises
    ------
    PipelineError
        If there is no such version, or it does not load or predict.
    """
    check_home(settings)
    with gts_folder.exclusive_lock(settings, "rollback"):
        tidy(settings)
        registry = model_registry.open_registry(settings)
        now = registry.production_number()
        number = to
        if number is None and now is not None:
            number = registry.replaced_by(now)
        if number is None:
            raise PipelineError("there is no previous production version; name one with --to")
        if number == now:
            return f"version {number} is production already; nothing changed"
        training = load_training_module(settings)
        registry.load_and_try(registry.version(number), training)
        with unfinished_until_done(settings, "rollback") as cycle_id:
            run_id = registry.promote(
                number,
                replaces=now,
                event=model_registry.EVENT_ROLLBACK,
                why=f"rollback from version {now}" if now else "named as production by hand",
                tags={model_registry.TAG_CYCLE: cycle_id},
            )
            message = f"rolled back: version {number} is production, it was version {now}"
            cycle_pages.report_rollback(settings, registry, run_id, number, message)
            notifications.announce_change(settings, registry, cycle_id)
    return message


def requeue(settings: Settings, names: list[str]) -> str:
    """Put mended files from new_gts/rejected/ back into new_gts/.

    Parameters
    ----------
    settings
        Name the folders.
    names
        All by default.
    """
    check_home(settings)
    with gts_folder.exclusive_lock(settings, "requeue"):
        tidy(settings)
        with unfinished_until_done(settings, "requeue"):
            back = gts_folder.requeue(settings, names)
    return f"requeued {len(back)} files: {', '.join(back) or 'none was rejected'}"


def upgrade_store(settings: Settings) -> str:
    """Migrate the embedded store to the installed MLflow, with a backup.

    Parameters
    ----------
    settings
        Name the store.
    """
    check_home(settings)
    with gts_folder.exclusive_lock(settings, "upgrade-store"):
        return model_registry.upgrade_store(settings)
