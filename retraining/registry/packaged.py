"""A registered version that predicts with its own code, in a process of its own.

A version carries the training module that made it. Where that is not the present one, its classes
mean something else here or nothing at all: so its files are loaded by another Python process, with
the packaged code before everything else. Predictions come back, row by row; errors are counted
here, by one metric for both models. Nothing heavy is imported here.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retraining.confined import (
    last_line,
    path_with_this_interpreter,
    run_confined,
    without_passwords,
)
from retraining.errors import PipelineError, TryLaterError, stop_request
from retraining.files import hash_file
from retraining.registry.facts import OTHER_VERSION
from retraining.settings import Settings
from retraining.text import printable
from retraining.training import FILE, Training

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

REQUIRED_COLUMNS = "required_columns"
OPTIONAL_COLUMNS = "optional_columns"
"""In the metadata of a stored model, because its signature need not name any."""

INSTALL_SECONDS = 1800

PREDICT = """
import json
import sys

import numpy
import pandas
from mlflow import pyfunc

folder, source, target = sys.argv[1:]
model = pyfunc.load_model(folder)
with open(source) as recordings, open(target, "w") as predictions:  # nothing but ASCII
    for recording in recordings:
        rows = pandas.DataFrame(**json.loads(recording))
        print(json.dumps(numpy.asarray(model.predict(rows)).tolist()), file=predictions)
"""
"""Run by the other process; MLflow puts the packaged code before all other."""
EXPECT = """
import importlib
import json
import sys

import pandas
from mlflow import pyfunc

folder, source, target, name = sys.argv[1:]
model = pyfunc.load_model(folder).get_raw_model()
module = importlib.import_module(name)
expect = getattr(module, "expected_errors", lambda model, rows: None)
with open(source) as recordings, open(target, "w") as expected:
    for recording in recordings:
        table = expect(model, pandas.DataFrame(**json.loads(recording)))
        if table is not None:
            table = table.rename(columns={module.ERROR_COLUMN: "error"})
        print("null" if table is None else table.to_json(orient="split"), file=expected)
"""
"""The same, for how far the version expects to be wrong."""
PREDICT_IN_ENVIRONMENT = """
import shlex
import sys

from mlflow.models.flavor_backend_registry import get_flavor_backend
from mlflow.utils.process import ShellCommandException

environment, script, folder, *words = sys.argv[1:]
backend = get_flavor_backend(folder, env_manager=environment)
prepared = backend.prepare_env(folder)
try:
    prepared.execute(shlex.join(["python", script, folder, *words]))
except ShellCommandException:
    sys.exit(1)  # what the script said last says more
