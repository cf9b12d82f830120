"""Everything that talks to MLflow: the store, runs, versions and the aliases.

The registry is the truth: the alias `production` names the model in use, and that version's
manifest names the files that it was trained on. MLflow is imported when a registry is opened, not
before, after its time limits are set.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import re
import socket
import sqlite3
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gts_folder import hash_bytes, hash_file, sync_folder
from packaged_model import OPTIONAL_COLUMNS, REQUIRED_COLUMNS, PackagedModel, needs_other_code
from pipeline_settings import PipelineError, Settings, TryLaterError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from mlflow.entities import Run

    from training_module import Training

PRODUCTION = "production"
PREVIOUS = "previous_production"
MONITORING_RUN = "ModelMonitoring"
RETRAINING_RUN = "ModelRetraining"
PROMOTION_RUN = "ModelPromotion"
FIRST_RUN = "Registering Initial Production Model"

MANIFEST_FILE = "training_files.json"
OUT_OF_FOLD_FILE = "out_of_fold_errors.json"
COMPARISON_FILE = "comparison.json"
PROBATION_FILE = "probation.json"
MODEL_FILE = "model.skops"
REPORT_FILE = "cycle_report.html"
LEFT_OUT_OF_DIGEST = "registered_model_meta"
"""MLflow writes it beside a model when somebody loads it."""

MODEL_DESCRIPTION = (
    f"Versions come from the retraining pipeline. {PRODUCTION!r} is the one in use, {PREVIOUS!r} "
    "the one before. The description of a version says what became of it; the comparison with the "
    "champion of its day is in comparison.json of its run, the page of a cycle in "
    f"{REPORT_FILE} of its {MONITORING_RUN}."
)
TAG_DESCRIPTION = "mlflow.note.content"
"""What MLflow shows on top of a run."""
TAG_HOME = "pipeline_home"
TAG_CYCLE = "pipeline_cycle_id"
TAG_BATCH = "pipeline_batch"
TAG_CHAMPION = "pipeline_champion"
TAG_SETTINGS = "pipeline_settings"
TAG_OUTCOME = "pipeline_outcome"
TAG_EVENT = "pipeline_event"
TAG_FROM = "pipeline_from"
TAG_TO = "pipeline_to"
TAG_WHY = "pipeline_why"
TAG_WHO = "pipeline_who"
TAG_ROLLED_BACK = "rolled_back"
TAG_VERDICT = "verdict"
TAG_REASONS = "verdict_reasons"
TAG_RECORDINGS = "verdict_recordings"
TAG_ARTIFACT_HASH = "artifact_sha256"
TAG_MANIFEST_HASH = "manifest_sha256"
TAG_MODULE = "training_module"
TAG_CODE = "training_code_sha256"
TAG_METRIC = "error_name"
TAG_UNIT = "error_unit"

VERDICT_PROMOTE = "promote"
VERDICT_REJECT = "reject"

EVENT_REGISTRATION = "registration"
EVENT_PROMOTION = "promotion"
EVENT_ROLLBACK = "rollback"
EVENT_PROBATION = "probation"
OUTCOME_OF_EVENT = {EVENT_PROMOTION: "promoted", EVENT_PROBATION: "rolled_back"}
METRIC_BEFORE = "mean_error_before"
METRIC_AFTER = "mean_error_after"
OLDER_UNIT = "%"
"""Of the errors of runs that do not name it."""

HEALTH_SECONDS = 2.0
DATABASE_SECONDS = 6
OUTAGE_CODES = {
    *("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED"),
    *("REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED"),
}
DATABASE_ERROR = re.compile(r"\(\w+\.\w*Error\)")
"""SQLAlchemy puts the driver's error in brackets, not always into the first line."""
TRAINED_WITH = {"n_folds", "random_state"}
"""Parameters of a training run that its result depends on."""
NOT_THERE = "RESOURCE_DOES_NOT_EXIST"
ONE_SHORT_TRY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}
REGISTER_FIRST = "run: python register_first_model.py"
NO_STORE_REMEDY = f"{REGISTER_FIRST}; or name the right home folder with --home"

logger = logging.getLogger("pipeline")


