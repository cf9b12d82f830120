"""Fail every request of a cycle with a promotion, in every way, and compare with a quiet twin.

A proxy stands before a real `mlflow server`. It counts the requests and fails the k-th: it refuses
the connection, answers 500 or 503, never answers, or lets the request be executed and drops the
reply; once, or from then on. Whatever happens, no file may be lost and production must be a whole
version. Then the proxy is mended and an ordinary run starts: files, versions, aliases and runs
must be those of a twin that had no outage, and one more run must change nothing.

Usage::

    python tests/tools/outage_sweep.py [--sample N [--begin B]] [--at K ...]
        [--lasting-step N] [--report FILE]

Without `--sample` every request is failed in every way once, and every N-th (by default every one)
from then on as well, which takes some hours. Ends with status 1 if anything differed.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "tools")]

from conftest import DOMAINS, FAST_WORDS, make_home, serve, write_home
from crash_sweep import Scenario, describe, differences, run_forked, warm_up, write_report
from sampling import spread

import pipeline_orchestrator
import register_first_model
from retraining.errors import EXIT_TRY_LATER
from retraining.journal import JOURNAL_NAME
from retraining.known_recordings import FILE_NAME as RECORDINGS_NAME
from retraining.notices import HEARTBEAT_NAME
from retraining.recovery import NOTE_NAME

WAYS = ("refuse", "500", "503", "hang", "cut")
HANG_SECONDS = 60
QUICK_GIVING_UP = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "2",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
}
EXIT_TERMINATED = 128 + signal.SIGTERM
DATABASE = "mlflow_server/backend_db/mlflow.db"


@dataclass(frozen=True)
class Outage:
    """What a proxy does to a request.

    Parameters
    ----------
    at
        Which request, from 1; 0 for none.
    way
        One of `WAYS`.
    lasting
        Whether all later requests fail too.
    """

    at: int = 0
    way: str = ""
    lasting: bool = False

    def __str__(self) -> str:
        return f"request {self.at}, {self.way} {'from then on' if self.lasting else 'once'}"


# --- A proxy that fails ---


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a server, counts them and fails one, or all from one on.

    Parameters
    ----------
    upstream
        Port of the server on 127.0.0.1.
    outage
        What to fail.
    port
        To listen on; a free one by default.
    """

    def __init__(self, upstream: int, outage: Outage, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Relay)
        self.upstream = upstream
        self.outage = outage
        self.passed = multiprocessing.RawValue("i", 0)
        self.failed_at = 0.0
        self._counting = threading.Lock()

    def way_now(self) -> str:
        """Count a request and say how it fails; empty if it does not."""
        with self._counting:
            self.passed.value += 1
            number, at = self.passed.value, self.outage.at
        fails = number == at or (self.outage.lasting and 0 < at < number)
        if number == at:
            self.failed_at = time.monotonic()
        return self.outage.way if fails else ""

    def handle_error(self, *_: Any) -> None:
        """Be silent about clients that gave up."""


