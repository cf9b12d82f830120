"""How often the gate promotes an equal model, and how often it finds a real gain.

Simulates the procedure of `gate.judge` on errors per recording: one look, and 20 nightly
looks at the same champion, each with a new challenger on all recordings so far (1 to 3 more a
night). Significances come from the gate itself; only the p-values are computed for all
repetitions at once.

Usage::

    python tests/tools/gate_simulation.py [--repetitions 2000] [--report FILE]

Prints the tables in markdown; takes about four minutes on one core.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import math
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from retraining import gate
from retraining.gate import PEEKING, PERMUTATIONS

SIGNIFICANCE = 0.05
N_LOOKS = 20
N_FIRST = (7, 15, 30, 60)
MOST_A_NIGHT = 3
"""New recordings; at least one."""
GAINS = (2.0, 4.0)
MEAN_ERROR = 5.0
"""Percent, of equal models; about that of the classifier on real recordings."""
DEGRADED_MEAN_ERROR = 10.0
"""Percent, of a champion that is to be replaced."""
N_STEMS = 64
"""Objects of a simulated recording; one miscount is 1.5625 points, an exact binary number."""
EXACT_RECORDINGS = 16
TOLERANCE = 1e-4
"""Percentage points; sums of flipped differences are compared in single precision."""
FUNNEL = ((999, 0.08), (9_999, 0.005), (PERMUTATIONS, 0.0))
"""Random flips, and the p-value below which a repetition gets more of them."""


# --- Errors per recording ---


@dataclass(frozen=True)
class Errors:
    """A distribution of errors in percent: how hard a recording is, and what luck adds.

    Parameters
    ----------
    difficulty
        (random, shape, mean) -> expected error of each recording.
    champion, challenger
        (random, difficulty) -> error of a model on it; equal models have the same function.
    ties
        Share of the recordings on which both have the same error.
    """

    difficulty: Callable[[np.random.Generator, tuple[int, int], float], np.ndarray]
    champion: Callable[[np.random.Generator, np.ndarray], np.ndarray]
    challenger: Callable[[np.random.Generator, np.ndarray], np.ndarray]
    ties: float = 0.0


def _spread_evenly(random: np.random.Generator, shape: tuple[int, int], mean: float) -> np.ndarray:
    return random.normal(mean, 4, shape)


def _all_alike(_random: np.random.Generator, shape: tuple[int, int], mean: float) -> np.ndarray:
    return np.full(shape, mean)


def _spread_like_real_ones(
    random: np.random.Generator, shape: tuple[int, int], mean: float
) -> np.ndarray:
    return mean * random.gamma(1.1, 1 / 1.1, shape)


def _normal(random: np.random.Generator, difficulty: np.ndarray) -> np.ndarray:
    return difficulty + random.normal(0, 2, difficulty.shape)


def _heavy_tailed(random: np.random.Generator, difficulty: np.ndarray) -> np.ndarray:
    return difficulty + 1.2 * random.standard_t(3, difficulty.shape)


def _miscounts(random: np.random.Generator, difficulty: np.ndarray) -> np.ndarray:
    return random.poisson(difficulty * N_STEMS / 100) / N_STEMS * 100


def _as_expected(_random: np.random.Generator, difficulty: np.ndarray) -> np.ndarray:
    return difficulty


def _rarely_but_badly(random: np.random.Generator, difficulty: np.ndarray) -> np.ndarray:
    return np.where(random.random(difficulty.shape) < 1 / 3, 3 * difficulty, 0)


ERRORS = {
    "normal": Errors(_spread_evenly, _normal, _normal),
    "heavy-tailed (t3)": Errors(_spread_evenly, _heavy_tailed, _heavy_tailed),
    "50 % ties": Errors(_spread_evenly, _normal, _normal, ties=0.5),
    "skewed like real ones": Errors(_spread_like_real_ones, _miscounts, _miscounts),
}
NOT_PROMISED = {
    "equal mean, rarely but badly wrong": Errors(
        _spread_like_real_ones, _as_expected, _rarely_but_badly
    ),
    "normal, recordings equally hard": Errors(_all_alike, _normal, _normal),
}


@dataclass(frozen=True)
class Cell:
    """One setting of the simulation.

    Parameters
    ----------
    errors
        Name of the distribution.
    n_first
        Recordings at the first look.
    gain
        Percentage points by which the challenger's mean is lower.
    carried
        Share of the recordings on which a night's challenger has the error of the one before.
    only_degraded
        Whether a night is a look only if the champion's mean on the recordings exceeds its true
        mean, as monitoring does with a threshold.
    """

    errors: str
    n_first: int
    gain: float = 0.0
    carried: float = 0.0
    only_degraded: bool = False

    @property
    def mean_error(self) -> float:
        """Of the champion, in percent."""
        return DEGRADED_MEAN_ERROR if self.gain else MEAN_ERROR


def nights(
    cell: Cell, n_repetitions: int, n_looks: int = N_LOOKS
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each night's errors of champion and challenger on all recordings so far.

    Parameters
    ----------
    cell
        The setting; it is the seed, too.
    n_repetitions
        Champions that are simulated at once.
    n_looks
        Nights.

    Yields
    ------
    arrays of shape (n_repetitions, n_recordings)
        In percent. Recordings are added at the end; the champion's errors on the others stay.
    """
    random = np.random.default_rng(zlib.crc32(repr(cell).encode()))
    sizes = cell.n_first + np.cumsum([0, *random.integers(1, MOST_A_NIGHT + 1, n_looks - 1)])
    errors = {**ERRORS, **NOT_PROMISED}[cell.errors]
    shape = (n_repetitions, int(sizes[-1]))
    difficulty = errors.difficulty(random, shape, cell.mean_error)
    easier = difficulty * (1 - cell.gain / cell.mean_error / (1 - errors.ties))
    tied = random.random(shape) < errors.ties
    champion = errors.champion(random, difficulty)
    challenger = errors.challenger(random, easier)
    for n_recordings in sizes:
        compared = np.where(tied, champion, challenger)
        yield champion[:, :n_recordings], compared[:, :n_recordings]
        stays = random.random(shape) < cell.carried
        challenger = np.where(stays, challenger, errors.challenger(random, easier))


