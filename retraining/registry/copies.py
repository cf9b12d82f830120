"""Runs and versions as they go from one store to another, with all that MLflow lets us give them.

Each copy carries `TAG_IMPORTED`, so what is there already is found again and completed.
"""

from __future__ import annotations

import contextlib
import logging
import math
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retraining.errors import PipelineError, stop_request
from retraining.registry import exchanges
from retraining.registry.facts import (
    FIRST_RUN,
    MONITORING_RUN,
    PREVIOUS,
    PRODUCTION,
    PROMOTION_RUN,
    RETRAINING_RUN,
    TAG_CREATED,
    TAG_HOME,
    TAG_IMPORTED,
    RegisteredVersion,
)
from retraining.registry.runs import Runs
from retraining.registry.store import NOT_THERE, Connection, is_outage
from retraining.registry.stored_models import (
    LoggedModel,
    StoredModels,
    count_files,
    folder_digest,
    remove_bytecode,
    sync_local_artifacts,
)
from retraining.registry.versions import Versions
from retraining.text import printable

if TYPE_CHECKING:
    from mlflow.entities import Run

OUR_RUNS = (MONITORING_RUN, RETRAINING_RUN, PROMOTION_RUN, FIRST_RUN)
DELETED = "deleted"
ENDED = ("FINISHED", "FAILED", "KILLED")
A_BATCH = 100
"""Of params or tags; ten times as many metrics. A server takes no more at once."""
PLACEHOLDER = "placeholder"
NO_FILES = "mlflow-artifacts:/no-files"
UNFINISHED = ", unfinished"
RUN_IS_GONE = "deleted in MLflow before the export"
logger = logging.getLogger("pipeline")


@dataclass(frozen=True)
class RunCopy:
    """One run.

    Parameters
    ----------
    run_id
        In the store that it comes from.
    start_ms, end_ms
        Milliseconds since 1970; None where it has no end.
    deleted
        Whether somebody deleted it in MLflow, where it can be restored.
    metrics
        Key, value (None: not a number), time in milliseconds and step of every point.
    datasets
        Each with the texts of MLflow's entity, and `tags`.
    """

    run_id: str
    name: str
    status: str
    start_ms: int
    end_ms: int | None
    deleted: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: list[list[str | float | None]] = field(default_factory=list)
    datasets: list[dict[str, str | dict[str, str] | None]] = field(default_factory=list)


@dataclass(frozen=True)
class VersionCopy:
    """One version; `run_id` and `created_ms` are those of the store that it comes from."""

    number: int
    run_id: str
    created_ms: int
    description: str
    tags: dict[str, str]


@dataclass(frozen=True)
class ModelCopy:
    """The registered model and its experiment."""

    description: str
    tags: dict[str, str]
    aliases: dict[str, int]
    experiment_tags: dict[str, str]