class NotInRegistry(PipelineError):
    """What was looked for is not in the registry."""


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of the registered model.

    Parameters
    ----------
    number
        As MLflow counts, from 1.
    run_id
        The run that logged it.
    tags
        Tags of the version.
    created_ms
        Milliseconds since 1970.
    """

    number: int
    run_id: str
    tags: Mapping[str, str]
    created_ms: int


@dataclass(frozen=True)
class Change:
    """One change of production.

    Parameters
    ----------
    at_ms
        Milliseconds since 1970.
    event
        One of the events above; a registry of an older pipeline may have none.
    old, new
        Numbers of the versions; None where there was no production before.
    mean_error_before, mean_error_after, unit
        Of both versions on the same recordings; None where nothing was measured.
    who
        User, machine, and whether a person sat at a terminal.
    why
        In words.
    """

    at_ms: int
    event: str
    old: int | None
    new: int
    mean_error_before: float | None
    mean_error_after: float | None
    unit: str
    who: str
    why: str


@dataclass(frozen=True)
class TrainingFile:
    """One file that a version was trained on.

    Parameters
    ----------
    name
        In the training folder.
    sha256
        Of its content.
    rows
        Number of rows.
    """

    name: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class Manifest:
    """The files that a version was trained on.

    Parameters
    ----------
    files
        In order of their names.
    """

    files: tuple[TrainingFile, ...]

    @property
    def names(self) -> dict[str, str]:
        """SHA-256 -> name."""
        return {one.sha256: one.name for one in self.files}

    def to_bytes(self) -> bytes:
        """Return the JSON that is stored with the run."""
        return json.dumps({"files": [asdict(one) for one in self.files]}, indent=1).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Manifest:
        """Read what `to_bytes` returned.

        Parameters
        ----------
        content
            JSON.
        """
        return cls(tuple(TrainingFile(**one) for one in json.loads(content)["files"]))


# --- Opening a store ---


def prepare_environment() -> None:
    """Set MLflow's time limits and switches where the operator did not; before its import.

    Notes
    -----
    By default one call to a dead server takes four minutes, one to a hanging server twenty. With
    these limits a server that stops answering costs at most 30 s, wherever it stops: 12 s for a
    call, twice that where more files are downloaded than MLflow has threads, 2 s for closing.
    """
    for name, value in {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "6",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # what it logs with a traceback, it raises as well
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(name, value)


def printable_uri(uri: str) -> str:
    """Return a URI without the user's name and password.

    Parameters
    ----------
    uri
        A store's address.

    Examples
    --------
    >>> printable_uri("postgresql://me:secret@db/mlflow")
    'postgresql://db/mlflow'
    """
    return re.sub(r"//\S*@", "//", uri)


def open_registry(settings: Settings, *, create: bool = False) -> ModelRegistry:
    """Open the store that the settings name; never create one, unless told so.

    Parameters
    ----------
    settings
        Name the store.
    create
        An empty database of a server such as PostgreSQL may become a store; for a SQLite file
        there is `create_store`.

    Raises
    ------
    PipelineError
        If there is no store, or an older one.
    TryLaterError
        If a server does not answer.
    """
    prepare_environment()
    if settings.database is not None:
        if not settings.database.is_file():
            raise NotInRegistry(f"there is no store at {settings.database}; {NO_STORE_REMEDY}")
        _check_schema(settings.database)
    elif settings.store_uri.startswith(("http://", "https://")):
        _check_health(settings.store_uri)
    else:
        _check_database(settings.store_uri, create=create)
    return ModelRegistry(settings)


def create_store(settings: Settings) -> None:
    """Create a SQLite store: in a temporary file, renamed when complete.

    Parameters
    ----------
    settings
        Name the store; nothing happens if it exists, or if it is no SQLite file.
    """
    prepare_environment()
    database = settings.database
    if database is None or database.exists():
        return
    settings.artifacts.mkdir(parents=True, exist_ok=True)
    folder = database.parent
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob(".new-*"):
        left_over.unlink()
    logger.info("creating the store %s", database)
    descriptor, name = tempfile.mkstemp(prefix=".new-", suffix=".db", dir=folder)
    os.close(descriptor)
    temporary = Path(name)
    try:
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        store = SqlAlchemyStore(f"sqlite:///{temporary}", settings.artifacts.as_uri())
        store.engine.dispose()
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.rename(database)
        sync_folder(folder)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def upgrade_store(settings: Settings) -> str:
    """Bring the embedded store to the schema of the installed MLflow; return what was done.

    Parameters
    ----------
    settings
        Name the store.

    Raises
    ------
    PipelineError
        If there is no embedded store, or the migrated copy is damaged.

    Notes
    -----
    A copy is migrated and checked, then renamed over the store; the old one stays as a backup.
    """
    prepare_environment()
    database = settings.database
    if database is None:
        raise PipelineError(
            f"{printable_uri(settings.store_uri)} is no SQLite file; "
            "run on its server: mlflow db upgrade URI"
        )
    if not database.is_file():
        raise NotInRegistry(f"there is no store at {database}; {NO_STORE_REMEDY}")
    before, needed = _schema_of(database), _schema_needed()
    if before == needed:
        return f"{database} has schema {before} already; nothing to do"
    backup = database.with_name(f"{database.name}.{before or 'none'}.backup")
    copy = database.with_name(".upgrading.db")
    _copy_database(database, copy)
    if not backup.exists():
        _copy_database(database, copy.with_suffix(".backup"))
        copy.with_suffix(".backup").rename(backup)
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(f"sqlite:///{copy}", settings.artifacts.as_uri()).engine.dispose()
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        state = connection.execute("PRAGMA integrity_check").fetchone()[0]
    if state != "ok" or _schema_of(copy) != needed:
        raise PipelineError(
            f"the upgraded copy {copy} is damaged ({state}); the store is unchanged"
        )
    with copy.open("rb") as stream:
        os.fsync(stream.fileno())
    copy.rename(database)
    sync_folder(database.parent)
    return f"{database}: schema {before or 'none'} -> {needed}; the old store is {backup.name}"


def _copy_database(source: Path, target: Path) -> None:
    for left_over in target.parent.glob(f"{target.name}*"):  # a stale journal would be replayed
        left_over.unlink()
    with (
        contextlib.closing(sqlite3.connect(f"{source.as_uri()}?mode=rw", uri=True)) as original,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        original.backup(copy)


def _schema_needed() -> str:
    import mlflow
    from alembic.script import ScriptDirectory

    migrations = Path(mlflow.__file__).parent / "store" / "db_migrations"
    return str(ScriptDirectory(str(migrations)).get_current_head())


def _schema_of(database: Path) -> str:
    """Return a store's schema; not read-only, for a dead process may have left a journal."""
    with contextlib.closing(
        sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True)
    ) as connection:
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else ""


