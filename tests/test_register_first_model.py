"""The one-off registration of the first model."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import pytest
from conftest import BATCH, OLD_SEASON_FILES, copy_home, make_home, script

import model_registry
import train_classification_model as training
import version_lineage
from cycle_records import Outcome
from pipeline_orchestrator import run_orchestrator
from pipeline_settings import PipelineError, Settings
from register_first_model import read_trusted_pickle, register_first_model
from training_module import load_training_module

SettingsOf = Callable[..., Any]
PICKLE = "model/stem_classifier_postprocessing_v1.pkl"


@pytest.fixture
def unregistered(registered_template: Path, tmp_path: Path) -> Path:
    """Give a home with recordings and a first model, but no store."""
    home = make_home(tmp_path / "home")
    for name in ("new_gts", "used_gts", "model"):
        shutil.copytree(registered_template / name, home / name, dirs_exist_ok=True)
    return home


def write_first_generation(home: Path) -> None:
    """Put a forest of detections into the place of the first model."""
    import pandas as pd
    from sklearn.ensemble import RandomForestClassifier

    rows = pd.concat(training.read_ground_truth(path) for path in (home / "used_gts").glob("*.csv"))
    features = training.detection_features(rows)
    labels = rows["ground_truth"].to_numpy(dtype=bool)[features.index]
    forest = RandomForestClassifier(10, max_depth=4, random_state=0).fit(features, labels)
    joblib.dump(forest, home / PICKLE)


class _RunsCode:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


class TestRegistration:
    """A home with a pickle and used recordings."""

    def test_the_first_model_becomes_production(
        self, unregistered: Path, settings_of: SettingsOf
    ) -> None:
        """Version 1 has the alias, the baseline, the manifest and the pickle's hash."""
        settings = settings_of(unregistered)
        message = register_first_model(settings)
        assert message.startswith("registered version 1 as production: mean error 0.")
        registry = model_registry.open_registry(settings)
        champion = registry.champion()
        assert champion.number == 1
        assert len(registry.manifest(champion).files) == OLD_SEASON_FILES
        assert len(champion.tags["pickle_sha256"]) == 64
        (run,) = registry.runs("Registering Initial Production Model")
        assert run.data.metrics["recordings"] == OLD_SEASON_FILES
        assert not (unregistered / ".pipeline_state.json").exists()

    def test_a_second_time_changes_nothing(
        self, unregistered: Path, settings_of: SettingsOf
    ) -> None:
        """It says which version is production; --force replaces it."""
        settings = settings_of(unregistered)
        register_first_model(settings)
        assert register_first_model(settings).startswith("version 1 is production already")
        assert register_first_model(settings, force=True).startswith("registered version 2")
        registry = model_registry.open_registry(settings)
        assert (registry.production_number(), registry.previous_number()) == (2, 1)

    def test_a_first_generation_forest_is_wrapped(
        self, unregistered: Path, settings_of: SettingsOf, fast_training: None
    ) -> None:
        """A forest of detections is monitored, and replaced by a better challenger."""
        write_first_generation(unregistered)
        settings = settings_of(unregistered)
        register_first_model(settings)
        registry = model_registry.open_registry(settings)
        model = registry.load(registry.champion(), load_training_module(settings))
        assert isinstance(model, training.DetectionVoteClassifier)
        assert run_orchestrator(settings).outcome is Outcome.PROMOTED

    @pytest.mark.slow
    def test_a_first_generation_forest_cannot_be_reproduced(
        self, unregistered: Path, settings_of: SettingsOf
    ) -> None:
        """Not even if what its code trains now predicts the same, as on these recordings."""
        write_first_generation(unregistered)
        register_first_model(settings_of(unregistered))
        with pytest.raises(PipelineError, match="it is a DetectionVoteClassifier, its code trains"):
            version_lineage.reproduce(settings_of(unregistered), 1)

    @pytest.mark.slow
    def test_as_a_script(self, unregistered: Path) -> None:
        """One line on standard output, status 0, twice."""
        first = script("register_first_model.py", home=unregistered)
        assert first.returncode == 0, first.stderr
        assert first.stdout.startswith("registered version 1 as production")
        assert first.stdout.count("\n") == 1
        digest = hashlib.sha256((unregistered / PICKLE).read_bytes()).hexdigest()
        assert f"stem_classifier_postprocessing_v1.pkl has SHA-256 {digest}" in first.stderr
        again = script("register_first_model.py", home=unregistered)
        assert (again.returncode, again.stdout[:10]) == (0, "version 1 ")


