"""How often chance looks like a change of the data, on real recordings.

Each split takes one season of the 33 real recordings and halves it at random: one half stands for
what production was trained on, the other one for the new recordings. Nothing changed, so at most
5 % of the p-values may be below 0.05. Beside them stand the p-values of tests that take tracks as
independent, which the page showed before; and what the page says of the real change of season.

Usage::

    python tests/tools/drift_halves.py [--splits N] [--report FILE]

Prints one line per split; ends with status 1 if more overall p-values are below 0.05 than
promised, or the change of season is not found. All splits take about two minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "tools")]

import numpy as np
import pandas as pd
from conftest import SHARED
from crash_sweep import write_report
from scipy import stats

import train_classification_model as training
from retraining.report.drift import ChangedData, compare_examples

SPLITS = 1000
LIMIT = 0.05
MOST_FALSE_ALARMS = 0.07
"""Share of overall p-values below `LIMIT` that is still allowed, but for sampling error."""
LAST_OF_THE_OLDER_SEASON = 22


def most_false_alarms(n_splits: int) -> int:
    """Return how many false alarms are still luck: at most 1 in 1,000 exceed it."""
    return int(stats.binom.ppf(0.999, n_splits, MOST_FALSE_ALARMS))


def features_by_season() -> list[list[pd.DataFrame]]:
    """Return the features of each recording of the older season, and of the newer one."""
    seasons: list[list[pd.DataFrame]] = [[], []]
    for path in sorted((SHARED / "gts").glob("*.csv"), key=lambda path: int(path.stem)):
        examples = training.examples(training.read_ground_truth(path))
        features = examples[list(training.TRACK_FEATURES)]
        features = features.set_axis([path.name] * len(features))
        seasons[int(path.stem) > LAST_OF_THE_OLDER_SEASON].append(features)
    return seasons


def compare_halves(recordings: list[pd.DataFrame], seed: int) -> ChangedData:
    """Compare a random half of the recordings with the other one."""
    order = np.random.default_rng(seed).permutation(len(recordings))
    halves = np.array_split(order, 2)
    old, new = (pd.concat([recordings[i] for i in half]) for half in halves)
    return compare_examples(old, new)


def p_value_of_all(changed: ChangedData) -> float:
    """Return the overall p-value, which two sides with values always have."""
    assert changed.p_value is not None
    return changed.p_value


def p_values_of_tracks(changed: ChangedData) -> np.ndarray:
    """Return the p-value of each feature were its tracks independent."""
    tests = [stats.ks_2samp(one.trained_on, one.new, method="asymp") for one in changed.shifts]
    return np.array([one.pvalue for one in tests])


def false_alarms(changed: ChangedData) -> dict[str, float]:
    """Return what is below the limit although nothing changed: 0 or 1, or a share of features."""
    by_feature = np.array([one.p_value for one in changed.shifts])
    by_track = p_values_of_tracks(changed)
    return {
        "the overall p-value": float(p_value_of_all(changed) < LIMIT),
        "p-values of features": float((by_feature < LIMIT).mean()),
        "p-values of features, were tracks independent": float((by_track < LIMIT).mean()),
        "some feature by Bonferroni's bound, were tracks independent": float(
            by_track.min() < LIMIT / len(by_track)
        ),
    }


def with_error(alarms: pd.Series[float]) -> str:
    """Return the mean over the splits in percent, with its standard error."""
    error = float(alarms.std(ddof=0)) / math.sqrt(len(alarms))
    return f"{100 * float(alarms.mean()):.1f} ± {100 * error:.1f} %"


def main() -> int:
    """Compare halves and seasons and return the exit status."""
    parser = argparse.ArgumentParser(description="Compare random halves of one season.")
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    seasons = features_by_season()
    found = []
    for seed in range(options.splits):
        changed = compare_halves(seasons[seed % 2], seed)
        found.append(false_alarms(changed))
        print(f"split {seed}: overall p-value {p_value_of_all(changed):.3f}")
    alarms = pd.DataFrame(found)
    rows = [[f"{name} below {LIMIT}", with_error(alarms[name])] for name in alarms]
    older, newer = (pd.concat(season) for season in seasons)
    change = p_value_of_all(compare_examples(older, newer))
    rows.append(
        ["for comparison, the older season against the newer: overall p-value", f"{change:.2g}"]
    )
    for what, value in rows:
        print(f"{what}: {value}")
    if options.report:
        columns = [f"{options.splits:,} random halves of one season", "found"]
        write_report(options.report, "make drift-halves", columns, rows)
    n_false = int(alarms["the overall p-value"].sum())
    kept = n_false <= most_false_alarms(options.splits)
    print(json.dumps({"false alarms": n_false, "as promised": kept and change < LIMIT}))
    return 0 if kept and change < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
