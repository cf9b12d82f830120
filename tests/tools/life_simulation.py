"""What becomes of production over whole lives, by policy of deciding, comparing and promoting.

A life is one home: one to three recordings a night, a champion that is judged every night on the
newest of them, and a challenger that is trained whenever it fails. The same recordings, changes
of the data and luck in retraining meet every policy, so what differs comes of the policy alone.
Windows, p-values, intervals and what counts as a lost look are the product's own.

Usage::

    python tests/tools/life_simulation.py [--lives N] [--worlds WORD ...] [--policies WORD ...]
        [--jobs 2] [--errors-allowed N] [--report FILE]

Prints tables in markdown and what became of each goal; ends with status 1 if one is missed by
more than so many standard errors. 1,000 lives take about twenty minutes on two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import math
import sys
import textwrap
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from retraining.looks import Look, Past
from retraining.resampling import (
    Night,
    mean_interval,
    rough_flips,
    rough_p_values,
    sign_flip_p_values,
)
from retraining.windows import apart, newest

THRESHOLD, SIGNIFICANCE = 10.0, 0.05
MIN_NEW_FILES = 15
MOST_A_NIGHT = 3
"""New recordings; at least one."""
NIGHTS, HEALTHY_NIGHTS = 120, 60
N_STEMS, DIFFICULTY_SHAPE = 64, 1.1
"""One miscount is 1.5625 points; difficulty is as uneven as out-of-fold errors are."""
DEVIATION = 8.0
LEAST_MEAN = 0.5
BAD_BY = 3.0
MUCH_WORSE = 1.0
"""Points by which a promotion is called bad even where luck in retraining is as large."""
LOST_LOOKS = 3
N_FLIPS, N_FLIPS_OF_MANY, MANY, ROUND_SIZE = 8_192, 1_024, 60, 8
NO_BREAK = "\u00a0"
LIVES_AT_ONCE, LOOKS_A_LIFE, PERCENTILE_RESAMPLES = 10, 4, 999


# --- Worlds: what happens to a home ---


class Noise(Enum):
    """How the error of a recording differs from the true mean; skewed, as real ones are."""

    AS_LARGE = "deviation as large as the mean"
    EIGHT = "deviation 8"
    SHARED = "hard and easy recordings"

    def draw(
        self, random: np.random.Generator, means: np.ndarray, difficulty: np.ndarray
    ) -> np.ndarray:
        """Return the errors of one model.

        Parameters
        ----------
        means
            Its true mean on each recording.
        difficulty
            Of the recordings, with mean 1, the same for all models; else models are independent.
        """
        if self is Noise.SHARED:
            return random.poisson(means * difficulty * N_STEMS / 100) / N_STEMS * 100
        deviation = means if self is Noise.AS_LARGE else DEVIATION
        return random.gamma((means / deviation) ** 2, deviation**2 / means)


def difficulties(random: np.random.Generator, n: int) -> np.ndarray:
    """Return how hard recordings are."""
    return random.gamma(DIFFICULTY_SHAPE, 1 / DIFFICULTY_SHAPE, n)


@dataclass(frozen=True)
class World:
    """What happens to a home; errors in percent.

    Parameters
    ----------
    base
        True mean error of a model on the data that it was trained for.
    drifts
        (night, points) by which a model that was not trained since is worse.
    n_drifts, sizes
        Expected number of drifts more, on random nights and of a random size.
    spread
        Standard deviation of the true mean of a retrained model.
    bad_share
        Share of the retrainings whose model is worse by `BAD_BY`.
    for_all
        Whether all policies are tried in it, or only the main ones.
    """

    name: str
    n_nights: int
    base: float
    drifts: tuple[tuple[int, float], ...] = ()
    n_drifts: float = 0.0
    sizes: tuple[float, ...] = (0.0,)
    spread: float = 0.0
    bad_share: float = 0.0
    noise: Noise = Noise.AS_LARGE
    for_all: bool = False

    @property
    def first_drift(self) -> int:
        """Night of the first drift that is not random; 0 without one."""
        return self.drifts[0][0] if self.drifts else 0


def drifting(low: float, high: float, *, for_all: bool = False) -> World:
    """Return a world with one drift, after 60 healthy nights."""
    drift = (HEALTHY_NIGHTS + 1, high - low)
    return World(
        f"{low:g} % -> {high:g} %", NIGHTS, low, drifts=(drift,), spread=1, for_all=for_all
    )


EQUAL_AT_8, EQUAL_AT_9 = (World(f"equal at {mean} %", NIGHTS, mean) for mean in (8, 9))
EQUAL_AT_9_SHARED = dataclasses.replace(
    EQUAL_AT_9, name=f"equal at 9 %, {Noise.SHARED.value}", noise=Noise.SHARED
)
ALWAYS_12, ALWAYS_15 = (World(f"always {mean} %", NIGHTS, mean) for mean in (12, 15))
TEN_POINTS, THIRTY_POINTS = drifting(5, 15, for_all=True), drifting(5, 35)
YEAR = World("a year", 365, 7, n_drifts=3, sizes=(2, 4, 10, 30), spread=1, for_all=True)
BAD_YEAR = dataclasses.replace(YEAR, name="a year, a third bad", bad_share=1 / 3, for_all=False)
YEAR_SHARED = dataclasses.replace(
    YEAR, name=f"a year, {Noise.SHARED.value}", noise=Noise.SHARED, for_all=False
)
WORLDS = {
    world.name: world
    for world in (
        *(EQUAL_AT_8, EQUAL_AT_9, EQUAL_AT_9_SHARED, ALWAYS_12, ALWAYS_15),
        *(drifting(9, 11), drifting(7, 11, for_all=True), TEN_POINTS, THIRTY_POINTS),
        *(YEAR, BAD_YEAR, YEAR_SHARED),
    )
}


class Life:
    """What happens in one life, whatever the policy.

    A model is called by the night on which it was trained, the first one 0; whoever trains on a
    night gets the same model.
    """

    def __init__(self, world: World, seed: int) -> None:
        self.world, self._seed = world, (zlib.crc32(world.name.encode()), seed)
        random = np.random.default_rng(self._seed)
        n_nights = world.n_nights
        a_night = random.integers(1, MOST_A_NIGHT + 1, n_nights)
        self.night_of = np.repeat(np.arange(1, n_nights + 1), a_night)
        self.n_arrived = np.concatenate([[0], np.cumsum(a_night)])
        steps = np.zeros(n_nights + 1)
        for night, points in (*world.drifts, *self._random_drifts(random)):
            steps[night] += points
        self._drifted = np.cumsum(steps)
        quality = random.normal(0, world.spread, n_nights + 1)
        quality += BAD_BY * (random.random(n_nights + 1) < world.bad_share)
        self._quality = world.base + np.concatenate([[0], quality[1:]])
        self._quality = np.maximum(self._quality, LEAST_MEAN)
        self._difficulty = difficulties(random, len(self.night_of))
        self._errors: dict[int, np.ndarray] = {}
        self.p_values: dict[tuple[object, ...], float] = {}

    def _random_drifts(self, random: np.random.Generator) -> list[tuple[int, float]]:
        n_drifts = random.poisson(self.world.n_drifts)
        nights = random.integers(1, self.world.n_nights + 1, n_drifts)
        return list(zip(nights, random.choice(self.world.sizes, n_drifts), strict=True))

    def mean_error(self, model: int, night: int) -> float:
        """Return the true mean error of a model on the recordings of a night."""
        return float(self._means(model, night))

    def _means(self, model: int, nights: int | np.ndarray) -> np.ndarray:
        unknown = np.maximum(self._drifted[nights] - self._drifted[model], 0)
        return self._quality[model] + unknown

    def errors(self, model: int) -> np.ndarray:
        """Return the errors of a model on all recordings of the life."""
        if model not in self._errors:
            random = np.random.default_rng((*self._seed, model))
            means = self._means(model, self.night_of)
            self._errors[model] = self.world.noise.draw(random, means, self._difficulty)
        return self._errors[model]

    def window(self, first: int, end: int, at_least: int) -> np.ndarray:
        """Return the newest recordings of those from `first` to before `end`."""
        first = max(first, end - at_least - MOST_A_NIGHT + 1)
        return first + np.flatnonzero(newest(self.night_of[first:end].tolist(), at_least))


# --- Policies: when to train, and when to promote ---


@dataclass(frozen=True)
class Policy:
    """When a challenger is trained, and when it is promoted.

    Parameters
    ----------
    decide, window
        How many of the newest recordings decide, and are compared, at least; None: all that wait.
    given_night
        Whether the p-value is given that the champion was over its threshold.
    decide_by
        "point" or "bound", as of `resampling.Night`.
    fresh
        New recordings since the last look, at least.
    spends
        Whether the significance is for the whole life of a champion: what the gate did once.
    """

    name: str
    decide: int | None = MIN_NEW_FILES
    window: int | None = 30
    significance: float = SIGNIFICANCE
    given_night: bool = True
    decide_by: str = "point"
    fresh: int = 1
    spends: bool = False


PLAIN = Policy("lower mean, 15/15", window=15, significance=1, given_night=False)
ANY_NIGHT = Policy("any night, 5 %, 15/30", given_night=False)
LIFE_LONG = Policy(
    "a whole life, 5 %, all/all", decide=None, window=None, given_night=False, spends=True
)
PRODUCT = Policy("**given the night, 5 %, 15/30**")
MAIN = (PLAIN, ANY_NIGHT, LIFE_LONG, PRODUCT)
CANDIDATES = (
    Policy("any night, 5 %, 15/15", window=15, given_night=False),
    Policy("given the night, 5 %, 15/15", window=15),
    Policy("given the night, 5 %, 15/20", window=20),
    Policy("given the night, 5 %, 15/45", window=45),
    Policy("given the night, 5 %, 30/30", decide=30),
    Policy("given the night, 2.5 %, 15/30", significance=0.025),
    Policy("given the night, 10 %, 15/30", significance=0.1),
    Policy("given the night, 20 %, 15/30", significance=0.2),
    Policy("three new ones between looks", fresh=3),
    Policy("decided by the bound", decide_by="bound"),
)
POLICIES = {policy.name: policy for policy in (*MAIN, *CANDIDATES)}


def spent(significance: float, sizes: Sequence[int]) -> float:
    """Return the share of the last of some looks: 0.8 for the first, the rest by recordings.

    Notes
    -----
    0.2 alpha n_1 (1 / n_(k-1) - 1 / n_k); all of them together are less than alpha.
    """
    if len(sizes) == 1:
        return 0.8 * significance
    return 0.2 * significance * sizes[0] * (1 / sizes[-2] - 1 / sizes[-1])


@functools.lru_cache(maxsize=64)
def flips_of(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return flips of n recordings, and their weights."""
    return rough_flips(n, N_FLIPS if n <= MANY else N_FLIPS_OF_MANY)


