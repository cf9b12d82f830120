"""Your own model, to copy and change: grains of wheat are sorted into sound, broken and mouldy.

One sample of grain per CSV, one grain per row: what a camera and a moisture meter measured, and the
class that an inspector gave it. `TrainingModule` in training_module.py says what each part is for.

Usage: `python docs/own_model/grain_quality.py --home HOME` trains the first model.
"""

import argparse
import csv
import importlib
import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import joblib
import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GroupKFold, cross_val_predict

FEATURES = ("length_mm", "width_mm", "brightness", "moisture_percent")
LABEL, CLASSES = "quality", ("sound", "broken", "mouldy")
N_TREES = 100

MODEL_COLUMNS = FEATURES
TRUSTED_TYPES = ("sklearn.tree._tree.Tree",)
PACKAGES = ("scikit-learn", "numpy", "pandas", "scipy", "joblib", "skops")
ERROR_NAME, ERROR_UNIT, ERROR_COLUMN = "error rate", "%", "error_rate"
FEATURES_IN_WORDS = "Sizes are in mm, brightness is from 0 to 255, moisture in percent of the mass."
DESCRIBED_THINGS = "grains"


def parse_ground_truth(content: bytes, name: str) -> pd.DataFrame:
    """Return the grains of one sample; whatever is not clear is a ValueError, never a guess."""
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        header, rows = list(reader.fieldnames or ()), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"no CSV in UTF-8: {error}") from error
    if wrong := [column for column in (*FEATURES, LABEL) if header.count(column) != 1]:
        raise ValueError(f"each of these columns must be there once: {', '.join(wrong)}")
    if not rows:
        raise ValueError("no grain in it")
    return pd.DataFrame([_grain(row, number) for number, row in enumerate(rows, 1)])


def _grain(row: dict[Any, Any], number: int) -> dict[str, Any]:
    if None in row or None in row.values():
        raise ValueError(f"grain {number} has not as many cells as the header")
    if row[LABEL] not in CLASSES:
        raise ValueError(f"grain {number}: {LABEL} is {row[LABEL]!r}, not {', '.join(CLASSES)}")
    for name in FEATURES:
        if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,9})?", row[name]):
            raise ValueError(f"grain {number}: {name} is {row[name]!r}, not a number such as 12.5")
    return {name: float(row[name]) for name in FEATURES} | {LABEL: row[LABEL]}


def count_errors(rows: pd.DataFrame, predicted: Any) -> pd.DataFrame:
    """Return the error rate of each sample: how many of 100 grains are in the wrong class."""
    wrong = rows[LABEL].to_numpy() != np.asarray(predicted)
    return pd.DataFrame({"file": rows["file"], ERROR_COLUMN: 100.0 * wrong}).groupby("file").mean()


def predict_without_a_model(rows: pd.DataFrame) -> Any:
    """Call every grain sound: a model must be better."""
    return np.full(len(rows), "sound")


def feature_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what the report compares between old and new samples."""
    return rows[list(FEATURES)]


def train_classification_model(folder: Path, *, n_folds: int, random_state: int) -> Any:
    """Train on every sample of a folder; each is scored by a model that never saw it."""
    files = [path for path in sorted(Path(folder).iterdir()) if path.suffix.lower() == ".csv"]
    if len(files) < n_folds:
        raise ValueError(f"{folder} holds {len(files)} samples, {n_folds} folds need as many")
    parts = {path.name: parse_ground_truth(path.read_bytes(), path.name) for path in files}
    rows = pd.concat(parts, names=["file"]).reset_index("file")
    table, labels = rows[list(FEATURES)], rows[LABEL]
    forest = RandomForestClassifier(N_TREES, min_samples_leaf=2, random_state=random_state)
    folds = GroupKFold(n_folds, shuffle=True, random_state=random_state)
    held_out = cross_val_predict(forest, table, labels, groups=rows["file"], cv=folds)
    model = forest.fit(table, labels)
    return SimpleNamespace(
        model=model,
        out_of_fold=count_errors(rows, held_out),
        in_sample=count_errors(rows, model.predict(table)),
        input_example=table.head(),
        row_counts={name: len(part) for name, part in parts.items()},
    )


def main() -> int:
    """Write the first model for register_first_model.py."""
    parser = argparse.ArgumentParser(description="Train the first model of grain quality.")
    parser.add_argument("--home", type=Path, required=True, help="folder that holds used_gts/")
    home = parser.parse_args().home
    try:
        result = train_classification_model(home / "used_gts", n_folds=5, random_state=42)
    except ValueError as error:
        sys.exit(f"error: {error}")
    target = home / "model" / f"{Path(__file__).stem}.pkl"
    target.parent.mkdir(exist_ok=True)
    joblib.dump(result.model, target)
    target.chmod(0o644)  # a pickle that others may write is refused
    print(f"wrote {target}: {result.out_of_fold[ERROR_COLUMN].mean():.1f} % of grains are wrong")
    return 0


if __name__ == "__main__":
    # Under its own name: a class of this file would be pickled as __main__.Class.
    sys.exit(importlib.import_module(Path(__file__).stem).main())
