"""Read, cross-validate and fit, through any training module: the one place where data is split.

A recording is read once; what was made of it is kept. Its error out of fold comes from a model
that was fitted without its session, scored by `model.predict(rows)` and the module's own metric:
the very path that is served. So no module can call its in-sample errors out of fold.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retraining.errors import PipelineError, StoppedBySignal, TryLaterError
from retraining.files import hash_bytes
from retraining.kept_tables import KeptTables
from retraining.text import printable
from retraining.training import DOUBT, ERROR, FILE, TrainedModel, Training, unreadable_file
from retraining.workers import deaths_told, local_workers

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

PARALLEL_READING_BYTES = 200_000_000
"""Below it, about 800 recordings, other processes take longer to start than one to read."""
MOST_SHUFFLED_EXAMPLES = 2000
"""Of a fold, for what a model relies on: its cost stays bounded."""
EXAMPLE_ROWS, EXAMPLE_RECORDINGS = 5, 2
TOLD = ("expected", "doubts")
"""Of a fold, for the time before labels come."""
KEPT_FACTS = {"n_rows", "data_quality", "session"}
"""Beside the examples of a recording."""

logger = logging.getLogger("pipeline")


@dataclass(frozen=True)
class Resources:
    """What a training may use.

    Parameters
    ----------
    n_jobs
        Processes that read and fit at the same time; -1 for one per core; 1 for none beside this
        one. On a cluster its workers count instead.
    backend
        Of joblib: "loky" for processes of this machine, else that of a cluster. The result is the
        same.
    tables
        What was read before; every recording is read where there is none.
    """

    n_jobs: int = -1
    backend: Any = "loky"
    tables: KeptTables | None = None


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say which file cannot be read: not every reader does."""
    try:
        yield
    except ValueError as error:
        raise PipelineError(f"cannot train: {unreadable_file(path.name, error)}") from error


@dataclass(frozen=True)
class Reader:
    """Reads recordings, in this process or another one.

    Parameters
    ----------
    training
        The module.
    tables
        What was read before, or None.
    """

    training: Training
    tables: KeptTables | None

    def recording(self, path: Path) -> Recording:
        """Return what training keeps of a file: its examples, never its rows.

        Raises
        ------
        PipelineError
            If it cannot be read.
        """
        with _named(path):
            return self._recording(path)

    def _recording(self, path: Path) -> Recording:
        facts: dict[str, Any]
        content = self.training.content(path)
        sha256 = hash_bytes(content)
        known = self._kept("examples", sha256, path.name)
        if known is not None and set(known.attrs) == KEPT_FACTS:
            facts = {str(name): value for name, value in known.attrs.items()}
            return Recording(path, sha256, examples=known, was_known=True, **facts)
        rows = self.training.parse(content, path.name)
        facts = {
            "n_rows": len(rows),
            "data_quality": self.training.data_quality_note(rows),
            "session": self.training.session(rows),
        }
        examples = self.training.examples(rows).copy()
        examples.attrs.update(facts)
        if self.tables:
            self.tables.put("examples", sha256, examples)
            self.tables.put("rows", sha256, rows)
        return Recording(path, sha256, examples=examples, was_known=False, **facts)

    def rows(self, recording: Recording) -> pd.DataFrame:
        """Return the rows of a recording, kept or read again."""
        known = self._kept("rows", recording.sha256, recording.name)
        if known is not None:
            return known
        with _named(recording.path):
            rows, sha256 = self.training.read(recording.path)
        if sha256 != recording.sha256:
            raise TryLaterError(f"{printable(recording.name)} changed while this ran; run again")
        return rows

    def _kept(self, kind: str, sha256: str, name: str) -> pd.DataFrame | None:
        """Return a kept table under the recording's name of today."""
        import pandas as pd

        table = self.tables.get(kind, sha256) if self.tables else None
        if table is not None and FILE in table and not (table[FILE] == name).all():
            names = pd.Series(name, index=table.index, dtype=table[FILE].dtype)
            table = table.assign(**{FILE: names})
        return table