def fast_p_value(champion: np.ndarray, challenger: np.ndarray, night: Night | None) -> float:
    """Return about what `resampling.sign_flip_p_values` returns given the night."""
    if night is None and len(champion) > MANY:
        # a recording without an error changes nothing, and so flips are drawn for fewer sizes
        padding = (0, -len(champion) % ROUND_SIZE)
        champion, challenger = np.pad(champion, padding), np.pad(challenger, padding)
    flips = flips_of(len(champion))
    return float(rough_p_values(champion[None], challenger[None], night, *flips)[0][0])


def exact_p_value(champion: np.ndarray, challenger: np.ndarray, night: Night | None) -> float:
    """Return what `resampling.sign_flip_p_values` returns given the night."""
    return sign_flip_p_values(champion, challenger, None, night)[0]


@dataclass
class Lived:
    """What became of one life under one policy.

    Parameters
    ----------
    found, promoted
        On which night of the drift the champion was first over its threshold, and replaced.
    mean_error
        True mean error of production, over all nights.
    worse, much_worse
        Promotions of a truly worse challenger, and of one worse by more than `MUCH_WORSE`.
    stuck, stuck_by_compared
        Night of the first alarm that nothing better is to be had; and if lost looks were told
        apart by what was compared, not by what decided.
    """

    found: float = math.inf
    promoted: float = math.inf
    mean_error: float = 0.0
    retrainings: int = 0
    promotions: int = 0
    worse: int = 0
    much_worse: int = 0
    stuck: float = math.inf
    stuck_by_compared: float = math.inf


