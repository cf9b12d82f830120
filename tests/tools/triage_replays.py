"""How many labels it takes until a degraded production is replaced, by the order of checking.

A replay is a season that nobody has checked. Each night a few of its recordings are checked: the
ones that triage lists, or as many at random. Production is monitored on the newest of them; where
it is over its threshold, a challenger learns everything and the gate compares. Listing, weights,
decision and gate are the product's own; the forest is a small one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from graded_seasons import FEATURES, Graded, Production, described, out_of_fold, productions, told
from joblib import Parallel, delayed

import train_classification_model as stems
from pipeline_orchestrator import should_retrain
from retraining import gate
from retraining.cycle import Monitoring
from retraining.marks import CHOSEN, RANDOM, Mark, Selection
from retraining.resampling import weighted_mean
from retraining.training import ERROR, TRUE_COUNT
from retraining.triage import Candidate, pick, summary_of
from retraining.windows import newest

SEASON, POOL, LEARNT = 100, 250, 30
MOST_SEASONS = 5
"""That are drawn for each replay that counts."""
TRIAGE, ALONE, AT_RANDOM = "triage", "triage, weights alone", "at random"
WIDE = "triage, wide"
ORDERS = (TRIAGE, ALONE, WIDE, AT_RANDOM)
"""Orders of checking, and rules that the product does not have. Weights alone: nothing is known of
the pool but the errors. Wide: all that are compared decide, and stand for the pool of their first
list: what is chosen early is not forgotten."""
_RUN = "production"


@dataclass(frozen=True)
class Rules:
    """How recordings are checked, and when production is judged.

    Parameters
    ----------
    a_night
        Recordings that are checked; of a list this many are asked for.
    random_share
        Of a list.
    min_new_files, window, threshold
        Settings of the pipeline.
    """

    a_night: int = 5
    random_share: float = 0.33
    min_new_files: int = 15
    window: int = 30
    threshold: float = 10.0


_NAMES = pd.RangeIndex(2 * len(FEATURES))


@dataclass(frozen=True)
class Checked:
    """A recording of a season: what is learnt from it, and what triage sees of it."""

    examples: pd.DataFrame
    summary: pd.Series[float]

    @classmethod
    def of(cls, examples: pd.DataFrame) -> Checked:
        """Summarise its features; all under one index, which makes tables of them quickly."""
        return cls(examples, summary_of(examples[FEATURES]).set_axis(_NAMES))


@dataclass
class Replayed:
    """What became of one replay.

    Parameters
    ----------
    labels
        Checked when production was replaced; all of the season if it never was.
    is_replaced
        Whether it was.
    looks, retrainings
        Nights on which production was judged, and on which it was over its threshold.
    measured, unweighted
        The mean error at the first look, and were all weights alike.
    chosen_alone
        The same of its chosen recordings alone; NaN in a random order.
    truth
        Production's mean error on the whole season.
    """

    labels: int
    truth: float
    is_replaced: bool = False
    looks: int = 0
    retrainings: int = 0
    measured: float = np.nan
    unweighted: float = np.nan
    chosen_alone: float = np.nan


class Replay:
    """One season under one production."""

    def __init__(
        self,
        learnt: Sequence[Checked],
        season: Sequence[Checked],
        production: Production,
        rules: Rules,
        seed: int,
    ) -> None:
        self._learnt, self._season = learnt, season
        self._rules, self._seed = rules, seed
        self._production = production
        self._retrained: dict[tuple[int, ...], np.ndarray] = {}
        found = told(production.model, [one.examples for one in season])
        self._champion = found[ERROR].to_numpy()
        self._expected = (production.calibration.scale * found["expected"]).tolist()
        tracks = np.array([len(one.examples) for one in season])
        true = found[TRUE_COUNT].to_numpy()
        self._no_model = 100 * (tracks - true) / np.maximum(true, stems.FEWEST_STEMS)

    def run(self, order: str) -> Replayed:
        """Check night after night until production is replaced, or all are checked."""
        rules, season = self._rules, self._season
        done = Replayed(labels=len(season), truth=float(self._champion.mean()))
        random = np.random.default_rng(self._seed)
        checked: list[int] = []
        nights: list[int] = []
        marks: list[Mark | None] = []
        while len(checked) < len(season):
            rest = [number for number in range(len(season)) if number not in checked]
            listed = None if order == AT_RANDOM else self._listed(rest, checked, marks)
            if listed is None:
                drawn = random.permutation(rest)[: rules.a_night].tolist()
                listed = [(number, None) for number in drawn]
            night = max(nights, default=0) + 1
            checked += [number for number, _ in listed]
            marks += [mark for _, mark in listed]
            nights += [night] * len(listed)
            enough = len(checked) >= rules.min_new_files
            if enough and self._judge(checked, nights, marks, done, order):
                done.labels, done.is_replaced = len(checked), True
                break
        return done

    def _listed(
        self, rest: Sequence[int], checked: Sequence[int], marks: Sequence[Mark | None]
    ) -> list[tuple[int, Mark | None]]:
        candidates = [
            Candidate(
                f"{self._seed}-{number}", self._expected[number], self._season[number].summary
            )
            for number in rest
        ]
        known = [one.summary for one in self._learnt]
        known += [self._season[number].summary for number in checked]
        picks = pick(candidates, known, self._rules.a_night, self._rules.random_share)
        n_chosen = sum(one.how == CHOSEN for one in picks)
        n_chosen += sum(mark is not None and mark.how == CHOSEN for mark in marks)
        return [
            (
                rest[one.place],
                Mark(
                    one.how,
                    len(self._season),
                    n_chosen,
                    estimate=self._expected[rest[one.place]],
                    pool_estimate=float(np.mean(self._expected)),
                    run_id=_RUN,
                    group="season",
                ),
            )
            for one in picks
        ]

    def _judge(
        self,
        checked: Sequence[int],
        nights: Sequence[int],
        marks: Sequence[Mark | None],
        done: Replayed,
        order: str,
    ) -> bool:
        """Monitor, and where production is over its threshold retrain and compare."""
        rules, champion = self._rules, self._champion[checked]
        is_wide = order == WIDE
        decided = np.flatnonzero(newest(nights, rules.window if is_wide else rules.min_new_files))
        found = [marks[int(place)] for place in decided]
        if is_wide:
            found = _of_one_list(found)
        selection = Selection.of(found, "" if order == ALONE else _RUN)
        known = selection.known
        mean = weighted_mean(champion[decided], selection.weights) + known
        if not done.looks:
            done.measured, done.unweighted = mean, float(champion[decided].mean())
            hows = np.array([mark.how if mark else RANDOM for mark in marks])
            if (hows == CHOSEN).any():
                done.chosen_alone = float(champion[hows == CHOSEN].mean())
        done.looks += 1
        monitoring = Monitoring(pd.DataFrame(), mean, mean, mean, mean)
        if not should_retrain(monitoring, rules.threshold, "point"):
            return False
        done.retrainings += 1
        weights = np.zeros(len(checked))
        weights[decided] = 1.0 if selection.weights is None else selection.weights
        window = np.flatnonzero(newest(nights, max(rules.window, len(decided))))
        return self._is_promoted(checked, window, weights[window], known)

    def _is_promoted(
        self, checked: Sequence[int], window: np.ndarray, weights: np.ndarray, known: float
    ) -> bool:
        new = [self._season[number].examples for number in checked]
        old = [one.examples for one in self._learnt]
        key = tuple(checked)
        if key not in self._retrained:  # two orders may list the same
            self._retrained[key] = out_of_fold([*old, *new], self._seed)[ERROR].to_numpy()
        errors = self._retrained[key]
        challenger, numbers = errors[len(old) :], np.array(checked)
        others = np.setdiff1d(np.arange(len(checked)), window)
        learnt = self._production.out_of_fold[ERROR].to_numpy()
        used = (
            np.concatenate([learnt, self._champion[numbers[others]]]),
            np.concatenate([errors[: len(old)], challenger[others]]),
        )
        return gate.judge(
            self._champion[numbers[window]],
            challenger[window],
            threshold=self._rules.threshold,
            decided=weights.tolist(),
            known=known,
            no_model_errors=self._no_model[numbers[window]],
            used_errors=used,
        ).promote


def _of_one_list(found: Sequence[Mark | None]) -> list[Mark | None]:
    """Return marks as if one list had named all of them, made from the largest pool."""
    listed = [one for one in found if one is not None]
    n_chosen = sum(one.how == CHOSEN for one in listed)
    pool = max(one.pool for one in listed)
    return [replace(one, pool=pool, n_chosen=n_chosen) for one in listed]


def replay_all(
    learnt: Graded, season: Graded, n_replays: int, n_productions: int, rules: Rules, n_jobs: int
) -> dict[str, list[Replayed]]:
    """Replay synthetic seasons, each in every order; return order -> what became of each.

    Where the season is another one than what was learnt, production truly errs by more than the
    threshold on it; else by less. Seasons of which that is not true are not counted.
    """
    trained = productions(learnt, n_productions, LEARNT, n_jobs)
    recordings = [Checked.of(one) for one in described(season, POOL, 6_000_000, n_jobs)]
    tables = [
        [Checked.of(one) for one in described(learnt, LEARNT, 1_000_000 + number, n_jobs)]
        for number in range(n_productions)
    ]
    errors = [told(one.model, [each.examples for each in recordings])[ERROR] for one in trained]
    seeds: list[int] = []
    places = {}
    for seed in range(MOST_SEASONS * n_replays):
        drawn = np.random.default_rng((7, seed)).permutation(POOL)[:SEASON]
        truth = float(errors[seed % n_productions].to_numpy()[drawn].mean())
        if len(seeds) < n_replays and (truth > rules.threshold) is (season != learnt):
            seeds.append(seed)
            places[seed] = drawn
    tried = delayed(_replayed)
    found = Parallel(n_jobs)(
        tried(
            tables[seed % n_productions],
            [recordings[at] for at in places[seed]],
            trained[seed % n_productions],
            rules,
            seed,
        )
        for seed in seeds
    )
    return {order: [one[order] for one in found] for order in ORDERS}


def _replayed(
    learnt: Sequence[Checked],
    season: Sequence[Checked],
    production: Production,
    rules: Rules,
    seed: int,
) -> dict[str, Replayed]:
    replay = Replay(learnt, season, production, rules, seed)
    return {order: replay.run(order) for order in ORDERS}


def replay_real(
    old: Sequence[pd.DataFrame], new: Sequence[pd.DataFrame], n_replays: int, n_jobs: int
) -> dict[str, list[Replayed]]:
    """Replay a real season under a production that learnt another one, given their examples."""
    rules = Rules(a_night=3, min_new_files=5, window=30, threshold=5.0)
    learnt, season = ([Checked.of(one) for one in each] for each in (old, new))
    tried = delayed(_replayed)
    found = Parallel(n_jobs)(
        tried(learnt, season, Production.trained_on(old, seed), rules, seed)
        for seed in range(n_replays)
    )
    return {order: [one[order] for one in found] for order in ORDERS}
