"""The only way to the training module.

A training module is one file of Python. It describes: what a recording is, what is learnt from it,
how a model is fitted and how errors are counted. It does not split, score or parallelise; that is
done by `cross_validation`, for every module alike. `contract` lists what a module must have and
what it may have; everything else of the pipeline knows it through `Training`. Nothing heavy is
imported here, until a module is loaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from retraining.contract import BY_NAME, CONTRACT, KINDS, NEEDED, TEXTS, Entry
from retraining.errors import PipelineError
from retraining.files import UnusableFile, hash_bytes, hash_file, read_regular_file
from retraining.settings import Limits, Settings
from retraining.text import printable

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ERROR = "error"
"""Column of every table of errors in the pipeline, whatever the module calls it."""
TRUE_COUNT, PREDICTED_COUNT = "true_count", "predicted_count"
"""Columns that a table of errors may have beside it, where the error is one of counts."""
UNSURE, COUNT_SPREAD, NOTE = "unsure", "count_spread", "note"
"""Columns that a table of expected errors may have beside it."""
DOUBT = "doubt"
"""Column of every table of doubtful labels: from 0 to 1 how sure a model contradicts one."""
LARGEST_EXPECTED = 1e100
"""Of what a model expects, on any scale: sums of squares of it are still numbers."""
FILE = "file"
"""Column with the name of the recording that a row belongs to."""
SESSION = "session"
"""Column that rows may have: which recordings belong together. No label."""
SEE = "see docs/own_model.md"
NO_MISTAKES = (OSError, MemoryError, PipelineError)
CLUSTER_PACKAGES = ("distributed", "concurrent")
"""A full disk, a signal, a lost cluster or process raise these, or what these packages derive."""


def _said(name: str) -> Any:
    """Return an accessor of what the module says, or of the contract's default."""
    entry = BY_NAME[name]
    return property(lambda self: self.said(name), doc=entry.words)


@dataclass(frozen=True)
class TrainedModel:
    """A fitted model and what is known of its errors.

    Parameters
    ----------
    model
        Fitted on all recordings.
    out_of_fold
        One row per recording (index `file`, column `error`): by a model that never saw it.
    in_sample
        The same, by `model` itself.
    input_example
        A few rows as `model.predict` takes them.
    row_counts
        Recording -> number of rows.
    data_quality
        Recording -> note.
    examples
        Of all recordings, one below the other; the index is the recording.
    importance
        Index: features; columns `mean` and `deviation` over the folds of what more is wrong
        without each of them. None where the contract does not tell.
    sessions
        Recording -> session, of those that name one.
    expected
        One row per recording (index `file`), as `Training.expected_errors` returns it: what a
        model that never saw it expects. None where the contract does not tell.
    doubts
        Labels that a model which never saw them contradicts, the surest first. None where the
        contract does not tell.
    """

    model: Any
    out_of_fold: pd.DataFrame
    in_sample: pd.DataFrame
    input_example: pd.DataFrame
    row_counts: Mapping[str, int]
    data_quality: Mapping[str, str]
    examples: pd.DataFrame
    importance: pd.DataFrame | None
    sessions: Mapping[str, str] = field(default_factory=dict)
    expected: pd.DataFrame | None = None
    doubts: pd.DataFrame | None = None

    @property
    def mean_error(self) -> float:
        """Mean of the out-of-fold errors."""
        return float(self.out_of_fold[ERROR].mean())


