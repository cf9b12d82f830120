"""What an operator can set, and the folders of a home.

Every setting is one field of `Settings`: its flag, its environment variable, its help text and
its range all come from there. The command line wins over the environment, that over the default.
Nothing heavy is imported here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retraining.errors import PipelineError, UsageError
from retraining.text import without_secrets

JSON_SCHEMA_VERSION = 2
"""Of every JSON document that goes to another program; grows when a field changes its meaning."""
SCRIPTS = Path(__file__).resolve().parents[1]
"""The folder of the three scripts: the default home, and where training modules are looked for."""
SQLITE = ("sqlite:///", "sqlite+pysqlite:///")
SCHEDULER_SCHEMES = ("tcp://", "tls://")
RESTORING, RESTORING_NOTE = ".pipeline-restoring", ".pipeline_restoring.json"
"""In a home that is being restored: what is yet to be put in place, and that it was verified."""
STORE_SCHEMES = (*SQLITE, "http://", "https://", "postgresql", "mysql", "mssql")
BOOLEAN_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _setting(
    default: Any,
    text: str,
    *,
    unit: str = "",
    at_least: float | None = None,
    at_most: float | None = None,
    environment: str = "",
    choices: tuple[str, ...] = (),
    kind: type | None = None,
) -> Any:
    """Describe one setting; the range includes its ends, the type is by default the default's."""
    metadata = {
        "kind": kind or type(default),
        "help": text,
        "unit": unit,
        "at_least": at_least,
        "at_most": at_most,
        "environment": environment,
        "choices": choices,
    }
    return dataclasses.field(default=default, metadata=metadata)


VERDICT_SETTINGS = (
    *("min_new_files", "window", "threshold", "decide", "significance", "min_improvement"),
    *("max_regression", "n_folds", "random_state"),
)

OF_FIRST_MODEL = (
    *("home", "tracking_uri", "model_name", "training_module", "max_file_mb"),
    *("max_rows", "max_objects"),
    *("random_state", "n_folds", "n_jobs"),
    *("on_promotion", "hook_timeout"),
)
"""Settings that `register_first_model.py` takes."""
OF_FIRST_TRAINING = (
    *("home", "n_folds", "random_state", "n_jobs"),
    *("max_file_mb", "max_rows", "max_objects"),
)
"""Settings that the training module takes, run as a script."""


@dataclass(frozen=True)
class Limits:
    """What one recording may be at most; a larger one is refused before it costs memory or time.

    Parameters
    ----------
    max_file_mb
        Megabytes (10^6 bytes).
    max_rows, max_objects
        Its rows, and the different values of the module's `OBJECT_COLUMN`.
    """

    max_file_mb: float
    max_rows: int
    max_objects: int


