"""The store: open it, create it, upgrade it, and say what its failures mean.

MLflow is imported when a store is opened, not before, after its time limits are set.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import socket
import sqlite3
import sys
import tempfile
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retraining.errors import PipelineError, TryLaterError, raised_by
from retraining.files import (
    TEMPORARY_PREFIX,
    make_folder,
    remove_left_overs,
    sync_file,
    sync_folder,
    written_whole,
)
from retraining.journal import Journal
from retraining.registry import exchanges, places, refusals
from retraining.registry.facts import NotInRegistry
from retraining.registry.places import copy_database
from retraining.settings import Settings, sqlite_uri
from retraining.text import printable
from retraining.workers import death_in_words

HEALTH_SECONDS = 2.0
DATABASE_SECONDS = 6
OUTAGE_CODES = {
    *("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED"),
    *("REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED"),
}
OF_OTHER_JOBS = (
    *("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_REGISTRY_URI"),
    *("MLFLOW_ACTIVE_MODEL_ID", "MLFLOW_ENABLE_ASYNC_LOGGING"),
)
"""Variables of MLflow that say what another program is at work on."""
DATABASE_ERROR = re.compile(r"\([\w.]+\.\w*(?:Error|Violation)\)")
"""SQLAlchemy puts the driver's error in brackets, not always into the first line."""
REPEATED = re.compile(r"IntegrityError|UniqueViolation|\(UNIQUE constraint failed")
"""The client repeats a POST whose reply was lost, and the store has its row already."""
ALREADY_THERE, DELETED = "RESOURCE_ALREADY_EXISTS", "deleted"
"""What MLflow makes of such a row; what a person deleted is another case."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
DISK_TOLD = re.compile(rf"\[Errno (?:{'|'.join(map(str, DISK_ERRORS))})\] ([\w ]+)")
"""In a text of MLflow's that quotes several errors."""
NO_TEMPORARY = "No usable temporary directory"
SET_TMPDIR = "set TMPDIR to a folder with room that the pipeline's user may write to"
NO_HOME = "/nonexistent"
"""What Debian gives users that have no home; nothing is kept there."""
OLDER_TEMPORARY_PREFIX = ".new-"
"""Of a store that an older pipeline did not complete."""
NOT_THERE = "RESOURCE_DOES_NOT_EXIST"
REGISTER_FIRST = "run: python register_first_model.py"
NO_STORE_REMEDY = f"{REGISTER_FIRST}; or name the right home folder with --home"
PACKAGE = __name__.partition(".")[0]
CLIENTS = ("mlflow", "sqlalchemy", "alembic", "google")
logger = logging.getLogger("pipeline")


# --- Opening ---


