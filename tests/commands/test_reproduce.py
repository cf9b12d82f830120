"""A version can be made again from what it was made of."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
from conftest import (
    BATCH,
    FAST_WORDS,
    FULL_SIZE,
    OLD_SEASON_FILES,
    ROOT,
    copy_home,
    make_home,
    script,
)
from relabel import relabel
from sample_gts import write_recordings
from sklearn.dummy import DummyRegressor

import train_classification_model as training
from pipeline_orchestrator import main, run_orchestrator
from retraining.commands import rebuild, reproduce
from retraining.commands.train_first import ERRORS_SUFFIX
from retraining.confined import run_confined
from retraining.errors import PipelineError
from retraining.registry import open_registry
from retraining.settings import Settings

N_RECORDINGS = BATCH + OLD_SEASON_FILES
MODULE = "train_classification_model.py"


@pytest.fixture(scope="module")
def promoted_template(registered_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a home whose production, version 2, was trained by a real process."""
    home = copy_home(registered_template, tmp_path_factory.mktemp("promoted") / "home")
    done = script("pipeline_orchestrator.py", *FAST_WORDS, home=home, **FULL_SIZE)
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
        done = script(
            "pipeline_orchestrator.py", "reproduce", "2", "--json", home=promoted, **FULL_SIZE
        )
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
        code, features = (ROOT / MODULE).read_text(), "NEIGHBOURS_EACH_SIDE = 5\n"
        assert code.count(features) == 1
        changed = tmp_path / MODULE
        changed.write_text(code.replace(features, "NEIGHBOURS_EACH_SIDE = 1\n"))
        words = ("reproduce", "2", "--training-module", str(changed))
        done = script("pipeline_orchestrator.py", *words, home=promoted, **FULL_SIZE)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("version 2 is reproduced: trained again on 12 recordings")

    @pytest.mark.sampled(0.34)
    @pytest.mark.parametrize(
        ("commands", "recorded"),
        [
            ([(MODULE,), ("register_first_model.py",)], True),
            ([("register_first_model.py", "--train")], True),
            ([(MODULE,), (), ("register_first_model.py",)], False),
        ],
        ids=["as the readme says", "without a pickle", "a pickle alone"],
    )
    def test_a_first_version_of_our_own_training(
        self, tmp_path: Path, commands: list[tuple[str, ...]], recorded: bool
    ) -> None:
        """Folds and seed are the defaults of both scripts, also where nobody wrote them down."""
        home = make_home(tmp_path / "home")
        write_recordings(home / "used_gts", OLD_SEASON_FILES, "old", seed=1)
        for words in commands:
            if words:
                done = script(*words, home=home, **FULL_SIZE)
                assert done.returncode == 0, done.stderr
            else:
                (beside,) = (home / "model").glob(f"*{ERRORS_SUFFIX}")
                beside.unlink()
        done = script(
            "pipeline_orchestrator.py", "reproduce", "1", "--json", home=home, **FULL_SIZE
        )
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert (result["identical"], result["largest_difference"]) == (True, 0)
        assert (result["n_folds"], result["random_state"], result["recorded"]) == (5, 42, recorded)

    def test_corrected_and_withdrawn_recordings_are_found(self, promoted: Path) -> None:
        """By their hash, in used_gts/replaced/ and withdrawn/."""
        relabel(promoted / "used_gts/old_01.csv", promoted / "new_gts/old_01.csv")
        for words in (("correct", "old_01.csv"), ("withdraw", "old_02.csv", "new_01.csv")):
            done = script("pipeline_orchestrator.py", *words, home=promoted, **FULL_SIZE)
            assert done.returncode == 0, done.stderr
        done = script("pipeline_orchestrator.py", "reproduce", "2", home=promoted, **FULL_SIZE)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("version 2 is reproduced: trained again on 12 recordings")

    def test_a_first_version_of_unknown_making(self, promoted: Path) -> None:
        """A model smaller than its code makes them: it is said what was tried."""
        words = ("reproduce", "1", "--n-folds", "3")
        done = script("pipeline_orchestrator.py", *words, home=promoted, **FULL_SIZE)
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
        done = script("pipeline_orchestrator.py", "reproduce", "2", home=promoted, **FULL_SIZE)
        assert done.returncode == 1
        assert "the files of version 2 are not those that were registered" in done.stderr
        assert not trap.exists()


