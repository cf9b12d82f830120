"""What the registry keeps, as values of ours: names, versions, runs, changes and manifests.

The one parser of what stands in tags, parameters and artifacts. They are text from outside: a
person may have edited any of them.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from retraining.errors import PipelineError
from retraining.files import SHA256, hash_bytes
from retraining.text import printable
from retraining.windows import newest_in_words

if TYPE_CHECKING:
    import pandas as pd

PRODUCTION = "production"
PREVIOUS = "previous_production"
MONITORING_RUN = "ModelMonitoring"
RETRAINING_RUN = "ModelRetraining"
PROMOTION_RUN = "ModelPromotion"
FIRST_RUN = "Registering Initial Production Model"

MANIFEST_FILE = "training_files.json"
OUT_OF_FOLD_FILE = "out_of_fold_errors.json"
BEFORE_LABELS_FILE = "before_labels.json"
COMPARISON_FILE = "comparison.json"
PROBATION_FILE = "probation.json"
LOOK_FILE = "look.json"
REPORT_FILE = "cycle_report.html"

TAG_DESCRIPTION = "mlflow.note.content"
"""What MLflow shows on top of a run."""
TAG_HOME = "pipeline_home"
TAG_PLACE = "pipeline_place"
"""Where that home was, for people."""
TAG_SEQUENCE = "pipeline_sequence"
"""Of a change of production: one more than of those before, whatever the clock says."""
TAG_CYCLE = "pipeline_cycle_id"
TAG_BATCH = "pipeline_batch"
TAG_CHAMPION = "pipeline_champion"
TAG_SETTINGS = "pipeline_settings"
TAG_OUTCOME = "pipeline_outcome"
TAG_MESSAGE = "pipeline_message"
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
TAG_OUT_OF_FOLD_HASH = "out_of_fold_sha256"
TAG_BEFORE_LABELS_HASH = "before_labels_sha256"
TAG_COMPARISON_HASH = "comparison_sha256"
TAG_DIGEST = "version_sha256"
TAG_PRUNED = "pruned"
"""When its model file was removed, for people; the journal is what is believed."""
TAG_IMPORTED = "pipeline_imported"
"""From which archive a version, a run or a registered model came, and what it was there."""
TAG_CREATED = "pipeline_created_ms"
"""When an imported version was registered first: MLflow lets nobody set that."""
TAG_MODULE = "training_module"
TAG_CODE = "training_code_sha256"
TAG_METRIC = "error_name"
TAG_UNIT = "error_unit"
TABLES = {
    TAG_MANIFEST_HASH: MANIFEST_FILE,
    TAG_OUT_OF_FOLD_HASH: OUT_OF_FOLD_FILE,
    TAG_BEFORE_LABELS_HASH: BEFORE_LABELS_FILE,
}
"""Tag of a version -> file of its run with that digest."""
SEALED_TAGS = (
    *(TAG_ARTIFACT_HASH, TAG_MANIFEST_HASH, TAG_OUT_OF_FOLD_HASH, TAG_COMPARISON_HASH),
    *(TAG_MODULE, TAG_CODE, TAG_METRIC, TAG_UNIT, TAG_BEFORE_LABELS_HASH),
)
"""What a version's one digest is over: of its files, and what it says of its errors."""

VERDICT_PROMOTE = "promote"
VERDICT_REJECT = "reject"

EVENT_REGISTRATION = "registration"
EVENT_PROMOTION = "promotion"
EVENT_ROLLBACK = "rollback"
EVENT_PROBATION = "probation"
DECIDED_ON = "recordings_decided_on"
METRIC_BEFORE = "mean_error_before"
METRIC_AFTER = "mean_error_after"
OLDER_UNIT = "%"
"""Of the errors of runs that do not name it."""
INTERRUPTED = "interrupted"
"""Outcome of a cycle whose monitoring is there and whose end is not."""
MOST_SHOWN_BYTES = 10_000
MOST = 1e15
LATEST_MS = 253_000_000_000_000
WHOLE_NUMBER = re.compile(r"[0-9]{1,10}")
MILLISECONDS = re.compile(r"[0-9]{1,14}")
ROLL_BACK = "python pipeline_orchestrator.py rollback"
OTHER_VERSION = f"go back to the version before: {ROLL_BACK}"
"""What to do about a version that is not as it was registered."""
TRAINED_WITH = ("n_folds", "random_state")
"""Parameters of a training run that its result depends on."""


