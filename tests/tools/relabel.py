"""Save recordings again as people do: with corrected labels, or the same in other bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

CLASSES = ("sound", "broken")


def relabel(source: Path, target: Path, share: float = 0.0, *, first: int = 0) -> Path:
    """Write a recording with other labels and return its path.

    Parameters
    ----------
    share
        Of the labelled objects that get another label; one at least.
    first
        Number of the first object that does.
    """
    table = pd.read_csv(source)
    if "quality" in table:
        rows = slice(first, first + max(1, round(share * len(table))))
        is_first = table["quality"].to_numpy()[rows] == CLASSES[0]
        changed = [CLASSES[1] if one else CLASSES[0] for one in is_first]
        table.loc[table.index[rows], "quality"] = changed
    else:
        objects = table["object_id"].unique()
        wrong = objects[first : first + max(1, round(share * len(objects)))]
        is_wrong = table["object_id"].isin(wrong)
        table["ground_truth"] = table["ground_truth"].astype(bool) ^ is_wrong
    table.to_csv(target, index=False)
    return target


def save_again(source: Path, target: Path) -> Path:
    """Write a recording as another program saves it, and return its path."""
    table = pd.read_csv(source)
    table[table.columns[::-1]].to_csv(target, lineterminator="\r\n")
    return target


def sha256(path: Path) -> str:
    """Return the hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
