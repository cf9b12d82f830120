"""The pipeline's runs in MLflow: open them, write what a step leaves, find and close them."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from retraining.errors import PipelineError, TryLaterError
from retraining.files import hash_bytes
from retraining.registry import exchanges
from retraining.registry.facts import (
    DECIDED_ON,
    FIRST_RUN,
    INTERRUPTED,
    METRIC_AFTER,
    METRIC_BEFORE,
    MONITORING_RUN,
    OLDER_UNIT,
    PROMOTION_RUN,
    RETRAINING_RUN,
    TAG_BATCH,
    TAG_CHAMPION,
    TAG_CYCLE,
    TAG_EVENT,
    TAG_FROM,
    TAG_HOME,
    TAG_OUTCOME,
    TAG_PLACE,
    TAG_SEQUENCE,
    TAG_TO,
    TAG_UNIT,
    TAG_WHO,
    TAG_WHY,
    TRAINED_WITH,
    Change,
    Dataset,
    MonitoredBatch,
    NotInRegistry,
    RunRecord,
    Tags,
    a_time,
    an_error,
    unreadable,
    whole_number,
)
from retraining.registry.store import NOT_THERE, Connection
from retraining.text import as_local_time, printable, without_secrets

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import Experiment, Run

ONE_SHORT_SECONDS = 2.0
ONE_SHORT_TRY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}
MOST_RUNS = 1000
NAN = float("nan")
Fact = TypeVar("Fact")

logger = logging.getLogger("pipeline")


@dataclass(frozen=True)
class Runs:
    """The runs of this model's experiment."""

    connection: Connection

    # --- Writing ---

    def create_experiment(self) -> None:
        """Create the experiment where it is missing."""
        client, settings = self.connection.client, self.connection.settings
        if client.get_experiment_by_name(self.connection.name) is None:
            location = None if settings.is_on_server else settings.artifacts.as_uri()
            client.create_experiment(self.connection.name, artifact_location=location)

    @contextlib.contextmanager
    def open(self, name: str, tags: Mapping[str, str]) -> Iterator[str]:
        """Open a run, give its id, and close it whatever happens.

        Notes
        -----
        MLflow's `start_run` goes on with a run that the environment or the caller has open, and
        what is logged without naming a run goes there: every call names its run here.
        """
        from mlflow.tracking.context.registry import resolve_tags

        experiment_id, client = self.experiment_id(), self.connection.client
        ours = {TAG_HOME: self.connection.home_id, TAG_PLACE: self.connection.place}
        run = client.create_run(experiment_id, tags=resolve_tags({**ours, **tags}), run_name=name)
        run_id = str(run.info.run_id)
        try:
            for twin in self._left_open(experiment_id):  # the reply to a POST was lost
                if twin.info.run_id != run_id:
                    client.set_terminated(twin.info.run_id, "KILLED")
            yield run_id
        except BaseException:
            self._close_failed_run(run_id)
            raise
        client.set_terminated(run_id)

    def _close_failed_run(self, run_id: str) -> None:
        """Try once and briefly: the first error counts, and tidying closes what stays open."""
        before = {name: os.environ[name] for name in ONE_SHORT_TRY}
        os.environ.update(ONE_SHORT_TRY)
        try:
            with exchanges.within(ONE_SHORT_SECONDS):
                self.connection.client.set_terminated(run_id, "FAILED")
        except (OSError, self.connection.mlflow.MlflowException) as error:
            logger.info("the run stays open until the next start: %s", type(error).__name__)
        finally:
            os.environ.update(before)

    def log(self, run_id: str, record: RunRecord) -> None:
        """Write what a step leaves to the open run."""
        from mlflow.entities import Metric, Param

        client, at = self.connection.client, round(time.time() * 1000)
        metrics = [Metric(name, float(value), at, 0) for name, value in record.metrics.items()]
        for name, values in record.trends.items():  # a history, which MLflow draws as a line
            metrics += [Metric(name, value, at, step) for step, value in enumerate(values, 1)]
        client.log_batch(
            run_id,
            metrics=metrics,
            params=[Param(name, str(value)) for name, value in record.params.items()],
            synchronous=True,
        )
        for name, table in record.tables.items():
            # MLflow looks for columns of objects; the text columns of pandas 3 are no such.
            client.log_table(run_id, table.reset_index().astype({table.index.name: object}), name)
        for dataset in record.datasets:
            self._log_dataset(run_id, dataset)
        for name, content in record.files.items():
            self.log_file(content, name, run_id)

    def _log_dataset(self, run_id: str, dataset: Dataset) -> None:
        import pandas as pd
        from mlflow.entities import Dataset as Described
        from mlflow.entities import DatasetInput, InputTag
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

        files = dataset.manifest.files
        table = pd.DataFrame([asdict(one) for one in files]).astype({"rows": float})
        digest = hash_bytes(dataset.manifest.to_bytes())[:16]
        described = self.connection.mlflow.data.from_pandas(table, name=dataset.name, digest=digest)
        context = InputTag(MLFLOW_DATASET_CONTEXT, dataset.context)
        entity = Described.from_dictionary(described.to_dict())
        self.connection.client.log_inputs(run_id, datasets=[DatasetInput(entity, [context])])

    def log_file(self, content: bytes, name: str, run_id: str) -> None:
        """Log a file to a run, also to one that has ended."""
        with tempfile.TemporaryDirectory(prefix="pipeline-artifact-") as folder:
            path = Path(folder, name)
            path.write_bytes(content)
            self.connection.client.log_artifact(run_id, str(path))

    def log_figure(self, run_id: str, figure: Figure, name: str) -> None:
        """Log a picture to a run, also to one that has ended."""
        look = {"dpi": 150, "facecolor": "white"}
        self.connection.client.log_figure(run_id, figure, name, save_kwargs=look)

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        """Tag a run, also one that has ended."""
        self.connection.client.set_tag(run_id, key, value, synchronous=True)

    # --- Finding ---

    def experiment_id(self) -> str:
        """Return the id of this model's experiment; one that is gone for good is made again.

        Raises
        ------
        NotInRegistry
            As `find_experiment`.
        """
        found = self.find_experiment()
        if found is not None:
            return found
        logger.warning(
            "the experiment %r is gone from the store; a new one is made: history knows what the "
            "journal of this home knows",
            self.connection.name,
        )
        self.create_experiment()
        made = self.connection.client.get_experiment_by_name(self.connection.name)
        return str(made.experiment_id)

    def find_experiment(self) -> str | None:
        """Return the id of this model's experiment; None if there is none.

        Raises
        ------
        NotInRegistry
            If it was deleted or renamed in MLflow, with what puts it right.
        """
        client, name = self.connection.client, self.connection.name
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            other = self._experiment_of_versions()
            if other is not None:
                raise NotInRegistry(
                    f"the experiment {name!r} is called {printable(other.name)!r} now; name it "
                    f"back: {self._mlflow('rename', other.experiment_id)} --new-name "
                    f"{shlex.quote(name)}"
                )
            return None
        if experiment.lifecycle_stage != "active":
            raise NotInRegistry(
                f"the experiment {name!r} was deleted in MLflow on "
                f"{as_local_time(experiment.last_update_time / 1000)}; restore it: "
                f"{self._mlflow('restore', experiment.experiment_id)}"
            )
        return str(experiment.experiment_id)

    def _experiment_of_versions(self) -> Experiment | None:
        """Return where the runs of this model's versions are, if they are somewhere."""
        client = self.connection.client
        for version in client.search_model_versions(f"name = '{self.connection.name}'"):
            run = self._run(str(version.run_id or ""))
            if run is not None:
                return client.get_experiment(run.info.experiment_id)
        return None

    def _mlflow(self, word: str, experiment_id: str) -> str:
        """Return MLflow's own command for an experiment of this store."""
        uri = self.connection.settings.store_uri
        store = f"MLFLOW_TRACKING_URI={shlex.quote(uri)} " if without_secrets(uri) == uri else ""
        return f"{store}python -m mlflow experiments {word} --experiment-id {experiment_id}"

    def _finished(self, name: str, tags: Mapping[str, str], limit: int = MOST_RUNS) -> list[Run]:
        """Return finished runs with that name and these tags, the newest first; deleted ones, too.

        Somebody may clean up in MLflow: what a run tells did happen.
        """
        from mlflow.entities import ViewType

        experiment = self.connection.client.get_experiment_by_name(self.connection.name)
        if experiment is None:  # a registration that was cut off
            return []
        conditions = "".join(f" and tags.{key} = '{value}'" for key, value in tags.items())
        return list(
            self.connection.client.search_runs(
                [experiment.experiment_id],
                f"attributes.run_name = '{name}' and attributes.status = 'FINISHED'{conditions}",
                run_view_type=ViewType.ALL,
                max_results=limit,
                order_by=["attributes.start_time DESC"],
            )
        )

    def monitored(
        self, tags: Mapping[str, str] | None = None, limit: int = MOST_RUNS
    ) -> list[MonitoredBatch]:
        """Return monitored batches whose runs carry these tags, the newest first."""
        return _readable(_monitored, self._finished(MONITORING_RUN, tags or {}, limit))

    def changes(self, tags: Mapping[str, str] | None = None) -> list[Change]:
        """Return the changes of production whose runs carry these tags, the newest first."""
        return _readable(_change, self._finished(PROMOTION_RUN, tags or {}))

    def trained_with(self, run_id: str) -> dict[str, int] | None:
        """Return the folds and the seed of a training; None where nobody wrote them down."""
        run = self._run(run_id)
        if run is None or run.info.run_name not in (RETRAINING_RUN, FIRST_RUN):
            return None
        params = Tags(run.data.params, f"run {run_id}")
        if not all(name in params.values for name in TRAINED_WITH):
            return None
        return {name: params.integer(name) for name in TRAINED_WITH}

    def _run(self, run_id: str) -> Run | None:
        """Return a run; None if it is gone for good."""
        try:
            return self.connection.client.get_run(run_id) if run_id else None
        except self.connection.mlflow.MlflowException as error:
            if error.error_code != NOT_THERE:
                raise
            return None

    def is_gone(self, run_id: str) -> bool:
        """Say whether a run is in the store no more, not even as a deleted one."""
        return bool(run_id) and self._run(run_id) is None

    def artifact(self, run_id: str, name: str) -> bytes | None:
        """Return a file of a run; None if there is none."""
        client = self.connection.client
        try:
            found = client.list_artifacts(run_id) if run_id else ()
            sizes = {one.path: one.file_size or 0 for one in found}
        except self.connection.mlflow.MlflowException as error:
            if error.error_code != NOT_THERE:
                raise
            sizes = {}
        if name not in sizes:
            return None
        limit = self.connection.settings.max_model_mb
        if sizes[name] > limit * 1e6:
            raise PipelineError(
                f"{name} of run {run_id} is larger than {limit:g} MB; nothing was copied: raise "
                "--max-model-mb if it should be"
            )
        exchanges.begin_download()
        with tempfile.TemporaryDirectory(prefix="pipeline-artifact-") as folder:
            try:
                return Path(client.download_artifacts(run_id, name, folder)).read_bytes()
            except self.connection.mlflow.MlflowException as error:
                if not self.connection.settings.is_on_server:
                    raise
                # MLflow calls every failure a wrong path; this one was listed a moment ago.
                raise TryLaterError(
                    f"the MLflow server lists {name} of run {run_id} and does not give it: "
                    f"{printable(error)}"
                ) from error

    # --- Tidying ---

    def _left_open(self, experiment_id: str, cycle_id: str = "") -> list[Run]:
        """Return the runs of this home, and those of a cycle, that nobody closed."""
        found = self.connection.client.search_runs([experiment_id], "attributes.status = 'RUNNING'")
        settings, home_id = self.connection.settings, self.connection.home_id

        def is_ours(tags: Mapping[str, str]) -> bool:
            # The name of a container's host is another one each time; an older pipeline noted it.
            home = tags.get(TAG_HOME, "")
            older = settings.has_own_store and home.endswith(f":{settings.home}")
            of_cycle = bool(cycle_id) and tags.get(TAG_CYCLE) == cycle_id
            return bool(home) and (home == home_id or of_cycle or older)

        return [run for run in found if is_ours(run.data.tags)]

    def close_left_over(self, cycle_id: str, production: int | None) -> None:
        """End the runs that dead processes of this home left open.

        Notes
        -----
        Called under the home's lock, so no run of this home can be alive. A promotion whose
        alias did move is complete, even if the store failed right after: it belongs to the history.
        """
        client = self.connection.client
        experiment = client.get_experiment_by_name(self.connection.name)
        if experiment is None or experiment.lifecycle_stage != "active":  # its runs are deleted
            return
        experiment_id = experiment.experiment_id
        promotions = client.search_runs(
            [experiment_id],
            f"attributes.run_name = '{PROMOTION_RUN}' and attributes.status != 'FINISHED' "
            f"and tags.{TAG_CYCLE} = '{cycle_id}'",
        )
        left_over = {run.info.run_id: run for run in self._left_open(experiment_id, cycle_id)}
        left_over |= {run.info.run_id: run for run in promotions}
        for run in left_over.values():
            is_promotion = run.info.run_name == PROMOTION_RUN
            moved = is_promotion and run.data.tags.get(TAG_TO) == str(production)
            status = "FINISHED" if moved else "KILLED"
            logger.info("closing the run %s of a dead process as %s", run.info.run_name, status)
            client.set_terminated(run.info.run_id, status)