@dataclass
class _Home:
    """A home on one night of a life."""

    life: Life
    policy: Policy
    lived: Lived = field(default_factory=Lived)
    champion: int = 0
    first: int = 0
    """Waiting recording; those before are archived."""
    looked_at: int = 0
    """Recordings that had arrived at the last look."""
    sizes: list[int] = field(default_factory=list)
    lost: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    """Recordings that decided and that were compared, at looks that were lost in a row."""

    def judge(self, night: int) -> None:
        """Do what a night's run does."""
        life, policy = self.life, self.policy
        end = int(life.n_arrived[night])
        if end - self.first < MIN_NEW_FILES:
            return
        decided = self._newest(end, policy.decide)
        if not self._is_over(decided):
            self.lost.clear()
            return
        drift = life.world.first_drift
        if drift and night >= drift:
            self.lived.found = min(self.lived.found, night - drift + 1)
        if end - self.looked_at < policy.fresh:
            return
        self.looked_at = end
        self.lived.retrainings += 1
        compared = self._newest(end, policy.window)
        compared = compared if len(compared) > len(decided) else decided
        if self._is_promoted(night, compared, decided):
            self._promote(night, end)
        else:
            self.lost.append((decided, compared))
            if policy.given_night:
                self._call_for_a_person(night)

    def _newest(self, end: int, at_least: int | None) -> np.ndarray:
        if at_least is None or end - self.first <= at_least:
            return np.arange(self.first, end)
        return self.life.window(self.first, end, at_least)

    def _is_over(self, decided: np.ndarray) -> bool:
        errors = self.life.errors(self.champion)[decided]
        # an interval is never above its mean, and takes long
        return bool(errors.mean() > THRESHOLD) and (
            self.policy.decide_by == "point"
            or Night(THRESHOLD, np.ones(len(errors), bool), "bound").is_over(errors)
        )

    def _is_promoted(self, night: int, compared: np.ndarray, decided: np.ndarray) -> bool:
        policy = self.policy
        champion = self.life.errors(self.champion)[compared]
        challenger = self.life.errors(night)[compared]
        if not challenger.mean() < champion.mean():
            return False
        self.sizes.append(len(compared))
        level = spent(policy.significance, self.sizes) if policy.spends else policy.significance
        if level == 1:
            return True
        case = (self.champion, night, compared[0], decided[0], policy.given_night, policy.decide_by)
        if case not in self.life.p_values:
            condition = Night(THRESHOLD, compared >= decided[0], policy.decide_by)
            self.life.p_values[case] = fast_p_value(
                champion, challenger, condition if policy.given_night else None
            )
        return self.life.p_values[case] <= level

    def _promote(self, night: int, end: int) -> None:
        loss = self.life.mean_error(night, night) - self.life.mean_error(self.champion, night)
        self.lived.promotions += 1
        self.lived.worse += loss > 0
        self.lived.much_worse += loss > MUCH_WORSE
        drift = self.life.world.first_drift
        if drift and night >= drift:
            self.lived.promoted = min(self.lived.promoted, night - drift + 1)
        self.champion, self.first = night, end
        self.sizes.clear()
        self.lost.clear()

    def _call_for_a_person(self, night: int) -> None:
        lived, (by_decided, by_compared) = self.lived, zip(*self.lost, strict=True)
        if math.isinf(lived.stuck) and self._is_stuck(by_decided):
            lived.stuck = night
        if math.isinf(lived.stuck_by_compared) and self._is_stuck(by_compared):
            lived.stuck_by_compared = night

    def _is_stuck(self, windows: Sequence[np.ndarray]) -> bool:
        _, compared = self.lost[-1]
        errors = self.life.errors(self.champion)[compared]
        # if the mean is not above, the lower end is not; and that takes long
        if errors.mean() <= THRESHOLD or apart(map(tuple, reversed(windows))) < LOST_LOOKS:
            return False
        low, _ = mean_interval(errors, at_least=0.0)
        looks = tuple(_lost_look(window, low) for window in windows)
        return Past(looks).lost_in_a_row(1) >= LOST_LOOKS


def _lost_look(decided: np.ndarray, low: float) -> Look:
    return dataclasses.replace(
        Look.unknown("", 1),
        decided=[str(one) for one in decided],
        mean_error_low=low,
        threshold=THRESHOLD,
        promote=False,
    )


def live(life: Life, policy: Policy) -> Lived:
    """Live one life under one policy."""
    home = _Home(life, policy)
    total = 0.0
    for night in range(1, life.world.n_nights + 1):
        total += life.mean_error(home.champion, night)
        home.judge(night)
    home.lived.mean_error = total / life.world.n_nights
    return home.lived


def _live_some(world: World, policies: Sequence[Policy], seeds: Iterable[int]) -> list[list[Lived]]:
    lives = (Life(world, seed) for seed in seeds)
    return [[live(life, policy) for policy in policies] for life in lives]


