"""A season of nights with people and deaths; `make long-life` lives a year."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import run_sweep


@pytest.mark.slow
def test_a_season_of_nights(figure: Callable[[str, Any], None]) -> None:
    """Whatever people do in MLflow, every morning all holds, and messages say what to do."""
    said = run_sweep("long_life.py", "--nights", "30", "--seed", "3")
    assert "30 of 30 nights" in said
    assert ", 0 things that did not hold" in said
    figure("a season", said.splitlines()[4])
