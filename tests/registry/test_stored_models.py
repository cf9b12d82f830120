"""What is loaded from the store: the registered files, and none of their code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import train_classification_model as training
from retraining.commands.trust import trust
from retraining.errors import PipelineError
from retraining.registry import open_registry
from retraining.registry.stored_models import folder_digest
from retraining.training import load_training_module

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
    """Forge the registered digest, as only somebody with the database could; a person trusts it."""
    registry = open_registry(settings)
    registry.versions.set_tag(1, "artifact_sha256", folder_digest(folder))
    with pytest.raises(PipelineError, match="is not what this home vouches for"):
        registry.models.load(registry.versions.get(1), load_training_module(settings))
    trust(settings, 1, "a test")


class TestLoading:
    """Whoever can write a file in the artifact folder must not run code in the nightly job."""

    def load(self, settings: Any) -> Any:
        """Load production as the cycle does."""
        registry = open_registry(settings)
        return registry.models.load_and_try(
            registry.production.champion(), load_training_module(settings)
        )

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

    def test_bytecode_beside_the_code_is_neither_tampering_nor_run(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """`mlflow models serve` leaves it in the store; not registered, it stays there."""
        left_over = artifacts_of(home) / "code" / "__pycache__" / "evil.cpython-311.pyc"
        left_over.parent.mkdir()
        left_over.write_bytes(b"anything")
        registry = open_registry(settings_of(home))
        with registry.models.verified_files(registry.production.champion()) as folder:
            assert [path.name for path in (folder / "code").iterdir()] == [
                "train_classification_model.py"
            ]
        left_over.parent.rename(left_over.parent.with_name("elsewhere"))
        left_over.parent.symlink_to("elsewhere")
        with pytest.raises(PipelineError, match="are not those that were registered"):
            registry.models.load(
                registry.production.champion(), load_training_module(settings_of(home))
            )

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
        """Whatever --allow-pickle says; trusted, it has one."""
        registry = open_registry(settings_of(home))
        connection = registry.runs.connection
        connection.client.delete_model_version_tag(connection.name, "1", "artifact_sha256")
        with pytest.raises(PipelineError, match="python pipeline_orchestrator.py trust 1"):
            self.load(settings_of(home, allow_pickle=True))
        trust(settings_of(home), 1, "a test")
        assert self.load(settings_of(home)) is not None