@dataclass(frozen=True)
class Copies:
    """Takes copies of what a store has, and makes what they were copies of in another store."""

    connection: Connection
    runs: Runs
    versions: Versions
    models: StoredModels

    # --- Taking ---

    def model(self) -> ModelCopy:
        """Return the registered model."""
        client, name = self.connection.client, self.connection.name
        model, experiment = client.get_registered_model(name), client.get_experiment_by_name(name)
        return ModelCopy(
            description=model.description or "",
            tags={key: text for key, text in model.tags.items() if key != TAG_IMPORTED},
            aliases=self.versions.aliases(),
            experiment_tags=dict(experiment.tags) if experiment else {},
        )

    def version(self, version: RegisteredVersion) -> VersionCopy:
        """Return one version."""
        client, name = self.connection.client, self.connection.name
        found = client.get_model_version(name, str(version.number))
        left_out = (TAG_IMPORTED, TAG_CREATED)
        return VersionCopy(
            number=version.number,
            run_id=version.run_id or f"none-{version.number}",
            created_ms=version.created_ms,
            description=found.description or "",
            tags={key: text for key, text in version.tags.items() if key not in left_out},
        )

    def all_runs(self, versions: Sequence[VersionCopy]) -> list[RunCopy]:
        """Return the pipeline's runs that have ended, and those of versions, the oldest first."""
        ours = [run for run in self._in_experiment() if _is_ours(run)]
        found = {run.info.run_id: run for run in ours if run.info.status != "RUNNING"}
        if len(found) < len(ours):
            logger.warning("%d runs have not ended: left out", len(ours) - len(found))
        for one in versions:
            if one.run_id not in found:
                with self._where_it_is():
                    found[one.run_id] = self.connection.client.get_run(one.run_id)
        copies = {run_id: self._run(run) for run_id, run in found.items()}
        for one in versions:
            if one.run_id not in found:
                logger.warning("the run of version %d is gone", one.number)
                gone = RunCopy(one.run_id, RUN_IS_GONE, "KILLED", one.created_ms, one.created_ms)
                copies.setdefault(one.run_id, gone)
        return sorted(copies.values(), key=lambda one: one.start_ms)

    def _in_experiment(self) -> Iterator[Run]:
        """Give all runs, deleted ones, too: what a run tells did happen."""
        from mlflow.entities import ViewType

        client, experiment_id, token = self.connection.client, self.runs.find_experiment(), None
        while experiment_id is not None:
            page = client.search_runs(
                [experiment_id],
                run_view_type=ViewType.ALL,
                max_results=1000,
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def _run(self, run: Run) -> RunCopy:
        client = self.connection.client
        points = [
            point
            for key in run.data.metrics
            for point in client.get_metric_history(run.info.run_id, key)
        ]
        inputs = run.inputs.dataset_inputs if run.inputs else []
        return RunCopy(
            run_id=run.info.run_id,
            name=run.info.run_name or "",
            status=run.info.status if run.info.status in ENDED else "KILLED",
            start_ms=run.info.start_time,
            end_ms=run.info.end_time,
            deleted=run.info.lifecycle_stage == DELETED,
            tags={key: text for key, text in run.data.tags.items() if key != TAG_IMPORTED},
            params=dict(run.data.params),
            metrics=[
                [one.key, one.value if math.isfinite(one.value) else None, one.timestamp, one.step]
                for one in points
            ],
            datasets=[
                {
                    **{name: getattr(one.dataset, name) for name in DATASET_TEXTS},
                    "tags": {tag.key: tag.value for tag in one.tags},
                }
                for one in inputs
            ],
        )

    @contextlib.contextmanager
    def artifacts_of(self, run_id: str) -> Iterator[Path | None]:
        """Give a folder with the artifacts of a run; None where it has none."""
        location = ""
        with self._where_it_is():
            location = self.connection.client.get_run(run_id).info.artifact_uri
        with self._files_at(location, f"run {run_id}") as folder:
            yield folder

    @contextlib.contextmanager
    def files_of(self, version: RegisteredVersion) -> Iterator[Path | None]:
        """Give a folder with the files of a version as they are now; None where it has none."""
        location = self.models.location(version)
        with self._files_at(location, f"version {version.number}") as folder:
            if folder is not None:
                remove_bytecode(folder)
            yield folder

    @contextlib.contextmanager
    def _files_at(self, location: str, source: str) -> Iterator[Path | None]:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        mlflow = self.connection.mlflow
        try:
            limit = self.connection.settings.max_model_mb
            there = bool(location) and count_files(location, source, limit) > 0
        except (OSError, mlflow.MlflowException) as error:
            if is_outage(error):
                raise
            there = False
        if not there:
            yield None
            return
        exchanges.begin_download()
        with tempfile.TemporaryDirectory(prefix="pipeline-copy-") as name:
            folder = Path(name, "files")
            folder.mkdir()
            get_artifact_repository(location).download_artifacts("", str(folder))
            yield folder

    @contextlib.contextmanager
    def _where_it_is(self) -> Iterator[None]:
        """Go on where something is not in the store any more."""
        try:
            yield
        except self.connection.mlflow.MlflowException as error:
            if error.error_code not in (NOT_THERE, "INVALID_PARAMETER_VALUE"):
                raise

    # --- Making ---

    def archive_of_model(self) -> str:
        """Return the archive whose import was completed here; empty for none."""
        if not self.versions.model_exists():
            return ""
        model = self.connection.client.get_registered_model(self.connection.name)
        return str(model.tags.get(TAG_IMPORTED, ""))

    def not_of(self, archive: str) -> list[int]:
        """Return the versions that are there and did not come with an archive."""
        there = self.versions.all() if self.versions.model_exists() else []
        return sorted(
            one.number for one in there if one.tags.get(TAG_IMPORTED) != _mark(archive, one.number)
        )

    def make_runs(
        self, archive: str, copies: Sequence[RunCopy], files: Mapping[str, Path]
    ) -> Iterator[tuple[str, str]]:
        """Make the runs that are lacking; give the old and the new id of each.

        Parameters
        ----------
        files
            Id of a run -> folder with its artifacts.
        """
        marked: dict[str, list[Run]] = {}
        there = set()
        for run in self._in_experiment():
            there.add(run.info.run_id)
            marked.setdefault(run.data.tags.get(TAG_IMPORTED, ""), []).append(run)
        for copy in copies:
            if copy.run_id in there:  # the model was deleted, and is put back where it was
                yield copy.run_id, copy.run_id
                continue
            mark = _mark(archive, copy.run_id)
            whole = marked.get(mark, [])
            begun = [
                run
                for run in marked.get(f"{mark}{UNFINISHED}", [])
                if run.info.lifecycle_stage != DELETED
            ]
            stop_request.obey()
            kept = whole[0] if whole else self._begun(mark, copy, begun)
            if not whole:
                self._write_run(copy, files.get(copy.run_id), kept, mark)
            for twin in begun:  # the reply to a POST was lost, and the client repeated it
                if twin.info.run_id != kept.info.run_id:
                    self.connection.client.delete_run(twin.info.run_id)
            yield copy.run_id, str(kept.info.run_id)

    def _begun(self, mark: str, copy: RunCopy, begun: Sequence[Run]) -> Run:
        """Return the run that a killed import began, or begin one."""
        if begun:
            return begun[0]
        return self.connection.client.create_run(
            self.runs.experiment_id(),
            start_time=copy.start_ms,
            run_name=copy.name,
            tags={TAG_IMPORTED: f"{mark}{UNFINISHED}"},
        )

    def _write_run(self, copy: RunCopy, files: Path | None, run: Run, mark: str) -> None:
        """Write all of a run; its mark last, so that one with a mark is whole."""
        from mlflow.entities import Metric, Param, RunTag

        client, run_id = self.connection.client, run.info.run_id
        params = [Param(key, text) for key, text in copy.params.items()]
        texts = [RunTag(key, text) for key, text in copy.tags.items()]
        points = [
            Metric(
                str(key),
                math.nan if value is None else float(value),
                int(at or 0),
                int(step or 0),
            )
            for key, value, at, step in copy.metrics
        ]
        for part in _parts(params, A_BATCH):
            client.log_batch(run_id, params=part)
        for part in _parts(points, 10 * A_BATCH):
            client.log_batch(run_id, metrics=part)
        if copy.datasets:
            client.log_inputs(run_id, [_dataset_input(one) for one in copy.datasets])
        if files is not None:
            client.log_artifacts(run_id, str(files))
            sync_local_artifacts(run.info.artifact_uri)
        for part in _parts(texts, A_BATCH):  # they call it a run of ours: it must not stay open
            client.log_batch(run_id, tags=part)
        client.set_terminated(run_id, copy.status, copy.end_ms or copy.start_ms)
        client.set_tag(run_id, TAG_IMPORTED, mark)

    def came_from_here(self, copies: Sequence[VersionCopy]) -> bool:
        """Say whether the store has all these versions, and made them itself."""
        made = {
            (one.number, one.run_id) for one in self.versions.all() if TAG_IMPORTED not in one.tags
        }
        return bool(copies) and {(one.number, one.run_id) for one in copies} <= made

    def make_versions(
        self,
        archive: str,
        copies: Sequence[VersionCopy],
        run_ids: Mapping[str, str],
        files: Mapping[int, Path],
    ) -> None:
        """Make the versions that are lacking, each under its own number.

        Raises
        ------
        PipelineError
            If the store gives another number.
        """
        by_number = {one.number: one for one in copies}
        there = {one.number for one in self.versions.all()}
        for number in range(1, max(by_number, default=0) + 1):
            if number in there:
                continue
            copy = by_number.get(number)
            if any(other > number for other in there):
                if copy is None:  # a placeholder that is deleted already
                    continue
                raise _other_numbers(self.connection.name, number)
            stop_request.obey()
            self._make_version(archive, number, copy, run_ids, files)
            there.add(number)
        for one in self.versions.all():
            if PLACEHOLDER in one.tags and one.number not in by_number:
                self.versions.delete(one.number)

    def _make_version(
        self,
        archive: str,
        number: int,
        copy: VersionCopy | None,
        run_ids: Mapping[str, str],
        files: Mapping[int, Path],
    ) -> None:
        client, name = self.connection.client, self.connection.name
        mark = {TAG_IMPORTED: _mark(archive, number)}
        if copy is None:
            created = client.create_model_version(
                name, NO_FILES, tags={**mark, PLACEHOLDER: "true"}
            )
        else:
            run_id = run_ids[copy.run_id]
            with _folder(files.get(number)) as folder:
                logged = self._adopted(folder, run_id)
            created = client.create_model_version(
                name,
                logged.uri,
                run_id=run_id,
                model_id=logged.model_id,
                tags={**copy.tags, **mark, TAG_CREATED: str(copy.created_ms)},
                description=copy.description or None,
            )
        if int(created.version) != number:
            self.versions.delete(int(created.version))
            raise _other_numbers(name, number)

    def _adopted(self, folder: Path, run_id: str) -> LoggedModel:
        """Store the files of a version with its run, if a killed import has not done so."""
        client = self.connection.client
        outputs = client.get_run(run_id).outputs
        digest = folder_digest(folder)
        for one in outputs.model_outputs if outputs else ():
            with self._where_it_is():
                model = client.get_logged_model(one.model_id)
                with self._files_at(model.artifact_location, f"model {one.model_id}") as found:
                    if found is not None and folder_digest(found) == digest:
                        client.finalize_logged_model(model.model_id, "READY")
                        return LoggedModel(model.model_uri, model.model_id, digest)
        return self.models.adopt(folder, run_id)

    def complete(self, archive: str, model: ModelCopy, deleted: Collection[str]) -> None:
        """Give the registered model what belongs to it, `production` and the mark last.

        Parameters
        ----------
        deleted
            Ids of the runs that are to be deleted: a version needs its run until now.
        """
        client, name = self.connection.client, self.connection.name
        for run_id in deleted:
            if client.get_run(run_id).info.lifecycle_stage != DELETED:
                client.delete_run(run_id)
        for key, text in model.experiment_tags.items():
            client.set_experiment_tag(self.runs.experiment_id(), key, text)
        for key, text in model.tags.items():
            client.set_registered_model_tag(name, key, text)
        client.update_registered_model(name, model.description)
        last = [one for one in (PREVIOUS, PRODUCTION) if one in model.aliases]
        for alias in [*sorted(model.aliases.keys() - {*last}), *last]:
            client.set_registered_model_alias(name, alias, str(model.aliases[alias]))
        client.set_registered_model_tag(name, TAG_IMPORTED, archive)


DATASET_TEXTS = ("name", "digest", "source_type", "source", "schema", "profile")


def _dataset_input(copy: Mapping[str, Any]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    tags = [InputTag(key, text) for key, text in copy["tags"].items()]
    return DatasetInput(Dataset(**{name: copy[name] for name in DATASET_TEXTS}), tags)


def _is_ours(run: Run) -> bool:
    return run.info.run_name in OUR_RUNS and TAG_HOME in run.data.tags


def _mark(archive: str, what: object) -> str:
    return f"{archive[:16]}:{what}"


def _parts(values: Sequence[Any], length: int) -> Iterator[list[Any]]:
    for place in range(0, len(values), length):
        yield [*values[place : place + length]]


@contextlib.contextmanager
def _folder(files: Path | None) -> Iterator[Path]:
    """Give a folder, an empty one for a version without files."""
    if files is not None:
        yield files
        return
    with tempfile.TemporaryDirectory(prefix="pipeline-copy-") as name:
        yield Path(name)


def _other_numbers(name: str, number: int) -> PipelineError:
    return PipelineError(
        f"version {number} cannot have its number in this store: a version of {name!r} was made or "
        f"deleted there meanwhile; delete the registered model {printable(name)!r} in MLflow and "
        "import again: nothing else has used it yet"
    )
