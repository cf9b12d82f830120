"""The processes that train on this machine: whether there can be any, whose they are, their end.

Nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

from retraining.errors import PipelineError, TryLaterError
from retraining.text import printable

SEMAPHORES = 16
"""joblib needs eight for a pool; each takes a page of /dev/shm."""
PARENT_SECONDS = 5.0
EXIT_CODES = re.compile(r"exit codes of the workers are \{([^}]*)\}")
KILLED = "SIGKILL"

logger = logging.getLogger("pipeline")


def local_workers(n_jobs: int) -> Any:
    """Return the context in which joblib spreads work over processes, or keeps it in this one.

    Parameters
    ----------
    n_jobs
        Processes, -1 for one per core; with 1, and where the machine allows no more, there is none
        beside this one.
    """
    import joblib

    if n_jobs == 1 or not _processes_can_be_had():
        return joblib.parallel_config("sequential")
    # Processes: boosting holds the interpreter lock, so that threads would only wait for it.
    return joblib.parallel_config(
        "loky",
        n_jobs=n_jobs,
        inner_max_num_threads=1,
        initializer=end_with_parent,
        initargs=(os.getpid(),),
    )


def _processes_can_be_had() -> bool:
    """Ask for what a pool of processes talks through; say where it cannot be had."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    try:
        locks = [context.Lock() for _ in range(SEMAPHORES)]
    except (OSError, ImportError) as error:
        logger.warning(
            "training goes on in one process, more slowly: %s; more need a /dev/shm to write to, "
            "of 64 MB (docker run --shm-size 64m)",
            printable(error),
        )
        return False
    return len(locks) == SEMAPHORES


def end_with_parent(parent: int) -> None:
    """Let this process end soon after the one that started it, however that ended."""
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)


@contextlib.contextmanager
def deaths_told() -> Iterator[None]:
    """Say in one line what the end of a process, or of the memory, means."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = death_in_words(error)
        if known is None:
            raise
        raise known from error


def death_in_words(error: BaseException) -> PipelineError | None:
    """Return what an operator should read for the death of a process; None for anything else."""
    from concurrent.futures.process import BrokenProcessPool

    remedy = (
        "let this machine have more, or less to do at that time, or train in fewer processes: "
        "--n-jobs 1 needs least"
    )
    if isinstance(error, MemoryError):
        return TryLaterError(f"memory ran out ({printable(error, 200)}): {remedy}")
    if not isinstance(error, BrokenProcessPool):
        return None
    codes = EXIT_CODES.search(str(error))
    said = printable(codes[1], 100) if codes else "without a word"
    if codes and KILLED not in codes[1]:
        return PipelineError(
            f"a process that trained ended by itself ({said}): look at what it said before; with "
            "--n-jobs 1 it happens in this process"
        )
    return TryLaterError(
        f"a process that trained was killed ({said}), most likely because memory ran out: {remedy}"
    )
