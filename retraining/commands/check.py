"""`check`: finds by day what would fail at night. Examines a training module; changes nothing."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retraining.command_line import Command, print_result
from retraining.commands.predict import in_words, verdicts_of
from retraining.commands.refit import (
    DoesNotFit,
    answers_of,
    elsewhere,
    environment_watched,
    fitted_beside,
)
from retraining.errors import (
    EXIT_DONE,
    EXIT_ERROR,
    PipelineError,
    StoppedBySignal,
    TryLaterError,
    stop_request,
)
from retraining.files import hash_bytes, lock_without_writing, settled, waiting_names
from retraining.registry.stored_models import check_types
from retraining.settings import Settings, check_home
from retraining.text import error_text, printable
from retraining.training import ERROR, Training, load_training_module, unreadable_file

if TYPE_CHECKING:
    import pandas as pd

    from retraining.identity import Observations

MOST_RECORDINGS, MOST_FOLDS = 12, 3
"""That are cross-validated and fitted on; all are read."""
SHOWN_FILES = 20
FROM_ITS_ARGUMENTS = (
    "let fit depend on its arguments alone, and give random_state to whatever draws numbers"
)

COLUMNS_GIVEN = "; predict is given what MODEL_COLUMNS and MODEL_OPTIONAL_COLUMNS name, no more"

TOLD_APART = {
    "identity": "by the values that the module names in identity(rows)",
    "rows": "by their rows, of which no two share many: parts are recognised, too",
    "content": "by their whole content only, for they share many rows by chance: with "
    "identity(rows) parts are recognised, too",
}
logger = logging.getLogger("pipeline")


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _work(settings: Settings, options: argparse.Namespace) -> int:
    found = check(settings)
    tone = "look" if found["findings"] else "good"
    print_result(as_lines(found), found, as_json=options.json, tone=tone)
    return EXIT_ERROR if found["findings"] else EXIT_DONE


# --- What is found ---


@dataclass
class Examination:
    """A module under examination, and what was found so far.

    Parameters
    ----------
    findings
        Each one line: what is wrong, and what to do.
    facts
        What is no mistake, for the summary; as `check` returns it.
    seconds
        What was measured -> seconds for each recording.
    """

    settings: Settings
    training: Training
    findings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, what: str) -> None:
        """Note a finding, once."""
        line = printable(what)
        if line not in self.findings:
            self.findings.append(line)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Turn a failure into a finding."""
        stop_request.obey()
        try:
            yield
        except (TryLaterError, StoppedBySignal):
            raise
        except PipelineError as error:
            asks_for_more = "predict fails: KeyError" in str(error)
            self.add(f"{error}{COLUMNS_GIVEN if asks_for_more else ''}")
        except OSError as error:
            self.add(f"{self.training.path.name}: {error}; let it use nothing but its arguments")

    @contextlib.contextmanager
    def timed(self, what: str, n_recordings: int = 1) -> Iterator[None]:
        """Measure, per recording."""
        begin = time.perf_counter()
        yield
        each = (time.perf_counter() - begin) / n_recordings
        self.seconds.setdefault(what, []).append(each)


def check(settings: Settings) -> dict[str, Any]:
    """Examine the training module on the recordings at hand.

    Returns
    -------
    dict
        `module`, `findings`; and, as far as it came, `recordings` and `sessions` (how many),
        `folds` (that a retraining on them will have), `told_apart` (a key of `TOLD_APART`),
        `examined` (how many were cross-validated), `mean_error`, `mean_error_without_a_model`
        (None where the module does not say), `unit`, `before_labels` (functions of the module for
        the time before labels come), and `seconds`: step -> for one recording.
    """
    check_home(settings)
    with lock_without_writing(settings):
        try:
            training = load_training_module(settings)
        except PipelineError as error:
            return {"module": str(settings.training_file), "findings": [printable(error)]}
        examination = Examination(settings, training)
        _examine(examination)
    seconds = {name: sum(each) / len(each) for name, each in examination.seconds.items()}
    return {
        "module": str(training.path),
        "findings": examination.findings,
        **examination.facts,
        "seconds": seconds,
    }


