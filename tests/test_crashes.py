"""Killed anywhere, the next run reaches the state of a twin that was never interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import run_sweep


def test_a_killed_cycle_is_finished_by_the_next_run() -> None:
    """At a point and a random instant of a cycle, with each of two training modules."""
    printed = run_sweep("crash_sweep.py", "--scenario", "a cycle", "--sample", "1", "--random", "1")
    result = json.loads(printed.splitlines()[-1])
    assert result["scenarios"] == 2
    assert result["killed"] >= 4
    assert result["differences"] == 0


@pytest.mark.slow
def test_no_command_leaves_a_trace_of_its_death(figure: Callable[[str, Any], None]) -> None:
    """An evenly spread sample of all points of all commands; `make crash-sweep` takes them all."""
    printed = run_sweep("crash_sweep.py", "--sample", "8", "--random", "2")
    print(f"\n{printed}")
    result = json.loads(printed.splitlines()[-1])
    figure("commands killed at points and instants, differences from an uninterrupted twin", result)
    assert result["scenarios"] == 6
    assert result["differences"] == 0
