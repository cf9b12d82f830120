"""The commands of the orchestrator, beside `run`: the one list that the command line reads.

A night without news imports every file here, so none of them imports anything heavy.
"""

from __future__ import annotations

from retraining.commands import (
    backup,
    check,
    correct,
    doubts,
    export_model,
    history,
    import_model,
    lineage,
    predict,
    prune,
    relocate,
    reproduce,
    requeue,
    restore,
    rollback,
    status,
    triage,
    trust,
    upgrade_store,
    withdraw,
)

COMMANDS = (
    status.COMMAND,
    predict.COMMAND,
    triage.COMMAND,
    doubts.COMMAND,
    check.COMMAND,
    history.COMMAND,
    rollback.COMMAND,
    trust.COMMAND,
    requeue.COMMAND,
    correct.COMMAND,
    withdraw.COMMAND,
    reproduce.COMMAND,
    lineage.COMMAND,
    relocate.COMMAND,
    backup.COMMAND,
    restore.COMMAND,
    prune.COMMAND,
    export_model.COMMAND,
    import_model.COMMAND,
    upgrade_store.COMMAND,
)
