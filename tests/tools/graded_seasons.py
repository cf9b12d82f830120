"""Synthetic seasons between the two of `sample_gts`, and models that learn them in milliseconds.

Between any two recordings false counts differ as they do between real ones: in some they are
hardly told from stems. A change of the data may be of any size. The classifier is a small forest
instead of the product's; features, probabilities, errors and calibrations are the product's own.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from sample_gts import SEASONS, Season, draw_recording
from sklearn.ensemble import ExtraTreesClassifier
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import train_classification_model as stems
from retraining.calibration import Calibration
from retraining.settings import Settings
from retraining.training import (
    COUNT_SPREAD,
    ERROR,
    PREDICTED_COUNT,
    TRUE_COUNT,
    UNSURE,
    TrainedModel,
    Training,
    load_training_module,
)

TREES, N_FOLDS = 20, 5
FEATURES = list(stems.TRACK_FEATURES)


@dataclass(frozen=True)
class Graded:
    """A season; each recording draws its own grades.

    Parameters
    ----------
    ease
        Between what a recording's ease lies: a power of the factors by which false counts differ
        from stems; at 0 nobody tells them apart, at 1 they are those of `SEASONS`.
    share
        Between what the share of false counts lies that are of the kind of the season `new`; the
        others are of the kind of `old`.
    noise
        Between what the standard deviation lies by which the logarithms of speed, area and length
        of each track, stem or not, are off.
    spared
        Share of the recordings that have neither noise nor more than the least share.
    """

    ease: tuple[float, float]
    share: tuple[float, float]
    noise: tuple[float, float] = (0.0, 0.0)
    spared: float = 0.0

    def draw(self, seed: Sequence[int]) -> pd.DataFrame:
        """Return one recording as the tracker would write it."""
        random = np.random.default_rng(seed)
        ease, share = random.uniform(*self.ease), random.uniform(*self.share)
        noise = random.uniform(*self.noise)
        if self.spared and random.random() < self.spared:
            share, noise = self.share[0], 0.0

        def factor(is_stem: bool) -> Season:
            speed, area, rows = np.exp(noise * random.normal(size=3))
            if is_stem:
                return Season(speed, area, rows, 0.0)
            kind = SEASONS["new" if random.random() < share else "old"]
            return Season(
                speed * kind.speed**ease,
                area * kind.area**ease,
                rows * kind.rows**ease,
                kind.score * ease,
            )

        return draw_recording(random, factor)


OLD = Graded((0.3, 1.2), (0.0, 0.1))
"""False counts are trunks in the background, but for a few double detections."""


@functools.lru_cache(maxsize=16)
def described(season: Graded, n: int, seed: int, n_jobs: int = 1) -> tuple[pd.DataFrame, ...]:
    """Return the examples of n recordings, one table each, the same for the same seed."""
    make = delayed(_described)
    return tuple(Parallel(n_jobs)(make(season, (seed, number)) for number in range(n)))


def _described(season: Graded, seed: tuple[int, int]) -> pd.DataFrame:
    return stems.examples(season.draw(seed).assign(file="one"))


def fit(recordings: Sequence[pd.DataFrame], random_state: int = 0) -> stems.StemClassifier:
    """Return a small forest of tracks in the product's classifier."""
    table = pd.concat(recordings)
    forest = ExtraTreesClassifier(
        TREES, min_samples_leaf=2, class_weight="balanced", random_state=random_state
    )
    labels = table[stems.LABEL_COLUMN].to_numpy()
    return stems.StemClassifier(forest).fit_tracks(table[FEATURES], labels)


def told(model: stems.StemClassifier, recordings: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the error of each recording and what the model expects of it, without rows.

    Returns
    -------
    DataFrame of shape (n_recordings, 6)
        `error`, `expected`, `unsure`, `predicted_count`, `count_spread` and `true_count`: what
        `count_errors` and `expected_errors` of the training module return of the rows.
    """
    table = pd.concat(recordings)
    lengths = [len(one) for one in recordings]
    probability = model.predict_tracks(table[FEATURES])
    starts = np.cumsum([0, *lengths[:-1]])

    def total(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values.astype(float), starts)

    true, predicted = total(table[stems.LABEL_COLUMN].to_numpy()), total(probability > 0.5)
    wrong = total(np.minimum(probability, 1 - probability))
    is_unsure = (probability > stems.UNSURE_FROM) & (probability < stems.UNSURE_TO)
    return pd.DataFrame(
        {
            ERROR: 100 * np.abs(true - predicted) / np.maximum(true, stems.FEWEST_STEMS),
            "expected": 100 * wrong / np.maximum(total(probability), stems.FEWEST_STEMS),
            UNSURE: total(is_unsure) / lengths,
            PREDICTED_COUNT: predicted,
            COUNT_SPREAD: wrong + 1,
            TRUE_COUNT: true,
        }
    )


def out_of_fold(recordings: Sequence[pd.DataFrame], random_state: int = 0) -> pd.DataFrame:
    """Return what `told` returns, each recording by a model that never saw it."""
    order = np.random.default_rng(random_state).permutation(len(recordings))
    parts = []
    for fold in range(N_FOLDS):
        test = order[fold::N_FOLDS]
        rest = [recordings[number] for number in np.setdiff1d(order, test)]
        held_out = [recordings[number] for number in test]
        parts.append(told(fit(rest, random_state), held_out).set_axis(test))
    return pd.concat(parts).sort_index()


@functools.cache
def module() -> Training:
    """Return the default training module as the pipeline sees it."""
    return load_training_module(Settings())


@dataclass(frozen=True)
class Production:
    """A model, and what its training taught about its expectations."""

    model: stems.StemClassifier
    calibration: Calibration
    out_of_fold: pd.DataFrame

    @classmethod
    def trained_on(cls, recordings: Sequence[pd.DataFrame], random_state: int = 0) -> Production:
        """Train as the pipeline does."""
        with threadpool_limits(1):
            found = out_of_fold(recordings, random_state)
            model = fit(recordings, random_state)
        trained = TrainedModel(
            model=model,
            out_of_fold=found[[ERROR, TRUE_COUNT]],
            in_sample=found.iloc[:0],
            input_example=found.iloc[:0],
            row_counts={},
            data_quality={},
            examples=pd.concat(
                [one.set_axis([number] * len(one)) for number, one in enumerate(recordings)]
            ),
            importance=None,
            expected=found[["expected", PREDICTED_COUNT, COUNT_SPREAD]].rename(
                columns={"expected": ERROR}
            ),
        )
        calibration = Calibration.of(trained, module())
        assert calibration is not None
        return cls(model, calibration, found)


@functools.lru_cache(maxsize=4)
def productions(
    season: Graded, n: int, n_recordings: int, n_jobs: int = 1
) -> tuple[Production, ...]:
    """Return models that learnt different recordings of a season."""
    train = delayed(_production)
    return tuple(Parallel(n_jobs)(train(season, n_recordings, seed) for seed in range(n)))


def _production(season: Graded, n_recordings: int, seed: int) -> Production:
    return Production.trained_on(described(season, n_recordings, 1_000_000 + seed), seed)