def as_lines(found: dict[str, Any]) -> list[str]:
    """Return what `check` found as lines for a person."""
    findings, name = found["findings"], Path(found["module"]).name
    if findings:
        plural = "s" if len(findings) > 1 else ""
        lines = [f"{len(findings)} finding{plural}: {name} is not ready for the night", *findings]
    else:
        lines = [
            f"no finding: {name} keeps the contract; it was fitted three times, in other "
            "surroundings, and every prediction is the same bit for bit"
        ]
    if "recordings" in found:
        lines.append(
            f"read: {found['recordings']} recordings of {found['sessions']} sessions in used_gts/ "
            "and new_gts/"
        )
    if "told_apart" in found:
        lines.append(f"told apart: {TOLD_APART[found['told_apart']]}")
    if "folds" in found and found["sessions"] < found["recordings"]:
        lines.append(f"folds: a retraining has {found['folds']}, of whole sessions")
    if "mean_error" in found:
        without, unit = found["mean_error_without_a_model"], found["unit"]
        than = "" if without is None else f", without a model {error_text(without, unit)}"
        lines.append(
            f"mean error: {error_text(found['mean_error'], unit)} on {found['examined']} of them, "
            f"each scored by a model that never saw it{than}"
        )
    if "before_labels" in found:
        lines.append(f"before labels come: it tells {', '.join(found['before_labels'])}")
    if found.get("seconds"):
        times = (f"{what} {1000 * each:.3g} ms" for what, each in found["seconds"].items())
        lines.append(f"time for one recording: {', '.join(times)}")
    return lines


# --- What is looked at ---


def _examine(examination: Examination) -> None:
    """Look at the module alone, then at what it does with recordings."""
    _examine_constants(examination)
    sessions = _read_everything(examination)
    sample = _sample(sessions)
    if len({sessions[path] for path in sample}) < 2:
        things = "recordings" if len(sample) < 2 else "sessions of recordings"
        examination.add(
            f"there are not two {things} to learn from and to test on: put checked ones into "
            "used_gts/"
        )
        return
    n_sessions, n_folds = len(set(sessions.values())), examination.settings.n_folds
    names_sessions = any(session != path.name for path, session in sessions.items())
    if n_sessions < n_folds and not names_sessions:
        examination.add(
            f"a retraining needs {n_folds} recordings, one for each fold, and there are "
            f"{n_sessions}: add recordings or lower --n-folds"
        )
    else:
        examination.facts["folds"] = min(n_folds, n_sessions)
    if _cross_validates(examination, sample, sessions):
        _examine_model(examination, sample)


def _examine_constants(examination: Examination) -> None:
    training = examination.training
    if not (math.isfinite(training.threshold) and training.threshold >= 0):
        examination.add(f"THRESHOLD is {training.threshold}; make it a number from 0")
    if training.label_column in training.said("MODEL_COLUMNS"):
        examination.add(
            f"MODEL_COLUMNS names {training.label_column!r}, what is to be predicted: take it out"
        )
    with examination.step():
        training.check_packages()


def _read_everything(examination: Examination) -> dict[Path, str]:
    """Read every recording once; return the session of each that can be read."""
    from retraining.identity import observe

    settings, training = examination.settings, examination.training
    paths = [settings.used_gts / name for name in waiting_names(settings.used_gts)]
    paths += settled([settings.new_gts / name for name in waiting_names(settings.new_gts)])
    logger.info("reading %d recordings", len(paths))
    sessions: dict[Path, str] = {}
    observations: dict[Path, Observations] = {}
    bad: list[str] = []
    for path in paths:
        stop_request.obey()
        try:
            with examination.timed("read"):
                rows, _ = training.read(path)
            observations[path] = observe(training, rows)
            sessions[path] = training.session(rows) or path.name
        except FileNotFoundError:  # whoever may drop files may take them away
            continue
        except ValueError as error:
            bad.append(f"{path.parent.name}/{unreadable_file(path.name, error)}")
        except TryLaterError:
            raise
        except PipelineError as error:  # a mistake of the module, which every file would show
            examination.add(str(error))
            break
    for line in bad[:SHOWN_FILES]:
        examination.add(line)
    if len(bad) > SHOWN_FILES:
        examination.add(f"{len(bad) - SHOWN_FILES} more files cannot be read; mend these first")
    facts = {"recordings": len(sessions), "sessions": len(set(sessions.values()))}
    examination.facts.update(facts)
    _examine_identity(examination, observations)
    return sessions