def _readable(read: Callable[[Run], Fact | None], runs: Sequence[Run]) -> list[Fact]:
    """Return what runs say, but for those that say nothing; one that was edited is named."""
    found = []
    for run in runs:
        try:
            found.append(read(run))
        except PipelineError as error:
            logger.warning("%s; it is left out", error)
    return [one for one in found if one is not None]


def _monitored(run: Run) -> MonitoredBatch | None:
    """Return what a run `ModelMonitoring` has; None if it was cut off before it measured."""
    metrics, tags = run.data.metrics, Tags(run.data.tags, f"run {run.info.run_id}")
    if "mean_error" not in metrics:
        return None
    threshold = run.data.params.get("threshold")
    try:
        threshold_number = (
            None
            if threshold is None
            else an_error(float(threshold), tags.source, "the parameter 'threshold'")
        )
    except ValueError as error:
        raise unreadable(tags.source, "the parameter 'threshold'", threshold) from error
    low, high = (metrics.get(f"mean_error_{end}", NAN) for end in ("low", "high"))
    return MonitoredBatch(
        at_ms=a_time(run.info.start_time, tags.source),
        run_id=run.info.run_id,
        version=tags.text(TAG_CHAMPION),
        batch=tags.text(TAG_BATCH),
        n_recordings=whole_number(
            metrics.get("recordings", 0), tags.source, "the metric 'recordings'"
        ),
        mean_error=an_error(metrics["mean_error"], tags.source, "the metric 'mean_error'"),
        interval_low=low if math.isfinite(low) else NAN,
        interval_high=high if math.isfinite(high) else NAN,
        unit=tags.text(TAG_UNIT, OLDER_UNIT),
        threshold=threshold_number,
        outcome=tags.text(TAG_OUTCOME, INTERRUPTED),
        n_decided=whole_number(
            metrics.get(DECIDED_ON, 0), tags.source, f"the metric {DECIDED_ON!r}"
        ),
    )


def _change(run: Run) -> Change | None:
    """Return what a run `ModelPromotion` has; None if it names no version."""
    tags = Tags(run.data.tags, f"run {run.info.run_id}")
    new = tags.integer_or_none(TAG_TO)
    if new is None:
        return None
    before, after = (
        None
        if name not in run.data.metrics
        else an_error(run.data.metrics[name], tags.source, f"the metric {name!r}")
        for name in (METRIC_BEFORE, METRIC_AFTER)
    )
    return Change(
        at_ms=a_time(run.info.start_time, tags.source),
        event=tags.text(TAG_EVENT),
        old=tags.integer_or_none(TAG_FROM),
        new=new,
        cycle=tags.text(TAG_CYCLE),
        sequence=tags.integer_or_none(TAG_SEQUENCE) or 0,
        mean_error_before=before,
        mean_error_after=after,
        unit=tags.text(TAG_UNIT, OLDER_UNIT),
        who=tags.text(TAG_WHO),
        why=tags.text(TAG_WHY),
    )
