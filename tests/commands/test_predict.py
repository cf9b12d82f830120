"""`predict`: recordings that nobody has checked, by any training module."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grain_quality
import numpy as np
import pandas as pd
import pytest
from conftest import DOMAINS, OWN_MODEL, ROOT, flags_of, make_home
from make_samples import make_sample
from sample_gts import make_recording

import train_classification_model as stems
from pipeline_orchestrator import main
from retraining.commands.predict import as_csv
from retraining.files import waiting_names
from retraining.registry import open_registry
from retraining.settings import Settings
from retraining.training import load_training_module

Run = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def tracked(tmp_path: Path) -> Path:
    """Give a recording as the tracker writes it: one object not counted, no labels."""
    rows = make_recording(5, "old", 12).drop(columns="ground_truth")
    rows["counted"] = rows["object_id"] != rows["object_id"].iloc[0]
    path = tmp_path / "tracked.csv"
    rows.to_csv(path, index=False)
    return path


@pytest.fixture
def predict(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Give the command on a registered home: exit status, table, lines for a person."""

    def run(
        *files: Path | str, home: Path = home, words: Sequence[str] = ()
    ) -> tuple[int, str, list[str]]:
        status = main(["predict", "--home", str(home), *words, *map(str, files)])
        printed = capsys.readouterr()
        return status, printed.out, printed.err.splitlines()

    return run


def without_estimate(said: Sequence[str]) -> list[str]:
    """Return lines without what is told before labels: the estimate is there, and is left out."""
    assert all(" % unsure; " in one for one in said)
    return [re.sub(r": (\d+, )?\d+ % unsure; ", ": ", one) for one in said]


def production(home: Path) -> Any:
    """Return the model in production."""
    settings = Settings(home=home)
    registry = open_registry(settings)
    return registry.models.load(registry.production.champion(), load_training_module(settings))


class TestVerdicts:
    """One line for each object, one count for each file."""

    def test_every_object_has_the_verdict_of_production(
        self, predict: Run, home: Path, tracked: Path
    ) -> None:
        """Its frames, its probability, and the corrected count."""
        status, table, said = predict(tracked)
        verdicts = pd.read_csv(io.StringIO(table))
        rows = pd.read_csv(tracked)
        model = production(home)
        rows["stem"] = model.predict(rows)
        rows["probability"] = model.predict_proba(rows)[:, 1]
        objects = rows.groupby("object_id")
        assert status == 0
        assert tuple(verdicts.columns) == stems.VERDICT_COLUMNS
        assert verdicts["object_id"].tolist() == list(objects.groups)
        assert verdicts["first_frame"].tolist() == objects["frames"].min().tolist()
        assert verdicts["last_frame"].tolist() == objects["frames"].max().tolist()
        assert verdicts["counted"].tolist() == objects["counted"].first().tolist()
        assert verdicts["stem"].tolist() == objects["stem"].first().tolist()
        counted = verdicts["counted"]
        expected = objects["probability"].first().to_numpy()[counted]
        assert verdicts.loc[counted, "probability"].to_numpy() == pytest.approx(expected, abs=1e-4)
        assert verdicts.loc[~counted, "probability"].isna().all()
        (line,) = said
        n_stems = verdicts["stem"].sum()
        assert without_estimate([line])[0].startswith(
            f"{tracked}: {counted.sum()} counted by the tracker, {n_stems} after correction"
        )
        assert line.startswith(f"{tracked}: {n_stems}, ")
        assert 0 < verdicts["stem"].sum() < counted.sum()

    def test_labels_change_nothing(self, predict: Run, tracked: Path) -> None:
        """Nor does a label that no ground truth file may have."""
        _, without, _ = predict(tracked)
        rows = pd.read_csv(tracked)
        rows.assign(ground_truth="perhaps").to_csv(tracked, index=False)
        assert predict(tracked)[1] == without

    def test_without_the_column_counted_every_object_counts(
        self, predict: Run, tracked: Path
    ) -> None:
        """As over REST; the same verdicts as if the column said so."""
        rows = pd.read_csv(tracked)
        rows.assign(counted=True).to_csv(tracked, index=False)
        _, expected, said = predict(tracked)
        rows.drop(columns="counted").to_csv(tracked, index=False)
        assert predict(tracked) == (0, expected, said)

    def test_a_link_and_the_damage_of_an_export(self, predict: Run, tracked: Path) -> None:
        """Whoever names a file may name a link to it; the header of an UTF-7 export is mended."""
        _, expected, _ = predict(tracked)
        content = tracked.read_text()
        header, _, rest = content.partition("\n")
        tracked.write_text(header.replace("_", "+AF8-") + "\n" + rest)
        link = tracked.with_name("link.csv")
        link.symlink_to(tracked)
        assert predict(link)[1] == expected.replace(str(tracked), str(link))

    def test_real_recordings(self, predict: Run, home: Path, shared_folder: Path) -> None:
        """The counts are those of the model on the whole rows."""
        folder = shared_folder / "gts"
        files = [folder / name for name in waiting_names(folder)]
        status, table, said = predict(*files)
        verdicts = pd.read_csv(io.StringIO(table))
        model = production(home)
        assert status == 0
        assert len(said) == len(files)
        for path in files:
            rows = stems.read_ground_truth(path)
            left = rows.loc[np.asarray(model.predict(rows), bool), "object_id"].nunique()
            assert verdicts.loc[verdicts["file"] == str(path), "stem"].sum() == left


