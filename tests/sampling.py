"""Run a part of each long table: another one at every commit, spread evenly over its cases.

A test marked `sampled(share)` runs that share of its parameters under `--sample`; the others are
left out. Tests of one class or file that are marked `sampled(share, "name")` are one table under
this name. Without `--sample` everything runs.
"""

from __future__ import annotations

import functools
import hashlib
import math
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

OPTION = "--sample"
WHOLE = "make test-slow"
_COUNTS = pytest.StashKey[dict[str, int]]()


@functools.cache
def commit() -> str:
    """Return the commit that turns the samples over; a fixed word outside of a repository."""
    words, folder = ["git", "rev-parse", "HEAD"], Path(__file__).parent
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return done.stdout.strip()


def turn(table: str, of_commit: str) -> float:
    """Return where the sample of a table begins, in [0, 1): each has a turn of its own."""
    digest = hashlib.sha256(f"{of_commit} {table}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def spread(n_chosen: int, n_cases: int, begin: float) -> list[int]:
    """Return so many of some cases, counted from 0, with the same distance between them.

    Over all `begin` in [0, 1) each case is chosen equally often.
    """
    return [int((i + begin) * n_cases / n_chosen) for i in range(n_chosen)]


def chosen(n_cases: int, share: float, begin: float) -> list[int]:
    """Return which of some cases run: a share of them, and at least one."""
    return spread(max(1, math.ceil(share * n_cases - 1e-9)), n_cases, begin)


def table_of(item: pytest.Item, marker: pytest.Mark) -> str:
    """Return the test without its parameters, or the named table of its file."""
    if len(marker.args) > 1:
        return f"{item.nodeid.partition('::')[0]}::{marker.args[1]}"
    return item.nodeid.partition("[")[0]


def left_out(items: Sequence[pytest.Item], of_commit: str) -> list[pytest.Item]:
    """Return the cases that another commit runs."""
    tables: dict[str, list[pytest.Item]] = defaultdict(list)
    shares: dict[str, float] = {}
    for item in items:
        if marker := item.get_closest_marker("sampled"):
            table = table_of(item, marker)
            tables[table].append(item)
            shares[table] = marker.args[0]
    return [
        one
        for table, cases in tables.items()
        for run in [chosen(len(cases), shares[table], turn(table, of_commit))]
        for number, one in enumerate(cases)
        if number not in run
    ]


# --- What is no table ---


@dataclass(frozen=True)
class Part:
    """How much of a sweep runs, and where it begins."""

    sample: bool

    def of(self, whole: int, part: int) -> str:
        """Return a number for a command line: the second one under `--sample`."""
        return str(part if self.sample else whole)

    def some(self, cases: Sequence[str], n_part: int) -> list[str]:
        """Return all cases, or so many of them under `--sample`."""
        n_cases = len(cases)
        number = n_part if self.sample else n_cases
        return [cases[i] for i in spread(number, n_cases, turn(cases[0], commit()))]

    def begin(self, name: str) -> str:
        """Return where the points of a sweep begin at this commit, in [0, 1)."""
        return f"{turn(name, commit()):.6f}"


@pytest.fixture(scope="session")
def part(request: pytest.FixtureRequest) -> Part:
    """Give what says how much of a sweep runs."""
    return Part(request.config.getoption(OPTION))


# --- What pytest calls; conftest.py registers it ---


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption(
        OPTION,
        action="store_true",
        help=f"of long tables a part that this commit chooses; {WHOLE} runs them whole",
    )


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say that not everything runs."""
    if not config.getoption(OPTION):
        return None
    return f"sample: a part of each long table, chosen by commit {commit()[:7]}; whole: {WHOLE}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what another commit runs, after -m and -k."""
    if not config.getoption(OPTION):
        return
    n_marked = sum(one.get_closest_marker("sampled") is not None for one in items)
    out = left_out(items, commit())
    config.hook.pytest_deselected(items=out)
    items[:] = [one for one in items if one not in {*out}]
    config.stash[_COUNTS] = {"run": n_marked - len(out), "of": n_marked}
    if hasattr(config, "workeroutput"):
        config.workeroutput["sampled"] = config.stash[_COUNTS]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the counts over from a worker; all of them collect the same."""
    if counts := getattr(node, "workeroutput", {}).get("sampled"):
        node.config.stash[_COUNTS] = counts


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many cases of how many ran."""
    counts = terminalreporter.config.stash.get(_COUNTS, {"of": 0})
    if counts["of"]:
        terminalreporter.line(
            f"sample: {counts['run']} of {counts['of']} cases of the long tables, chosen by "
            f"commit {commit()[:7]}; {WHOLE} runs all"
        )
