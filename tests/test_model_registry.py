"""The store and what is loaded from it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_home

import model_registry
import train_classification_model as training
from model_registry import folder_digest, open_registry, printable_uri, upgrade_store
from pipeline_settings import PipelineError, TryLaterError
from training_module import load_training_module

SettingsOf = Callable[..., Any]


class _RunsCode:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def artifacts_of(home: Path) -> Path:
    """Return the folder of version 1's files."""
    (model,) = (home / "mlflow_server/artifacts").rglob("model.skops")
    return model.parent


def set_digest(settings: Any, folder: Path) -> None:
    """Forge the registered digest, as only somebody with the database could."""
    registry = open_registry(settings)
    registry._client.set_model_version_tag(
        settings.model_name, "1", "artifact_sha256", folder_digest(folder)
    )


class TestLoading:
    """Whoever can write a file in the artifact folder must not run code in the nightly job."""

    def load(self, settings: Any) -> Any:
        """Load production as the cycle does."""
        registry = open_registry(settings)
        return registry.load_and_try(registry.champion(), load_training_module(settings))

    def test_the_registered_model_loads(self, home: Path, settings_of: SettingsOf) -> None:
        """And loading it through MLflow, which writes into its folder, changes nothing."""
        import mlflow

        settings = settings_of(home)
        assert isinstance(self.load(settings), training.StemClassifier)
        mlflow.sklearn.load_model(f"models:/{settings.model_name}@production")
        assert isinstance(self.load(settings), training.StemClassifier)

    @pytest.mark.parametrize(
        "name", ["model.skops", "MLmodel", "code/train_classification_model.py"]
    )
    def test_a_changed_file_is_refused(
        self, home: Path, settings_of: SettingsOf, name: str
    ) -> None:
        """One byte more in any file, code included."""
        with (artifacts_of(home) / name).open("ab") as stream:
            stream.write(b" ")
        with pytest.raises(PipelineError, match="are not those that were registered"):
            self.load(settings_of(home))

    def test_an_added_file_is_refused(self, home: Path, settings_of: SettingsOf) -> None:
        """A module that would shadow a package."""
        (artifacts_of(home) / "code" / "numpy.py").write_text("raise SystemExit(1)\n")
        with pytest.raises(PipelineError, match="are not those that were registered"):
            self.load(settings_of(home))

    def test_a_pickle_in_place_of_the_model_runs_nothing(
        self, home: Path, settings_of: SettingsOf, tmp_path: Path
    ) -> None:
        """MLmodel says pickle and even the digest fits: still nothing is unpickled."""
        folder, target = artifacts_of(home), tmp_path / "ran"
        (folder / "model.skops").unlink()
        (folder / "model.pkl").write_bytes(pickle.dumps(_RunsCode(target)))
        described = yaml.safe_load((folder / "MLmodel").read_text())
        described["flavors"]["sklearn"].update(
            pickled_model="model.pkl", serialization_format="pickle"
        )
        (folder / "MLmodel").write_text(yaml.safe_dump(described))
        settings = settings_of(home)
        set_digest(settings, folder)
        with pytest.raises(PipelineError, match="--allow-pickle"):
            self.load(settings)
        (folder / "model.pkl").rename(folder / "model.skops")
        set_digest(settings, folder)
        with pytest.raises(PipelineError, match="does not load"):
            self.load(settings)
        assert not target.exists()

    def test_a_model_that_trusts_its_own_types_is_refused(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """The list in MLmodel is not ours."""
        import skops.io
        from sklearn.preprocessing import FunctionTransformer

        folder = artifacts_of(home)
        skops.io.dump(FunctionTransformer(os.system), folder / "model.skops")
        described = yaml.safe_load((folder / "MLmodel").read_text())
        described["flavors"]["sklearn"]["skops_trusted_types"] = ["posix.system"]
        (folder / "MLmodel").write_text(yaml.safe_dump(described))
        settings = settings_of(home)
        set_digest(settings, folder)
        with pytest.raises(PipelineError, match="types that the training module does not trust"):
            self.load(settings)

    def test_a_version_without_digest_needs_trust(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """Registered by another pipeline: only with --allow-pickle."""
        registry = open_registry(settings_of(home))
        registry._client.delete_model_version_tag(registry._name, "1", "artifact_sha256")
        with pytest.raises(PipelineError, match="was not registered by this pipeline"):
            self.load(settings_of(home))
        assert self.load(settings_of(home, allow_pickle=True)) is not None

    def test_a_changed_manifest_is_refused(self, home: Path, settings_of: SettingsOf) -> None:
        """It decides what is archived."""
        (manifest,) = (home / "mlflow_server/artifacts").rglob("training_files.json")
        manifest.write_text(json.dumps({"files": []}))
        registry = open_registry(settings_of(home))
        with pytest.raises(PipelineError, match="not the one that was registered"):
            registry.manifest(registry.champion())
        manifest.unlink()
        with pytest.raises(PipelineError, match="is missing"):
            registry.manifest(registry.champion())


class TestStores:
    """Opening, refusing and upgrading."""

    def test_nothing_creates_a_store(self, tmp_path: Path, settings_of: SettingsOf) -> None:
        """A wrong folder stays as it is."""
        home = make_home(tmp_path / "home")
        with pytest.raises(PipelineError, match="run: python register_first_model.py"):
            open_registry(settings_of(home))
        assert list((home / "mlflow_server/backend_db").iterdir()) == []

    def test_a_named_sqlite_file_is_not_created(
        self, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """A typing error in MLFLOW_TRACKING_URI is no new empty store."""
        home = make_home(tmp_path / "home")
        with pytest.raises(PipelineError, match="there is no store at"):
            open_registry(settings_of(home, tracking_uri=f"sqlite:///{tmp_path}/wrong.db"))
        assert not (tmp_path / "wrong.db").exists()

    def test_no_database_is_no_store(self, home: Path, settings_of: SettingsOf) -> None:
        """A text file in its place is named, not overwritten."""
        settings = settings_of(home)
        settings.database.write_text("nothing")
        with pytest.raises(PipelineError, match="is not a readable MLflow store"):
            open_registry(settings)
        assert settings.database.read_text() == "nothing"

    def test_an_older_store_is_not_migrated_silently(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """Refused with the command to run; the file does not change."""
        settings = settings_of(home)
        downgrade(settings.database)
        before = settings.database.read_bytes()
        with pytest.raises(PipelineError, match="upgrade-store"):
            open_registry(settings)
        assert settings.database.read_bytes() == before

    def test_upgrade_store_keeps_a_backup(self, home: Path, settings_of: SettingsOf) -> None:
        """The old schema stays beside the new one; a second time there is nothing to do."""
        settings = settings_of(home)
        revision = downgrade(settings.database)
        assert f"schema {revision} -> " in upgrade_store(settings)
        assert open_registry(settings).production_number() == 1
        (backup,) = settings.database.parent.glob("*.backup")
        with contextlib.closing(sqlite3.connect(backup)) as connection:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]
        assert found == revision
        assert "nothing to do" in upgrade_store(settings)

    def test_a_dead_server_costs_little(self, home: Path, settings_of: SettingsOf) -> None:
        """Asked for its health before MLflow spends its retries."""
        began = time.monotonic()
        with pytest.raises(TryLaterError, match="does not answer"):
            open_registry(settings_of(home, tracking_uri="http://127.0.0.1:9"))
        assert time.monotonic() - began < 30

    def test_passwords_are_not_printed(self, home: Path, settings_of: SettingsOf) -> None:
        """Not in messages about the store either."""
        assert printable_uri("http://me:secret@host:5000/x") == "http://host:5000/x"
        assert printable_uri("postgresql://me:a/b@db/mlflow") == "postgresql://db/mlflow"
        with pytest.raises(TryLaterError) as caught:
            open_registry(settings_of(home, tracking_uri="http://me:secret@127.0.0.1:9"))
        assert "secret" not in str(caught.value)


def downgrade(database: Path) -> str:
    """Take a store one schema revision back, as an older MLflow would have left it."""
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config

    config = _get_alembic_config(f"sqlite:///{database}")
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(database, database.with_suffix(".before"))
    command.downgrade(config, "-1")
    database.with_suffix(".before").unlink()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def test_a_journal_of_a_dead_process_is_rolled_back(home: Path, settings_of: SettingsOf) -> None:
    """Killed in the middle of a transaction: the next command finds the store as it was."""
    database = home / "mlflow_server/backend_db/mlflow.db"
    code = """
import os, signal, sqlite3, sys
store = sqlite3.connect(sys.argv[1], isolation_level=None)
store.execute("PRAGMA cache_size = 1")
store.execute("BEGIN IMMEDIATE")
store.execute("UPDATE runs SET status = 'RUNNING'")
store.execute("CREATE TABLE spill AS SELECT a.*, b.* FROM params AS a, params AS b")
os.kill(os.getpid(), signal.SIGKILL)
"""
    dead = subprocess.run([sys.executable, "-c", code, str(database)], check=False)
    assert dead.returncode == -signal.SIGKILL
    assert database.with_name("mlflow.db-journal").stat().st_size > 0
    registry = open_registry(settings_of(home))
    assert registry.production_number() == 1
    assert registry._open_runs(registry._experiment_id()) == []
    assert not database.with_name("mlflow.db-journal").exists()


class TestTidying:
    """Runs and versions of dead cycles."""

    def test_only_runs_of_this_home_are_closed(self, home: Path, settings_of: SettingsOf) -> None:
        """Another home's run on a shared store goes on."""
        registry = open_registry(settings_of(home))
        experiment = registry._experiment_id()
        ours = registry._client.create_run(
            experiment, tags={"pipeline_home": registry._home_tag}, run_name="ModelMonitoring"
        )
        theirs = registry._client.create_run(experiment, tags={"pipeline_home": "elsewhere"})
        registry.close_left_over_runs("")
        assert registry._client.get_run(ours.info.run_id).info.status == "KILLED"
        assert registry._client.get_run(theirs.info.run_id).info.status == "RUNNING"

    def test_a_promotion_that_happened_belongs_to_history(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """Killed after the alias had moved: the run is finished, not killed."""
        registry = open_registry(settings_of(home))
        for target, status in (("1", "FINISHED"), ("9", "KILLED")):
            run = registry._client.create_run(
                registry._experiment_id(),
                tags={"pipeline_home": registry._home_tag, "pipeline_to": target},
                run_name=model_registry.PROMOTION_RUN,
            )
            registry.close_left_over_runs("")
            assert registry._client.get_run(run.info.run_id).info.status == status
