"""What a training module must have and may have: the names, and what is expected under each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXTS, TEXT, NUMBER, TRUTH, PATH = "texts", "text", "number", "true or false", "path"
KINDS: Mapping[str, tuple[type, ...]] = {
    TEXTS: (tuple, list),
    TEXT: (str,),
    NUMBER: (int, float),
    TRUTH: (bool,),
    PATH: (str, Path),
}
NEEDED = object()
"""Instead of a default."""


@dataclass(frozen=True)
class Entry:
    """One name that a training module has or may have.

    Parameters
    ----------
    name
        In the module.
    kind
        One of `KINDS`, or the arguments that a function is called with.
    words
        What it is, for docs/own_model.md.
    default
        What holds without it; `NEEDED` if there is no doing without.
    """

    name: str
    kind: str | tuple[str, ...]
    words: str
    default: Any = NEEDED

    @property
    def signature(self) -> str:
        """Its name, with the arguments of a function."""
        return self.name if isinstance(self.kind, str) else f"{self.name}({', '.join(self.kind)})"


CONTRACT = (
    Entry(
        "MODEL_COLUMNS",
        TEXTS,
        "the columns of rows that a model takes; with `file` if it wants the recording's name",
    ),
    Entry(
        "TRUSTED_TYPES",
        TEXTS,
        "the types beyond skops' own list that a stored model holds; `check` names missing ones",
    ),
    Entry(
        "PACKAGES",
        TEXTS,
        "names of the installed distributions that a stored model needs to predict",
    ),
    Entry("ERROR_NAME", TEXT, "the error in words, such as `error rate`"),
    Entry("ERROR_UNIT", TEXT, "its unit, such as `%`"),
    Entry("ERROR_COLUMN", TEXT, "its column in the table of `count_errors`; 0 is best"),
    Entry("THRESHOLD", NUMBER, "the mean error above which to retrain, in that unit"),
    Entry(
        "parse_ground_truth",
        ("content", "name"),
        "the bytes of a file in, a table with one row per observation out; a `ValueError` says "
        "what is wrong, and the file is rejected with it (its attributes `what` and `remedy`, if "
        "it has them, are shown as these two)",
    ),
    Entry(
        "fit",
        ("examples", "random_state"),
        "the examples of the training recordings, one below the other, in; a fitted scikit-learn "
        "estimator out, whose `predict(rows)` takes the rows of one whole recording and returns "
        "one prediction per row. The same arguments give the same model. A `ValueError` says what "
        "the recordings lack",
    ),
    Entry(
        "count_errors",
        ("rows", "predicted"),
        "rows with the truth and a prediction for each in; a table out whose index is `file`, one "
        "row with the error per recording (and `true_count` and `predicted_count`, where "
        "something is counted)",
    ),
    Entry(
        "examples",
        ("rows",),
        "what `fit` learns from one recording: a table, its features and labels; kept for the "
        "next retraining, and compared in the report. Without it: the rows themselves",
        None,
    ),
    Entry(
        "LABEL_COLUMN",
        TEXT,
        "the column of the examples that is to be predicted: the report leaves it out of the "
        "features, and tells what a model relies on",
        "",
    ),
    Entry(
        "predict_examples",
        ("model", "examples"),
        "what a model predicts for examples without their label, for what it relies on. Without "
        "it: `model.predict(examples)`",
        None,
    ),
    Entry(
        "session",
        ("rows",),
        "a text; recordings of one session are never split between training and test, and count "
        "as one where evidence is counted. Without it, and where the text is empty: each recording "
        "is a session of its own",
        None,
    ),
    Entry(
        "identity",
        ("rows",),
        "the values that tell two recordings apart, however they are saved: a table with some of "
        "the rows under their index, such as rounded positions. Without it: the columns that a "
        "model cannot do without, numbers to two digits; parts of a recording are then recognised "
        "only where recordings hardly share rows",
        None,
    ),
    Entry(
        "OBJECT_COLUMN",
        TEXT,
        "the column that says which rows bear one label together. Without it: each row its own",
        "",
    ),
    Entry(
        "is_labelled",
        ("rows",),
        "which rows bear a label that is learnt and counted: true or false for each. Without it: "
        "all. A correction is measured by these",
        None,
    ),
    Entry(
        "predict_without_a_model",
        ("rows",),
        "predictions that every challenger must beat. Without it: no such criterion",
        None,
    ),
    Entry(
        "data_quality_note",
        ("rows",),
        "what a person should know of a recording that is odd but usable, in a text",
        None,
    ),
    Entry("COUNTED_THINGS", TEXT, "what the error counts, in the plural, for the report", ""),
    Entry("DESCRIBED_THINGS", TEXT, "what an example is, in the plural, for the report", "rows"),
    Entry("FEATURES_IN_WORDS", TEXT, "what the features of examples are, for the report", ""),
    Entry(
        "parse_unlabelled",
        ("content", "name"),
        "as `parse_ground_truth`, of a file that nobody has checked, for `predict`. Without it: "
        "`parse_ground_truth`",
        None,
    ),
    Entry(
        "unlabelled_examples",
        ("rows",),
        "`examples` of a recording that nobody has checked: the features alone. Without it: the "
        "rows, where `examples` is not there either; else nobody tells how far a recording lies "
        "outside what a model learnt",
        None,
    ),
    Entry(
        "expected_errors",
        ("model", "rows"),
        "how far a model expects to be wrong on a recording, of which it is given what the model "
        "takes, and `file`: a table whose index is `file`, one row, with `ERROR_COLUMN` on any "
        "scale, for errors out of fold correct it. Where they apply: `unsure`, the share that is "
        "decided unsurely; `predicted_count`, and in `count_spread` by how many it may be wrong, "
        "on any scale; `note`, what is odd, in a text. `None` of a model that cannot tell. Without "
        "it: no estimate before labels come",
        None,
    ),
    Entry(
        "doubtful_labels",
        ("model", "rows"),
        "the labels of a recording that a model contradicts which never saw it: a table with "
        "`doubt`, from 0 to 1 how sure the model is, and what tells a person which label is meant "
        "(`count_change`: by how much the true count would change). Without it: no list of labels "
        "to look at again",
        None,
    ),
    Entry(
        "verdicts",
        ("rows", "model"),
        "what `predict` prints of a recording: a table. Without it: the prediction of each row",
        None,
    ),
    Entry(
        "verdicts_in_words",
        ("rows", "verdicts"),
        "the line that `predict` says of a recording. Without it: how many rows it has",
        None,
    ),
    Entry("MODEL_OPTIONAL_COLUMNS", TEXTS, "columns that a model takes where they are there", ()),
    Entry(
        "MODEL_CHECKS_ROWS",
        TRUTH,
        "true if the model itself refuses bad rows: then a served one gets what clients send as it "
        "is, and its signature names no input columns",
        False,
    ),
    Entry(
        "as_row_model",
        ("model",),
        "what becomes of the unpickled first model: one with `predict(rows)`, or a `ValueError`. "
        "Without it: it stays as it is",
        None,
    ),
    Entry(
        "FIRST_MODEL_PATH",
        PATH,
        "where the first model lies in the home folder. Without it: model/NAME.pkl",
        "",
    ),
)
"""What a training module must have (no default) and may have."""
BY_NAME = {entry.name: entry for entry in CONTRACT}
