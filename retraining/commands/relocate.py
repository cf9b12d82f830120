"""`relocate`: the home was moved or copied; let its store point to where it is."""

from __future__ import annotations

import argparse

from retraining.command_line import Command, print_result
from retraining.errors import EXIT_DONE
from retraining.files import exclusive_lock
from retraining.registry.relocation import relocate
from retraining.settings import Settings, check_home


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--copy", action="store_true", help="the original goes on: this home gets an id of its own"
    )


def _work(settings: Settings, options: argparse.Namespace) -> int:
    check_home(settings)
    # Nothing is tidied before: what a dead command left is found again by what comes after.
    with exclusive_lock(settings, "relocate"):
        print_result(relocate(settings, as_copy=options.copy), {}, as_json=False)
    return EXIT_DONE


COMMAND = Command("relocate", "let the store of a moved home point to it", _add_flags, _work)