def _check_schema(database: Path) -> None:
    """Refuse a store of another MLflow: opening it would migrate it, without a backup."""
    try:
        found = _schema_of(database)
    except sqlite3.Error as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            raise TryLaterError(f"{database} is locked by another process") from error
        raise PipelineError(
            f"{database} is not a readable MLflow store ({error}); restore it from a backup"
        ) from error
    needed = _schema_needed()
    if found != needed:
        raise PipelineError(
            f"{database} has schema {found or 'none'}, the installed MLflow needs {needed}; "
            "run: python pipeline_orchestrator.py upgrade-store"
        )


def _check_health(uri: str) -> None:
    """Ask a server whether it is there before MLflow spends its retries on it."""
    import http.client
    import urllib.error
    import urllib.request

    address = f"{printable_uri(uri).rstrip('/')}/health"
    try:
        with urllib.request.urlopen(address, timeout=HEALTH_SECONDS):
            return
    except urllib.error.HTTPError as error:
        if error.code < 500:
            return
        reason: object = error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = error
    raise TryLaterError(f"the MLflow server {printable_uri(uri)} does not answer: {reason}")


def _check_database(uri: str, *, create: bool) -> None:
    """Refuse a database that does not answer, is empty or of another MLflow; before MLflow does."""
    import sqlalchemy

    is_postgresql = uri.startswith("postgresql")
    try:
        patience = {"connect_timeout": DATABASE_SECONDS} if is_postgresql else {}
        engine = sqlalchemy.create_engine(uri, connect_args=patience)
        with engine.connect() as connection:
            has_store = sqlalchemy.inspect(connection).has_table("alembic_version")
            version = sqlalchemy.text("SELECT version_num FROM alembic_version")
            found = connection.execute(version).scalar() if has_store else None
        engine.dispose()
    except ModuleNotFoundError as error:
        raise PipelineError(
            f"{printable_uri(uri)} needs the package {error.name}; install it with pip"
        ) from error
    except sqlalchemy.exc.OperationalError as error:
        reason = str(error.orig).splitlines()[0]
        raise TryLaterError(
            f"the database {printable_uri(uri)} does not answer: {reason}"
        ) from error
    if not has_store and not create:
        raise NotInRegistry(f"the database {printable_uri(uri)} is empty; {REGISTER_FIRST}")
    needed = _schema_needed()
    if has_store and found != needed:
        raise PipelineError(
            f"{printable_uri(uri)} has schema {found or 'none'}, the installed MLflow needs "
            f"{needed}; make a backup, then run: mlflow db upgrade URI"
        )


def as_pipeline_error(error: Exception, settings: Settings) -> PipelineError | None:
    """Return what an operator should read for a failure outside our code; None for a bug.

    Parameters
    ----------
    error
        What was caught.
    settings
        Name the store and the home.
    """
    lines = str(error).splitlines() or [type(error).__name__]
    cause = next((line for line in lines if DATABASE_ERROR.search(line)), lines[0])
    text = printable_uri(cause[:300])
    if "mlflow" in sys.modules and _comes_from_store(error):
        store = printable_uri(settings.store_uri)
        if _is_outage(error):
            return TryLaterError(f"the MLflow store {store} failed: {text}")
        return PipelineError(f"the MLflow store {store} refused: {text}")
    if isinstance(error, OSError):
        return PipelineError(f"{text}; check the disk and the rights of {settings.home}")
    return None


def _comes_from_store(error: Exception) -> bool:
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    return isinstance(error, MlflowException | RequestException)


