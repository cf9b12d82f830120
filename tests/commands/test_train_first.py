"""`python train_classification_model.py`: a first model, and what is known of its errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from conftest import make_home, train_small_models
from sample_gts import write_recordings
from test_json import documented

from retraining.commands import train_first as command
from retraining.commands.train_first import (
    KnownErrors,
    as_table,
    errors_of_pickle,
    errors_path,
    train_first,
)
from retraining.errors import PipelineError
from retraining.files import hash_file
from retraining.settings import Settings
from retraining.training import load_training_module
from train_classification_model import StemClassifier, main

PICKLE = "model/stem_classifier_postprocessing_v1.pkl"
FAST = ("--n-jobs", "1")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Give a home with five recordings."""
    home = make_home(tmp_path / "home")
    write_recordings(home / "used_gts", 5)
    return home


class TestTheScript:
    """What tests/test_train_classification_model.py does not say of it."""

    @pytest.mark.usefixtures("fast_training")
    def test_what_it_prints_and_writes(
        self, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The unit, a line per recording, the mean, the path; both files are the owner's alone."""
        assert main(["--home", str(home), *FAST]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["true_count", "predicted_count", "error", "[%]"]
        assert [line.split()[0] for line in lines[2:7]] == [
            f"recording_{number:02d}.csv" for number in range(1, 6)
        ]
        assert lines[7].startswith("mean error ")
        assert lines[7].endswith(" %, each recording scored by a model that never saw it")
        assert lines[8:] == [f"wrote {home / PICKLE}"]
        names = sorted(path.name for path in (home / "model").iterdir())
        assert names == [Path(PICKLE).name, f"{Path(PICKLE).name}.out_of_fold.json"]
        modes = {path.stat().st_mode & 0o777 for path in (home / "model").iterdir()}
        assert modes == {0o600}

    def test_too_few_recordings(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Said of the folder, with the way out; nothing is written."""
        assert main(["--home", str(home), "--n-folds", "6"]) == 1
        assert capsys.readouterr().err == (
            f"error: {home / 'used_gts'} holds 5 recordings; 6 folds need at least 6: add "
            "recordings or lower --n-folds\n"
        )
        assert list((home / "model").iterdir()) == []

    @pytest.mark.usefixtures("fast_training")
    def test_as_json(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """One document: the table and the mean; folds and seed as the flags say."""
        words = ["--home", str(home), "--json", "--n-folds", "2", "--random-state", "7", *FAST]
        assert main(words) == 0
        document = json.loads(capsys.readouterr().out)
        assert set(document) == {"schema_version", *documented("train_classification_model.py")}
        rows = document["by_recording"]
        assert [one["file"] for one in rows] == [f"recording_{n:02d}.csv" for n in range(1, 6)]
        assert set(rows[0]) == {"file", "true_count", "predicted_count", "error"}
        assert document["mean_error"] == pytest.approx(np.mean([one["error"] for one in rows]))
        assert (document["unit"], document["pickle"]) == ("%", str(home / PICKLE))
        known = json.loads(errors_path(home / PICKLE).read_bytes())
        assert (known["n_folds"], known["random_state"]) == (2, 7)

    @pytest.mark.usefixtures("fast_training")
    def test_the_module_is_this_one_whatever_the_environment_says(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another home's cron sets PIPELINE_TRAINING_MODULE."""
        monkeypatch.setenv("PIPELINE_TRAINING_MODULE", "/nowhere/other.py")
        assert main(["--home", str(home), *FAST]) == 0
        assert isinstance(joblib.load(home / PICKLE), StemClassifier)


@pytest.mark.usefixtures("fast_training")
class TestWriting:
    """Whole or not at all."""

    def test_a_death_between_both_files_is_noticed(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The errors of the pickle before belong to that one."""
        settings = Settings(home=home, n_jobs=1, n_folds=2)
        train_first(settings)
        before = errors_path(home / PICKLE).read_bytes()
        write_recordings(home / "used_gts", 1, "new", seed=5, prefix="more")

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(KnownErrors, "of", die)
        with pytest.raises(KeyboardInterrupt):
            train_first(settings, force=True)
        assert errors_path(home / PICKLE).read_bytes() == before
        assert known_errors(home) is None

    def test_a_recording_that_changes_meanwhile(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody could say what was learnt: nothing is written."""
        settings = Settings(home=home, n_jobs=1, n_folds=2)
        hashes = iter(["before"] * 5 + ["after"] * 5)
        monkeypatch.setattr(command, "hash_file", lambda _: next(hashes))
        with pytest.raises(PipelineError, match="changed while this ran; run again"):
            train_first(settings)
        assert list((home / "model").iterdir()) == []


def known_errors(home: Path, **other: Any) -> KnownErrors | None:
    """Return what registration believes of the errors of the pickle."""
    pickle = home / PICKLE
    return errors_of_pickle(
        pickle,
        other.get("pickle_sha256", hash_file(pickle)),
        load_training_module(Settings(home=home)),
    )


def change(path: Path, **values: Any) -> None:
    """Change fields of the file beside a pickle."""
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **values}))


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a home with a pickle of our own training."""
    home = make_home(tmp_path_factory.mktemp("trained") / "home")
    write_recordings(home / "used_gts", 5)
    with pytest.MonkeyPatch.context() as patch:
        train_small_models(patch)
        train_first(Settings(home=home, n_jobs=1, n_folds=2))
    return home


@pytest.mark.usefixtures("fast_training")
class TestKnownErrors:
    """What lies beside a pickle is believed where it belongs to it, and holds no code."""

    @pytest.fixture
    def trained(self, trained_once: Path, tmp_path: Path) -> Path:
        """Give a copy of it."""
        return Path(shutil.copytree(trained_once, tmp_path / "trained"))

    def test_it_belongs_to_its_pickle_and_recordings(self, trained: Path) -> None:
        """Every recording by its content, under whatever name."""
        used = trained / "used_gts"
        (used / "recording_01.csv").rename(used / "renamed.csv")
        known = known_errors(trained)
        assert known is not None
        assert set(known.errors) == {hash_file(path) for path in used.iterdir()}
        assert (known.error_name, known.n_folds, known.random_state) == ("counting error", 2, 42)

    @pytest.mark.parametrize(
        ("spoil", "text"),
        [
            (lambda path: change(path, pickle_sha256="other"), "it belongs to another pickle"),
            (lambda path: change(path, error_name="other"), "it counts other errors"),
            (lambda path: change(path, errors={"a": -1.0}), "an error is no number from 0"),
            (lambda path: change(path, errors={"a": "NaN"}), "an error is no number from 0"),
            (lambda path: change(path, errors=[1.0]), "no attribute 'items'"),
            (lambda path: change(path, more=1), "unexpected keyword argument 'more'"),
            (lambda path: path.write_text("{"), "Expecting property name"),
            (lambda path: path.write_text("[]"), "must be a mapping"),
            (lambda path: path.write_bytes(b"\xff"), "codec can't decode"),
            (lambda path: path.chmod(0o666), "can be written by others"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_does_not_belong_is_not_used(
        self, trained: Path, caplog: pytest.LogCaptureFixture, spoil: Any, text: str
    ) -> None:
        """With the reason in the log; the pickle itself is as good as any other."""
        path = errors_path(trained / PICKLE)
        spoil(path)
        assert known_errors(trained) is None
        assert f"{path} is not used: " in caplog.text
        assert text in caplog.text

    def test_a_link_is_not_followed(self, trained: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Nor a pipe waited for."""
        path = errors_path(trained / PICKLE)
        path.rename(path.with_name("elsewhere.json"))
        path.symlink_to("elsewhere.json")
        assert known_errors(trained) is None
        assert "it is a symbolic link" in caplog.text

    def test_a_pickle_without_it(self, trained: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Nothing to say about a pickle that came from elsewhere."""
        errors_path(trained / PICKLE).unlink()
        assert known_errors(trained) is None
        assert caplog.text == ""


def test_small_errors_keep_their_digits() -> None:
    """A loss of 0.0066 m does not read 0.0."""
    table = pd.DataFrame({"error": [0.0066, 0.5]}, index=pd.Index(["a", "b"], name="file"))
    assert as_table(table, "m").split() == ["error", "[m]", "file", "a", "0.0066", "b", "0.50"]
