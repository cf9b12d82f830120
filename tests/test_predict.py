"""`train_classification_model.py predict`: recordings that nobody has checked."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, make_home
from sample_gts import make_recording

import model_registry
import train_classification_model as training
from pipeline_settings import Settings
from training_module import load_training_module

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

    def run(*files: Path | str, home: Path = home) -> tuple[int, str, list[str]]:
        status = training.main(["predict", "--home", str(home), *map(str, files)])
        printed = capsys.readouterr()
        return status, printed.out, printed.err.splitlines()

    return run


def production(home: Path) -> Any:
    """Return the model in production."""
    settings = Settings(home=home)
    registry = model_registry.open_registry(settings)
    return registry.load(registry.champion(), load_training_module(settings))


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
        assert tuple(verdicts.columns) == training.VERDICT_COLUMNS
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
        assert line.startswith(
            f"{tracked}: {counted.sum()} counted by the tracker, "
            f"{verdicts['stem'].sum()} after correction"
        )
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
        files = training.recording_paths(shared_folder / "gts")
        status, table, said = predict(*files)
        verdicts = pd.read_csv(io.StringIO(table))
        model = production(home)
        assert status == 0
        assert len(said) == len(files)
        for path in files:
            rows = training.read_ground_truth(path)
            stems = rows.loc[np.asarray(model.predict(rows), bool), "object_id"].nunique()
            assert verdicts.loc[verdicts["file"] == str(path), "stem"].sum() == stems


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

    def test_nobody_reads_any_more(self, home: Path, tracked: Path) -> None:
        """As under `| head -1`: one line, no traceback."""
        command = [sys.executable, str(ROOT / "train_classification_model.py"), "predict"]
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