def _examine_identity(examination: Examination, observations: Mapping[Path, Observations]) -> None:
    """Say how recordings are told apart, and name those that are not."""
    from retraining.known_recordings import KnownRecordings

    training = examination.training
    known = KnownRecordings(examination.settings.home, training.has_identity)
    places = {hash_bytes(os.fsencode(path)): path for path in observations}
    known.add([(key, observations[path]) for key, path in places.items()], training.maker())
    shares = not training.has_identity and known.share_rows(places)
    mode = "identity" if training.has_identity else "content" if shares else "rows"
    examination.facts["told_apart"] = mode
    if any(not len(one) for one in observations.values()):
        examination.add("identity finds nothing in some recordings: these cannot be told apart")
    used_gts = examination.settings.used_gts
    used = [key for key, path in places.items() if path.parent == used_gts]
    pairs = {frozenset((one.sha256, one.other)): one for one in known.twins(used)}
    for pair in list(pairs.values())[:SHOWN_FILES]:
        names = sorted(places[key].name for key in (pair.sha256, pair.other))
        examination.add(
            f"used_gts/ holds one recording twice, as {' and '.join(names)} "
            f"({100 * pair.containment:.0f} % of the smaller one): withdraw one of them: "
            f"python pipeline_orchestrator.py withdraw {names[-1]}"
        )


