"""Reading, features, models, the counting error and training, on real files."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, script
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sample_gts import make_recording, write_recordings
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from small import make_fast_classifier

from retraining.cross_validation import Resources, train
from retraining.errors import PipelineError
from retraining.settings import Settings
from retraining.training import TrainedModel, load_training_module
from train_classification_model import (
    DETECTION_FEATURES,
    GROUND_TRUTH_COLUMNS,
    MEASUREMENT_RANGES,
    RATIO_FEATURES,
    TRACK_FEATURES,
    DetectionVoteClassifier,
    InvalidGroundTruth,
    StemClassifier,
    TrainingError,
    as_row_model,
    count_errors,
    data_quality_note,
    detection_features,
    main,
    parse_ground_truth,
    parse_unlabelled,
    possible_values,
    read_ground_truth,
    session,
    track_features,
    verdicts_in_words,
)

HEADER = "object_id,centroids_x,centroids_y,aspect_ratio,area,frames,scores,counted,ground_truth"
GOOD_ROWS = (
    "7,248,1218,0,0,14,0.79,True,True",
    "7,260,1219,8.8,104640,15,0.82,True,True",
    "9,300,1100,0,0,20,0.5,True,False",
    "9,310,1102,6.5,90000,21,0.6,True,False",
    "11,900,1000,0,0,30,0.3,False,",
    "11,905,1001,5.5,80000,31,0.4,False,",
)
FEW_TRACKS = "only 2 counted tracks: features compare a track with its neighbours"
"""What the note says of `GOOD_ROWS` as they are."""
N_REAL_RECORDINGS = 33
OLDER_RECORDINGS = (1, 2, 3, 4, 6, 7, 8, 10, 11, 12, 13, 15, 16, 17, 18, 20, 21, 22)
RAW_NAMES = {
    "object+AF8-id": "object_id",
    "centroids+AF8-x": "centroids_x",
    "centroids+AF8-y": "centroids_y",
    "aspect+AF8-ratio": "aspect_ratio",
    "ground+AF8-truth": "ground_truth",
}


def table(*rows: str, header: str = HEADER) -> str:
    """Return the text of a file, by default the good one."""
    return "\n".join((header, *(rows or GOOD_ROWS))) + "\n"


def with_cell(column: str, cell: str) -> str:
    """Return the good file with one cell of its line 3 (object 7, frame 15) exchanged."""
    cells = GOOD_ROWS[1].split(",")
    cells[GROUND_TRUTH_COLUMNS.index(column)] = cell
    return table(GOOD_ROWS[0], ",".join(cells), *GOOD_ROWS[2:])


def parse(content: str | bytes) -> pd.DataFrame:
    """Read a file that never lay on a disk."""
    return parse_ground_truth(content.encode() if isinstance(content, str) else content, "a.csv")


def raw_rows(path: Path) -> pd.DataFrame:
    """Read a recording as anybody would, with nothing but its header mended."""
    rows = pd.read_csv(path, encoding="utf-8-sig").rename(columns=RAW_NAMES)
    return rows.dropna(how="all", ignore_index=True)


def recording(seed: int, file: str, n_tracks: int = 12, season: str = "old") -> pd.DataFrame:
    """Return a synthetic recording with its name."""
    return make_recording(seed, season, n_tracks).assign(file=file)


@pytest.fixture(scope="module")
def real_recordings(shared_folder: Path) -> list[Path]:
    """Give the paths of the real recordings, or skip."""
    return sorted((shared_folder / "gts").glob("*.csv"))


@pytest.fixture(scope="module")
def two_recordings() -> pd.DataFrame:
    """Give the raw rows of two labelled recordings."""
    return pd.concat([recording(1, "a.csv", 30), recording(2, "b.csv", 30)], ignore_index=True)


def with_sessions(*sessions: str, name: str = "session") -> bytes:
    """Return the plain file with a column of sessions in its midst."""
    cells = (row.split(",", 1) for row in GOOD_ROWS)
    rows = [f"{first},{told},{rest}" for (first, rest), told in zip(cells, sessions, strict=True)]
    return table(*rows, header=HEADER.replace(",", f",{name},", 1)).encode()


class TestSession:
    """The optional column `session`."""

    @pytest.mark.parametrize(
        ("cells", "told"),
        [
            (["north"] * 6, "north"),
            (["  north field "] * 6, "north field"),
            (['"north, field"'] * 6, "north, field"),
            (["12"] * 6, "12"),
            (["12.0"] * 6, "12"),
            (["12", "", "12.0", " 12 ", "", "12.00"], "12"),
            (["007"] * 6, "007"),
            (["1.5"] * 6, "1.5"),
            (["20260501123456789012"] * 6, "20260501123456789012"),
            (["True"] * 6, "True"),
            (["", "", "", "", "", "north"], "north"),
            ([""] * 6, ""),
            (["  "] * 6, ""),
        ],
    )
    def test_its_text_is_that_of_the_recording(self, cells: list[str], told: str) -> None:
        """As it was written, in every row; blank cells name none."""
        rows = parse_ground_truth(with_sessions(*cells), "a.csv")
        assert rows["session"].tolist() == [told] * 6
        assert session(rows) == told

    @pytest.mark.parametrize("name", ["session", "Session", " SESSION "])
    def test_all_else_is_read_as_without_it(self, name: str) -> None:
        """The same columns, order and types before it; no model is given it."""
        content = with_sessions(*["north"] * 6, name=name)
        rows = parse_ground_truth(content, "a.csv")
        without = parse_ground_truth(table().encode(), "a.csv")
        assert list(rows.columns) == [*without.columns, "session"]
        pd.testing.assert_frame_equal(rows.drop(columns="session"), without, check_exact=True)
        assert session(without) == ""
        training = load_training_module(Settings())
        assert training.columns_of(rows) == training.columns_of(without)
        assert training.session(rows) == "north"

    @pytest.mark.parametrize("content", [table().encode(), with_sessions(*["a", "b"] * 3)])
    def test_of_an_unchecked_file_it_is_ignored(self, content: bytes) -> None:
        """Whatever stands in it."""
        rows = parse_unlabelled(content, "a.csv")
        assert list(rows.columns) == [*HEADER.split(",")[:-1], "file"]

    def test_two_sessions_are_refused(self) -> None:
        """A recording is of one; the line of the second is named."""
        content = with_sessions("", "north", "north", "12", "12", "south")
        with pytest.raises(InvalidGroundTruth) as caught:
            parse_ground_truth(content, "a.csv")
        assert caught.value.what == "line 5, column session: '12' after 'north'"
        assert caught.value.remedy.startswith("a recording is of one session: ")

    def test_two_columns_of_it_are_refused(self) -> None:
        """As of any other that acts."""
        content = with_sessions(*["a,b"] * 6, name="session,Session")
        with pytest.raises(InvalidGroundTruth, match="names the column session twice"):
            parse_ground_truth(content, "a.csv")


class TestReadGroundTruth:
    """What real files look like is read; nothing is guessed."""

    def test_a_plain_file_is_read_with_the_documented_columns_and_types(
        self, tmp_path: Path
    ) -> None:
        """Nine columns and the name; int64, float64, bool and nullable boolean."""
        path = tmp_path / "plain.csv"
        path.write_text(table())
        rows = read_ground_truth(path)
        assert list(rows.columns) == [*HEADER.split(","), "file"]
        assert rows["object_id"].tolist() == [7, 7, 9, 9, 11, 11]
        assert rows["frames"].tolist() == [14, 15, 20, 21, 30, 31]
        assert rows["area"].tolist() == [0, 104640, 0, 90000, 0, 80000]
        assert rows["counted"].tolist() == [True, True, True, True, False, False]
        assert rows["ground_truth"].tolist() == [True, True, False, False, pd.NA, pd.NA]
        assert set(rows["file"]) == {"plain.csv"}
        assert_documented(rows)

    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(table(header=HEADER.replace("_", "+AF8-")).encode(), id="UTF-7 header"),
            pytest.param(
                table(header=HEADER.replace("t_id", "t+AF8-id")).encode(), id="UTF-7 in one name"
            ),
            pytest.param(table().encode("utf-8-sig"), id="byte order mark"),
            pytest.param(table().replace("\n", "\r\n").encode(), id="CRLF"),
            pytest.param(table().replace("\n", "\r\r\n").encode(), id="CRLF sent as text twice"),
            pytest.param(table().replace("\n", "\r").encode(), id="CR of an old Macintosh"),
            pytest.param(
                table(header=HEADER.replace("_", "+AF8-"))
                .replace("\n", "\r\n")
                .encode("utf-8-sig"),
                id="byte order mark, UTF-7 header and CRLF",
            ),
            pytest.param(table(header=HEADER.upper()).encode(), id="upper case header"),
            pytest.param(table(header=HEADER.replace(",", " , ")).encode(), id="spaced header"),
            pytest.param(table().rstrip("\n").encode(), id="no newline at the end"),
            pytest.param((table() + "\n\n").encode(), id="blank lines at the end"),
            pytest.param((table() + "," * 8 + "\n" + "," * 8).encode(), id="rows of commas only"),
            pytest.param((table() + "," * 11 + "\n,,\n").encode(), id="rows of other commas only"),
            pytest.param(
                table(*GOOD_ROWS[:3], "," * 8, " ,  , , , , , , , ", *GOOD_ROWS[3:]).encode(),
                id="rows of commas and blanks in between",
            ),
            pytest.param(
                table(*('"' + row.replace(",", '","') + '"' for row in GOOD_ROWS)).encode(),
                id="quoted cells",
            ),
            pytest.param(table().replace(",", ", ").encode(), id="spaces after commas"),
            pytest.param(
                table(*(row.replace(",", ".0,", 1) for row in GOOD_ROWS)).encode(),
                id="object ids as 7.0",
            ),
            pytest.param(
                table(
                    *(f"x,{row},dürr; krumm" for row in GOOD_ROWS), header=f"id,{HEADER},remark"
                ).encode(),
                id="extra columns",
            ),
            pytest.param(
                table(
                    *(",".join(reversed(row.split(","))) for row in GOOD_ROWS),
                    header=",".join(reversed(HEADER.split(","))),
                ).encode(),
                id="columns in another order",
            ),
        ],
    )
    def test_every_way_of_writing_the_same_table_reads_the_same(self, content: bytes) -> None:
        """Exporters differ in header, line ends, order and quotes; the rows do not."""
        rows = parse(content)
        assert rows["object_id"].tolist() == [7, 7, 9, 9, 11, 11]
        assert rows["centroids_x"].tolist() == [248, 260, 300, 310, 900, 905]
        assert rows["centroids_y"].tolist() == [1218, 1219, 1100, 1102, 1000, 1001]
        assert rows["aspect_ratio"].tolist() == [0, 8.8, 0, 6.5, 0, 5.5]
        assert rows["area"].tolist() == [0, 104640, 0, 90000, 0, 80000]
        assert rows["frames"].tolist() == [14, 15, 20, 21, 30, 31]
        assert rows["scores"].tolist() == [0.79, 0.82, 0.5, 0.6, 0.3, 0.4]
        assert rows["counted"].tolist() == [True] * 4 + [False] * 2
        assert rows["ground_truth"].tolist() == [True, True, False, False, pd.NA, pd.NA]
        assert_documented(rows)

    @pytest.mark.parametrize(
        ("word", "meaning"),
        [
            *((w, True) for w in ("TRUE", "True", "true", "1", "1.0", "True Positive", " true ")),
            *((w, False) for w in ("FALSE", "False", "false", "0", "0.0", "False Positive")),
            *((w, True) for w in ("true positive", "TRUE POSITIVE")),
            ("false positive", False),
        ],
    )
    def test_every_spelling_of_a_label_is_understood(self, word: str, meaning: bool) -> None:
        """Alone in its column, where pandas guesses a type, and among other spellings."""
        alone = parse(table(f"1,1,1,0,0,1,0.5,True,{word}"))
        among = parse(table(f"1,1,1,0,0,1,0.5,True,{word}", *GOOD_ROWS))
        assert alone["ground_truth"].tolist() == [meaning]
        assert among["ground_truth"].tolist()[0] is meaning
        assert parse(table(f"1,1,1,0,0,1,0.5,{word},1"))["counted"].tolist() == [meaning]

    @pytest.mark.parametrize("row_with_label", [0, 1, 2])
    def test_a_label_on_one_row_holds_for_the_whole_object(self, row_with_label: int) -> None:
        """The first row, the last or one between."""
        rows = [f"{o},5,5,5,1000,{f},0.5,True," for o in (4, 2) for f in range(3)]
        rows[row_with_label] += "1"
        rows[3 + row_with_label] += "False Positive"
        assert parse(table(*rows))["ground_truth"].tolist() == [True] * 3 + [False] * 3

    def test_counted_may_stand_on_one_row_of_the_object(self) -> None:
        """A blank cell is unknown, so that the other rows decide."""
        rows = parse(table("1,1,1,0,0,1,0.5,,1", "1,2,1,5,900,2,0.5,TRUE,"))
        assert rows["counted"].tolist() == [True, True]

    def test_an_uncounted_object_without_a_label_stays_unknown(self) -> None:
        """NA is not turned into a stem or a false count; a stated label is kept."""
        rows = parse(
            table("1,1,1,0,0,1,0.5,False,", "2,1,1,0,0,1,0.5,False,1", "3,1,1,0,0,1,0.5,0,False")
        )
        assert rows["ground_truth"].tolist() == [pd.NA, True, False]

    def test_an_uncounted_object_with_two_labels_stays_unknown(self) -> None:
        """Its label is not used, so that it is no reason to refuse the file."""
        rows = parse(table("1,1,1,0,0,1,0.5,False,1", "1,2,1,5,900,2,0.5,False,0"))
        assert rows["ground_truth"].tolist() == [pd.NA, pd.NA]

    def test_a_recording_without_any_stem_is_legitimate(self) -> None:
        """All labels may be false, and nothing may be counted at all."""
        assert not parse(table(*GOOD_ROWS[2:4]))["ground_truth"].any()
        assert not parse(table(*GOOD_ROWS[4:]))["counted"].any()

    @pytest.mark.parametrize("column", MEASUREMENT_RANGES)
    def test_a_blank_measurement_is_missing_and_counted_in_the_note(self, column: str) -> None:
        """The row stays; the value is NaN."""
        rows = parse(with_cell(column, ""))
        assert rows[column].isna().tolist() == [False, True, False, False, False, False]
        note = f"{column}: 1 of 6 values missing or impossible, {FEW_TRACKS}"
        assert data_quality_note(rows) == note

    @pytest.mark.parametrize(
        ("column", "cell"),
        [
            ("aspect_ratio", "27000000000000000"),
            ("aspect_ratio", "2.7e16"),
            ("aspect_ratio", "100.5"),
            ("aspect_ratio", "-1"),
            ("scores", "1.5"),
            ("scores", "-0.1"),
            ("area", "-5"),
            ("area", "inf"),
            ("area", "9" * 400),
            ("area", "1e300"),
            ("centroids_x", "-inf"),
            ("centroids_x", "1e400"),
            ("centroids_y", "-1e200"),
        ],
    )
    def test_an_impossible_measurement_is_missing_and_counted_in_the_note(
        self, column: str, cell: str
    ) -> None:
        """It is no reason to refuse the recording."""
        rows = parse(with_cell(column, cell))
        assert rows[column].isna().tolist() == [False, True, False, False, False, False]
        note = f"{column}: 1 of 6 values missing or impossible, {FEW_TRACKS}"
        assert data_quality_note(rows) == note

    @pytest.mark.parametrize(
        ("column", "cell"),
        [
            ("aspect_ratio", "100"),
            ("scores", "1"),
            ("scores", "0"),
            ("centroids_x", "-20.5"),
            ("centroids_y", "20000"),
        ],
    )
    def test_an_unusual_measurement_is_kept(self, column: str, cell: str) -> None:
        """The limits themselves and places outside the image are possible."""
        rows = parse(with_cell(column, cell))
        assert rows[column].tolist()[1] == float(cell)
        assert data_quality_note(rows) == FEW_TRACKS

    def test_the_note_counts_each_column(self) -> None:
        """Three cells in two columns give two counts, in the order of the columns."""
        rows = parse(
            table("1,,1,0,0,1,2,True,1", "1,,1,5,900,2,0.5,True,", "1,5,1,5,900,3,0.5,True,")
        )
        assert data_quality_note(rows) == (
            "centroids_x: 2 of 3 values missing or impossible, "
            "scores: 1 of 3 values missing or impossible, "
            "only 1 counted track: features compare a track with its neighbours"
        )

    def test_possible_values_leaves_the_callers_array_alone(self) -> None:
        """A new array is returned where a value has to go."""
        values = np.array([0.5, 7.0])
        assert np.array_equal(possible_values(values, "scores"), [0.5, np.nan], equal_nan=True)
        assert values.tolist() == [0.5, 7.0]

    def test_a_file_that_vanished_is_not_called_invalid(self, tmp_path: Path) -> None:
        """Its author cannot mend it: the system's own error goes up."""
        with pytest.raises(FileNotFoundError):
            read_ground_truth(tmp_path / "gone.csv")


