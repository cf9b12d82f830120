"""`requeue`: put mended files from new_gts/rejected/ back into new_gts/."""

from __future__ import annotations

import argparse

from retraining import ground_truth, recovery
from retraining.command_line import Command, print_result
from retraining.errors import EXIT_DONE
from retraining.files import exclusive_lock
from retraining.settings import Settings, check_home


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")


def _work(settings: Settings, options: argparse.Namespace) -> int:
    print_result(requeue(settings, options.names), {}, as_json=False)
    return EXIT_DONE


def requeue(settings: Settings, names: list[str]) -> str:
    """Put files back, all where none is named; say which."""
    check_home(settings)
    with exclusive_lock(settings, "requeue"):
        recovery.tidy(settings)
        with recovery.unfinished_until_done(settings, "requeue"):
            back = ground_truth.requeue(settings, names)
    return f"requeued {len(back)} files: {', '.join(back) or 'none was rejected'}"


COMMAND = Command("requeue", "put mended files from new_gts/rejected/ back", _add_flags, _work)