def live_all(
    world: World, policies: Sequence[Policy], n_lives: int, n_jobs: int = 1
) -> dict[str, dict[str, np.ndarray]]:
    """Live many lives under all policies.

    Returns
    -------
    dict of dicts of arrays of shape (n_lives,)
        By name of the policy and field of `Lived`.
    """
    starts = range(0, n_lives, LIVES_AT_ONCE)
    parts = [range(start, min(start + LIVES_AT_ONCE, n_lives)) for start in starts]
    done = Parallel(n_jobs=n_jobs)(delayed(_live_some)(world, policies, part) for part in parts)
    lived = [life for part in done for life in part]
    return {
        policy.name: {
            one.name: np.array([getattr(life[place], one.name) for life in lived], dtype=float)
            for one in fields(Lived)
        }
        for place, policy in enumerate(policies)
    }


# --- Single looks, with the exact p-value ---


@dataclass(frozen=True)
class Cell:
    """One look at a champion over its threshold, and at a challenger.

    Parameters
    ----------
    champion, challenger
        True mean errors.
    n_decided, n_compared
        Recordings.
    """

    noise: Noise
    champion: float
    challenger: float
    n_decided: int
    n_compared: int

    def draw(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return errors of both models on a night on which the champion is over its threshold."""
        while True:
            difficulty = difficulties(random, self.n_compared)
            champion, challenger = (
                self.noise.draw(random, np.full(self.n_compared, mean), difficulty)
                for mean in (self.champion, self.challenger)
            )
            if self.night.is_over(champion):
                return champion, challenger

    @property
    def night(self) -> Night:
        """The condition."""
        return Night(THRESHOLD, np.arange(self.n_compared) >= self.n_compared - self.n_decided)


PAIRS = ((8.0, 8.0), (9.0, 9.0), (12.0, 8.0), (15.0, 5.0))
WINDOWS = ((7, 7), (15, 15), (15, 30))
CELLS = tuple(
    Cell(noise, *pair, *window) for noise in Noise for window in WINDOWS for pair in PAIRS
)
GOAL_CELL = Cell(Noise.EIGHT, 8.0, 8.0, 15, 15)
DRIFTED_CELL = Cell(Noise.EIGHT, 15.0, 5.0, 15, 15)


def p_values(cell: Cell, seeds: range) -> np.ndarray:
    """Return p-values given the night and of any night, shape (n_looks, 2)."""
    random = np.random.default_rng((zlib.crc32(repr(cell).encode()), seeds.start))
    drawn = (cell.draw(random) for _ in seeds)
    return np.array([sign_flip_p_values(*errors, None, cell.night) for errors in drawn])


def disagreements(cell: Cell, n_looks: int) -> np.ndarray:
    """Return exact minus fast p-value of many looks."""
    random = np.random.default_rng(1)
    drawn = [cell.draw(random) for _ in range(n_looks)]
    return np.array(
        [exact_p_value(*one, cell.night) - fast_p_value(*one, cell.night) for one in drawn]
    )


def covered(noise: Noise, n: int, seeds: range) -> np.ndarray:
    """Say which intervals of n errors hold the true mean: bootstrap-t, and percentile."""
    random, mean = np.random.default_rng((n, seeds.start)), np.full(n, DEVIATION)
    found = []
    for _ in seeds:
        errors = noise.draw(random, mean, difficulties(random, n))
        resampled = random.choice(errors, (PERCENTILE_RESAMPLES, n)).mean(axis=1)
        ends = mean_interval(errors, at_least=0.0), np.quantile(resampled, (0.025, 0.975))
        found.append([low <= DEVIATION <= high for low, high in ends])
    return np.array(found)


def promoted_by_session(seeds: range) -> np.ndarray:
    """Say whether equal models promote each other: by recording, and by session.

    Notes
    -----
    15 recordings of five sessions that are alike: a model is good or bad at whole sessions.
    """
    random = np.random.default_rng((5, seeds.start))
    sessions, found = [f"s{number // 3}" for number in range(15)], []
    for _ in seeds:
        luck = np.repeat(random.normal(0, 3, 5), 3)
        champion, challenger = (20 + sign * luck + random.normal(0, 1, 15) for sign in (1, -1))
        p_values = [
            sign_flip_p_values(champion, challenger, names)[0] for names in (None, sessions)
        ]
        found.append([p_value <= SIGNIFICANCE for p_value in p_values])
    return np.array(found)


def in_parts(function: Callable[..., np.ndarray], *values: Any, n: int, n_jobs: int) -> np.ndarray:
    """Call a function with ranges that make up n, in parallel, and join what it returns."""
    parts = [range(start, min(start + 250, n)) for start in range(0, n, 250)]
    done = Parallel(n_jobs=n_jobs)(delayed(function)(*values, part) for part in parts)
    return np.concatenate(done)


# --- Figures ---


@dataclass(frozen=True)
class Figure:
    """A number and its standard error."""

    value: float
    error: float = 0.0

    @classmethod
    def mean(cls, values: np.ndarray) -> Figure:
        """Of a mean, also of a share."""
        return cls(float(values.mean()), float(values.std() / math.sqrt(len(values))))

    @classmethod
    def ratio(cls, values: np.ndarray, others: np.ndarray) -> Figure:
        """Of a ratio of two sums over the same lives."""
        if not others.sum():
            return cls(math.nan)
        ratio = values.sum() / others.sum()
        return cls(
            float(ratio), float(np.sqrt(((values - ratio * others) ** 2).sum()) / others.sum())
        )

    @classmethod
    def median(cls, values: np.ndarray) -> Figure:
        """Of a median; its error by resampling."""
        drawn = np.random.default_rng(0).choice(values, (500, len(values)))
        medians = np.median(drawn, axis=1)
        finite = medians[np.isfinite(medians)]
        return cls(float(np.median(values)), float(finite.std()) if len(finite) else 0.0)

    def text(self, digits: int = 2, scale: float = 1, unit: str = "", *, sign: bool = False) -> str:
        """Return it with its error."""
        if not math.isfinite(self.value):
            return "never" if math.isinf(self.value) else "-"
        value = f"{scale * self.value:{'+' if sign else ''}.{digits}f}"
        return f"{value} ± {scale * self.error:.{digits}f}{unit}"

    @property
    def percent(self) -> str:
        """As a share."""
        return self.text(1, 100)


Lives = Mapping[str, Mapping[str, np.ndarray]]
"""By name of the policy and field of `Lived`."""


@dataclass(frozen=True)
class Measured:
    """Everything that was simulated."""

    lives: Mapping[str, Lives]
    looks: Mapping[Cell, np.ndarray]
    intervals: Mapping[tuple[Noise, int], np.ndarray]
    sessions: np.ndarray
    disagreements: np.ndarray

    def of_product(self, world: World, name: str) -> np.ndarray:
        """Return one figure of each life under the product's policy."""
        return self.lives[world.name][PRODUCT.name][name]

    def above_plain(self, world: World) -> Figure:
        """Return by how many points production is worse than under the plain policy."""
        plain = self.lives[world.name][PLAIN.name]["mean_error"]
        return Figure.mean(self.of_product(world, "mean_error") - plain)

    def against_plain(self, world: World, name: str) -> Figure:
        """Return bad promotions as a ratio to those of the plain policy."""
        return Figure.ratio(self.of_product(world, name), self.lives[world.name][PLAIN.name][name])

    def alarmed(self, world: World, name: str = "stuck") -> Figure:
        """Return the share of lives with an alarm that production is stuck."""
        return Figure.mean(np.isfinite(self.of_product(world, name)))

    def promoted(self, cell: Cell) -> Figure:
        """Return the share of looks that promote given the night."""
        return Figure.mean(self.looks[cell][:, 0] <= SIGNIFICANCE)


# --- Goals ---


def limits_in_words(least: float, most: float, scale: float, unit: str) -> str:
    """Return what was asked of a figure; empty where nothing was."""
    low, high = (f"{scale * end:g}{unit}" for end in (least, most))
    if math.isfinite(least) and math.isfinite(most):
        return f"{low} to {high}"
    if math.isfinite(most):
        return f"at most {high}"
    return f"at least {low}" if math.isfinite(least) else ""


@dataclass(frozen=True)
class Goal:
    """What was asked for.

    Parameters
    ----------
    world
        In which it is asked; None for single looks.
    least, most
        What may be found.
    errors
        Standard errors that are allowed in any case.
    scale, digits
        As it is told.
    """

    name: str
    world: World | None
    find: Callable[[Measured], Figure]
    least: float = -math.inf
    most: float = math.inf
    errors: float = 0.0
    scale: float = 1.0
    digits: int = 2
    unit: str = ""

    @property
    def asked(self) -> str:
        """In words."""
        asked = limits_in_words(self.least, self.most, self.scale, self.unit)
        return asked + (" + sampling error" if self.errors else "")

    def is_held(self, found: Figure, errors_allowed: float) -> bool:
        """Say whether what was found is in the limits, but for so many standard errors."""
        slack = max(self.errors, errors_allowed) * found.error
        return self.least - slack <= found.value <= self.most + slack


def _median(world: World, name: str) -> Callable[[Measured], Figure]:
    return lambda measured: Figure.median(measured.of_product(world, name))


def _coverage(n: int) -> Callable[[Measured], Figure]:
    return lambda measured: Figure.mean(measured.intervals[Noise.AS_LARGE, n][:, 0])


PERCENT: dict[str, Any] = {"scale": 100, "digits": 1, "unit": " %"}
AN_EIGHTH: dict[str, Any] = {"most": 1 / 8, "digits": 3}
GOALS = (
    Goal(
        "10 points after 60 healthy nights: nights until found",
        TEN_POINTS,
        _median(TEN_POINTS, "found"),
        most=5,
        digits=0,
    ),
    Goal(
        "30 points: nights until found",
        THIRTY_POINTS,
        _median(THIRTY_POINTS, "found"),
        most=2,
        digits=0,
    ),
    Goal(
        "equal models promoted at a look (8 %, deviation 8, 15 recordings)",
        None,
        lambda measured: measured.promoted(GOAL_CELL),
        most=SIGNIFICANCE,
        errors=2,
        **PERCENT,
    ),
    Goal(
        "15 % -> 5 % promoted at a look (deviation 8, 15 recordings)",
        None,
        lambda measured: measured.promoted(DRIFTED_CELL),
        least=0.8,
        **PERCENT,
    ),
    Goal(
        "a year: points of true error above the plain policy",
        YEAR,
        lambda measured: measured.above_plain(YEAR),
        most=0.2,
        digits=3,
    ),
    Goal(
        "a year: worse models promoted, of the plain policy's",
        YEAR,
        lambda measured: measured.against_plain(YEAR, "worse"),
        **AN_EIGHTH,
    ),
    Goal(
        "a third of the retrainings bad: promoted though worse by more than 1 point, of the plain "
        "policy's",
        BAD_YEAR,
        lambda measured: measured.against_plain(BAD_YEAR, "much_worse"),
        **AN_EIGHTH,
    ),
    Goal(
        "wrong alarms a life that it is stuck, at 9 %",
        EQUAL_AT_9,
        lambda measured: measured.alarmed(EQUAL_AT_9),
        most=0.05,
        digits=3,
    ),
    Goal(
        "right alarms by night 120, at 15 %",
        ALWAYS_15,
        lambda measured: measured.alarmed(ALWAYS_15),
        least=0.95,
        digits=3,
    ),
    Goal(
        "right alarms by night 120, at 12 %",
        ALWAYS_12,
        lambda measured: measured.alarmed(ALWAYS_12),
        least=0.6,
        digits=3,
    ),
    *(
        Goal(
            f"the 95 % interval of {n} skewed errors holds the true mean",
            None,
            _coverage(n),
            least=0.92,
            most=0.96,
            **PERCENT,
        )
        for n in (15, 30)
    ),
)


def check(measured: Measured, errors_allowed: float) -> tuple[list[list[str]], bool]:
    """Return a row for each goal that can be checked, and whether all are held."""
    rows, all_held = [], True
    for goal in GOALS:
        if goal.world and goal.world.name not in measured.lives:
            continue
        found = goal.find(measured)
        held = goal.is_held(found, errors_allowed)
        all_held &= held
        shown = found.text(goal.digits, goal.scale, goal.unit)
        rows.append([goal.name, goal.asked, shown, "yes" if held else "**no**"])
    return rows, all_held


# --- The page ---


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in markdown: words in the first column, numbers in the others."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def years_table(measured: Measured) -> str:
    """Return what a year costs, by policy."""
    lives = measured.lives[YEAR.name]
    plain = lives[PLAIN.name]
    header = ["policy, decide/compare", "points of true error above the first", "worse promoted"]
    header += ["of the first one's", "worse by more than 1 point", "promotions", "retrainings"]
    rows = [
        [
            name,
            Figure.mean(one["mean_error"] - plain["mean_error"]).text(3, sign=True),
            Figure.mean(one["worse"]).text(),
            Figure.ratio(one["worse"], plain["worse"]).text(3),
            Figure.mean(one["much_worse"]).text(),
            Figure.mean(one["promotions"]).text(1),
            Figure.mean(one["retrainings"]).text(1),
        ]
        for name, one in lives.items()
    ]
    return table(header, rows)


def other_years_table(measured: Measured) -> str:
    """Return the same of other years, by main policy."""
    worlds = [one for one in (BAD_YEAR.name, YEAR_SHARED.name) if one in measured.lives]
    header = ["policy, decide/compare"]
    for world in worlds:
        header += [f"{world}: points above the first", "worse", "worse by more than 1 point"]
    rows = []
    for policy in measured.lives[worlds[0]]:
        row = [policy]
        for world in worlds:
            one, plain = measured.lives[world][policy], measured.lives[world][PLAIN.name]
            row.append(Figure.mean(one["mean_error"] - plain["mean_error"]).text(3, sign=True))
            row += [Figure.mean(one[name]).text() for name in ("worse", "much_worse")]
        rows.append(row)
    return table(header, rows)


def drifts_table(measured: Measured) -> str:
    """Return after how many nights a drift is found, and answered."""
    worlds = [name for name, lives in measured.lives.items() if WORLDS[name].first_drift]
    names = dict.fromkeys(name for world in worlds for name in measured.lives[world])
    rows = [
        [
            name,
            *(_found_and_promoted(measured.lives[world].get(name)) for world in worlds),
        ]
        for name in names
    ]
    return table(["policy, decide/compare", *worlds], rows)


def _found_and_promoted(lives: Mapping[str, np.ndarray] | None) -> str:
    if lives is None:
        return ""
    medians = (float(np.median(lives[name])) for name in ("found", "promoted"))
    return " / ".join(f"{one:.0f}" if math.isfinite(one) else "never" for one in medians)


def equal_table(measured: Measured) -> str:
    """Return how often equal models are exchanged, by main policy."""
    worlds = [name for name in (EQUAL_AT_8.name, EQUAL_AT_9.name) if name in measured.lives]
    header = ["policy, decide/compare"]
    for world in worlds:
        header += [f"{world}: exchanged once or more, %", "promoted at a look, %", "retrainings"]
    rows = []
    for policy in measured.lives[worlds[0]]:
        row = [policy]
        for world in worlds:
            one = measured.lives[world][policy]
            row += [
                Figure.mean(one["promotions"] > 0).percent,
                Figure.ratio(one["promotions"], one["retrainings"]).percent,
                Figure.mean(one["retrainings"]).text(1),
            ]
        rows.append(row)
    return table(header, rows)


def stuck_table(measured: Measured) -> str:
    """Return how often production is called stuck."""
    worlds = (EQUAL_AT_9, EQUAL_AT_9_SHARED, ALWAYS_12, ALWAYS_15)
    rows = [
        [
            world.name,
            measured.alarmed(world).percent,
            measured.alarmed(world, "stuck_by_compared").percent,
            f"{np.median(found[np.isfinite(found)]):.0f}" if np.isfinite(found).any() else "-",
        ]
        for world in worlds
        for found in [measured.of_product(world, "stuck")]
    ]
    header = ["production", "alarm by night 120, % of lives", "told apart by what is compared"]
    return table([*header, "night of the alarm (median)"], rows)


def looks_table(measured: Measured) -> str:
    """Return how often one look promotes, given the night and of any night."""
    header = ["errors", "decide / compare", *(f"{one:g} % -> {other:g} %" for one, other in PAIRS)]
    rows = []
    for noise in Noise:
        for window in WINDOWS:
            row = [noise.value, f"{window[0]} / {window[1]}"]
            for pair in PAIRS:
                shares = measured.looks[Cell(noise, *pair, *window)] <= SIGNIFICANCE
                given_night, any_night = (Figure.mean(one) for one in shares.T)
                row.append(f"{given_night.percent} ({100 * any_night.value:.1f})")
            rows.append(row)
    return table(header, rows)


def intervals_table(measured: Measured) -> str:
    """Return how often intervals hold the true mean."""
    rows = [
        [noise.value, str(n), *(Figure.mean(one).percent for one in found.T)]
        for (noise, n), found in measured.intervals.items()
    ]
    return table(["errors", "recordings", "bootstrap-t, %", "percentile bootstrap, %"], rows)


PAGE = """# What a promotion is worth, measured

**What is done.** Production is judged every night on the newest 15 recordings ("decide"). If their
mean error is above the threshold, a challenger is trained, and both are compared on the newest 30
("compare"). It is promoted if its mean error is lower and luck alone would make it look so much
better on at most 5 of 100 such nights. Recordings of healthy nights make room for newer ones: a
change of the data is not averaged away by what came before it.

**What is promised.** Given a look, a challenger that is no better is promoted with a probability
of at most `significance` (0.05). The hypothesis, exactly: champion and challenger could swap their
errors on each recording, independently of the others, without changing how the errors are
distributed. There would have been no look, though, had the champion not been over its threshold,
and a champion that was caught on a bad night looks worse than it is. So only those swaps count
under which it would have been over the threshold as well: p is the share of them whose gain is at
least the observed one, counted exactly up to 40 recordings, else drawn
(`resampling.sign_flip_p_values`). Without the condition an equal challenger is promoted at
{any_night} % of the looks, with it at {given_night} % (8 %, deviation 8, 15 recordings). Both
p-values stand in the verdict. The condition costs power where nothing but the recordings that
decide is compared: from 15 % to 5 % is promoted at {drifted} % of such looks (deviation 8;
{drifted_uneven} % with a deviation as large as the mean, {drifted_shared} % where recordings are
hard and easy for both models), and on 30 recordings at {drifted_wide} % or more.

**What is not.** Nothing is promised over the whole life of a champion. An equal pair at 8 % is
exchanged at least once in 120 nights in {exchanged} % of the lives; if the lower mean wins, in
{exchanged_plain} %. That costs nothing: they are equal. For every 100 truly worse models that the
lower mean promotes in a year, the gate promotes {worse}. And equal means alone are not enough for
the promise: errors of another shape cannot be swapped.

**Why.** Before, the 5 % were for the whole life of a champion, spent over its looks, and all
waiting recordings decided. That promoted next to no worse model, and refused or never saw the
better ones: a year cost {life_long} points of true error more than the plain rule "lower mean on
15 recordings" does; now it costs {product} more. The year has 365 nights and about three changes of
the data, by 2, 4, 10 or 30 points. All policies below lived the same lives; the one in bold is the
gate's. A higher level saves a little true error and breaks the promise; a lower one, or 15
recordings to compare on, cost more; a wider window of the comparison saves next to nothing.

**Windows.** Recordings arrive in nights, and those of one night are all in a window or all out: the
fewest newest nights that hold at least 15, or 30. After a promotion the recordings are learnt, and
the next look waits for 15 others.

**Repeated looks.** A look at recordings that were all looked at before, with another seed, setting
or training module, is held against half of the level of the look before: all of them together
promote an equal model with at most twice the significance. One new recording makes it a first look.

**Stuck.** Production is called stuck after three lost looks, each decided by recordings of which
less than half decided the one before, without a healthy night between them, if the lower end of
production's 95 % interval on the newest 30 is above the threshold. Told apart by what is compared
instead of what decides, three looks take too long: production at 12 % is then found in
{stuck_by_compared} % of the lives instead of {stuck} %. At 9 %, which is healthy, it is called
stuck in {wrongly_stuck} % of the lives; in {wrongly_stuck_shared} % where recordings are hard and
easy.

**Sessions.** Where recordings name a [session](ground_truth.md#sessions), "recording" reads
"session" on this page: the errors of one session are not independent, so their signs are flipped
together, and intervals and the number needed count sessions. 15 recordings of five sessions that
are alike promoted an equal model {by_recording} % of the time counted by recording, {by_session} %
by session.

**Intervals** are bootstrap-t: errors are skewed, and the percentile bootstrap's 95 % hold the true
mean of 15 recordings {percentile} % of the time, missing on the flattering side. Of fewer than five
recordings the interval is Student's t.

**Setting.** {n_lives:,} lives of each world; every policy meets the same ones. A night brings 1 to
3 recordings; the threshold is {threshold:g} %. An error is gamma distributed around the true mean
of the model, its deviation as large as the mean, and champion and challenger are independent.
"Hard and easy recordings" have a difficulty that both models meet, with miscounts of {stems} stems
(Poisson), as real ones have. Where the data change, the true mean of a retrained model varies by
one point (normal), and a model that is trained after a change is as good as one was before it.
{n_looks:,} single looks of each kind, with the exact p-value. The lives use a faster one, of
{n_flips:,} weighted flips: the two differ by {disagreement:.4f} on average, up and down
({bias:.4f} in the mean). Figures are ± one standard error.

Measured on {date} in {minutes:.0f} minutes with

    {command}

## Goals

{goals}

## A year

A policy is what its p-value is given, the level that it is held against, and how many recordings
decide and are compared; the last two are the gate's with one thing changed.

{years}

## Other years

A third of all retrained models is worse by 3 points; and errors that both models have in common.

{other_years}

## One change of the data after 60 healthy nights

Nights until the champion is found to be over the threshold / is replaced (medians).

{drifts}

## Equal models for 120 nights

{equal}

## Stuck

Production that no retraining betters, for 120 nights.

{stuck_lives}

## One look

The champion is over the threshold of {threshold:g} % on the recordings that decide. Promoted given
the night, in percent (in brackets: by the p-value of any night).

{looks}

## Intervals

{intervals}
"""


def page(measured: Measured, goals: list[list[str]], *, minutes: float, command: str) -> str:
    """Return docs/gate.md."""
    equal, year = measured.lives[EQUAL_AT_8.name], measured.lives[YEAR.name]
    goal_looks = measured.looks[GOAL_CELL]

    def exchanged(policy: Policy) -> str:
        return f"{100 * (equal[policy.name]['promotions'] > 0).mean():.0f}"

    def promoted(cell: Cell) -> str:
        return f"{100 * measured.promoted(cell).value:.0f}"

    above_plain = year[LIFE_LONG.name]["mean_error"] - year[PLAIN.name]["mean_error"]
    by_recording, by_session = 100 * measured.sessions.mean(axis=0)
    text = PAGE.format(
        any_night=f"{100 * (goal_looks[:, 1] <= SIGNIFICANCE).mean():.1f}",
        given_night=f"{100 * (goal_looks[:, 0] <= SIGNIFICANCE).mean():.1f}",
        drifted=promoted(DRIFTED_CELL),
        drifted_uneven=promoted(dataclasses.replace(DRIFTED_CELL, noise=Noise.AS_LARGE)),
        drifted_shared=promoted(dataclasses.replace(DRIFTED_CELL, noise=Noise.SHARED)),
        drifted_wide=min(
            (
                promoted(dataclasses.replace(DRIFTED_CELL, noise=noise, n_compared=30))
                for noise in Noise
            ),
            key=float,
        ),
        exchanged=exchanged(PRODUCT),
        exchanged_plain=exchanged(PLAIN),
        worse=f"{100 * measured.against_plain(YEAR, 'worse').value:.0f}",
        life_long=f"{above_plain.mean():.1f}",
        product=f"{measured.above_plain(YEAR).value:.2f}",
        stuck=f"{100 * measured.alarmed(ALWAYS_12).value:.0f}",
        stuck_by_compared=f"{100 * measured.alarmed(ALWAYS_12, 'stuck_by_compared').value:.0f}",
        wrongly_stuck=f"{100 * measured.alarmed(EQUAL_AT_9).value:.1f}",
        wrongly_stuck_shared=f"{100 * measured.alarmed(EQUAL_AT_9_SHARED).value:.1f}",
        percentile=f"{100 * measured.intervals[Noise.AS_LARGE, 15][:, 1].mean():.0f}",
        by_recording=f"{by_recording:.0f}",
        by_session=f"{by_session:.0f}",
        n_lives=len(equal[PLAIN.name]["promotions"]),
        n_looks=len(goal_looks),
        n_flips=N_FLIPS,
        threshold=THRESHOLD,
        stems=N_STEMS,
        disagreement=np.abs(measured.disagreements).mean(),
        bias=abs(measured.disagreements.mean()),
        date=datetime.date.today().isoformat(),
        minutes=minutes,
        command=command,
        goals=table(GOALS_HEADER, goals),
        years=years_table(measured),
        other_years=other_years_table(measured),
        drifts=drifts_table(measured),
        equal=equal_table(measured),
        stuck_lives=stuck_table(measured),
        looks=looks_table(measured),
        intervals=intervals_table(measured),
    )
    return "\n\n".join(map(_filled, text.strip().split("\n\n"))) + "\n"


def _filled(part: str) -> str:
    """Break the lines of a paragraph anew, for the figures in it; leave anything else."""
    if part.startswith(("#", "|", " ")):
        return part
    kept = " ".join(part.split()).replace(" %", NO_BREAK + "%")
    lines = textwrap.fill(kept, 100, break_long_words=False, break_on_hyphens=False)
    return lines.replace(NO_BREAK, " ")


GOALS_HEADER = ("goal", "asked", "found ± standard error", "held")


# --- The command line ---


def measure(
    worlds: Sequence[World],
    policies: Sequence[Policy],
    n_lives: int,
    n_jobs: int = 1,
    cells: Sequence[Cell] = CELLS,
) -> Measured:
    """Simulate everything; in each world the main policies, and in some all that are asked for."""
    lives = {}
    for world in worlds:
        start = time.monotonic()
        tried = [one for one in policies if one in MAIN or world.for_all]
        lives[world.name] = live_all(world, tried, n_lives, n_jobs)
        print(f"{world.name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    n_looks = LOOKS_A_LIFE * n_lives
    parts: dict[str, int] = {"n": n_looks, "n_jobs": n_jobs}
    return Measured(
        lives=lives,
        looks={cell: in_parts(p_values, cell, **parts) for cell in cells},
        intervals={
            (noise, n): in_parts(covered, noise, n, **parts)
            for noise in (Noise.AS_LARGE, Noise.SHARED)
            for n in (15, 30)
        },
        sessions=in_parts(promoted_by_session, **parts),
        disagreements=np.concatenate(
            [disagreements(cell, max(n_lives // 10, 10)) for cell in cells]
        ),
    )


def main(arguments: list[str] | None = None) -> int:
    """Print goals and tables, and write the page.

    Parameters
    ----------
    arguments
        Command line; None for that of the process.
    """
    parser = argparse.ArgumentParser(description="Live whole lives under each policy.")
    parser.add_argument("--lives", type=int, default=1000, help="of each world")
    parser.add_argument("--worlds", nargs="*", default=[""], help="words of their names")
    parser.add_argument("--policies", nargs="*", default=[""], help="words of their names")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument(
        "--errors-allowed", type=float, default=0.0, help="standard errors that a goal may miss by"
    )
    parser.add_argument("--report", type=Path, help="file that the page is written to")
    options = parser.parse_args(arguments)
    worlds = [one for name, one in WORLDS.items() if any(word in name for word in options.worlds)]
    policies = [
        one
        for name, one in POLICIES.items()
        if one in (PLAIN, PRODUCT) or any(word in name for word in options.policies)
    ]
    is_whole = (len(worlds), len(policies)) == (len(WORLDS), len(POLICIES))
    if options.report and not is_whole:
        parser.error("the page needs all worlds and policies")
    start = time.monotonic()
    with threadpool_limits(1):
        measured = measure(worlds, policies, options.lives, options.jobs)
    goals, all_held = check(measured, options.errors_allowed)
    print(table(GOALS_HEADER, goals))
    if is_whole:
        command = f"python tests/tools/life_simulation.py --lives {options.lives}"
        minutes = (time.monotonic() - start) / 60
        found = page(measured, goals, minutes=minutes, command=command)
        print(f"\n{found}")
        if options.report:
            options.report.parent.mkdir(parents=True, exist_ok=True)
            options.report.write_text(found, encoding="utf-8")
    return 0 if all_held else 1


if __name__ == "__main__":
    # by its name, so that other processes find what they are to do
    import life_simulation

    sys.exit(life_simulation.main())
