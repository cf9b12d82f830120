"""The page of a replay."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_pages import HOSTILE, read

from retraining.commands.replay import Life, LivedWith, Night, Replayed
from retraining.settings import Settings


@pytest.fixture
def replayed() -> Replayed:
    """Give what became of two recordings on one night, with names that nobody wants."""
    night = Night(1, 2, "promoted", f"promoted: {HOSTILE}", 1, 2, 2)
    life = Life(
        settings=Settings(home=Path("/srv")),
        threshold=8.5,
        nights=[night],
        lived_with=[LivedWith(HOSTILE, 1, 12.5), LivedWith("b.csv", 1, 0.0)],
        not_scored={HOSTILE: "is bad"},
        minutes=0.5,
    )
    return Replayed(1, 18, 2, 1, "%", 10.0, [f"left out: {HOSTILE}"], [life])


def test_it_holds_for_every_reader(replayed: Replayed) -> None:
    """Self-contained, without a script, whatever stands in a name or a message."""
    reader = read(replayed.as_page(Settings(model_name="Stems <b>")))
    assert "Replay · Stems <b> · " in reader.text
    assert reader.text.count("alert('x')") == 3


def test_it_shows_a_row_and_a_line_of_nights(replayed: Replayed) -> None:
    """By hand: one of two recordings is above 10 %; production changed on the only night."""
    reader = read(replayed.as_page(Settings()))
    assert "8.5 %1530point1106.2 %50 %0.5" in reader.text
    assert "1\N{NO-BREAK SPACE}✓ → 2" in "".join(reader.words)
