"""The processes that train: machines that allow none, workers that are killed or left alone."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FULL_SIZE, ROOT, make_home, script
from fast_module import write_fast_module

from retraining import workers
from retraining.errors import PipelineError, TryLaterError
from retraining.registry.store import as_pipeline_error
from retraining.settings import Settings
from retraining.training import load_training_module

KILLED_IN_FIT = """
_fit = fit


def fit(examples, random_state):
    import multiprocessing, os
    if multiprocessing.current_process().name != "MainProcess":
        os.kill(os.getpid(), 9)
    return _fit(examples, random_state)
"""
POOL = """
import logging, os, sys
sys.path.insert(0, {root!r})
logging.basicConfig(format="%(message)s")
import joblib
from retraining.workers import local_workers
with local_workers(2):
    found = joblib.Parallel()(joblib.delayed({task})(i) for i in range(4))
print(found)
"""


def in_own_mounts(mounts: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command after some mounts that nobody else sees, or skip."""
    allowed = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    if allowed.returncode:
        pytest.skip("this user may not mount anything (unshare -m)")
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{mounts} && exec "$@"', "sh", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, **environment},
    )


@pytest.fixture
def season(registered_template: Path, tmp_path: Path) -> Path:
    """Give a home without a store, with recordings to train on."""
    home = make_home(tmp_path / "home")
    shutil.copytree(registered_template / "used_gts", home / "used_gts", dirs_exist_ok=True)
    return home


@pytest.fixture
def words() -> Callable[..., list[str]]:
    """Give a maker of flags for a quick training."""
    return lambda module, n_jobs: [
        *("--train", "--n-folds", "3", "--training-module", str(module), "--n-jobs", str(n_jobs)),
    ]


class TestSharedMemory:
    """Pools of processes talk through semaphores in /dev/shm."""

    @pytest.mark.parametrize(
        "how",
        ["-o ro", pytest.param("-o size=4k", marks=pytest.mark.slow)],
    )
    def test_without_any_one_process_works_and_it_is_told(self, how: str) -> None:
        """The same results; docs and warning say how to get more."""
        code = POOL.format(root=str(ROOT), task="abs")
        mount = f"mount -t tmpfs {how} tmpfs /dev/shm"
        done = in_own_mounts(mount, sys.executable, "-c", code)
        assert done.stdout == "[0, 1, 2, 3]\n", done.stderr
        assert "training goes on in one process, more slowly: [Errno" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.slow
    def test_64_kilobytes_are_enough(self) -> None:
        """As containers have them, where nobody sets more."""
        code = POOL.format(root=str(ROOT), task="abs")
        done = in_own_mounts(
            "mount -t tmpfs -o size=64k tmpfs /dev/shm", sys.executable, "-c", code
        )
        assert done.stdout == "[0, 1, 2, 3]\n", done.stderr

    @pytest.mark.slow
    def test_a_whole_training_without_any(
        self, season: Path, tmp_path: Path, words: Callable[..., list[str]]
    ) -> None:
        """It registers; this was an error before."""
        module = write_fast_module(tmp_path)
        done = in_own_mounts(
            "mount -t tmpfs -o ro tmpfs /dev/shm",
            *(sys.executable, str(ROOT / "register_first_model.py"), *words(module, 2)),
            *("--home", str(season)),
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("registered version 1")
        assert done.stderr.count("training goes on in one process") == 1

    def test_no_semaphores_at_all(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A kernel without them, too."""
        import joblib

        def refuses(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refuses)
        with caplog.at_level(logging.WARNING), workers.local_workers(2):
            assert (
                joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(2))
                == [os.getpid()] * 2
            )
        assert "Function not implemented" in caplog.text


class TestDeaths:
    """A process that is killed is nobody's mistake."""

    @pytest.mark.slow
    def test_a_worker_that_is_killed_for_memory(
        self, season: Path, tmp_path: Path, words: Callable[..., list[str]]
    ) -> None:
        """Tried later, with the remedy, which helps."""
        module = write_fast_module(tmp_path, KILLED_IN_FIT)
        done = script("register_first_model.py", *words(module, 2), home=season, **FULL_SIZE)
        assert done.returncode == 75, done.stderr
        line = done.stderr.splitlines()[-1]
        assert "was killed (SIGKILL(-9)" in line
        assert "memory ran out" in line
        assert "Traceback" not in done.stderr
        *_, flag, number = line.removesuffix(" needs least").split()
        assert flag == "--n-jobs"
        done = script("register_first_model.py", *words(module, number), home=season, **FULL_SIZE)
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize(
        ("how", "kind", "words"),
        [
            ("os.kill(os.getpid(), 9)", TryLaterError, r"SIGKILL.* memory ran out: .* --n-jobs 1"),
            ("os.abort()", PipelineError, r"ended by itself \(SIGABRT"),
        ],
    )
    def test_what_ends_a_process(self, how: str, kind: type[PipelineError], words: str) -> None:
        """From outside, as the kernel does, or by a crash of its own."""
        import joblib

        with (
            pytest.raises(kind, match=words) as caught,
            workers.deaths_told(),
            workers.local_workers(2),
        ):
            joblib.Parallel()(joblib.delayed(exec)(f"import os; {how}") for _ in range(2))
        assert "\n" not in str(caught.value)
        assert (caught.value.exit_status == 75) == (kind is TryLaterError)

    def test_memory_that_runs_out(self) -> None:
        """In this process or another one, wherever."""
        with (
            pytest.raises(TryLaterError, match="memory ran out .* --n-jobs 1"),
            workers.deaths_told(),
        ):
            raise MemoryError("Unable to allocate 3 TiB")
        known = as_pipeline_error(MemoryError(), Settings())
        assert known is not None
        assert known.exit_status == 75

    def test_it_is_no_mistake_of_the_module(self, settings_of: Callable[..., Any]) -> None:
        """Although the module's own code was at work."""
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        training = load_training_module(settings_of(ROOT))
        with pytest.raises(TerminatedWorkerError), training.mistakes_told("fit"):
            raise TerminatedWorkerError("The exit codes of the workers are {SIGKILL(-9)}")

    @pytest.mark.slow
    def test_no_worker_outlives_its_parent(self) -> None:
        """Killed as the kernel does it, when nobody can tell them."""
        code = POOL.format(root=str(ROOT), task="__import__('time').sleep").replace(
            "(i) for i", "(100) for i"
        )
        parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        for _ in range(200):
            children = loky_workers(parent.pid)
            if len(children) == 2:
                break
            time.sleep(0.1)
        assert len(children) == 2
        time.sleep(2)  # until they work
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        until = time.monotonic() + workers.PARENT_SECONDS + 5
        while any(is_alive(pid) for pid in children) and time.monotonic() < until:
            time.sleep(0.2)
        left = [pid for pid in children if is_alive(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert left == []


def loky_workers(parent: int) -> list[int]:
    """Return the processes of a pool, without the one that only tidies up."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            words = (status.parent / "cmdline").read_bytes()
            if int(fields[1]) == parent and b"popen_loky" in words:
                found.append(int(status.parent.name))
    return found


def is_alive(pid: int) -> bool:
    """Say whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
