"""A version can be made again from what it was made of, and a recording names its versions."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BATCH, FAST_WORDS, OLD_SEASON_FILES, copy_home, make_home, script
from sample_gts import write_recordings
from test_packaged_model import MODULE, changed_module

import rebuild_version
import train_classification_model as training
import version_lineage
from model_registry import open_registry
from pipeline_orchestrator import main, run_orchestrator
from pipeline_settings import PipelineError

N_RECORDINGS = BATCH + OLD_SEASON_FILES


@pytest.fixture(scope="module")
def promoted_template(registered_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a home whose production, version 2, was trained by a real process."""
    home = copy_home(registered_template, tmp_path_factory.mktemp("promoted") / "home")
    done = script("pipeline_orchestrator.py", *FAST_WORDS, home=home)
    assert done.stdout.startswith("promoted: version 2"), done.stderr
    return home


@pytest.fixture
def promoted(promoted_template: Path, tmp_path: Path) -> Path:
    """Give a copy of it."""
    return copy_home(promoted_template, tmp_path / "home")


def contents(home: Path) -> dict[str, int]:
    """Return every file of a home with the time of its last change."""
    return {str(path): path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()}


@pytest.mark.slow
class TestReproduce:
    """The same recordings, code and seed make the same model."""

    def test_the_largest_difference_is_0(
        self, promoted: Path, figure: Callable[[str, Any], None]
    ) -> None:
        """Of all predicted probabilities; no file of the home is changed."""
        before = contents(promoted)
        done = script("pipeline_orchestrator.py", "reproduce", "2", "--json", home=promoted)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert (result["identical"], result["largest_difference"]) == (True, 0)
        assert (result["n_folds"], result["recorded"]) == (3, True)
        assert (result["recordings"], result["probabilities"]) == (N_RECORDINGS, True)
        assert result["predictions"] > 1000
        assert contents(promoted) == before
        figure(
            "reproduced version, largest difference of a probability", result["largest_difference"]
        )

    def test_its_own_code_trains_it_whatever_the_present_one_is(
        self, promoted: Path, tmp_path: Path
    ) -> None:
        """Renamed and moved recordings are found by their content, too."""
        for number, path in enumerate(sorted((promoted / "used_gts").glob("*.csv"))):
            folder = "new_gts" if number % 2 else "used_gts"
            path.rename(promoted / folder / f"renamed_{number}.csv")
        changed = changed_module(tmp_path / "changed")
        words = ("reproduce", "2", "--training-module", changed)
        done = script("pipeline_orchestrator.py", *words, home=promoted)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("version 2 is reproduced: trained again on 12 recordings")

    def test_a_first_version_trained_as_the_readme_says(self, tmp_path: Path) -> None:
        """Folds and seed are the defaults of both scripts; nobody wrote them down."""
        home = make_home(tmp_path / "home")
        write_recordings(home / "used_gts", OLD_SEASON_FILES, "old", seed=1)
        for name in ("train_classification_model.py", "register_first_model.py"):
            done = script(name, home=home)
            assert done.returncode == 0, done.stderr
        done = script("pipeline_orchestrator.py", "reproduce", "1", "--json", home=home)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert (result["identical"], result["largest_difference"]) == (True, 0)
        assert (result["n_folds"], result["random_state"], result["recorded"]) == (5, 42, False)

    def test_a_first_version_of_unknown_making(self, promoted: Path) -> None:
        """A model smaller than its code makes them: it is said what was tried."""
        words = ("reproduce", "1", "--n-folds", "3")
        done = script("pipeline_orchestrator.py", *words, home=promoted)
        assert done.returncode == 1, done.stderr
        assert done.stdout.startswith("version 1 is not reproduced: trained again on")
        assert done.stdout.endswith(
            "; it came as a pickle, and nobody wrote down how it was trained: this was "
            "--n-folds 3 --random-state 42\n"
        )

    def test_swapped_code_is_not_run(self, promoted: Path, tmp_path: Path) -> None:
        """The digest covers it."""
        trap = tmp_path / "trap"
        for code in (promoted / "mlflow_server").rglob(f"code/{MODULE}"):
            code.write_text(f"open({str(trap)!r}, 'w')\n")
        done = script("pipeline_orchestrator.py", "reproduce", "2", home=promoted)
        assert done.returncode == 1
        assert "the files of version 2 are not those that were registered" in done.stderr
        assert not trap.exists()


