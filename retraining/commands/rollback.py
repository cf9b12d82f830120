"""`rollback`: make an earlier version production again."""

from __future__ import annotations

import argparse
import logging

from retraining import notices, recovery, vouching
from retraining.command_line import Command, print_result
from retraining.errors import EXIT_DONE, PipelineError, TryLaterError
from retraining.files import exclusive_lock
from retraining.registry import Registry, open_registry
from retraining.registry.facts import (
    EVENT_ROLLBACK,
    TAG_CYCLE,
    TAG_VERDICT,
    VERDICT_REJECT,
    RegisteredVersion,
)
from retraining.report import keep
from retraining.settings import Settings, check_home
from retraining.training import Training, load_training_module

SHOWN_VERSIONS = 5
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
        production = registry.production
        now = production.number()
        if to is not None and to == now == production.recorded_number():
            return f"version {to} is production already; nothing changed"

        training = load_training_module(settings)
        version = _usable(registry, training, to) if to else _before(registry, training, now)
        number = version.number
        vouching.seed(settings, registry)
        with recovery.unfinished_until_done(settings, "rollback") as cycle_id:
            run_id = registry.production.move_to(
                number,
                replaces=now,
                event=EVENT_ROLLBACK,
                why=_why(number, now),
                tags={TAG_CYCLE: cycle_id},
            )
            message = _what_was_done(number, now)
            # Last, as after a promotion: what it learnt is no new recording.
            _archive(settings, registry, version)
            keep.keep_rollback_page(settings, registry, run_id, number, message)
            notices.announce_change(settings, registry, cycle_id)
    return message


def _usable(registry: Registry, training: Training, number: int) -> RegisteredVersion:
    """Return a version that loads and predicts: nothing else becomes production."""
    version = registry.versions.get(number)
    registry.models.load_and_try(version, training)
    return version


def _before(registry: Registry, training: Training, now: int | None) -> RegisteredVersion:
    """Return the version before that can be used; of each that cannot, say why."""
    for number in registry.production.to_go_back_to(now):
        try:
            return _usable(registry, training, number)
        except TryLaterError:
            raise
        except PipelineError as error:
            logger.warning("version %d is no way back: %s", number, error)
    others = [_described(one) for one in registry.versions.all() if one.number != now]
    if not others:
        raise PipelineError(
            "there is no previous production version and no other one; restore the store from a "
            "backup if there was one"
        )
    raise PipelineError(
        "there is no previous production version that can be used; name one with --to, of "
        f"{', '.join(others[:SHOWN_VERSIONS])}, or restore the store from a backup"
    )


def _described(version: RegisteredVersion) -> str:
    lost = version.tags.get(TAG_VERDICT) == VERDICT_REJECT
    return f"{version.number} (which had not been promoted)" if lost else str(version.number)


def _why(number: int, now: int | None) -> str:
    if now is None:
        return "nothing was production: its alias or version had been removed"
    if number == now:
        return "made production by hand before, recorded now"
    return f"rollback from version {now}"


def _what_was_done(number: int, now: int | None) -> str:
    if now is None:
        return f"version {number} is production again; the alias was missing"
    if number == now:
        return f"recorded: version {number}, which was made production by hand, is production"
    return f"rolled back: version {number} is production, it was version {now}"


def _archive(settings: Settings, registry: Registry, version: RegisteredVersion) -> None:
    """Archive what the version learnt; a person may go back to one that does not say it."""
    try:
        recovery.archive(settings, registry.learnt_by(version).names)
    except TryLaterError:
        raise
    except PipelineError as error:
        logger.warning("nothing archived: %s", error)


COMMAND = Command("rollback", "make an earlier version production again", _add_flags, _work)