def _is_outage(error: Exception) -> bool:
    """Say whether what a store raised may be gone at the next run; a refusal comes again."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    if isinstance(error, MlflowException):
        # The client repeats a POST whose reply was lost, and the store has its row already.
        return error.error_code in OUTAGE_CODES or "IntegrityError" in str(error)
    if isinstance(error, RequestException):
        return error.response is None or error.response.status_code >= 500
    return False


# --- The registry ---


class ModelRegistry:
    """The registered model, its versions and the pipeline's runs, in one store.

    Parameters
    ----------
    settings
        Name the store, the registered model and the home.
    """

    def __init__(self, settings: Settings) -> None:
        import mlflow

        self._mlflow = mlflow
        self._settings = settings
        self._name = settings.model_name
        mlflow.set_tracking_uri(settings.store_uri)
        mlflow.set_registry_uri(settings.store_uri)
        self._client = mlflow.MlflowClient()
        self._home_tag = f"{socket.gethostname()}:{settings.home}"

    # --- Looking up ---

    def _experiment_id(self) -> str:
        experiment = self._client.get_experiment_by_name(self._name)
        if experiment is None or experiment.lifecycle_stage != "active":
            raise NotInRegistry(
                f"the store {printable_uri(self._settings.store_uri)} has no experiment "
                f"{self._name!r}; {REGISTER_FIRST}"
            )
        return str(experiment.experiment_id)

    def create_experiment_and_model(self) -> None:
        """Create the experiment and the registered model where they are missing."""
        if self._client.get_experiment_by_name(self._name) is None:
            on_server = self._settings.store_uri.startswith(("http://", "https://"))
            location = None if on_server else self._settings.artifacts.as_uri()
            self._client.create_experiment(self._name, artifact_location=location)
        if not self._client.search_registered_models(f"name = '{self._name}'"):
            self._client.create_registered_model(self._name, description=MODEL_DESCRIPTION)

    def production_number(self) -> int | None:
        """Return the number of the production version, None where there is no alias."""
        return self._alias(PRODUCTION)

    def previous_number(self) -> int | None:
        """Return the number of the version before, None where there is none."""
        return self._alias(PREVIOUS)

    def _alias(self, alias: str) -> int | None:
        models = self._client.search_registered_models(f"name = '{self._name}'")
        if not models:
            return None
        number = self._client.get_registered_model(self._name).aliases.get(alias)
        return None if number is None else int(number)

    def champion(self) -> RegisteredVersion:
        """Return the production version.

        Raises
        ------
        NotInRegistry
            If the registry is empty, or nothing is production.
        """
        if not self._client.search_registered_models(f"name = '{self._name}'"):
            raise NotInRegistry(
                f"the registry has no model {self._name!r}: it is empty; {REGISTER_FIRST}"
            )
        number = self.production_number()
        if number is None:
            if not self._client.search_model_versions(f"name = '{self._name}'", max_results=1):
                raise NotInRegistry(f"model {self._name!r} has no version; {REGISTER_FIRST}")
            raise NotInRegistry(
                f"no version of {self._name!r} has the alias {PRODUCTION!r}; name one: "
                "python pipeline_orchestrator.py rollback --to VERSION"
            )
        return self.version(number)

    def version(self, number: int) -> RegisteredVersion:
        """Return one version.

        Parameters
        ----------
        number
            Its number.
        """
        try:
            found = self._client.get_model_version(self._name, str(number))
        except self._mlflow.MlflowException as error:
            if error.error_code != NOT_THERE:
                raise
            raise NotInRegistry(f"there is no version {number} of {self._name!r}") from error
        return RegisteredVersion(
            int(found.version),
            str(found.run_id or ""),
            dict(found.tags),
            int(found.creation_timestamp),
        )

    def versions(self) -> list[RegisteredVersion]:
        """Return all versions, the newest first."""
        return sorted(self._versions_with({}), key=lambda version: -version.number)

    def alias_of(self, number: int) -> str:
        """Return what a version is: in production, the one before, or nothing.

        Parameters
        ----------
        number
            Of the version.
        """
        if number == self.production_number():
            return PRODUCTION
        return PREVIOUS if number == self.previous_number() else ""

    def training_parameters(self, version: RegisteredVersion) -> dict[str, int] | None:
        """Return the folds and the seed that a cycle trained a version with; None if none did.

        Parameters
        ----------
        version
            Any; the first one came as a pickle.
        """
        run = self._client.get_run(version.run_id) if version.run_id else None
        params = run.data.params if run else {}
        if run is None or run.info.run_name != RETRAINING_RUN or not params.keys() >= TRAINED_WITH:
            return None
        return {name: int(params[name]) for name in TRAINED_WITH}

    def _versions_with(self, tags: Mapping[str, str]) -> list[RegisteredVersion]:
        conditions = "".join(f" and tags.{key} = '{value}'" for key, value in tags.items())
        found = self._client.search_model_versions(f"name = '{self._name}'{conditions}")
        return [
            RegisteredVersion(
                int(one.version), str(one.run_id), dict(one.tags), int(one.creation_timestamp)
            )
            for one in found
        ]

    def judged_before(self, tags: Mapping[str, str]) -> str:
        """Return what became of the same batch, champion and settings earlier, or nothing.

        Parameters
        ----------
        tags
            Batch, champion and settings.
        """
        for version in self._versions_with(tags):
            if version.tags.get(TAG_VERDICT) == VERDICT_REJECT:
                reasons = version.tags.get(TAG_REASONS, "")
                return f"its challenger, version {version.number}, was not promoted ({reasons})"
            if version.tags.get(TAG_VERDICT) == VERDICT_PROMOTE:
                return f"its challenger, version {version.number}, was promoted and rolled back"
        healthy = self.runs(MONITORING_RUN, {**tags, TAG_OUTCOME: "healthy"}, limit=1)
        if healthy:
            data = healthy[0].data
            unit = data.tags.get(TAG_UNIT, OLDER_UNIT)
            return f"production was healthy ({data.metrics['mean_error']:.1f} {unit})"
        return ""

    def earlier_looks(self, champion: RegisteredVersion) -> list[int]:
        """Return the number of recordings each time that a champion was judged, oldest first.

        Parameters
        ----------
        champion
            The production version.
        """
        judged = [
            version
            for version in self._versions_with({TAG_CHAMPION: str(champion.number)})
            if TAG_VERDICT in version.tags
        ]
        judged.sort(key=lambda version: version.number)
        return [int(version.tags[TAG_RECORDINGS]) for version in judged]

    def lost_batches(self, champion: RegisteredVersion) -> set[str]:
        """Return the batches on which challengers lost since production was last healthy.

        Parameters
        ----------
        champion
            The production version.
        """
        of_champion = {TAG_CHAMPION: str(champion.number)}
        healthy = self.runs(MONITORING_RUN, {**of_champion, TAG_OUTCOME: "healthy"}, limit=1)
        since = healthy[0].info.start_time if healthy else 0
        return {
            version.tags[TAG_BATCH]
            for version in self._versions_with(of_champion)
            if version.tags.get(TAG_VERDICT) == VERDICT_REJECT and version.created_ms > since
        }

    def changes(self, tags: Mapping[str, str] | None = None) -> list[Change]:
        """Return every change of production, the newest first.

        Parameters
        ----------
        tags
            Of the run `ModelPromotion`; all changes by default.
        """
        return [
            Change(
                at_ms=int(run.info.start_time),
                event=run.data.tags.get(TAG_EVENT, ""),
                old=int(run.data.tags[TAG_FROM]) if run.data.tags.get(TAG_FROM) else None,
                new=int(run.data.tags[TAG_TO]),
                mean_error_before=run.data.metrics.get(METRIC_BEFORE),
                mean_error_after=run.data.metrics.get(METRIC_AFTER),
                unit=run.data.tags.get(TAG_UNIT, OLDER_UNIT),
                who=run.data.tags.get(TAG_WHO, ""),
                why=run.data.tags.get(TAG_WHY, ""),
            )
            for run in self.runs(PROMOTION_RUN, tags)
            if run.data.tags.get(TAG_TO)
        ]

    def replaced_by(self, number: int) -> int | None:
        """Return the version that a version replaced when it last became production.

        Parameters
        ----------
        number
            Of a production version.

        Notes
        -----
        The history first: a process that died between the two aliases leaves both on one
        version. The alias where it was moved by hand.
        """
        changes = self.changes({TAG_TO: str(number)})
        return changes[0].old if changes else self._alias(PREVIOUS)

    def on_probation_against(self, champion: RegisteredVersion) -> int | None:
        """Return the version that a promotion replaced, until the new one met new recordings.

        Parameters
        ----------
        champion
            The production version.
        """
        of_champion = {TAG_CHAMPION: str(champion.number)}
        if any(TAG_OUTCOME in run.data.tags for run in self.runs(MONITORING_RUN, of_champion)):
            return None
        changes = self.changes({TAG_TO: str(champion.number)})
        return changes[0].old if changes and changes[0].event == EVENT_PROMOTION else None

    def runs(
        self, name: str, tags: Mapping[str, str] | None = None, limit: int = 1000
    ) -> list[Run]:
        """Return finished runs of the pipeline with that name, the newest first.

        Parameters
        ----------
        name
            One of the run names above.
        tags
            That they must carry.
        limit
            At most so many.
        """
        experiment = self._client.get_experiment_by_name(self._name)
        if experiment is None:  # a registration that was cut off
            return []
        conditions = "".join(f" and tags.{key} = '{value}'" for key, value in (tags or {}).items())
        return list(
            self._client.search_runs(
                [experiment.experiment_id],
                f"attributes.run_name = '{name}' and attributes.status = 'FINISHED'{conditions}",
                max_results=limit,
                order_by=["attributes.start_time DESC"],
            )
        )

    # --- Loading ---

    @contextlib.contextmanager
    def _downloaded(self, version: RegisteredVersion) -> Iterator[Path]:
        """Give a private copy of a version's files, so that nobody changes them after the check."""
        uri = self._client.get_model_version_download_uri(self._name, str(version.number))
        with tempfile.TemporaryDirectory(prefix="pipeline-model-") as folder:
            try:
                path = self._mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder)
            except (OSError, self._mlflow.MlflowException) as error:
                if _is_outage(error):
                    raise
                raise PipelineError(
                    f"the files of version {version.number} are missing at {printable_uri(uri)}; "
                    "restore them, or name another version: "
                    "python pipeline_orchestrator.py rollback --to VERSION"
                ) from error
            yield Path(path)

    @contextlib.contextmanager
    def verified_files(self, version: RegisteredVersion) -> Iterator[Path]:
        """Give a private copy of a version's files, which are those that were registered.

        Parameters
        ----------
        version
            Carries the digest that its files must have.

        Raises
        ------
        PipelineError
            If files are missing or differ from what was registered.
        """
        with self._downloaded(version) as folder:
            self._check_digest(version, folder)
            yield folder

    def load(self, version: RegisteredVersion, training: Training) -> Any:
        """Load a version's model, without running any code of its files in this process.

        Parameters
        ----------
        version
            Carries the digest that its files must have.
        training
            The present module: its trusted types are the only ones beyond skops' own list. A
            version that other code made predicts in a process of its own.

        Raises
        ------
        PipelineError
            If files are missing or differ from what was registered, or hold another type.
        """
        with self.verified_files(version) as folder:
            if not (folder / MODEL_FILE).is_file():
                if self._settings.allow_pickle:
                    return self._mlflow.sklearn.load_model(str(folder))
                raise PipelineError(
                    f"version {version.number} holds no {MODEL_FILE}; a pickle runs code when it "
                    "is loaded: --allow-pickle if you trust whoever wrote it"
                )
            environment = self._settings.champion_env
            if needs_other_code(folder, training, requirements(training), environment):
                logger.info("version %d predicts with its own code", version.number)
                return PackagedModel(folder, version.number, environment)
            return _load_skops(folder / MODEL_FILE, version.number, training.trusted_types)

    def load_and_try(self, version: RegisteredVersion, training: Training) -> Any:
        """Load a version's model and let it predict the example that is stored with it.

        Parameters
        ----------
        version, training
            As for `load`.

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

    def _check_digest(self, version: RegisteredVersion, folder: Path) -> None:
        expected = version.tags.get(TAG_ARTIFACT_HASH)
        if expected is None:
            if self._settings.allow_pickle:
                return
            raise PipelineError(
                f"version {version.number} has no {TAG_ARTIFACT_HASH}: it was not registered by "
                "this pipeline; --allow-pickle if you trust whoever wrote it"
            )
        if folder_digest(folder) != expected:
            raise PipelineError(
                f"the files of version {version.number} are not those that were registered; "
                "restore them, or name another version: "
                "python pipeline_orchestrator.py rollback --to VERSION"
            )

    def manifest(self, version: RegisteredVersion) -> Manifest:
        """Return the files that a version was trained on.

        Parameters
        ----------
        version
            Carries the manifest's hash.

        Raises
        ------
        PipelineError
            If it is missing or was changed.
        """
        content = self._run_artifact(version.run_id, MANIFEST_FILE)
        expected = version.tags.get(TAG_MANIFEST_HASH)
        if content is None or (expected and hash_bytes(content) != expected):
            state = "missing" if content is None else "not the one that was registered"
            raise PipelineError(
                f"{MANIFEST_FILE} of version {version.number} is {state}; without it nobody "
                "knows what the version was trained on: restore the file"
            )
        return Manifest.from_bytes(content)

    def out_of_fold_errors(
        self, version: RegisteredVersion, training: Training
    ) -> dict[str, float]:
        """Return SHA-256 of a recording -> error of a model that never saw it.

        Parameters
        ----------
        version
            Any; empty for one that carries no such errors.
        training
            The present module; empty if the errors were counted by another metric.
        """
        if version.tags.get(TAG_METRIC, training.error_name) != training.error_name:
            return {}
        content = self._run_artifact(version.run_id, OUT_OF_FOLD_FILE)
        return {} if content is None else dict(json.loads(content))

    def _run_artifact(self, run_id: str, name: str) -> bytes | None:
        try:
            names = {one.path for one in self._client.list_artifacts(run_id)} if run_id else set()
        except self._mlflow.MlflowException as error:
            if error.error_code != NOT_THERE:
                raise
            names = set()
        if name not in names:
            return None
        with tempfile.TemporaryDirectory(prefix="pipeline-artifact-") as folder:
            return Path(self._client.download_artifacts(run_id, name, folder)).read_bytes()

    # --- Recording ---

    @contextlib.contextmanager
    def run(self, name: str, tags: Mapping[str, str]) -> Iterator[str]:
        """Open a run, give its id, and close it whatever happens.

        Parameters
        ----------
        name
            One of the run names above.
        tags
            For the run.
        """
        experiment_id = self._experiment_id()
        active = self._mlflow.start_run(
            experiment_id=experiment_id, run_name=name, tags={TAG_HOME: self._home_tag, **tags}
        )
        try:
            for twin in self._open_runs(experiment_id):  # the reply to a POST was lost
                if twin.info.run_id != active.info.run_id:
                    self._client.set_terminated(twin.info.run_id, "KILLED")
            yield active.info.run_id
        except BaseException:
            self._close_failed_run()
            raise
        self._mlflow.end_run()

    def _close_failed_run(self) -> None:
        """Try once and briefly: the first error counts, and tidying closes what stays open."""
        before = {name: os.environ[name] for name in ONE_SHORT_TRY}
        os.environ.update(ONE_SHORT_TRY)
        try:
            self._mlflow.end_run("FAILED")
        except (OSError, self._mlflow.MlflowException) as error:
            logger.info("the run stays open until the next start: %s", type(error).__name__)
        finally:
            os.environ.update(before)

    def _open_runs(self, experiment_id: str) -> list[Run]:
        """Return the runs of this home that nobody closed."""
        found = self._client.search_runs([experiment_id], "attributes.status = 'RUNNING'")
        return [run for run in found if run.data.tags.get(TAG_HOME) == self._home_tag]

    def log_trend(self, run_id: str, name: str, values: Sequence[float]) -> None:
        """Log a metric with its history, which MLflow draws as a line.

        Parameters
        ----------
        run_id
            The run.
        name
            Of the metric.
        values
            One per step, from 1; the last one becomes the value of the run. At most 1000.
        """
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        history = [Metric(name, value, now, step) for step, value in enumerate(values, 1)]
        self._client.log_batch(run_id, metrics=history)

    def log_numbers(self, metrics: Mapping[str, float], params: Mapping[str, Any]) -> None:
        """Log metrics and parameters to the open run.

        Parameters
        ----------
        metrics
            Finite numbers.
        params
            Logged as text.
        """
        if metrics:
            self._mlflow.log_metrics(dict(metrics))
        if params:
            self._mlflow.log_params(dict(params))

    def log_table(self, table: pd.DataFrame, name: str) -> None:
        """Log a table to the open run.

        Parameters
        ----------
        table
            Its named index of texts becomes the first column.
        name
            File name ending in .json.
        """
        # MLflow looks for columns of objects; the text columns of pandas 3 are no such.
        self._mlflow.log_table(table.reset_index().astype({table.index.name: object}), name)

    def log_file(self, content: bytes, name: str, run_id: str | None = None) -> None:
        """Log a file to a run.

        Parameters
        ----------
        content
            The whole file.
        name
            Its name.
        run_id
            Also one that has ended; the open run by default.
        """
        with tempfile.TemporaryDirectory(prefix="pipeline-artifact-") as folder:
            path = Path(folder, name)
            path.write_bytes(content)
            self._mlflow.log_artifact(str(path), run_id=run_id)

    def log_figure(self, run_id: str, figure: Figure, name: str) -> None:
        """Log a picture to a run, also to one that has ended.

        Parameters
        ----------
        run_id
            The run.
        figure
            As matplotlib draws it.
        name
            File name ending in .png.
        """
        look = {"dpi": 150, "facecolor": "white"}
        self._client.log_figure(run_id, figure, name, save_kwargs=look)

    def log_dataset(self, manifest: Manifest, name: str, context: str) -> None:
        """Log which recordings the open run used.

        Parameters
        ----------
        manifest
            The recordings.
        name
            Of the dataset.
        context
            Such as training or monitoring.
        """
        import pandas as pd

        table = pd.DataFrame([asdict(one) for one in manifest.files]).astype({"rows": float})
        digest = hash_bytes(manifest.to_bytes())[:16]
        dataset = self._mlflow.data.from_pandas(table, name=name, digest=digest)
        self._mlflow.log_input(dataset, context=context)

    def set_run_tag(self, run_id: str, key: str, value: str) -> None:
        """Tag a run, also one that has ended.

        Parameters
        ----------
        run_id
            The run.
        key, value
            The tag.
        """
        self._client.set_tag(run_id, key, value)

    def register(
        self,
        model: Any,
        *,
        run_id: str,
        input_example: pd.DataFrame,
        training: Training,
        manifest: Manifest,
        tags: Mapping[str, str],
    ) -> RegisteredVersion:
        """Log a model and its manifest to the open run, then register it as a new version.

        Parameters
        ----------
        model
            A scikit-learn estimator.
        run_id
            The open run.
        input_example
            A few rows as the model takes them; the signature has their columns and types.
        training
            The module that made the model; its file is stored with it.
        manifest
            What it was trained on.
        tags
            For the version, the cycle's id among them.

        Notes
        -----
        The client repeats a POST whose reply was lost; of versions with one cycle id only the
        one returned stays.

        Raises
        ------
        PipelineError
            If the model holds a type that its module does not trust.
        """
        training.check_unchanged()
        content = manifest.to_bytes()
        self.log_file(content, MANIFEST_FILE)
        try:
            logged = self._mlflow.sklearn.log_model(
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
        except self._mlflow.MlflowException:
            _check_types(model, training)
            raise
        location = self._client.get_logged_model(logged.model_id).artifact_location
        run_location = self._client.get_run(run_id).info.artifact_uri
        for uri in (location, run_location):
            _sync_local_artifacts(uri)
        created = self._client.create_model_version(
            self._name,
            logged.model_uri,
            run_id=run_id,
            model_id=logged.model_id,
            tags={
                **tags,
                TAG_ARTIFACT_HASH: self._digest_at(location),
                TAG_MANIFEST_HASH: hash_bytes(content),
                TAG_MODULE: training.name,
                TAG_CODE: training.code_sha256,
                TAG_METRIC: training.error_name,
            },
        )
        for twin in self._versions_with({TAG_CYCLE: tags[TAG_CYCLE]}):
            if twin.number != int(created.version):
                self._client.delete_model_version(self._name, str(twin.number))
        return self.version(int(created.version))

    def _digest_at(self, location: str) -> str:
        with tempfile.TemporaryDirectory(prefix="pipeline-model-") as folder:
            path = self._mlflow.artifacts.download_artifacts(artifact_uri=location, dst_path=folder)
            return folder_digest(Path(path))

    def describe(self, number: int, text: str) -> None:
        """Set the description of a version.

        Parameters
        ----------
        number
            Of the version.
        text
            In plain words.
        """
        self._client.update_model_version(self._name, str(number), text)

    def record_verdict(
        self, version: RegisteredVersion, verdict: Mapping[str, Any], explanation: str
    ) -> None:
        """Store a verdict with its version.

        Parameters
        ----------
        version
            The challenger.
        verdict
            Every criterion with value, limit and result.
        explanation
            In one sentence; becomes the version's description.
        """
        self._client.log_dict(version.run_id, dict(verdict), COMPARISON_FILE)
        number = str(version.number)
        facts = {
            TAG_RECORDINGS: str(verdict["n_recordings"]),
            "p_value": f"{verdict['p_value']:.6g}",
            "champion_mean_error": f"{verdict['champion_mean_error']:.3f}",
            "challenger_mean_error": f"{verdict['challenger_mean_error']:.3f}",
            TAG_REASONS: ", ".join(verdict["reasons"]),
        }
        for key, value in facts.items():
            self._client.set_model_version_tag(self._name, number, key, value)
        self.describe(version.number, explanation)
        self._client.set_model_version_tag(
            self._name,
            number,
            TAG_VERDICT,
            VERDICT_PROMOTE if verdict["promote"] else VERDICT_REJECT,
        )

    def promote(
        self,
        number: int,
        *,
        replaces: int | None,
        event: str,
        why: str,
        tags: Mapping[str, str],
        mean_errors: tuple[float | None, float | None] = (None, None),
    ) -> str:
        """Move the aliases; return the id of the run that keeps the history of production.

        Parameters
        ----------
        number
            The version that becomes production.
        replaces
            What must be production now.
        event
            One of the events above.
        why
            For the history.
        tags
            For the run.
        mean_errors
            Of the old and the new version on the same recordings, in percent, where measured.

        Raises
        ------
        PipelineError
            If somebody moved the alias meanwhile; it stays where it was put.
        """
        history = {
            **tags,
            TAG_EVENT: event,
            TAG_FROM: str(replaces or ""),
            TAG_TO: str(number),
            TAG_WHY: why,
            TAG_WHO: _who(),
        }
        measured = zip((METRIC_BEFORE, METRIC_AFTER), mean_errors, strict=True)
        with self.run(PROMOTION_RUN, history) as run_id:
            self.log_numbers({name: value for name, value in measured if value is not None}, {})
            found = self.production_number()
            if found != replaces:
                raise PipelineError(
                    f"{PRODUCTION!r} was moved to version {found} while this ran; left there, "
                    f"version {number} is not promoted"
                )
            if replaces is not None:
                self._client.set_registered_model_alias(self._name, PREVIOUS, str(replaces))
            self._client.set_registered_model_alias(self._name, PRODUCTION, str(number))
            if replaces is not None and event in (EVENT_ROLLBACK, EVENT_PROBATION):
                self._client.set_model_version_tag(self._name, str(replaces), TAG_ROLLED_BACK, why)
        return run_id

    # --- Tidying ---

    def close_left_over_runs(self, cycle_id: str) -> None:
        """End the runs that dead processes of this home left open.

        Parameters
        ----------
        cycle_id
            Of the dead cycle.

        Notes
        -----
        Called under the home's lock, so no run of this home can be alive. A promotion whose
        alias did move is complete, even if the store failed right after: it belongs to the history.
        """
        if self._client.get_experiment_by_name(self._name) is None:
            return
        production = self.production_number()
        experiment_id = self._experiment_id()
        promotions = self._client.search_runs(
            [experiment_id],
            f"attributes.run_name = '{PROMOTION_RUN}' and attributes.status != 'FINISHED' "
            f"and tags.{TAG_CYCLE} = '{cycle_id}'",
        )
        left_over = {run.info.run_id: run for run in self._open_runs(experiment_id)}
        left_over |= {run.info.run_id: run for run in promotions}
        for run in left_over.values():
            moved = run.info.run_name == PROMOTION_RUN and run.data.tags[TAG_TO] == str(production)
            status = "FINISHED" if moved else "KILLED"
            logger.info("closing the run %s of a dead process as %s", run.info.run_name, status)
            self._client.set_terminated(run.info.run_id, status)

    def complete_outcome(self, cycle_id: str) -> None:
        """Tag the monitoring run of a dead cycle that had come to a verdict.

        Parameters
        ----------
        cycle_id
            Of the dead cycle.
        """
        of_cycle = {TAG_CYCLE: cycle_id}
        outcomes = [OUTCOME_OF_EVENT.get(one.event) for one in self.changes(of_cycle)]
        outcomes += [
            "not_promoted"
            for version in self._versions_with(of_cycle)
            if version.tags.get(TAG_VERDICT) == VERDICT_REJECT
        ]
        for run in self.runs(MONITORING_RUN, of_cycle):
            if TAG_OUTCOME not in run.data.tags and outcomes and outcomes[0]:
                self.set_run_tag(run.info.run_id, TAG_OUTCOME, outcomes[0])

    def delete_unfinished_versions(self, cycle_id: str) -> None:
        """Delete what a dead cycle registered without bringing it to an end.

        Parameters
        ----------
        cycle_id
            Of the dead cycle. Versions with an alias or a rejection stay.
        """
        kept = {self.production_number(), self.previous_number()}
        for version in self._versions_with({TAG_CYCLE: cycle_id}):
            if version.number in kept or version.tags.get(TAG_VERDICT) == VERDICT_REJECT:
                continue
            logger.info("deleting version %d of a cycle that was cut off", version.number)
            self._client.delete_model_version(self._name, str(version.number))


def _who() -> str:
    """Return who changes production: the user, the machine, and whether a person is there."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in some containers
        user = f"uid {os.getuid()}"
    attended = sys.stdin is not None and sys.stdin.isatty()
    return f"{user}@{socket.gethostname()}, {'at a terminal' if attended else 'unattended'}"