"""
"""The same with the packages of the version, in the environment that MLflow keeps for them."""


class PackagedModel:
    """A version's files, kept for as long as this object lives.

    Parameters
    ----------
    folder
        Verified files of the version; they are moved to a folder of this object.
    number
        Of the version, for messages.
    settings
        With where it predicts, and the limits.

    Raises
    ------
    TryLaterError
        If its packages are to be installed and cannot be.
    """

    takes_all_columns = True
    """The present training module does not know which ones this model needs."""

    def __init__(self, folder: Path, number: int, settings: Settings) -> None:
        owned = tempfile.mkdtemp(prefix="pipeline-model-")
        weakref.finalize(self, shutil.rmtree, owned, ignore_errors=True)
        self._folder = Path(shutil.move(folder, owned))
        self._number = number
        self._settings = settings
        self._required, self._optional = columns_of_version(self._folder)
        _forget_signature(self._folder)
        if settings.champion_env != "local":
            self._install_packages()

    def predict(self, rows: pd.DataFrame) -> np.ndarray:
        """Return one prediction per row of one recording; see `predict_recordings`."""
        return self.predict_recordings([rows])[0]

    def predict_recordings(self, recordings: Sequence[pd.DataFrame]) -> list[np.ndarray]:
        """Return one prediction per row of each recording: one process, one recording at a time.

        Parameters
        ----------
        recordings
            Raw rows, with at least the columns that the version needs.

        Raises
        ------
        PipelineError
            If a column is missing, or the other process fails.
        """
        import numpy as np

        answers = self._answers(PREDICT, [rows[self._columns(rows)] for rows in recordings])
        return [np.asarray(one) for one in answers]

    def expected_errors_of_recordings(
        self, recordings: Sequence[pd.DataFrame]
    ) -> list[pd.DataFrame | None]:
        """Return how far the version expects to be wrong on each recording, by its own code.

        Raises
        ------
        PipelineError
            As `predict_recordings`, or if the answer is no table.
        """
        import pandas as pd

        code = [one.stem for one in (self._folder / "code").glob("*.py")]
        if len(code) != 1:
            return [None] * len(recordings)
        columns = [[*dict.fromkeys([*self._columns(rows), FILE])] for rows in recordings]
        tables = [rows[names] for rows, names in zip(recordings, columns, strict=True)]
        try:
            return [
                None if one is None else pd.DataFrame(**one)
                for one in self._answers(EXPECT, tables, *code)
            ]
        except (TypeError, ValueError) as error:
            raise PipelineError(
                f"version {self._number} tells no expected errors with its own code: {error}"
            ) from error

    def _answers(self, script: str, tables: Sequence[pd.DataFrame], *words: str) -> list[Any]:
        """Let the other process answer, one line for each table."""
        if not tables:
            return []
        with tempfile.TemporaryDirectory(prefix="pipeline-predict-") as name:
            source, target = Path(name, "recordings.json"), Path(name, "answers.json")
            with source.open("w", encoding="utf-8") as stream:
                stream.writelines(f"{self._as_json(table)}\n" for table in tables)
            self._run(script, source, target, *words)
            answers = _read_answers(target)
        if len(answers) != len(tables):
            raise PipelineError(
                f"version {self._number} predicted {len(answers)} of {len(tables)} "
                f"recordings with its own code; {OTHER_VERSION}"
            )
        return answers

    def _as_json(self, table: pd.DataFrame) -> str:
        """Return rows on one line, in JSON and not CSV: a number comes back to the last bit."""
        try:
            return json.dumps(table.to_dict("split", index=False))
        except TypeError as error:
            raise PipelineError(
                f"the rows for version {self._number} hold what is no number, truth or text: "
                f"{error}; let the training module read it as one of these"
            ) from error

    def _run(self, code: str, source: Path, target: Path, *more: str) -> None:
        failure = f"version {self._number} does not predict with its own code"
        words = [str(self._folder), str(source), str(target), *more]
        if self._settings.champion_env == "local":
            remedy = "--champion-env uv rebuilds its packages as well"
            run_confined(["-c", code, *words], self._settings, failure, remedy)
            return
        script = source.with_name("predict_recordings.py")
        script.write_text(code, encoding="utf-8")
        words = [PREDICT_IN_ENVIRONMENT, self._settings.champion_env, str(script), *words]
        run_confined(["-c", *words], self._settings, failure, OTHER_VERSION)

    def _install_packages(self) -> None:
        """Install them where MLflow keeps such environments, unless it has this one."""
        words = ["mlflow", "models", "prepare-env", "--model-uri", str(self._folder)]
        words += ["--env-manager", self._settings.champion_env]
        environment = without_passwords() | {"PATH": path_with_this_interpreter()}
        environment.pop("PYTHONPATH", None)
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", *words],
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                check=False,
                env=environment,
                timeout=INSTALL_SECONDS,
            )
            reason = last_line(done.stderr) if done.returncode else ""
        except subprocess.TimeoutExpired:
            reason = f"it took more than {INSTALL_SECONDS} seconds"
        stop_request.obey()
        if reason:
            raise TryLaterError(
                f"the packages of version {self._number} cannot be installed: "
                f"{printable(reason, 300)}; the next run tries again; --champion-env local does "
                "without"
            )

    def _columns(self, rows: pd.DataFrame) -> list[str]:
        missing = sorted(set(self._required) - set(rows.columns))
        if missing:
            raise PipelineError(
                f"version {self._number} needs the columns {', '.join(missing)}, which the "
                "training module no longer reads; let it read them until another version is "
                "production"
            )
        return [name for name in (*self._required, *self._optional) if name in rows.columns]


def _read_answers(path: Path) -> list[Any]:
    """Return what the other process wrote; nothing of what is no JSON."""
    try:
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    except (OSError, ValueError, RecursionError):
        return []


def _forget_signature(folder: Path) -> None:
    """Let a model have its rows as they are: MLflow would turn 1.5 to 1 by the types of a few."""
    from mlflow.models import Model

    model = Model.load(str(folder))
    model.signature = None
    model.save(str(folder / "MLmodel"))


def columns_of_version(folder: Path) -> tuple[list[str], list[str]]:
    """Return the columns that a version needs, and those that it can do without."""
    from mlflow.models import Model

    model = Model.load(str(folder))
    metadata = model.metadata or {}
    if REQUIRED_COLUMNS in metadata:
        return metadata[REQUIRED_COLUMNS], metadata[OPTIONAL_COLUMNS]
    # An older version: its signature names them.
    schema = model.get_input_schema()
    return schema.required_input_names(), schema.optional_input_names()


def needs_other_code(folder: Path, training: Training, packages: Any, environment: str) -> bool:
    """Say whether a version was made by another training module, or by other packages.

    Parameters
    ----------
    packages
        Its requirements as they would be stored today.
    environment
        Packages are compared only if they could be rebuilt: not for "local".

    Notes
    -----
    A version that carries no code, of an older pipeline, is loaded here.
    """
    if not (folder / "code").is_dir():
        return False
    code = folder / "code" / training.path.name
    if not code.is_file() or hash_file(code) != training.code_sha256:
        return True
    requirements = (folder / "requirements.txt").read_text(encoding="utf-8").split()
    return environment != "local" and sorted(requirements) != sorted(packages)