@pytest.mark.usefixtures("fast_training")
class TestWhatCannotBeReproduced:
    """One line says why."""

    @pytest.mark.slow
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
            reproduce.reproduce(settings, 2)

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
        with registry.models.verified_files(registry.production.champion()) as files:
            task = {
                "code": str(files / "code"),
                "module": "train_classification_model",
                "package": str(ROOT),
                "recordings": str(folder),
                "stored": str(files / "model.skops"),
                "columns": [*training.MODEL_COLUMNS, "file"],
                "n_folds": 3,
                "random_state": 7,
                "n_jobs": 1,
                "limits": dataclasses.asdict(Settings().limits),
            }
            monkeypatch.setattr(sys, "path", [*sys.path])
            found = rebuild.rebuild(task)
        assert found["recordings"] == 3
        assert 0 < found["largest_difference"] <= 1
        assert 0 < found["different"] <= found["predictions"]
        packages = {"numpy": ["1.0", "2.4"]}
        text = reproduce.as_line(
            {**found, "version": 1, "identical": False, "recorded": True, "packages": packages}
        )
        assert text.startswith("version 1 is not reproduced: trained again on 3 recordings")
        assert text.endswith("registered with: numpy 2.4 instead of 1.0")

    def test_a_missing_prediction_differs(self) -> None:
        """From a number, not from another missing one."""
        nan = float("nan")
        apart = rebuild._apart(np.array([0.5, nan, nan]), np.array([0.25, 0.5, nan]))
        assert apart.tolist() == [0.25, 1.0, 0.0]


READER = """
import io
from types import SimpleNamespace

import pandas as pd
from sklearn.dummy import DummyRegressor

TRUSTED_TYPES = ()

def parse_ground_truth(content, name):
    return pd.read_csv(io.BytesIO(content))

def always(rows, constant):
    model = DummyRegressor(strategy="constant", constant=constant)
    return model.fit(rows[["a"]], rows["b"])
"""
MAKERS = {
    "one that describes": """
def fit(examples, random_state):
    return always(examples, 10 * len(examples) + random_state)
""",
    "one that splits and scores by itself": """
def train_classification_model(folder, *, n_folds, random_state):
    rows = pd.concat([pd.read_csv(path) for path in sorted(folder.iterdir())])
    return SimpleNamespace(model=always(rows, 10 * len(rows) + random_state))
""",
    "one that does so in processes": """
def train_classification_model(folder, *, n_folds, random_state, n_jobs):
    rows = pd.concat([pd.read_csv(path) for path in sorted(folder.iterdir())])
    return SimpleNamespace(model=always(rows, 10 * len(rows) + random_state + n_jobs - 1))
""",
}


@pytest.mark.parametrize("made_by", MAKERS)
@pytest.mark.parametrize(
    ("seed", "apart"),
    [(7, 0), pytest.param(9, 2, marks=(pytest.mark.slow, pytest.mark.sampled(0.34)))],
)
def test_a_packaged_module_of_either_contract_trains(
    made_by: str, seed: int, apart: int, tmp_path: Path
) -> None:
    """In a process that does not take today's module for it, which has the same name."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / MODULE).write_text(READER + MAKERS[made_by])
    (tmp_path / "recordings").mkdir()
    for name in ("1.csv", "2.csv"):
        (tmp_path / "recordings" / name).write_text("a,b\n1,2\n3,4\n")
    rows = pd.DataFrame({"a": [1.0, 2.0]})
    stored = DummyRegressor(strategy="constant", constant=47).fit(rows, rows["a"])
    skops.io.dump(stored, tmp_path / "stored.skops")
    task = {
        "code": str(tmp_path / "code"),
        "module": "train_classification_model",
        "package": str(ROOT),
        "recordings": str(tmp_path / "recordings"),
        "stored": str(tmp_path / "stored.skops"),
        "columns": ["a"],
        "n_folds": 2,
        "random_state": seed,
        "n_jobs": 1,
        "limits": dataclasses.asdict(Settings().limits),
    }
    (tmp_path / "task.json").write_text(json.dumps(task))
    words = [str(reproduce.REBUILD), str(tmp_path / "task.json")]
    run_confined(words, Settings(home=tmp_path), "it fails", "look")
    assert json.loads((tmp_path / "result.json").read_bytes()) == {
        "recordings": 2,
        "predictions": 4,
        "different": 4 if apart else 0,
        "probabilities": False,
        "largest_difference": apart,
    }
