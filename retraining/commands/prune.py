"""`prune`: remove the model files of versions that lost; all else of them stays readable."""

from __future__ import annotations

import argparse

from retraining import pruning, recovery
from retraining.command_line import Command, print_result
from retraining.errors import EXIT_DONE, UsageError
from retraining.files import exclusive_lock, lock_without_writing
from retraining.registry import open_registry
from retraining.settings import Settings, check_home
from retraining.text import size_text


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep",
        type=int,
        metavar="N",
        help="the newest N that lost keep their model files; default: --keep-losers, or as many as "
        "a person is called to look at (--stuck-after)",
    )
    parser.add_argument(
        "--older-than", type=float, metavar="DAYS", default=0.0, help="only those that are older"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="change nothing, say what would be removed"
    )


def _work(settings: Settings, options: argparse.Namespace) -> int:
    keep = settings.keep_losers or settings.stuck_after if options.keep is None else options.keep
    lines = prune(settings, keep, options.older_than, dry_run=options.dry_run)
    print_result(lines, {}, as_json=False)
    return EXIT_DONE


def prune(
    settings: Settings, keep: int, older_than_days: float = 0.0, *, dry_run: bool = False
) -> list[str]:
    """Prune what lost; return what was done, in lines.

    Raises
    ------
    UsageError
        If a number is below 0.
    PipelineError
        If the artifact store refuses.
    """
    if keep < 0 or not older_than_days >= 0:
        raise UsageError("--keep and --older-than: must be at least 0")
    check_home(settings)
    with lock_without_writing(settings) if dry_run else exclusive_lock(settings, "prune"):
        if not dry_run:
            recovery.tidy(settings)
        found = pruning.prune(
            settings,
            open_registry(settings),
            keep=keep,
            older_than_days=older_than_days,
            dry_run=dry_run,
        )
    lines = [
        f"version {number}: its model file, {size_text(n_bytes)}"
        for number, n_bytes in found.versions.items()
    ]
    if not found.versions:
        done = "nothing to prune"
    elif dry_run:
        done = f"dry run, nothing changed: would prune {found.in_words}"
    else:
        done = f"pruned {found.in_words} freed"
    younger = f" and those of the last {older_than_days:g} days" if older_than_days else ""
    return [*lines, *found.notes, f"{done}; the newest {keep} that lost{younger} keep theirs"]


COMMAND = Command("prune", "remove the model files of versions that lost", _add_flags, _work)