@pytest.mark.usefixtures("fast_training")
class TestWhatCannotBeReproduced:
    """One line says why."""

    def test_missing_and_changed_recordings_are_named(
        self, home: Path, settings_of: Callable[..., Any]
    ) -> None:
        """Each by its name; a changed one is told from a missing one."""
        settings = settings_of(home)
        run_orchestrator(settings)
        (home / "used_gts" / "old_01.csv").unlink()
        with (home / "used_gts" / "new_02.csv").open("a") as stream:
            stream.write("\n")
        what = (
            r"2 of its 12 recordings .*: 'new_02\.csv' was changed \(used_gts/ has another content"
            r"\), 'old_01\.csv' is missing; put them back"
        )
        with pytest.raises(PipelineError, match=what):
            version_lineage.reproduce(settings, 2)

    def test_a_version_that_does_not_exist(
        self, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Named."""
        assert main(["reproduce", "7", "--home", str(home)]) == 1
        assert "there is no version 7" in capsys.readouterr().err


class TestComparison:
    """What is different is counted and told."""

    def test_a_model_of_another_seed_differs(
        self,
        tmp_path: Path,
        home: Path,
        settings_of: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """So that the difference of 0 above can fail; other packages are named."""
        registry = open_registry(settings_of(home))
        folder = tmp_path / "recordings"
        write_recordings(folder, 3, "old", seed=1)
        with registry.verified_files(registry.champion()) as files:
            task = {
                "code": str(files / "code"),
                "module": "train_classification_model",
                "recordings": str(folder),
                "stored": str(files / "model.skops"),
                "columns": [*training.MODEL_COLUMNS, "file"],
                "n_folds": 3,
                "random_state": 7,
                "n_jobs": 1,
            }
            monkeypatch.setattr(sys, "path", [*sys.path])
            found = rebuild_version.rebuild(task)
        assert found["recordings"] == 3
        assert 0 < found["largest_difference"] <= 1
        assert 0 < found["different"] <= found["predictions"]
        packages = {"numpy": ["1.0", "2.4"]}
        text = version_lineage.reproduction_text(
            {**found, "version": 1, "identical": False, "recorded": True, "packages": packages}
        )
        assert text.startswith("version 1 is not reproduced: trained again on 3 recordings")
        assert text.endswith("registered with: numpy 2.4 instead of 1.0")

    def test_a_missing_prediction_differs(self) -> None:
        """From a number, not from another missing one."""
        nan = float("nan")
        apart = rebuild_version._apart(np.array([0.5, nan, nan]), np.array([0.25, 0.5, nan]))
        assert apart.tolist() == [0.25, 1.0, 0.0]


@pytest.mark.usefixtures("fast_training")
class TestLineage:
    """From a recording to the versions that learnt it."""

    def test_the_versions_of_a_recording(
        self, home: Path, settings_of: Callable[..., Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Newest first, with their alias; an old recording was learnt by both."""
        run_orchestrator(settings_of(home))
        old = version_lineage.lineage(settings_of(home), "old_01.csv")
        assert [(one["version"], one["alias"]) for one in old["versions"]] == [
            (2, "production"),
            (1, "previous_production"),
        ]
        elsewhere = shutil.copyfile(home / "used_gts" / "new_01.csv", home / "renamed.csv")
        assert main(["lineage", str(elsewhere), "--home", str(home)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(f"{elsewhere}: SHA-256 ")
        assert lines[1].startswith("version 2 of 20")
        assert lines[1].endswith(" learnt it as 'new_01.csv'; it is production")
        assert len(lines) == 2

    def test_a_mended_recording(self, home: Path, settings_of: Callable[..., Any]) -> None:
        """What was learnt under its name was something else."""
        path = home / "used_gts" / "old_01.csv"
        path.write_bytes(path.read_bytes() + b"\n")
        found = version_lineage.lineage(settings_of(home), str(path))
        assert (found["versions"], found["other_content"]) == ([], [1])
        assert "no version was trained on it" in version_lineage.lineage_text(found)

    def test_a_manifest_that_is_gone_is_said(
        self, home: Path, settings_of: Callable[..., Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        """The others are still looked at."""
        (manifest,) = (home / "mlflow_server").rglob("training_files.json")
        manifest.unlink()
        found = version_lineage.lineage(settings_of(home), "old_01.csv")
        assert found["unknown"] == [1]
        assert "training_files.json of version 1 is missing" in caplog.text

    def test_an_unknown_file(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """One line, status 1."""
        assert main(["lineage", "nowhere.csv", "--home", str(home)]) == 1
        assert capsys.readouterr().err.startswith("error: there is no file 'nowhere.csv'")


def test_what_is_printed_as_json_is_documented(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every field of both commands."""
    from test_json import documented

    main(["lineage", "old_01.csv", "--json", "--home", str(home)])
    document = json.loads(capsys.readouterr().out)
    assert document.pop("schema_version") == 1
    assert set(document) == set(documented("lineage"))
    assert set(documented("reproduce")) == {
        *("version", "identical", "recordings", "predictions", "probabilities"),
        *("largest_difference", "different", "n_folds", "random_state", "recorded", "packages"),
    }
