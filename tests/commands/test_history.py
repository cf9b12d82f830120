"""What `history` says of a change of production."""

from __future__ import annotations

from typing import Any

import pytest

from retraining.commands.history import change_line, production_at
from retraining.errors import UsageError

CHANGE: dict[str, Any] = {
    "at": "2026-05-01T02:00:00+02:00",
    "event": "promotion",
    "clock_went_back": False,
    "from": 1,
    "to": 2,
    "mean_error_before": 0.00662,
    "mean_error_after": 0.00123,
    "unit": "m",
    "who": "me@here, unattended",
    "why": "better",
}


class TestLine:
    """One change for a person."""

    def test_small_errors_have_enough_digits(self) -> None:
        """Never 0.0 m -> 0.0 m."""
        assert change_line(CHANGE) == (
            "2026-05-01T02:00:00+02:00  1 -> 2  promotion  0.0066 m -> 0.0012 m  "
            "me@here, unattended  better"
        )

    def test_errors_are_not_said_twice(self) -> None:
        """A verdict names them itself."""
        why = "0.0066 m -> 0.0012 m on 15 recordings, p = 0.001"
        assert change_line({**CHANGE, "why": why}).count("0.0066 m") == 1

    def test_what_is_unknown_is_not_said(self) -> None:
        """No version before, nothing measured, nobody knows when."""
        unknown = dict.fromkeys(("at", "from", "mean_error_before", "mean_error_after"))
        assert change_line({**CHANGE, **unknown, "event": "unrecorded"}) == (
            "time unknown  - -> 2  unrecorded  me@here, unattended  better"
        )


class TestAt:
    """Which version was production at a time."""

    @pytest.mark.parametrize(
        ("at", "version"),
        [
            ("2026-05-01T00:00:00+00:00", 2),
            ("2026-05-01T01:59:59+02:00", 1),
            ("2026-03-31T23:59:59+02:00", None),
            ("2030-01-01", 2),
        ],
    )
    def test_a_version_is_production_until_the_next_change(
        self, at: str, version: int | None
    ) -> None:
        """From its second on, in any time zone; a change without a time says nothing."""
        first = {**CHANGE, "at": "2026-04-01T00:00:00+02:00", "from": None, "to": 1}
        by_hand = {**CHANGE, "at": None, "to": 1}
        found = production_at([by_hand, CHANGE, first], at)
        assert (found["to"] if found else None) == version

    @pytest.mark.parametrize("at", ["yesterday", "", "2026-13-01"])
    def test_what_is_no_time_is_said(self, at: str) -> None:
        """With an example."""
        with pytest.raises(UsageError, match=r"--at .*: must be a time such as 2026-05-01T12:00"):
            production_at([CHANGE], at)
