"""What was found and what was asked, and the page of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from findings import Finding, Section, share, write_sections
from life_simulation import Figure


class TestFinding:
    """One figure beside what was asked."""

    @pytest.mark.parametrize(
        ("limits", "asked", "held", "held_with_two_errors"),
        [
            ({}, "", True, True),
            ({"least": 0.9}, "at least 90 %", False, True),
            ({"least": 0.8}, "at least 80 %", True, True),
            ({"most": 0.5}, "at most 50 %", False, False),
            ({"least": 0.8, "most": 0.84}, "80 % to 84 %", False, True),
        ],
    )
    def test_it_is_held_or_not(
        self, limits: dict[str, float], asked: str, held: bool, held_with_two_errors: bool
    ) -> None:
        """85 ± 3 %."""
        found = share("s", Figure(0.85, 0.03), **limits)
        assert found.asked == asked
        assert (found.is_held(0.0), found.is_held(2.0)) == (held, held_with_two_errors)
        word = ("yes" if held else "**no**") if asked else ""
        assert found.row(0.0) == ["s", asked, "85.0 ± 3.0 %", word]

    def test_what_is_no_number_is_not_held(self) -> None:
        """Where something was asked."""
        assert not Finding("f", Figure(math.nan), most=1).is_held(5.0)
        assert Finding("f", Figure(math.nan)).is_held(0.0)


def test_sections_that_were_not_measured_stay(tmp_path: Path) -> None:
    """In the order that is asked for; one that was measured again takes the old one's place."""
    page = tmp_path / "docs" / "page.md"
    first, second, again = (
        Section(title, what, [Finding("f", Figure(1.0))]).text("make it")
        for title, what in (("One", "old"), ("Two", "old"), ("One", "new"))
    )
    write_sections(page, "# Page", {"One": "", "Two": second})
    write_sections(page, "# Page", {"One": first, "Two": ""})
    write_sections(page, "# Page", {"One": again, "Two": ""})
    assert page.read_text() == f"# Page\n\n{again}\n{second}"
