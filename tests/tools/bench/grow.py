"""Make a large folder of recordings out of a small one: the same tracks, slightly moved.

Every copy has a name and a content of its own, so that nothing can be taken from a cache.

Usage::

    python tests/tools/bench/grow.py SOURCE TARGET COPIES
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import train_classification_model as training

JITTER = {"centroids_x": 3.0, "centroids_y": 3.0, "area": 500.0}
"""Standard deviations in pixel and pixel²; a row without a box keeps none."""


def grow(source: Path, target: Path, n_copies: int) -> None:
    """Write copies of every recording.

    Parameters
    ----------
    source
        Holds the recordings.
    target
        Created if it is missing.
    n_copies
        Of each recording.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.csv")):
        rows = training.read_ground_truth(path).drop(columns="file")
        for copy in range(n_copies):
            random = np.random.default_rng([copy, len(rows)])
            moved = {
                column: (rows[column] + random.normal(0, deviation, len(rows)).round())
                .clip(lower=0)
                .where(rows[column] > 0, rows[column])
                for column, deviation in JITTER.items()
            }
            rows.assign(**moved).to_csv(target / f"{path.stem}_{copy:04d}.csv", index=False)


if __name__ == "__main__":
    grow(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
