"""A store or a disk that fails: nothing is lost, one line says so, the next run completes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    BATCH,
    FAST_WORDS,
    OLD_SEASON_FILES,
    QUICK_PROCESS,
    ROOT,
    copy_home,
    make_home,
    run_sweep,
    script,
)
from crash_sweep import describe
from outage_sweep import Outage, Proxy
from sampling import Part

import register_first_model
from pipeline_orchestrator import main
from retraining.errors import PipelineError, TryLaterError
from retraining.registry import open_registry
from retraining.registry.facts import MONITORING_RUN, TAG_HOME
from retraining.registry.runs import ONE_SHORT_TRY
from retraining.registry.store import as_pipeline_error
from retraining.training import load_training_module

SettingsOf = Callable[..., Any]
Server = Callable[[bytes], str]

DATABASE = "mlflow_server/backend_db/mlflow.db"


def run(home: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one cycle as a process."""
    return script("pipeline_orchestrator.py", *words, *FAST_WORDS, home=home, **environment)


def start(home: Path, *words: str) -> subprocess.Popen[str]:
    """Start one cycle as a process."""
    return subprocess.Popen(
        [sys.executable, "pipeline_orchestrator.py", *words, *FAST_WORDS, "--home", str(home)],
        cwd=ROOT,
        env={**os.environ, **QUICK_PROCESS},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def the_error(log: str) -> str:
    """Return the only line of a log that is an error; no traceback may stand beside it."""
    assert "Traceback" not in log
    lines = [line for line in log.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, log
    return lines[0]


def files(state: dict[str, Any]) -> list[str]:
    """Return the contents of a home, wherever they are."""
    return sorted(state["new"] + state["used"] + state["rejected"])


def assert_promoted_once(home: Path, before: dict[str, Any]) -> None:
    """Compare with the state after one uninterrupted cycle with a promotion."""
    after = describe(home)
    assert (after["new"], after["used"]) == ([], files(before))
    assert after["store"] == before["store"]
    assert (after["versions"], after["promotions"], after["running"]) == (2, 2, 0)
    assert after["aliases"]["previous_production"] == before["aliases"]["production"]
    verdict, whole = after["aliases"]["production"][1:]
    assert (verdict, whole) == ("promote", True)
    assert after["left over"] == []


def assert_nothing_half_done(home: Path, before: dict[str, Any]) -> None:
    """Check the files, that the store opens, that production is the old or a whole version."""
    state = describe(home)
    assert files(state) == files(before)
    assert state["store"] == before["store"]
    production = state["aliases"]["production"]
    assert production == before["aliases"]["production"] or production[1:] == ("promote", True)


class TestFailedRequests:
    """A proxy before a real server."""

    @pytest.mark.slow
    def test_no_failed_request_makes_a_difference(
        self, figure: Callable[[str, Any], None], part: Part
    ) -> None:
        """A sample spread over all requests and ways; `make outage-sweep` takes them all."""
        n_outages = part.of(24, 10)
        words = ("--sample", n_outages, "--begin", part.begin("outages"))
        printed = run_sweep("outage_sweep.py", *words)
        print(f"\n{printed}")
        result = json.loads(printed.splitlines()[-1])
        figure("outages of the store, differences from a quiet twin", result)
        assert result == {"outages": int(n_outages), "differences": 0}


class TestUnreachableServer:
    """With the time limits that the tool sets."""

    @pytest.fixture
    def broken_server(self) -> Iterator[Server]:
        """Give a starter of servers that greet with some bytes and never say more."""
        sockets = []

        def start(greeting: bytes) -> str:
            one = socket.create_server(("127.0.0.1", 0))
            sockets.append(one)
            if greeting:
                threading.Thread(target=greet, args=(one, greeting), daemon=True).start()
            return f"http://127.0.0.1:{one.getsockname()[1]}"

        def greet(one: socket.socket, greeting: bytes) -> None:
            connection, _ = one.accept()
            sockets.append(connection)
            connection.recv(1000)
            connection.sendall(greeting)

        yield start
        for one in sockets:
            one.close()

    @pytest.mark.parametrize(
        ("greeting", "reason"),
        [
            (None, "Connection refused"),
            (b"", "timed out"),
            (b"SSH-2.0-OpenSSH_9.6\r\n", "SSH-2.0-OpenSSH_9.6"),
            (b"HTTP/1.0 503 Busy\r\n\r\n", "HTTP Error 503: Busy"),
        ],
        ids=["dead", "hanging", "something else", "503"],
    )
    def test_a_server_that_does_not_answer_is_tried_later(
        self, home: Path, broken_server: Server, greeting: bytes | None, reason: str
    ) -> None:
        """Exit 75 with one line within 30 s; nothing is touched."""
        before = describe(home)
        address = "http://127.0.0.1:9" if greeting is None else broken_server(greeting)
        began = time.monotonic()
        done = run(home, "--tracking-uri", address)
        assert time.monotonic() - began < 30
        assert done.returncode == 75, done.stderr
        assert the_error(done.stderr).startswith(f"error: the MLflow server {address} does not")
        assert reason in the_error(done.stderr)
        assert describe(home) == before

    @pytest.mark.slow
    def test_a_server_that_falls_silent_costs_at_most_30_seconds(
        self, registered_template: Path, tmp_path: Path, settings_of: SettingsOf, free_server: Any
    ) -> None:
        """Even while several files are downloaded at a time, where the waiting is longest."""
        home = make_home(tmp_path / "home")
        for name in ("new_gts", "used_gts", "model"):
            shutil.copytree(registered_template / name, home / name, dirs_exist_ok=True)
        address = free_server(tmp_path / "server")
        register_first_model.register_first_model(settings_of(home, tracking_uri=address))
        proxy = Proxy(int(address.rpartition(":")[2]), Outage(at=12, way="hang", lasting=True))
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        done = run(home, "--tracking-uri", f"http://127.0.0.1:{proxy.server_port}")
        waited = time.monotonic() - proxy.failed_at
        proxy.shutdown()
        proxy.server_close()
        print(f"\na server that fell silent at request 12 cost {waited:.1f} s")
        assert done.returncode == 75, done.stderr
        assert "failed" in the_error(done.stderr)
        assert waited < 30


class TestClassification:
    """What is tried later, and what somebody must mend."""

    def test_the_store_is_down_or_it_refuses(self, home: Path, settings_of: SettingsOf) -> None:
        """Unreachable, overloaded and locked: 75; forbidden, unknown and malformed: 1."""
        from mlflow.exceptions import MlflowException, RestException
        from requests import ConnectionError as NoConnection
        from requests import HTTPError, Response

        def http_error(status: int) -> HTTPError:
            response = Response()
            response.status_code = status
            return HTTPError(f"{status}", response=response)

        table = [
            (MlflowException("API request failed with timeout exception"), 75),
            (RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": "locked"}), 75),
            (RestException({"error_code": "RESOURCE_EXHAUSTED", "message": "slow down"}), 75),
            (RestException({"error_code": "PERMISSION_DENIED", "message": "no"}), 1),
            (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "gone"}), 1),
            (RestException({"error_code": "BAD_REQUEST", "message": "what?"}), 1),
            (NoConnection("reset"), 75),
            (http_error(502), 75),
            (http_error(403), 1),
            (OSError(errno.ENOSPC, "No space left on device"), 1),
        ]
        for error, status in table:
            known = as_pipeline_error(error, settings_of(home))
            assert known is not None
            assert known.exit_status == status, error
        assert as_pipeline_error(KeyError("a bug"), settings_of(home)) is None

    def test_closing_a_run_does_not_hide_why_it_failed(
        self, home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first error is the one to read; the time limits stay as they were."""
        registry = open_registry(settings_of(home))
        limits = {name: os.environ[name] for name in ONE_SHORT_TRY}
        found = {}

        def fails(*_: Any) -> None:
            from mlflow.exceptions import MlflowException

            found.update({name: os.environ[name] for name in limits})
            raise MlflowException("the store is gone")

        with (
            pytest.raises(PipelineError, match="the first error"),
            registry.runs.open(MONITORING_RUN, {}),
        ):
            monkeypatch.setattr("mlflow.MlflowClient.set_terminated", fails)
            raise PipelineError("the first error")
        assert found == ONE_SHORT_TRY
        assert {name: os.environ[name] for name in limits} == limits

    def test_a_lost_reply_leaves_no_second_run_open(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """Of two runs that one POST made, the one nobody knows is closed."""
        registry = open_registry(settings_of(home))
        client, tags = (
            registry.runs.connection.client,
            {TAG_HOME: registry.runs.connection.home_id},
        )
        experiment = registry.runs.experiment_id()
        lost = client.create_run(experiment, tags=tags, run_name=MONITORING_RUN)
        with registry.runs.open(MONITORING_RUN, {}) as run_id:
            assert client.get_run(lost.info.run_id).info.status == "KILLED"
            assert client.get_run(run_id).info.status == "RUNNING"
        assert describe(home)["running"] == 0


class TestLockedDatabase:
    """Somebody else holds the embedded store for longer than anyone waits."""

    @pytest.fixture
    def locked(self, home: Path) -> Iterator[Callable[[], Any]]:
        """Give a context manager that locks the store of the home."""
        with contextlib.closing(sqlite3.connect(home / DATABASE, isolation_level=None)) as store:

            @contextlib.contextmanager
            def lock() -> Iterator[None]:
                store.execute("BEGIN EXCLUSIVE")
                yield
                store.execute("ROLLBACK")

            yield lock

    @pytest.mark.slow
    def test_a_locked_store_is_tried_later(
        self, home: Path, locked: Any, fast_training: None
    ) -> None:
        """Exit 75, not the advice to restore a backup; the next run completes."""
        before = describe(home)
        with locked():
            done = run(home)
        assert done.returncode == 75, done.stderr
        assert the_error(done.stderr).endswith(f"{home / DATABASE} is locked by another process")
        assert describe(home) == before
        assert main(["run", *FAST_WORDS, "--home", str(home)]) == 0
        assert_promoted_once(home, before)

    @pytest.mark.slow
    def test_a_store_that_is_locked_during_training(self, home: Path, locked: Any) -> None:
        """The challenger is lost, nothing else; MLflow waits 20 s for each of two calls."""
        before = describe(home)
        process = start(home)
        assert process.stderr is not None
        with contextlib.ExitStack() as stack:
            for line in process.stderr:
                if "trained on" in line:
                    stack.enter_context(locked())
                    break
            _, log = process.communicate(timeout=200)
        assert process.returncode == 75, log
        assert "database is locked" in the_error(log)
        assert_nothing_half_done(home, before)
        assert run(home).returncode == 0
        assert_promoted_once(home, before)


@pytest.mark.slow
class TestOneAtATime:
    """Twenty starts at once."""

    def test_of_twenty_starts_one_works(self, home: Path) -> None:
        """The others end with 75 and name it; the state is that after one run."""
        before = describe(home)
        go_on, hook = home / "go_on", home / "hook.py"
        hook.write_text(
            "import pathlib, time\n"
            "for _ in range(500):\n"
            f"    if pathlib.Path({str(go_on)!r}).exists():\n"
            "        break\n"
            "    time.sleep(0.1)\n"
        )
        waiting = [start(home, "--on-promotion", f"{sys.executable} {hook}") for _ in range(20)]
        ended: dict[int, str] = {}
        for _ in range(600):
            for process in [one for one in waiting if one.poll() is not None]:
                waiting.remove(process)
                assert process.returncode == 75
                ended[process.pid] = the_error(process.communicate()[1])
            if len(ended) == 19:
                break
            time.sleep(0.1)
        (worker,) = waiting
        assert worker.poll() is None
        go_on.touch()
        verdict, log = worker.communicate(timeout=100)
        assert worker.returncode == 0, log
        assert verdict.startswith("promoted: version 2 replaces version 1")
        naming = [line for line in ended.values() if f"is held by pid {worker.pid}, run" in line]
        assert len(naming) == 19, ended
        assert_promoted_once(home, before)


class TestFullDisk:
    """No space left, at different points of a cycle."""

    @pytest.fixture
    def small_disk(self, registered_template: Path, tmp_path: Path) -> Iterator[Path]:
        """Give the registered home on a filesystem of 32 MB, or skip."""
        disk = tmp_path / "disk"
        disk.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)],
            capture_output=True,
            text=True,
            check=False,
        )
        if mounted.returncode:
            pytest.skip(f"this user may not mount a tmpfs: {mounted.stderr.strip()}")
        yield copy_home(registered_template, disk / "home")
        subprocess.run(["umount", "--lazy", str(disk)], check=True)

    @pytest.mark.slow
    @pytest.mark.sampled(0.4)
    @pytest.mark.parametrize("free_kb", [0, 64, 300, 800, 1500])
    def test_a_full_disk_loses_nothing(self, small_disk: Path, free_kb: int) -> None:
        """Whatever fits, the store stays whole, and with more space the next run completes."""
        before = describe(small_disk)
        ballast = small_disk.parent / "ballast"
        free = shutil.disk_usage(small_disk).free - free_kb * 1024
        ballast.write_bytes(b"x" * free)
        done = run(small_disk)
        print(f"\n{free_kb} KB free: exit {done.returncode}: {done.stderr.splitlines()[-1]}")
        assert done.returncode in (1, 75), done.stderr
        the_error(done.stderr)
        assert_nothing_half_done(small_disk, before)
        ballast.unlink()
        done = run(small_disk)
        assert done.returncode == 0, done.stderr
        assert_promoted_once(small_disk, before)

    @pytest.mark.slow
    def test_a_disk_that_became_read_only(self, small_disk: Path) -> None:
        """One line; after it was mounted again, the next run completes."""
        before = describe(small_disk)
        mount = ["mount", "-o", "remount,ro", str(small_disk.parent)]
        subprocess.run(mount, check=True)
        done = run(small_disk)
        assert done.returncode == 1, done.stderr
        assert "Read-only file system" in the_error(done.stderr)
        assert describe(small_disk) == before
        subprocess.run([*mount[:2], "remount,rw", *mount[3:]], check=True)
        assert run(small_disk).returncode == 0
        assert_promoted_once(small_disk, before)

    @pytest.mark.slow
    def test_a_database_file_that_became_read_only(self, home: Path) -> None:
        """The store alone; one line, and the next run completes."""
        before = describe(home)
        database = home / "mlflow_server/backend_db/mlflow.db"
        mounted = subprocess.run(
            ["mount", "--bind", database, database], capture_output=True, text=True, check=False
        )
        if mounted.returncode:
            pytest.skip(f"this user may not mount a file: {mounted.stderr.strip()}")
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", database], check=True)
            done = run(home)
        finally:
            subprocess.run(["umount", "--lazy", database], check=True)
        assert done.returncode in (1, 75), done.stderr
        assert "readonly database" in the_error(done.stderr)
        assert_nothing_half_done(home, before)
        done = run(home)
        assert done.returncode == 0, done.stderr
        assert_promoted_once(home, before)

    @pytest.mark.slow
    @pytest.mark.sampled(0.5)
    @pytest.mark.parametrize("largest_kb", [0, 8, 100, 1000])
    def test_a_file_that_may_not_grow(self, home: Path, largest_kb: int) -> None:
        """A quota: every write beyond it fails, in the database too."""
        before = describe(home)
        done = subprocess.run(
            [
                *("bash", "-c", 'ulimit -f "$0" && exec "$@"', str(largest_kb)),
                *(sys.executable, str(ROOT / "pipeline_orchestrator.py"), *FAST_WORDS),
                *("--home", str(home)),
            ],
            env={**os.environ, **QUICK_PROCESS},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        print(f"\n{largest_kb} KB: exit {done.returncode}: {done.stderr.splitlines()[-1]}")
        assert done.returncode in (0, 1, 75), done.stderr
        if done.returncode:
            the_error(done.stderr)
        assert_nothing_half_done(home, before)
        assert run(home).returncode == 0
        assert_promoted_once(home, before)

    @pytest.mark.sampled(0.5)
    @pytest.mark.parametrize(
        "call", [1, *(pytest.param(one, marks=pytest.mark.slow) for one in (2, 5, 20, 36))]
    )
    def test_a_failing_sync_stops_the_cycle(
        self,
        home: Path,
        call: int,
        fast_training: None,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """The disk is full at the n-th durable write: exit 1, then the next run completes."""
        before, sync, calls = describe(home), os.fsync, 0

        def full(descriptor: int) -> None:
            nonlocal calls
            if "reports" in Path(f"/proc/self/fd/{descriptor}").readlink().parts:
                return  # nothing depends on the page, which tells of the failure
            calls += 1
            if calls == call:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            status = main(["run", *FAST_WORDS, "--home", str(home)])
        assert status == 1
        assert calls >= call
        assert "No space left on device; check the disk" in the_error(capsys.readouterr().err)
        assert_nothing_half_done(home, before)
        assert main(["run", *FAST_WORDS, "--home", str(home)]) == 0
        assert_promoted_once(home, before)


def test_an_unreachable_store_is_told_from_a_missing_file(
    home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told to roll back because a server is down."""
    from mlflow.exceptions import MlflowException

    registry = open_registry(settings_of(home))
    version = registry.production.champion()

    def is_down(**_: Any) -> str:
        raise MlflowException("API request failed: connection refused")

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", is_down)
    with pytest.raises(MlflowException, match="connection refused") as caught:
        registry.models.load(version, load_training_module(settings_of(home)))
    known = as_pipeline_error(caught.value, settings_of(home))
    assert isinstance(known, TryLaterError)


def test_the_home_is_that_of_a_pending_promotion(home: Path) -> None:
    """What the tests above start from."""
    state = describe(home)
    assert (len(state["new"]), len(state["used"])) == (BATCH, OLD_SEASON_FILES)
    assert (state["versions"], state["promotions"]) == (1, 1)
