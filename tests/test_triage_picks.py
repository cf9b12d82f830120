"""What is listed: hard, new and different recordings, and a random share of the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from retraining.marks import CHOSEN, RANDOM
from retraining.triage import Candidate, Pick, informative_of, pick, summary_of


def summary(*values: float) -> pd.Series:
    """Return a summary with these values."""
    return pd.Series({f"feature {number}": value for number, value in enumerate(values)})


def spread_out(n: int, seed: int = 0) -> list[pd.Series]:
    """Return summaries of different recordings."""
    return [summary(*one) for one in np.random.default_rng(seed).normal(0, 1, (n, 6))]


def candidates(
    summaries: Sequence[pd.Series | None], informative: Sequence[float | None]
) -> list[Candidate]:
    """Return candidates with keys in alphabetical order."""
    pairs = zip(summaries, informative, strict=True)
    return [Candidate(f"{at:04d}", value, one) for at, (one, value) in enumerate(pairs)]


def places(found: Sequence[Pick], how: str) -> list[int]:
    """Return the places of what was listed like that, in order."""
    return [one.place for one in found if one.how == how]


class TestPick:
    """`pick`."""

    def test_near_copies_are_not_chosen_twice(self) -> None:
        """The hardest recording was filmed six times; the next one is another."""
        random = np.random.default_rng(1)
        different = spread_out(12)
        copies = [different[0] + 0.02 * random.normal(0, 1, 6) for _ in range(5)]
        informative = [20.0, *np.linspace(10, 5, 11), *[19.0] * 5]
        found = pick(candidates([*different, *copies], informative), [], 9, 0.2)
        chosen = places(found, CHOSEN)
        assert chosen[0] == 0
        assert len(chosen) == 7
        assert not {*chosen} & {*range(12, 17)}
        plain = np.argsort(informative)[::-1][:7].tolist()
        assert {*plain} >= {*range(12, 17)}

    def test_a_near_copy_of_what_is_known_comes_last(self) -> None:
        """Of two that are as hard, the one that was never seen."""
        known = spread_out(10)
        new = [known[3] + 0.01, *spread_out(1, seed=9)]
        found = pick(candidates(new, [10, 10]), known, 2, 0.5)
        assert places(found, CHOSEN) == [1]
        assert found[0].novelty is not None
        assert found[0].novelty > 0.5

    def test_what_is_as_new_is_ranked_by_what_it_tells(self) -> None:
        """Corners of a square, known is its middle."""
        corners = [summary(1, 1), summary(1, -1), summary(-1, 1), summary(-1, -1), summary(1, 0.9)]
        found = pick(candidates(corners, [2, 5, 1, 3, 0.5]), [summary(0, 0)], 5, 0.2)
        assert places(found, CHOSEN)[:3] == [1, 3, 0]

    def test_a_third_is_drawn_from_the_rest(self) -> None:
        """At least one, never one that was chosen, and never more than asked for."""
        some = candidates(spread_out(30), [*np.linspace(1, 9, 30)])
        for count, n_random in ((1, 1), (2, 1), (3, 1), (10, 3), (15, 5), (30, 10), (99, 10)):
            found = pick(some, [], count, 1 / 3)
            assert len(found) == min(count, 30)
            assert len({one.place for one in found}) == len(found)
            assert len(places(found, RANDOM)) == n_random
        assert len(places(pick(some, [], 10, 0.0), RANDOM)) == 1
        assert len(places(pick(some, [], 10, 1.0), RANDOM)) == 10

    def test_the_drawn_ones_stand_between_the_chosen_ones(self) -> None:
        """Who stops in the middle has checked some of both."""
        found = pick(candidates(spread_out(30), [1.0] * 30), [], 10, 1 / 3)
        assert "".join(one.how[0] for one in found) == "crcccrccrc"

    def test_who_asks_twice_gets_the_same(self) -> None:
        """In whatever order the files are found; another pool is another draw."""
        some = candidates(spread_out(40), [*np.random.default_rng(2).gamma(2, 4, 40)])
        found = [(some[one.place].key, one.how) for one in pick(some, spread_out(5, 3), 12, 0.33)]
        turned = some[::-1]
        again = pick(turned, spread_out(5, 3), 12, 0.33)
        assert [(turned[one.place].key, one.how) for one in again] == found
        more = [*some, Candidate("9999", 0.0, summary(*[0.0] * 6))]
        drawn = {more[at].key for at in places(pick(more, [], 12, 0.33), RANDOM)}
        assert drawn != {key for key, how in found if how == RANDOM}

    def test_any_of_the_rest_may_be_drawn(self) -> None:
        """800 pools of six with two chosen: each of the others about 200 times of 800."""
        drawn: Counter[int] = Counter()
        for number in range(800):
            some = [Candidate(f"{number} {at}", 9.0 if at < 2 else 1.0, None) for at in range(6)]
            found = pick(some, [], 3, 0.3)
            assert {*places(found, CHOSEN)} == {0, 1}
            drawn.update(places(found, RANDOM))
        assert set(drawn) == {2, 3, 4, 5}
        assert max(drawn.values()) < 200 + 4 * 12.3
        assert min(drawn.values()) > 200 - 4 * 12.3

    def test_without_estimates_the_farthest_come_first(self) -> None:
        """The model tells nothing: what is unlike all else, then what is unlike both."""
        line = [summary(0.0), summary(1.0), summary(2.0), summary(10.0)]
        found = pick(candidates(line, [None] * 4), [summary(0.1)], 3, 0.3)
        assert places(found, CHOSEN) == [3, 2]

    def test_without_features_the_hardest_come_first(self) -> None:
        """The module names none."""
        found = pick(candidates([None] * 4, [1, 4, 2, 3]), [], 4, 0.25)
        assert places(found, CHOSEN) == [1, 3, 2]
        assert {one.novelty for one in found} == {None}

    def test_where_nobody_can_say_anything_all_are_drawn(self) -> None:
        """Nothing was chosen for its difficulty then."""
        found = pick(candidates([None] * 8, [None] * 8), [], 3, 0.3)
        assert places(found, CHOSEN) == []
        assert len(places(found, RANDOM)) == 3

    @pytest.mark.parametrize("n", [0, 1, 2])
    def test_few_recordings_are_all_listed(self, n: int) -> None:
        """None, one or two, all the same or not."""
        same = [summary(1.0, float("nan"))] * n
        found = pick(candidates(same, [1.0] * n), [], 10, 0.33)
        assert len(found) == n


class TestSummary:
    """`summary_of` and `informative_of`."""

    def test_numbers_are_summed_up(self) -> None:
        """Mean and deviation; texts and infinite values are left out."""
        table = pd.DataFrame({"a": [1.0, 3.0, np.inf], "b": ["x", "y", "z"], "c": [np.nan] * 3})
        found = summary_of(table)
        assert found["a", "mean"] == 2
        assert found["a", "deviation"] == 1
        assert set(found.index.get_level_values(0)) == {"a", "c"}
        assert found[["c"]].isna().all()

    def test_recordings_with_other_columns_can_be_compared(self) -> None:
        """An optional column is missing in one."""
        one = summary_of(pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}))
        other = summary_of(pd.DataFrame({"a": [5.0, 6.0]}))
        empty = summary_of(pd.DataFrame({"a": []}))
        found = pick(candidates([one, other, empty], [1.0, 2.0, 3.0]), [one], 3, 0.33)
        assert len(found) == 3

    def test_what_is_unlike_anything_learnt_is_no_less_informative_than_the_middle_one(
        self,
    ) -> None:
        """A model is sure of what it has never seen, too."""
        assert informative_of([1, 2, 9], [True, False, True]) == [2, 2, 9]
        assert informative_of([None, 4.0], [True, False]) == [None, 4.0]
        assert informative_of([None], [True]) == [None]
