"""A season of nights with people and deaths; `make long-life` lives a year."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import run_sweep
from sampling import Part


@pytest.mark.slow
def test_a_season_of_nights(figure: Callable[[str, Any], None], part: Part) -> None:
    """Whatever people do in MLflow, every morning all holds, and messages say what to do."""
    n_nights = part.of(30, 18)
    said = run_sweep("long_life.py", "--nights", n_nights, "--seed", "3")
    assert f"{n_nights} of {n_nights} nights" in said
    assert ", 0 things that did not hold" in said
    figure("a season", said.splitlines()[4])
