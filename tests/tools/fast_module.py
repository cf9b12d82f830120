"""A copy of the default training module that trains in milliseconds, for tests in processes."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = """

def make_classifier(random_state=42):
    from sklearn.ensemble import ExtraTreesClassifier

    return ExtraTreesClassifier(
        20, min_samples_leaf=2, class_weight="balanced", random_state=random_state
    )
"""


def write_fast_module(folder: Path, more: str = "") -> Path:
    """Write it under its own name, with more code at its end; return the file.

    Parameters
    ----------
    more
        Replaces what it defines again.
    """
    path = folder / "train_classification_model.py"
    shutil.copy(ROOT / path.name, path)
    with path.open("a") as stream:
        stream.write(f"{SMALL}\n{more}")
    return path
