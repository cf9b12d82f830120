"""Expected errors, the exit statuses they end with, and the stop request of a signal."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Collection
from types import FrameType

EXIT_DONE = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_TRY_LATER = 75
EXIT_SIGNAL_BASE = 128
EXIT_STATUSES = {
    f"{EXIT_DONE}": "done, whatever the verdict",
    f"{EXIT_ERROR}": "an error: the message says what to do; nothing half changed",
    f"{EXIT_USAGE}": "a wrong flag or value",
    f"{EXIT_TRY_LATER}": "try again later: another command holds the lock, "
    "or the store or the Dask cluster is unreachable",
    f"{EXIT_SIGNAL_BASE} + n": "stopped by signal n, between two steps; the next run goes on",
}
LOG_TIME = "%Y-%m-%d %H:%M:%S"
STANDARD_ERROR = 2
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class PipelineError(Exception):
    """An expected failure: one line for the operator, and an exit status."""

    exit_status = EXIT_ERROR


class TryLaterError(PipelineError):
    """Something that may be gone at the next run: a lock, an unreachable store."""

    exit_status = EXIT_TRY_LATER


class UsageError(PipelineError):
    """A wrong flag, value or combination."""

    exit_status = EXIT_USAGE


class StoppedBySignal(PipelineError):
    """The command was asked to stop and did so between two steps.

    Parameters
    ----------
    signal_number
        What asked for it.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}; the next run goes on from here")
        self.exit_status = EXIT_SIGNAL_BASE + signal_number


def raised_by(error: BaseException, packages: Collection[str], called_by: str) -> bool:
    """Say whether code of other packages raised an error, called by one of ours.

    Parameters
    ----------
    packages
        Their names at the top.
    called_by
        The name of ours.
    """
    roots = [
        str(frame.f_globals.get("__name__", "")).partition(".")[0]
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    last_of_ours = max((place for place, root in enumerate(roots) if root == called_by), default=-1)
    return not set(packages).isdisjoint(roots[last_of_ours + 1 :])


# --- Stopping between steps ---


class StopRequest:
    """Remembers a signal until the step at hand is done; a second one ends it at once."""

    def __init__(self) -> None:
        self._signal_number = 0

    def listen(self) -> None:
        """Take over SIGTERM, SIGINT and SIGHUP, unless the caller had them ignored (nohup)."""
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._remember)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self._signal_number = number
        for each in STOP_SIGNALS:
            if signal.getsignal(each) == self._remember:
                signal.signal(each, signal.SIG_DFL)
        said = f"signal {number}: stopping after this step; once more to stop at once"
        # Not through the log: the signal may have come while that was writing.
        os.write(STANDARD_ERROR, f"{time.strftime(LOG_TIME)} WARNING {said}\n".encode())

    def obey(self) -> None:
        """Stop here if a signal came.

        Raises
        ------
        StoppedBySignal
            If one came.
        """
        if self._signal_number:
            raise StoppedBySignal(self._signal_number)


stop_request = StopRequest()
