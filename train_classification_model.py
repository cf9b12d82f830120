"""The team's own logic: ground truth files, features, the classifier and the counting error.

Replace it, or write another one, to use the pipeline for another model; docs/own_model.md lists
what the pipeline needs of it. It describes; splitting, scoring and parallel work are the
pipeline's. Nothing here knows MLflow.

1. `read_ground_truth` reads one recording and refuses what it cannot read without guessing.
2. `examples` describes every counted track relative to its neighbours in time.
3. `StemClassifier` says for each row whether its object is a real stem;
   `DetectionVoteClassifier` does the same with a forest of the first generation.
4. `fit` learns from the examples of many recordings.
5. `count_errors` is the one metric: the counting error of each recording in percent.
6. `verdicts` says what a model thinks of each object of a recording, `expected_errors` how wrong
   that may be, `doubtful_labels` which labels it contradicts.

Usage::

    python train_classification_model.py [--home HOME] [--force] [--n-folds N]
                                         [--random-state S] [--json] [FOLDER]

trains, through the pipeline, on the recordings of FOLDER (default: HOME/used_gts), prints the
error of each by a model that never saw it, and writes
HOME/model/stem_classifier_postprocessing_v1.pkl for `register_first_model.py`. Exit status: 0
done, 1 error, 2 usage.
"""

from __future__ import annotations

import codecs
import csv
import functools
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.ensemble import (
    ExtraTreesClassifier,
    HistGradientBoostingClassifier,
    VotingClassifier,
)
from sklearn.preprocessing import RobustScaler
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import ThreadpoolController

LARGEST_PIXELS = 1e9
"""No image is wider; beyond it the squares and ratios of features would overflow."""
NEXT_TO_NOTHING = 1e-9
"""Smaller values are taken as 0: nothing is divided by them."""
MEASUREMENT_RANGES = {
    "centroids_x": (-LARGEST_PIXELS, LARGEST_PIXELS),
    "centroids_y": (-LARGEST_PIXELS, LARGEST_PIXELS),
    "aspect_ratio": (0.0, 100.0),
    "area": (0.0, LARGEST_PIXELS**2),
    "scores": (0.0, 1.0),
}
INTEGER_COLUMNS = ("object_id", "frames")
FLAG_COLUMNS = ("counted", "ground_truth")
GROUND_TRUTH_COLUMNS = (
    "object_id",
    "centroids_x",
    "centroids_y",
    "aspect_ratio",
    "area",
    "frames",
    "scores",
    "counted",
    "ground_truth",
)
MODEL_NUMBER_COLUMNS = GROUND_TRUTH_COLUMNS[:7]
"""The numbers that a model needs of every row."""
MODEL_COLUMNS = (*MODEL_NUMBER_COLUMNS, "counted")
MODEL_OPTIONAL_COLUMNS = ("counted", "file")
"""Without them a model takes every object as counted, and all rows as one recording."""
MODEL_CHECKS_ROWS = True
SESSION_COLUMN = "session"
"""Optional in a ground truth: which recordings belong together. No model sees it."""

ERROR_NAME = "counting error"
ERROR_UNIT = "%"
ERROR_COLUMN = "error_percent"
THRESHOLD = 10.0
COUNTED_THINGS = "stems"
FEWEST_STEMS = 10
"""Errors count as if no recording had fewer: one with a single stem would outweigh many others."""

FLAG_WORDS = {
    "true": True,
    "true positive": True,
    "false": False,
    "false positive": False,
}
VERDICT_COLUMNS = (
    *("file", "object_id", "first_frame", "last_frame"),
    *("counted", "stem", "probability"),
)
LARGEST_INTEGER = 2**53
"""Beyond this a float no longer tells two integers apart."""
LARGEST_LINE_BYTES = 100_000
BOX_COLUMNS = ("area", "aspect_ratio")
"""The tracker writes 0 for them on a track's first row."""
INVERTED_SHARE = 0.9
"""With more aspect ratios below 1 they look inverted; real recordings have at most 0.014."""
FEWEST_TRACKS = 3
"""With fewer there is next to nothing to compare a track with."""
UNSURE_FROM, UNSURE_TO = 0.2, 0.8
"""Probabilities between which a track is decided unsurely."""
FEWEST_NUMBERED_TRACKS, LARGEST_STEP_BACK = 10, 0.25
"""Of so many tracks in the order of their numbers none begins by a larger share of the recording
before an earlier one."""
TRACKS_BESIDE, ABRUPT_FACTS, ABRUPT = 20, 4, 1.6
"""So many facts of that many tracks change by more than so many deviations at one moment: at most
1.5 in 33 real recordings; told of 81 % of 150 pairs that were written one behind the other."""
NEIGHBOURS_EACH_SIDE = 5
RATIO_FEATURES = (
    "speed",
    "net_speed",
    "way",
    "duration",
    "rows",
    "area",
    "aspect",
    "height",
    "width",
)
TRACK_FEATURES = (
    *(f"{name}_ratio" for name in RATIO_FEATURES),
    "score_difference",
    "y_difference",
    "top_difference",
    "bottom_difference",
    "start_difference",
    "end_difference",
    "nearest_score_difference",
    "nearest_area_log_ratio",
    "nearest_duration_log_ratio",
    "nearest_speed_difference",
)
FEATURES_IN_WORDS = (
    "Each feature compares a track with the tracks around it in the same recording, as a ratio or "
    "as a difference: it has no unit."
)
DESCRIBED_THINGS = "tracks"
"""For reports."""
LABEL_COLUMN = "is_stem"
"""Of the examples: whether the track is a real stem."""
OBJECT_COLUMN = "object_id"
DETECTION_FEATURES = (
    "centroids_x",
    "centroids_y",
    "aspect_ratio",
    "area",
    "frames",
    "scores",
    "velocity",
    "mean_velocity_fps",
    "std_area",
    "adj_std_area",
    "dist_between_apps",
    "adjusted_frames",
)

TRUSTED_TYPES = (
    "numpy.dtype",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
    "train_classification_model.DetectionVoteClassifier",
    "train_classification_model.StemClassifier",
)
"""The only types beyond skops' own list that a stored model may hold."""
PACKAGES = ("scikit-learn", "numpy", "pandas", "scipy", "joblib", "threadpoolctl", "skops")
"""What a stored model needs to predict."""

FIRST_MODEL_PATH = Path("model", "stem_classifier_postprocessing_v1.pkl")


class InvalidGroundTruth(ValueError):
    """A ground truth file that cannot be read without guessing.

    Parameters
    ----------
    name
        Name of the file.
    what
        What is wrong and where.
    remedy
        What its author can do.
    """

    def __init__(self, name: str, what: str, remedy: str) -> None:
        super().__init__(f"{_printable(name)}: {what}; {remedy}")
        self.name = name
        self.what = what
        self.remedy = remedy

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        """Come back whole from the process that read the file."""
        return type(self), (self.name, self.what, self.remedy)


def _printable(name: str) -> str:
    """Return a file name with the bytes that are no UTF-8 as escapes."""
    return name.encode(errors="backslashreplace").decode()


class TrainingError(ValueError):
    """The recordings of a folder are not enough to train on."""


# --- Read a ground truth ---


def read_ground_truth(path: str | Path) -> pd.DataFrame:
    """Read one recording.

    Parameters
    ----------
    path
        Its file.

    Returns
    -------
    DataFrame of shape (n_rows, 10)
        The nine columns in documented order plus `file`, the name (and `session`, one text, where
        the file has that column). Numbers are `int64` (object_id, frames) or `float64` with NaN for
        a missing or impossible measurement; `counted` is `bool`; `ground_truth` is nullable
        `boolean`, each object's label on all of its rows, NA only for objects that were not
        counted.

    Raises
    ------
    InvalidGroundTruth
        With the row or column and what to do.
    """
    return parse_ground_truth(_content(Path(path)), Path(path).name)


def _content(path: Path) -> bytes:
    """Return the bytes of a file, without waiting for a pipe."""
    if path.exists() and not path.is_file():
        raise InvalidGroundTruth(path.name, "is not a file", "put one CSV per recording there")
    return path.read_bytes()