def prepare_environment() -> None:
    """Set MLflow's time limits and switches where the operator did not; before its import.

    Take away what stands there of another program's work.

    Notes
    -----
    By default one call to a dead server takes four minutes, one to a hanging server twenty. With
    these limits a server that stops answering costs at most 30 s, wherever it stops: 12 s for a
    call, twice that where more files are downloaded than MLflow has threads, 2 s for closing. One
    that answers without end is left to `exchanges`.
    """
    for name, value in {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "6",
        "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # it may say an hour
        "PGCONNECT_TIMEOUT": str(DATABASE_SECONDS),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # what it logs with a traceback, it raises as well
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(name, value)
    for name in OF_OTHER_JOBS:
        os.environ.pop(name, None)
    _have_a_home()


def _have_a_home() -> None:
    """Name a home folder where there is none, as in a container: MLflow asks on its import."""
    if not os.environ.get("HOME"):
        os.environ.pop("HOME", None)
        try:
            os.environ["HOME"] = str(Path.home())
        except RuntimeError:  # a number without a name
            os.environ["HOME"] = NO_HOME


@dataclass(frozen=True)
class Connection:
    """An open store, and what belongs to this home in it.

    Parameters
    ----------
    settings
        Name the store, the registered model and the home.
    mlflow, client
        MLflow's module and its client of this store.
    """

    settings: Settings
    mlflow: Any
    client: Any

    @property
    def home_id(self) -> str:
        """Marks the runs of this home, wherever it lies and whatever the machine is called."""
        return Journal(self.settings.home).read().home_id

    @property
    def place(self) -> str:
        """Where this home is, for people."""
        return printable(f"{socket.gethostname()}:{self.settings.home}")

    @property
    def name(self) -> str:
        """Of the experiment and of the registered model."""
        return self.settings.model_name


def connect(settings: Settings, *, create: bool = False) -> Connection:
    """Open the store that the settings name; never create one, unless told so.

    Parameters
    ----------
    create
        An empty database of a server such as PostgreSQL may become a store; for a SQLite file
        there is `create_store`.

    Raises
    ------
    PipelineError
        If there is no store, or an older one; if the home was moved or copied.
    TryLaterError
        If a server does not answer.
    """
    prepare_environment()
    exchanges.bound(settings)
    if settings.database is not None:
        if not settings.database.is_file():
            raise NotInRegistry(f"there is no store at {settings.database}; {NO_STORE_REMEDY}")
        places.check(settings)
        _check_schema(settings.database)
    elif settings.is_on_server:
        _check_health(settings.store_uri)
    else:
        _check_database(settings.store_uri, create=create)
    import mlflow

    mlflow.set_tracking_uri(settings.store_uri)
    mlflow.set_registry_uri(settings.store_uri)
    return Connection(settings, mlflow, mlflow.MlflowClient())


# --- Creating and upgrading a SQLite store ---


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
    folder = database.parent
    make_folder(settings.artifacts)
    make_folder(folder)
    for prefix in (TEMPORARY_PREFIX, OLDER_TEMPORARY_PREFIX):
        remove_left_overs(folder, f"{prefix}*")  # the journal of one, too
    logger.info("creating the store %s", database)
    with written_whole(database, mode=0o600) as temporary:
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        store = SqlAlchemyStore(sqlite_uri(temporary), settings.artifacts.as_uri())
        store.engine.dispose()


def upgrade_store(settings: Settings) -> str:
    """Bring the embedded store to the schema of the installed MLflow; return what was done.

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
            f"{printable(settings.store_uri)} is no SQLite file; "
            "run on its server: mlflow db upgrade URI"
        )
    if not database.is_file():
        raise NotInRegistry(f"there is no store at {database}; {NO_STORE_REMEDY}")
    places.check(settings)
    before, needed = _readable_schema(database), _schema_needed()
    if before == needed:
        return f"{database} has schema {before} already; nothing to do"
    _refuse_newer(str(database), before)
    backup = database.with_name(f"{database.name}.{before or 'none'}.backup")
    copy = database.with_name(".upgrading.db")
    copy_database(database, copy)
    if not backup.exists():
        copy_database(database, copy.with_suffix(".backup"))
        copy.with_suffix(".backup").rename(backup)
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(sqlite_uri(copy), settings.artifacts.as_uri()).engine.dispose()
    state = places.damage(copy)
    if state or _schema_of(copy) != needed:
        raise PipelineError(
            f"the upgraded copy {copy} is damaged ({state or 'its schema is another one'}); the "
            "store is unchanged"
        )
    sync_file(copy)
    copy.rename(database)
    sync_folder(database.parent)
    return f"{database}: schema {before or 'none'} -> {needed}; the old store is {backup.name}"


def _migrations() -> Any:
    import mlflow
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))


def _schema_needed() -> str:
    return str(_migrations().get_current_head())


def _schema_of(database: Path) -> str:
    """Return a store's schema; not read-only, for a dead process may have left a journal."""
    with places.opened(database) as connection:
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else ""


# --- Is it there, and of this MLflow? ---


def _check_schema(database: Path) -> None:
    """Refuse a store of another MLflow: opening it would migrate it, without a backup."""
    found, needed = _readable_schema(database), _schema_needed()
    if found != needed:
        _refuse_newer(str(database), found)
        raise PipelineError(
            f"{database} has schema {found or 'none'}, the installed MLflow needs {needed}; "
            "run: python pipeline_orchestrator.py upgrade-store"
        )


def _readable_schema(database: Path) -> str:
    try:
        return _schema_of(database)
    except sqlite3.Error as error:
        raise places.unreadable(database, error, "restore it from a backup") from error


def _refuse_newer(store: str, found: str) -> None:
    """Refuse a store whose schema no migration of the installed MLflow knows."""
    import mlflow

    if found and found not in {one.revision for one in _migrations().walk_revisions()}:
        raise PipelineError(
            f"{store} is of a newer MLflow than the installed {mlflow.__version__} (schema "
            f"{printable(found, 40)}); nothing was written; upgrade it: python -m pip install "
            '--upgrade "mlflow<4"'
        )


def _check_health(uri: str) -> None:
    """Ask a server whether it is there before MLflow spends its retries on it."""
    import requests

    parts = urllib.parse.urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    address = f"{parts.scheme}://{host}{parts.path.rstrip('/')}/health"
    options = {"timeout": HEALTH_SECONDS, "verify": _trusted_certificates(), "stream": True}
    if certificate := os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"):
        options["cert"] = certificate
    try:
        with (
            exchanges.within(2 * HEALTH_SECONDS),
            requests.get(address, **options) as answer,
        ):
            if answer.status_code < 500:
                return
        reason: object = f"HTTP Error {answer.status_code}: {answer.reason}"
    except requests.RequestException as error:
        reason = error
        if refused := refusals.in_words(error):
            raise PipelineError(f"the MLflow server {printable(uri)} {refused}") from error
    except OSError as error:  # requests looks for the files of certificates first
        raise PipelineError(
            f"{printable(error)}: mend MLFLOW_TRACKING_SERVER_CERT_PATH, "
            "MLFLOW_TRACKING_CLIENT_CERT_PATH or REQUESTS_CA_BUNDLE"
        ) from error
    raise TryLaterError(
        f"the MLflow server {printable(uri)} does not answer: {printable(reason, 300)}"
    )


def _trusted_certificates() -> bool | str:
    """Return what MLflow will hold a server's certificate against."""
    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    return os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or not insecure


def _check_database(uri: str, *, create: bool) -> None:
    """Refuse a database that does not answer, is empty or of another MLflow; before MLflow does."""
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(uri)
        with engine.connect() as connection:
            has_store = sqlalchemy.inspect(connection).has_table("alembic_version")
            version = sqlalchemy.text("SELECT version_num FROM alembic_version")
            found = connection.execute(version).scalar() if has_store else None
        engine.dispose()
    except ModuleNotFoundError as error:
        raise PipelineError(
            f"{printable(uri)} needs the package {error.name}; install it with pip"
        ) from error
    except sqlalchemy.exc.OperationalError as error:
        if refused := refusals.database_in_words(error):
            raise PipelineError(
                f"the database {printable(uri)} refused: {refused}; mend --tracking-uri, or the "
                "rights in the database"
            ) from error
        reason = printable(str(error.orig).splitlines()[0])
        raise TryLaterError(f"the database {printable(uri)} does not answer: {reason}") from error
    if not has_store and not create:
        raise NotInRegistry(f"the database {printable(uri)} is empty; {REGISTER_FIRST}")
    needed = _schema_needed()
    if has_store and found != needed:
        _refuse_newer(printable(uri), str(found or ""))
        raise PipelineError(
            f"{printable(uri)} has schema {found or 'none'}, the installed MLflow needs "
            f"{needed}; make a backup, then run: mlflow db upgrade URI"
        )


# --- What its failures mean ---


def as_pipeline_error(error: Exception, settings: Settings) -> PipelineError | None:
    """Return what an operator should read for a failure outside our code; None for a bug."""
    disk = disk_in_words(error, settings)
    known = PipelineError(disk) if disk else death_in_words(error)
    if known is not None:
        return known
    lines = str(error).splitlines() or [type(error).__name__]
    cause = next((line for line in lines if DATABASE_ERROR.search(line)), lines[0])
    text = printable(cause, 300)
    store = printable(settings.store_uri)
    if "mlflow" in sys.modules and _comes_from_store(error):
        if refused := refusals.in_words(error):
            return PipelineError(f"the MLflow store {store} {refused}")
        if is_outage(error):
            return TryLaterError(f"the MLflow store {store} failed: {text}")
        return PipelineError(f"the MLflow store {store} refused: {text}")
    if raised_by(error, CLIENTS, called_by=PACKAGE):
        return PipelineError(
            f"the MLflow store {store} said what its client cannot read: "
            f"{type(error).__name__}: {text}"
        )
    if isinstance(error, OSError):
        return PipelineError(f"{text}; check the disk and the rights of {settings.home}")
    return None


def disk_in_words(error: BaseException, settings: Settings) -> str:
    """Say which disk of this machine takes nothing more; empty where none is to blame.

    Notes
    -----
    MLflow writes a model to the temporary folder first, and its own error does not say why that
    failed. A message of a server tells of the server's disk.
    """
    found = [one for one in refusals.chain(error) if isinstance(one, OSError)]
    reason = next((one.strerror for one in found if one.errno in DISK_ERRORS), None)
    if reason is None and "mlflow" in sys.modules and not hasattr(error, "json"):
        told = DISK_TOLD.search(str(error)) if _comes_from_store(error) else None
        reason = told[1] if told else None
    if reason is None:
        missing = next((str(one) for one in found if NO_TEMPORARY in str(one)), "")
        return f"{printable(missing, 300)}; {SET_TMPDIR}" if missing else ""
    named = next((str(one.filename) for one in found if one.filename), "")
    if named and Path(named).is_relative_to(settings.home):
        return f"{reason}: {printable(named)}; check the disk and the rights of {settings.home}"
    folder = printable(settings.home)
    try:
        temporary = tempfile.gettempdir()
        free = shutil.disk_usage(temporary).free / 1e6
    except OSError:
        return f"{reason}; check the disk and the rights of {folder}; {SET_TMPDIR}"
    of_temporary = f"temporary files, {printable(temporary)}, which has {free:.1f} MB free"
    if named.startswith(f"{temporary}{os.sep}"):
        return f"{reason}; check the disk of {of_temporary}: make room, or {SET_TMPDIR}"
    return (
        f"{reason}; check the disk and the rights of {folder}, and the disk of {of_temporary}: "
        f"make room, or {SET_TMPDIR}"
    )


def _comes_from_store(error: BaseException) -> bool:
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, MlflowException | RequestException | SQLAlchemyError)


def is_outage(error: Exception) -> bool:
    """Say whether what a store raised may be gone at the next run; a refusal comes again."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import InterfaceError, OperationalError, PendingRollbackError

    if refusals.in_words(error) or refusals.is_refusal(refusals.status_of(error)):
        return False
    if isinstance(error, MlflowException):
        text = str(error)
        is_there = error.error_code == ALREADY_THERE and DELETED not in text
        return error.error_code in OUTAGE_CODES or is_there or bool(REPEATED.search(text))
    if isinstance(error, RequestException):
        return True
    # What MLflow did not catch: a connection that was lost, or shut down when its time was over.
    return isinstance(error, OperationalError | InterfaceError | PendingRollbackError)
