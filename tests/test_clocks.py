"""A clock that jumps, and a process that stood still: nothing is silent, nothing is done twice."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FAST_WORDS, QUICK_PROCESS, ROOT, script
from crash_sweep import describe

from pipeline_orchestrator import main
from retraining import notices
from retraining.commands.status import status
from retraining.report import keep

SettingsOf = Callable[..., Any]


def moments(**delta: float) -> str:
    """Return a moment from now as the heartbeat has it."""
    moment = datetime.datetime.now().astimezone() + datetime.timedelta(**delta)
    return moment.isoformat(timespec="seconds")


def beat(home: Path, at: str) -> None:
    """Write the heartbeat of a run that ended at a moment."""
    content = {"outcome": "waiting", "message": "m", "completed_at": at, "at": at, "attention": {}}
    (home / notices.HEARTBEAT_NAME).write_text(json.dumps(content))


class TestHeartbeat:
    """What `status --max-age` asks."""

    @pytest.mark.parametrize(
        ("delta", "says"),
        [
            ({"days": -2}, "overdue: the last run ended 48.0 hours ago"),
            ({"minutes": -50}, ""),
            ({"minutes": 5}, ""),
            ({"hours": 2}, "2.0 hours from now: the clock was wrong then or is wrong now"),
            ({"days": 3650}, "hours from now: the clock was wrong"),
        ],
    )
    def test_one_from_the_future_is_no_silence(
        self, home: Path, settings_of: SettingsOf, delta: dict[str, float], says: str
    ) -> None:
        """It would hide every later night; a clock that is put right by minutes is nothing."""
        beat(home, moments(**delta))
        problems = [one for one in status(settings_of(home), 26)["problems"] if "last run" in one]
        assert len(problems) == bool(says)
        assert all(says in one for one in problems)

    def test_the_advice_mends_it(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Followed to the letter, once the clock is right."""
        for one in (home / "new_gts").glob("*.csv"):
            one.unlink()
        beat(home, moments(days=3650))
        words = ["status", "--max-age", "26", "--home", str(home)]
        assert main(words) == 1
        line = next(one for one in capsys.readouterr().out.splitlines() if "overdue" in one)
        assert line.endswith(f"run: python pipeline_orchestrator.py --home {home}")
        assert main(["--home", str(home)]) == 0
        assert main(words) == 0

    def test_one_that_hangs_together_with_the_zone(
        self, home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A machine that moves to another zone is not overdue, nor ahead."""
        moment = datetime.datetime.now(datetime.timezone(datetime.timedelta(hours=13)))
        beat(home, moment.isoformat(timespec="seconds"))
        assert not [one for one in status(settings_of(home), 1)["problems"] if "last run" in one]


def test_pages_of_days_to_come_go_first(tmp_path: Path) -> None:
    """They would push out every page of the nights that follow."""
    names = ["2026-01-01T02", "2026-01-02T02", "2026-01-03T01", "2027-05-01T02", "2036-01-01T02"]
    pages = [tmp_path / f"{name}-00-00_promoted.html" for name in reversed(names)]
    found = [page.name[:13] for page in keep.oldest_first(pages, "2026-01-02T02:00:00+01:00")]
    assert found == [names[3], names[4], *names[:3]]


@pytest.mark.slow
def test_a_run_that_stood_still_for_long(home: Path) -> None:
    """SIGSTOP: another one is kept out by the lock; SIGCONT: it goes on, and all is done once."""
    before = describe(home)
    words = [*FAST_WORDS, "--home", str(home)]
    stopped = subprocess.Popen(
        [sys.executable, "pipeline_orchestrator.py", *words],
        cwd=ROOT,
        env={**os.environ, **QUICK_PROCESS},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert stopped.stderr is not None
    try:
        for line in stopped.stderr:
            if "4. retrain" in line:
                break
        os.kill(stopped.pid, signal.SIGSTOP)
        for command in (["run"], ["rollback"], ["requeue"]):
            more = FAST_WORDS if command == ["run"] else []
            other = script("pipeline_orchestrator.py", *command, *more, home=home)
            assert other.returncode == 75, other.stderr
            assert f"is held by pid {stopped.pid}, run" in other.stderr
        os.kill(stopped.pid, signal.SIGCONT)
        verdict, log = stopped.communicate(timeout=200)
    finally:
        stopped.kill()
        stopped.wait()
    assert stopped.returncode == 0, log
    assert verdict.startswith("promoted: version 2 replaces version 1")
    after = describe(home)
    assert after["new"] == []
    assert after["used"] == sorted(before["new"] + before["used"])
    assert (after["versions"], after["promotions"], after["running"]) == (2, 2, 0)
