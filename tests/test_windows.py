"""Windows: whole nights, the newest first, and what two of them have in common."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from retraining.windows import apart, newest, overlap


class TestNewest:
    """`newest`."""

    @pytest.mark.parametrize(
        ("nights", "at_least", "window"),
        [
            ([1, 2, 3], 1, [3]),
            ([1, 2, 3], 2, [2, 3]),
            ([1, 2, 3], 3, [1, 2, 3]),
            ([1, 2, 3], 9, [1, 2, 3]),
            ([3, 1, 2, 1], 2, [3, 2]),
            ([1, 1, 1], 1, [1, 1, 1]),
            ([7, 7, 2, 7, 2], 4, [7, 7, 2, 7, 2]),
            ([7, 7, 2, 7, 2], 3, [7, 7, 7]),
            ([1, 2], 0, [2]),
            ([], 15, []),
        ],
        ids=[
            "one",
            "two",
            "all",
            "too few",
            "in any order",
            "a night is not divided",
            "nor an old one",
            "enough",
            "none asked for",
            "no recordings",
        ],
    )
    def test_it_is_the_fewest_newest_nights_that_hold_enough(
        self, nights: list[int], at_least: int, window: list[int]
    ) -> None:
        """Recordings of one night are all in or all out."""
        inside = newest(nights, at_least)
        assert [night for night, one in zip(nights, inside, strict=True) if one] == window

    @hypothesis_settings(max_examples=200, deadline=None, derandomize=True)
    @given(nights=st.lists(st.integers(0, 12), min_size=1), at_least=st.integers(1, 40))
    def test_no_night_less_would_do(self, nights: list[int], at_least: int) -> None:
        """And none older than those outside is inside."""
        inside = newest(nights, at_least)
        kept = [night for night, one in zip(nights, inside, strict=True) if one]
        left = [night for night, one in zip(nights, inside, strict=True) if not one]
        assert len(kept) >= min(at_least, len(nights))
        assert max(left, default=-1) < min(kept)
        assert len([night for night in kept if night > min(kept)]) < at_least


class TestOverlap:
    """`overlap` and `apart`."""

    @pytest.mark.parametrize(
        ("one", "other", "share"),
        [
            ("abcd", "abcd", 1),
            ("abcd", "cdef", 0.5),
            ("abcd", "efgh", 0),
            ("ab", "abcdefgh", 1),
            ("abcd", "defghijk", 0.25),
            ("aab", "abb", 1),
            ("", "ab", 0),
            ("", "", 0),
        ],
    )
    def test_it_is_a_share_of_the_smaller_one(self, one: str, other: str, share: float) -> None:
        """Either way round; what is twice in a window counts once."""
        assert overlap(list(one), list(other)) == share
        assert overlap(list(other), list(one)) == share

    @pytest.mark.parametrize(
        ("windows", "n_apart"),
        [
            ([], 0),
            (["abcd"], 1),
            (["abcd", "abcd", "abcd"], 1),
            (["efgh", "abcd"], 2),
            (["cdef", "abcd"], 1),
            (["defg", "abcd"], 2),
            (["efgh", "cdef", "abcd"], 2),
            (["ghij", "efgh", "cdef", "abcd"], 2),
            (["ijkl", "ghij", "efgh", "cdef", "abcd"], 3),
        ],
        ids=[
            "none",
            "one",
            "three times the same",
            "nothing in common",
            "half in common",
            "less than half",
            "a chain of halves",
            "of four",
            "of five",
        ],
    )
    def test_windows_that_tell_the_same_twice_count_once(
        self, windows: list[str], n_apart: int
    ) -> None:
        """Each against the one counted before it, the newest first."""
        assert apart([list(one) for one in windows]) == n_apart