def parse_ground_truth(content: bytes, name: str) -> pd.DataFrame:
    """Turn the bytes of one file into rows; see `read_ground_truth`.

    Parameters
    ----------
    content
        The whole file.
    name
        Its name, for the column `file` and for messages.

    Raises
    ------
    InvalidGroundTruth
        With the row or column and what to do.
    """
    return _parsed_rows(content, name, GROUND_TRUTH_COLUMNS, also=(SESSION_COLUMN,))


def parse_unlabelled(content: bytes, name: str) -> pd.DataFrame:
    """Turn the bytes of a recording that nobody has checked into rows.

    Parameters
    ----------
    content
        The whole file; a column `ground_truth` is ignored, and without `counted` every object
        counts.
    name
        Its name, for the column `file` and for messages.

    Returns
    -------
    DataFrame of shape (n_rows, 9)
        As `read_ground_truth` returns them, without `ground_truth`.

    Raises
    ------
    InvalidGroundTruth
        With the row or column and what to do.
    """
    return _parsed_rows(content, name, MODEL_COLUMNS, counted_if_unsaid=True)


def _parsed_rows(
    content: bytes,
    name: str,
    wanted: tuple[str, ...],
    *,
    also: tuple[str, ...] = (),
    counted_if_unsaid: bool = False,
) -> pd.DataFrame:
    if _printable(name) != name:
        raise InvalidGroundTruth(name, "has a name that is not UTF-8", "rename the file")
    text = _decoded(content, name)
    optional = {"counted"} if counted_if_unsaid else set()
    header = _header(text, wanted, {*optional, *also}, name)
    _check_row_widths(content, text, len(header), name)
    del text  # as large as the file; so is what is deleted below, several times
    given = tuple(column for column in (*wanted, *also) if column in header)
    raw = _parsed_columns(content, header, given, name)
    row_numbers = raw.index.to_numpy() + 2
    columns: dict[str, Any] = {}
    for column in INTEGER_COLUMNS:
        columns[column] = _integers(raw[column], column, row_numbers, name)
    if any(raw[column].dtype.kind != "i" for column in INTEGER_COLUMNS):
        _refuse_shortened_integers(content, header, columns, name)
    for column in MEASUREMENT_RANGES:
        columns[column] = _measurements(raw[column], column, row_numbers, name)
    _refuse_repeated_rows(columns["object_id"], columns["frames"], row_numbers, name)
    flags = {
        column: _flags(raw[column], column, row_numbers, name)
        for column in FLAG_COLUMNS
        if column in given
    }
    flags |= {column: np.ones(len(raw)) for column in optional.difference(given)}
    columns |= _object_flags(columns["object_id"], flags, name)
    texts = {"file": name}
    if SESSION_COLUMN in given:
        texts[SESSION_COLUMN] = _session(raw[SESSION_COLUMN], name)
    del raw
    repeated = {
        column: pd.array([text], dtype="str").repeat(len(row_numbers))
        for column, text in texts.items()
    }
    # At once: every column that is added later costs as much as the first nine together.
    return pd.DataFrame({column: columns[column] for column in wanted} | repeated)


