"""The contract with the training module, and the only way to it.

A training module is one file of Python: it reads a recording, trains on a folder of them and
counts errors. Everything else of the pipeline knows it through `Training`, so that nothing else
depends on what is predicted or how. `--training-module` names it; `TrainingModule` lists what it
must have. Nothing heavy is imported here, until a module is loaded.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from gts_folder import hash_bytes, hash_file, read_regular_file, waiting_names
from pipeline_settings import PipelineError, Settings

if TYPE_CHECKING:
    import pandas as pd

ERROR = "error"
"""Column of every table of errors in the pipeline, whatever the module calls it."""
TRUE_COUNT, PREDICTED_COUNT = "true_count", "predicted_count"
"""Columns that a table of errors may have beside it, where the error is one of counts."""
SEE = "see 'Your own model' in README.md"


class TrainingResult(Protocol):
    """What a training returns.

    Attributes
    ----------
    model
        A scikit-learn estimator, fitted on all recordings. `predict(rows)` takes the rows of whole
        recordings, with `MODEL_COLUMNS`, and returns one prediction per row.
    out_of_fold
        A table as `count_errors` returns it: each recording scored by a model that never saw it.
    in_sample
        The same for `model` itself.
    input_example
        A few rows as `model.predict` takes them; names and types become the model's signature.
    row_counts
        Recording -> number of rows, for every file in whose name .csv comes last, in any case.

    Notes
    -----
    Optional: `data_quality` (recording -> note), `features` (as `feature_table` returns it, of all
    recordings, the index is the recording) and `importance` (index: features; columns `mean` and
    `deviation`: by how many percentage points more is wrong without each of them). They go to the
    report.
    """

    model: Any
    out_of_fold: pd.DataFrame
    in_sample: pd.DataFrame
    input_example: pd.DataFrame
    row_counts: dict[str, int]


@dataclass(frozen=True)
class TrainedModel:
    """What a training returned, with the pipeline's column `error` in its tables.

    Parameters
    ----------
    model, out_of_fold, in_sample, input_example, row_counts, data_quality, features, importance
        See `TrainingResult`; `features` and `importance` are None where the module has none.
    """

    model: Any
    out_of_fold: pd.DataFrame
    in_sample: pd.DataFrame
    input_example: pd.DataFrame
    row_counts: Mapping[str, int]
    data_quality: Mapping[str, str]
    features: pd.DataFrame | None
    importance: pd.DataFrame | None

    @property
    def mean_error(self) -> float:
        """Mean of the out-of-fold errors."""
        return float(self.out_of_fold[ERROR].mean())


class TrainingModule(Protocol):
    """What a training module must have.

    Attributes
    ----------
    MODEL_COLUMNS
        The columns that a model takes; `file` among them if it looks at a recording as a whole.
    TRUSTED_TYPES
        The types beyond skops' own list that a stored model may hold, such as `my_model.MyModel`.
    PACKAGES
        The installed packages that a stored model needs to predict.
    ERROR_NAME, ERROR_UNIT, ERROR_COLUMN
        The metric in words, its unit, and its column in the table of `count_errors`. Lower is
        better, 0 is best.

    Notes
    -----
    Optional, and what happens without:

    - `MODEL_OPTIONAL_COLUMNS`: columns that it takes as well where they are there (none).
    - `MODEL_CHECKS_ROWS`: true if a model itself refuses rows that it cannot take. Then a served
      one gets what a client sent as it is; else MLflow converts or refuses what differs in type
      from the rows that it learnt (false).
    - `COUNTED_THINGS`: what the error counts, in the plural (the report has no counts).
    - `predict_without_a_model(rows)`: the predictions that a model must beat (no such criterion).
    - `data_quality_note(rows)`: what a person should know of a readable recording (nothing).
    - `feature_table(rows)`, `FEATURES_IN_WORDS`, `DESCRIBED_THINGS`: what the report compares
      between old and new recordings (no such section).
    - `feature_version()`: with the argument `tables`, see `FeatureCache` (nothing is kept).
    - `as_row_model(model)`: what becomes of the first, unpickled model (it stays as it is).
    - `FIRST_MODEL_PATH`: where that lies in the home folder (model/NAME.pkl).
    """

    MODEL_COLUMNS: Sequence[str]
    TRUSTED_TYPES: Sequence[str]
    PACKAGES: Sequence[str]
    ERROR_NAME: str
    ERROR_UNIT: str
    ERROR_COLUMN: str

    def parse_ground_truth(self, content: bytes, name: str) -> pd.DataFrame:
        """Return the rows of one recording, or raise a ValueError that says what is wrong with it.

        Parameters
        ----------
        content
            The whole file.
        name
            Its name.

        Notes
        -----
        A ValueError with the attributes `what` and `remedy` is shown as these two.
        """

    def train_classification_model(
        self, folder: Path, *, n_folds: int, random_state: int
    ) -> TrainingResult:
        """Train on every CSV of a folder; raise a ValueError where that is not possible.

        Parameters
        ----------
        folder
            Holds one CSV per recording; each of them was parsed before.
        n_folds
            Of the cross-validation by file.
        random_state
            Seed: the same folder, folds and seed must give the same model.

        Notes
        -----
        These arguments are given to a function that has them: `n_jobs` (processes; -1 for one per
        core), `backend` (of joblib; for `--backend dask`) and `tables` (a `FeatureCache`).
        """

    def count_errors(self, rows: pd.DataFrame, predicted: Any) -> pd.DataFrame:
        """Return a table with one row per recording.

        Parameters
        ----------
        rows
            As `parse_ground_truth` returned them, of any number of recordings, with the column
            `file`.
        predicted
            What a model predicted for each row, shape (n_rows,).

        Returns
        -------
        DataFrame
            Index: `file`. The column `ERROR_COLUMN`; `true_count` and `predicted_count` where
            something is counted.
        """


CONSTANTS: Mapping[str, type | tuple[type, ...]] = {
    "MODEL_COLUMNS": (tuple, list),
    "TRUSTED_TYPES": (tuple, list),
    "PACKAGES": (tuple, list),
    "ERROR_NAME": str,
    "ERROR_UNIT": str,
    "ERROR_COLUMN": str,
}
FUNCTIONS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "parse_ground_truth": (("content", "name"), ()),
    "train_classification_model": (("folder",), ("n_folds", "random_state")),
    "count_errors": (("rows", "predicted"), ()),
}
"""Name -> positional arguments and keywords that the pipeline calls it with."""
RESULT_FIELDS = ("model", "out_of_fold", "in_sample", "input_example", "row_counts")
NO_MISTAKES = (OSError, MemoryError, PipelineError)
CLUSTER_PACKAGES = ("distributed", "concurrent")
"""A full disk, a signal or a lost cluster raise these, or something of these packages."""


@dataclass(frozen=True)
class Training:
    """A loaded training module, as the pipeline sees it.

    Parameters
    ----------
    module
        Checked against `TrainingModule`.
    path
        Its file.
    code_sha256
        Of that file when it was loaded.
    """

    module: Any
    path: Path
    code_sha256: str

    @property
    def name(self) -> str:
        """The name under which stored models refer to it."""
        return self.path.stem

    # --- The metric ---

    @property
    def error_name(self) -> str:
        """The metric in words."""
        return str(self.module.ERROR_NAME)

    @property
    def error_unit(self) -> str:
        """Its unit."""
        return str(self.module.ERROR_UNIT)

    @property
    def counted_things(self) -> str:
        """What the error counts, in the plural; empty if nothing is counted."""
        return str(self._optional("COUNTED_THINGS", ""))

    def errors(self, model: Any, rows: pd.DataFrame) -> pd.DataFrame:
        """Let a model predict whole recordings; return the error of each.

        Parameters
        ----------
        model
            Of this module, or a `PackagedModel`, which chooses its columns itself.
        rows
            As `parse` returned them, of any number of recordings.

        Raises
        ------
        PipelineError
            If the module fails, or what it returns is no table of errors.
        """
        own_choice = getattr(model, "takes_all_columns", False)
        wanted = rows if own_choice else rows[self.columns_of(rows)]
        with self._mistakes_told("predict"):
            predicted = model.predict(wanted)
        return self._counted_errors(rows, predicted)

    def errors_without_a_model(self, rows: pd.DataFrame) -> pd.DataFrame | None:
        """Return what a model must beat on whole recordings; None where the module does not say.

        Parameters
        ----------
        rows
            As `parse` returned them.
        """
        predict = self._optional("predict_without_a_model", None)
        if predict is None:
            return None
        with self._mistakes_told("predict_without_a_model"):
            predicted = predict(rows)
        return self._counted_errors(rows, predicted)

    def _counted_errors(self, rows: pd.DataFrame, predicted: Any) -> pd.DataFrame:
        """Return one error per recording: a number from 0, or a wrong one would look healthy."""
        with self._mistakes_told("count_errors"):
            table = self.module.count_errors(rows, predicted)
        return self._checked_errors(table, set(rows["file"].unique()), "count_errors")

    def _checked_errors(self, table: Any, files: set[str], source: str) -> pd.DataFrame:
        column = self.module.ERROR_COLUMN
        if column not in getattr(table, "columns", ()):
            raise self._breach(f"the table of {source} has no column {column!r}")
        table = table.rename(columns={column: ERROR}).rename_axis("file")
        if not table.index.is_unique or set(table.index) != files:
            raise self._breach(f"the table of {source} must have one row for each file")
        errors = table[ERROR]
        if errors.dtype.kind in "iuf":
            errors = errors[~errors.between(0, sys.float_info.max)]
        if len(errors):
            raise self._breach(
                f"{source} gave the error {errors.iloc[0]}; it must be a number, at least 0, "
                "which is best"
            )
        return table

    def _breach(self, what: str) -> PipelineError:
        return PipelineError(f"{self.path.name}: {what}; {SEE}")

    @contextlib.contextmanager
    def _mistakes_told(
        self, function: str, *, but: tuple[type[Exception], ...] = ()
    ) -> Iterator[None]:
        """Say in one line where the module fails, rather than with our traceback around it."""
        try:
            yield
        except Exception as error:
            package = type(error).__module__.partition(".")[0]
            if isinstance(error, (*but, *NO_MISTAKES)) or package in CLUSTER_PACKAGES:
                raise
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if frame.filename == str(self.path)]
            place = f", line {lines[-1]}" if lines else ""
            raise PipelineError(
                f"{self.path.name}{place}: {function} fails: {type(error).__name__}: {error}"
            ) from error

    # --- Recordings ---

    def columns_of(self, rows: pd.DataFrame) -> list[str]:
        """Return the columns of rows that a model is given, never the truth.

        Parameters
        ----------
        rows
            As `parse` returned them.
        """
        names = dict.fromkeys((*self.module.MODEL_COLUMNS, *self.optional_columns))
        return [name for name in names if name in rows]

    @property
    def optional_columns(self) -> tuple[str, ...]:
        """What it can do without."""
        return tuple(self._optional("MODEL_OPTIONAL_COLUMNS", ()))

    @property
    def required_columns(self) -> tuple[str, ...]:
        """What it cannot do without."""
        optional = self.optional_columns
        return tuple(name for name in self.module.MODEL_COLUMNS if name not in optional)

    @property
    def checks_rows(self) -> bool:
        """Whether a model itself refuses rows that it cannot take."""
        return bool(self._optional("MODEL_CHECKS_ROWS", False))

    def parse(self, content: bytes, name: str) -> pd.DataFrame:
        """Return the rows of one recording, with its name in the column `file`.

        Parameters
        ----------
        content
            The whole file.
        name
            Its name.

        Raises
        ------
        ValueError
            If it cannot be read without guessing.
        PipelineError
            If the module fails, or returns no table of this file.
        """
        import csv

        try:
            with self._mistakes_told(
                "parse_ground_truth", but=(ValueError, LookupError, StopIteration, csv.Error)
            ):
                rows = self.module.parse_ground_truth(content, name)
        except (LookupError, StopIteration, csv.Error) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if not hasattr(rows, "columns"):
            raise self._breach(f"parse_ground_truth returned no table but {type(rows).__name__}")
        if "file" not in rows:
            return rows.assign(file=name)
        if not (rows["file"] == name).all():
            raise self._breach("the column 'file' must hold the name of the file; rename yours")
        return rows

    def read(self, path: Path, max_file_mb: float) -> tuple[pd.DataFrame, str]:
        """Return the rows of a file and the SHA-256 of its content.

        Parameters
        ----------
        path
            A regular file.
        max_file_mb
            Largest size in megabytes (10^6 bytes).

        Raises
        ------
        ValueError
            As `parse` and `gts_folder.read_regular_file`.
        """
        content = read_regular_file(path, max_file_mb)
        return self.parse(content, path.name), hash_bytes(content)

    def data_quality_note(self, rows: pd.DataFrame) -> str:
        """Say what a person should know of a recording, or return an empty text.

        Parameters
        ----------
        rows
            Of one recording.
        """
        note = self._optional("data_quality_note", None)
        with self._mistakes_told("data_quality_note"):
            return str(note(rows)) if note else ""

    # --- What the report draws ---

    @property
    def feature_table(self) -> Callable[[pd.DataFrame], pd.DataFrame] | None:
        """Rows -> features; None where the module does not tell."""
        return self._optional("feature_table", None)

    @property
    def features_in_words(self) -> str:
        """What the features are."""
        return str(self._optional("FEATURES_IN_WORDS", ""))

    @property
    def described_things(self) -> str:
        """What has features, in the plural."""
        return str(self._optional("DESCRIBED_THINGS", "rows"))

    # --- Models ---

    @property
    def trusted_types(self) -> tuple[str, ...]:
        """The only types beyond skops' own list that a stored model may hold."""
        return tuple(self.module.TRUSTED_TYPES)

    @property
    def first_model_path(self) -> Path:
        """Where the first model lies in a home folder."""
        return Path(self._optional("FIRST_MODEL_PATH", Path("model", f"{self.name}.pkl")))

    def as_row_model(self, model: Any) -> Any:
        """Return what was unpickled as a model of rows.

        Parameters
        ----------
        model
            The first model.

        Raises
        ------
        ValueError
            If it cannot be one.
        """
        convert = self._optional("as_row_model", None)
        if convert:
            return convert(model)
        if not hasattr(model, "predict"):
            raise ValueError(f"it holds a {type(model).__name__}, which cannot predict")
        return model

    def package_versions(self) -> dict[str, str]:
        """Return the installed version of each package that a stored model needs.

        Raises
        ------
        PipelineError
            If one is not installed.
        """
        from importlib.metadata import PackageNotFoundError, version

        try:
            return {name: version(name) for name in self.module.PACKAGES}
        except PackageNotFoundError as error:
            raise PipelineError(
                f"{self.path}: PACKAGES names {error.name}, not installed; {SEE}"
            ) from error

    def check_unchanged(self) -> None:
        """Refuse to store a model beside other code than that which made it.

        Raises
        ------
        PipelineError
            If the file was replaced since it was loaded.
        """
        if hash_file(self.path) != self.code_sha256:
            raise PipelineError(
                f"{self.path} was changed while this ran; nothing is registered with code that did "
                "not make it: run again"
            )

    # --- Training ---

    def takes(self, argument: str) -> bool:
        """Say whether the module's training has an optional argument.

        Parameters
        ----------
        argument
            Such as `backend`.
        """
        return argument in inspect.signature(self.module.train_classification_model).parameters

    def feature_version(self) -> str:
        """Return what a kept feature table depends on; empty where none can be kept."""
        version = self._optional("feature_version", None)
        return str(version()) if version and self.takes("tables") else ""

    def train(
        self, folder: Path, *, n_folds: int, random_state: int, **resources: Any
    ) -> TrainedModel:
        """Train on every CSV of a folder.

        Parameters
        ----------
        folder
            Holds one CSV per recording.
        n_folds, random_state
            Of the cross-validation; seed.
        **resources
            Given to a training that takes them.

        Raises
        ------
        PipelineError
            If it is not possible with these recordings.
        """
        known = {name: value for name, value in resources.items() if self.takes(name)}
        names = waiting_names(folder)
        try:
            with self._mistakes_told("train_classification_model", but=(ValueError,)):
                result = self.module.train_classification_model(
                    folder, n_folds=n_folds, random_state=random_state, **known
                )
        except ValueError as error:
            raise PipelineError(f"cannot retrain: {error}") from error
        missing = [field for field in RESULT_FIELDS if not hasattr(result, field)]
        if missing:
            raise self._breach(f"what train_classification_model returned has no {missing[0]}")
        left_out = sorted(set(names) - set(result.row_counts))
        if left_out:
            raise PipelineError(f"{self.path.name} did not train on {left_out[0]}; {SEE}")
        files = set(result.row_counts)
        return TrainedModel(
            model=result.model,
            out_of_fold=self._checked_errors(result.out_of_fold, files, "out_of_fold"),
            in_sample=self._checked_errors(result.in_sample, files, "in_sample"),
            input_example=result.input_example,
            row_counts=result.row_counts,
            data_quality=getattr(result, "data_quality", {}),
            features=getattr(result, "features", None),
            importance=getattr(result, "importance", None),
        )

    def _optional(self, name: str, default: Any) -> Any:
        return getattr(self.module, name, default)


