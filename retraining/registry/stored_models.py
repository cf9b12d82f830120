"""The files of a version: store them, verify them, and load them without running their code."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retraining.errors import PipelineError
from retraining.files import hash_bytes, hash_file, sync_file, sync_folder
from retraining.journal import Journal
from retraining.registry import exchanges, refusals
from retraining.registry.facts import (
    OTHER_VERSION,
    TAG_ARTIFACT_HASH,
    RegisteredVersion,
    digest_of,
    unreadable,
)
from retraining.registry.packaged import (
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    PackagedModel,
    needs_other_code,
)
from retraining.registry.pruned import pruning_of
from retraining.registry.store import Connection, disk_in_words, is_outage
from retraining.registry.vouches import Vouches
from retraining.text import moment, printable
from retraining.training import Training

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Run

MODEL_FILE = "model.skops"
EXAMPLE_FILE = "input_example.json"
LEFT_OUT_OF_DIGEST = "registered_model_meta"
"""MLflow writes it beside a model when somebody loads it."""
BYTECODE = "__pycache__"
MOST_FILES = 1000
"""Of a version; a model has about ten."""

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
    vouches: Vouches

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
        from mlflow.models import Model

        mlflow = self.connection.mlflow

        def save(folder: Path, model_id: str) -> None:
            described = Model(run_id=run_id, model_id=model_id, model_uuid=model_id)
            mlflow.sklearn.save_model(
                model,
                str(folder),
                mlflow_model=described,
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

        try:
            return self._stored(save, run_id)
        except (mlflow.MlflowException, TypeError, ValueError, AttributeError):
            check_types(model, training)
            raise

    def adopt(self, files: Path, run_id: str) -> LoggedModel:
        """Store the files of a version as they are with a run, whatever code made them."""
        return self._stored(lambda folder, _: shutil.copytree(files, folder), run_id)

    def _stored(self, save: Callable[[Path, str], object], run_id: str) -> LoggedModel:
        """Give a run a model whose digest is of what was made here, whatever the store makes of it.

        Parameters
        ----------
        save
            Writes the files into a folder that is yet to be made, given the model's id.
        """
        from mlflow.entities import LoggedModelOutput

        client = self.connection.client
        run = client.get_run(run_id)
        logged = client.create_logged_model(
            run.info.experiment_id, name="model", source_run_id=run_id
        )
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        self._log_metrics(run, logged.model_id)
        with tempfile.TemporaryDirectory(prefix="pipeline-model-") as name:
            folder = Path(name, "model")
            save(folder, logged.model_id)
            remove_bytecode(folder)
            digest = folder_digest(folder)
            client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, "READY")
        for uri in (logged.artifact_location, run.info.artifact_uri):
            sync_local_artifacts(uri)
        return LoggedModel(logged.model_uri, logged.model_id, digest)

    def _log_metrics(self, run: Run, model_id: str) -> None:
        """Let MLflow's page of the model show what its run measured."""
        from mlflow.entities import Metric

        client = self.connection.client
        last = (client.get_metric_history(run.info.run_id, key)[-1] for key in run.data.metrics)
        metrics = [
            Metric(one.key, one.value, one.timestamp, one.step, model_id=model_id) for one in last
        ]
        client.log_batch(run.info.run_id, metrics=metrics)

    # --- Verifying ---

    @contextlib.contextmanager
    def _downloaded(self, version: RegisteredVersion) -> Iterator[Path]:
        """Give a private copy of a version's files, so that nobody changes them after the check."""
        mlflow, uri = self.connection.mlflow, self.location(version)
        with tempfile.TemporaryDirectory(prefix="pipeline-model-") as folder:
            try:
                limit, remedy = self.connection.settings.max_model_mb, f", or {OTHER_VERSION}"
                count_files(uri, f"version {version.number}", limit, remedy)
                exchanges.begin_download()
                path = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder)
            except (OSError, mlflow.MlflowException) as error:
                disk = disk_in_words(error, self.connection.settings)
                if disk or is_outage(error) or refusals.in_words(error):
                    raise
                self._refuse_pruned(version)
                raise PipelineError(
                    f"the files of version {version.number} are missing at {printable(uri)}; "
                    f"restore them, or {OTHER_VERSION}"
                ) from error
            remove_bytecode(Path(path))
            yield Path(path)

    def _refuse_pruned(self, version: RegisteredVersion) -> None:
        """Say of a version whose model file is gone that this home removed it, if it did.

        Raises
        ------
        PipelineError
            With the day.
        """
        settings = self.connection.settings
        entry = pruning_of(version, Journal(settings.home).read(), settings.model_name)
        if entry is not None:
            raise PipelineError(
                f"version {version.number} was pruned on {moment(entry.at)}: its {MODEL_FILE} is "
                "gone, so it can neither be loaded nor compared; its code, manifest, errors and "
                f"verdict are readable. Put that file back from a backup, or {OTHER_VERSION}"
            )

    def location(self, version: RegisteredVersion) -> str:
        """Return the address of a version's files."""
        client, name = self.connection.client, self.connection.name
        return str(client.get_model_version_download_uri(name, str(version.number)))

    @contextlib.contextmanager
    def verified_files(self, version: RegisteredVersion) -> Iterator[Path]:
        """Give a private copy of a version's files, which are those that this home vouches for.

        Raises
        ------
        PipelineError
            If the home does not vouch for the version, or files are missing or differ.
        """
        self.vouches.check(version)
        with self.registered_files(version) as folder:
            yield folder

    @contextlib.contextmanager
    def registered_files(self, version: RegisteredVersion) -> Iterator[Path]:
        """Give a private copy of a version's files, which are those that its tag tells of.

        Raises
        ------
        PipelineError
            If files are missing or differ from what was registered.
        """
        expected = version.tags.get(TAG_ARTIFACT_HASH, "")
        with self.whole_files(version) as folder:
            if expected not in (folder_digest(folder), older_folder_digest(folder)):
                raise PipelineError(
                    f"the files of version {version.number} are not those that were registered; "
                    f"restore them, or {OTHER_VERSION}"
                )
            yield folder

    @contextlib.contextmanager
    def whole_files(self, version: RegisteredVersion) -> Iterator[Path]:
        """Give a private copy of a version's files as they are now.

        Raises
        ------
        PipelineError
            If they are missing, or the version was pruned.
        """
        with self._downloaded(version) as folder:
            if not (folder / MODEL_FILE).is_file():
                self._refuse_pruned(version)
            yield folder

    def digest(self, version: RegisteredVersion, *, pruned_too: bool = False) -> str:
        """Return the digest of a version's files as they are now.

        Parameters
        ----------
        pruned_too
            Also of what is left of a pruned one.
        """
        with self._downloaded(version) if pruned_too else self.whole_files(version) as folder:
            return folder_digest(folder)

    # --- Pruning ---

    def model_file_bytes(self, location: str) -> int | None:
        """Return the length of the model file at an address; None if there is none."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        found = get_artifact_repository(location).list_artifacts(None)
        sizes = {one.path: one.file_size or 0 for one in found if not one.is_dir}
        return sizes.get(MODEL_FILE)

    def delete_model_file(self, location: str) -> None:
        """Remove the model file at an address, and nothing else.

        Raises
        ------
        PipelineError
            If it is there afterwards: S3 tells nobody what it refused.
        """
        delete_artifact(location, MODEL_FILE)
        sync_local_artifacts(location)
        if self.model_file_bytes(location) is not None:
            raise PipelineError(
                f"the artifact store did not remove {MODEL_FILE} at {printable(location)}; let "
                "the pipeline's user, or that of the MLflow server, delete there"
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
        with self.verified_files(version) as folder:
            return self._loaded(version, folder, training)

    def _loaded(self, version: RegisteredVersion, folder: Path, training: Training) -> Any:
        settings = self.connection.settings
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
            return PackagedModel(folder, version.number, settings)
        return _load_skops(folder / MODEL_FILE, version.number, training.trusted_types)

    def load_and_try(self, version: RegisteredVersion, training: Training) -> Any:
        """Load a version's model and let it predict the example that is stored with it.

        Raises
        ------
        PipelineError
            If it does not load or does not predict.
        """
        with self.verified_files(version) as folder:
            rows = _example(folder, version)
            model = self._loaded(version, folder, training)
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


def _example(folder: Path, version: RegisteredVersion) -> pd.DataFrame:
    import pandas as pd

    try:
        example = json.loads((folder / EXAMPLE_FILE).read_bytes())
        return pd.DataFrame(example["data"], columns=example["columns"])
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise unreadable(f"version {version.number}", EXAMPLE_FILE, error) from error


def remove_bytecode(folder: Path) -> None:
    """Remove what a program that serves the files where they lie leaves beside their code.

    It was not registered, so it may neither look like tampering nor ever be run.
    """
    for left_over in [*folder.rglob(BYTECODE)]:
        if left_over.is_dir() and not left_over.is_symlink():
            shutil.rmtree(left_over)


def folder_digest(folder: Path) -> str:
    """Return one SHA-256 over all files of a model's folder, their names included."""
    return digest_of(text for name, sha256 in _hashes(folder) for text in (name, sha256))