# --- Reading what stands there ---


@dataclass(frozen=True)
class Tags:
    """Tags or parameters of one run or version, read as what they should be.

    Parameters
    ----------
    values
        Name -> text.
    source
        The run or version, for messages.
    """

    values: Mapping[str, str]
    source: str

    def text(self, name: str, default: str = "") -> str:
        """Return a text; the default where there is none."""
        return self.values.get(name, default)

    def integer(self, name: str) -> int:
        """Return a whole number.

        Raises
        ------
        PipelineError
            If it is missing or is none.
        """
        text = self.values.get(name)
        if text is None or not WHOLE_NUMBER.fullmatch(text):
            raise unreadable(self.source, f"the tag {name!r}", text)
        return int(text)

    def integer_or_none(self, name: str) -> int | None:
        """Return a whole number; None where there is no text."""
        return self.integer(name) if self.values.get(name) else None


def whole_number(value: float, source: str, what: str) -> int:
    """Return a metric that counts something.

    Raises
    ------
    PipelineError
        If it has decimals, or is no number.
    """
    if not (float(value).is_integer() and 0 <= value <= MOST):
        raise unreadable(source, what, value)
    return int(value)


def an_error(value: float, source: str, what: str) -> float:
    """Return a metric that is an error.

    Raises
    ------
    PipelineError
        If it is none that anything can have: not finite, or below 0.
    """
    if not 0 <= value <= MOST:
        raise unreadable(source, what, value)
    return float(value)


def a_time(milliseconds: object, source: str) -> int:
    """Return when something was written, in milliseconds since 1970.

    Raises
    ------
    PipelineError
        If it is no time, or none of the years 1970 to 9998.
    """
    if not isinstance(milliseconds, int) or not 0 <= milliseconds < LATEST_MS:
        raise unreadable(source, "the time", milliseconds)
    return milliseconds


def unreadable(source: str, what: str, found: object) -> PipelineError:
    """Return the one message about something that does not read as what it should be."""
    state = "is missing" if found is None else f"reads '{printable(found, 60)}'"
    return damaged(source, what, state)


def damaged(source: str, what: str, state: str) -> PipelineError:
    """Return the one message about something that is not as the pipeline wrote it."""
    other = f", or {OTHER_VERSION}" if source.startswith("version ") else ""
    return PipelineError(
        f"{what} of {source} {state}: it was edited or damaged in MLflow; put it back{other}"
    )


def _beginning(content: bytes) -> str:
    """Return enough of an artifact to show: what is shown is cut after secrets are, not before."""
    return content[:MOST_SHOWN_BYTES].decode(errors="replace")


