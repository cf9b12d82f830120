"""`upgrade-store`: migrate the embedded store to the installed MLflow, with a backup."""

from __future__ import annotations

import argparse

from retraining.command_line import Command, no_flags, print_result
from retraining.errors import EXIT_DONE
from retraining.files import exclusive_lock
from retraining.registry.store import upgrade_store
from retraining.settings import Settings, check_home


def _work(settings: Settings, _options: argparse.Namespace) -> int:
    check_home(settings)
    with exclusive_lock(settings, "upgrade-store"):
        print_result(upgrade_store(settings), {}, as_json=False)
    return EXIT_DONE


COMMAND = Command("upgrade-store", "migrate the embedded store, with a backup", no_flags, _work)