class _Relay(BaseHTTPRequestHandler):
    server: Proxy

    def _relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        way = self.server.way_now()
        if way == "refuse":
            if self.server.outage.lasting:
                self.server.shutdown()
                self.server.server_close()
            self._drop()
        elif way == "hang":
            time.sleep(HANG_SECONDS)
        elif way == "cut":
            self._ask(body)
            self._drop()
        elif way:
            self._answer(int(way), [("Content-Type", "text/html")], b"<html>no</html>")
        else:
            self._answer(*self._ask(body))

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.server.upstream)
        ) as connection:
            connection.request(self.command, self.path, body, dict(self.headers))
            reply = connection.getresponse()
            left_out = {"transfer-encoding", "content-length", "connection"}
            headers = [pair for pair in reply.getheaders() if pair[0].lower() not in left_out]
            return reply.status, headers, reply.read()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in [*headers, ("Content-Length", str(len(body)))]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _drop(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        """Write nothing."""


for _method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
    setattr(_Relay, f"do_{_method}", _Relay._relay)


@contextlib.contextmanager
def running(proxy: Proxy) -> Iterator[Proxy]:
    """Let a proxy work in a process of its own, so that this one may fork without threads."""
    process = multiprocessing.get_context("fork").Process(target=proxy.serve_forever, daemon=True)
    process.start()
    proxy.socket.close()  # else a proxy that stops listening would be listening here
    try:
        yield proxy
    finally:
        process.kill()
        process.join()


# --- One home, one server ---


@dataclass(frozen=True)
class Stage:
    """Where the trials take place: a home whose store a server serves.

    Parameters
    ----------
    template
        The state to start from.
    home
        Served, and set back before every trial.
    upstream, port
        Of the server, and of the proxy in front of it.
    """

    template: Path
    home: Path
    upstream: int
    port: int

    def command(self, main: Callable[[list[str]], int], *words: str) -> Any:
        """Return a command for `run_forked` that talks to the proxy."""
        address = f"http://127.0.0.1:{self.port}"
        return lambda home: main([*words, "--tracking-uri", address, *home])

    @property
    def scenario(self) -> Scenario:
        """The cycle, as the crash sweep knows it."""
        cycle = self.command(pipeline_orchestrator.main, "run", *FAST_WORDS)
        return Scenario("a cycle with a promotion", self.template, (cycle,))

    def reset(self) -> None:
        """Set the home back; the server keeps running, so its database changes by transaction."""
        for name in ("new_gts", "used_gts", "mlflow_server/artifacts"):
            shutil.rmtree(self.home / name)
            shutil.copytree(self.template / name, self.home / name)
        for name in (NOTE_NAME, HEARTBEAT_NAME, JOURNAL_NAME, RECORDINGS_NAME):
            (self.home / name).unlink(missing_ok=True)
            if (self.template / name).exists():
                shutil.copy2(self.template / name, self.home)
        (self.home.parent / "log.txt").write_bytes(b"")
        copy_database(self.template / DATABASE, self.home / DATABASE)

    def run(self, outage: Outage) -> tuple[int, int]:
        """Run one cycle through an outage; return its exit status and the number of requests."""
        with running(Proxy(self.upstream, outage, self.port)) as proxy:
            status, _ = run_forked(self.scenario.commands[0], self.home)
        return status, proxy.passed.value


def copy_database(source: Path, target: Path) -> None:
    """Write one SQLite database over another, as one transaction."""
    with (
        contextlib.closing(sqlite3.connect(source)) as original,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        original.backup(copy)


@contextlib.contextmanager
def make_stage(folder: Path) -> Iterator[Stage]:
    """Start a server on a home with a first model, and a new season waiting."""
    home, template = make_home(folder / "home"), folder / "template"
    write_home(home, DOMAINS["stems"])
    with serve(home) as address:
        upstream = int(address.rpartition(":")[2])
        proxy = Proxy(upstream, Outage())
        stage = Stage(template, home, upstream, proxy.server_port)
        with running(proxy):
            status, _ = run_forked(stage.command(register_first_model.main), home)
        if status:
            sys.exit((folder / "log.txt").read_text())
        shutil.copytree(home, template, ignore=shutil.ignore_patterns("*.db*"))
        copy_database(home / DATABASE, template / DATABASE)
        yield stage


# --- What must hold ---


def broken_promises(
    outage: Outage, status: int, home: Path, first: dict[str, Any], twin: dict[str, Any]
) -> list[str]:
    """Return what is wrong right after an outage, before anything was mended."""
    log, state = (home.parent / "log.txt").read_text(), describe(home)
    files = [sorted(one["new"] + one["used"] + one["rejected"]) for one in (first, state)]
    whole = (first["aliases"]["production"], twin["aliases"]["production"])
    n_errors = sum(line.startswith("error: ") for line in log.splitlines())
    checks = {
        f"exit status {status}": status in (0, 1, 75),
        f"{n_errors} lines of error": n_errors == (status != 0),
        "a traceback": "Traceback" not in log,
        "a file was lost or doubled": files[0] == files[1],
        f"production is {state['aliases'].get('production')}": state["aliases"].get("production")
        in whole,
        "done, but not as the twin": status != 0 or state == twin,
        "not done after one failed request": outage.lasting
        or outage.at == 1
        or status == 0
        or (outage.way == "cut" and status == EXIT_TRY_LATER),
        "not told to try again": not outage.lasting or status == EXIT_TRY_LATER,
    }
    wrong = [text for text, holds in checks.items() if not holds]
    return [*wrong, f"log: {log[-1500:]}"] if wrong else []


def plan(
    n_requests: int, sample: int, begin: float, only: list[int], lasting_step: int
) -> list[Outage]:
    """Return all outages, or a sample that is spread evenly over requests and ways."""
    kinds = [(way, lasting) for lasting in (False, True) for way in WAYS]
    if sample:
        first = int(begin * len(kinds))
        return [
            Outage(1 + number, *kinds[(first + 3 * i) % len(kinds)])
            for i, number in enumerate(spread(sample, n_requests, begin))
        ]
    return [
        Outage(at, way, lasting)
        for at in only or range(1, n_requests + 1)
        for way, lasting in kinds
        if not lasting or at % lasting_step == 0
    ]


def sweep(
    stage: Stage, sample: int, begin: float, only: list[int], lasting_step: int
) -> tuple[list[list[Any]], int, int]:
    """Try the outages; return the report's rows, the number of trials and of differences."""
    stage.reset()
    first = describe(stage.home)
    status, n_requests = stage.run(Outage())
    if status:
        sys.exit((stage.home.parent / "log.txt").read_text())
    twin = describe(stage.home)
    tried: Counter[tuple[str, bool]] = Counter()
    differed, statuses = tried.copy(), Counter[tuple[str, bool, int]]()
    plans = plan(n_requests, sample, begin, only, lasting_step)
    for outage in plans:
        kind = outage.way, outage.lasting
        stage.reset()
        status, _ = stage.run(outage)
        found = broken_promises(outage, status, stage.home, first, twin)
        with running(Proxy(stage.upstream, Outage(), stage.port)):
            found += differences(stage.scenario, twin, stage.home)
        tried[kind] += 1
        statuses[*kind, status] += 1
        differed[kind] += bool(found)
        for text in found:
            print(f"{outage}: {text}", flush=True)
    rows = [
        [
            way,
            "from then on" if lasting else "once",
            tried[way, lasting],
            ", ".join(
                f"{statuses[way, lasting, code]} x {code}"
                for code in (0, 1, 75)
                if statuses[way, lasting, code]
            ),
            differed[way, lasting],
        ]
        for way, lasting in tried
    ]
    print(f"{len(plans)} outages over {n_requests} requests, {differed.total()} differences")
    return rows, len(plans), differed.total()


def main() -> int:
    """Sweep and return the exit status."""
    parser = argparse.ArgumentParser(description="Fail every request of a cycle.")
    parser.add_argument("--sample", type=int, default=0, help="number of outages; 0: all")
    parser.add_argument("--begin", type=float, default=0.5, help="turns a sample over, in [0, 1)")
    parser.add_argument("--at", type=int, nargs="*", default=[], help="only these requests")
    parser.add_argument(
        "--lasting-step", type=int, default=1, help="every N-th request also fails from then on"
    )
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))  # the server ends with it
    os.environ.update(QUICK_GIVING_UP)
    warm_up()
    with (
        tempfile.TemporaryDirectory(prefix="outage-sweep-") as name,
        make_stage(Path(name)) as stage,
    ):
        rows, tried, differed = sweep(
            stage, options.sample, options.begin, options.at, options.lasting_step
        )
    if options.report:
        columns = ["failure", "how long", "outages", "exit statuses", "differences"]
        write_report(options.report, "make outage-sweep", columns, rows)
    print(json.dumps({"outages": tried, "differences": differed}))
    return 1 if differed else 0


if __name__ == "__main__":
    sys.exit(main())