@dataclass(frozen=True)
class Recording:
    """What training keeps of a file.

    Parameters
    ----------
    path
        The file.
    sha256
        Of its content.
    examples
        What is learnt from it.
    n_rows
        Number of rows.
    data_quality
        Note of the module; empty if there is nothing to say.
    session
        Recordings of one session are never split; empty for one of its own.
    was_known
        It was not read this time.
    """

    path: Path
    sha256: str
    examples: pd.DataFrame
    n_rows: int
    data_quality: str
    session: str
    was_known: bool

    @property
    def name(self) -> str:
        """Of the file."""
        return self.path.name

    def without_examples(self) -> Recording:
        """Return what another process needs to find its rows."""
        return Recording(self.path, self.sha256, None, self.n_rows, "", "", was_known=True)  # type: ignore[arg-type]


@dataclass(frozen=True)
class FoldResult:
    """What became of one fit: errors of its test recordings, what it relies on and what it doubts.

    `expected` and `doubts` are None where the module does not tell.
    """

    model: Any
    errors: pd.DataFrame
    losses: pd.Series[float] | None = None
    expected: pd.DataFrame | None = None
    doubts: pd.DataFrame | None = None


@dataclass(frozen=True)
class _AnyModel:
    """A model in the form that scikit-learn asks for; nothing here ever fits it."""

    model: Any

    def fit(self) -> None:
        """Be there."""


@dataclass(frozen=True)
class Fitter:
    """Fits on some recordings and scores others; travels whole to other processes.

    Parameters
    ----------
    reader
        Finds their rows.
    recordings
        All of them, without their examples.
    examples
        Of all recordings, one below the other.
    recording_of
        Number of the recording that each example belongs to, shape (n_examples,).
    random_state
        Seed.
    """

    reader: Reader
    recordings: tuple[Recording, ...]
    examples: pd.DataFrame
    recording_of: np.ndarray
    random_state: int

    def part(self, recordings: np.ndarray) -> pd.DataFrame:
        """Return the examples of some recordings, given by their numbers."""
        import numpy as np

        chosen = np.isin(self.recording_of, recordings)
        return self.examples[chosen].reset_index(drop=True)

    def fit_and_score(self, train: np.ndarray, test: np.ndarray) -> FoldResult:
        """Fit on `train` and score `test`; keep the model only if it was trained on everything."""
        import joblib

        training, held_out = self.reader.training, not set(train) & set(test)
        # A forest would spread its trees over the cluster on which this is one task.
        with joblib.parallel_config("sequential"):
            model = training.fit(self.part(train), self.random_state)
            recordings = (self.reader.rows(self.recordings[number]) for number in test)
            if not held_out:
                return FoldResult(
                    model, _concat(training.errors(model, [one]) for one in recordings)
                )
            errors: list[pd.DataFrame] = []
            expected: list[pd.DataFrame | None] = []
            doubts: list[pd.DataFrame | None] = []
            for rows in recordings:
                errors.append(training.errors(model, [rows]))
                with _mistakes_cost_no_training():
                    expected += training.expected_errors(model, [rows])
                    doubts.append(training.doubtful_labels(model, rows))
            losses = self._losses(model, self.part(test))
        return FoldResult(
            None, _concat(errors), losses, *(_all(one, len(test)) for one in (expected, doubts))
        )

    def _losses(self, model: Any, held_out: pd.DataFrame) -> pd.Series[float] | None:
        """Return by how much more is wrong when one feature of held-out examples is shuffled.

        Of 100 examples how many more are predicted wrongly; of a label with decimals how much
        larger the mean absolute error is. None where examples are no numbers or have no label.
        """
        import numpy as np
        import pandas as pd
        from sklearn.inspection import permutation_importance
        from threadpoolctl import threadpool_limits

        training, label = self.reader.training, self.reader.training.label_column
        features = training.features(held_out)
        numbers = all(pd.api.types.is_numeric_dtype(kind) for kind in features.dtypes)
        if label not in held_out or not numbers or not len(features.columns):
            return None
        if held_out.empty:
            return pd.Series(0.0, index=features.columns)
        truth = held_out[label].to_numpy()
        has_decimals = truth.dtype.kind == "f"

        def score(any_model: _AnyModel, features: pd.DataFrame, truth: np.ndarray) -> float:
            predicted = np.asarray(training.predict_examples(any_model.model, features))
            if has_decimals:
                return -float(np.abs(predicted - truth).mean())
            return float((predicted == truth).mean())

        try:
            with threadpool_limits(limits=1):
                shuffled = permutation_importance(
                    _AnyModel(model),
                    features,
                    truth,
                    scoring=score,
                    n_repeats=1,
                    random_state=self.random_state,
                    max_samples=min(len(held_out), MOST_SHUFFLED_EXAMPLES),
                )
        except PipelineError as error:  # only the report would tell it
            logger.warning("what the model relies on is not known: %s", error)
            return None
        unit = 1 if has_decimals else 100
        return unit * pd.Series(shuffled.importances_mean, index=features.columns)