def folder_digest(folder: Path) -> str:
    """Return one SHA-256 over all files of a model's folder, their names included.

    Parameters
    ----------
    folder
        The model's files.
    """
    lines = [
        f"{hash_file(path)}  {path.relative_to(folder).as_posix()}"
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LEFT_OUT_OF_DIGEST
    ]
    return hash_bytes("\n".join(lines).encode())


def requirements(training: Training) -> list[str]:
    """Return what a model of a training module is stored with: pinned packages.

    Parameters
    ----------
    training
        Names them.
    """
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


def _check_types(model: Any, training: Training) -> None:
    """Refuse a model that could be stored, but not loaded again."""
    import skops.io

    needed = set(skops.io.get_untrusted_types(data=skops.io.dumps(model)))
    missing = sorted(needed - set(training.trusted_types))
    if missing:
        raise PipelineError(
            f"{training.path.name}: the model holds types that TRUSTED_TYPES lacks: "
            f"{', '.join(missing)}; add them if you trust them"
        )


def _load_skops(path: Path, number: int, trusted_types: tuple[str, ...]) -> Any:
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
            f"the model of version {number} does not load: {error}; name another version: "
            "python pipeline_orchestrator.py rollback --to VERSION"
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
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        elif path.is_dir():
            sync_folder(path)
    for ancestor in (folder, *list(folder.parents)[:3]):
        sync_folder(ancestor)
