"""The features of the first generation as its algorithm computed them: a group-by for each row.

Written anew from the definitions that its golden values confirm. Kept only to be measured beside
`train_classification_model`; the time grows with the square of the rows.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd
from sklearn.preprocessing import RobustScaler

FEATURES = [
    *("centroids_x", "centroids_y", "aspect_ratio", "area", "frames", "scores", "velocity"),
    *("mean_velocity_fps", "std_area", "adj_std_area", "dist_between_apps", "adjusted_frames"),
]


def detection_features(rows: pd.DataFrame) -> pd.DataFrame:
    """Compute the 12 features of every detection of a counted object.

    Parameters
    ----------
    rows
        One recording as `read_ground_truth` returns it.
    """
    counted = rows[rows["counted"]].sort_values(["object_id", "frames"], kind="stable")
    counted = counted.assign(velocity=_velocities(counted))
    per_row = [_track_statistics(counted, row) for row in counted.to_dict("records")]
    table = counted[FEATURES[:7]].assign(**pd.DataFrame(per_row, index=counted.index))
    speed = table["mean_velocity_fps"]
    table["adjusted_frames"] = table["frames"] * (
        (speed - speed.min()) / (speed.max() - speed.min())
    )
    scaled = RobustScaler().fit_transform(table[FEATURES])
    return pd.DataFrame(scaled, columns=FEATURES, index=table.index).dropna()


def _velocities(counted: pd.DataFrame) -> pd.Series:
    steps = counted.groupby("object_id")[["centroids_x", "frames"]].diff()
    velocity = steps["centroids_x"] / steps["frames"]
    return -velocity if velocity.mean() < 0 else velocity


def _track_statistics(counted: pd.DataFrame, row: dict[Hashable, Any]) -> dict[str, float]:
    """Group all rows again to look up the one group of this row."""
    groups = counted.groupby("object_id")
    track = groups.get_group(row["object_id"])
    duration = track["frames"].max() - track["frames"].min()
    first_frames = groups["frames"].min()
    place = int(np.flatnonzero(first_frames.index == row["object_id"])[0])
    before = first_frames.iloc[place - 1] if place else 0
    std_area = track["area"].std()
    return {
        "frames": duration,
        "mean_velocity_fps": track["velocity"].mean(),
        "std_area": std_area,
        "adj_std_area": std_area / duration if duration else np.nan,
        "dist_between_apps": first_frames.iloc[place] - before,
    }