# --- The gate, for many repetitions at once ---


def sign_flip_p_values(differences: np.ndarray) -> np.ndarray:
    """Return what `gate.permutation_p_value` returns for each row.

    Parameters
    ----------
    differences
        Champion minus challenger, shape (n_repetitions, n_recordings).

    Notes
    -----
    All flips up to 16 recordings, else the same 99,999 random ones for every row; a p-value that
    999 or 9,999 of them show to be far above any limit is not refined.
    """
    differences = differences.astype(np.float32)
    n_repetitions, n_recordings = differences.shape
    if n_recordings <= EXACT_RECORDINGS:
        flips = _all_flips(n_recordings)
        return _count_as_large(differences, flips) / len(flips)
    flips = _random_flips()[:, :n_recordings]
    p_values = np.ones(n_repetitions)
    rows = np.arange(n_repetitions)
    for n_flips, limit in FUNNEL:
        as_large = _count_as_large(differences[rows], flips[:n_flips])
        p_values[rows] = (as_large + 1) / (n_flips + 1)
        rows = rows[p_values[rows] < limit]
    return p_values


def _count_as_large(differences: np.ndarray, flips: np.ndarray) -> np.ndarray:
    least = differences.sum(axis=1) - TOLERANCE
    count = np.zeros(len(differences), dtype=int)
    for start in range(0, len(flips), 4096):
        count += (flips[start : start + 4096] @ differences.T >= least).sum(axis=0)
    return count


@functools.cache
def _all_flips(n: int) -> np.ndarray:
    return (1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)).astype(np.float32)


@functools.cache
def _random_flips() -> np.ndarray:
    shape = (PERMUTATIONS, max(N_FIRST) + MOST_A_NIGHT * N_LOOKS)
    signs = np.random.default_rng(0).integers(0, 2, shape, dtype=np.int8)
    return (2 * signs - 1).astype(np.float32)


@functools.cache
def _significance(n_recordings: int, earlier_looks: tuple[int, ...], peeking: str) -> float:
    return gate.effective_significance(SIGNIFICANCE, n_recordings, earlier_looks, peeking)


def promoting_looks(
    cell: Cell, n_repetitions: int, n_looks: int = N_LOOKS
) -> dict[str, np.ndarray]:
    """Return the night on which each champion is replaced, infinity for never.

    Parameters
    ----------
    cell
        The setting.
    n_repetitions
        Champions.
    n_looks
        Nights.

    Returns
    -------
    dict of arrays of shape (n_repetitions,)
        One for each way of `gate.PEEKING`; nights are counted from 1.
    """
    found = {peeking: np.full(n_repetitions, math.inf) for peeking in PEEKING}
    looks: list[tuple[int, ...]] = [()] * n_repetitions
    for night, (champion, challenger) in enumerate(nights(cell, n_repetitions, n_looks), 1):
        undecided = np.isinf(list(found.values())).any(axis=0)
        degraded = champion.mean(axis=1) > cell.mean_error
        rows = np.flatnonzero(undecided & (degraded | (not cell.only_degraded)))
        p_values = sign_flip_p_values(champion[rows] - challenger[rows])
        n_recordings = champion.shape[1]
        for peeking, nights_found in found.items():
            limits = np.array([_significance(n_recordings, looks[row], peeking) for row in rows])
            promoted = rows[p_values <= limits]
            nights_found[promoted] = np.minimum(nights_found[promoted], night)
        for row in rows:
            looks[row] = (*looks[row], n_recordings)
    return found


