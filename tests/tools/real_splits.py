"""What the gate decides about real models on real recordings.

Each split takes 15 of the 33 recordings as new, at random. Twice the same recipe on the same 18
old recordings, with another seed, must hardly ever be promoted; `StemClassifier`, trained as the
cycle does and scored out of fold, must replace a forest of the first generation.

Usage::

    python tests/tools/real_splits.py [--twins N] [--generations N] [--report FILE]

Prints one line per split; ends with status 1 if more twins or fewer generations are promoted
than promised. All splits take about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "tools")]

import numpy as np
import pandas as pd
from conftest import SHARED
from crash_sweep import write_report
from scipy.stats import binom
from sklearn.ensemble import RandomForestClassifier

import train_classification_model as training
from retraining import gate
from retraining.cross_validation import train
from retraining.gate import Verdict
from retraining.settings import Settings
from retraining.training import ERROR, load_training_module

N_NEW, N_FOLDS = 15, 5
TWINS, GENERATIONS = 20, 10
LEAST_GENERATIONS = 0.9


def most_twins(n_splits: int) -> int:
    """Return how many promotions of an equal model are still luck: at most 1 in 1,000 exceed it."""
    return int(binom.ppf(0.999, n_splits, 0.05))


def split(paths: list[Path], seed: int) -> tuple[list[Path], list[Path]]:
    """Return old and new recordings."""
    order = np.random.default_rng(seed).permutation(len(paths))
    return [paths[i] for i in order[N_NEW:]], [paths[i] for i in order[:N_NEW]]


def errors_of(model: Any, recordings: list[pd.DataFrame]) -> list[float]:
    """Return the counting error of each recording, in percent."""
    return [
        float(training.count_errors(rows, model.predict(rows))["error_percent"].iloc[0])
        for rows in recordings
    ]


def judge_twins(old: list[Path], new: list[Path], seed: int) -> Verdict:
    """Judge the same recipe on the same recordings, with another seed."""
    rows = pd.concat([training.read_ground_truth(path) for path in old], ignore_index=True)
    labels = rows["ground_truth"].to_numpy(dtype=bool)
    recordings = [training.read_ground_truth(path) for path in new]
    champion, challenger = (
        errors_of(training.StemClassifier(random_state=state).fit(rows, labels), recordings)
        for state in (2 * seed, 2 * seed + 1)
    )
    return gate.judge(champion, challenger)


def judge_generations(old: list[Path], new: list[Path], seed: int) -> Verdict:
    """Judge a retrained classifier of tracks against a forest of detections."""
    rows = pd.concat([training.read_ground_truth(path) for path in old], ignore_index=True)
    features = training.detection_features(rows)
    labels = rows["ground_truth"].to_numpy(dtype=bool)[features.index]
    forest = RandomForestClassifier(100, n_jobs=-1, random_state=seed).fit(features, labels)
    champion = errors_of(
        training.DetectionVoteClassifier(forest), [training.read_ground_truth(path) for path in new]
    )
    module = load_training_module(Settings())
    result, _ = train(module, [*old, *new], n_folds=N_FOLDS, random_state=seed)
    challenger = result.out_of_fold[ERROR][[path.name for path in new]]
    return gate.judge(champion, challenger)


def main() -> int:
    """Judge the splits and return the exit status."""
    parser = argparse.ArgumentParser(description="Judge real models on real recordings.")
    parser.add_argument("--twins", type=int, default=TWINS)
    parser.add_argument("--generations", type=int, default=GENERATIONS)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    paths = sorted((SHARED / "gts").glob("*.csv"))
    rows, promoted = [], {}
    for name, judge, n_splits in (
        ("same recipe, other seed", judge_twins, options.twins),
        ("first generation -> StemClassifier", judge_generations, options.generations),
    ):
        verdicts = [judge(*split(paths, seed), seed) for seed in range(n_splits)]
        for verdict in verdicts:
            print(f"{name}: {'promoted' if verdict.promote else 'kept'}: {verdict.explain()}")
        promoted[name] = sum(verdict.promote for verdict in verdicts)
        errors = [(one.champion_mean_error, one.challenger_mean_error) for one in verdicts]
        means = " -> ".join(f"{mean:.1f} %" for mean in np.mean(errors, axis=0))
        rows.append([name, n_splits, promoted[name], means])
    twins, generations = promoted.values()
    if options.report:
        columns = ["champion -> challenger", "splits", "promoted", "mean error on the 15"]
        write_report(options.report, "make real-splits", columns, rows)
    kept = twins <= most_twins(options.twins)
    found = generations >= LEAST_GENERATIONS * options.generations
    print(json.dumps({"twins": twins, "generations": generations, "as promised": kept and found}))
    return 0 if kept and found else 1


if __name__ == "__main__":
    sys.exit(main())
