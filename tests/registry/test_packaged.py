"""A champion outlives the code that made it: it predicts with its own, in another process."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import BATCH, FAST_WORDS, ROOT, copy_home, script
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema
from sample_gts import make_recording, write_recordings

import train_classification_model as training
from retraining.confined import run_confined
from retraining.errors import PipelineError, TryLaterError
from retraining.registry import open_registry, packaged
from retraining.registry.packaged import PackagedModel, needs_other_code
from retraining.training import Training, load_training_module

FEATURES = "NEIGHBOURS_EACH_SIDE = 5\n"
MODULE = "train_classification_model.py"
FIT = "    classifier = StemClassifier(random_state=random_state)\n"


def changed_module(
    folder: Path, old: str = FEATURES, new: str = "NEIGHBOURS_EACH_SIDE = 1\n"
) -> str:
    """Write the training module with other features into a folder; return its path."""
    code = (ROOT / MODULE).read_text()
    assert code.count(old) == 1
    folder.mkdir(exist_ok=True)
    (folder / MODULE).write_text(code.replace(old, new))
    return str(folder / MODULE)


def packaged_code(home: Path) -> Path:
    """Return the training module's file that the only version carries."""
    (code,) = (home / "mlflow_server").rglob(f"code/{MODULE}")
    return code


def new_files(home: Path) -> list[Path]:
    """Return the recordings that wait."""
    return sorted((home / "new_gts").glob("*.csv"))


def cycle(home: Path, *words: str) -> dict[str, Any]:
    """Run one cycle as a process of its own; return its JSON and what it logged."""
    done = script("pipeline_orchestrator.py", "--json", *FAST_WORDS, *words, home=home)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "log": done.stderr}


def champion_errors(result: dict[str, Any]) -> dict[str, float]:
    """Return recording -> production's error."""
    return {one["name"]: one["champion_error"] for one in result["by_recording"]}


@pytest.mark.slow
def test_its_error_is_what_it_was_before_the_change(home: Path, tmp_path: Path) -> None:
    """Other features, the same batch: judged again, production errs exactly as it did."""
    before = cycle(home, "--threshold", "1000")
    changed = changed_module(tmp_path / "changed")
    after = cycle(home, "--threshold", "1000", "--training-module", changed)
    assert len(champion_errors(before)) == BATCH
    assert champion_errors(after) == champion_errors(before)
    assert "version 1 predicts with its own code" in after["log"]
    assert "predicts with its own code" not in before["log"]