class TestRefusals:
    """One line each, exit status 1, and the other files go on."""

    def test_a_bad_file_does_not_stop_the_others(
        self, predict: Run, tracked: Path, tmp_path: Path
    ) -> None:
        """Missing, a folder, no CSV, without a column, with text in a number, a loop of links."""
        rows = pd.read_csv(tracked)
        rows.drop(columns="area").to_csv(tmp_path / "column.csv", index=False)
        rows.assign(area="large").to_csv(tmp_path / "text.csv", index=False)
        (tmp_path / "empty.csv").touch()
        (tmp_path / "loop.csv").symlink_to("loop.csv")
        bad = [
            *(tmp_path / "missing.csv", tmp_path, tmp_path / "empty.csv"),
            *(tmp_path / "column.csv", tmp_path / "text.csv", tmp_path / "loop.csv"),
        ]
        alone = predict(tracked)
        status, table, said = predict(*bad, tracked)
        assert (status, table, said[-1]) == (1, alone[1], alone[2][0])
        for line, text in zip(
            said,
            [
                *("missing.csv: No such file or directory", "is not a regular file"),
                *("empty.csv: is empty", "column.csv: lacks the column area"),
                *("text.csv: line 2, column area: 'large' is not a number", "loop.csv: "),
            ],
            strict=False,
        ):
            assert line.startswith(f"error: {tmp_path}")
            assert text in line

    def test_no_model(self, predict: Run, tracked: Path, tmp_path: Path) -> None:
        """One line that says what to do first; nothing is created."""
        bare = make_home(tmp_path / "bare")
        before = sorted(bare.rglob("*"))
        status, table, said = predict(tracked, home=bare)
        assert (status, table) == (1, "")
        assert "register_first_model.py" in said[-1]
        assert sorted(bare.rglob("*")) == before

    @pytest.mark.slow
    def test_nobody_reads_any_more(self, home: Path, tracked: Path) -> None:
        """As under `| head -1`: one line, no traceback."""
        command = [sys.executable, str(ROOT / "pipeline_orchestrator.py"), "predict"]
        with subprocess.Popen(
            [*command, "--home", str(home), str(tracked)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            said = process.stderr.read()
        assert said == "error: nobody reads standard output any more\n"
        assert process.returncode == 1

    def test_the_former_command_names_the_new_one(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Exit status 2, one line."""
        with pytest.raises(SystemExit) as caught:
            stems.main(["predict", "recording.csv"])
        assert caught.value.code == 2
        said = capsys.readouterr().err
        assert "python pipeline_orchestrator.py predict FILE" in said
        assert said.count("\n") == 1


WORDS = flags_of(DOMAINS["grain"].settings)

own_model = pytest.mark.parametrize("domain", ["grain"], indirect=True)


def write_grown(folder: Path, source: str) -> list[str]:
    """Write a copy of the template that says more; return the flags that name it."""
    template = (OWN_MODEL / "grain_quality.py").read_text()
    path = folder / "grain_quality.py"
    path.write_text(f"{template}\n\n{source}")
    return flags_of({**DOMAINS["grain"].settings, "training_module": path})


@own_model
class TestAnyModule:
    """Rows instead of objects, in the words of the module or in none."""

    @pytest.fixture
    def sample(self, tmp_path: Path) -> Path:
        """Give a sample of grain that no inspector has seen."""
        path = tmp_path / "sample.csv"
        make_sample(9, "old").drop(columns="quality").to_csv(path, index=False)
        return path

    @pytest.mark.slow
    def test_each_row_has_its_prediction(self, predict: Run, sample: Path) -> None:
        """Without words of its own: file, number of the row, prediction."""
        status, table, said = predict(sample, words=WORDS)
        found = pd.read_csv(io.StringIO(table))
        truth = make_sample(9, "old")["quality"]
        assert status == 0
        assert list(found.columns) == ["file", "row", "prediction"]
        assert found["row"].tolist() == list(range(1, len(truth) + 1))
        assert set(found["file"]) == {str(sample)}
        assert (found["prediction"] == truth).mean() > 0.9
        assert without_estimate(said) == [f"{sample}: {len(truth)} rows"]

    def test_one_header_for_many_files(self, predict: Run, sample: Path, tmp_path: Path) -> None:
        """Also if the first file is bad."""
        bad = tmp_path / "bad.csv"
        bad.write_text("no sample\n")
        _, alone, _ = predict(sample, words=WORDS)
        header, _, rows = alone.partition("\n")
        status, table, said = predict(bad, sample, sample, words=WORDS)
        assert (status, table) == (1, f"{header}\n{rows}{rows}")
        assert said[0].startswith(f"error: {bad}: each of these columns must be there once: ")

    @pytest.mark.slow
    def test_a_champion_of_other_code(self, predict: Run, sample: Path, tmp_path: Path) -> None:
        """It predicts in a process of its own, the same."""
        _, expected, _ = predict(sample, words=WORDS)
        code = str(OWN_MODEL / "grain_quality.py")
        del sys.modules["grain_quality"]
        try:
            words = write_grown(tmp_path, "EXTRA = 1\n")
            assert words[1] != code
            assert predict(sample, words=words)[:2] == (0, expected)
        finally:
            sys.modules["grain_quality"] = grain_quality

    def test_the_words_of_the_module(
        self, predict: Run, sample: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A table of its own, with four decimals of a probability, and a line of its own."""

        def verdicts(rows: pd.DataFrame, model: Any) -> pd.DataFrame:
            shares = model.predict_proba(rows[list(grain_quality.FEATURES)]).max(axis=1)
            return pd.DataFrame({"number": rows.index, "probability": shares})

        monkeypatch.setattr(grain_quality, "verdicts", verdicts, raising=False)
        monkeypatch.setattr(
            grain_quality,
            "verdicts_in_words",
            lambda rows, _: f"{len(rows)}\ngrains",
            raising=False,
        )
        status, table, said = predict(sample, words=WORDS)
        lines = table.splitlines()
        assert (status, lines[0]) == (0, "number,probability")
        assert all(len(line.split(".")[1]) == 4 for line in lines[1:])
        assert without_estimate(said) == [f"{sample}: {len(lines) - 1}\\ngrains"]

    def test_nothing_that_a_spreadsheet_would_run(
        self, predict: Run, sample: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Formulas get an apostrophe, control characters become escapes, numbers stay."""
        monkeypatch.chdir(sample.parent)
        named = sample.rename(sample.with_name("=cmd('x').csv")).name

        def verdicts(rows: pd.DataFrame, _: Any) -> pd.DataFrame:
            texts = ["@x", "+1", "-0.5", "a\x1b[31m", "plain"]
            return pd.DataFrame({"file": rows["file"].iloc[0], "text": texts})

        monkeypatch.setattr(grain_quality, "verdicts", verdicts, raising=False)
        status, table, said = predict(named, words=WORDS)
        assert status == 0
        assert table.splitlines() == [
            "file,text",
            "'=cmd('x').csv,'@x",
            "'=cmd('x').csv,+1",
            "'=cmd('x').csv,-0.5",
            r"'=cmd('x').csv,a\x1b[31m",
            "'=cmd('x').csv,plain",
        ]
        assert without_estimate(said) == [f"{named}: {len(make_sample(9, 'old'))} rows"]
        status, table, _ = predict("--raw", named, words=WORDS)
        assert (status, table.splitlines()[1]) == (0, '"=cmd(\'x\').csv","@x"')
        assert "\x1b[31m" in table

    @pytest.mark.parametrize(
        ("make", "status", "text"),
        [
            (lambda rows, _: rows.wrong, 1, "verdicts fails: AttributeError"),
            (lambda rows, _: None, 1, "verdicts returned no table but NoneType"),
        ],
        ids=["fails", "no table"],
    )
    def test_a_mistake_of_the_module(
        self,
        predict: Run,
        sample: Path,
        monkeypatch: pytest.MonkeyPatch,
        make: Any,
        status: int,
        text: str,
    ) -> None:
        """It ends there with one line: every file would show it."""
        monkeypatch.setattr(grain_quality, "verdicts", make, raising=False)
        found, table, said = predict(sample, sample, words=WORDS)
        assert (found, table) == (status, "")
        (line,) = said
        assert line.startswith("error: grain_quality.py")
        assert text in line

    def test_rows_that_the_model_refuses(
        self, predict: Run, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """That file is to blame, and the others go on."""

        def verdicts(rows: pd.DataFrame, _: Any) -> pd.DataFrame:
            if rows["file"].iloc[0].endswith("odd.csv"):
                raise ValueError("odd rows")
            return pd.DataFrame({"rows": [len(rows)]})

        monkeypatch.setattr(grain_quality, "verdicts", verdicts, raising=False)
        odd = tmp_path / "odd.csv"
        odd.write_bytes(sample.read_bytes())
        status, table, said = predict(odd, sample, words=WORDS)
        assert (status, table.splitlines()[0]) == (1, "rows")
        assert said[0] == f"error: {odd}: odd rows"


class TestSpreadsheet:
    """`as_csv`: whoever names a file or a column runs nothing in the spreadsheet that opens it."""

    @pytest.mark.parametrize(
        ("text", "cell"),
        [
            *(("=1+1", "'=1+1"), ("+x", "'+x"), ("-x", "'-x"), ("@x", "'@x")),
            *(("\t=1", r"\t=1"), ("\r=1", r"\r=1"), ("  =1", "'  =1"), ("\uff1d1", "'\uff1d1")),
            *(("\uff0b1", "'\uff0b1"), ("\uff0d1", "'\uff0d1"), ("\uff20x", "'\uff20x")),
            *(("'=1", "''=1"), ('"=1', "'\"=1"), ("a;=cmd|' /C calc'!A0", "a;'=cmd|' /C calc'!A0")),
            *(("a; @x", "a;' @x"), ("-inf", "'-inf"), ("+1e5x", "'+1e5x"), ("-1_0", "'-1_0")),
            *(("-0.5", "-0.5"), ("+1", "+1"), ("1e-5", "1e-5"), (" -2 ", " -2 "), (".5", ".5")),
            *(("a-b=c@d", "a-b=c@d"), ("a;b", "a;b"), ("\x1b[31m", r"\x1b[31m"), ("", "")),
            ("a\n2026-01-01 INFO promoted", r"a\n2026-01-01 INFO promoted"),
        ],
    )
    def test_no_cell_and_no_header_is_a_formula(self, text: str, cell: str) -> None:
        """Each kind, in a cell, in the name of a column, and in a cell that is no text itself."""

        class Named:
            def __str__(self) -> str:
                return text

        table = pd.DataFrame({text: [text], "other": [Named()], "kind": pd.Categorical([text])})
        header, lines = as_csv(table)
        assert next(csv.reader([header])) == [cell, "other", "kind"]
        assert next(csv.reader(io.StringIO(lines))) == [cell, cell, cell]
        raw = next(csv.reader(io.StringIO(as_csv(table, raw=True)[1], newline="")))
        assert raw == [text, text, text]

    def test_numbers_and_times_stay_what_they_are(self) -> None:
        """Negative ones, missing ones, in columns of objects too."""
        table = pd.DataFrame(
            {
                "probability": [-0.5, np.nan],
                "integer": [-1, 2],
                "object": pd.Series([-1.5, None], dtype=object),
                "flag": [True, False],
                "day": pd.to_datetime(["2026-01-01", "NaT"]),
            }
        )
        header, lines = as_csv(table)
        assert header == "probability,integer,object,flag,day"
        assert lines == "-0.5000,-1,-1.5,True,2026-01-01\n,2,,False,\n"
        raw = "\n".join(as_csv(table, raw=True))
        pd.testing.assert_frame_equal(
            pd.read_csv(io.StringIO(raw)), pd.read_csv(io.StringIO(f"{header}\n{lines}"))
        )