class TestWhatIsRefused:
    """One line, nothing changed, no store left behind."""

    @pytest.mark.parametrize(
        ("break_it", "text"),
        [
            (lambda home: (home / PICKLE).unlink(), "there is no"),
            (lambda home: (home / PICKLE).chmod(0o666), "can be written by others"),
            (lambda home: (home / PICKLE).write_bytes(b"no pickle"), "does not load"),
            (lambda home: joblib.dump({"a": 1}, home / PICKLE), "expected a StemClassifier"),
            (lambda home: _link_elsewhere(home / PICKLE), "cannot be read as a regular file"),
            (lambda home: _clear(home / "used_gts"), "holds no CSV"),
            (lambda home: (home / "used_gts/x.csv").write_text("a,b\n1,2\n"), "x.csv: lacks"),
        ],
        ids=["missing", "writable", "damaged", "other", "link", "no recordings", "bad recording"],
    )
    def test_a_bad_start(
        self, unregistered: Path, settings_of: SettingsOf, break_it: Any, text: str
    ) -> None:
        """The message names the file and what to do; no version exists; mended, it goes."""
        whole = shutil.copytree(unregistered, unregistered.with_name("whole"))
        break_it(unregistered)
        settings = settings_of(unregistered)
        with pytest.raises(PipelineError, match=text):
            register_first_model(settings)
        if settings.database.exists():
            assert model_registry.open_registry(settings).production_number() is None
        for name in ("used_gts", "model"):
            shutil.rmtree(unregistered / name)
            shutil.copytree(whole / name, unregistered / name)
        assert register_first_model(settings).startswith("registered version 1 as production")

    def test_a_pickle_of_others_is_not_opened(self, tmp_path: Path) -> None:
        """A pickle that anybody could have written runs no code."""
        target = tmp_path / "ran"
        pickle = tmp_path / "model.pkl"
        joblib.dump(_RunsCode(target), pickle)
        pickle.chmod(0o622)
        with pytest.raises(PipelineError, match="can be written by others"):
            read_trusted_pickle(pickle)
        assert not target.exists()

    def test_a_cut_off_registration_is_done_again(
        self, unregistered: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A version without alias from a dead registration does not stay."""
        settings = settings_of(unregistered)
        with monkeypatch.context() as patch:
            patch.setattr(model_registry.ModelRegistry, "promote", _die)
            with pytest.raises(KeyboardInterrupt):
                register_first_model(settings)
        register_first_model(settings)
        registry = model_registry.open_registry(settings)
        versions = registry._client.search_model_versions(f"name = '{settings.model_name}'")
        assert [int(one.version) for one in versions] == [registry.production_number()]


def _die(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _link_elsewhere(path: Path) -> None:
    real = path.rename(path.with_name("real.pkl"))
    path.symlink_to(real)


def test_the_template_is_a_whole_home(registered_template: Path, tmp_path: Path) -> None:
    """Copies of the template find their own files, not the template's."""
    home = copy_home(registered_template, tmp_path / "copy")
    registry = model_registry.open_registry(Settings(home=home))
    uri = registry._client.get_model_version_download_uri(registry._name, "1")
    assert uri.removeprefix("file://").startswith(str(home))
    assert len(list((home / "new_gts").glob("*.csv"))) == BATCH
