"""`rollback`: make an earlier version production again."""

from __future__ import annotations

import argparse
import logging

from retraining import notices, recovery, vouching
from retraining.command_line import Command, print_result
from retraining.errors import EXIT_DONE, PipelineError, TryLaterError
from retraining.files import exclusive_lock
from retraining.registry import Registry, open_registry
from retraining.registry.facts import EVENT_ROLLBACK, TAG_CYCLE, RegisteredVersion
from retraining.report import keep
from retraining.settings import Settings, check_home
from retraining.training import load_training_module

logger = logging.getLogger("pipeline")


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", type=int, metavar="VERSION", help="default: the version before")


def _work(settings: Settings, options: argparse.Namespace) -> int:
    print_result(rollback(settings, options.to), {}, as_json=False)
    return EXIT_DONE


def rollback(settings: Settings, to: int | None) -> str:
    """Make an earlier version production again, by default the one before; say what was done.

    Raises
    ------
    PipelineError
        If there is no such version, or it does not load or predict.
    """
    check_home(settings)
    with exclusive_lock(settings, "rollback"):
        recovery.tidy(settings)
        registry = open_registry(settings)
        now = registry.production.number()
        number = to
        if number is None and now is not None:
            number = registry.production.replaced_by(now)
        if number is None:
            raise PipelineError("there is no previous production version; name one with --to")
        if number == now:
            return f"version {number} is production already; nothing changed"

        # Nothing becomes production that does not load and predict.
        training = load_training_module(settings)
        version = registry.versions.get(number)
        registry.models.load_and_try(version, training)
        vouching.seed(settings, registry)
        with recovery.unfinished_until_done(settings, "rollback") as cycle_id:
            run_id = registry.production.move_to(
                number,
                replaces=now,
                event=EVENT_ROLLBACK,
                why=f"rollback from version {now}" if now else "named as production by hand",
                tags={TAG_CYCLE: cycle_id},
            )
            message = f"rolled back: version {number} is production, it was version {now}"
            # Last, as after a promotion: what it learnt is no new recording.
            _archive(settings, registry, version)
            keep.keep_rollback_page(settings, registry, run_id, number, message)
            notices.announce_change(settings, registry, cycle_id)
    return message


def _archive(settings: Settings, registry: Registry, version: RegisteredVersion) -> None:
    """Archive what the version learnt; a person may go back to one that does not say it."""
    try:
        recovery.archive(settings, registry.learnt_by(version).names)
    except TryLaterError:
        raise
    except PipelineError as error:
        logger.warning("nothing archived: %s", error)


COMMAND = Command("rollback", "make an earlier version production again", _add_flags, _work)
