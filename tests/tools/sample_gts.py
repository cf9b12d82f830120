"""Make synthetic ground truth files that look like real ones, for tests and `make demo`.

Every recording has its own scale, speed and direction. In the `old` season false counts are
trunks in the background: slower, smaller and shorter than the stems around them. In the `new`
season they are double detections in the foreground: faster, larger and longer. A model that
learnt one season fails on the other.

Usage::

    python tests/tools/sample_gts.py FOLDER [--count 15] [--season old|new] [--seed 0]
                                         [--prefix NAME]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

IMAGE_WIDTH = 2000
ROWS_OF_A_TRACK = (30, 47, 85)
SHARE_OF_STEMS = (0.62, 0.92)


@dataclass(frozen=True)
class Season:
    """How a false count differs from the stems around it, as factors of theirs.

    Parameters
    ----------
    speed, area, rows
        Median factors.
    score
        Added to the mean score.
    """

    speed: float
    area: float
    rows: float
    score: float


STEM = Season(speed=1, area=1, rows=1, score=0)
SEASONS = {
    "old": Season(speed=0.45, area=0.4, rows=0.65, score=-0.12),
    "new": Season(speed=2.0, area=2.3, rows=1.5, score=0.06),
}


def make_recording(seed: int, season: str = "old", n_tracks: int | None = None) -> pd.DataFrame:
    """Return one recording as the tracker would write it.

    Parameters
    ----------
    seed
        The same seed and season give the same recording.
    season
        A key of `SEASONS`.
    n_tracks
        Counted tracks; 27 to 120 by default.
    """
    random = np.random.default_rng([seed, sorted(SEASONS).index(season)])
    return draw_recording(random, lambda is_stem: STEM if is_stem else SEASONS[season], n_tracks)


def draw_recording(
    random: np.random.Generator, factor: Callable[[bool], Season], n_tracks: int | None = None
) -> pd.DataFrame:
    """Return one recording.

    Parameters
    ----------
    random, n_tracks
        As for `make_recording`.
    factor
        Returns how a track differs from what is usual in its recording; called once for each, with
        whether it is a stem.
    """
    n_tracks = n_tracks or int(np.clip(random.lognormal(np.log(58), 0.35), 27, 120))
    scale = random.lognormal(0, 0.35)
    speed = random.lognormal(np.log(24), 0.3)
    direction = random.choice((-1, 1))
    is_stem = random.random(n_tracks) < random.uniform(*SHARE_OF_STEMS)
    starts = np.cumsum(random.lognormal(np.log(69), 0.4, n_tracks)).astype(int)
    identities = np.cumsum(random.integers(1, 40, n_tracks))
    tracks = [_track(random, factor(bool(stem)), scale=scale, speed=speed) for stem in is_stem]
    lengths = [len(track["frames"]) for track in tracks]
    columns = {name: np.concatenate([track[name] for track in tracks]) for name in tracks[0]}
    columns["frames"] += np.repeat(starts, lengths)
    if direction < 0:
        columns["centroids_x"] = IMAGE_WIDTH - columns["centroids_x"]
    table = pd.DataFrame({"object_id": np.repeat(identities, lengths), **columns})
    return table.assign(counted=True, ground_truth=np.repeat(is_stem, lengths))


def _track(
    random: np.random.Generator, factor: Season, *, scale: float, speed: float
) -> dict[str, np.ndarray]:
    low, middle, high = ROWS_OF_A_TRACK
    n_rows = int(np.clip(random.lognormal(np.log(middle * factor.rows), 0.25), low // 4, high * 2))
    frames = np.flatnonzero(random.random(int(n_rows * 1.1) + 2) < 0.93)[:n_rows]
    track_speed = speed * factor.speed * random.lognormal(0, 0.1)
    x = random.uniform(20, 250) + track_speed * frames + random.normal(0, 4, len(frames))
    y = 1500 + random.normal(0, 60) + np.cumsum(random.normal(0, 6, len(frames)))
    aspect = random.normal(6.6, 0.8) + random.normal(0, 0.4, len(frames))
    middle_area = 242_000 * scale**2 * factor.area * random.lognormal(0, 0.15)
    area = middle_area * random.lognormal(0, 0.08, len(frames))
    aspect[0], area[0] = 0, 0
    scores = np.clip(
        random.normal(0.7 + factor.score, 0.07) + random.normal(0, 0.08, len(frames)), 0.1, 0.95
    )
    return {
        "centroids_x": x.round(),
        "centroids_y": y.round(),
        "aspect_ratio": aspect.clip(0, 12).round(4),
        "area": area.round(),
        "frames": frames - frames[0],
        "scores": scores.round(2),
    }


def write_recordings(
    folder: Path, count: int, season: str = "old", seed: int = 0, prefix: str = "recording"
) -> list[Path]:
    """Write recordings and return their paths.

    Parameters
    ----------
    folder
        Created if it is missing.
    count
        Number of files.
    season
        A key of `SEASONS`.
    seed
        The files of one seed differ from those of any other.
    prefix
        Of the names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / f"{prefix}_{number + 1:02d}.csv"
        make_recording(1000 * seed + number, season).to_csv(path, index=False)
        paths.append(path)
    return paths


def main() -> None:
    """Write recordings as the command line says."""
    parser = argparse.ArgumentParser(description="Write synthetic ground truth files.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=15)
    parser.add_argument("--season", choices=sorted(SEASONS), default="old")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prefix", default="recording")
    options = parser.parse_args()
    paths = write_recordings(
        options.folder, options.count, options.season, options.seed, options.prefix
    )
    print(f"wrote {len(paths)} recordings of the {options.season} season to {options.folder}")


if __name__ == "__main__":
    main()