def test_present_code_would_say_something_else(
    home: Path, settings_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the test above can fail."""
    settings = settings_of(home)
    registry = open_registry(settings)
    model = registry.models.load(registry.production.champion(), load_training_module(settings))
    rows = pd.concat(training.read_ground_truth(path) for path in (home / "new_gts").glob("*.csv"))
    before = training.count_errors(rows, model.predict(rows))
    monkeypatch.setattr(training, "NEIGHBOURS_EACH_SIDE", 1)
    assert not before.equals(training.count_errors(rows, model.predict(rows)))


@pytest.mark.slow
def test_a_whole_life_across_two_codes(home: Path, tmp_path: Path) -> None:
    """Promotion, probation and rollback between versions of different code."""
    changed = changed_module(tmp_path / "changed")
    words = ("--training-module", changed)
    promoted = cycle(home, *words)
    assert promoted["outcome"] == "promoted"
    write_recordings(home / "new_gts", BATCH, "new", seed=5, prefix="third")
    kept = cycle(home, *words)
    assert kept["outcome"] == "healthy"
    assert "version 2 is on probation against version 1: passed" in kept["log"]
    again = cycle(home)
    assert champion_errors(again) == champion_errors(kept)
    assert "version 2 predicts with its own code" in again["log"]
    back = script("pipeline_orchestrator.py", "rollback", *words, home=home)
    assert back.stdout == "rolled back: version 1 is production, it was version 2\n"


@pytest.fixture
def other_code(home: Path, settings_of: Callable[..., Any]) -> tuple[Any, Training, Any]:
    """Give registry, training module and settings, as if the module had been changed."""
    settings = settings_of(home)
    present = load_training_module(settings)
    return open_registry(settings), Training(present.module, present.path, "another"), settings


def odd_recordings() -> list[pd.DataFrame]:
    """Return recordings with missing measurements and objects that were not counted."""
    recordings = []
    for seed in (81, 82):
        rows = make_recording(seed, "new", n_tracks=9).assign(file=f"{seed}.csv")
        rows.loc[rows.index[::7], "scores"] = float("nan")
        rows.loc[rows["object_id"] == rows["object_id"].iloc[0], "counted"] = False
        recordings.append(rows)
    return recordings


@pytest.mark.slow
def test_predictions_come_back_to_the_last_row(other_code: tuple[Any, Training, Any]) -> None:
    """Of any recording, also one with missing measurements and objects that were not counted."""
    registry, training_module, settings = other_code
    recordings = odd_recordings()
    beside = registry.models.load(registry.production.champion(), training_module)
    here = registry.models.load(registry.production.champion(), load_training_module(settings))
    assert isinstance(beside, PackagedModel)
    assert not isinstance(here, PackagedModel)
    said = [one.tolist() for one in beside.predict_recordings(recordings)]
    assert said == [here.predict(rows).tolist() for rows in recordings]
    assert beside.predict(recordings[1]).tolist() == said[1]
    assert all(0 < sum(one) < len(one) for one in said)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Note the words of each process that is started beside this one."""
    words_of: list[list[str]] = []

    def note(words: list[str], *values: Any, **named: Any) -> None:
        words_of.append(words)
        run_confined(words, *values, **named)

    monkeypatch.setattr("retraining.registry.packaged.run_confined", note)
    return words_of


SEES_ALL_ROWS = """
import numpy
class Model:
    def predict(self, rows):
        print("one more recording", file=open(__file__ + ".calls", "a"))
        return numpy.full(len(rows), len(rows))
"""


def test_all_recordings_are_one_process_and_each_is_a_whole(
    other_code: tuple[Any, Training, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    started: list[list[str]],
) -> None:
    """Loaded once; a model that looks at all rows sees those of one recording at a time."""
    registry, training_module, _ = other_code
    model = registry.models.load(registry.production.champion(), training_module)
    # The real other process, with another model in the place of what MLflow would load.
    (tmp_path / "sees_all_rows.py").write_text(SEES_ALL_ROWS)
    loads = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport sees_all_rows\n"
    code = packaged.PREDICT.replace("pyfunc.load_model(folder)", "sees_all_rows.Model()")
    assert code != packaged.PREDICT
    monkeypatch.setattr(packaged, "PREDICT", loads + code)
    recordings = [make_recording(seed, n_tracks=seed) for seed in (2, 3, 4)]
    lengths = [len(rows) for rows in recordings]
    said = model.predict_recordings(recordings)
    assert [one.tolist() for one in said] == [[n] * n for n in lengths]
    assert len(set(lengths)) == len(lengths)
    assert len(started) == 1
    calls = (tmp_path / "sees_all_rows.py.calls").read_text().splitlines()
    assert len(calls) == len(recordings)
    assert model.predict_recordings([]) == []
    assert len(started) == 1


@pytest.mark.slow
def test_errors_of_a_batch_are_one_process(
    other_code: tuple[Any, Training, Any], started: list[list[str]]
) -> None:
    """The cycle hands it all recordings of a part at once; each error is that of this process."""
    registry, training_module, settings = other_code
    recordings = odd_recordings()
    beside = registry.models.load(registry.production.champion(), training_module)
    present = load_training_module(settings)
    here = registry.models.load(registry.production.champion(), present)
    expected = present.errors(here, recordings)
    pd.testing.assert_frame_equal(training_module.errors(beside, recordings), expected)
    assert len(started) == 1


def predicts_beside(pid: int) -> bool:
    """Say whether a process has started another one that uses packaged code."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return any(b"\0-P\0" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are looked up in /proc")
def test_a_signal_to_both_processes_is_no_failure_of_the_model(home: Path, tmp_path: Path) -> None:
    """A terminal and systemd send it to the whole group."""
    words = [*FAST_WORDS, "--training-module", changed_module(tmp_path / "changed")]
    log = tmp_path / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "pipeline_orchestrator.py"), *words, "--home", str(home)],
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    for _ in range(600):
        if predicts_beside(process.pid):
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM, log.read_text()
    assert "does not predict" not in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["grain"], indirect=True)
def test_rows_reach_it_as_they_are(
    home: Path, settings_of: Callable[..., Any], tmp_path: Path
) -> None:
    """Fractions and gaps, too, where the first recordings held whole numbers only."""
    settings = settings_of(home)
    registry, module = open_registry(settings), load_training_module(settings)
    rows = pd.concat(module.parse(path.read_bytes(), path.name) for path in new_files(home))
    rows.loc[rows.index[::9], "brightness"] = float("nan")
    with registry.models.verified_files(registry.production.champion()) as files:
        folder = shutil.copytree(files, tmp_path / "model")
    whole = Schema([ColSpec("long", name) for name in module.columns_of(rows)])
    stored = Model.load(str(folder))
    stored.signature = ModelSignature(whole, stored.signature.outputs)
    stored.save(str(folder / "MLmodel"))
    here = registry.models.load(registry.production.champion(), module).predict(
        rows[module.columns_of(rows)]
    )
    assert PackagedModel(folder, 1, settings).predict(rows).tolist() == here.tolist()


@pytest.mark.slow
def test_its_packages_are_rebuilt(
    home: Path, other_code: tuple[Any, Training, Any], tmp_path: Path
) -> None:
    """Under `--champion-env uv`, from the package index or uv's cache; or it fails, and says so."""
    pytest.importorskip("uv", reason="uv is not installed")
    registry, training_module, settings = other_code
    rebuilt = open_registry(dataclasses.replace(settings, champion_env="uv"))
    recordings = odd_recordings()
    models = [
        one.models.load(registry.production.champion(), training_module)
        for one in (rebuilt, registry)
    ]
    said = [[one.tolist() for one in model.predict_recordings(recordings)] for model in models]
    assert said[0] == said[1]
    rows = recordings[0]
    with pytest.raises(PipelineError, match="version 1 does not predict with its own code: .*obj"):
        models[0].predict(rows.assign(object_id=float("nan")))
    folder = shutil.copytree(packaged_code(home).parent.parent, tmp_path / "model")
    (folder / "requirements.txt").write_text("numpy==0.0.1\n")
    with pytest.raises(TryLaterError, match="the packages of version 1 cannot be installed: "):
        PackagedModel(folder, 1, dataclasses.replace(settings, champion_env="uv")).predict(rows)


def test_a_column_that_nobody_reads_any_more_is_named(
    other_code: tuple[Any, Training, Any],
) -> None:
    """Instead of a guess."""
    registry, training_module, _ = other_code
    model = registry.models.load(registry.production.champion(), training_module)
    rows = make_recording(81, "new").drop(columns="scores")
    with pytest.raises(PipelineError, match="version 1 needs the columns scores, which"):
        model.predict(rows)


@pytest.mark.slow
def test_what_the_other_process_says_is_the_reason(other_code: tuple[Any, Training, Any]) -> None:
    """Its last line, with the remedy."""
    registry, training_module, _ = other_code
    model = registry.models.load(registry.production.champion(), training_module)
    rows = make_recording(81, "new").assign(object_id=float("nan"))
    with pytest.raises(PipelineError, match="version 1 does not predict with its own code: .*obj"):
        model.predict(rows)


@pytest.mark.slow
def test_swapped_code_is_not_run(home: Path, tmp_path: Path) -> None:
    """The digest covers the packaged code; the other process is never started."""
    trap = tmp_path / "trap"
    code = packaged_code(home)
    code.write_text(f"open({str(trap)!r}, 'w')\n" + code.read_text())
    changed = changed_module(tmp_path / "changed")
    words = (*FAST_WORDS, "--training-module", changed)
    done = script("pipeline_orchestrator.py", *words, home=home)
    assert done.returncode == 1
    assert "the files of version 1 are not those that were registered" in done.stderr
    assert not trap.exists()


@pytest.mark.slow
def test_nothing_is_registered_with_code_that_did_not_make_it(
    registered_template: Path, tmp_path: Path
) -> None:
    """The module's file is replaced while the cycle runs: by the module itself, as it trains."""
    home = copy_home(registered_template, tmp_path / "home")
    changed = changed_module(
        tmp_path / "changed",
        FIT,
        f"    Path(__file__).write_text('other = 1')\n{FIT}",
    )
    done = script("pipeline_orchestrator.py", *FAST_WORDS, "--training-module", changed, home=home)
    assert done.returncode == 1
    assert "was changed while this ran; nothing is registered" in done.stderr
    assert len(list((home / "new_gts").glob("*.csv"))) == BATCH


def test_packages_matter_only_where_they_can_be_rebuilt(
    home: Path, settings_of: Callable[..., Any], tmp_path: Path
) -> None:
    """With `--champion-env uv` other pinned versions are a reason, too."""
    code = packaged_code(home)
    folder = shutil.copytree(code.parent.parent, tmp_path / "model")
    present = load_training_module(settings_of(home))
    same = (folder / "requirements.txt").read_text().split()
    other = ["numpy==1.0", *(one for one in same if not one.startswith("numpy="))]
    assert not needs_other_code(folder, present, same, "uv")
    assert not needs_other_code(folder, present, other, "local")
    assert needs_other_code(folder, present, other, "uv")
    shutil.rmtree(folder / "code")
    assert not needs_other_code(folder, present, other, "uv")
