"""Run the code of a version in a process of its own, with what it needs and nothing more.

It gets a private folder as home, temporary and working folder, an environment without addresses and
credentials, and limits on time and memory. It runs as the same user: what that user may read, it
may read, so `registry.vouches` decides what gets here at all.
"""

from __future__ import annotations

import contextlib
import os
import signal
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from retraining.errors import PipelineError, stop_request
from retraining.settings import Settings
from retraining.text import printable

NEEDED = (
    *("PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "VIRTUAL_ENV"),
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
    *("PYTHONHASHSEED", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONDONTWRITEBYTECODE"),
)
NEEDED_PREFIXES = ("LC_",)
PASSWORDS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
LAST_BYTES = 20_000
LOOKS_SECONDS = 0.5
LIMITED = """
import os
import resource
import sys

limit = int(sys.argv[1])
for kind, most in (
    (getattr(resource, "RLIMIT_DATA", resource.RLIMIT_AS), limit),
    (resource.RLIMIT_FSIZE, limit),
    (resource.RLIMIT_CORE, 0),
):
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))
if sys.platform == "linux":
    import ctypes

    ctypes.CDLL(None).prctl(1, 9)  # die with the process that started this one
os.execv(sys.executable, [sys.executable, "-P", *sys.argv[2:]])
"""
"""Limits a process and becomes what was to be run."""


def run_confined(words: list[str], settings: Settings, failure: str, remedy: str) -> None:
    """Run another Python process with the code of a version.

    Parameters
    ----------
    words
        Of its command line, after the interpreter.
    failure
        What it means if that fails, for the message.

    Raises
    ------
    PipelineError
        If it fails, with the last line that it said, or takes too long.
    StoppedBySignal
        If a signal came meanwhile.
    """
    with tempfile.TemporaryDirectory(prefix="pipeline-confined-") as folder:
        environment = dict(_needed(os.environ)) | {
            "PATH": path_with_this_interpreter(),
            # Where packages of other versions were installed, which lies in the real home.
            "MLFLOW_ENV_ROOT": os.environ.get("MLFLOW_ENV_ROOT")
            or str(Path("~/.mlflow/envs").expanduser()),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONUSERBASE": site.getuserbase(),  # packages that pip installed for this user
            "HOME": folder,
            "TMPDIR": folder,
        }
        limit = str(int(settings.code_memory_mb * 1e6))
        said = Path(folder, "said")
        with said.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", LIMITED, limit, *words],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
            reason = _ended(process, settings.task_timeout)
        reason = reason or _reason(process.returncode, said)
    stop_request.obey()
    if reason:
        raise PipelineError(f"{failure}: {reason}; {remedy}")


def _needed(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in environment.items():
        if name in NEEDED or name.startswith(NEEDED_PREFIXES):
            yield name, value


def path_with_this_interpreter() -> str:
    """Return PATH with the folder of this interpreter: cron's is short, and uv may lie there."""
    beside = str(Path(sys.executable).parent)
    return os.pathsep.join([beside, os.environ.get("PATH", os.defpath)])


def without_passwords() -> dict[str, str]:
    """Return the operator's environment without the store's password and token."""
    return {name: value for name, value in os.environ.items() if name not in PASSWORDS}


def _ended(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Wait for a process, and end it when it takes too long or a signal comes; say which."""
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            try:
                process.wait(LOOKS_SECONDS)
            except subprocess.TimeoutExpired:
                stop_request.obey()
            else:
                return ""
        return f"it took more than {seconds:g} seconds; raise --task-timeout if it may"
    finally:
        # What it started, too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _reason(status: int, said: Path) -> str:
    if not status:
        return ""
    with said.open("rb") as stream:
        stream.seek(max(stream.seek(0, os.SEEK_END) - LAST_BYTES, 0))
        line = last_line(stream.read().decode(errors="replace"))
    return printable(line, 300)


def last_line(said: str) -> str:
    """Return the last thing that another process said: of a traceback, the error itself."""
    return (said.strip() or "it said nothing").splitlines()[-1]