# --- Loading ---


def load_training_module(settings: Settings) -> Training:
    """Load the training module and check that it has what the pipeline needs.

    Parameters
    ----------
    settings
        Name it.

    Raises
    ------
    PipelineError
        With what it lacks.
    """
    return _loaded(settings.training_file)


@functools.cache
def _loaded(path: Path) -> Training:
    code_sha256 = hash_file(path)
    module = _imported(path)
    for name, kind in CONSTANTS.items():
        if not isinstance(getattr(module, name, None), kind):
            kinds = "a text" if kind is str else "a tuple of texts"
            raise PipelineError(f"{path} lacks the constant {name}, {kinds}; {SEE}")
    for name, (positional, keywords) in FUNCTIONS.items():
        _check_function(module, path, name, positional, keywords)
    training = Training(module, path, code_sha256)
    training.package_versions()
    return training


def _imported(path: Path) -> ModuleType:
    """Import a file under its own name, for stored models and other processes refer to it so."""
    name = path.stem
    known = sys.modules.get(name)
    if known is not None:
        if Path(getattr(known, "__file__", None) or "").resolve() != path:
            raise PipelineError(f"{path}: another module is called {name!r}; rename the file")
        return known
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # the processes of joblib find it there
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PipelineError(f"{path} is no Python file; {SEE}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PipelineError(f"{path} does not load: {type(error).__name__}: {error}") from error
    return module


def _check_function(
    module: ModuleType,
    path: Path,
    name: str,
    positional: Sequence[str],
    keywords: Sequence[str],
) -> None:
    words = f"{name}({', '.join([*positional, *(['*', *keywords] if keywords else [])])})"
    function = getattr(module, name, None)
    if not callable(function):
        raise PipelineError(f"{path} lacks the function {words}; {SEE}")
    try:
        inspect.signature(function).bind(*positional, **dict.fromkeys(keywords))
    except TypeError as error:
        raise PipelineError(f"{path}: {name} cannot be called as {words}: {error}") from error