@dataclass(frozen=True)
class Settings:
    """Everything that an operator can set, checked.

    Raises
    ------
    UsageError
        If a value is outside its range.
    """

    home: Path = _setting(
        SCRIPTS,
        "folder that holds new_gts/, used_gts/, model/ and mlflow_server/ "
        "(default: the folder of the scripts)",
    )
    tracking_uri: str = _setting(
        "",
        "MLflow store (default: HOME/mlflow_server/backend_db/mlflow.db, embedded)",
        environment="MLFLOW_TRACKING_URI",
    )
    store_timeout: float = _setting(
        30.0,
        "time limit of one exchange with the store; an upload or a download has a second more for "
        "each 100 kB, and all of a command together 20 times as much",
        unit="seconds",
        at_least=1,
        at_most=3600,
    )
    model_name: str = _setting("StemClassifierPostprocessing", "registered model's name")
    training_module: str = _setting(
        "train_classification_model",
        "the team's own logic: a module beside the scripts, or the path of a Python file",
    )
    unlabelled: str = _setting(
        "unlabelled",
        "folder of recordings that nobody has checked, below HOME or anywhere: production's error "
        "on them is estimated each night",
    )
    champion_env: str = _setting(
        "local",
        "where a version predicts that other code made: local: with the installed packages; uv or "
        "virtualenv: with those that it was registered with",
        choices=("local", "uv", "virtualenv"),
    )
    min_new_files: int = _setting(
        15,
        "new recordings that start a cycle; the newest so many decide",
        unit="files",
        at_least=1,
        at_most=100_000,
    )
    window: int = _setting(
        30,
        "newest new recordings that two models are compared on, never fewer than --min-new-files",
        unit="files",
        at_least=1,
        at_most=100_000,
    )
    threshold: float | None = _setting(
        None,
        "retrain above this mean error, in the unit of the metric; default: the training module's",
        kind=float,
        at_least=0,
        at_most=100_000,
    )
    decide: str = _setting(
        "point",
        "point: compare the mean error itself with the threshold; bound: the lower end of its "
        "95 % interval",
        choices=("point", "bound"),
    )
    significance: float = _setting(
        0.05,
        "largest chance that an equal model is promoted at a look; 1: the lower mean error wins",
        at_least=1e-6,
        at_most=1,
    )
    min_improvement: float = _setting(
        0.0,
        "promote only above this gain, in the unit of the metric (percentage points)",
        at_least=0,
        at_most=100_000,
    )
    max_regression: float = _setting(
        2.0,
        "loss allowed on the old recordings, in the unit of the metric (percentage points)",
        at_least=0,
        at_most=100_000,
    )
    stuck_after: int = _setting(
        3,
        "looks lost by challengers in a row, on recordings of which most are others, until a "
        "person is called",
        at_least=1,
        at_most=1000,
    )
    keep_losers: int = _setting(
        0,
        "newest versions that lost whose model files stay: a nightly run with a verdict prunes "
        "the others; 0: all stay",
        unit="versions",
        at_least=0,
        at_most=1_000_000,
    )
    n_folds: int = _setting(
        5, "folds of the cross-validation by file, or by session", at_least=2, at_most=100
    )
    random_state: int = _setting(42, "seed", at_least=0, at_most=2**32 - 1)
    n_jobs: int = _setting(
        -1,
        "processes that train at the same time; -1: one per core, where that pays",
        at_least=-1,
        at_most=1024,
    )
    backend: str = _setting(
        "local",
        "where training computes; local: on this machine; dask: on the cluster of --scheduler",
        choices=("local", "dask"),
    )
    scheduler: str = _setting("", "address of the Dask scheduler, such as tcp://host:8786")
    max_file_mb: float = _setting(
        200.0, "largest ground truth file", unit="MB", at_least=0.001, at_most=10_000
    )
    max_rows: int = _setting(
        1_000_000, "most rows of a recording", unit="rows", at_least=1, at_most=1_000_000_000
    )
    max_objects: int = _setting(
        20_000,
        "most objects of a recording, where the training module says what one is",
        unit="objects",
        at_least=1,
        at_most=1_000_000_000,
    )
    cache_mb: float = _setting(
        256.0,
        "size of HOME/.cache/, which spares a retraining the recordings that it has read before; "
        "0: none",
        unit="MB",
        at_least=0,
        at_most=1_000_000,
    )
    task_timeout: float = _setting(
        3600.0,
        "time limit of a process that runs the code of another version, and of the wait for a "
        "Dask cluster's next result",
        unit="seconds",
        at_least=1,
        at_most=1_000_000,
    )
    code_memory_mb: float = _setting(
        16_000.0,
        "memory limit of a process that runs such code",
        unit="MB",
        at_least=100,
        at_most=10_000_000,
    )
    max_model_mb: float = _setting(
        2000.0,
        "largest version: the files of a larger one are not copied from the store",
        unit="MB",
        at_least=0.1,
        at_most=1_000_000,
    )
    allow_pickle: bool = _setting(
        False, "load trusted versions that hold a pickle, which can run any code"
    )
    on_promotion: str = _setting(
        "", "command to run after production changed: details as JSON on its standard input"
    )
    on_attention: str = _setting(
        "", "command to run when somebody must look: details as JSON on its standard input"
    )
    hook_timeout: float = _setting(
        60.0, "time limit of each of these commands", unit="seconds", at_least=1, at_most=86_400
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._check_range(field)
        if not self.model_name or re.search(r"[/:'\"\x00-\x1f]", self.model_name):
            raise UsageError(
                f"--model-name {self.model_name!r}: must be a name without / : quotes or newlines"
            )
        if self.tracking_uri and not self.tracking_uri.startswith(STORE_SCHEMES):
            scheme = self.tracking_uri.partition(":")[0]  # the rest may hold a password
            raise UsageError(
                f"--tracking-uri {scheme!r}: must begin with {', '.join(STORE_SCHEMES)}"
            )
        name = _after_scheme(self.tracking_uri)
        if name is not None and (name.startswith(("file:", ":memory:")) or not name):
            raise UsageError(
                f"--tracking-uri {self.tracking_uri!r}: must name a file, as "
                "sqlite:////srv/mlflow.db"
            )
        if self.backend == "dask" and not self.scheduler.startswith(SCHEDULER_SCHEMES):
            raise UsageError(
                f"--scheduler {self.scheduler!r}: --backend dask needs the address of a scheduler, "
                f"beginning with {' or '.join(SCHEDULER_SCHEMES)}"
            )
        if not self.training_file.stem.isidentifier():
            raise UsageError(
                f"--training-module {self.training_module!r}: must be the name of a module beside "
                "the scripts or the path of a Python file"
            )
        if self.n_jobs == 0:
            raise UsageError("--n-jobs 0: must be -1 or at least 1")

    def _check_range(self, field: dataclasses.Field[Any]) -> None:
        value = getattr(self, field.name)
        low, high = field.metadata["at_least"], field.metadata["at_most"]
        if low is not None and value is not None and not low <= value <= high:
            unit = f" {field.metadata['unit']}" if field.metadata["unit"] else ""
            raise UsageError(f"{flag(field)} {value}: must be from {low:g} to {high:g}{unit}")
        choices = field.metadata["choices"]
        if choices and value not in choices:
            raise UsageError(f"{flag(field)} {value!r}: must be one of {', '.join(choices)}")

    @property
    def training_file(self) -> Path:
        """The file of the training module."""
        name = self.training_module
        if name.endswith(".py") or "/" in name:
            return Path(name).expanduser().resolve()
        return SCRIPTS / f"{name}.py"

    @property
    def limits(self) -> Limits:
        """What one recording may be at most."""
        return Limits(self.max_file_mb, self.max_rows, self.max_objects)

    @property
    def new_gts(self) -> Path:
        """Where people put ground truth files."""
        return self.home / "new_gts"

    @property
    def rejected_gts(self) -> Path:
        """Where invalid files go, each beside the reason."""
        return self.new_gts / "rejected"

    @property
    def used_gts(self) -> Path:
        """Where files go that the production model was trained on."""
        return self.home / "used_gts"

    @property
    def replaced_gts(self) -> Path:
        """Where files are kept whose place a corrected or a whole one took."""
        return self.used_gts / "replaced"

    @property
    def withdrawn_gts(self) -> Path:
        """Where recordings are kept that a person took out of the training data."""
        return self.home / "withdrawn"

    @property
    def unlabelled_folder(self) -> Path:
        """Where recordings lie that nobody has checked; need not be there."""
        # A user that nobody knows stays as it is written: there is no such folder.
        return self.home / os.path.expanduser(self.unlabelled)  # noqa: PTH111

    @property
    def reports(self) -> Path:
        """Where the pages of the last cycles are kept."""
        return self.home / "reports"

    @property
    def folders(self) -> tuple[Path, ...]:
        """All folders of the home at its own level, any of which may be missing."""
        more = ("model", "mlflow_server", ".cache")
        ours = (self.new_gts, self.used_gts, self.withdrawn_gts, self.reports)
        return (*ours, *(self.home / name for name in more))

    @property
    def database(self) -> Path | None:
        """The store's SQLite file: the embedded one by default; None for any other store."""
        if not self.tracking_uri:
            return self.home / "mlflow_server" / "backend_db" / "mlflow.db"
        name = _after_scheme(self.tracking_uri)
        return None if name is None else Path(urllib.parse.unquote(name)).absolute()

    @property
    def has_own_store(self) -> bool:
        """Whether the store is a file of this home: then only who may write that may edit it."""
        return self.database is not None and self.database.resolve().is_relative_to(
            self.home.resolve()
        )

    @property
    def artifacts(self) -> Path:
        """Where a SQLite store keeps its artifacts."""
        return self.home / "mlflow_server" / "artifacts"

    @property
    def store_uri(self) -> str:
        """What MLflow is told to use."""
        if self.database is None:
            return self.tracking_uri
        _, mark, query = self.tracking_uri.partition("?")
        return f"{sqlite_uri(self.database)}{mark}{query}"

    @property
    def is_on_server(self) -> bool:
        """Whether the store is an MLflow server."""
        return self.store_uri.startswith(("http://", "https://"))

    def of_the_verdict(self, threshold: float) -> dict[str, float | str]:
        """Return the settings that a verdict depends on, with the threshold that holds."""
        return {name: getattr(self, name) for name in VERDICT_SETTINGS} | {"threshold": threshold}

    def for_the_run(self, threshold: float) -> dict[str, Any]:
        """Return what is logged with a run: all but what may hold a password."""
        logged = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("tracking_uri", "on_promotion", "on_attention")
        }
        return {**without_secrets(logged), "threshold": threshold}

    def verdict_fingerprint(self, code_sha256: str, threshold: float) -> str:
        """Return a short hash of what a verdict depends on beside the recordings.

        The code is that of the training module: an improved one is worth another try.
        """
        text = json.dumps([self.of_the_verdict(threshold), code_sha256], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def sqlite_uri(database: Path) -> str:
    """Return the address of a SQLite file, whatever its name.

    Examples
    --------
    >>> sqlite_uri(Path("/srv/mlflow.db"))
    'sqlite:////srv/mlflow.db'

    Notes
    -----
    SQLAlchemy decodes the path, and ends it at a question mark. MLflow makes the folder above it
    before that is decoded, unless the driver is named.
    """
    plain, named = SQLITE
    path = str(database)
    quoted = path.replace("%", "%25").replace("?", "%3F")
    return f"{plain if quoted == path else named}{quoted}"


def _after_scheme(uri: str) -> str | None:
    """Return the path of a SQLite address as it is written there; None for any other store."""
    scheme = next((one for one in SQLITE if uri.startswith(one)), None)
    return None if scheme is None else uri.removeprefix(scheme).partition("?")[0]


def flag(field: dataclasses.Field[Any]) -> str:
    """Return the command-line flag of a setting."""
    return "--" + field.name.replace("_", "-")


def environment_variable(field: dataclasses.Field[Any]) -> str:
    """Return the environment variable of a setting."""
    return field.metadata["environment"] or f"PIPELINE_{field.name.upper()}"


def check_home(settings: Settings) -> None:
    """Refuse a home folder that is not one, and a training module that is not there.

    Raises
    ------
    PipelineError
        If new_gts/ or used_gts/ is not there: none is created somewhere wrong. If a restore was cut
        off: half a home is none. If a folder is a
        link of another user; one of ours may lead to a larger disk.
    UsageError
        If the training module's file is not there.
    """
    if not settings.training_file.is_file():
        raise UsageError(
            f"--training-module {settings.training_module}: there is no file "
            f"{settings.training_file}"
        )
    for name in (RESTORING, RESTORING_NOTE):
        if os.path.lexists(settings.home / name):
            raise PipelineError(
                f"restoring {settings.home} was cut off, or is at work; run again: python "
                "pipeline_orchestrator.py restore FILE"
            )
    for folder in (settings.new_gts, settings.used_gts):
        if not folder.is_dir():
            raise PipelineError(
                f"{folder} is not a folder; create it, or name the right home folder with --home"
            )
    for folder in settings.folders:
        if folder.is_symlink() and folder.lstat().st_uid not in (os.geteuid(), 0):
            raise PipelineError(
                f"{folder} is a link of another user, who can let it lead elsewhere: make it your "
                "own, or remove it"
            )
