"""How recordings that were listed for checking weigh in a mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import make_home

from retraining.journal import Journal, Memory
from retraining.known_recordings import KnownRecordings, remember_listed
from retraining.marks import CHOSEN, RANDOM, Mark, Selection, Triaged, marks
from retraining.resampling import weighted_mean
from retraining.settings import Settings
from retraining.training import load_training_module


def of(
    n_chosen: int, n_random: int, n_unlisted: int = 0, pool: int = 120, k: int = 10
) -> Selection:
    """Return the selection of so many recordings of a pool of which `k` were chosen."""
    found = [Mark(CHOSEN, pool, k)] * n_chosen + [Mark(RANDOM, pool, k)] * n_random
    return Selection.of([*found, *[None] * n_unlisted])


class TestWeights:
    """`Selection.of`."""

    def test_chosen_ones_stand_for_themselves_and_random_ones_for_the_rest(self) -> None:
        """10 of 120 chosen: 15 recordings of which 15/12 are as those, 13.75 as the others."""
        found = of(10, 5)
        assert found.weights == pytest.approx((0.125,) * 10 + (2.75,) * 5)
        assert sum(found.weights or ()) == pytest.approx(15)
        errors = [30.0] * 10 + [6.0] * 5
        assert weighted_mean(errors, found.weights) == pytest.approx(30 / 12 + 6 * 11 / 12)
        assert found.in_words == (
            "estimated for the pool of 120 from 10 chosen and 5 random recordings"
        )

    def test_what_no_list_named_weighs_one(self) -> None:
        """Beside three listed ones, which weigh three together."""
        found = of(1, 2, 4, pool=4, k=1)
        assert found.weights == pytest.approx((0.75, 1.125, 1.125, 1, 1, 1, 1))
        assert "1 chosen and 2 random recordings and 4 that no list named" in found.in_words

    def test_only_a_part_of_the_list_may_be_checked(self) -> None:
        """2 of 10 chosen ones and one random one of a pool of 40: a quarter and three."""
        assert of(2, 1, pool=40).weights == pytest.approx((3 / 8, 3 / 8, 9 / 4))

    def test_several_lists(self) -> None:
        """Shares of 10 % and 30 %, two each: 20 % in the mean."""
        some = [Mark(CHOSEN, 100, 10), Mark(RANDOM, 100, 10)]
        found = Selection.of([*some, Mark(CHOSEN, 50, 15), Mark(RANDOM, 50, 15)])
        assert found.weights == pytest.approx((0.4, 1.6, 0.4, 1.6))
        assert found.pools == (50, 100)
        assert "estimated for pools of 50 to 100 from 2 chosen" in found.in_words

    @pytest.mark.parametrize("n_unlisted", [0, 3])
    def test_without_random_ones_all_weigh_the_same_and_it_is_said(self, n_unlisted: int) -> None:
        """Nothing stands for the rest of the pool."""
        found = of(7, 0, n_unlisted)
        assert found.weights is None
        assert found.in_words.startswith("this batch was selected: 7 chosen recordings of a list ")
        assert "its mean is no mean of all; check the random ones, too" in found.in_words

    def test_without_chosen_ones_it_is_said_too(self) -> None:
        """What is hard is left out; where a list chose nothing there is nothing to say."""
        found = of(0, 3)
        assert found.weights is None
        assert "leaves out what is hard; check the chosen ones, too" in found.in_words
        assert of(0, 3, k=0).in_words == ""

    def test_a_pool_that_is_checked_whole_is_a_plain_mean(self) -> None:
        """7 chosen and 3 random ones of 10; and what no list named is one, too."""
        assert of(7, 3, pool=10, k=7).weights is None
        nothing = of(0, 0, 5)
        assert (nothing.weights, nothing.in_words, nothing.as_facts) == (None, "", None)

    def test_facts_for_programs(self) -> None:
        """All that the words tell."""
        assert of(10, 5, 1).as_facts == {
            "chosen": 10,
            "random": 5,
            "unlisted": 1,
            "pools": [120],
            "weighted": True,
            "assisted": False,
        }

    def test_the_mean_of_a_pool_is_met_in_the_mean(self) -> None:
        """2,000 lists of 10 of 60, the hardest third chosen by a guess; without weights far off."""
        random = np.random.default_rng(0)
        weighted, plain = [], []
        pool = random.gamma(2, 4, 60)
        for _ in range(2000):
            guess = pool * random.lognormal(0, 0.5, 60)
            chosen = np.argsort(-guess)[:7]
            rest = np.setdiff1d(np.arange(60), chosen)
            checked = [*chosen, *random.choice(rest, 3, replace=False)]
            found = of(7, 3, pool=60, k=7)
            weighted.append(weighted_mean(pool[checked], found.weights))
            plain.append(pool[checked].mean())
        standard_error = np.std(weighted) / np.sqrt(2000)
        assert np.mean(weighted) == pytest.approx(pool.mean(), abs=4 * standard_error)
        assert np.mean(plain) > pool.mean() + 3


class TestEstimates:
    """What is known of a pool without a label."""

    def test_only_what_errors_differ_from_their_estimates_is_weighed(self) -> None:
        """A pool of mean estimate 10; errors of 1 above their estimates make a mean of 11."""
        estimates = [30.0, 28.0, 9.0, 5.0]
        hows = [CHOSEN, CHOSEN, RANDOM, RANDOM]
        found = [
            Mark(how, 40, 4, "", estimate, 10.0, "run")
            for how, estimate in zip(hows, estimates, strict=True)
        ]
        told = Selection.of([*found, None], "run")
        assert told.offsets == (-20, -18, 1, 5, 0)
        errors = np.array([31.0, 29.0, 10.0, 6.0, 11.0])
        assert weighted_mean(errors + np.array(told.offsets), told.weights) == pytest.approx(11)
        assert told.known == pytest.approx(11 - weighted_mean(errors, told.weights))
        assert told.in_words.endswith("and 1 that no list named, and the estimates of all")

    @pytest.mark.parametrize("run_id", ["", "another run"])
    def test_those_of_another_production_are_not_used(self, run_id: str) -> None:
        """Its errors are others; nor where one of the listed ones has none."""
        found = [
            Mark(CHOSEN, 40, 4, "", 30.0, 10.0, "run"),
            Mark(RANDOM, 40, 4, "", 9.0, 10.0, "run"),
        ]
        assert Selection.of(found, run_id).offsets is None
        assert Selection.of([*found, Mark(RANDOM, 40, 4)], "run").offsets is None
        assert Selection.of(found, run_id).known == 0

    def test_the_mean_scatters_less_and_stays_the_same(self) -> None:
        """2,000 lists of 10 of 60, estimates that are right but for a third."""
        random = np.random.default_rng(0)
        pool = random.gamma(2, 4, 60)
        guess = pool * random.lognormal(0, 0.35, 60)
        chosen = np.argsort(-guess)[:7]
        rest = np.setdiff1d(np.arange(60), chosen)
        plain, assisted = [], []
        for _ in range(2000):
            checked = [*chosen, *random.choice(rest, 3, replace=False)]
            found = Selection.of(
                [
                    Mark(
                        CHOSEN if at in chosen else RANDOM, 60, 7, "", guess[at], guess.mean(), "r"
                    )
                    for at in checked
                ],
                "r",
            )
            plain.append(weighted_mean(pool[checked], found.weights))
            assisted.append(weighted_mean(pool[checked] + np.array(found.offsets), found.weights))
        error = np.std(assisted) / np.sqrt(2000)
        assert np.mean(assisted) == pytest.approx(pool.mean(), abs=4 * error)
        assert np.std(assisted) < 0.7 * np.std(plain)


class TestListsOfOnePool:
    """One list after the other, of what is left."""

    def test_they_chose_from_it_together(self) -> None:
        """Five of an alarm of 120, then seven of the other 115: 12 of 120 for each of them."""
        alarm = [Mark(CHOSEN, 120, 5, group="a")] * 5
        later = [Mark(CHOSEN, 120, 12, group="a")] * 7 + [Mark(RANDOM, 120, 12, group="a")] * 3
        found = Selection.of([*alarm, *later])
        assert found.weights == pytest.approx((15 * 0.1 / 12,) * 12 + (15 * 0.9 / 3,) * 3)
        assert found.pools == (120,)

    def test_a_list_remembers_what_earlier_ones_of_its_pool_named(self, tmp_path: Path) -> None:
        """What was checked since is still of the pool, with what was estimated of it."""
        settings = Settings(home=make_home(tmp_path / "home"))
        training = load_training_module(settings)
        read = KnownRecordings(settings.home / "none", has_identity=True)

        def listed(names: str, chosen: str, random: str, run_id: str = "run") -> Triaged:
            pool = {64 * one: float(ord(one) - ord("a")) for one in names}
            remember_listed(
                settings.home,
                training,
                read,
                pool=pool,
                chosen=[64 * one for one in chosen],
                random=[64 * one for one in random],
                run_id=run_id,
            )
            return Journal(settings.home).read().all(Triaged)[-1]

        first = listed("abcdef", "fe", "a")
        assert (first.pool, first.pool_estimate, first.estimates) == (6, 2.5, [5, 4, 0])
        second = listed("abcd", "d", "b")
        assert second.group == first.group
        assert (second.pool, second.n_chosen_before, second.pool_estimate) == (6, 2, 2.5)
        third = listed("abcd", "d", "b", run_id="another")
        assert (third.group, third.pool, third.pool_estimate) == (first.group, 6, None)
        fourth = listed("uvwxyz", "z", "u")
        assert fourth.group != first.group
        assert (fourth.pool, fourth.n_chosen_before) == (6, 0)


def test_the_newest_mark_counts() -> None:
    """A recording that is listed again."""
    first = Triaged(20, ["a", "b"], ["c"], ["1", "2", "3"], "ann", "then")
    second = Triaged(10, ["c"], ["a"], ["3", "1"], "ann", "later")
    found = marks(Memory().and_then(first, second))
    assert found == {
        "b": Mark(CHOSEN, 20, 2, "2"),
        "c": Mark(CHOSEN, 10, 1, "3"),
        "a": Mark(RANDOM, 10, 1, "1"),
    }
    assert [*found] == ["b", "c", "a"]
    assert marks(Memory()) == {}
