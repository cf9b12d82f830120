"""The files of a version: store them, verify them, and load them without running their code."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import tempfile
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retraining.errors import PipelineError
from retraining.files import hash_bytes, hash_file, sync_file, sync_folder
from retraining.registry.facts import TAG_ARTIFACT_HASH, RegisteredVersion
from retraining.registry.packaged import (
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    PackagedModel,
    needs_other_code,
)
from retraining.registry.store import Connection, is_outage
from retraining.text import printable
from retraining.training import Training

if TYPE_CHECKING:
    import pandas as pd

MODEL_FILE = "model.skops"
LEFT_OUT_OF_DIGEST = "registered_model_meta"
"""MLflow writes it beside a model when somebody loads it."""
OTHER_VERSION = "name another version: python pipeline_orchestrator.py rollback --to VERSION"

logger = logging.getLogger("pipeline")


@dataclass(frozen=True)
class LoggedModel:
    """A model's files in the store: how to refer to them, and their digest."""

    uri: str
    model_id: str
    digest: str


@dataclass(frozen=True)
class StoredModels:
    """The files of this model's versions."""

    connection: Connection

    # --- Storing ---

    def log(
        self, model: Any, input_example: pd.DataFrame, training: Training, run_id: str
    ) -> LoggedModel:
        """Store a model with the open run, durably where the store is on this machine.

        Parameters
        ----------
        input_example
            A few rows as the model takes them; the signature has their columns and types.
        training
            The module that made the model; its file is stored with it.

        Raises
        ------
        PipelineError
            If the model holds a type that its module does not trust.
        """
        mlflow, client = self.connection.mlflow, self.connection.client
        try:
            logged = mlflow.sklearn.log_model(
                model,
                name="model",
                serialization_format="skops",
                signature=_signature(input_example, model.predict(input_example), training),
                input_example=input_example,
                pip_requirements=requirements(training),
                code_paths=[str(training.path)],
                skops_trusted_types=list(training.trusted_types),
                metadata={
                    REQUIRED_COLUMNS: list(training.required_columns),
                    OPTIONAL_COLUMNS: list(training.optional_columns),
                },
            )
        except (mlflow.MlflowException, TypeError, ValueError, AttributeError):
            check_types(model, training)
            raise
        location = client.get_logged_model(logged.model_id).artifact_location
        for uri in (location, client.get_run(run_id).info.artifact_uri):
            _sync_local_artifacts(uri)
        return LoggedModel(logged.model_uri, logged.model_id, self._digest_at(location))

    def adopt(self, files: Path, run_id: str) -> LoggedModel:
        """Store the files of a version as they are with a run, whatever code made them."""
        client = self.connection.client
        experiment_id = client.get_run(run_id).info.experiment_id
        logged = client.create_logged_model(experiment_id, name="model", source_run_id=run_id)
        client.log_model_artifacts(logged.model_id, str(files))
        client.finalize_logged_model(logged.model_id, "READY")
        location = logged.artifact_location
        return LoggedModel(logged.model_uri, logged.model_id, self._digest_at(location))

    def _digest_at(self, location: str) -> str:
        download = self.connection.mlflow.artifacts.download_artifacts
        with tempfile.TemporaryDirectory(prefix="pipeline-model-") as folder:
            return folder_digest(Path(download(artifact_uri=location, dst_path=folder)))

    # --- Verifying ---

    @contextlib.contextmanager
    def _downloaded(self, version: RegisteredVersion) -> Iterator[Path]:
        """Give a private copy of a version's files, so that nobody changes them after the check."""
        mlflow = self.connection.mlflow
        uri = self.connection.client.get_model_version_download_uri(
            self.connection.name, str(version.number)
        )
        with tempfile.TemporaryDirectory(prefix="pipeline-model-") as folder:
            try:
                path = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder)
            except (OSError, mlflow.MlflowException) as error:
                if is_outage(error):
                    raise
                raise PipelineError(
                    f"the files of version {version.number} are missing at {printable(uri)}; "
                    f"restore them, or {OTHER_VERSION}"
                ) from error
            _remove_bytecode(Path(path))
            yield Path(path)

    @contextlib.contextmanager
    def verified_files(self, version: RegisteredVersion) -> Iterator[Path]:
        """Give a private copy of a version's files, which are those that were registered.

        Raises
        ------
        PipelineError
            If files are missing or differ from what was registered.
        """
        with self._downloaded(version) as folder:
            self._check_digest(version, folder)
            yield folder

    def _check_digest(self, version: RegisteredVersion, folder: Path) -> None:
        expected = version.tags.get(TAG_ARTIFACT_HASH)
        if expected is None:
            if self.connection.settings.allow_pickle:
                return
            raise PipelineError(
                f"version {version.number} has no {TAG_ARTIFACT_HASH}: it was not registered by "
                "this pipeline; --allow-pickle if you trust whoever wrote it"
            )
        if folder_digest(folder) != expected:
            raise PipelineError(
                f"the files of version {version.number} are not those that were registered; "
                f"restore them, or {OTHER_VERSION}"
            )

    # --- Loading ---

    def load(self, version: RegisteredVersion, training: Training) -> Any:
        """Load a version's model, without running any code of its files in this process.

        The present module's trusted types are the only ones beyond skops' own list. A version that
        other code made predicts in a process of its own.

        Raises
        ------
        PipelineError
            If files are missing or differ from what was registered, or hold another type.
        """
        settings = self.connection.settings
        with self.verified_files(version) as folder:
            if not (folder / MODEL_FILE).is_file():
                if settings.allow_pickle:
                    return self.connection.mlflow.sklearn.load_model(str(folder))
                raise PipelineError(
                    f"version {version.number} holds no {MODEL_FILE}; a pickle runs code when it "
                    "is loaded: --allow-pickle if you trust whoever wrote it"
                )
            environment = settings.champion_env
            if needs_other_code(folder, training, requirements(training), environment):
                logger.info("version %d predicts with its own code", version.number)
                return PackagedModel(folder, version.number, environment)
            return _load_skops(folder / MODEL_FILE, version.number, training.trusted_types)

    def load_and_try(self, version: RegisteredVersion, training: Training) -> Any:
        """Load a version's model and let it predict the example that is stored with it.

        Raises
        ------
        PipelineError
            If it does not load or does not predict.
        """
        import pandas as pd

        model = self.load(version, training)
        with self._downloaded(version) as folder:
            example = json.loads((folder / "input_example.json").read_bytes())
        rows = pd.DataFrame(example["data"], columns=example["columns"])
        try:
            predicted = model.predict(rows)
        except (ValueError, TypeError, KeyError) as error:
            raise PipelineError(
                f"version {version.number} does not predict its own example: {error}"
            ) from error
        if len(predicted) != len(rows):
            raise PipelineError(
                f"version {version.number} predicts {len(predicted)} of {len(rows)}"
            )
        return model