def older_folder_digest(folder: Path) -> str | None:
    """Return what an older pipeline noted; None where a line break makes two folders alike."""
    hashes = _hashes(folder)
    if any("\n" in name for name, _ in hashes):
        return None
    return hash_bytes(os.fsencode("\n".join(f"{sha256}  {name}" for name, sha256 in hashes)))


def _hashes(folder: Path) -> list[tuple[str, str]]:
    return [
        (path.relative_to(folder).as_posix(), hash_file(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path != folder / LEFT_OUT_OF_DIGEST
        and BYTECODE not in path.relative_to(folder).parts
    ]


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


def count_files(uri: str, source: str, limit_mb: float, remedy: str = "") -> int:
    """Return how many files are at an address, before any of them is copied.

    Parameters
    ----------
    source, remedy
        Whose they are, and what else helps, for the message.

    Raises
    ------
    PipelineError
        If they are too large, or too many.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(uri)
    n_bytes, n_files, folders = 0, 0, [""]
    while folders:
        for one in repository.list_artifacts(folders.pop() or None):
            n_files += 1
            n_bytes += 0 if one.is_dir else one.file_size or 0
            folders += [one.path] if one.is_dir else []
            if n_bytes > limit_mb * 1e6 or n_files > MOST_FILES:
                raise PipelineError(
                    f"the files of {source} are more than {limit_mb:g} MB, or more than "
                    f"{MOST_FILES}; nothing was copied: raise --max-model-mb if they should be"
                    f"{remedy}"
                )
    return n_files


def delete_artifact(uri: str, name: str) -> None:
    """Remove a file below an address.

    Notes
    -----
    MLflow decodes a local address twice, so that below a folder `50%20off` it would remove what
    lies in `50 off`, and nothing here.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    folder = _local_folder(uri)
    if folder is None:
        get_artifact_repository(uri).delete_artifacts(name)
    else:
        (folder / name).unlink(missing_ok=True)


def _local_folder(uri: str) -> Path | None:
    """Return where an address leads on this machine; None if it is another's."""
    from urllib.request import url2pathname

    parts = urllib.parse.urlparse(uri)
    if parts.scheme not in ("", "file"):
        return None
    return Path(url2pathname(parts.path if parts.scheme else uri))


def sync_local_artifacts(uri: str) -> None:
    """Make a model's files durable where they lie on this machine."""
    folder = _local_folder(uri)
    if folder is None or not folder.is_dir():
        return
    for path in folder.rglob("*"):
        if path.is_file():
            sync_file(path)
        elif path.is_dir():
            sync_folder(path)
    for ancestor in (folder, *list(folder.parents)[:3]):
        sync_folder(ancestor)
