"""Make samples of grain for `grain_quality.py`: seeded, so the same words make the same files.

In the `old` season sound grains are dry and bright, mouldy ones dark. The `new` one was wet: sound
grains are dark, and mould is a white bloom. A model that learnt one season fails on the other.

Usage::

    python docs/own_model/make_samples.py FOLDER [--count 15] [--season old|new] [--seed 0]
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

SHARES = {"sound": 0.75, "broken": 0.1, "mouldy": 0.15}
GRAINS_OF_A_SAMPLE = (60, 120)
LENGTH_MM = {"sound": 6.5, "broken": 4.2, "mouldy": 6.3}
BRIGHTNESS = {
    "old": {"sound": 170, "broken": 165, "mouldy": 115},
    "new": {"sound": 138, "broken": 135, "mouldy": 190},
}
MOISTURE_PERCENT = {"old": 12.0, "new": 17.0}
SEASONS = tuple(MOISTURE_PERCENT)


def make_sample(seed: int, season: str) -> pd.DataFrame:
    """Return one sample; each has its own camera light and moisture.

    Parameters
    ----------
    seed
        The same seed and season give the same sample.
    season
        One of `SEASONS`.
    """
    random = np.random.default_rng([seed, SEASONS.index(season)])
    n_grains = int(random.integers(*GRAINS_OF_A_SAMPLE))
    quality = random.choice(list(SHARES), n_grains, p=list(SHARES.values()))
    light, moisture = random.normal(0, 5), random.normal(MOISTURE_PERCENT[season], 0.5)
    bright = np.array([BRIGHTNESS[season][one] for one in quality])
    length = np.array([LENGTH_MM[one] for one in quality])
    table = pd.DataFrame(
        {
            "length_mm": length + random.normal(0, 0.4, n_grains),
            "width_mm": random.normal(3.2, 0.2, n_grains),
            "brightness": (bright + light + random.normal(0, 11, n_grains)).clip(1, 255),
            "moisture_percent": moisture + random.normal(0, 0.4, n_grains),
        }
    )
    return table.round(2).assign(quality=quality)


def write_samples(
    folder: Path, count: int, season: str = "old", seed: int = 0, prefix: str = "sample"
) -> list[Path]:
    """Write samples and return their paths.

    Parameters
    ----------
    folder
        Created if it is missing.
    count
        Number of files.
    season
        One of `SEASONS`.
    seed
        The files of one seed differ from those of any other.
    prefix
        Of the names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{prefix}_{number + 1:02d}.csv" for number in range(count)]
    for number, path in enumerate(paths):
        make_sample(1000 * seed + number, season).to_csv(path, index=False)
    return paths


def main() -> None:
    """Write samples as the command line says."""
    parser = argparse.ArgumentParser(description="Write samples of grain.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=15)
    parser.add_argument("--season", choices=SEASONS, default="old")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prefix", default="")
    options = parser.parse_args()
    prefix = options.prefix or options.season
    paths = write_samples(options.folder, options.count, options.season, options.seed, prefix)
    print(f"wrote {len(paths)} samples of the {options.season} season to {options.folder}")


if __name__ == "__main__":
    main()