@contextlib.contextmanager
def _mistakes_cost_no_training() -> Iterator[None]:
    """Ask for what only people read."""
    try:
        yield
    except (TryLaterError, StoppedBySignal):
        raise
    except PipelineError as error:
        logger.warning("less is told before labels come: %s", error)


def _all(tables: Sequence[pd.DataFrame | None], n_wanted: int) -> pd.DataFrame | None:
    """Return one table of all; None if one is missing."""
    known = [one for one in tables if one is not None]
    return _concat(known) if known and len(known) == n_wanted else None


def train(
    training: Training,
    paths: Sequence[Path],
    *,
    n_folds: int,
    random_state: int,
    resources: Resources | None = None,
    twins: Mapping[str, str] | None = None,
) -> tuple[TrainedModel, int]:
    """Train on recordings and score each of them by a model that never saw its session.

    Parameters
    ----------
    paths
        One file per recording.
    n_folds
        Folds by session, at least 2; where recordings name sessions, there are no more folds than
        sessions.
    random_state
        Seed of the shuffled folds and of the models.
    twins
        Name -> name of the recording that it is another copy, or a part, of: these are not split
        either.

    Returns
    -------
    TrainedModel, int
        And how many of the recordings had been read before.

    Raises
    ------
    PipelineError
        If a file cannot be read, the recordings do not suffice, or the module fails.
    """
    import joblib
    import numpy as np
    import pandas as pd

    resources = resources or Resources()
    reader = Reader(training, resources.tables)
    lacking = too_few_recordings(reader, paths, n_folds)
    if lacking:
        raise PipelineError(f"cannot train: there are {lacking}")
    with deaths_told(), _workers(resources):
        recordings = _read(reader, sorted(paths), resources)
        examples = pd.concat([one.examples for one in recordings], ignore_index=True)
        lengths = [len(one.examples) for one in recordings]
        numbers = np.arange(len(recordings))
        fitter = Fitter(
            reader=reader,
            recordings=tuple(one.without_examples() for one in recordings),
            examples=examples,
            recording_of=np.repeat(numbers, lengths),
            random_state=random_state,
        )
        sessions = [one.session or (twins or {}).get(one.name, one.name) for one in recordings]
        splits = [*_folds(sessions, n_folds, random_state), (numbers, numbers)]
        # Bound to the function: an argument would live on one worker of a cluster, and die with it.
        fit_and_score = joblib.delayed(functools.partial(Fitter.fit_and_score, fitter))
        fits = joblib.Parallel(return_as="generator")(
            fit_and_score(train, test) for train, test in splits
        )
        fitted = list(_progress(fits, len(splits), "fitting"))
        _check_results(fitter, fitted, [test for _, test in splits])
        *folds, whole = fitted
    names = [one.name for one in recordings]
    losses = pd.DataFrame([fold.losses for fold in folds if fold.losses is not None])
    expected, doubts = (_all([getattr(fold, one) for fold in folds], len(folds)) for one in TOLD)
    trained = TrainedModel(
        model=whole.model,
        out_of_fold=_concat(fold.errors for fold in folds).loc[names],
        in_sample=whole.errors,
        input_example=input_example(
            training, [reader.rows(one) for one in recordings[:EXAMPLE_RECORDINGS]]
        ),
        row_counts={one.name: one.n_rows for one in recordings},
        data_quality={one.name: one.data_quality for one in recordings if one.data_quality},
        examples=examples.set_axis(np.repeat(np.array(names, dtype=object), lengths)),
        importance=None
        if losses.empty
        else pd.DataFrame({"mean": losses.mean(), "deviation": losses.std(ddof=0)}),
        sessions={one.name: one.session for one in recordings if one.session},
        expected=None if expected is None else expected.loc[names],
        doubts=None
        if doubts is None
        else doubts.sort_values(DOUBT, ascending=False, kind="stable", ignore_index=True),
    )
    return trained, sum(one.was_known for one in recordings)


