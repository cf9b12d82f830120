"""The simulation behind docs/gate.md: its engine, its worlds, and what it found."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import life_simulation
import numpy as np
import pytest
from conftest import ROOT, run_sweep
from life_simulation import (
    ALWAYS_15,
    BAD_BY,
    BAD_YEAR,
    CELLS,
    EQUAL_AT_8,
    EQUAL_AT_9_SHARED,
    GOALS,
    LIFE_LONG,
    PLAIN,
    PRODUCT,
    TEN_POINTS,
    YEAR,
    YEAR_SHARED,
    Figure,
    Goal,
    Life,
    Lived,
    Noise,
    World,
    live,
)
from sampling import Part

from retraining import gate

PAGE = ROOT / "docs" / "gate.md"


class TestEngine:
    """What decides in the simulation is what decides in the product."""

    @pytest.mark.parametrize("cell", CELLS, ids=repr)
    def test_its_p_values_are_nearly_those_of_the_product(self, cell: life_simulation.Cell) -> None:
        """A dozen looks each; most of them alike to a hundredth."""
        found = life_simulation.disagreements(cell, 12)
        assert np.abs(found).max() < 0.04
        assert np.abs(found).mean() < 0.012

    def test_it_decides_as_the_product_does(self) -> None:
        """`gate.judge` on the same recordings: at 15 % and, given the night, at 8 %."""
        random, alike = np.random.default_rng(0), []
        for cell in CELLS[4:12]:
            for _ in range(2):
                champion, challenger = cell.draw(random)
                verdict = gate.judge(
                    champion,
                    challenger,
                    threshold=life_simulation.THRESHOLD,
                    decided=cell.night.decided.tolist(),
                )
                fast = life_simulation.fast_p_value(champion, challenger, cell.night)
                better = challenger.mean() < champion.mean()
                alike.append(verdict.promote is bool(better and fast <= 0.05))
        assert np.mean(alike) > 0.95

    @pytest.mark.parametrize("seed", range(3))
    def test_all_recordings_that_wait_may_be_compared(self, seed: int) -> None:
        """Hundreds, of any night, as the gate did once."""
        champion, challenger = np.random.default_rng(seed).gamma(1, 8, (2, 150))
        exact = life_simulation.exact_p_value(champion, challenger, None)
        assert life_simulation.fast_p_value(champion, challenger, None) == (
            pytest.approx(exact, abs=0.05)
        )

    def test_what_a_life_spends_is_less_than_its_significance(self) -> None:
        """0.04 first, then 0.01 n_1 (1 / n_before - 1 / n_now)."""
        sizes = [15, 20, 30, 31, 400]
        shares = [life_simulation.spent(0.05, sizes[: look + 1]) for look in range(5)]
        assert shares[:3] == pytest.approx(
            [0.04, 0.15 * (1 / 15 - 1 / 20), 0.15 * (1 / 20 - 1 / 30)]
        )
        assert 0.049 < sum(shares) < 0.05


class TestWorlds:
    """What happens in a life."""

    @pytest.mark.parametrize(
        "world", list(life_simulation.WORLDS.values()), ids=lambda one: one.name
    )
    def test_a_life_is_the_same_for_every_policy(self, world: World) -> None:
        """Whatever was asked before; and another seed is another life."""
        life, again, other = Life(world, 1), Life(world, 1), Life(world, 2)
        again.errors(7)
        for model in (0, 5):
            assert np.array_equal(life.errors(model), again.errors(model))
        assert life.night_of.tolist() != other.night_of.tolist()
        assert set(np.bincount(life.night_of)[1:]) == {1, 2, 3}
        assert life.n_arrived[-1] == len(life.night_of)

    def test_a_drift_is_known_to_those_trained_after_it(self) -> None:
        """5 % and 15 % for the first model; one trained on the night itself is healthy."""
        life = Life(TEN_POINTS, 0)
        assert [life.mean_error(0, night) for night in (1, 60, 61, 120)] == [5, 5, 15, 15]
        before, after = life.mean_error(60, 60), life.mean_error(60, 61)
        assert after - before == pytest.approx(10)
        assert life.mean_error(61, 120) == life.mean_error(61, 61)
        qualities = [Life(TEN_POINTS, seed).mean_error(61, 61) for seed in range(300)]
        assert np.mean(qualities) == pytest.approx(5, abs=0.25)
        assert np.std(qualities) == pytest.approx(1, abs=0.15)

    def test_a_year_has_about_three_drifts(self) -> None:
        """Of 2, 4, 10 or 30 points each."""
        rises = [
            Life(YEAR, seed).mean_error(0, 365) - 7 - Life(YEAR, seed).mean_error(0, 0) + 7
            for seed in range(300)
        ]
        assert np.mean(rises) == pytest.approx(3 * 11.5, rel=0.15)
        assert min(rises) == 0

    def test_a_third_of_the_retrainings_is_bad(self) -> None:
        """By three points."""
        life = Life(dataclasses.replace(BAD_YEAR, spread=0.0, n_drifts=0.0), 0)
        qualities = [life.mean_error(model, model) for model in range(1, 366)]
        assert set(qualities) == {7, 7 + BAD_BY}
        assert np.mean([one > 7 for one in qualities]) == pytest.approx(1 / 3, abs=0.08)

    @pytest.mark.parametrize("noise", list(Noise))
    def test_errors_have_the_true_mean_and_their_deviation(self, noise: Noise) -> None:
        """Independent, or shared by both models; never negative."""
        random = np.random.default_rng(0)
        difficulty = life_simulation.difficulties(random, 20_000)
        means = np.full(20_000, 12.0)
        one, other = (noise.draw(random, means, difficulty) for _ in range(2))
        assert one.min() >= 0
        assert one.mean() == pytest.approx(12, rel=0.03)
        deviation = 8 if noise is Noise.EIGHT else 12
        assert one.std() == pytest.approx(deviation, rel=0.08)
        correlation = float(np.corrcoef(one, other)[0, 1])
        assert (correlation > 0.7) is (noise is Noise.SHARED)
        assert (abs(correlation) < 0.05) is (noise is not Noise.SHARED)

    def test_a_window_is_whole_nights(self) -> None:
        """The fewest newest ones that hold enough, of those that wait."""
        life = Life(YEAR, 3)
        for first, night, at_least in ((0, 40, 15), (11, 100, 30), (50, 300, 45)):
            end = int(life.n_arrived[night])
            found = life.window(first, end, at_least)
            oldest = life.night_of[found[0]]
            assert found.tolist() == list(range(found[0], end))
            assert len(found) >= at_least
            assert life.night_of[found[0] - 1] == oldest - 1
            assert end - life.n_arrived[oldest] < at_least


class TestLives:
    """What becomes of it under a policy."""

    def test_the_lower_mean_is_promoted_whenever_the_champion_fails(self) -> None:
        """About half of the equal ones and every better one; so nearly every look promotes."""
        lived = live(Life(TEN_POINTS, 0), PLAIN)
        assert lived.promotions >= 1
        assert lived.found <= lived.promoted < 15
        assert lived.mean_error < 7

    def test_production_learns_nothing_where_nothing_is_promoted(self) -> None:
        """Under a level that no p-value is below: 60 nights at 5 % and 60 at 15 %."""
        life = Life(TEN_POINTS, 0)
        lived = live(life, dataclasses.replace(PRODUCT, significance=1e-9))
        assert (lived.promotions, lived.promoted) == (0, math.inf)
        assert lived.mean_error == pytest.approx(10)
        assert lived.retrainings > 40

    def test_with_fewer_than_fifteen_recordings_nothing_is_judged(self) -> None:
        """After a promotion they have to come anew."""
        short = dataclasses.replace(ALWAYS_15, n_nights=4)
        assert live(Life(short, 0), PLAIN) == Lived(mean_error=15)
        lived = live(Life(ALWAYS_15, 0), PLAIN)
        assert lived.promotions <= 120 // 5

    def test_three_new_recordings_between_looks_save_retrainings(self) -> None:
        """On the same life, and nothing else changes until the first promotion."""
        policies = [dataclasses.replace(PRODUCT, significance=1e-9, fresh=one) for one in (1, 3)]
        often, rarely = (live(Life(ALWAYS_15, 0), policy) for policy in policies)
        assert 0.4 * often.retrainings < rarely.retrainings < 0.85 * often.retrainings

    def test_what_is_bad_for_good_is_called_stuck(self) -> None:
        """Three lost looks apart, so not before 31 recordings; a healthy one never."""
        never = dataclasses.replace(PRODUCT, significance=1e-9)
        bad = live(Life(ALWAYS_15, 0), never)
        assert 11 <= bad.stuck <= bad.stuck_by_compared <= 120
        good = live(Life(dataclasses.replace(EQUAL_AT_8, base=4.0), 0), never)
        assert good.stuck == math.inf

    def test_all_waiting_recordings_hide_a_change(self) -> None:
        """After 60 healthy nights they are averaged over: what the gate did once."""
        life = Life(TEN_POINTS, 0)
        assert live(life, LIFE_LONG).found > 30
        assert live(life, PRODUCT).found < 12

    def test_processes_change_nothing(self) -> None:
        """The same lives in the same order."""
        one, two = (life_simulation.live_all(TEN_POINTS, [PRODUCT], 12, jobs) for jobs in (1, 2))
        for name, values in one[PRODUCT.name].items():
            assert np.array_equal(values, two[PRODUCT.name][name])


class TestFigures:
    """Numbers, their errors, and goals."""

    def test_errors_are_those_of_the_textbook(self) -> None:
        """A mean, a share, a ratio of sums and a median."""
        assert Figure.mean(np.array([1.0, 3.0])) == Figure(2.0, 1 / math.sqrt(2))
        share = Figure.mean(np.arange(100) < 20)
        assert (share.value, share.error) == pytest.approx((0.2, 0.04))
        ratio = Figure.ratio(np.array([1.0, 0, 0, 1]), np.array([4.0, 4, 4, 4]))
        assert ratio == Figure(2 / 16, math.sqrt(4 * 0.5**2) / 16)
        median = Figure.median(np.array([1.0, *[5.0] * 9, math.inf]))
        assert median.value == 5
        assert Figure.median(np.full(5, math.inf)).text() == "never"

    @pytest.mark.parametrize(
        ("found", "held", "held_nearly"),
        [
            (Figure(0.1, 0.01), True, True),
            (Figure(0.125, 0), True, True),
            (Figure(0.13, 0.01), False, True),
            (Figure(0.16, 0.01), False, False),
            (Figure(math.nan), False, False),
            (Figure(math.inf), False, False),
        ],
    )
    def test_a_goal_is_held_but_for_the_errors_allowed(
        self, found: Figure, held: bool, held_nearly: bool
    ) -> None:
        """At most an eighth; strictly, and but for three standard errors."""
        goal = Goal("g", None, lambda _: found, most=1 / 8)
        assert goal.is_held(found, 0) is held
        assert goal.is_held(found, 3) is held_nearly

    @pytest.mark.parametrize(
        ("values", "asked"),
        [
            ({"most": 5}, "at most 5"),
            ({"least": 0.8, "scale": 100, "unit": " %"}, "at least 80 %"),
            ({"least": 0.92, "most": 0.96}, "0.92 to 0.96"),
            ({"most": 0.05, "errors": 2}, "at most 0.05 + sampling error"),
        ],
    )
    def test_a_goal_says_what_is_asked(self, values: dict[str, Any], asked: str) -> None:
        """With its unit."""
        assert Goal("g", None, lambda _: Figure(0), **values).asked == asked

    def test_a_missed_goal_is_a_failure(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Exit status 1, and `no` in the table; only what was simulated is checked."""
        words = ["--lives", "2", "--worlds", TEN_POINTS.name, "--policies", "--jobs", "1"]
        monkeypatch.setattr(life_simulation, "CELLS", ())

        def find(found: Any) -> Figure:
            return Figure.mean(found.of_product(TEN_POINTS, "mean_error"))

        for most, status, held in ((50.0, 0, "yes"), (1.0, 1, "no")):
            goals = (
                Goal("error", TEN_POINTS, find, most=most),
                Goal("another", ALWAYS_15, find, most=0),
            )
            monkeypatch.setattr(life_simulation, "GOALS", goals)
            assert life_simulation.main(words) == status
            printed = capsys.readouterr().out
            assert f"{held} |" in printed.replace("*", "")
            assert "another" not in printed

    def test_the_page_needs_everything(self) -> None:
        """Half a page would be worse than none."""
        with pytest.raises(SystemExit):
            life_simulation.main(["--worlds", "year", "--report", "x.md"])


class TestPage:
    """docs/gate.md."""

    def test_every_goal_stands_there_and_is_held(self) -> None:
        """As of the last whole run."""
        text = PAGE.read_text(encoding="utf-8")
        for goal in GOALS:
            (row,) = re.findall(rf"^\| {re.escape(goal.name)} \|.*$", text, re.MULTILINE)
            assert f"| {goal.asked} |" in row
            assert row.endswith("| yes |")

    @pytest.mark.parametrize(
        "world", [YEAR_SHARED.name, EQUAL_AT_9_SHARED.name, TEN_POINTS.name], ids=str
    )
    def test_every_world_has_its_table(self, world: str) -> None:
        """And every policy a row."""
        text = PAGE.read_text(encoding="utf-8")
        assert world in text
        for name in life_simulation.POLICIES:
            assert f"| {name} |" in text


@pytest.mark.slow
def test_the_goals_are_held_by_a_sample_of_lives(part: Part) -> None:
    """But for three standard errors; `make life-simulation` lives a thousand of each world."""
    worlds = part.some([*life_simulation.WORLDS], 4)
    words = ["--lives", "100", "--worlds", *worlds, "--policies", "--errors-allowed", "3"]
    print(run_sweep("life_simulation.py", *words))