def _decoded(content: bytes, name: str) -> str:
    if not content.removeprefix(codecs.BOM_UTF8).strip():
        raise InvalidGroundTruth(name, "is empty", "export the recording again")
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise InvalidGroundTruth(name, "is a spreadsheet, not a CSV", "save it as CSV (UTF-8)")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InvalidGroundTruth(name, "is UTF-16 text", "save it as CSV (UTF-8)")
    if b"\0" in content:
        position = content.index(b"\0")
        line = content.count(b"\n", 0, position) + 1
        raise InvalidGroundTruth(name, f"line {line} holds a NUL byte", "export it again")
    longest = _longest_line(content)
    if longest > LARGEST_LINE_BYTES:
        raise InvalidGroundTruth(
            name, f"holds a line of {longest} bytes", "write one detection per line"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidGroundTruth(
            name, f"line {line} is not UTF-8 text", "save it as CSV (UTF-8)"
        ) from error


def _longest_line(content: bytes) -> int:
    """Return the bytes of the longest line; 0 at once where none can be too long."""
    step = LARGEST_LINE_BYTES // 2
    starts = range(0, len(content) - step, step)
    # A longer line would fill one of these parts.
    if all(content.find(b"\n", start, start + step) >= 0 for start in starts):
        return 0
    return max(map(len, content.splitlines()))


def _header(text: str, wanted: tuple[str, ...], optional: set[str], name: str) -> list[str]:
    # No line is longer: splitting the whole text would cost more than reading it.
    first_line = text[: LARGEST_LINE_BYTES + 1].splitlines()[0]
    header = [_column_name(column) for column in next(csv.reader([first_line]))]
    missing = [column for column in wanted if column not in header and column not in optional]
    if missing and len(header) == 1 and any(mark in first_line for mark in ";\t|"):
        raise InvalidGroundTruth(name, "is not separated by commas", "save it with commas")
    if missing:
        raise InvalidGroundTruth(
            name,
            f"lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            f"its header must name {', '.join(wanted)}",
        )
    doubled = [column for column in (*wanted, *optional) if header.count(column) > 1]
    if doubled:
        raise InvalidGroundTruth(
            name, f"names the column {doubled[0]} twice", "remove or rename one of them"
        )
    return header


def _column_name(name: str) -> str:
    """Return the name of a column with the damage of a UTF-7 export mended."""
    return name.replace("+AF8-", "_").strip().lower()


def _check_row_widths(content: bytes, text: str, n_columns: int, name: str) -> None:
    """Refuse a row that is cut off or too long: pandas would fill it up without a word."""
    if _has_plain_rows(content, n_columns):
        return
    reader = csv.reader(io.StringIO(text))
    try:
        for cells in reader:
            if len(cells) != n_columns and any(cell.strip() for cell in cells):
                raise InvalidGroundTruth(
                    name,
                    f"line {reader.line_num} has {len(cells)} cells, its header {n_columns}",
                    "the file may be cut off or badly quoted: export it again",
                )
    except csv.Error as error:
        raise InvalidGroundTruth(
            name, f"line {reader.line_num} is not CSV: {error}", "export it again"
        ) from error


def _has_plain_rows(content: bytes, n_columns: int) -> bool:
    """Say whether nothing is quoted and every line has its commas, without a loop over lines."""
    if b'"' in content:
        return False
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    characters = np.frombuffer(content.removesuffix(b"\n"), dtype=np.uint8)
    line_ends = np.flatnonzero(characters == ord("\n"))
    commas = np.flatnonzero(characters == ord(","))
    if len(commas) != (len(line_ends) + 1) * (n_columns - 1):
        return False
    by_line = commas.reshape(-1, n_columns - 1)
    return bool((by_line[:-1, -1] < line_ends).all() and (by_line[1:, 0] > line_ends).all())


def _parsed_columns(
    content: bytes,
    header: list[str],
    wanted: tuple[str, ...],
    name: str,
    as_text: tuple[str, ...] = (SESSION_COLUMN,),
) -> pd.DataFrame:
    """Return the wanted columns as pandas reads them, without rows of nothing but commas."""
    positions = [header.index(column) for column in wanted]
    try:
        raw = pd.read_csv(
            # With its mark removed here, pandas need not decode and encode the text once more.
            io.BytesIO(content.removeprefix(codecs.BOM_UTF8)),
            header=0,
            # Others may stand there twice, which pandas refuses.
            names=[
                column if column in wanted else f"{number} {column}"
                for number, column in enumerate(header)
            ],
            usecols=positions,
            skip_blank_lines=False,
            index_col=False,
            low_memory=False,
            skipinitialspace=True,
            # As written: among blank cells pandas would turn the session 12 into 12.0.
            dtype={column: "str" for column in as_text if column in wanted} or None,
        )
    except (pd.errors.ParserError, ValueError, OverflowError) as error:
        raise InvalidGroundTruth(name, f"is not a CSV table: {error}", "export it again") from error
    blank = raw["object_id"].isna()
    if blank.any():
        blank = raw.isna().all(axis=1)
    if blank.all():
        raise InvalidGroundTruth(name, "has a header but no rows", "export the recording again")
    return raw[~blank] if blank.any() else raw


def _as_numbers(cells: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers, NaN for blank cells, and the positions of cells that hold something else."""
    if cells.dtype.kind in "iuf":
        return cells.to_numpy(dtype=float), np.empty(0, dtype=np.int64)
    # As text: True is no number, and an integer of 400 digits is infinite instead of an error.
    numbers = pd.to_numeric(cells.astype("str"), errors="coerce").to_numpy(dtype=float)
    return numbers, np.flatnonzero(np.isnan(numbers) & cells.notna().to_numpy())


def _numbers(cells: pd.Series, column: str, row_numbers: np.ndarray, name: str) -> np.ndarray:
    numbers, no_numbers = _as_numbers(cells)
    if no_numbers.size:
        first = int(no_numbers[0])
        raise InvalidGroundTruth(
            name,
            f"line {row_numbers[first]}, column {column}: {str(cells.iloc[first])[:60]!r} "
            "is not a number",
            "correct the cell, or leave a measurement blank",
        )
    return numbers


def _integers(cells: pd.Series, column: str, row_numbers: np.ndarray, name: str) -> np.ndarray:
    numbers = _numbers(cells, column, row_numbers, name)
    wrong = _no_integers(numbers)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise InvalidGroundTruth(
            name,
            f"line {row_numbers[first]}, column {column}: {numbers[first]:g} is not an integer",
            "every row needs its object_id and its frame",
        )
    return numbers.astype(np.int64)


def _refuse_shortened_integers(
    content: bytes, header: list[str], columns: dict[str, np.ndarray], name: str
) -> None:
    """Refuse integers in scientific notation that may have lost digits, as 1.2E+05 has four.

    The same cell may be exact. It is believed if a cell of its column shows as many digits as the
    integer has: what wrote that one had room for them.
    """
    if not _may_hold_exponents(content):
        return
    texts = _parsed_columns(content, header, INTEGER_COLUMNS, name, INTEGER_COLUMNS)
    for column in INTEGER_COLUMNS:
        mantissas = texts[column].str.extract(r"([\d.]+)[eE]", expand=False)
        n_written = mantissas.str.replace(".", "").str.lstrip("0").str.len().to_numpy(dtype=float)
        n_digits = np.strings.str_len(np.abs(columns[column]).astype(np.str_))
        is_plain = np.isnan(n_written)
        n_shown = np.where(is_plain, n_digits, n_written).max()
        shortened = np.flatnonzero(~is_plain & (columns[column] != 0) & (n_digits > n_shown))
        if shortened.size:
            line = texts.index[shortened[0]] + 2
            text = texts[column].iloc[shortened[0]][:60]
            things = "tracks" if column == OBJECT_COLUMN else "frames"
            raise InvalidGroundTruth(
                name,
                f"line {line}, column {column}: {text!r} was shortened, as spreadsheets do: "
                f"different {things} may share it",
                f"export it again with {column} as plain integers",
            )


def _may_hold_exponents(content: bytes) -> bool:
    """Say whether E stands before a digit or a plus anywhere; faster than any pattern."""
    characters = np.frombuffer(content, dtype=np.uint8)
    following = characters[np.flatnonzero((characters[:-1] | 0x20) == ord("e")) + 1]
    is_digit = (following >= ord("0")) & (following <= ord("9"))
    return bool((is_digit | (following == ord("+"))).any())


def _no_integers(numbers: np.ndarray) -> np.ndarray:
    """Say which numbers are missing, have a fraction or are too large to be told apart."""
    with np.errstate(invalid="ignore"):
        return ~(np.abs(numbers) <= LARGEST_INTEGER) | (numbers != np.floor(numbers))


def _measurements(cells: pd.Series, column: str, row_numbers: np.ndarray, name: str) -> np.ndarray:
    return possible_values(_numbers(cells, column, row_numbers, name), column)


def possible_values(numbers: np.ndarray, column: str) -> np.ndarray:
    """Return measurements with impossible ones as NaN.

    Parameters
    ----------
    numbers
        Shape (n_rows,).
    column
        A key of `MEASUREMENT_RANGES`.

    Examples
    --------
    >>> possible_values(np.array([0.5, 1.5, -0.1, np.inf]), "scores")
    array([0.5, nan, nan, nan])
    """
    low, high = MEASUREMENT_RANGES[column]
    with np.errstate(invalid="ignore"):
        possible = np.isfinite(numbers) & (numbers >= low) & (numbers <= high)
    return numbers if possible.all() else np.where(possible, numbers, np.nan)


def _refuse_repeated_rows(
    object_id: np.ndarray, frames: np.ndarray, row_numbers: np.ndarray, name: str
) -> None:
    order = np.lexsort((frames, object_id))
    objects, times = object_id[order], frames[order]
    repeated = np.flatnonzero((objects[1:] == objects[:-1]) & (times[1:] == times[:-1]))
    if repeated.size:
        at = order[repeated[0] + 1]
        raise InvalidGroundTruth(
            name,
            f"line {row_numbers[at]}: object {object_id[at]} stands twice in frame {frames[at]}",
            "remove the repeated rows",
        )


def _flags(cells: pd.Series, column: str, row_numbers: np.ndarray, name: str) -> np.ndarray:
    """Return 1 for true, 0 for false and -1 for a blank cell, shape (n_rows,)."""
    if cells.dtype.kind == "b":
        return cells.to_numpy().astype(np.int8)
    codes, words = pd.factorize(cells)
    meanings = np.array([*(_flag(word) for word in words), -1], dtype=np.int8)
    flags = meanings[codes]
    if (flags == -2).any():
        first = int(np.flatnonzero(flags == -2)[0])
        raise InvalidGroundTruth(
            name,
            f"line {row_numbers[first]}, column {column}: {str(cells.iloc[first])[:60]!r} "
            "is neither true nor false",
            "write True or False (also 1/0, True Positive/False Positive) or leave it blank",
        )
    return flags


def _flag(word: object) -> int:
    """Return 1, 0, -1 for blank or -2 for a word that means neither true nor false."""
    text = str(word).strip().lower()
    if text in FLAG_WORDS:
        return int(FLAG_WORDS[text])
    try:
        number = float(text)
    except ValueError:
        return -1 if not text else -2
    return int(number) if number in (0.0, 1.0) else -2


def _session(cells: pd.Series, name: str) -> str:
    """Return the one session that a recording names, or an empty text."""
    told = ""
    different = cells.dropna().drop_duplicates()
    for line, cell in zip(different.index.to_numpy() + 2, different, strict=True):
        text = str(cell).strip()
        whole, _, fraction = text.partition(".")
        # A spreadsheet writes 12 as 12.0 when it saves the file again.
        if whole.isdecimal() and not fraction.strip("0"):
            text = whole
        if told and text and text != told:
            raise InvalidGroundTruth(
                name,
                f"line {line}, column {SESSION_COLUMN}: {text[:60]!r} after {told[:60]!r}",
                "a recording is of one session: make its rows agree, or rename the column",
            )
        told = told or text
    return told


def _object_flags(object_id: np.ndarray, flags: dict[str, np.ndarray], name: str) -> dict[str, Any]:
    """Give every row the one value that the rows of its object state."""
    objects, object_of_row = np.unique(object_id, return_inverse=True)
    states = {}
    for column, values in flags.items():
        says_true = np.bincount(object_of_row, values == 1, len(objects)) > 0
        says_false = np.bincount(object_of_row, values == 0, len(objects)) > 0
        states[column] = (says_true, says_false)
    counted, not_counted = states["counted"]
    problems = [
        (counted & not_counted, "is both counted and not counted", "make its rows agree"),
        (~counted & ~not_counted, "does not say whether it was counted", "fill in `counted`"),
    ]
    if "ground_truth" in states:
        stem, not_stem = states["ground_truth"]
        problems += [
            (counted & stem & not_stem, "has two different labels", "make its rows agree"),
            (counted & ~stem & ~not_stem, "was counted but has no label", "fill in `ground_truth`"),
        ]
    for wrong, what, remedy in problems:
        if wrong.any():
            raise InvalidGroundTruth(name, f"object {objects[wrong][0]} {what}", remedy)
    if "ground_truth" not in states:
        return {"counted": counted[object_of_row]}
    label = pd.array(stem[object_of_row], dtype="boolean")
    label[((stem == not_stem) & ~counted)[object_of_row]] = pd.NA
    return {"counted": counted[object_of_row], "ground_truth": label}


def session(rows: pd.DataFrame) -> str:
    """Return the session of a recording; empty for one of its own.

    Parameters
    ----------
    rows
        One recording as `parse_ground_truth` returns it.
    """
    return str(rows[SESSION_COLUMN].iloc[0]) if SESSION_COLUMN in rows and len(rows) else ""


def data_quality_note(rows: pd.DataFrame) -> str:
    """Say what is odd about a recording that can be used all the same, or return an empty text.

    Parameters
    ----------
    rows
        One recording as `read_ground_truth` or `parse_unlabelled` returns it.

    Notes
    -----
    Mean error on 33 recordings, each by a model of others, if all are damaged in one way (4.1 %
    as they are): boxes of 0 on all rows 8.6 %, aspect ratios inverted 5.0 %, x and y exchanged
    27 %, which is 4.1 % since the features follow the motion.
    """
    columns = {name: rows[name].to_numpy() for name in MODEL_NUMBER_COLUMNS}
    columns["counted"] = _is_counted(rows)
    notes = [
        f"{name}: {count} of {len(rows)} values missing or impossible"
        for name in MEASUREMENT_RANGES
        if (count := np.count_nonzero(np.isnan(columns[name])))
    ]
    return ", ".join((*notes, *_notes_of_tracks(columns)))


def _notes_of_tracks(columns: dict[str, np.ndarray]) -> list[str]:
    """Return what is odd about the counted rows of one recording, each in a text of its own."""
    tracks = _group_tracks(columns)
    n_tracks = len(tracks.starts)
    if not n_tracks:
        return ["no counted tracks"]
    first, last = tracks.order[tracks.starts], tracks.order[tracks.ends]
    later = columns["counted"].copy()
    later[first] = False
    notes = []
    for name in BOX_COLUMNS:
        n_zeros = np.count_nonzero((columns[name] <= NEXT_TO_NOTHING) & later)
        if n_zeros:
            notes.append(
                f"{name}: {n_zeros} of {len(later)} values 0 beyond a track's first row "
                "(taken as missing)"
            )
    known = (columns["aspect_ratio"] > NEXT_TO_NOTHING) & later
    n_known = np.count_nonzero(known)
    n_low = np.count_nonzero((columns["aspect_ratio"] < 1) & known)
    if n_low > INVERTED_SHARE * n_known:
        notes.append(
            f"aspect_ratio: {n_low} of {n_known} known values below 1 "
            "(inverted? it is height / width)"
        )
    way_x, way_y = (columns[n][last] - columns[n][first] for n in ("centroids_x", "centroids_y"))
    if _move_along_y(way_x, way_y, tracks).any():
        notes.append(
            "objects move along y: x and y are exchanged or the camera was turned "
            "(features follow the motion)"
        )
    if _numbers_begin_anew(columns["frames"][first]):
        notes.append("object numbers go back in time: are these several recordings in one file?")
    if n_tracks < FEWEST_TRACKS:
        notes.append(
            f"only {n_tracks} counted track{'s' if n_tracks > 1 else ''}: "
            "features compare a track with its neighbours"
        )
    return notes


def _numbers_begin_anew(first_frames: np.ndarray) -> bool:
    """Say whether tracks in the order of their numbers go far back in time.

    A tracker numbers objects as they appear: in 33 real recordings none goes back at all.
    """
    back = np.maximum.accumulate(first_frames) - first_frames
    far = LARGEST_STEP_BACK * np.ptp(first_frames)
    return len(first_frames) >= FEWEST_NUMBERED_TRACKS and bool(back.max() > far)


def identity(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the values that tell a recording apart, however it is saved.

    Parameters
    ----------
    rows
        One recording as `read_ground_truth` returns it.

    Returns
    -------
    DataFrame of shape (n_rows, 3)
        Of the rows with a place: centroids to the pixel and the score to a tenth. Any two of 33
        different recordings share at most 1.4 % of them, copies with one decimal at least 95 %;
        to a hundredth it would be 0.2 %, and 9 % of those copies.
    """
    decimals = {"centroids_x": 0, "centroids_y": 0, "scores": 1}
    values = {name: rows[name].to_numpy().round(digits) for name, digits in decimals.items()}
    placed = np.isfinite(values["centroids_x"]) & np.isfinite(values["centroids_y"])
    table = pd.DataFrame(values, index=rows.index)
    return table if placed.all() else table[placed]


def is_labelled(rows: pd.DataFrame) -> np.ndarray:
    """Return which rows belong to a counted object: of others the label is not used."""
    return rows["counted"].to_numpy()


# --- Features of a track ---

_Rows = pd.DataFrame | dict[str, np.ndarray]
"""Columns by name: of a caller, or what `_checked_rows` made of them."""


@dataclass(frozen=True)
class _Tracks:
    """The counted rows grouped by track: `order[starts[i]:ends[i]]` are the rows of track i."""

    order: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    recording: np.ndarray

    @property
    def ends(self) -> np.ndarray:
        """Position of each track's last row, shape (n_tracks,)."""
        return self.starts + self.lengths - 1

    @property
    def track_of_row(self) -> np.ndarray:
        """Track number of each ordered row, shape (n_counted_rows,)."""
        return np.repeat(np.arange(len(self.starts)), self.lengths)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Mean per track over the values that are not missing, shape (n_tracks,)."""
        known = ~np.isnan(values)
        total = np.add.reduceat(np.where(known, values, 0.0), self.starts)
        return _ratio(total, np.add.reduceat(known.astype(float), self.starts))

    def median(self, values: np.ndarray) -> np.ndarray:
        """Median per track over the values that are not missing, shape (n_tracks,)."""
        return _median_of_groups(values, self.starts, self.lengths)


def _median_of_groups(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Median per group of adjacent rows over the values that are not missing."""
    missing = np.isnan(values)
    known: Any = lengths
    if missing.any():
        known = np.add.reduceat((~missing).astype(np.int64), starts)
        values = np.where(missing, np.inf, values)
    # Five times as fast as a lexsort: NumPy sorts by vector instructions what holds no NaN, and
    # 16-bit integers by radix.
    by_value = np.argsort(values)
    numbers = np.arange(len(starts), dtype=np.min_scalar_type(len(starts)))
    by_group = np.argsort(np.repeat(numbers, lengths)[by_value], kind="stable")
    ascending = values[by_value[by_group]]
    low = starts + np.maximum(known - 1, 0) // 2
    high = np.minimum(starts + known // 2, starts + lengths - 1)
    return np.where(known > 0, (ascending[low] + ascending[high]) / 2, np.nan)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide, with NaN where the denominator is next to nothing."""
    usable = np.abs(denominator) > NEXT_TO_NOTHING
    return np.where(usable, numerator / np.where(usable, denominator, 1.0), np.nan)


def _recording_codes(rows: _Rows) -> np.ndarray:
    if "file" not in rows:
        return np.zeros(len(rows["object_id"]), dtype=np.int64)
    return pd.factorize(rows["file"])[0]


def _is_counted(rows: _Rows) -> np.ndarray:
    """Return whether the tracker counted each row's object, whatever the spelling."""
    if "counted" not in rows:
        return np.ones(len(rows["object_id"]), dtype=bool)
    if rows["counted"].dtype == bool:
        return np.asarray(rows["counted"])
    codes, words = pd.factorize(rows["counted"])
    flags = np.array([*(_flag(word) for word in words), -1])[codes]
    if (flags < 0).any():
        first = np.asarray(rows["counted"])[np.flatnonzero(flags < 0)[0]]
        raise ValueError(
            f"column counted has values that are neither true nor false: {str(first)[:60]!r}"
        )
    return flags == 1


def _group_tracks(rows: _Rows) -> _Tracks:
    """Sort the counted rows by recording, object and frame, and find where tracks begin."""
    recordings = _recording_codes(rows)
    object_id = np.asarray(rows["object_id"])
    frames = np.asarray(rows["frames"])
    counted = np.flatnonzero(_is_counted(rows))
    order = counted[np.lexsort((frames[counted], object_id[counted], recordings[counted]))]
    objects, codes = object_id[order], recordings[order]
    new_track = np.ones(len(order), dtype=bool)
    new_track[1:] = (objects[1:] != objects[:-1]) | (codes[1:] != codes[:-1])
    starts = np.flatnonzero(new_track)
    return _Tracks(order, starts, np.diff(np.append(starts, len(order))), codes[starts])


def _table_of(rows: Any) -> pd.DataFrame:
    """Return what somebody sent as a table that has the columns that a model needs, once each."""
    if isinstance(rows, dict):
        rows = pd.DataFrame(rows)
    if not isinstance(rows, pd.DataFrame):
        raise ValueError(f"the rows must be a table of named columns, not a {type(rows).__name__}")
    names = [_column_name(str(column)) for column in rows.columns]
    missing = [column for column in MODEL_NUMBER_COLUMNS if column not in names]
    if missing:
        raise ValueError(
            f"the rows lack the columns {', '.join(missing)}; "
            f"a model needs {', '.join(MODEL_NUMBER_COLUMNS)}"
        )
    wanted = (*MODEL_NUMBER_COLUMNS, *MODEL_OPTIONAL_COLUMNS)
    doubled = [column for column in wanted if names.count(column) > 1]
    if doubled:
        raise ValueError(f"the rows have the column {doubled[0]} twice")
    return rows if names == [*rows.columns] else rows.set_axis(names, axis=1)


def _model_columns(rows: Any) -> dict[str, np.ndarray]:
    """Return the columns that a model needs, numbers as float64.

    Arrays instead of a frame, and a number instead of the file's name: a frame costs more than
    what is computed from it. A client may have sent anything, so everything is checked.
    """
    rows = _table_of(rows)
    columns = {"counted": _is_counted(rows)}
    for column in MODEL_NUMBER_COLUMNS:
        numbers, no_numbers = _as_numbers(rows[column])
        if no_numbers.size:
            text = str(rows[column].iloc[no_numbers[0]])[:60]
            raise ValueError(f"column {column}: {text!r} is not a number")
        if column in INTEGER_COLUMNS:
            _refuse_no_integers(numbers, column)
        columns[column] = numbers
    if "file" in rows:
        columns["file"] = _recording_codes(rows)
        if (columns["file"] < 0).any():
            raise ValueError("column file has missing values")
    return columns


def _refuse_no_rows(columns: dict[str, np.ndarray]) -> None:
    if not len(columns["object_id"]):
        raise ValueError("there are no rows; a model needs all rows of a recording")


def _refuse_no_integers(numbers: np.ndarray, column: str) -> None:
    if not np.isfinite(numbers).all():
        raise ValueError(f"column {column} has missing or infinite values")
    wrong = _no_integers(numbers)
    if wrong.any():
        raise ValueError(f"column {column}: {numbers[wrong][0]:g} is not an integer")


def _checked_rows(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the columns that a model needs, impossible measurements missing."""
    columns = _model_columns(rows)
    return columns | {
        column: possible_values(columns[column], column) for column in MEASUREMENT_RANGES
    }


def track_features(rows: pd.DataFrame) -> pd.DataFrame:
    """Describe every counted track relative to the tracks around it in time.

    Parameters
    ----------
    rows
        Raw rows of any number of recordings, in any order.

    Returns
    -------
    DataFrame of shape (n_tracks, 19)
        `TRACK_FEATURES`, by recording (in order of appearance) and object_id. Without unit: each
        is a ratio to, or a difference from, the median of the five tracks before and the five
        after in the same recording and the track itself; `nearest_*` compare with that one of the
        ten which was nearest to it in the image. NaN where nothing is known.

    Notes
    -----
    All stems of a row pass the camera at about the same speed and size, whatever the season's
    camera and driving speed; false counts differ from their neighbours. Absolute values identify
    the season instead and fail on the next one (44 % error there, these about 7 %).
    """
    checked = _checked_rows(rows)
    return _features_of_tracks(checked, _group_tracks(checked))


def _features_of_tracks(rows: _Rows, tracks: _Tracks) -> pd.DataFrame:
    if not len(tracks.starts):
        return pd.DataFrame({feature: np.empty(0) for feature in TRACK_FEATURES})
    facts = _track_facts(rows, tracks)
    neighbours = _Neighbours.find(facts, tracks.recording)
    local = {name: neighbours.median(facts[name]) for name in facts}
    features = {f"{name}_ratio": _ratio(facts[name], local[name]) for name in RATIO_FEATURES}
    features["score_difference"] = facts["score"] - local["score"]
    for name in ("y", "top", "bottom"):
        features[f"{name}_difference"] = _ratio(facts[name] - local[name], local["height"])
    for name in ("start", "end"):
        features[f"{name}_difference"] = _ratio(facts[name] - local[name], np.abs(local["way"]))
    nearest = neighbours.nearest(facts)
    features["nearest_score_difference"] = facts["score"] - nearest("score")
    features["nearest_area_log_ratio"] = np.log(_ratio(facts["area"], nearest("area")))
    features["nearest_duration_log_ratio"] = np.log(
        (facts["duration"] + 1) / (nearest("duration") + 1)
    )
    features["nearest_speed_difference"] = _ratio(
        np.abs(facts["net_speed"]) - np.abs(nearest("net_speed")), np.abs(local["net_speed"])
    )
    return pd.DataFrame(features, columns=list(TRACK_FEATURES))


def _track_facts(rows: _Rows, tracks: _Tracks) -> dict[str, np.ndarray]:
    """Measure each track in pixels and frames; x grows in its recording's main direction.

    Where objects move along y, x and y are exchanged first.
    """
    # Of millions of rows: no column longer than it is needed.
    columns = {
        name: np.asarray(rows[name])[tracks.order]
        for name in MODEL_NUMBER_COLUMNS
        if name != OBJECT_COLUMN
    }
    first, last = tracks.starts, tracks.ends
    x, y, frames = (columns.pop(name) for name in ("centroids_x", "centroids_y", "frames"))
    along_y = _move_along_y(x[last] - x[first], y[last] - y[first], tracks)
    if along_y.any():
        exchanged = np.repeat(along_y, tracks.lengths)
        x, y = np.where(exchanged, y, x), np.where(exchanged, x, y)
    # The tracker writes 0 for the box on a track's first row.
    area, aspect = (
        np.where(column > NEXT_TO_NOTHING, column, np.nan)
        for column in (columns.pop("area"), columns.pop("aspect_ratio"))
    )
    area[first] = aspect[first] = np.nan
    height, width = np.sqrt(area * aspect), np.sqrt(area / aspect)
    velocity = np.full(len(x), np.nan)
    velocity[1:] = _ratio(np.diff(x), np.diff(frames))
    velocity[first] = np.nan
    direction, speed = _directions(velocity, tracks), tracks.median(velocity)
    del velocity
    duration = frames[last] - frames[first]
    way = (x[last] - x[first]) * direction
    return {
        "speed": speed * direction,
        "net_speed": way / np.maximum(duration, 1),
        "way": way,
        "duration": duration,
        "rows": tracks.lengths.astype(float),
        "area": tracks.median(area),
        "aspect": tracks.median(aspect),
        "height": tracks.median(height),
        "width": tracks.median(width),
        "score": tracks.mean(columns["scores"]),
        "y": tracks.mean(y),
        "top": tracks.median(y - height / 2),
        "bottom": tracks.median(y + height / 2),
        "start": x[first] * direction,
        "end": x[last] * direction,
        "middle_time": (frames[first] + frames[last]) / 2,
    }


def _move_along_y(way_x: np.ndarray, way_y: np.ndarray, tracks: _Tracks) -> np.ndarray:
    """Return for each track whether most tracks of its recording go further along y than along x.

    At most 4 % of the tracks do so in 33 real recordings.
    """
    n_along_y = np.bincount(tracks.recording, np.abs(way_y) > np.abs(way_x))
    return (2 * n_along_y > np.bincount(tracks.recording))[tracks.recording]


def _directions(velocity: np.ndarray, tracks: _Tracks) -> np.ndarray:
    """Return +1 or -1 per track: the sign of its recording's median velocity along x."""
    first_tracks = np.flatnonzero(np.diff(tracks.recording, prepend=-1))
    medians = _median_of_groups(
        velocity, tracks.starts[first_tracks], np.add.reduceat(tracks.lengths, first_tracks)
    )
    n_tracks = np.diff(np.append(first_tracks, len(tracks.recording)))
    return np.repeat(np.where(medians < 0, -1.0, 1.0), n_tracks)


@dataclass(frozen=True)
class _Neighbours:
    """For each track the positions of the tracks around it in time, itself in the middle."""

    around: np.ndarray
    exists: np.ndarray

    @classmethod
    def find(cls, facts: dict[str, np.ndarray], recording: np.ndarray) -> _Neighbours:
        order = np.lexsort((facts["start"], facts["middle_time"], recording))
        steps = np.arange(-NEIGHBOURS_EACH_SIDE, NEIGHBOURS_EACH_SIDE + 1)
        places = np.arange(len(order))[:, None] + steps
        inside = (places >= 0) & (places < len(order))
        around = np.empty_like(places)
        around[order] = order[np.clip(places, 0, len(order) - 1)]
        exists = np.empty_like(inside)
        exists[order] = inside
        return cls(around, exists & (recording[around] == recording[:, None]))

    def median(self, values: np.ndarray) -> np.ndarray:
        """Median of the window over what is known, shape (n_tracks,)."""
        window = np.sort(np.where(self.exists, values[self.around], np.nan), axis=1)
        known = (~np.isnan(window)).sum(axis=1)
        row = np.arange(len(window))
        low, high = np.maximum(known - 1, 0) // 2, np.minimum(known // 2, window.shape[1] - 1)
        return np.where(known > 0, (window[row, low] + window[row, high]) / 2, np.nan)

    def nearest(self, facts: dict[str, np.ndarray]) -> Callable[[str], np.ndarray]:
        """Return a look-up of the facts of the track nearest in the image, NaN without any.

        Each neighbour's place is extrapolated along its own speed to the middle of the track.
        """
        middle = (facts["start"] + facts["end"]) / 2
        ahead = facts["middle_time"][:, None] - facts["middle_time"][self.around]
        place = middle[self.around] + facts["net_speed"][self.around] * ahead
        distance = np.abs(place - middle[:, None])
        distance[~self.exists | np.isnan(distance)] = np.inf
        distance[:, NEIGHBOURS_EACH_SIDE] = np.inf
        row = np.arange(len(distance))
        column = distance.argmin(axis=1)
        chosen = self.around[row, column]
        alone = np.isinf(distance[row, column])
        return lambda name: np.where(alone, np.nan, facts[name][chosen])


def examples(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what is learnt from one recording.

    Parameters
    ----------
    rows
        As `read_ground_truth` returns them.

    Returns
    -------
    DataFrame of shape (n_tracks, 20)
        `track_features`, and in `LABEL_COLUMN` whether the track is a real stem.
    """
    checked = _checked_rows(rows)
    tracks = _group_tracks(checked)
    is_stem = rows["ground_truth"].to_numpy(dtype=bool, na_value=False)
    features = _features_of_tracks(checked, tracks)
    return features.assign(**{LABEL_COLUMN: is_stem[tracks.order[tracks.starts]]})


# --- The model ---


def make_classifier(random_state: int = 42) -> VotingClassifier:
    """Return the unfitted classifier of tracks: two kinds of tree ensembles, averaged.

    Parameters
    ----------
    random_state
        Seed of both.

    Notes
    -----
    Mean error over 33 recordings in 5 folds by file / on 15 newer ones after training on 18 older:
    a forest on 85 absolute features 5.5 / 44 %, on ranks within the recording 8.4 / 23 %; relative
    to the neighbours in time: forest 4.4 / 11 %, boosting 3.9 / 7.9 %, both averaged 3.7 / 6.7 %.
    """
    forest = ExtraTreesClassifier(
        n_estimators=100,
        min_samples_leaf=3,
        class_weight="balanced",
        random_state=random_state,
    )
    boosting = HistGradientBoostingClassifier(
        learning_rate=0.05,
        max_iter=300,
        max_leaf_nodes=8,
        max_features=0.3,
        class_weight="balanced",
        early_stopping=False,
        random_state=random_state,
    )
    return VotingClassifier([("forest", forest), ("boosting", boosting)], voting="soft")


@functools.cache
def _threads() -> ThreadpoolController:
    """Return what limits threads; looking for their libraries costs more than a prediction."""
    return ThreadpoolController()


class StemClassifier(ClassifierMixin, BaseEstimator):
    """Say for each raw tracker row whether its object is a real stem.

    Parameters
    ----------
    classifier
        Any scikit-learn classifier of tracks that has `predict_proba` and accepts missing
        values; `make_classifier()` by default.
    random_state
        Seed of the default classifier.

    Attributes
    ----------
    classifier_
        The fitted classifier; its columns are `TRACK_FEATURES`.
    classes_
        `[False, True]`.
    """

    def __init__(self, classifier: Any = None, random_state: int = 42) -> None:
        self.classifier = classifier
        self.random_state = random_state

    def fit(self, rows: pd.DataFrame, labels: Any) -> StemClassifier:
        """Fit on raw rows.

        Parameters
        ----------
        rows
            Raw rows, shape (n_rows, n_columns), in any order.
        labels
            Shape (n_rows,): whether the row's object is a real stem, the same for all rows of an
            object; ignored where the object was not counted.

        Raises
        ------
        ValueError
            If a column or a label is missing, or all labels are equal.
        """
        checked = _checked_rows(rows)
        tracks = _group_tracks(checked)
        label_of_row = pd.array(labels, dtype="boolean")[tracks.order]
        if label_of_row.isna().any():
            raise ValueError("a counted object has no label")
        return self.fit_tracks(
            _features_of_tracks(checked, tracks), label_of_row.to_numpy(dtype=bool)[tracks.starts]
        )

    def fit_tracks(self, features: pd.DataFrame, labels: np.ndarray) -> StemClassifier:
        """Fit on tracks that `track_features` has described already.

        Parameters
        ----------
        features
            Shape (n_tracks, 19).
        labels
            Booleans of shape (n_tracks,).

        Raises
        ------
        TrainingError
            If all labels are equal.
        """
        if len(np.unique(labels)) < 2:
            raise TrainingError(
                "all counted objects have the same label; training needs real stems and false "
                "counts: add recordings that hold both"
            )
        self.classes_ = np.array([False, True])
        self.classifier_ = (
            make_classifier(self.random_state)
            if self.classifier is None
            else clone(self.classifier)
        )
        # Histogram boosting spins its OpenMP threads against each other on a busy machine.
        with _threads().limit(limits=1):
            self.classifier_.fit(features.to_numpy(), np.asarray(labels, dtype=bool))
        return self

    def predict_tracks(self, features: pd.DataFrame) -> np.ndarray:
        """Return the probability of being a real stem, shape (n_tracks,).

        Parameters
        ----------
        features
            As `track_features` returns them, shape (n_tracks, 19).
        """
        check_is_fitted(self, "classifier_")
        if not len(features):
            return np.empty(0)
        with _threads().limit(limits=1):
            return self.classifier_.predict_proba(features.to_numpy())[:, 1]

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray:
        """Return the probabilities [false count, real stem], shape (n_rows, 2).

        Parameters
        ----------
        rows
            Raw rows; whole recordings, because a track is judged by its neighbours. Rows of
            objects that were not counted get [1, 0].

        Raises
        ------
        ValueError
            If there are no rows, or a column is missing or holds what it cannot hold.
        """
        checked = _checked_rows(rows)
        _refuse_no_rows(checked)
        tracks = _group_tracks(checked)
        stem = np.zeros(len(checked["object_id"]))
        verdict = self.predict_tracks(_features_of_tracks(checked, tracks))
        stem[tracks.order] = np.repeat(verdict, tracks.lengths)
        return np.column_stack([1 - stem, stem])

    def predict(self, rows: pd.DataFrame) -> np.ndarray:
        """Return whether each row's object is a real stem, booleans of shape (n_rows,).

        Parameters
        ----------
        rows
            As for `predict_proba`.

        Raises
        ------
        ValueError
            As for `predict_proba`.
        """
        return self.predict_proba(rows)[:, 1] > 0.5


def detection_features(rows: pd.DataFrame) -> pd.DataFrame:
    """Compute the 12 per-detection features of the first generation.

    Parameters
    ----------
    rows
        Raw rows of any number of recordings.

    Returns
    -------
    DataFrame of shape (n_detections, 12)
        `DETECTION_FEATURES` of the counted rows with a finite velocity, robust-scaled within
        their recording; the index is the row's position in `rows`.

    Notes
    -----
    That generation took impossible values as they stood, and so must its features; a value that
    is missing takes the recording's median.
    """
    table = pd.DataFrame(_model_columns(rows))
    codes = _recording_codes(table)
    parts = [
        _detection_features_of_recording(table.iloc[positions], positions)
        for positions in (np.flatnonzero(codes == code) for code in np.unique(codes))
    ]
    return pd.concat(parts) if parts else pd.DataFrame(columns=list(DETECTION_FEATURES))


def _detection_features_of_recording(rows: pd.DataFrame, positions: np.ndarray) -> pd.DataFrame:
    tracks = _group_tracks(rows)
    if not len(tracks.starts):
        return pd.DataFrame({name: np.empty(0) for name in DETECTION_FEATURES}, index=positions[:0])
    values = {name: rows[name].to_numpy(dtype=float)[tracks.order] for name in MODEL_NUMBER_COLUMNS}
    first, last, track = tracks.starts, tracks.ends, tracks.track_of_row
    velocity = np.full(len(track), np.nan)
    velocity[1:] = _ratio(np.diff(values["centroids_x"]), np.diff(values["frames"]))
    velocity[first] = np.nan
    if np.nanmean(velocity) < 0 if not np.isnan(velocity).all() else False:
        velocity = -velocity
    duration = values["frames"][last] - values["frames"][first]
    mean_velocity = tracks.mean(velocity)
    deviation = values["area"] - tracks.mean(values["area"])[track]
    n_others = np.maximum(tracks.lengths - 1, 1)
    std_area = np.sqrt(np.add.reduceat(deviation**2, first) / n_others)
    std_area[tracks.lengths < 2] = np.nan
    begin = values["frames"][first]
    low, high = np.nanmin(mean_velocity, initial=np.inf), np.nanmax(mean_velocity, initial=-np.inf)
    table = {name: values[name] for name in ("centroids_x", "centroids_y", "aspect_ratio", "area")}
    table["frames"] = duration[track]
    table["scores"] = values["scores"]
    table["velocity"] = velocity
    table["mean_velocity_fps"] = mean_velocity[track]
    table["std_area"] = std_area[track]
    table["adj_std_area"] = _ratio(std_area, duration)[track]
    table["dist_between_apps"] = np.diff(begin, prepend=0.0)[track]
    scaled_velocity = (mean_velocity - low) / (high - low) if high > low else mean_velocity * 0
    table["adjusted_frames"] = (duration * scaled_velocity)[track]
    features = pd.DataFrame(table, columns=list(DETECTION_FEATURES), index=positions[tracks.order])
    features.loc[:, features.isna().all()] = 0.0
    scaled = pd.DataFrame(
        RobustScaler().fit_transform(features), columns=features.columns, index=features.index
    )
    return scaled[np.isfinite(velocity)].fillna(0.0)


class DetectionVoteClassifier(ClassifierMixin, BaseEstimator):
    """Let a classifier of the first generation vote on each object by its detections.

    Parameters
    ----------
    classifier
        A fitted classifier whose `feature_names_in_` are the 12 `DETECTION_FEATURES`.

    Attributes
    ----------
    classes_
        `[False, True]`.
    """

    def __init__(self, classifier: Any) -> None:
        self.classifier = classifier
        self.classes_ = np.array([False, True])

    def fit(self, rows: pd.DataFrame, labels: Any) -> DetectionVoteClassifier:
        """Refuse: the first generation is only wrapped, never trained again.

        Parameters
        ----------
        rows, labels
            Not used.
        """
        raise NotImplementedError(
            "a first-generation model is not trained again; use StemClassifier"
        )

    def predict(self, rows: pd.DataFrame) -> np.ndarray:
        """Return whether most detections of each row's object look like a stem, shape (n_rows,).

        Parameters
        ----------
        rows
            Raw rows; whole recordings, because features are scaled within a recording.

        Raises
        ------
        ValueError
            If there are no rows, or a column is missing or holds what it cannot hold.
        """
        columns = _model_columns(rows)
        _refuse_no_rows(columns)
        table = pd.DataFrame(columns)
        features = detection_features(table)
        ordered = features[list(self.classifier.feature_names_in_)]
        votes = np.full(len(table), np.nan)
        if len(features):
            votes[features.index] = np.asarray(self.classifier.predict(ordered), dtype=float)
        tracks = _group_tracks(table)
        verdict = np.zeros(len(table), dtype=bool)
        if len(tracks.starts):
            share = tracks.mean(votes[tracks.order])
            verdict[tracks.order] = np.repeat(share > 0.5, tracks.lengths)
        return verdict


def as_row_model(model: Any) -> StemClassifier | DetectionVoteClassifier:
    """Return what was unpickled as a model of raw rows, wrapping a first-generation classifier.

    Parameters
    ----------
    model
        A `StemClassifier`, a `DetectionVoteClassifier` or a classifier fitted on the 12
        `DETECTION_FEATURES`.

    Raises
    ------
    ValueError
        For anything else, with the features that were expected.
    """
    if isinstance(model, StemClassifier | DetectionVoteClassifier):
        return model
    names = getattr(model, "feature_names_in_", None)
    if names is not None and set(names) == set(DETECTION_FEATURES) and hasattr(model, "predict"):
        return DetectionVoteClassifier(model)
    found = "no feature names" if names is None else f"the features {', '.join(map(str, names))}"
    raise ValueError(
        f"the pickle holds a {type(model).__name__} with {found}; expected a StemClassifier or "
        f"a classifier fitted on a table with the columns {', '.join(DETECTION_FEATURES)}"
    )


def fit(examples: pd.DataFrame, random_state: int) -> StemClassifier:
    """Return a classifier fitted on the examples of many recordings.

    Parameters
    ----------
    examples
        As `examples` returns them, shape (n_tracks, 20).
    random_state
        Seed.

    Raises
    ------
    TrainingError
        If all labels are equal.
    """
    classifier = StemClassifier(random_state=random_state)
    return classifier.fit_tracks(examples[list(TRACK_FEATURES)], examples[LABEL_COLUMN].to_numpy())


def predict_examples(model: StemClassifier, examples: pd.DataFrame) -> np.ndarray:
    """Return whether each track is a real stem, booleans of shape (n_tracks,)."""
    return model.predict_tracks(examples) > 0.5


# --- The counting error ---


def count_errors(rows: pd.DataFrame, predicted: np.ndarray) -> pd.DataFrame:
    """Compare true and predicted numbers of stems, recording by recording.

    Parameters
    ----------
    rows
        Rows as `read_ground_truth` returns them, of any number of recordings.
    predicted
        Booleans of shape (n_rows,): whether each row's object is a stem. An object counts as one
        if most of its rows say so.

    Returns
    -------
    DataFrame of shape (n_recordings, 3)
        Index `file`; `true_count`, `predicted_count` (counted objects) and `error_percent`.

    Notes
    -----
    error_percent = 100 |true - predicted| / max(true, FEWEST_STEMS).
    """
    predicted = np.asarray(predicted)
    if predicted.shape != (len(rows),):
        raise ValueError(f"{len(rows)} rows but predictions of shape {predicted.shape}")
    tracks = _group_tracks(rows)
    files = pd.Index(pd.unique(rows["file"]), name="file")
    if not len(tracks.starts):
        return _error_table(files, np.zeros(len(files)), np.zeros(len(files)))
    truth = rows["ground_truth"].to_numpy(dtype=bool, na_value=False)[tracks.order[tracks.starts]]
    verdict = tracks.mean(predicted[tracks.order].astype(float)) > 0.5
    true_count = np.bincount(tracks.recording, truth, len(files))
    return _error_table(files, true_count, np.bincount(tracks.recording, verdict, len(files)))


def predict_without_a_model(rows: pd.DataFrame) -> np.ndarray:
    """Take every object as a stem that the tracker counted: what a model must beat.

    Parameters
    ----------
    rows
        As `read_ground_truth` returns them.
    """
    return rows["counted"].to_numpy()


def _error_table(files: Any, true_count: np.ndarray, predicted_count: np.ndarray) -> pd.DataFrame:
    error = 100 * np.abs(true_count - predicted_count) / np.maximum(true_count, FEWEST_STEMS)
    return pd.DataFrame(
        {
            "true_count": np.asarray(true_count, dtype=np.int64),
            "predicted_count": np.asarray(predicted_count, dtype=np.int64),
            "error_percent": error,
        },
        index=pd.Index(files, name="file", dtype="str"),
    )


# --- What a model says of a recording that nobody has checked ---


def unlabelled_examples(rows: pd.DataFrame) -> pd.DataFrame:
    """Return `examples` of a recording that nobody has checked, shape (n_tracks, 19)."""
    return track_features(rows)


def expected_errors(model: Any, rows: pd.DataFrame) -> pd.DataFrame | None:
    """Return how far a model expects to be wrong on a recording.

    Parameters
    ----------
    model
        A `StemClassifier`; of another one, which knows no probability, nothing is known.
    rows
        One recording, without its truth.

    Returns
    -------
    DataFrame of shape (1, 5)
        Index `file`; `error_percent`, `unsure` (share of the tracks), `predicted_count`,
        `count_spread` (in stems) and `note`.

    Notes
    -----
    With p the probability of a track to be a stem, w = sum min(p, 1 - p) is the number of tracks
    that are expected to be wrong; error_percent = 100 w / max(sum p, FEWEST_STEMS), and
    count_spread = w + 1. Wrong tracks cancel each other, so errors are smaller: on 33 real
    recordings out of fold 0.4 times as large, and ranked by it with Spearman 0.66. The standard
    deviation of the number of stems, as if tracks were wrong independently of each other, ranks
    them with 0.37.
    """
    if not isinstance(model, StemClassifier):
        return None
    checked = _checked_rows(rows)
    tracks = _group_tracks(checked)
    probability = model.predict_tracks(_features_of_tracks(checked, tracks))
    wrong = np.minimum(probability, 1 - probability).sum()
    is_unsure = (probability > UNSURE_FROM) & (probability < UNSURE_TO)
    changes = len(tracks.starts) and _changes_abruptly(_track_facts(checked, tracks))
    note = "everything changes at one moment: are these two recordings in one file?"
    return pd.DataFrame(
        {
            ERROR_COLUMN: 100 * wrong / max(probability.sum(), FEWEST_STEMS),
            "unsure": is_unsure.mean() if len(is_unsure) else 0.0,
            "predicted_count": np.count_nonzero(probability > 0.5),
            "count_spread": wrong + 1,
            "note": note if changes else "",
        },
        index=pd.Index(rows["file"].unique(), name="file"),
    )


def _changes_abruptly(facts: dict[str, np.ndarray]) -> bool:
    """Say whether many facts of the tracks before a moment differ from those after it."""
    order = np.argsort(facts["middle_time"], kind="stable")
    if len(order) < 2 * TRACKS_BESIDE:
        return False
    sizes = [np.log(facts[name]) for name in ("area", "height", "width", "rows")]
    speeds = [np.log1p(np.abs(facts[name])) for name in ("speed", "duration")]
    places = [facts[name] for name in ("y", "score", "start", "end", "top", "bottom")]
    table = np.column_stack([*sizes, *speeds, *places])[order]
    table = table[:, np.isfinite(table).any(axis=0)]
    if table.shape[1] < ABRUPT_FACTS:
        return False
    table = np.where(np.isfinite(table), table, np.nanmedian(table, axis=0))
    windows = np.lib.stride_tricks.sliding_window_view(table, TRACKS_BESIDE, axis=0)
    middles = np.median(windows, axis=-1)
    variances = np.median(np.abs(windows - middles[..., None]), axis=-1) ** 2
    before, after = slice(None, -TRACKS_BESIDE), slice(TRACKS_BESIDE, None)
    # A median absolute deviation of normal values is 0.67 times their standard deviation.
    spread = np.sqrt((variances[before] + variances[after]) / 2) / 0.6745
    least = np.maximum(table.std(axis=0) / 10, NEXT_TO_NOTHING)
    steps = np.abs(middles[before] - middles[after]) / np.maximum(spread, least)
    return bool(np.sort(steps, axis=1)[:, -ABRUPT_FACTS].max() > ABRUPT)


def doubtful_labels(model: StemClassifier, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the labels of a recording that a model contradicts.

    Parameters
    ----------
    model
        One that never saw the recording.
    rows
        As `read_ground_truth` returns them.

    Returns
    -------
    DataFrame of shape (n_labels, 7)
        Of each such object: `object_id`, `first_frame`, `last_frame`, the `label`, what the
        `model` says, `doubt` (probability of that) and `count_change` (of the stems, if the model
        is right).
    """
    checked = _checked_rows(rows)
    tracks = _group_tracks(checked)
    first, last = tracks.order[tracks.starts], tracks.order[tracks.ends]
    probability = model.predict_tracks(_features_of_tracks(checked, tracks))
    is_stem = rows["ground_truth"].to_numpy(dtype=bool, na_value=False)[first]
    contradicted = np.flatnonzero((probability > 0.5) != is_stem)
    words = np.array(["false count", "stem"])
    said = is_stem[contradicted].astype(int)
    return pd.DataFrame(
        {
            OBJECT_COLUMN: rows[OBJECT_COLUMN].to_numpy()[first[contradicted]],
            "first_frame": rows["frames"].to_numpy()[first[contradicted]],
            "last_frame": rows["frames"].to_numpy()[last[contradicted]],
            "label": words[said],
            "model": words[1 - said],
            "doubt": np.maximum(probability, 1 - probability)[contradicted],
            "count_change": 1 - 2 * said,
        }
    )


def verdicts(rows: pd.DataFrame, model: Any) -> pd.DataFrame:
    """Return one line per object of a recording: when it was seen and what a model says of it.

    Parameters
    ----------
    rows
        One recording as `parse_unlabelled` returns it.
    model
        Has `predict`, and `predict_proba` if it knows a probability.

    Returns
    -------
    DataFrame of shape (n_objects, 7)
        `VERDICT_COLUMNS`, by object_id. `stem` is false for an object that was not counted;
        `probability` of being a real stem is NaN for it, and for all if the model knows none.
    """
    model_rows = rows[[*MODEL_NUMBER_COLUMNS, *MODEL_OPTIONAL_COLUMNS]]
    knows_probability = hasattr(model, "predict_proba")
    objects = rows.assign(
        stem=np.asarray(model.predict(model_rows), dtype=float),
        probability=model.predict_proba(model_rows)[:, 1] if knows_probability else np.nan,
    ).groupby("object_id", as_index=False)
    found = objects.agg(
        file=("file", "first"),
        first_frame=("frames", "min"),
        last_frame=("frames", "max"),
        counted=("counted", "first"),
        stem=("stem", "mean"),
        probability=("probability", "mean"),
    )
    found["stem"] = (found["stem"] > 0.5) & found["counted"]
    found["probability"] = found["probability"].where(found["counted"])
    return found[list(VERDICT_COLUMNS)]


def verdicts_in_words(rows: pd.DataFrame, verdicts: pd.DataFrame) -> str:
    """Say how many objects the tracker counted, and how many are left."""
    note = data_quality_note(rows)
    return (
        f"{verdicts['counted'].sum()} counted by the tracker, "
        f"{verdicts['stem'].sum()} after correction{f' ({note})' if note else ''}"
    )


# --- The command line ---


def main(arguments: list[str] | None = None) -> int:
    """Train a first model from the command line and return the exit status."""
    # Imported here: a stored model carries this file alone.
    from retraining.commands import train_first

    return train_first.main(arguments, Path(__file__).stem)


if __name__ == "__main__":
    # Under its own name, or the pickle would refer to __main__.StemClassifier.
    from train_classification_model import main as main_under_its_own_name

    sys.exit(main_under_its_own_name())
