"""The one-off registration of the first model."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import pytest
from conftest import BATCH, OLD_SEASON_FILES, copy_home, make_home, script

import train_classification_model as training
from pipeline_orchestrator import main, run_orchestrator
from register_first_model import read_trusted_pickle, register_first_model
from retraining.commands.reproduce import reproduce
from retraining.commands.train_first import errors_path, train_first
from retraining.errors import PipelineError
from retraining.files import hash_file
from retraining.outcome import Outcome
from retraining.registry import Registry, open_registry
from retraining.registry.facts import FIRST_RUN
from retraining.registry.production import Production
from retraining.settings import Settings
from retraining.training import load_training_module

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


def run_of(registry: Registry) -> Any:
    """Return the run of the production version."""
    run_id = registry.production.champion().run_id
    return registry.runs.connection.client.get_run(run_id)


def described(registry: Registry) -> str:
    """Return the description of version 1."""
    connection = registry.versions.connection
    return str(connection.client.get_model_version(connection.name, "1").description)


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
        registry = open_registry(settings)
        champion = registry.production.champion()
        assert champion.number == 1
        assert len(registry.versions.manifest(champion).files) == OLD_SEASON_FILES
        assert len(champion.tags["pickle_sha256"]) == 64
        run = run_of(registry)
        assert run.info.run_name == FIRST_RUN == "Registering Initial Production Model"
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
        production = open_registry(settings).production
        assert (production.number(), production.previous_number()) == (2, 1)

    @pytest.mark.slow
    def test_a_first_generation_forest_is_wrapped(
        self, unregistered: Path, settings_of: SettingsOf, fast_training: None
    ) -> None:
        """A forest of detections is monitored, and replaced by a better challenger."""
        write_first_generation(unregistered)
        settings = settings_of(unregistered)
        register_first_model(settings)
        registry = open_registry(settings)
        champion = registry.production.champion()
        model = registry.models.load(champion, load_training_module(settings))
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
            reproduce(settings_of(unregistered), 1)

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


class TestTheBaseline:
    """What stands in the history is by a model that never saw the recording, or says so."""

    def test_of_a_pickle_from_elsewhere(self, unregistered: Path, settings_of: SettingsOf) -> None:
        """It was trained on them, and is no number of the history, nor of "no forgetting"."""
        settings = settings_of(unregistered)
        message = register_first_model(settings)
        assert message.endswith(" % on used_gts/, trained on them")
        registry = open_registry(settings)
        champion = registry.production.champion()
        (change,) = registry.production.changes()
        assert change.why.startswith("first model stem_classifier_postprocessing_v1.pkl, 0.")
        assert change.why.endswith(" % on used_gts/, trained on them")
        assert (change.mean_error_before, change.mean_error_after) == (None, None)
        assert described(registry).endswith(" % on used_gts/, trained on them")
        of_champion = registry.versions.out_of_fold_errors(champion, load_training_module(settings))
        assert of_champion == {}
        assert registry.runs.trained_with(champion.run_id) is None

    @pytest.mark.usefixtures("fast_training")
    def test_of_a_pickle_of_our_own_training(
        self, unregistered: Path, settings_of: SettingsOf
    ) -> None:
        """The pickle brings its out-of-fold errors along."""
        settings = settings_of(unregistered)
        _, trained, _ = train_first(settings, force=True)
        message = register_first_model(settings)
        assert message.endswith(", each recording scored by a model that never saw it")
        self.check(settings, trained.out_of_fold["error"].to_dict())

    @pytest.mark.usefixtures("fast_training")
    def test_of_a_training_on_the_spot(self, unregistered: Path, settings_of: SettingsOf) -> None:
        """No pickle in between; the later "no forgetting" and `reproduce` know it all."""
        settings = settings_of(unregistered)
        (unregistered / PICKLE).unlink()
        message = register_first_model(settings, train=True)
        assert message.startswith("registered version 1 as production: mean error ")
        assert message.endswith(
            " % on used_gts/, each recording scored by a model that never saw it"
        )
        assert not (unregistered / PICKLE).exists()
        trained = train_first(settings)[1]
        self.check(settings, trained.out_of_fold["error"].to_dict())

    def check(self, settings: Settings, expected: dict[Any, float]) -> None:
        """Compare what the registry keeps with errors by name."""
        registry = open_registry(settings)
        champion, loaded = registry.production.champion(), load_training_module(settings)
        hashes = {path.name: hash_file(path) for path in settings.used_gts.iterdir()}
        by_hash = {hashes[name]: error for name, error in expected.items()}
        assert registry.versions.out_of_fold_errors(champion, loaded) == by_hash
        (change,) = registry.production.changes()
        mean = sum(expected.values()) / len(expected)
        assert change.mean_error_after == pytest.approx(mean)
        assert change.why.endswith(", each recording scored by a model that never saw it")
        assert described(registry).endswith(", each recording scored by a model that never saw it")
        assert run_of(registry).data.metrics["mean_error"] == pytest.approx(mean)
        assert registry.runs.trained_with(champion.run_id) == {"n_folds": 3, "random_state": 42}

    @pytest.mark.slow
    @pytest.mark.usefixtures("fast_training")
    def test_other_recordings_than_it_learnt(
        self, unregistered: Path, settings_of: SettingsOf
    ) -> None:
        """Its errors are of others: it is scored on those in used_gts/, and that is said."""
        settings = settings_of(unregistered)
        train_first(settings, force=True)
        next((unregistered / "used_gts").iterdir()).unlink()
        assert register_first_model(settings).endswith(" % on used_gts/, trained on them")

    @pytest.mark.slow
    @pytest.mark.usefixtures("fast_training")
    def test_other_code_than_trained_it(self, unregistered: Path, settings_of: SettingsOf) -> None:
        """The errors are those of the pickle; nobody promises that today's code makes it again."""
        settings = settings_of(unregistered)
        train_first(settings, force=True)
        path = errors_path(unregistered / PICKLE)
        path.write_text(path.read_text().replace(load_training_module(settings).code_sha256, "old"))
        assert register_first_model(settings).endswith("by a model that never saw it")
        registry = open_registry(settings)
        assert registry.runs.trained_with(registry.production.champion().run_id) is None

    @pytest.mark.slow
    def test_what_was_trained_on_the_spot_is_reproduced(
        self, unregistered: Path, settings_of: SettingsOf, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """With its folds and its seed, whatever the settings are now."""
        register_first_model(settings_of(unregistered, random_state=7), train=True)
        words = ["--home", str(unregistered), "--json"]
        assert main(["reproduce", "1", *words]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["identical"], found["recorded"], found["random_state"]) == (True, True, 7)

    def test_too_few_recordings_to_train_on(
        self, unregistered: Path, settings_of: SettingsOf
    ) -> None:
        """One line, and no store."""
        settings = settings_of(unregistered, n_folds=OLD_SEASON_FILES + 1)
        with pytest.raises(PipelineError, match="used_gts holds 6 recordings; 7 folds need at l"):
            register_first_model(settings, train=True)
        assert not settings.database.exists()

    def test_production_is_left_alone(self, home: Path, settings_of: SettingsOf) -> None:
        """Without --force nothing is even trained."""
        settings = settings_of(home, n_folds=100)
        said = register_first_model(settings, train=True)
        assert said.startswith("version 1 is production already; nothing changed")


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
        """The message names the file and what to do; no version exists."""
        break_it(unregistered)
        settings = settings_of(unregistered)
        with pytest.raises(PipelineError, match=text):
            register_first_model(settings)
        assert not settings.database.exists()

    @pytest.mark.sampled(0.5)
    @pytest.mark.parametrize(
        "break_it",
        [
            lambda home: (home / PICKLE).write_bytes(b"no pickle"),
            pytest.param(lambda home: _clear(home / "used_gts"), marks=pytest.mark.slow),
            pytest.param(lambda home: _link_elsewhere(home / PICKLE), marks=pytest.mark.slow),
        ],
        ids=["damaged", "no recordings", "link"],
    )
    def test_a_bad_start_that_was_mended(
        self, unregistered: Path, settings_of: SettingsOf, break_it: Any
    ) -> None:
        """It goes, as if nothing had been."""
        whole = shutil.copytree(unregistered, unregistered.with_name("whole"))
        break_it(unregistered)
        settings = settings_of(unregistered)
        with pytest.raises(PipelineError):
            register_first_model(settings)
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

    @pytest.mark.slow
    def test_a_cut_off_registration_is_done_again(
        self, unregistered: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A version without alias from a dead registration does not stay."""
        settings = settings_of(unregistered)
        with monkeypatch.context() as patch:
            patch.setattr(Production, "move_to", _die)
            with pytest.raises(KeyboardInterrupt):
                register_first_model(settings)
        register_first_model(settings)
        registry = open_registry(settings)
        versions = registry.versions.all()
        assert [one.number for one in versions] == [registry.production.number()]


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
    connection = open_registry(Settings(home=home)).versions.connection
    uri = connection.client.get_model_version_download_uri(connection.name, "1")
    assert uri.removeprefix("file://").startswith(str(home))
    assert len(list((home / "new_gts").glob("*.csv"))) == BATCH
