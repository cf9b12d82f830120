"""What the caller's MLflow is at work on never reaches the pipeline's runs, nor they it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import BATCH, FAST_WORDS, OWN_MODEL, ROOT, make_home, script, write_samples

from pipeline_orchestrator import run_orchestrator
from retraining.outcome import Outcome
from retraining.registry import open_registry
from retraining.settings import Settings

SettingsOf = Callable[..., Any]
SWITCHED_ON = {
    "on import": ("", "import mlflow\nmlflow.sklearn.autolog()\n"),
    "in fit": ("    import mlflow\n    mlflow.autolog()\n", ""),
}


def all_runs(settings: Settings) -> dict[str, tuple[Any, ...]]:
    """Return all runs of a store, of any experiment: id -> name, tags, metrics and parameters."""
    client = open_registry(settings).runs.connection.client
    experiments = [one.experiment_id for one in client.search_experiments()]
    return {
        run.info.run_id: (run.info.run_name, run.data.tags, run.data.metrics, run.data.params)
        for run in client.search_runs(experiments)
    }


@pytest.fixture
def theirs(home: Path, settings_of: SettingsOf) -> str:
    """Give the id of a run of somebody else in the same store."""
    client = open_registry(settings_of(home)).runs.connection.client
    return str(client.create_run("0", run_name="theirs").info.run_id)


@pytest.mark.usefixtures("fast_training")
class TestSurroundings:
    """Variables of another job, and a run that is open."""

    def test_variables_name_another_run_experiment_and_registry(
        self,
        home: Path,
        settings_of: SettingsOf,
        theirs: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A cycle promotes; the other run is as it was, and no other store was made."""
        settings = settings_of(home)
        before = all_runs(settings)
        for name, value in {
            "MLFLOW_RUN_ID": theirs,
            "MLFLOW_EXPERIMENT_NAME": "Another",
            "MLFLOW_EXPERIMENT_ID": "0",
            "MLFLOW_REGISTRY_URI": f"sqlite:///{tmp_path}/other.db",
            "MLFLOW_ENABLE_ASYNC_LOGGING": "true",
        }.items():
            monkeypatch.setenv(name, value)
        assert run_orchestrator(settings).outcome is Outcome.PROMOTED
        after = all_runs(settings)
        assert after[theirs] == before[theirs]
        new = [name for run_id, (name, *_) in after.items() if run_id not in before]
        assert sorted(new) == ["ModelMonitoring", "ModelPromotion", "ModelRetraining"]
        client = open_registry(settings).runs.connection.client
        assert client.get_experiment_by_name("Another") is None
        assert not (tmp_path / "other.db").exists()

    def test_a_run_that_the_caller_has_open(
        self, home: Path, settings_of: SettingsOf, theirs: str
    ) -> None:
        """It stays open, and empty."""
        import mlflow

        settings = settings_of(home, threshold=1000)
        before = all_runs(settings)
        with mlflow.start_run(run_id=theirs):
            assert run_orchestrator(settings).outcome is Outcome.HEALTHY
            active = mlflow.active_run()
            assert active is not None
            assert active.info.run_id == theirs
        assert all_runs(settings)[theirs] == before[theirs]


class TestAutologging:
    """A module, or something around it, switched it on."""

    @pytest.mark.slow
    @pytest.mark.sampled(0.5)
    @pytest.mark.parametrize("where", SWITCHED_ON)
    def test_a_module_that_calls_autolog_works(self, tmp_path: Path, where: str) -> None:
        """In processes of its own, too; not one run or model comes of it."""
        text = (OWN_MODEL / "grain_quality.py").read_text()
        in_fit, behind = SWITCHED_ON[where]
        first_line = "    forest = RandomForestClassifier("
        assert first_line in text
        module = tmp_path / f"logging_{where.replace(' ', '_')}.py"
        module.write_text(text.replace(first_line, in_fit + first_line) + behind)
        home = make_home(tmp_path / "home")
        write_samples(home / "used_gts", BATCH, "old", seed=1, prefix="old")
        write_samples(home / "new_gts", BATCH, "new", seed=2, prefix="new")
        words = ["--training-module", str(module)]
        done = script("register_first_model.py", "--train", "--n-jobs", "2", *words, home=home)
        assert done.returncode == 0, done.stderr
        done = script("pipeline_orchestrator.py", *FAST_WORDS, "--n-jobs", "2", *words, home=home)
        assert done.returncode == 0, done.stderr
        settings = Settings(home=home, training_module=str(module))
        assert {name for name, *_ in all_runs(settings).values()} <= {
            *("Registering Initial Production Model", "ModelMonitoring", "ModelRetraining"),
            "ModelPromotion",
        }
        client = open_registry(settings).runs.connection.client
        everywhere = [one.experiment_id for one in client.search_experiments()]
        models = client.search_logged_models(experiment_ids=everywhere)
        assert len(models) == len(client.search_model_versions())

    @pytest.mark.slow
    def test_a_sitecustomize_that_switches_it_on(self, home: Path, tmp_path: Path) -> None:
        """Before anything of ours is imported."""
        folder = tmp_path / "site"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text("import mlflow\nmlflow.autolog()\n")
        done = script("pipeline_orchestrator.py", *FAST_WORDS, home=home, PYTHONPATH=str(folder))
        assert done.returncode == 0, done.stderr
        names = [name for name, *_ in all_runs(Settings(home=home)).values()]
        assert names.count("ModelRetraining") == 1
        assert all(name.startswith(("Model", "Registering")) for name in names)


def test_nothing_logs_by_the_open_run() -> None:
    """MLflow's functions without a run's id write to whatever run is open."""
    sources = [*ROOT.glob("*.py"), *(ROOT / "retraining").rglob("*.py")]
    words = ("mlflow.log_", "mlflow.start_run", "mlflow.end_run", "mlflow.set_tag")
    assert [path.name for path in sources for word in words if word in path.read_text()] == []