class TestRealRecordings:
    """The real files are all valid, and read as they are meant."""

    def test_all_real_recordings_are_valid(self, real_recordings: list[Path]) -> None:
        """33 files, their sizes as counted with the csv module."""
        assert len(real_recordings) == N_REAL_RECORDINGS
        for path in real_recordings:
            rows = read_ground_truth(path)
            assert_documented(rows)
            assert len(rows) == len(cells_of(path)), path.name

    def test_stems_are_counted_as_the_labels_of_the_file_say(
        self, real_recordings: list[Path]
    ) -> None:
        """Objects and stems of every recording, counted independently with the csv module."""
        for path in real_recordings:
            rows = read_ground_truth(path)
            objects = rows[rows["counted"]].groupby("object_id")["ground_truth"].first()
            stems = {
                row["object_id"]
                for row in cells_of(path)
                if row["counted"].lower() in ("true", "1")
                and row["ground_truth"].lower() in ("true", "true positive", "1", "1.0")
            }
            assert objects.notna().all()
            assert objects.sum() == len(stems), path.name

    def test_recording_22_with_one_label_per_object_is_complete(self, shared_folder: Path) -> None:
        """Its labels stand on one row each; no counted object stays without."""
        path = shared_folder / "gts" / "22.csv"
        cells = cells_of(path)
        labelled = [row for row in cells if row["ground_truth"]]
        assert len(labelled) < len(cells) / 10
        rows = read_ground_truth(path)
        assert rows["ground_truth"].notna().all()
        assert rows.loc[rows["ground_truth"], "object_id"].nunique() == len(labelled)

    def test_the_damaged_aspect_ratios_are_noted_in_four_recordings(
        self, real_recordings: list[Path]
    ) -> None:
        """2, 3, 4 and 42 lost their decimal points in a spreadsheet; the others have no note."""
        notes = {path.stem: data_quality_note(read_ground_truth(path)) for path in real_recordings}
        assert {name: note for name, note in notes.items() if note} == {
            "2": "aspect_ratio: 2793 of 2995 values missing or impossible",
            "3": "aspect_ratio: 2615 of 2801 values missing or impossible",
            "4": "aspect_ratio: 2764 of 2924 values missing or impossible",
            "42": "aspect_ratio: 3022 of 3270 values missing or impossible",
        }

    def test_exchanged_x_and_y_are_noted_and_change_no_feature(
        self, real_recordings: list[Path]
    ) -> None:
        """Bit by bit; no model has to know."""
        for path in real_recordings:
            rows = read_ground_truth(path)
            turned = exchanged(rows)
            assert ALONG_Y in data_quality_note(turned), path.name
            pd.testing.assert_frame_equal(
                track_features(turned), track_features(rows), check_exact=True
            )

    def test_inverted_aspect_ratios_are_noted(self, real_recordings: list[Path]) -> None:
        """Also where few are left; some boxes are wider than high in any recording."""
        for path in real_recordings:
            rows = read_ground_truth(path)
            assert "known values below 1" in data_quality_note(inverted(rows)), path.name


def cells_of(path: Path) -> list[dict[str, str]]:
    """Read a recording with the csv module, without rows of nothing but commas."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        header = [RAW_NAMES.get(name, name) for name in next(csv.reader([stream.readline()]))]
        return [dict(zip(header, cells, strict=True)) for cells in csv.reader(stream) if any(cells)]


def exchanged(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a recording whose columns x and y were exchanged."""
    return rows.assign(centroids_x=rows["centroids_y"], centroids_y=rows["centroids_x"])


