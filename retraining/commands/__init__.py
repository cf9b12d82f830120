"""The commands of the orchestrator, beside `run`: the one list that the command line reads.

A night without news imports every file here, so none of them imports anything heavy.
"""

from __future__ import annotations

from retraining.commands import (
    check,
    history,
    lineage,
    predict,
    reproduce,
    requeue,
    rollback,
    status,
    upgrade_store,
)

COMMANDS = (
    status.COMMAND,
    predict.COMMAND,
    check.COMMAND,
    history.COMMAND,
    rollback.COMMAND,
    requeue.COMMAND,
    reproduce.COMMAND,
    lineage.COMMAND,
    upgrade_store.COMMAND,
)