def _check_results(
    fitter: Fitter, fitted: Sequence[FoldResult], tests: Sequence[np.ndarray]
) -> None:
    """Refuse what is no result of a task: a worker of a cluster sends what it likes."""
    for result, test in zip(fitted, tests, strict=True):
        names = [fitter.recordings[number].name for number in test]
        errors = result.errors[ERROR] if isinstance(result, FoldResult) else None
        is_result = errors is not None and [*errors.index] == names
        if is_result and result.expected is not None:
            expected = result.expected[ERROR]
            is_result = [*expected.index] == names and _are_errors(expected)
        if is_result and result.doubts is not None:
            is_result = bool(result.doubts[FILE].isin(names).all())
        if not is_result or not _are_errors(errors):
            raise PipelineError(
                "a worker sent what is no result of its task: look at the cluster; nothing was "
                "registered"
            )


def _are_errors(numbers: pd.Series[float]) -> bool:
    return bool(numbers.between(0, sys.float_info.max).all())


def fit_on(training: Training, paths: Sequence[Path], random_state: int) -> Any:
    """Return the model that `train` fits on all recordings, without the folds."""
    import pandas as pd

    reader = Reader(training, None)
    examples = [reader.recording(path).examples for path in sorted(paths)]
    return training.fit(pd.concat(examples, ignore_index=True), random_state)


def input_example(training: Training, recordings: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the first rows of a few recordings as a model takes them."""
    example = _concat(rows.head(EXAMPLE_ROWS) for rows in recordings[:EXAMPLE_RECORDINGS])
    return example[training.columns_of(example)].reset_index(drop=True)


def _concat(tables: Any) -> pd.DataFrame:
    import pandas as pd

    return pd.concat(list(tables))


def too_few_recordings(reader: Reader, paths: Sequence[Path], n_folds: int) -> str:
    """Say what is lacking for so many folds; empty where sessions let fewer do."""
    needed = max(n_folds, 2)
    if len(paths) >= needed:
        return ""
    if len(paths) > 1 and reader.training.said("session"):
        with contextlib.suppress(PipelineError):  # more recordings come before mended ones
            if any(reader.recording(path).session for path in paths):
                return ""
    return (
        f"{len(paths)} recordings; {n_folds} folds need at least {needed}: add recordings or lower "
        "--n-folds"
    )


def _folds(
    sessions: Sequence[str], n_folds: int, random_state: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give the numbers of training and test recordings of each fold, given the session of each."""
    import pandas as pd
    from sklearn.model_selection import GroupKFold

    groups = pd.factorize(pd.Series(sessions, dtype=object))[0]
    n_folds = _folds_of_sessions(int(groups.max()) + 1, n_folds)
    folds = GroupKFold(n_folds, shuffle=True, random_state=random_state)
    yield from folds.split(groups, groups=groups)


def _folds_of_sessions(n_sessions: int, n_folds: int) -> int:
    """Return how many folds there are: no more than sessions."""
    if n_sessions < 2:
        raise PipelineError(
            "cannot train: all recordings are of one session, and a session is never split between "
            "training and test: add recordings of another one"
        )
    if n_sessions < n_folds:
        logger.info("%d folds instead of %d, one for each session", n_sessions, n_folds)
    return min(n_folds, n_sessions)


def _read(reader: Reader, paths: Sequence[Path], resources: Resources) -> list[Recording]:
    """Read all recordings, one file at a time in a process."""
    import joblib

    n_bytes = sum(path.stat().st_size for path in paths)
    here = resources.backend == "loky" and n_bytes < PARALLEL_READING_BYTES
    read = joblib.Parallel(n_jobs=1 if here else None, return_as="generator")(
        joblib.delayed(reader.recording)(path) for path in paths
    )
    return list(_progress(read, len(paths), "reading"))


def _workers(resources: Resources) -> Any:
    """Return the context in which joblib spreads work."""
    import joblib

    if resources.backend != "loky":
        return joblib.parallel_config(resources.backend)
    return local_workers(resources.n_jobs)


def _progress(items: Any, total: int, what: str) -> Iterator[Any]:
    """Show a bar on a terminal and nothing in a log."""
    from tqdm import tqdm

    return tqdm(items, total=total, desc=what, disable=None, leave=False)
