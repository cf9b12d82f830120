"""Your own model, to copy and change: grains of wheat are sorted into sound, broken and mouldy.

One sample of grain per CSV, one grain per row: what a camera and a moisture meter measured, and the
class that an inspector gave it. docs/own_model.md says what each part is for, and what else there
is: reading, splitting, scoring and storing are the pipeline's.
"""

import csv
import io
import re
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier

FEATURES = ("length_mm", "width_mm", "brightness", "moisture_percent")
LABEL_COLUMN, CLASSES = "quality", ("sound", "broken", "mouldy")
N_TREES = 100
SURE = 0.8

MODEL_COLUMNS = FEATURES
TRUSTED_TYPES = ("sklearn.tree._tree.Tree",)
PACKAGES = ("scikit-learn", "numpy", "pandas", "scipy", "joblib", "skops")
ERROR_NAME, ERROR_UNIT, ERROR_COLUMN = "error rate", "%", "error_rate"
THRESHOLD = 10
FEATURES_IN_WORDS = "Sizes are in mm, brightness is from 0 to 255, moisture in percent of the mass."
DESCRIBED_THINGS = "grains"


def parse_ground_truth(content: bytes, name: str) -> pd.DataFrame:
    """Return the grains of one sample; whatever is not clear is a ValueError, never a guess."""
    return _grains(content, (*FEATURES, LABEL_COLUMN))


def parse_unlabelled(content: bytes, name: str) -> pd.DataFrame:
    """Return the grains of a sample that no inspector has seen."""
    return _grains(content, FEATURES)


def _grains(content: bytes, wanted: tuple[str, ...]) -> pd.DataFrame:
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        header, rows = list(reader.fieldnames or ()), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"no CSV in UTF-8: {error}") from error
    if wrong := [column for column in wanted if header.count(column) != 1]:
        raise ValueError(f"each of these columns must be there once: {', '.join(wrong)}")
    if not rows:
        raise ValueError("no grain in it")
    return pd.DataFrame([_grain(row, number, wanted) for number, row in enumerate(rows, 1)])


def _grain(row: dict[Any, Any], number: int, wanted: tuple[str, ...]) -> dict[str, Any]:
    if None in row or None in row.values():
        raise ValueError(f"grain {number} has not as many cells as the header")
    for name in wanted:
        if name == LABEL_COLUMN and row[name] not in CLASSES:
            raise ValueError(f"grain {number}: {name} is {row[name]!r}, not {', '.join(CLASSES)}")
        if name in FEATURES and not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,9})?", row[name]):
            raise ValueError(f"grain {number}: {name} is {row[name]!r}, not a number such as 12.5")
    return {name: float(row[name]) if name in FEATURES else row[name] for name in wanted}


def fit(examples: pd.DataFrame, random_state: int) -> RandomForestClassifier:
    """Return a forest that learnt the grains of many samples."""
    forest = RandomForestClassifier(N_TREES, min_samples_leaf=2, random_state=random_state)
    return forest.fit(examples[list(FEATURES)], examples[LABEL_COLUMN])


def count_errors(rows: pd.DataFrame, predicted: Any) -> pd.DataFrame:
    """Return the error rate of each sample: how many of 100 grains are in the wrong class."""
    wrong = rows[LABEL_COLUMN].to_numpy() != np.asarray(predicted)
    return pd.DataFrame({"file": rows["file"], ERROR_COLUMN: 100.0 * wrong}).groupby("file").mean()


def expected_errors(model: Any, rows: pd.DataFrame) -> pd.DataFrame:
    """Return how many of 100 grains of a sample the model expects to get wrong, before labels."""
    sure = model.predict_proba(rows[list(FEATURES)]).max(axis=1)
    facts = {ERROR_COLUMN: 100 * (1 - sure.mean()), "unsure": (sure < SURE).mean()}
    return pd.DataFrame(facts, index=rows["file"].unique())


def doubtful_labels(model: Any, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the grains that a model which never saw the sample puts into another class."""
    shares = pd.DataFrame(model.predict_proba(rows[list(FEATURES)]), columns=model.classes_)
    table = pd.DataFrame({"grain": range(1, len(rows) + 1), "label": rows[LABEL_COLUMN]})
    table = table.assign(model=shares.idxmax(axis=1), doubt=shares.max(axis=1))
    return table[table["model"] != table["label"]]


def predict_without_a_model(rows: pd.DataFrame) -> Any:
    """Call every grain sound: a model must be better."""
    return np.full(len(rows), "sound")