def _remove_bytecode(folder: Path) -> None:
    """Remove what a program that serves the files where they lie leaves beside their code.

    It was not registered, so it may neither look like tampering nor ever be run.
    """
    for left_over in [*folder.rglob("__pycache__")]:
        if left_over.is_dir() and not left_over.is_symlink():
            shutil.rmtree(left_over)


def folder_digest(folder: Path) -> str:
    """Return one SHA-256 over all files of a model's folder, their names included."""
    lines = [
        f"{hash_file(path)}  {path.relative_to(folder).as_posix()}"
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LEFT_OUT_OF_DIGEST
    ]
    return hash_bytes("\n".join(lines).encode())


def requirements(training: Training) -> list[str]:
    """Return what a model of a training module is stored with: pinned packages."""
    import mlflow

    versions = {"mlflow": mlflow.__version__, **training.package_versions()}
    return [f"{name}=={version}" for name, version in versions.items()]


def _signature(example: pd.DataFrame, predicted: Any, training: Training) -> Any:
    """Return columns with their types in, one prediction per row out.

    A model that checks its rows gets any columns. With types, MLflow would convert before the model
    sees a row: any text in a column of booleans to true, an integer of 1.5 to 1. And it refuses
    whole numbers in a column of floats where it reads a CSV itself.
    """
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    def kind(dtype: Any) -> str:
        kinds = {"i": "long", "u": "long", "f": "double", "b": "boolean"}
        return kinds.get(dtype.kind, "string")

    outputs = Schema([ColSpec(kind(np.asarray(predicted).dtype))])
    if training.checks_rows:
        return ModelSignature(outputs=outputs)
    columns = [
        ColSpec(kind(dtype), name, required=name not in training.optional_columns)
        for name, dtype in example.dtypes.items()
    ]
    return ModelSignature(Schema(columns), outputs)


def check_types(model: Any, training: Training) -> None:
    """Refuse a model that could be stored, but not loaded again.

    Raises
    ------
    PipelineError
        With the types that TRUSTED_TYPES lacks, or with what it holds that cannot be stored.
    """
    import skops.io

    try:
        content = skops.io.dumps(model)
    except Exception as error:  # of whatever it holds
        raise PipelineError(
            f"{training.path.name}: the model cannot be stored: {error}; let it hold numbers, "
            "texts, arrays of NumPy and estimators of scikit-learn"
        ) from error
    needed = set(skops.io.get_untrusted_types(data=content))
    missing = sorted(needed - set(training.trusted_types))
    if missing:
        raise PipelineError(
            f"{training.path.name}: the model holds types that TRUSTED_TYPES lacks: "
            f"{', '.join(missing)}; add them if you trust them"
        )


def _load_skops(path: Path, number: int, trusted_types: Sequence[str]) -> Any:
    import skops.io
    from skops.io.exceptions import UntrustedTypesFoundException

    try:
        return skops.io.load(path, trusted=list(trusted_types))
    except UntrustedTypesFoundException as error:
        raise PipelineError(
            f"version {number} holds types that the training module does not trust: {error}"
        ) from error
    except Exception as error:
        raise PipelineError(
            f"the model of version {number} does not load: {error}; {OTHER_VERSION}"
        ) from error


def _sync_local_artifacts(uri: str) -> None:
    """Make a model's files durable where they lie on this machine."""
    from urllib.request import url2pathname

    parts = urllib.parse.urlparse(uri)
    if parts.scheme not in ("", "file"):
        return
    folder = Path(url2pathname(parts.path))
    if not folder.is_dir():
        return
    for path in folder.rglob("*"):
        if path.is_file():
            sync_file(path)
        elif path.is_dir():
            sync_folder(path)
    for ancestor in (folder, *list(folder.parents)[:3]):
        sync_folder(ancestor)