def inverted(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a recording with width / height in place of height / width."""
    known = rows["aspect_ratio"].where(rows["aspect_ratio"] > 0)
    return rows.assign(aspect_ratio=(1 / known).fillna(rows["aspect_ratio"]))


def assert_documented(rows: pd.DataFrame) -> None:
    """Check what `read_ground_truth` promises of every frame that it returns."""
    assert [str(dtype) for dtype in rows.dtypes] == [
        *("int64", "float64", "float64", "float64", "float64", "int64", "float64"),
        *("bool", "boolean", "str"),
    ]
    for column, (low, high) in MEASUREMENT_RANGES.items():
        assert rows[column].dropna().between(low, high).all()
    assert not rows.loc[rows["counted"], "ground_truth"].isna().any()
    assert not rows.duplicated(["object_id", "frames"]).any()
    flags = rows.groupby("object_id")[["counted", "ground_truth"]]
    assert (flags.nunique(dropna=False) == 1).all(axis=None)


BAD_FILES: list[tuple[str, str | bytes, str]] = [
    ("empty", "", "is empty"),
    ("only whitespace", " \n\r\n \t\n", "is empty"),
    ("only a byte order mark", b"\xef\xbb\xbf", "is empty"),
    ("a byte order mark and blank lines", b"\xef\xbb\xbf\n\n", "is empty"),
    ("header only", HEADER + "\n", "has a header but no rows"),
    ("header without newline", HEADER, "has a header but no rows"),
    ("comma rows only", table("," * 8, "," * 8), "has a header but no rows"),
    ("no header", "\n".join(GOOD_ROWS), "lacks the columns object_id, centroids_x"),
    ("xlsx", b"PK\x03\x04\x14\x00\x06\x00" + bytes(50), "is a spreadsheet"),
    ("xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(50), "is a spreadsheet"),
    ("UTF-16", table().encode("utf-16"), "is UTF-16"),
    ("UTF-16 big-endian", b"\xfe\xff" + table().encode("utf-16-be"), "is UTF-16"),
    ("UTF-16 without mark", table().encode("utf-16-le"), "line 1 holds a NUL byte"),
    ("latin-1", with_cell("scores", "dürr").encode("latin-1"), "line 3 is not UTF-8 text"),
    ("NUL bytes", with_cell("scores", "0.\0"), "line 3 holds a NUL byte"),
    ("tail of zeros", table().encode() + bytes(512), "line 8 holds a NUL byte"),
    ("semicolons", table().replace(",", ";"), "is not separated by commas"),
    ("tabs", table().replace(",", "\t"), "is not separated by commas"),
    ("bars", table().replace(",", "|"), "is not separated by commas"),
    ("gigantic line", table("1," * 100_000), "holds a line of 200000 bytes"),
    (
        "column twice",
        table(*(f"{r},1" for r in GOOD_ROWS), header=f"{HEADER},area"),
        "column area twice",
    ),
    (
        "column twice in another spelling",
        table(*(f"{r},1" for r in GOOD_ROWS), header=f"{HEADER},OBJECT+AF8-ID"),
        "column object_id twice",
    ),
    ("missing column", table(header=HEADER.replace("area", "size")), "lacks the column area"),
    (
        "missing columns",
        table(header=HEADER.replace("scores", "s").replace("area", "a")),
        "lacks the columns area, scores",
    ),
    *(
        (f"text in {column}", with_cell(column, "many"), f"line 3, column {column}: 'many'")
        for column in GROUND_TRUTH_COLUMNS
    ),
    *(
        (f"a truth value in {column}", with_cell(column, "True"), f"line 3, column {column}")
        for column in MEASUREMENT_RANGES
    ),
    (
        "a truth value in the whole column",
        table("1,1,1,0,0,1,True,True,1"),
        "line 2, column scores: 'True'",
    ),
    ("hexadecimal", with_cell("area", "0x1F"), "line 3, column area: '0x1F'"),
    ("maybe", with_cell("ground_truth", "maybe"), "line 3, column ground_truth: 'maybe'"),
    ("formula", with_cell("ground_truth", "=cmd|calc"), "line 3, column ground_truth: '=cmd|calc'"),
    ("label 2", with_cell("ground_truth", "2"), "line 3, column ground_truth: '2'"),
    ("label 0.5", with_cell("ground_truth", "0.5"), "line 3, column ground_truth: '0.5'"),
    ("counted 2", with_cell("counted", "2"), "line 3, column counted: '2'"),
    ("conflicting labels", with_cell("ground_truth", "False"), "object 7 has two different labels"),
    (
        "counted without label",
        table("7,1,1,0,0,1,0.5,True,", *GOOD_ROWS[2:]),
        "object 7 was counted but has no label",
    ),
    (
        "no label anywhere",
        table("3,1,1,0,0,1,0.5,True,", "4,1,1,0,0,1,0.5,True,"),
        "object 3 was counted but has no label",
    ),
    ("counted and not", with_cell("counted", "False"), "object 7 is both counted and not counted"),
    (
        "counted blank",
        table("7,1,1,0,0,1,0.5,,1", *GOOD_ROWS[2:]),
        "object 7 does not say whether it was counted",
    ),
    ("row twice", table(*GOOD_ROWS, GOOD_ROWS[1]), "line 8: object 7 stands twice in frame 15"),
    (
        "same frame twice",
        table(*GOOD_ROWS, "9,1,1,5,9,20,0.9,True,0"),
        "line 8: object 9 stands twice in frame 20",
    ),
    ("cut off", table()[: -len(",0.4,False,\n")], "line 7 has 6 cells, its header 9"),
    (
        "cut off in the label",
        table(GOOD_ROWS[0], GOOD_ROWS[3][:-2]),
        "'Fal' is neither true nor false",
    ),
    ("too many cells", with_cell("area", "1,2"), "line 3 has 10 cells, its header 9"),
    (
        "one cell too many and one too few",
        table(GOOD_ROWS[0] + ",1", "7,260,1219,8.8,104640,15,0.82,True"),
        "line 2 has 10 cells, its header 9",
    ),
    ("decimal comma", with_cell("scores", "0,82"), "line 3 has 10 cells, its header 9"),
    ("quoted decimal comma", with_cell("scores", '"0,82"'), "line 3, column scores: '0,82'"),
    ("unterminated quote", with_cell("area", '"104640'), "line 7 has 5 cells, its header 9"),
    ("unterminated last quote", table(*GOOD_ROWS[:-1], GOOD_ROWS[-1] + '"'), "is not a CSV table"),
    ("carriage return in a cell", with_cell("area", '1\r2,"'), "line 3 is not CSV"),
    (
        "fractional object_id",
        with_cell("object_id", "7.5"),
        "line 3, column object_id: 7.5 is not an integer",
    ),
    (
        "fractional frame",
        with_cell("frames", "15.5"),
        "line 3, column frames: 15.5 is not an integer",
    ),
    ("missing object_id", with_cell("object_id", ""), "line 3, column object_id"),
    ("missing frame", with_cell("frames", ""), "line 3, column frames"),
    (
        "missing frame below a row of commas",
        table("," * 8, "7,1,1,0,0,,0.5,True,1"),
        "line 3, column frames",
    ),
    ("infinite frame", with_cell("frames", "inf"), "line 3, column frames: inf"),
    ("huge object_id", with_cell("object_id", "9" * 30), "line 3, column object_id: 1e+30"),
    ("gigantic object_id", with_cell("object_id", "9" * 400), "line 3, column object_id: inf"),
    ("beyond exact integers", with_cell("frames", str(2**53 + 2)), "line 3, column frames"),
    *(
        (
            f"{column} shortened by a spreadsheet",
            with_cell(column, "1.2E+05"),
            f"line 3, column {column}: '1.2E+05' was shortened",
        )
        for column in ("object_id", "frames")
    ),
    ("binary", bytes(range(256)) * 4, "line 1 holds a NUL byte"),
    ("PNG", b"\x89PNG\r\n\x1a\nIHDR", "line 1 is not UTF-8 text"),
    ("HTML page", "<!DOCTYPE html>\n<html><title>404 Not Found</title>\n", "lacks the columns"),
    ("JSON", '{"object_id": [7, 7], "area": [0, 1]}\n', "lacks the columns"),
]


class TestBadFiles:
    """Whatever cannot be read without guessing is refused, with a reason and a place."""

    @pytest.mark.parametrize(
        ("content", "what"), [pytest.param(c, what, id=name) for name, c, what in BAD_FILES]
    )
    def test_a_bad_file_is_refused_with_its_name_and_the_place(
        self, tmp_path: Path, content: str | bytes, what: str
    ) -> None:
        """One line: the file, what is wrong and where, and what to do."""
        path = tmp_path / "station_7.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(InvalidGroundTruth) as caught:
            read_ground_truth(path)
        assert what in caught.value.what
        assert caught.value.name == "station_7.csv"
        assert str(caught.value) == f"station_7.csv: {caught.value.what}; {caught.value.remedy}"
        assert caught.value.remedy
        assert len(str(caught.value)) < 500

    @pytest.mark.usefixtures("ten_seconds")
    def test_a_pipe_is_refused_without_waiting(self, tmp_path: Path) -> None:
        """As is whatever else has no end."""
        os.mkfifo(tmp_path / "a.csv")
        with pytest.raises(InvalidGroundTruth, match=r"a\.csv: is not a file"):
            read_ground_truth(tmp_path / "a.csv")

    def test_a_file_name_that_is_not_utf_8_is_refused_in_printable_words(
        self, tmp_path: Path
    ) -> None:
        """No log, store or report could hold such a name."""
        path = tmp_path / os.fsdecode(b"gr\xfcn.csv")
        try:
            path.write_text(table())
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
        with pytest.raises(InvalidGroundTruth, match="has a name that is not UTF-8") as caught:
            read_ground_truth(path)
        assert str(caught.value).encode().startswith(b"gr\\udcfcn.csv: ")
        assert caught.value.name == path.name


FUZZ_BASE = (
    make_recording(5, n_tracks=3)
    .groupby("object_id")
    .head(4)
    .assign(object_id=lambda rows: rows["object_id"] % 50)
    .to_csv(index=False)
    .encode()
)
NASTY_CELLS = (
    *("", " ", "nan", "NA", "-", "inf", "-inf", "1e308", "-1e308", "1e400", "1e-320", "-0"),
    *("True", "FALSE", "true positive", "1.0", "2", "maybe", "9" * 19, "9" * 400, "9" * 5000),
    *(
        '"',
        '""',
        '"a',
        "'",
        "a\rb",
        "a\nb",
        "\x0b",
        "\u2028",
        "\ufeff",
        "\x1c",
        "\x85",
        "\U0001f332",
    ),
    *("1.2E+05", "1E3"),
    *("1_0", "0x1", "1+2j", "\u0661", "1,2", "1;2", "=1+1", "2020-01-01", "+AF8-", "#", "\\", "\0"),
)
NASTY_BYTES = st.sampled_from(
    [
        b"",
        b"\n",
        b"\r",
        b"\r\n",
        b",",
        b'"',
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b" ",
        b"9",
        b"-",
        b"e",
    ]
)


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """Draw a real-looking file with up to three cells, bytes or lines damaged."""
    content = FUZZ_BASE
    for _ in range(draw(st.integers(1, 3))):
        content = draw(st.sampled_from([damage_cell, damage_bytes, damage_lines]))(draw, content)
    return content


def damage_cell(draw: st.DrawFn, content: bytes) -> bytes:
    """Exchange a cell for a nasty one or for any text."""
    lines = content.split(b"\n")
    number = draw(st.integers(0, len(lines) - 1))
    cells = lines[number].split(b",")
    cell = draw(st.sampled_from(NASTY_CELLS) | st.text(max_size=8))
    cells[draw(st.integers(0, len(cells) - 1))] = cell.encode()
    lines[number] = b",".join(cells)
    return b"\n".join(lines)


def damage_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Exchange up to three bytes for others, or cut the file off."""
    start = draw(st.integers(0, len(content)))
    if draw(st.integers(0, 9)) == 0:
        return content[:start]
    other = draw(NASTY_BYTES | st.binary(max_size=3))
    return content[:start] + other + content[start + draw(st.integers(0, 3)) :]


def damage_lines(draw: st.DrawFn, content: bytes) -> bytes:
    """Drop, repeat, move or blank a line, or change all line ends."""
    lines = content.split(b"\n")
    first = draw(st.integers(0, len(lines) - 1))
    second = draw(st.integers(0, len(lines) - 1))
    kind = draw(st.sampled_from(["drop", "repeat", "move", "commas", "ends"]))
    if kind == "ends":
        return content.replace(b"\n", draw(st.sampled_from([b"\r\n", b"\r", b"\r\r\n", b"\n\n"])))
    line = lines[first] if kind in ("repeat", "move") else b"," * draw(st.integers(0, 12))
    if kind in ("drop", "move"):
        del lines[first]
    if kind != "drop":
        lines.insert(second, line)
    return b"\n".join(lines)


def check_damaged_file(content: bytes) -> bool:
    """Check that a file is read as documented or refused; return whether it was read."""
    try:
        rows = parse(content)
    except InvalidGroundTruth as error:
        assert str(error).startswith("a.csv: ")
        return False
    assert_documented(rows)
    assert isinstance(data_quality_note(rows), str)
    features = track_features(rows).to_numpy()
    assert not (np.abs(features[~np.isnan(features)]) > np.finfo(np.float32).max).any()
    return True


def with_ids(*cells: str) -> str:
    """Return a file with one row for each of these object ids."""
    return table(*(f"{cell},5,5,5,1000,{n},0.5,True,1" for n, cell in enumerate(cells)))


class TestShortenedIntegers:
    """A spreadsheet shows 123456 as 1.2E+05, and saves what it shows."""

    @pytest.mark.parametrize(
        ("cells", "wrong"),
        [
            pytest.param(("1.2E+05", "1.3E+05"), "1.2E+05", id="all"),
            pytest.param(("12345", "1.2E+05", "99999"), "1.2E+05", id="what was too wide"),
            pytest.param(("7", "1E+05"), "1E+05", id="no fraction"),
            pytest.param(("7.", "1.e+05"), "1.e+05", id="nothing behind the point"),
            pytest.param(("7", "-1.2e5"), "-1.2e5", id="negative, lower case and without plus"),
            pytest.param(("7", "0.12E+06"), "0.12E+06", id="zero before the point"),
            pytest.param(("7", "1.0E+02"), "1.0E+02", id="perhaps 100, perhaps 103"),
            pytest.param(
                ("1.00E+00", "9.99E+02", "1.00E+03"), "1.00E+03", id="a column of three digits"
            ),
            pytest.param(("123456", "1.23457E+11"), "1.23457E+11", id="six digits of twelve"),
        ],
    )
    def test_what_may_have_lost_digits_is_refused(self, cells: tuple[str, ...], wrong: str) -> None:
        """Tracks would be merged without a word; the line, the cell and the remedy are named."""
        with pytest.raises(InvalidGroundTruth) as caught:
            parse(with_ids(*cells))
        line = cells.index(wrong) + 2
        assert caught.value.what == (
            f"line {line}, column object_id: {wrong!r} was shortened, as spreadsheets do: "
            "different tracks may share it"
        )
        assert caught.value.remedy == "export it again with object_id as plain integers"

    @pytest.mark.parametrize(
        ("cells", "ids"),
        [
            pytest.param(("123456.0", "7.0"), [123456, 7], id="floats as pandas writes them"),
            pytest.param(
                (f"{100_000:.18e}", f"{7:.18e}", f"{0:.18e}"),
                [100_000, 7, 0],
                id="floats as NumPy writes them",
            ),
            pytest.param(("99999", "1e+05", "100001"), [99999, 100_000, 100_001], id="as R does"),
            pytest.param(
                ("1.2345678E7", "1.2E7", "5.0"), [12_345_678, 12_000_000, 5], id="as Java does"
            ),
            pytest.param(("1.00E+02", "1.23E+02", "0.00E+00"), [100, 123, 0], id="digits enough"),
            pytest.param(("1E+00", "7E+00"), [1, 7], id="one digit"),
            pytest.param(("-1.5E+01", "2"), [-15, 2], id="negative"),
        ],
    )
    def test_what_has_all_its_digits_is_read(self, cells: tuple[str, ...], ids: list[int]) -> None:
        """By itself, or because a cell of its column shows that there was room for them."""
        assert parse(with_ids(*cells))["object_id"].tolist() == ids

    def test_the_line_is_right_below_rows_of_commas(self) -> None:
        """They make the ids floats, and are left out."""
        content = table(GOOD_ROWS[0], "," * 8, "7,1,1,5,900,1.5E+03,0.5,True,1")
        with pytest.raises(InvalidGroundTruth, match="line 4, column frames: '1.5E\\+03' was"):
            parse(content)

    def test_other_columns_may_be_in_scientific_notation(self) -> None:
        """Measurements of one digit are what they are."""
        rows = parse(table("7.0,1E+02,1,0,1e5,3.0,5E-01,True,1"))
        assert rows["centroids_x"].tolist() == [100]
        assert rows["area"].tolist() == [100_000]

    def test_an_unlabelled_recording_is_refused_too(self) -> None:
        """A prediction on merged tracks is as wrong as a lesson."""
        with pytest.raises(InvalidGroundTruth, match="'1E\\+05' was shortened"):
            parse_unlabelled(with_ids("7", "1E+05").encode(), "a.csv")


class TestDamagedFiles:
    """No file whatever brings the night down."""

    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(content=damaged_files())
    @example(content=FUZZ_BASE)
    @example(content=b"\xef\xbb\xbf")
    def test_a_damaged_file_is_read_as_documented_or_refused(self, content: bytes) -> None:
        """Never another exception, never a warning, never a feature that a model cannot take."""
        check_damaged_file(content)

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(content=st.binary(max_size=200))
    def test_any_bytes_below_a_good_header_are_read_or_refused(self, content: bytes) -> None:
        """The header alone does not make a file valid."""
        check_damaged_file(HEADER.encode() + b"\n" + content)

    def test_the_undamaged_file_is_read(self) -> None:
        """The fuzzing above begins with a file that is valid."""
        assert check_damaged_file(FUZZ_BASE)


def track(object_id: int, frame: int, speed: float, area: float, **values: Any) -> pd.DataFrame:
    """Return a track of three rows: box zero on the first, place (0, y) at its first frame."""
    return pd.DataFrame(
        {
            "object_id": object_id,
            "centroids_x": [0.0, speed, 2 * speed],
            "centroids_y": values.get("y", 100.0),
            "aspect_ratio": [0.0, 4.0, 4.0],
            "area": [0.0, area, area],
            "frames": [frame, frame + 1, frame + 2],
            "scores": values.get("score", 0.5),
            "counted": True,
        }
    )


ALONG_Y = (
    "objects move along y: x and y are exchanged or the camera was turned "
    "(features follow the motion)"
)


def hand_worked_rows() -> pd.DataFrame:
    """Return three tracks whose boxes are 100 x 25, 200 x 50 and 400 x 100 pixels."""
    return pd.concat(
        [
            track(1, 0, speed=10, area=2_500, score=0.5, y=100),
            track(2, 10, speed=20, area=10_000, score=0.6, y=110),
            track(3, 20, speed=40, area=40_000, score=0.8, y=130),
        ],
        ignore_index=True,
    )


HAND_WORKED_FEATURES = {
    "speed_ratio": (0.5, 1, 2),
    "net_speed_ratio": (0.5, 1, 2),
    "way_ratio": (0.5, 1, 2),
    "duration_ratio": (1, 1, 1),
    "rows_ratio": (1, 1, 1),
    "area_ratio": (0.25, 1, 4),
    "aspect_ratio": (1, 1, 1),
    "height_ratio": (0.5, 1, 2),
    "width_ratio": (0.5, 1, 2),
    "score_difference": (-0.1, 0, 0.2),
    # in heights of the middle box, 200 pixels
    "y_difference": (-0.05, 0, 0.1),
    "top_difference": (0.2, 0, -0.4),
    "bottom_difference": (-0.3, 0, 0.6),
    # in ways of the middle track, 40 pixels
    "start_difference": (0, 0, 0),
    "end_difference": (-0.5, 0, 1),
    # nearest: 2 to 1 (190 pixels, 770 to 3), 1 to 2 (90; 380), 1 to 3 (170; 180), late as it is
    "nearest_score_difference": (-0.1, 0.1, 0.3),
    "nearest_area_log_ratio": (np.log(1 / 4), np.log(4), np.log(16)),
    "nearest_duration_log_ratio": (0, 0, 0),
    "nearest_speed_difference": (-0.5, 0.5, 1.5),
}


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """Give a recording of 25 tracks, two of them not counted."""
    rows = recording(3, "one.csv", 25)
    uncounted = rows["object_id"].unique()[[4, 15]]
    return rows.assign(counted=~rows["object_id"].isin(uncounted))


@pytest.fixture(scope="module")
def features(rows: pd.DataFrame) -> pd.DataFrame:
    """Give its features."""
    return track_features(rows)


def unlabelled(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows as `predict` reads them."""
    return parse_unlabelled(rows.to_csv(index=False).encode(), "a.csv")


class TestQualityNotes:
    """What can be used all the same, but changes verdicts, is told."""

    @pytest.mark.parametrize("n_tracks", [3, 12])
    @pytest.mark.parametrize("season", ["old", "new"])
    def test_an_ordinary_recording_has_none(self, n_tracks: int, season: str) -> None:
        """Zeros on first rows are what the tracker writes; with labels, without, unnamed."""
        rows = recording(1, "a.csv", n_tracks, season)
        assert data_quality_note(rows) == ""
        assert data_quality_note(rows.drop(columns=["file", "ground_truth"])) == ""
        assert data_quality_note(unlabelled(rows.drop(columns="counted"))) == ""

    @pytest.mark.parametrize("column", ["area", "aspect_ratio"])
    def test_zero_beyond_the_first_row_is_missing_and_told(self, column: str) -> None:
        """As a blank cell would be, in every feature; uncounted objects need no box."""
        rows = hand_worked_rows()
        zero, blank = rows.copy(), rows.copy()
        zero.loc[[1, 2, 8], column] = 0.0
        blank.loc[[1, 2, 8], column] = np.nan
        pd.testing.assert_frame_equal(track_features(zero), track_features(blank))
        assert not track_features(zero).equals(track_features(rows))
        uncounted = track(4, 0, speed=10, area=0).assign(counted=False)
        zero = pd.concat([zero, uncounted], ignore_index=True)
        assert data_quality_note(zero.sample(frac=1, random_state=1)) == (
            f"{column}: 3 of 12 values 0 beyond a track's first row (taken as missing)"
        )

    @pytest.mark.parametrize(("n_above", "told"), [(0, True), (2, True), (3, False), (20, False)])
    def test_aspect_ratios_below_1_throughout_are_told(self, n_above: int, told: bool) -> None:
        """Of 22 known ones; a few objects may be wider than high, or a few ratios be right."""
        rows = pd.concat([track(n, 10 * n, speed=10, area=2500) for n in range(11)])
        aspect = rows["aspect_ratio"].to_numpy() / 16
        aspect[np.flatnonzero(aspect)[:n_above]] = 4.0
        rows = rows.assign(aspect_ratio=aspect)
        expected = (
            f"aspect_ratio: {22 - n_above} of 22 known values below 1 "
            "(inverted? it is height / width)"
        )
        assert data_quality_note(rows) == (expected if told else "")

    @pytest.mark.parametrize("season", ["old", "new"])
    def test_features_follow_objects_that_move_along_y(self, season: str) -> None:
        """Bit by bit as if x and y had not been exchanged, also between other recordings."""
        parts = [recording(seed, f"{seed}.csv", 12, season) for seed in (4, 5, 6)]
        turned = [parts[0], exchanged(parts[1]), parts[2]]
        assert [data_quality_note(rows) for rows in turned] == ["", ALONG_Y, ""]
        pd.testing.assert_frame_equal(
            track_features(pd.concat(turned)), track_features(pd.concat(parts)), check_exact=True
        )

    @pytest.mark.parametrize(("n_along_y", "told"), [(0, False), (2, False), (3, True), (4, True)])
    def test_most_tracks_decide_where_a_recording_goes(self, n_along_y: int, told: bool) -> None:
        """Of four; a coordinate that is off by a million pixels turns nothing."""
        rows = [track(n, 10 * n, speed=10, area=2500) for n in range(4)]
        rows[:n_along_y] = [exchanged(part) for part in rows[:n_along_y]]
        rows[0].loc[2, "centroids_y"] = 1e6
        assert data_quality_note(pd.concat(rows, ignore_index=True)) == (ALONG_Y if told else "")

    def test_objects_that_stand_still_go_nowhere(self) -> None:
        """Neither along x nor along y."""
        rows = pd.concat([track(n, 10 * n, speed=0, area=2500) for n in range(3)])
        assert data_quality_note(rows) == ""

    @pytest.mark.parametrize(
        ("n_counted", "note"),
        [
            (0, "no counted tracks"),
            (1, "only 1 counted track: features compare a track with its neighbours"),
            (2, FEW_TRACKS),
            (3, ""),
        ],
    )
    def test_fewer_than_three_tracks_are_told(self, n_counted: int, note: str) -> None:
        """Those that the tracker counted."""
        rows = hand_worked_rows()
        rows["counted"] = rows["object_id"] <= n_counted
        assert data_quality_note(rows) == note

    def test_everything_is_told_in_one_text_and_with_the_verdicts(self) -> None:
        """A recording that nobody has checked has the same oddities."""
        rows = exchanged(inverted(hand_worked_rows()))
        rows = rows[rows["object_id"] < 3].reset_index(drop=True)
        rows.loc[1, ["area", "scores"]] = (0.0, 7.0)
        note = (
            "scores: 1 of 6 values missing or impossible, "
            "area: 1 of 6 values 0 beyond a track's first row (taken as missing), "
            "aspect_ratio: 4 of 4 known values below 1 (inverted? it is height / width), "
            f"{ALONG_Y}, {FEW_TRACKS}"
        )
        read = unlabelled(rows)
        assert data_quality_note(read) == note
        found = pd.DataFrame({"counted": [True, True], "stem": [True, False]})
        words = f"2 counted by the tracker, 1 after correction ({note})"
        assert verdicts_in_words(read, found) == words


class TestTrackFeatures:
    """A track is judged by its neighbours, never by the scale or place of its recording."""

    def test_the_hand_worked_example_covers_every_feature(self) -> None:
        """A new feature needs a new line in the table."""
        assert tuple(HAND_WORKED_FEATURES) == TRACK_FEATURES
        assert len(RATIO_FEATURES) == 9

    @pytest.mark.parametrize("feature", TRACK_FEATURES)
    def test_a_feature_is_as_worked_out_by_hand(self, feature: str) -> None:
        """Ratios to the median of the three, and comparisons with the nearest."""
        features = track_features(hand_worked_rows())
        np.testing.assert_allclose(features[feature], HAND_WORKED_FEATURES[feature], atol=1e-12)

    def test_the_neighbours_are_the_five_before_and_the_five_after(self) -> None:
        """Areas 1..12 thousand: medians 3.5 at the begin, 6 and 7 inside, 9.5 at the end."""
        rows = pd.concat([track(n, 10 * n, speed=10, area=1000 * n) for n in range(1, 13)])
        ratios = track_features(rows)["area_ratio"].to_numpy()
        expected = [1 / 3.5, 2 / 4, 3 / 4.5, 4 / 5, 5 / 5.5, 1, 1, 8 / 7.5, 9 / 8, 10 / 8.5]
        np.testing.assert_allclose(ratios, [*expected, 11 / 9, 12 / 9.5])

    @pytest.mark.parametrize("mirror", [1, -1])
    def test_a_recording_runs_where_most_of_its_steps_go(self, mirror: int) -> None:
        """The first track runs backwards: its end is 60 pixels behind, the usual way 40 long."""
        rows = pd.concat(
            [
                track(1, 0, speed=-10, area=2500),
                track(2, 10, speed=20, area=2500),
                track(3, 20, speed=40, area=2500),
            ]
        )
        features = track_features(rows.assign(centroids_x=rows["centroids_x"] * mirror))
        assert features["speed_ratio"].tolist() == [-0.5, 1, 2]
        assert features["end_difference"].tolist() == [-1.5, 0, 1]

    def test_the_zero_box_of_a_first_row_is_left_out(self) -> None:
        """Whatever stands there changes nothing; a zero box on a later row is missing too."""
        rows = hand_worked_rows()
        changed = rows.copy()
        changed.loc[[0, 3, 6], ["area", "aspect_ratio"]] = (7777.0, 9.0)
        pd.testing.assert_frame_equal(track_features(changed), track_features(rows))
        changed.loc[1, ["area", "aspect_ratio"]] = 0.0
        pd.testing.assert_frame_equal(track_features(changed), track_features(rows))

    def test_there_is_one_row_per_counted_track(self, features: pd.DataFrame) -> None:
        """23 of the 25 were counted; all features are known."""
        assert features.shape == (23, 19)
        assert np.isfinite(features.to_numpy()).all()

    @pytest.mark.parametrize("seed", range(3))
    def test_the_order_of_rows_does_not_matter(
        self, rows: pd.DataFrame, features: pd.DataFrame, seed: int
    ) -> None:
        """Shuffled rows, with their old index or a new one, give the same features."""
        shuffled = rows.sample(frac=1, random_state=seed, ignore_index=seed == 1)
        pd.testing.assert_frame_equal(track_features(shuffled), features)

    @pytest.mark.parametrize("seed", range(5))
    def test_object_ids_are_only_names(
        self, rows: pd.DataFrame, features: pd.DataFrame, seed: int
    ) -> None:
        """Any renumbering only moves the tracks to their new places in the order of ids."""
        counted = np.unique(rows.loc[rows["counted"], "object_id"])
        ids = rows["object_id"].unique()
        new = np.random.default_rng(seed).permutation(10_000)[: len(ids)] - 5_000
        new_of = dict(zip(ids.tolist(), new.tolist(), strict=True))
        renumbered = rows.assign(object_id=rows["object_id"].map(new_of))
        places = np.argsort([new_of[identity] for identity in counted.tolist()])
        expected = features.iloc[places].reset_index(drop=True)
        pd.testing.assert_frame_equal(track_features(renumbered), expected)

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda rows: rows.assign(file="two.csv"), id="another file name"),
            pytest.param(lambda rows: rows.drop(columns="file"), id="no file name"),
            pytest.param(lambda rows: rows.drop(columns="ground_truth"), id="no labels"),
            pytest.param(lambda rows: rows.assign(frames=rows["frames"] + 100_000), id="later"),
            pytest.param(lambda rows: rows.assign(frames=rows["frames"] - 5_000), id="earlier"),
            *(
                pytest.param(
                    lambda rows, k=k: rows.assign(
                        centroids_x=rows["centroids_x"] * k,
                        centroids_y=rows["centroids_y"] * k,
                        area=rows["area"] * k**2,
                    ),
                    id=f"scaled by {k}",
                )
                for k in (0.37, 2, 10)
            ),
            pytest.param(
                lambda rows: rows.assign(centroids_x=2000 - rows["centroids_x"]), id="mirrored"
            ),
            pytest.param(
                lambda rows: rows.assign(centroids_x=rows["centroids_x"] + 333), id="moved along x"
            ),
            pytest.param(
                lambda rows: rows.assign(centroids_y=rows["centroids_y"] - 444), id="moved along y"
            ),
        ],
    )
    def test_scale_place_time_and_name_do_not_matter(
        self,
        rows: pd.DataFrame,
        features: pd.DataFrame,
        change: Callable[[pd.DataFrame], pd.DataFrame],
    ) -> None:
        """Another camera, another direction or another clock give the same features."""
        np.testing.assert_allclose(track_features(change(rows)), features, rtol=1e-6, atol=1e-9)

    def test_uncounted_objects_are_no_neighbours(
        self, rows: pd.DataFrame, features: pd.DataFrame
    ) -> None:
        """Without their rows everything is the same."""
        pd.testing.assert_frame_equal(track_features(rows[rows["counted"]]), features)

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
    def test_several_recordings_at_once_equal_each_alone(self, order: tuple[int, ...]) -> None:
        """Also with a recording that counted nothing, wherever it stands."""
        parts = [
            recording(1, "z.csv").assign(counted=False),
            recording(2, "a.csv"),
            recording(4, "m.csv", season="new"),
        ]
        parts = [parts[number] for number in order]
        alone = pd.concat([track_features(part) for part in parts], ignore_index=True)
        assert len(alone) == 24
        pd.testing.assert_frame_equal(track_features(pd.concat(parts)), alone)

    def test_interleaved_recordings_with_equal_ids_are_kept_apart(self) -> None:
        """Only the file name tells them apart."""
        both = pd.concat([recording(2, "a"), recording(2, "b").assign(centroids_y=5.0)])
        alone = [track_features(part) for _, part in both.groupby("file")]
        mixed = both.sort_values(["frames", "file"])
        pd.testing.assert_frame_equal(track_features(mixed), pd.concat(alone, ignore_index=True))

    def test_a_single_track_is_like_its_surroundings(self) -> None:
        """All ratios are 1, all differences 0; without a nearest track nothing is known of it."""
        (only,) = track_features(track(1, 0, speed=10, area=2500)).to_dict("records")
        for name, value in only.items():
            expected = {"ratio": 1.0, "difference": 0.0}.get(str(name).rsplit("_", maxsplit=1)[-1])
            if str(name).startswith("nearest_"):
                assert np.isnan(value), name
            else:
                assert value == expected, name

    @pytest.mark.parametrize(
        "rows",
        [
            pytest.param(recording(1, "a").assign(counted=False), id="nothing counted"),
            pytest.param(recording(1, "a").head(0), id="no rows"),
        ],
    )
    def test_without_counted_objects_there_are_no_features(self, rows: pd.DataFrame) -> None:
        """An empty table with all its columns."""
        features = track_features(rows)
        assert features.shape == (0, 19)
        assert tuple(features.columns) == TRACK_FEATURES

    def test_tracks_of_one_row_do_not_fail(self) -> None:
        """Speed and box are unknown, the score is not."""
        features = track_features(recording(1, "a").groupby("object_id").head(1))
        assert features["speed_ratio"].isna().all()
        assert features["area_ratio"].isna().all()
        assert features["score_difference"].notna().all()

    def test_the_callers_rows_are_left_alone(self, rows: pd.DataFrame) -> None:
        """Neither values nor order change."""
        before = rows.copy()
        track_features(rows)
        pd.testing.assert_frame_equal(rows, before)


@pytest.fixture(scope="module")
def fitted(two_recordings: pd.DataFrame) -> StemClassifier:
    """Give a quick model of two recordings."""
    model = StemClassifier(make_fast_classifier(0))
    return model.fit(two_recordings, two_recordings["ground_truth"])


class TestStemClassifier:
    """An ordinary scikit-learn estimator that takes raw tracker rows."""

    def test_parameters_are_read_set_and_cloned(self) -> None:
        """What scikit-learn asks of an estimator."""
        model = StemClassifier(random_state=7)
        assert model.get_params() == {"classifier": None, "random_state": 7}
        copy = clone(model.set_params(random_state=8))
        assert copy is not model
        assert copy.get_params() == {"classifier": None, "random_state": 8}
        with pytest.raises(NotFittedError):
            copy.predict(recording(1, "a"))

    def test_fitting_leaves_the_given_classifier_unfitted(self, fitted: StemClassifier) -> None:
        """A clone is fitted, so that the estimator can be fitted again."""
        assert not hasattr(fitted.classifier, "classes_")
        assert fitted.classifier_.n_features_in_ == 19
        assert fitted.classes_.tolist() == [False, True]

    def test_it_works_with_cross_validation_by_recording(self) -> None:
        """GroupKFold over raw rows: held-out rows of a synthetic season are easy."""
        rows = pd.concat([recording(n, f"{n}.csv", 30) for n in range(4)], ignore_index=True)
        labels = rows["ground_truth"].to_numpy(dtype=bool)
        scores = cross_val_score(
            StemClassifier(make_fast_classifier()),
            rows.drop(columns="ground_truth"),
            labels,
            groups=rows["file"],
            cv=GroupKFold(4),
            error_score="raise",
        )
        assert scores.shape == (4,)
        assert scores.mean() > max(0.9, labels.mean())

    def test_a_row_gets_the_verdict_of_its_object(self, fitted: StemClassifier) -> None:
        """One boolean per row, the same for all rows of an object, probabilities to match."""
        rows = recording(3, "c.csv", 20)
        predicted, probabilities = fitted.predict(rows), fitted.predict_proba(rows)
        assert predicted.dtype == bool
        assert predicted.shape == (len(rows),)
        assert probabilities.shape == (len(rows), 2)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1)
        assert np.array_equal(predicted, probabilities[:, 1] > 0.5)
        verdicts = pd.Series(predicted).groupby(rows["object_id"]).nunique()
        assert (verdicts == 1).all()
        assert 0 < predicted.mean() < 1

    def test_shuffled_rows_get_the_same_verdicts(self, fitted: StemClassifier) -> None:
        """A verdict follows its row."""
        rows = recording(3, "c.csv", 20)
        order = np.random.default_rng(0).permutation(len(rows))
        assert np.array_equal(fitted.predict(rows.iloc[order]), fitted.predict(rows)[order])

    def test_raw_rows_get_the_same_verdicts_as_cleaned_ones(
        self, fitted: StemClassifier, tmp_path: Path
    ) -> None:
        """As pandas reads a file with impossible values and blank labels."""
        rows = recording(3, "c.csv", 20).drop(columns="file")
        rows.loc[5:60, "aspect_ratio"] = 2.7e16
        rows.loc[3:70:2, "scores"] = 1.5
        rows["ground_truth"] = rows["ground_truth"].where(~rows["object_id"].duplicated())
        rows.to_csv(tmp_path / "c.csv", index=False)
        raw, cleaned = raw_rows(tmp_path / "c.csv"), read_ground_truth(tmp_path / "c.csv")
        assert "file" not in raw
        assert data_quality_note(cleaned)
        assert np.array_equal(fitted.predict_proba(raw), fitted.predict_proba(cleaned))

    def test_real_raw_rows_get_the_same_verdicts_as_cleaned_ones(
        self, fitted: StemClassifier, real_recordings: list[Path]
    ) -> None:
        """For all recordings, header damage apart."""
        for path in real_recordings:
            raw, cleaned = raw_rows(path), read_ground_truth(path)
            assert np.array_equal(fitted.predict(raw), fitted.predict(cleaned)), path.name

    def test_missing_optional_columns_mean_one_recording_all_counted(
        self, fitted: StemClassifier
    ) -> None:
        """The tracker's seven numbers are enough."""
        rows = recording(3, "c.csv", 20)
        bare = rows[list(GROUND_TRUTH_COLUMNS[:7])]
        assert np.array_equal(fitted.predict_proba(bare), fitted.predict_proba(rows))

    @pytest.mark.parametrize("column", GROUND_TRUTH_COLUMNS[:7])
    def test_a_missing_column_is_named(self, fitted: StemClassifier, column: str) -> None:
        """Instead of a KeyError from the depths."""
        with pytest.raises(ValueError, match=f"the rows lack the columns {column}; "):
            fitted.predict(recording(3, "c").drop(columns=column))

    @pytest.mark.parametrize(
        ("column", "value", "message"),
        [
            ("object_id", np.nan, "column object_id has missing or infinite values"),
            ("frames", np.inf, "column frames has missing or infinite values"),
            ("counted", None, "column counted has values that are neither true nor false"),
            ("counted", "perhaps", "column counted has values that are neither true nor false"),
            ("file", None, "column file has missing values"),
        ],
    )
    def test_a_missing_key_is_refused(
        self, fitted: StemClassifier, column: str, value: Any, message: str
    ) -> None:
        """Without it nobody knows which track the row belongs to."""
        rows = recording(3, "c").astype({column: "object"})
        rows.loc[4, column] = value
        with pytest.raises(ValueError, match=message):
            fitted.predict(rows)

    @pytest.mark.parametrize(
        "spelling", [(True, False), ("TRUE", "FALSE"), ("1", "0"), (1, 0), ("True", "False")]
    )
    def test_rows_that_were_not_counted_are_no_stems(
        self, fitted: StemClassifier, spelling: tuple[object, object]
    ) -> None:
        """In every spelling of counted, which is text when it comes from a mixed column."""
        rows = recording(3, "c.csv", 20)
        stems = rows.loc[fitted.predict(rows), "object_id"].unique()
        is_counted = rows["object_id"] != stems[0]
        rows["counted"] = is_counted.map(dict(zip((True, False), spelling, strict=True)))
        predicted = fitted.predict(rows)
        assert not predicted[~is_counted].any()
        assert predicted[is_counted].any()
        assert fitted.predict_proba(rows)[~is_counted].tolist() == [[1, 0]] * (~is_counted).sum()

    def test_rows_without_any_counted_object_are_no_stems(self, fitted: StemClassifier) -> None:
        """Nothing to judge is no failure."""
        rows = recording(3, "c.csv").assign(counted=False)
        assert fitted.predict(rows).tolist() == [False] * len(rows)

    @pytest.mark.parametrize("label", [True, False])
    def test_equal_labels_cannot_be_learnt(self, label: bool) -> None:
        """The message says what kind of recordings is lacking."""
        rows = recording(3, "c.csv")
        with pytest.raises(TrainingError, match="have the same label"):
            StemClassifier().fit(rows, np.full(len(rows), label))

    def test_a_counted_object_without_a_label_cannot_be_learnt(self) -> None:
        """An uncounted one can: its label is not used."""
        rows = recording(3, "c.csv")
        first = rows["object_id"] == rows["object_id"].min()
        labels = rows["ground_truth"].astype("boolean").mask(first)
        with pytest.raises(ValueError, match="a counted object has no label"):
            StemClassifier().fit(rows, labels)
        StemClassifier(make_fast_classifier()).fit(rows.assign(counted=~first), labels)

    def test_the_same_seed_gives_the_same_model(self, two_recordings: pd.DataFrame) -> None:
        """With the default classifier; another seed gives another."""
        labels = two_recordings["ground_truth"]
        first, second, other = (
            StemClassifier(random_state=seed).fit(two_recordings, labels) for seed in (0, 0, 1)
        )
        rows = recording(3, "c.csv", 20)
        assert np.array_equal(first.predict_proba(rows), second.predict_proba(rows))
        assert not np.array_equal(first.predict_proba(rows), other.predict_proba(rows))


class KnownVotes:
    """A classifier of detections whose votes are given."""

    feature_names_in_ = np.array(DETECTION_FEATURES)

    def __init__(self, votes: list[int]) -> None:
        self.votes = votes

    def predict(self, features: pd.DataFrame) -> np.ndarray:
        assert len(features) == len(self.votes)
        return np.array(self.votes)


class TestFirstGeneration:
    """Pickles of the first generation work, with exactly the features they were trained on."""

    @pytest.mark.parametrize("number", [2, 23, 30])
    def test_detection_features_equal_the_golden_values(
        self, shared_folder: Path, number: int
    ) -> None:
        """To 1e-6, row by row, for raw rows with their impossible aspect ratios."""
        golden = pd.read_csv(shared_folder / "golden" / f"detection_features_{number}.csv")
        rows = raw_rows(shared_folder / "gts" / f"{number}.csv")
        features = detection_features(rows).sort_index()
        assert tuple(features.columns) == DETECTION_FEATURES
        assert rows["object_id"].iloc[features.index].tolist() == golden["object_id"].tolist()
        difference = np.abs(features.to_numpy() - golden[list(DETECTION_FEATURES)].to_numpy())
        scale = np.maximum(np.abs(golden[list(DETECTION_FEATURES)].to_numpy()), 1)
        assert (difference / scale).max() < 1e-6

    def test_several_recordings_at_once_equal_each_alone(self) -> None:
        """The scaling is within a recording; the index is the position among all rows."""
        parts = [recording(1, "b").assign(counted=False), recording(2, "c"), recording(4, "a")]
        together = detection_features(pd.concat(parts, ignore_index=True))
        second = detection_features(parts[1])
        third = detection_features(parts[2])
        second.index += len(parts[0])
        third.index += len(parts[0]) + len(parts[1])
        pd.testing.assert_frame_equal(together, pd.concat([second, third]))

    def test_a_measurement_that_is_missing_everywhere_does_not_fail(self) -> None:
        """It says nothing: 0 after scaling."""
        features = detection_features(recording(1, "a").assign(aspect_ratio=np.nan))
        assert (features["aspect_ratio"] == 0).all()
        assert features["area"].nunique() > 10

    def test_tracks_of_one_row_have_no_detection_features(self) -> None:
        """Their velocity is unknown."""
        rows = recording(1, "a").groupby("object_id").head(1)
        assert detection_features(rows).shape == (0, 12)
        assert detection_features(rows.head(0)).shape == (0, 12)

    def test_an_object_is_a_stem_if_more_than_half_of_its_detections_say_so(self) -> None:
        """Two of four are not enough, two of three are; one row alone has no vote."""
        rows = pd.concat(
            [
                recording(1, "a", 1).head(5).assign(object_id=1),
                recording(2, "a", 1).head(4).assign(object_id=2),
                recording(3, "a", 1).head(1).assign(object_id=3),
                recording(4, "a", 1).head(3).assign(object_id=4, counted=False),
            ],
            ignore_index=True,
        )
        model = DetectionVoteClassifier(KnownVotes([1, 1, 0, 0, 1, 1, 0]))
        expected = [False] * 5 + [True] * 4 + [False] * 4
        assert model.predict(rows).tolist() == expected
        backwards = model.predict(rows.iloc[::-1])
        assert backwards.tolist() == expected[::-1]

    def test_a_forest_of_detections_is_wrapped_and_votes_per_object(
        self, two_recordings: pd.DataFrame
    ) -> None:
        """The verdict of each object is the majority of the forest's own predictions."""
        features = detection_features(two_recordings)
        labels = two_recordings["ground_truth"].to_numpy(dtype=bool)
        forest = RandomForestClassifier(10, random_state=0, n_jobs=1)
        forest.fit(features, labels[features.index])
        model = as_row_model(forest)
        assert isinstance(model, DetectionVoteClassifier)
        rows = recording(3, "c.csv", 20)
        new = detection_features(rows)
        votes = pd.Series(forest.predict(new), index=new.index).astype(float)
        majority = votes.groupby(rows["object_id"].iloc[new.index]).mean() > 0.5
        predicted = model.predict(rows)
        assert predicted.tolist() == rows["object_id"].map(majority).tolist()
        assert 0 < predicted.mean() < 1
        reordered = DetectionVoteClassifier(KnownColumnOrder(forest))
        assert np.array_equal(reordered.predict(rows), predicted)

    def test_missing_columns_are_named(self) -> None:
        """The same message as from a StemClassifier."""
        with pytest.raises(ValueError, match="the rows lack the columns area; "):
            DetectionVoteClassifier(KnownVotes([])).predict(recording(1, "a").drop(columns="area"))

    def test_the_first_generation_is_not_trained_again(self) -> None:
        """Only wrapped."""
        with pytest.raises(NotImplementedError, match="use StemClassifier"):
            DetectionVoteClassifier(KnownVotes([])).fit(recording(1, "a"), [])

    def test_a_row_model_is_returned_as_it_is(self, fitted: StemClassifier) -> None:
        """Wrapped twice it would vote on votes."""
        wrapped = DetectionVoteClassifier(KnownVotes([]))
        assert as_row_model(fitted) is fitted
        assert as_row_model(wrapped) is wrapped

    @pytest.mark.parametrize(
        ("pickled", "found"),
        [
            pytest.param({"model": 1}, "holds a dict with no feature names", id="dict"),
            pytest.param(None, "holds a NoneType with no feature names", id="None"),
            pytest.param(
                LogisticRegression().fit(pd.DataFrame({"height": [0, 1], "width": [1, 0]}), [0, 1]),
                "holds a LogisticRegression with the features height, width",
                id="other features",
            ),
            pytest.param(
                LogisticRegression(), "holds a LogisticRegression with no feature names", id="unfit"
            ),
        ],
    )
    def test_anything_else_is_refused_with_the_expected_features(
        self, pickled: object, found: str
    ) -> None:
        """The message names what was found and all twelve."""
        with pytest.raises(ValueError, match=found) as caught:
            as_row_model(pickled)
        assert str(caught.value).endswith(", ".join(DETECTION_FEATURES))


class KnownColumnOrder:
    """A forest behind another order of columns."""

    def __init__(self, forest: RandomForestClassifier) -> None:
        self.forest = forest
        self.feature_names_in_ = np.array(DETECTION_FEATURES[::-1])

    def predict(self, features: pd.DataFrame) -> np.ndarray:
        assert list(features.columns) == list(self.feature_names_in_)
        return self.forest.predict(features[list(DETECTION_FEATURES)])


def labelled(file: str, *objects: tuple[bool, bool | None, str]) -> tuple[pd.DataFrame, list[bool]]:
    """Return rows and predictions: (counted, label, one letter Y or N per row) of each object."""
    rows = [
        {"file": file, "object_id": number, "frames": frame, "counted": counted, "label": label}
        for number, (counted, label, letters) in enumerate(objects)
        for frame in range(len(letters))
    ]
    table = pd.DataFrame(rows)
    table["ground_truth"] = table.pop("label").astype("boolean")
    return table, [letter == "Y" for _, _, letters in objects for letter in letters]


class TestCountErrors:
    """The one metric, worked out by hand."""

    @pytest.mark.parametrize(
        ("objects", "expected"),
        [
            pytest.param([(True, True, "Y"), (True, True, "Y")], (2, 2, 0), id="right"),
            pytest.param(
                [(True, True, "Y"), (True, True, "N"), (True, False, "Y"), (True, False, "N")],
                (2, 2, 0),
                id="errors that cancel",
            ),
            pytest.param(
                [*[(True, True, "Y")] * 9, *[(True, True, "N")] * 3],
                (12, 9, 25),
                id="three missed of twelve",
            ),
            pytest.param(
                [*[(True, True, "Y")] * 10, *[(True, False, "Y")] * 2],
                (10, 12, 20),
                id="two too many of ten",
            ),
            pytest.param(
                [*[(True, True, "Y")] * 9, (True, False, "Y")],
                (9, 10, 10),
                id="nine stems count as ten",
            ),
            pytest.param(
                [(True, True, "Y"), *[(True, False, "Y")] * 3],
                (1, 4, 30),
                id="one stem counts as ten",
            ),
            pytest.param([(True, False, "Y")] * 3, (0, 3, 30), id="no stem counts as ten"),
            pytest.param([(True, False, "N")] * 3, (0, 0, 0), id="no stem, none predicted"),
            pytest.param(
                [(True, True, "Y"), (False, True, "Y"), (False, None, "Y")],
                (1, 1, 0),
                id="uncounted objects are ignored",
            ),
            pytest.param([(False, None, "Y")], (0, 0, 0), id="nothing counted"),
            pytest.param(
                [(True, True, "YYN"), (True, True, "YN"), (True, True, "YNN")],
                (3, 1, 20),
                id="majority of the rows",
            ),
        ],
    )
    def test_the_error_is_as_worked_out_by_hand(
        self, objects: list[tuple[bool, bool | None, str]], expected: tuple[float, ...]
    ) -> None:
        """True and predicted number of stems, and 100 |true - predicted| / max(true, 10)."""
        rows, predicted = labelled("a.csv", *objects)
        errors = count_errors(rows, np.array(predicted))
        assert list(errors.columns) == ["true_count", "predicted_count", "error_percent"]
        assert errors.index.tolist() == ["a.csv"]
        assert errors.to_numpy()[0].tolist() == pytest.approx(expected)

    def test_recordings_are_counted_apart_even_with_equal_ids_and_mixed_rows(self) -> None:
        """In order of appearance, the one that counted nothing included."""
        nothing, no = labelled("z.csv", (False, None, "YY"))
        first, yes = labelled("b.csv", (True, True, "YY"), (True, False, "NN"))
        second, half = labelled("a.csv", (True, True, "NN"), (True, True, "YY"))
        rows = pd.concat([nothing, first, second], ignore_index=True)
        predicted = np.array([*no, *yes, *half])
        order = [0, 9, 2, 5, 4, 7, 6, 3, 8, 1]
        errors = count_errors(rows.iloc[order], predicted[order])
        assert {file: row.tolist() for file, row in errors.iterrows()} == {
            "z.csv": [0, 0, 0],
            "a.csv": [2, 1, 10],
            "b.csv": [1, 1, 0],
        }
        assert errors.index.name == "file"

    def test_one_tiny_recording_does_not_outweigh_fourteen_others(self) -> None:
        """3 % everywhere and one stem counted as five: 5.5 % on average, where it was 29 %."""
        fourteen = [
            labelled(f"{number}.csv", *[(True, True, "Y")] * 97, *[(True, True, "N")] * 3)
            for number in range(14)
        ]
        tiny = labelled("tiny.csv", (True, True, "Y"), *[(True, False, "Y")] * 4)
        tables, predictions = zip(*fourteen, tiny, strict=True)
        errors = count_errors(pd.concat(tables, ignore_index=True), np.concatenate(predictions))
        assert errors["error_percent"].tolist() == pytest.approx([3.0] * 14 + [40.0])
        assert errors["error_percent"].mean() == pytest.approx(82 / 15)

    @pytest.mark.parametrize("shape", [(3,), (5,), (4, 1), ()])
    def test_predictions_of_another_shape_are_refused(self, shape: tuple[int, ...]) -> None:
        """Instead of being stretched or cut."""
        rows, _ = labelled("a.csv", (True, True, "YYYY"))
        with pytest.raises(ValueError, match="4 rows but predictions of shape"):
            count_errors(rows, np.zeros(shape, dtype=bool))


@pytest.fixture(scope="module")
def sample_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder of six synthetic recordings."""
    folder = tmp_path_factory.mktemp("recordings")
    write_recordings(folder, 6)
    return folder


def trained_on(folder: Path, n_folds: int = 5, n_jobs: int = 1, seed: int = 42) -> TrainedModel:
    """Train on every recording of a folder, through the pipeline."""
    trained, _ = train(
        load_training_module(Settings()),
        sorted(folder.glob("*.csv")),
        n_folds=n_folds,
        random_state=seed,
        resources=Resources(n_jobs=n_jobs),
    )
    return trained


class TestTraining:
    """One model of all recordings, and an honest error of each."""

    @pytest.mark.usefixtures("fast_training")
    def test_the_result_describes_every_recording(self, sample_folder: Path) -> None:
        """Counts from the files themselves; the mean is the mean of the column."""
        result = trained_on(sample_folder, n_folds=3)
        names = [f"recording_{number:02d}.csv" for number in range(1, 7)]
        tables = {name: pd.read_csv(sample_folder / name) for name in names}
        stems = [
            tables[name].loc[tables[name]["ground_truth"], "object_id"].nunique() for name in names
        ]
        assert result.out_of_fold.index.tolist() == names
        assert result.out_of_fold["true_count"].tolist() == stems
        assert result.in_sample["true_count"].tolist() == stems
        differences = (result.out_of_fold["predicted_count"] - stems).abs()
        assert min(stems) >= 10
        expected = [100 * d / s for d, s in zip(differences, stems, strict=True)]
        assert result.out_of_fold["error"].tolist() == pytest.approx(expected)
        assert result.mean_error == pytest.approx(sum(expected) / 6)
        assert result.mean_error < 25
        assert result.row_counts == {name: len(rows) for name, rows in tables.items()}
        assert result.data_quality == {}

    @pytest.mark.usefixtures("fast_training")
    def test_the_model_is_the_one_whose_in_sample_errors_are_given(
        self, sample_folder: Path
    ) -> None:
        """It predicts raw rows, and its example is such rows."""
        result = trained_on(sample_folder, n_folds=3)
        rows = pd.concat([read_ground_truth(path) for path in sorted(sample_folder.iterdir())])
        errors = count_errors(rows, result.model.predict(rows))
        pd.testing.assert_frame_equal(
            errors.rename(columns={"error_percent": "error"}), result.in_sample
        )
        assert result.input_example.columns.tolist() == [*HEADER.split(",")[:8], "file"]
        assert result.model.predict(result.input_example).shape == (10,)

    @pytest.mark.usefixtures("fast_training")
    def test_a_recording_is_scored_by_a_model_that_never_saw_it(
        self, sample_folder: Path, tmp_path: Path
    ) -> None:
        """Its labels, turned round, change what it teaches, but not how it is predicted."""
        folder = tmp_path / "flipped"
        shutil.copytree(sample_folder, folder)
        path = folder / "recording_02.csv"
        rows = pd.read_csv(path)
        rows.assign(ground_truth=~rows["ground_truth"]).to_csv(path, index=False)
        before = trained_on(sample_folder, n_folds=3)
        after = trained_on(folder, n_folds=3)

        def predicted(errors: pd.DataFrame) -> int:
            return int(errors["predicted_count"].to_dict()[path.name])

        assert predicted(after.out_of_fold) == predicted(before.out_of_fold)
        assert predicted(after.in_sample) != predicted(before.in_sample)
        assert after.mean_error > before.mean_error

    @pytest.mark.slow
    def test_the_number_of_processes_does_not_change_the_result(self, sample_folder: Path) -> None:
        """With the default classifier, in this process and in two others."""
        alone, spread = (trained_on(sample_folder, n_folds=2, n_jobs=n_jobs) for n_jobs in (1, 2))
        pd.testing.assert_frame_equal(alone.out_of_fold, spread.out_of_fold)
        pd.testing.assert_frame_equal(alone.in_sample, spread.in_sample)
        rows = recording(77, "new.csv")
        assert np.array_equal(alone.model.predict_proba(rows), spread.model.predict_proba(rows))

    @pytest.mark.usefixtures("fast_training")
    def test_recordings_that_counted_nothing_are_scored_too(self, tmp_path: Path) -> None:
        """Even where all recordings of a fold are such: nothing true, nothing predicted."""
        write_recordings(tmp_path, 2)
        for name in ("x.csv", "y.csv"):
            make_recording(9, n_tracks=3).assign(counted=False).to_csv(tmp_path / name, index=False)
        result = trained_on(tmp_path, n_folds=4)
        assert result.out_of_fold.loc[["x.csv", "y.csv"]].to_numpy().tolist() == [[0, 0, 0]] * 2

    @pytest.mark.usefixtures("fast_training")
    def test_impossible_measurements_are_noted(self, tmp_path: Path) -> None:
        """By recording, for the log and the report."""
        paths = write_recordings(tmp_path, 2)
        rows = pd.read_csv(paths[1])
        rows.loc[3:7, "scores"] = 3.0
        rows.to_csv(paths[1], index=False)
        result = trained_on(tmp_path, n_folds=2)
        note = f"scores: 5 of {len(rows)} values missing or impossible"
        assert result.data_quality == {"recording_02.csv": note}

    @pytest.mark.parametrize(
        ("count", "n_folds", "message"),
        [
            (0, 5, "there are 0 recordings; 5 folds need at least 5"),
            (4, 5, "there are 4 recordings; 5 folds need at least 5"),
            (1, 1, "there are 1 recordings; 1 folds need at least 2"),
        ],
    )
    def test_too_few_recordings_are_refused(
        self, tmp_path: Path, count: int, n_folds: int, message: str
    ) -> None:
        """Before any of them is read."""
        for number in range(count):
            (tmp_path / f"{number}.csv").write_text("not read")
        with pytest.raises(PipelineError, match=message):
            trained_on(tmp_path, n_folds=n_folds)

    def test_recordings_with_one_kind_of_label_are_refused(self, tmp_path: Path) -> None:
        """Nothing can be learnt from stems alone."""
        for number in range(2):
            rows = make_recording(number, n_tracks=3).assign(ground_truth=True)
            rows.to_csv(tmp_path / f"{number}.csv", index=False)
        with pytest.raises(PipelineError, match="have the same label"):
            trained_on(tmp_path, n_folds=2)

    def test_an_invalid_recording_stops_training_by_name(self, tmp_path: Path) -> None:
        """No recording is left out without a word."""
        write_recordings(tmp_path, 2)
        (tmp_path / "bad.csv").write_text(with_cell("ground_truth", "maybe"))
        with pytest.raises(PipelineError, match=r"bad\.csv: line 3, column ground_truth"):
            trained_on(tmp_path, n_folds=2)


@pytest.fixture(scope="module")
def trained_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a home with five recordings, one with a note, on which the script was run."""
    home = tmp_path_factory.mktemp("home")
    paths = write_recordings(home / "used_gts", 5)
    rows = pd.read_csv(paths[0])
    rows.loc[0, "scores"] = 2.0
    rows.to_csv(paths[0], index=False)
    done = script("train_classification_model.py", home=home)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
    (home / "stdout").write_text(done.stdout)
    (home / "stderr").write_text(done.stderr)
    return home


@pytest.mark.slow
class TestCommandLine:
    """The script trains the first model, once, and says what it did."""

    @pytest.fixture
    def pickle(self, trained_home: Path) -> Path:
        """Give the path of the model that the script wrote."""
        return trained_home / "model" / "stem_classifier_postprocessing_v1.pkl"

    def test_it_prints_the_errors_and_where_the_model_is(
        self, trained_home: Path, pickle: Path
    ) -> None:
        """A line per recording, the mean, the path; notes go to stderr."""
        lines = (trained_home / "stdout").read_text().splitlines()
        assert [line.split()[0] for line in lines[2:7]] == [
            f"recording_{number:02d}.csv" for number in range(1, 6)
        ]
        assert lines[7].startswith("mean error ")
        assert lines[8] == f"wrote {pickle}"
        assert (
            (trained_home / "stderr")
            .read_text()
            .startswith("data quality: recording_01.csv: scores: 1")
        )

    def test_the_pickle_holds_an_importable_class_and_predicts(self, pickle: Path) -> None:
        """Its class belongs to the module, not to the script that ran; no left-over beside it."""
        model = joblib.load(pickle)
        assert type(model) is StemClassifier
        assert model.predict(recording(9, "new.csv")).any()
        beside = [path.name for path in pickle.parent.iterdir() if path != pickle]
        assert beside == [f"{pickle.name}.out_of_fold.json"]

    def test_an_existing_model_is_not_replaced(self, trained_home: Path, pickle: Path) -> None:
        """Exit status 1, one line that names the way out, the same bytes."""
        before = pickle.read_bytes()
        done = script("train_classification_model.py", home=trained_home)
        assert done.returncode == 1
        assert done.stderr == f"error: {pickle} exists; --force replaces it\n"
        assert done.stdout == ""
        assert pickle.read_bytes() == before

    def test_a_missing_folder_is_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Exit status 1, no traceback, nothing written."""
        assert main(["--home", str(tmp_path)]) == 1
        stderr = capsys.readouterr().err
        assert stderr.startswith(f"error: {tmp_path / 'used_gts'} is not a folder; ")
        assert stderr.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.usefixtures("fast_training")
    @pytest.mark.slow
    def test_force_replaces_the_model_and_takes_another_folder(
        self, tmp_path: Path, sample_folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A folder can be named; nothing of the old pickle stays."""
        target = tmp_path / "model" / "stem_classifier_postprocessing_v1.pkl"
        target.parent.mkdir()
        target.write_text("old")
        assert main(["--home", str(tmp_path), "--force", str(sample_folder)]) == 0
        assert isinstance(joblib.load(target), StemClassifier)
        assert "recording_06.csv" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            pytest.param("", "error: cannot train: 0.csv: is empty", id="invalid file"),
            pytest.param(None, "error: {folder} holds 0 recordings", id="too few"),
        ],
    )
    def test_recordings_that_cannot_be_used_are_one_line(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        content: str | None,
        message: str,
    ) -> None:
        """Exit status 1 and no model."""
        folder = tmp_path / "used_gts"
        folder.mkdir()
        for number in range(5 if content is not None else 0):
            (folder / f"{number}.csv").write_text(content or "")
        assert main(["--home", str(tmp_path)]) == 1
        stderr = capsys.readouterr().err
        assert stderr.startswith(message.format(folder=folder))
        assert stderr.count("\n") == 1
        assert not (tmp_path / "model").exists()

    def test_wrong_usage_is_exit_status_2(self, capsys: pytest.CaptureFixture[str]) -> None:
        """As argparse does it."""
        with pytest.raises(SystemExit) as caught:
            main(["--no-such-option"])
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert "train_classification_model.py --help" in error
        assert error.count("\n") == 1

    @pytest.mark.usefixtures("fast_training")
    @pytest.mark.slow
    def test_a_write_that_fails_leaves_the_old_model(
        self,
        tmp_path: Path,
        sample_folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """A full disk: neither half a pickle nor a temporary file."""
        target = tmp_path / "model" / "stem_classifier_postprocessing_v1.pkl"
        target.parent.mkdir()
        target.write_text("old")

        def fail(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
        assert main(["--home", str(tmp_path), "--force", str(sample_folder)]) == 1
        assert "No space left" in capsys.readouterr().err
        assert [path.name for path in target.parent.iterdir()] == [target.name]
        assert target.read_text() == "old"

    @pytest.mark.usefixtures("fast_training")
    def test_the_mean_is_the_last_word_and_json_has_the_table(
        self, tmp_path: Path, sample_folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """For programs: the error of each recording and their mean."""
        words = [
            "--home",
            str(tmp_path),
            "--json",
            "--n-jobs",
            "1",
            "--n-folds",
            "3",
            "--random-state",
            "7",
        ]
        assert main([*words, str(sample_folder)]) == 0
        document = json.loads(capsys.readouterr().out)
        expected = trained_on(sample_folder, n_folds=3, seed=7)
        assert document["mean_error"] == expected.mean_error
        errors = {one["file"]: one["error"] for one in document["by_recording"]}
        assert errors == expected.out_of_fold["error"].to_dict()


@pytest.mark.slow
class TestAccuracy:
    """What the design asks of the model, on the real recordings."""

    def test_the_held_out_error_is_small(self, real_recordings: list[Path]) -> None:
        """Mean over seeds 0-2 of the error of recordings that the model never saw."""
        folder = real_recordings[0].parent
        errors = [trained_on(folder, n_jobs=-1, seed=seed).mean_error for seed in range(3)]
        mean = float(np.mean(errors))
        print(f"\nheld-out mean error {mean:.2f} % ({', '.join(f'{e:.2f}' for e in errors)})")
        assert mean <= 5.5

    def test_a_model_of_the_older_season_keeps_its_feet_in_the_newer(
        self, real_recordings: list[Path]
    ) -> None:
        """Trained on the 18 older recordings, scored on the 15 newer ones."""
        older = [path for path in real_recordings if int(path.stem) in OLDER_RECORDINGS]
        newer = [path for path in real_recordings if path not in older]
        assert (len(older), len(newer)) == (18, 15)
        old_rows = pd.concat([read_ground_truth(path) for path in older])
        new_rows = pd.concat([read_ground_truth(path) for path in newer])
        model = StemClassifier().fit(old_rows, old_rows["ground_truth"])
        error = count_errors(new_rows, model.predict(new_rows))["error_percent"].mean()
        print(f"\ntrained on older, error on newer recordings {error:.2f} %")
        assert error < 25


def test_the_module_under_test_is_the_one_of_this_checkout() -> None:
    """Not an installed or a copied one."""
    assert Path(main.__code__.co_filename) == ROOT / "train_classification_model.py"