@dataclass(frozen=True)
class Training:
    """A loaded training module, as the pipeline sees it.

    Parameters
    ----------
    module
        Checked against `CONTRACT`.
    path
        Its file.
    code_sha256
        Of that file when it was loaded.
    limits
        What it reads at most.
    """

    module: Any
    path: Path
    code_sha256: str
    limits: Limits = Settings().limits

    error_name = _said("ERROR_NAME")
    error_unit = _said("ERROR_UNIT")
    error_column = _said("ERROR_COLUMN")
    threshold = _said("THRESHOLD")
    counted_things = _said("COUNTED_THINGS")
    described_things = _said("DESCRIBED_THINGS")
    features_in_words = _said("FEATURES_IN_WORDS")
    label_column = _said("LABEL_COLUMN")
    object_column = _said("OBJECT_COLUMN")
    trusted_types = _said("TRUSTED_TYPES")
    optional_columns = _said("MODEL_OPTIONAL_COLUMNS")
    checks_rows = _said("MODEL_CHECKS_ROWS")

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to another process by name: it imports the module itself."""
        return _in_another_process, (self.name, self.path, self.code_sha256, self.limits)

    @property
    def name(self) -> str:
        """The name under which stored models refer to it."""
        return self.path.stem

    def said(self, name: str) -> Any:
        """Return what the module has under a name of the contract, or the default."""
        return getattr(self.module, name, BY_NAME[name].default)

    # --- Its mistakes ---

    def breach(self, what: str) -> PipelineError:
        """Return the error that says where the module does not keep the contract."""
        return PipelineError(f"{self.path.name}: {what}; {SEE}")

    @contextlib.contextmanager
    def mistakes_told(
        self, function: str, *, but: tuple[type[Exception], ...] = ()
    ) -> Iterator[None]:
        """Say in one line where the module fails, rather than with our traceback around it.

        Whatever it does goes by here, so here MLflow is kept from logging it.
        """
        if "mlflow" in sys.modules:
            keep_autologging_off()
        try:
            yield
        except Exception as error:
            packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
            if isinstance(error, (*but, *NO_MISTAKES)) or packages & {*CLUSTER_PACKAGES}:
                raise
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if frame.filename == str(self.path)]
            place = f", line {lines[-1]}" if lines else ""
            raise PipelineError(
                f"{self.path.name}{place}: {function} fails: {type(error).__name__}: "
                f"{printable(error)}"
            ) from error

    # --- Errors ---

    def errors(self, model: Any, recordings: Sequence[pd.DataFrame]) -> pd.DataFrame:
        """Let a model predict whole recordings, one at a time; return the error of each.

        Parameters
        ----------
        model
            Of this module, or a `PackagedModel`, which chooses its columns itself.
        recordings
            Rows of one recording each, as `parse` returned them.

        Raises
        ------
        PipelineError
            If the module fails, or what it returns is no table of errors.
        """
        import pandas as pd

        pairs = zip(recordings, self.predictions(model, recordings), strict=True)
        return pd.concat([self._counted(rows, predicted) for rows, predicted in pairs])

    def predictions(self, model: Any, recordings: Sequence[pd.DataFrame]) -> list[Any]:
        """Let a model predict whole recordings, one at a time; see `errors`."""
        in_one_go = getattr(model, "predict_recordings", None)
        if in_one_go is not None:
            return list(in_one_go(recordings))
        return [self.predict(model, rows) for rows in recordings]

    def predict(self, model: Any, rows: pd.DataFrame) -> np.ndarray:
        """Let a model of this module predict one recording, without the truth."""
        with self.mistakes_told("predict"):
            predicted = model.predict(rows[self.columns_of(rows)])
        # A single one would be compared with every row, and look like an answer.
        n_predicted = len(predicted) if hasattr(predicted, "__len__") else "no list of"
        if n_predicted != len(rows):
            raise self.breach(f"predict gave {n_predicted} predictions for {len(rows)} rows")
        return predicted

    def errors_without_a_model(self, rows: pd.DataFrame) -> pd.DataFrame | None:
        """Return what a model must beat on a recording; None where the module does not say."""
        predict = self.said("predict_without_a_model")
        if predict is None:
            return None
        with self.mistakes_told("predict_without_a_model"):
            predicted = predict(rows)
        return self._counted(rows, predicted)

    def _counted(self, rows: pd.DataFrame, predicted: Any) -> pd.DataFrame:
        """Return one error per recording: a number from 0, or a wrong one would look healthy."""
        with self.mistakes_told("count_errors"):
            table = self.module.count_errors(rows, predicted)
        column = self.error_column
        if column not in getattr(table, "columns", ()):
            raise self.breach(f"the table of count_errors has no column {column!r}")
        table = table.rename(columns={column: ERROR}).rename_axis(FILE)
        if not table.index.is_unique or set(table.index) != set(rows[FILE].unique()):
            raise self.breach("the table of count_errors must have one row for each file")
        errors = table[ERROR]
        if errors.dtype.kind in "iuf":
            errors = errors[~errors.between(0, sys.float_info.max)]
        if len(errors):
            raise self.breach(
                f"count_errors gave the error {errors.iloc[0]}; it must be a number, at least 0, "
                "which is best"
            )
        return table

    # --- Before labels come ---

    def expected_errors(
        self, model: Any, recordings: Sequence[pd.DataFrame]
    ) -> list[pd.DataFrame | None]:
        """Return how far a model expects to be wrong on each recording, without its truth.

        Parameters
        ----------
        model
            Of this module, or a `PackagedModel`, which asks its own.

        Returns
        -------
        list of DataFrame of shape (1, n)
            Index `file`; `error`, not in scale, and what else the module tells: `unsure`,
            `predicted_count`, `count_spread`, `note`. None where the model cannot tell.

        Raises
        ------
        PipelineError
            If the module fails, or what it returns is something else.
        """
        in_one_go = getattr(model, "expected_errors_of_recordings", None)
        if in_one_go is not None:
            tables = in_one_go(recordings)
        elif self.said("expected_errors") is None:
            return [None] * len(recordings)
        else:
            tables = [self._expected(model, rows) for rows in recordings]
        return [
            None if table is None else self._expectation(table, rows)
            for table, rows in zip(tables, recordings, strict=True)
        ]

    def _expected(self, model: Any, rows: pd.DataFrame) -> Any:
        with self.mistakes_told("expected_errors"):
            return self.module.expected_errors(model, rows[self.columns_and_file(rows)])

    def _expectation(self, table: Any, rows: pd.DataFrame) -> pd.DataFrame:
        import pandas as pd

        if not hasattr(table, "columns") or [*table.index] != [*rows[FILE].unique()]:
            raise self.breach("expected_errors must return a table of one row, index `file`")
        if not table.columns.is_unique:
            raise self.breach("expected_errors must return a table without a column twice")
        columns = {self.error_column: ERROR} | {
            one: one for one in (ERROR, UNSURE, PREDICTED_COUNT, COUNT_SPREAD)
        }
        names = [one for one in columns if one in table]
        found = {columns[one]: _as_numbers(table[one]) for one in names}
        if ERROR not in found or not all(
            one is not None and one.between(0, 1 if name == UNSURE else LARGEST_EXPECTED).all()
            for name, one in found.items()
        ):
            raise self.breach(
                f"expected_errors must return {self.error_column!r}, and numbers from 0, of which "
                f"{UNSURE!r} is at most 1"
            )
        notes = [*table[NOTE].dropna()] if NOTE in table else []
        return pd.DataFrame(found).assign(**{NOTE: str(notes[0]) if notes else ""})

    def doubtful_labels(self, model: Any, rows: pd.DataFrame) -> pd.DataFrame | None:
        """Return the labels of a recording that a model contradicts; None where nobody tells.

        Returns
        -------
        DataFrame of shape (n_labels, n)
            `file`, `doubt` from 0 to 1, and what the module tells of each.

        Raises
        ------
        PipelineError
            If the module fails, or what it returns is something else.
        """
        tell = self.said("doubtful_labels")
        if tell is None:
            return None
        with self.mistakes_told("doubtful_labels"):
            table = tell(model, rows)
        if not hasattr(table, "columns") or [*table.columns].count(DOUBT) != 1:
            raise self.breach(f"doubtful_labels must return a table with {DOUBT!r}")
        doubts = _as_numbers(table[DOUBT])
        if doubts is None or not doubts.between(0, 1).all():
            raise self.breach(f"doubtful_labels must return a {DOUBT!r} from 0 to 1")
        table = table.drop(columns=FILE, errors="ignore").assign(**{DOUBT: doubts})
        table.insert(0, FILE, str(rows[FILE].iloc[0]))
        return table

    def unlabelled_examples(self, rows: pd.DataFrame) -> pd.DataFrame | None:
        """Return the features of a recording that nobody has checked; None where nobody tells."""
        make = self.said("unlabelled_examples")
        if make is None:
            return rows[self.columns_of(rows)] if self.said("examples") is None else None
        with self.mistakes_told("unlabelled_examples"):
            table = make(rows)
        if not hasattr(table, "columns"):
            raise self.breach(f"unlabelled_examples returned no table but {type(table).__name__}")
        return self.features(table)

    # --- Recordings ---

    def columns_of(self, rows: pd.DataFrame) -> list[str]:
        """Return the columns of rows that a model is given, never the truth."""
        names = dict.fromkeys((*self.said("MODEL_COLUMNS"), *self.optional_columns))
        return [name for name in names if name in rows]

    def columns_and_file(self, rows: pd.DataFrame) -> list[str]:
        """Return the same, and the recording's name."""
        return [*dict.fromkeys([*self.columns_of(rows), FILE])]

    @property
    def required_columns(self) -> tuple[str, ...]:
        """What a model cannot do without."""
        optional = self.optional_columns
        return tuple(name for name in self.said("MODEL_COLUMNS") if name not in optional)

    def parse(self, content: bytes, name: str) -> pd.DataFrame:
        """Return the rows of one recording, with its name in the column `file`.

        Raises
        ------
        ValueError
            If it cannot be read without guessing, or has more rows or objects than `limits` allow.
        PipelineError
            If the module fails, or returns no table of this file.
        """
        return self._parsed("parse_ground_truth", content, name)

    def parse_unlabelled(self, content: bytes, name: str) -> pd.DataFrame:
        """Return the rows of a recording that nobody has checked; as `parse`."""
        reader = "parse_unlabelled" if self.said("parse_unlabelled") else "parse_ground_truth"
        return self._parsed(reader, content, name)

    def _parsed(self, reader: str, content: bytes, name: str) -> pd.DataFrame:
        import csv

        most_rows = self.limits.max_rows
        # Before anything is made of them, which takes many times their size.
        if max(content.count(b"\n"), content.count(b"\r")) > most_rows + 1:
            what, remedy = f"holds more than {most_rows:,} rows", "split it or raise --max-rows"
            raise UnusableFile(what, remedy)
        try:
            with self.mistakes_told(
                reader, but=(ValueError, LookupError, StopIteration, csv.Error)
            ):
                rows = self.said(reader)(content, name)
        except (LookupError, StopIteration, csv.Error) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if not hasattr(rows, "columns"):
            raise self.breach(f"{reader} returned no table but {type(rows).__name__}")
        most_objects = self.limits.max_objects
        if self.object_column in rows and rows[self.object_column].nunique() > most_objects:
            what = f"holds more than {most_objects:,} objects"
            raise UnusableFile(what, "split it or raise --max-objects")
        if FILE not in rows:
            return rows.assign(file=name)
        if set(rows[FILE].unique()) - {name}:
            raise self.breach(f"the column {FILE!r} must hold the name of the file; rename yours")
        return rows

    def content(self, path: Path) -> bytes:
        """Return the bytes of a file.

        Raises
        ------
        UnusableFile
            As `files.read_regular_file`.
        """
        return read_regular_file(path, self.limits.max_file_mb)

    def read(self, path: Path) -> tuple[pd.DataFrame, str]:
        """Return the rows of a file and the SHA-256 of its content.

        Raises
        ------
        ValueError
            As `parse` and `content`.
        """
        content = self.content(path)
        return self.parse(content, path.name), hash_bytes(content)

    def data_quality_note(self, rows: pd.DataFrame) -> str:
        """Say what a person should know of a recording, or return an empty text."""
        note = self.said("data_quality_note")
        with self.mistakes_told("data_quality_note"):
            return str(note(rows)) if note else ""

    def examples(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return what a model learns from one recording."""
        make = self.said("examples")
        if make is None:
            return rows
        with self.mistakes_told("examples"):
            table = make(rows)
        if not hasattr(table, "columns"):
            raise self.breach(f"examples returned no table but {type(table).__name__}")
        return table

    def features(self, examples: pd.DataFrame) -> pd.DataFrame:
        """Return examples without what is to be predicted and without the recording's name."""
        return examples.drop(columns=[self.label_column, FILE], errors="ignore")

    def session(self, rows: pd.DataFrame) -> str:
        """Return what must not be split between training and test; empty where nothing is said."""
        tell = self.said("session")
        with self.mistakes_told("session"):
            session = tell(rows) if tell else None
            return "" if session is None else str(session)

    @property
    def has_identity(self) -> bool:
        """Whether the module itself says what tells two recordings apart."""
        return self.said("identity") is not None

    def identity(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the values that tell a recording from any other, some rows under their index."""
        make = self.said("identity")
        if make is None:
            return rows[[name for name in self.observed_columns if name in rows]]
        with self.mistakes_told("identity"):
            table = make(rows)
        if not hasattr(table, "columns") or not (
            table.index is rows.index or table.index.isin(rows.index).all()
        ):
            raise self.breach("identity must return a table with rows of the recording")
        return table

    @property
    def observed_columns(self) -> tuple[str, ...]:
        """What was measured, as opposed to what people say of it."""
        required = tuple(name for name in self.required_columns if name != FILE)
        return required or tuple(self.said("MODEL_COLUMNS"))

    def is_labelled(self, rows: pd.DataFrame) -> np.ndarray:
        """Return which rows bear a label that counts, booleans of shape (n_rows,)."""
        import numpy as np

        tell = self.said("is_labelled")
        if tell is None:
            return np.ones(len(rows), dtype=bool)
        with self.mistakes_told("is_labelled"):
            labelled = np.asarray(tell(rows), dtype=bool)
        if labelled.shape != (len(rows),):
            raise self.breach("is_labelled must return true or false for each row")
        return labelled

    def label_columns(self, rows: pd.DataFrame) -> list[str]:
        """Return the columns of what people say of the rows: all that were not measured."""
        others = {*self.observed_columns, FILE, SESSION}
        return [str(name) for name in rows if name not in others]

    # --- Models ---

    def fit(self, examples: pd.DataFrame, random_state: int) -> Any:
        """Return a model fitted on examples.

        Raises
        ------
        PipelineError
            If they do not suffice, or the module fails.
        """
        try:
            with self.mistakes_told("fit", but=(ValueError,)):
                model = self.module.fit(examples, random_state)
        except ValueError as error:
            raise PipelineError(f"cannot train: {printable(error)}") from error
        if not hasattr(model, "predict"):
            raise self.breach(f"fit returned a {type(model).__name__}, which cannot predict")
        return model

    def predict_examples(self, model: Any, examples: pd.DataFrame) -> np.ndarray:
        """Return what a model predicts for examples without their label."""
        predict = self.said("predict_examples")
        if predict is None and self.said("examples") is None:
            return self.predict(model, examples)  # they are rows
        with self.mistakes_told("predict_examples"):
            return predict(model, examples) if predict else model.predict(examples)

    @property
    def first_model_path(self) -> Path:
        """Where the first model lies in a home folder."""
        return Path(self.said("FIRST_MODEL_PATH") or Path("model", f"{self.name}.pkl"))

    def as_row_model(self, model: Any) -> Any:
        """Return what was unpickled as a model of rows.

        Raises
        ------
        ValueError
            If it cannot be one.
        """
        convert = self.said("as_row_model")
        if convert:
            with self.mistakes_told("as_row_model", but=(ValueError,)):
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
            return {name: version(name) for name in self.said("PACKAGES")}
        except PackageNotFoundError as error:
            raise PipelineError(
                f"{self.path}: PACKAGES names {error.name}, not installed; {SEE}"
            ) from error

    def maker(self) -> str:
        """Return what a kept table depends on beside the recording: this code and its packages."""
        from importlib.metadata import version

        packages = self.package_versions() | {"pandas": version("pandas")}
        return hash_bytes(repr([self.code_sha256, sorted(packages.items())]).encode())[:16]

    def check_packages(self) -> None:
        """Refuse PACKAGES without what TRUSTED_TYPES names: where it is served, it would lack it.

        Names are compared as those of distributions: xgboost-cpu brings `xgboost`, too.

        Raises
        ------
        PipelineError
            With the types, and what to add.
        """
        from importlib.metadata import packages_distributions

        named = {_canonical(name) for name in self.said("PACKAGES")}
        bringing = packages_distributions()
        for name in self.trusted_types:
            root = name.partition(".")[0]
            candidates = sorted({_canonical(one) for one in bringing.get(root, ())})
            is_ours = root == self.name or root in sys.stdlib_module_names
            if is_ours or not named.isdisjoint(candidates):
                continue
            add = f"add {' or '.join(map(repr, candidates))}"
            write = "nor any other package: a stored model carries no file but this one"
            raise self.breach(
                f"TRUSTED_TYPES names {name}, but nothing in PACKAGES brings {root!r}: "
                f"{add if candidates else write}"
            )

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


def _canonical(name: str) -> str:
    """Return the name of a distribution as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def unreadable_file(name: str, error: Exception | str) -> str:
    """Return what is wrong with a file and what to do, with its name in front once."""
    if hasattr(error, "what") and hasattr(error, "remedy"):
        return f"{printable(name)}: {printable(error.what)}; {printable(error.remedy)}"
    return f"{printable(name)}: {printable(error)}"


# --- Loading ---


def _as_numbers(column: pd.Series[Any]) -> pd.Series[float] | None:
    """Return a column of a module as numbers, NaN where it holds none; None if it is of others."""
    import pandas as pd

    if column.dtype.kind in "mMc":  # they would become numbers, in silence
        return None
    try:
        numbers = pd.to_numeric(column, errors="coerce")
        return numbers.astype(float) if numbers.dtype.kind in "iufb" else None
    except (TypeError, ValueError, OverflowError):
        return None


def load_training_module(settings: Settings) -> Training:
    """Load the training module and check that it keeps the contract.

    Raises
    ------
    PipelineError
        With what it lacks.
    """
    return dataclasses.replace(_loaded(settings.training_file), limits=settings.limits)


@functools.cache
def _loaded(path: Path) -> Training:
    code_sha256 = hash_file(path)
    module = _imported(path)
    _expect_mlflow(path)
    for entry in CONTRACT:
        _check_entry(module, path, entry)
    training = Training(module, path, code_sha256)
    training.package_versions()
    return training


def _in_another_process(name: str, path: Path, code_sha256: str, limits: Limits) -> Training:
    module = importlib.import_module(name)
    _expect_mlflow(path)
    return Training(module, path, code_sha256, limits)


def _expect_mlflow(path: Path) -> None:
    """Keep autologging off before a module imports MLflow in a function."""
    if b"mlflow" in path.read_bytes():
        keep_autologging_off()


@functools.cache
def keep_autologging_off() -> contextlib.AbstractContextManager[None]:
    """Let MLflow log nothing by itself in this process, whoever switched that on.

    A module, a `sitecustomize` or another package may have; each fit would become a run in our
    store. Returns what must be kept for that.
    """
    from mlflow.utils.autologging_utils import disable_autologging

    disabled: contextlib.AbstractContextManager[None] = disable_autologging()
    disabled.__enter__()
    return disabled


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
        raise PipelineError(
            f"{path} does not load: {type(error).__name__}: {printable(error)}"
        ) from error
    return module


def _check_entry(module: ModuleType, path: Path, entry: Entry) -> None:
    """Refuse a module that lacks what is needed, or has something else under a name."""
    found = getattr(module, entry.name, entry.default)
    if isinstance(entry.kind, str):
        if found is NEEDED or not isinstance(found, KINDS[entry.kind]):
            words = "a tuple of texts" if entry.kind == TEXTS else f"a {entry.kind}"
            raise PipelineError(f"{path} lacks the constant {entry.name}, {words}; {SEE}")
        return
    if found is NEEDED or not (found is None or callable(found)):
        raise PipelineError(f"{path} lacks the function {entry.signature}; {SEE}")
    if found is not None:
        _check_call(found, path, entry)


def _check_call(function: Callable[..., Any], path: Path, entry: Entry) -> None:
    try:
        inspect.signature(function).bind(*entry.kind)
    except TypeError as error:
        raise PipelineError(
            f"{path}: {entry.name} cannot be called as {entry.signature}: {error}"
        ) from error