def _sample(sessions: dict[Path, str]) -> list[Path]:
    """Return a bounded number of recordings with different names: old and new, of two sessions."""
    paths = list({path.name: path for path in sessions}.values())
    if not paths:
        return []
    n_chosen = min(len(paths), MOST_RECORDINGS)
    chosen = [paths[number * len(paths) // n_chosen] for number in range(n_chosen)]
    others = [path for path in paths if sessions[path] != sessions[chosen[0]]]
    if others and len({sessions[path] for path in chosen}) < 2:
        chosen[-1] = others[0]
    return sorted(chosen)


def _cross_validates(
    examination: Examination, sample: Sequence[Path], sessions: dict[Path, str]
) -> bool:
    """Train as a night does; say whether that went well."""
    from retraining.cross_validation import Resources, train

    settings, training = examination.settings, examination.training
    n_folds = min(MOST_FOLDS, settings.n_folds, len({sessions[path] for path in sample}))
    logger.info("cross-validating on %d recordings", len(sample))
    with examination.step():
        trained, _ = train(
            training,
            sample,
            n_folds=n_folds,
            random_state=settings.random_state,
            resources=Resources(n_jobs=settings.n_jobs),
        )
        # Its first rows are stored with a model, and it has to predict them.
        training.predict(trained.model, trained.input_example)
        examination.facts |= {
            "examined": len(sample),
            "mean_error": trained.mean_error,
            "mean_error_without_a_model": None,
            "unit": training.error_unit,
        }
        return True
    return False


# --- The model ---


@dataclass(frozen=True)
class Sample:
    """The recordings that are fitted on, with their rows and examples."""

    paths: Sequence[Path]
    rows: Sequence[pd.DataFrame]
    examples: pd.DataFrame


def _examine_model(examination: Examination, paths: Sequence[Path]) -> None:
    """Fit here, here again and in another process; look at what the model can do."""
    from threadpoolctl import threadpool_limits

    settings, training = examination.settings, examination.training
    # Sums over several threads may differ in their last bit; a night fits with one as well.
    with examination.step(), threadpool_limits(limits=1):
        sample = _prepared(examination, paths)
        with examination.timed("fit", len(paths)):
            model = training.fit(sample.examples.copy(), settings.random_state)
        expected = [answers_of(training, model, rows) for rows in sample.rows]
        for examine in (
            _examine_predict,
            _examine_words,
            _examine_before_labels,
            _examine_storing,
        ):
            with examination.step():
                examine(examination, sample, model, expected)
        logger.info("fitting again, in other surroundings")
        _compare(examination, expected, _fitted_again(examination, sample), "the second time")
        _compare(examination, expected, _fitted_beside(examination, sample), BESIDE)


def _prepared(examination: Examination, paths: Sequence[Path]) -> Sample:
    import pandas as pd

    training = examination.training
    all_rows = [training.read(path)[0] for path in paths]
    tables = []
    for rows in all_rows:
        with examination.timed("examples"):
            tables.append(training.examples(rows))
    columns = [list(table.columns) for table in tables]
    for path, found in zip(paths, columns, strict=True):
        if found != columns[0]:
            examination.add(
                f"examples gives other columns for {path.name} than for {paths[0].name}: let it "
                "always give the same"
            )
    return Sample(paths, all_rows, pd.concat(tables, ignore_index=True))


def _examine_predict(
    examination: Examination, sample: Sample, model: Any, expected: Sequence[str]
) -> None:
    """Ask twice, without optional columns, and for what needs no model."""
    training, rows = examination.training, sample.rows[0]
    lacking = [name for name in training.required_columns if name not in rows]
    if lacking:
        examination.add(
            f"parse_ground_truth gives no column {lacking[0]!r}, which MODEL_COLUMNS names: take "
            "it out there"
        )
    for each in sample.rows:
        with examination.timed("predict"):
            training.predict(model, each)
    if [answers_of(training, model, each) for each in sample.rows] != list(expected):
        examination.add("predict says something else when it is asked twice: let it keep no state")
    with examination.step():
        training.predict(model, rows.drop(columns=list(training.optional_columns), errors="ignore"))
    tables = [training.errors_without_a_model(each) for each in sample.rows]
    known = [float(table[ERROR].mean()) for table in tables if table is not None]
    if known:
        examination.facts["mean_error_without_a_model"] = sum(known) / len(known)
    if training.label_column in sample.examples:
        training.predict_examples(model, training.features(sample.examples))


def _examine_words(
    examination: Examination, sample: Sample, model: Any, _expected: Sequence[str]
) -> None:
    """Let the module say what it says of a recording that nobody has checked."""
    training, path = examination.training, sample.paths[0]
    try:
        rows = training.parse_unlabelled(path.read_bytes(), path.name)
        in_words(training, rows, verdicts_of(training, model, rows))
    except ValueError as error:
        examination.add(f"verdicts of {unreadable_file(path.name, error)}")


def _examine_before_labels(
    examination: Examination, sample: Sample, model: Any, _expected: Sequence[str]
) -> None:
    """Let the module tell what it tells before labels come, of rows without the truth."""
    from retraining.identity import observe

    training, path = examination.training, sample.paths[0]
    try:
        rows = training.parse_unlabelled(path.read_bytes(), path.name)
    except ValueError:  # told with its verdicts
        return
    for what in ("expected_errors", "doubtful_labels", "unlabelled_examples"):
        if training.said(what) is not None:
            examination.facts.setdefault("before_labels", []).append(what)
    with examination.step():
        observe(training, rows)
    with examination.step():
        training.expected_errors(model, [rows])
        training.doubtful_labels(model, sample.rows[0])
    features = training.unlabelled_examples(rows)
    learnt = training.features(sample.examples)
    makes_its_own = training.said("unlabelled_examples") is not None
    if makes_its_own and features is not None and [*features] != [*learnt]:
        examination.add(
            "unlabelled_examples gives other columns than examples without the label: let it give "
            f"{', '.join(map(str, learnt))}"
        )


def _examine_storing(
    examination: Examination, sample: Sample, model: Any, expected: Sequence[str]
) -> None:
    """Store the model as the registry does, load it, and ask it again."""
    import skops.io

    training = examination.training
    check_types(model, training)
    with training.mistakes_told("loading the stored model"):
        loaded = skops.io.loads(skops.io.dumps(model), trusted=list(training.trusted_types))
    if [answers_of(training, loaded, rows) for rows in sample.rows] != list(expected):
        examination.add(
            "the model predicts something else once it is stored and loaded: keep all that it "
            "learnt in attributes of the estimator"
        )


# --- Does it depend on its arguments alone? ---

BESIDE = (
    "in a process of its own, with cron's small environment, another working folder and another "
    "order of sets"
)


def _compare(
    examination: Examination, expected: Sequence[str], found: Sequence[str], where: str
) -> None:
    n_different = sum(one != other for one, other in zip(expected, found, strict=False))
    if n_different:
        examination.add(
            f"fit gives another model {where}: it says something else of {n_different} of "
            f"{len(expected)} recordings; {FROM_ITS_ARGUMENTS}"
        )


def _fitted_again(examination: Examination, sample: Sample) -> list[str]:
    """Fit in another folder and with other global random numbers; note who asks the environment."""
    training, seed = examination.training, examination.settings.random_state
    answers: list[str] = []
    with environment_watched(training.path) as asked, examination.step(), elsewhere():
        training.examples(sample.rows[0])
        model = training.fit(sample.examples.copy(), seed)
        answers = [answers_of(training, model, rows) for rows in sample.rows]
    for name in sorted(asked):
        examination.add(
            f"{training.path.name} asks for the environment variable {name}, which another night "
            "or machine sets otherwise: make it a constant of the module"
        )
    return answers


def _fitted_beside(examination: Examination, sample: Sample) -> list[str]:
    """Fit in another process; return what its model says."""
    settings = examination.settings
    try:
        return fitted_beside(examination.training, sample.paths, settings.random_state)
    except DoesNotFit as error:
        examination.add(f"it does not fit {BESIDE}: {error}; {FROM_ITS_ARGUMENTS}")
    return []


COMMAND = Command(
    "check", "examine the training module on the recordings at hand", _add_flags, _work
)