# --- Other ways to allow for peeking ---


def spent_by_recordings(sizes: np.ndarray, first_share: float) -> np.ndarray:
    """Return the significance of each look: a share for the first, the rest by recordings.

    Parameters
    ----------
    sizes
        Recordings at each look, shape (n_looks,).
    first_share
        Between 0 and 1.
    """
    spent = SIGNIFICANCE * (1 - (1 - first_share) * sizes[0] / sizes)
    return np.diff(spent, prepend=0)


def spent_by_looks(sizes: np.ndarray, first_share: float) -> np.ndarray:
    """Return the significance of each look: a share for the first, the rest as 1 / (k (k - 1)).

    Parameters
    ----------
    sizes
        Recordings at each look, shape (n_looks,).
    first_share
        Between 0 and 1.
    """
    k = np.arange(2, len(sizes) + 1)
    rest = (1 - first_share) / (k * (k - 1))
    return SIGNIFICANCE * np.concatenate([[first_share], rest])


def e_values(differences: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the wealth of each row after betting on the sign of every difference.

    Parameters
    ----------
    differences
        Champion minus challenger, shape (n_repetitions, n_recordings).
    scale
        Typical size of a difference, shape (n_repetitions,).

    Notes
    -----
    Mean over four bets l of prod exp(l d_i) / cosh(l d_i): expectation 1 where signs are
    arbitrary.

    References
    ----------
    I. Waudby-Smith and A. Ramdas, "Estimating means of bounded random variables by betting",
    Journal of the Royal Statistical Society B 86, 2024.
    V. H. de la Peña, "A general class of exponential inequalities for martingales and ratios",
    Annals of Probability 27, 1999.
    """
    bets = np.array([0.1, 0.2, 0.4, 0.8])[:, None, None] / np.maximum(scale, 1e-9)[:, None]
    stakes = bets * differences
    logarithm = stakes - np.logaddexp(stakes, -stakes) + math.log(2)
    wealth: np.ndarray = np.exp(logarithm.sum(axis=2)).mean(axis=0)
    return wealth


def candidates(cell: Cell, n_repetitions: int) -> dict[str, np.ndarray]:
    """Return whether each way to allow for peeking promotes, at each look or before.

    Parameters
    ----------
    cell
        The setting.
    n_repetitions
        Champions.

    Returns
    -------
    dict of arrays of shape (n_repetitions, 20)
        By name of the candidate.
    """
    p_values, at_each_look, at_first_look, sizes = [], [], [], []
    seen = np.empty((n_repetitions, 0))
    for champion, challenger in nights(cell, n_repetitions):
        differences = champion - challenger
        seen = np.hstack([seen, differences[:, seen.shape[1] :]])
        first = seen[:, : cell.n_first]
        sizes.append(differences.shape[1])
        p_values.append(sign_flip_p_values(differences))
        at_each_look.append(e_values(differences, _typical(differences)))
        at_first_look.append(e_values(seen, _typical(first)))
    limits = _limits(np.array(sizes))
    by_p_value = {name: np.transpose(p_values) <= limit for name, limit in limits.items()}
    weights = spent_by_looks(np.array(sizes), 0.5) / SIGNIFICANCE
    weighted = np.cumsum(np.transpose(at_each_look) * weights, axis=1)
    by_wealth = {
        "bets, each recording once": np.transpose(at_first_look) >= 1 / SIGNIFICANCE,
        "weighted sum of e-values of all looks": weighted >= 1 / SIGNIFICANCE,
    }
    return {
        name: np.logical_or.accumulate(promoted, axis=1)
        for name, promoted in {**by_p_value, **by_wealth}.items()
    }


def _typical(differences: np.ndarray) -> np.ndarray:
    size: np.ndarray = np.sqrt((differences**2).mean(axis=1))
    return size


def _limits(sizes: np.ndarray) -> dict[str, np.ndarray]:
    k = np.arange(1, len(sizes) + 1)
    return {
        "ignore: 0.05 at each look": np.full(len(sizes), SIGNIFICANCE),
        "**0.8 first, rest by recordings**": spent_by_recordings(sizes, 0.8),
        "0.5 first, rest by recordings": spent_by_recordings(sizes, 0.5),
        "0.8 first, rest by looks": spent_by_looks(sizes, 0.8),
        "1 / (k (k + 1)) by looks": SIGNIFICANCE / (k * (k + 1)),
        "6 / (pi k)^2 by looks": SIGNIFICANCE * 6 / (np.pi * k) ** 2,
    }


# --- The tables ---


def percent(hits: np.ndarray) -> str:
    """Return a share with its binomial standard error, both in percent.

    Parameters
    ----------
    hits
        Booleans, shape (n_repetitions,).
    """
    share = hits.mean()
    return f"{100 * share:.1f} ± {100 * math.sqrt(share * (1 - share) / len(hits)):.1f}"


def equal_models(n_repetitions: int, names: tuple[str, ...]) -> list[list[str]]:
    """Return one row of promotions of an equal model for each distribution and first look.

    Parameters
    ----------
    n_repetitions
        Champions of each cell.
    names
        Of the distributions.
    """
    rows = []
    for name in names:
        for n_first in N_FIRST:
            new = promoting_looks(Cell(name, n_first), n_repetitions)
            alike = promoting_looks(Cell(name, n_first, carried=0.9), n_repetitions)
            degraded = promoting_looks(Cell(name, n_first, only_degraded=True), n_repetitions)
            shares = [
                *(new["ignore"] == 1, new["spend"] == 1),
                *(np.isfinite(found["spend"]) for found in (new, alike, degraded)),
                *(np.isfinite(found["ignore"]) for found in (new, alike)),
            ]
            rows.append([name, str(n_first), *map(percent, shares)])
    return rows


def power(n_repetitions: int) -> list[list[str]]:
    """Return one row of promotions of a better model for each distribution, gain and first look.

    Parameters
    ----------
    n_repetitions
        Champions of each cell.
    """
    rows = []
    for name in ERRORS:
        for n_first in N_FIRST:
            row = [name, str(n_first)]
            for gain in GAINS:
                found = promoting_looks(Cell(name, n_first, gain), n_repetitions)
                spend, ignore = found["spend"], found["ignore"]
                row += map(percent, (ignore == 1, spend == 1, spend <= 5, np.isfinite(spend)))
            rows.append(row)
    return rows


def compare_candidates(n_repetitions: int) -> list[list[str]]:
    """Return one row for each way to allow for peeking, on errors skewed like real ones.

    Parameters
    ----------
    n_repetitions
        Champions of each cell.
    """
    cells = [Cell("skewed like real ones", n, gain) for gain in (0.0, *GAINS) for n in N_FIRST]
    rows: dict[str, list[str]] = {}
    for cell in cells:
        for name, promoted in candidates(cell, n_repetitions).items():
            first, last = 100 * promoted[:, 0].mean(), 100 * promoted[:, -1].mean()
            shown = f"{last:.1f}" if cell.gain == 0 else f"{first:.0f} / {last:.0f}"
            rows.setdefault(name, [name]).append(shown)
    return list(rows.values())


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in markdown.

    Parameters
    ----------
    header
        Names of the columns; the first one is of words, the others are of numbers.
    rows
        Cells, as many as columns.
    """
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


EQUAL_HEADER = [
    *("errors", "recordings at first look", "one look, 0.05", "first look, spend"),
    *("20 looks, spend", "20 looks, spend, challengers alike", "20 looks, spend, over threshold"),
    *("20 looks, ignore", "20 looks, ignore, challengers alike"),
]
POWER_HEADER = [
    *("errors", "recordings at first look"),
    *(
        f"{gain:g} points: {what}"
        for gain in GAINS
        for what in ("one look, 0.05", "first look, spend", "5 looks, spend", "20 looks, spend")
    ),
]
CANDIDATES_HEADER = [
    "candidate",
    *(f"no gain, {n}" for n in N_FIRST),
    *(f"{gain:g} points, {n}" for gain in GAINS for n in N_FIRST),
]

REPORT = """# What the gate's p-value promises, measured

**Promise.** Over the whole life of a champion, however often it is judged, a challenger that is
no better is promoted with a probability of at most `significance` (0.05). The null hypothesis,
exactly: at every look, champion and challenger could swap their errors on each recording,
independently of the other recordings, without changing their joint distribution; so all signs of
the differences are equally likely. Nothing is assumed about the distribution of the errors or
about what the challengers of different looks have in common.

**How.** Look k is held against its own share of the significance
(`gate.effective_significance`): alpha_1 = 0.8 alpha, then
alpha_k = 0.2 alpha n_1 (1 / n_(k-1) - 1 / n_k) with n_k recordings. The shares add up to less
than alpha, so by Boole's inequality the promise holds for any number of looks. With "ignore" each
look has the whole alpha, and false promotions add up; `--significance 1` is no test at all.

**Sessions.** Where recordings name a [session](ground_truth.md#sessions), "recording" reads
"session" on this page: the errors of one session are not independent, so their signs are flipped
together, and looks, shares and the number needed count sessions. 15 recordings of five sessions
that are alike promoted an equal model 20 % of the time counted by recording, 4 % by session.

**Not promised.** Equal means alone are not enough: see the third table, in which the challenger's
errors are of another shape (zero on two thirds of the recordings, three times the champion's on
the rest). And whether a night is a look should not depend on the errors, but the threshold makes it
depend on the champion's. The column "over threshold" measures that case: a night is a look, and
spends, only if the champion's mean error on the recordings is above its true mean; in the last rows
of the third table that is luck alone. (Boole's inequality would cover this case if healthy nights
spent as well, but they would leave little for the night on which the champion really fails.)

**Setting.** One cell: {repetitions:,} champions, promotions in percent ± binomial standard error.
Each night brings 1 to 3 recordings and a new challenger, which is compared on all recordings so
far: with errors drawn anew each night, or ("alike") the same as the night before on 90 % of the
recordings. Mean error {mean:g} %, where there is a gain {degraded:g} % for the champion. "Skewed
like real ones": miscounts of {stems} stems are Poisson, the difficulty of a recording is gamma; as
in real out-of-fold errors about a quarter is zero, and the deviation is as large as the mean.

Measured on {date} in {seconds:.0f} s on one core with

    {command}

## Equal models

{equal}

## A real gain

{power}

## At the edge of the promise

{not_promised}

## Candidates

On errors skewed like real ones. No gain: promoted within 20 looks; 2 and 4 points: at the first
look / within 20 looks, by recordings at the first look. Standard error at most {error:.1f}.

{candidates}

{names}
"""

CANDIDATES_NOTE = """`gate` uses the one in bold. It loses least to the plain test at the
first look, which is the usual case, and gives a night with many new recordings a larger share than
one with few: within 20 looks it finds more than the same first share with the rest by looks.
Spending half at the first look finds more small gains in the end, and fewer at once. Bets on the
signs (Waudby-Smith and Ramdas, 2024) promote late, for a stake must be multiplied by 20; and as a
recording is bet on once, they judge a mixture of challengers and not the one to be promoted.
E-values of every look on all recordings, weighted by 1, 1/2, 1/6, ... and added up, judge that one
and are weaker still."""


def measure(n_repetitions: int) -> str:
    """Return the whole report.

    Parameters
    ----------
    n_repetitions
        Champions of each cell.
    """
    start = time.monotonic()
    tables = {
        "equal": table(EQUAL_HEADER, equal_models(n_repetitions, tuple(ERRORS))),
        "power": table(POWER_HEADER, power(n_repetitions)),
        "not_promised": table(EQUAL_HEADER, equal_models(n_repetitions, tuple(NOT_PROMISED))),
        "candidates": table(CANDIDATES_HEADER, compare_candidates(n_repetitions)),
    }
    return REPORT.format(
        repetitions=n_repetitions,
        mean=MEAN_ERROR,
        degraded=DEGRADED_MEAN_ERROR,
        stems=N_STEMS,
        date=datetime.date.today().isoformat(),
        seconds=time.monotonic() - start,
        command=f"python tests/tools/gate_simulation.py --repetitions {n_repetitions}",
        error=50 / math.sqrt(n_repetitions),
        names=CANDIDATES_NOTE,
        **tables,
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the report, and write it.

    Parameters
    ----------
    arguments
        Command line; None for that of the process.
    """
    parser = argparse.ArgumentParser(description="Measure the gate's error rates.")
    parser.add_argument("--repetitions", type=int, default=2000, help="champions of each cell")
    parser.add_argument("--report", type=Path, help="file that the tables are written to")
    options = parser.parse_args(arguments)
    with threadpool_limits(1):
        report = measure(options.repetitions)
    print(report)
    if options.report:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(report, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
