"""Killed anywhere, the next run reaches the state of a twin that was never interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import run_sweep
from crash_sweep import SCENARIOS
from sampling import Part

SAMPLES = (
    (
        (
            *("a cycle with a promotion", "the first registration", "upgrade-store"),
            *("a rollback", "a lost probation", "a cycle of another model"),
        ),
        *(8, 2),
    ),
    (
        ("a correction", "correct", "withdraw", "withdraw --delete", "withdraw --undo"),
        *(3, 1),
    ),
    (("relocate", "backup", "restore"), *(6, 2)),
    (("prune", "import"), *(2, 1)),
)
"""Scenarios, points and instants of each; under `--sample` 2 points and 1 instant of each."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "points", "instants"), SAMPLES, ids=["versions", "recordings", "homes", "stores"]
)
def test_no_command_leaves_a_trace_of_its_death(
    figure: Callable[[str, Any], None],
    part: Part,
    names: tuple[str, ...],
    points: int,
    instants: int,
) -> None:
    """A sample of all points of all commands, others at every commit.

    `make crash-sweep` takes them all.
    """
    scenarios = [f"--scenario={name}" for name in names]
    words = ("--sample", part.of(points, 2), "--random", part.of(instants, 1))
    printed = run_sweep("crash_sweep.py", *scenarios, *words, "--begin", part.begin(names[0]))
    print(f"\n{printed}")
    result = json.loads(printed.splitlines()[-1])
    figure("commands killed at points and instants, differences from an uninterrupted twin", result)
    assert result["scenarios"] == len(names)
    assert result["killed"] >= 2 * len(names)
    assert result["differences"] == 0


def test_no_scenario_is_left_out() -> None:
    """A new one belongs to one of the samples above."""
    sampled = [name for names, *_ in SAMPLES for name in names]
    assert sorted(sampled) == sorted(SCENARIOS)