def numbers_by_name(content: bytes, source: str, what: str) -> dict[str, float]:
    """Read a JSON object of finite numbers from 0.

    Raises
    ------
    PipelineError
        If it is something else.
    """
    try:
        found = {str(name): float(value) for name, value in json.loads(content).items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise unreadable(source, what, _beginning(content)) from error
    if not all(math.isfinite(value) and value >= 0 for value in found.values()):
        raise unreadable(source, what, _beginning(content))
    return found


def digest_of(texts: Iterable[str]) -> str:
    """Return one SHA-256 over texts, each behind its length: no two lists of texts have the same.

    Examples
    --------
    >>> digest_of(["ab", "c"]) == digest_of(["a", "bc"])
    False
    """
    contents = [os.fsencode(text) for text in texts]
    return hash_bytes(b"".join(len(one).to_bytes(8) + one for one in contents))


# --- Values ---


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

    @property
    def read(self) -> Tags:
        """Its tags, read as what they should be."""
        return Tags(self.tags, f"version {self.number}")

    @property
    def digest(self) -> str:
        """One SHA-256 over all that decides about it: `SEALED_TAGS`."""
        there = [name for name in SEALED_TAGS if name in self.tags]
        return digest_of(text for name in there for text in (name, self.tags[name]))

    def with_tags(self, tags: Mapping[str, str]) -> RegisteredVersion:
        """Return it with some more tags."""
        return replace(self, tags={**self.tags, **tags})


@dataclass(frozen=True)
class MonitoredBatch:
    """How production did on one batch, as its run `ModelMonitoring` has it.

    Parameters
    ----------
    at_ms
        When, in milliseconds since 1970.
    run_id
        The run.
    version
        Production at that time.
    batch
        Fingerprint of the recordings.
    n_recordings, n_decided
        How many they were, and how many of them decided; 0 where an older pipeline wrote none.
    mean_error, interval_low, interval_high
        Mean error and its 95 % interval, in `unit`; NaN where an older pipeline wrote none.
    threshold
        Largest mean error of a healthy model in that cycle; None where nobody wrote it down.
    outcome
        How that cycle ended.
    """

    at_ms: int
    run_id: str
    version: str
    batch: str
    n_recordings: int
    mean_error: float
    interval_low: float
    interval_high: float
    unit: str
    threshold: float | None
    outcome: str
    n_decided: int = 0

    @property
    def recordings_in_words(self) -> str:
        """How many recordings decided, and of how many where they were not all."""
        return newest_in_words(self.n_decided or self.n_recordings, self.n_recordings)


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
    cycle
        Id of the command that made it.
    sequence
        Its place in the order of changes; 0 where an older pipeline wrote none.
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
    cycle: str
    sequence: int
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
    identity
        Digest of its observations; empty where an older pipeline wrote none.
    """

    name: str
    sha256: str
    rows: int
    identity: str = ""

    def __post_init__(self) -> None:
        kinds = {"name": str, "sha256": str, "rows": int, "identity": str}
        wrong = [name for name, kind in kinds.items() if not isinstance(getattr(self, name), kind)]
        if wrong:
            raise TypeError(f"{', '.join(wrong)} of a training file")

    @property
    def is_plain(self) -> bool:
        """Whether it names a file of a folder, not a path out of it, and a content."""
        is_name = self.name not in ("", ".", "..") and not {"/", "\0"} & {*self.name}
        return is_name and bool(SHA256.fullmatch(self.sha256)) and self.rows >= 0


@dataclass(frozen=True)
class Manifest:
    """The files that a version was trained on, in order of their names."""

    files: tuple[TrainingFile, ...]

    @classmethod
    def of(
        cls,
        hashes: Mapping[str, str],
        row_counts: Mapping[str, int],
        identity: Callable[[str], str] = lambda _sha256: "",
    ) -> Manifest:
        """Return the manifest of files given as name -> SHA-256 and name -> rows.

        Parameters
        ----------
        identity
            Gives the digest of the observations of a content.
        """
        return cls(
            tuple(
                TrainingFile(name, sha256, row_counts[name], identity(sha256))
                for name, sha256 in sorted(hashes.items())
            )
        )

    @property
    def names(self) -> dict[str, str]:
        """SHA-256 -> name."""
        return {one.sha256: one.name for one in self.files}

    @property
    def digest(self) -> str:
        """Hash of which contents they are, whatever their names."""
        return hash_bytes("\n".join(sorted(self.names)).encode())

    def to_bytes(self) -> bytes:
        """Return the JSON that is stored with the run."""
        return json.dumps({"files": [asdict(one) for one in self.files]}, indent=1).encode()

    @classmethod
    def from_bytes(cls, content: bytes, source: str) -> Manifest:
        """Read what `to_bytes` returned.

        Raises
        ------
        PipelineError
            If it is something else; `source` names the version.
        """
        try:
            files = tuple(TrainingFile(**one) for one in json.loads(content)["files"])
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise unreadable(source, MANIFEST_FILE, _beginning(content)) from error
        if not all(one.is_plain for one in files):
            raise unreadable(source, MANIFEST_FILE, _beginning(content))
        return cls(files)


# --- What a step leaves ---


@dataclass(frozen=True)
class Dataset:
    """Recordings that a run used, and what for."""

    manifest: Manifest
    name: str
    context: str


@dataclass(frozen=True)
class RunRecord:
    """What MLflow keeps of one step beside the tags of its run.

    Parameters
    ----------
    metrics
        Finite numbers.
    params
        Logged as text.
    trends
        Metric -> one value per step, from 1; the last one becomes the value of the run.
    tables
        File name ending in .json -> table whose named index becomes the first column.
    files
        Name -> content.
    datasets
        Which recordings the step used.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    trends: Mapping[str, Sequence[float]] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    datasets: Sequence[Dataset] = ()
