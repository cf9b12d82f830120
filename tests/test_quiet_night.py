"""A night without news costs one listing of the folder, however many names are in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, make_home

from retraining.files import waiting_names

N_NAMES = 19_999
COUNTING = """
import collections, json, os, sys

counts = collections.Counter()

def counted(name, function):
    def call(*values, **options):
        counts[name] += 1
        return function(*values, **options)
    return call

for name in ("stat", "lstat"):
    setattr(os, name, counted(name, getattr(os, name)))
import pipeline_orchestrator
sys.addaudithook(lambda event, _: counts.update([event]))
counts.clear()
status = pipeline_orchestrator.main(sys.argv[1:])
heavy = {"mlflow", "sklearn", "pandas", "numpy", "scipy", "joblib", "distributed", "asyncio", "ssl"}
calls = {name: counts[name] for name in ("stat", "lstat", "open", "os.scandir", "os.listdir")}
sys.stderr.write(json.dumps([status, sorted(heavy & set(sys.modules)), calls]))
"""


@pytest.fixture(scope="module")
def full_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a home where one file is missing for a cycle."""
    home = make_home(tmp_path_factory.mktemp("full") / "home")
    for number in range(N_NAMES):
        (home / "new_gts" / f"{number}.csv").touch()
    return home


def quiet_night(home: Path) -> tuple[str, list[str], dict[str, int]]:
    """Run the orchestrator; return what it printed, what it imported and what it called."""
    words = ("--json", "--min-new-files", str(N_NAMES + 1), "--home", str(home))
    done = subprocess.run(
        [sys.executable, "-c", COUNTING, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    status, heavy, calls = json.loads(done.stderr)
    assert status == 0
    return json.loads(done.stdout)["message"], heavy, calls


def test_twenty_thousand_names_cost_one_listing(full_home: Path, tmp_path: Path) -> None:
    """No file is looked at: the same calls as with an empty folder, and nothing heavy imported."""
    message, heavy, calls = quiet_night(full_home)
    assert message == "waiting: 19999 of 20000 new ground truth files"
    assert heavy == []
    empty, heavy, calls_for_none = quiet_night(make_home(tmp_path / "home"))
    assert empty == "waiting: 0 of 20000 new ground truth files"
    assert (heavy, calls) == ([], calls_for_none)


def test_listing_is_as_fast_as_the_system_lists(full_home: Path) -> None:
    """At most twenty times `os.listdir`, the best of five each: about four in practice."""

    def best(list_names: object) -> float:
        assert callable(list_names)
        took = []
        for _ in range(5):
            began = time.perf_counter()
            list_names(full_home / "new_gts")
            took.append(time.perf_counter() - began)
        return min(took)

    assert best(waiting_names) < 20 * best(os.listdir)
