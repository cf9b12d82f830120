"""What a cycle works with and what its steps hand on: models, recordings, errors, the result.

Nothing heavy is imported here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retraining.estimates import Estimated
from retraining.ground_truth import GroundTruthFile
from retraining.looks import Look, Past
from retraining.marks import Selection
from retraining.outcome import Outcome
from retraining.registry import Registry
from retraining.registry.facts import (
    TAG_BATCH,
    TAG_CHAMPION,
    TAG_CYCLE,
    TAG_SETTINGS,
    TAG_UNIT,
    Manifest,
    MonitoredBatch,
    RegisteredVersion,
    TrainingFile,
)
from retraining.settings import Settings
from retraining.training import ERROR, PREDICTED_COUNT, TRUE_COUNT, TrainedModel, Training
from retraining.windows import fewest_differences, newest

if TYPE_CHECKING:
    import pandas as pd

    from retraining.gate import Verdict
    from retraining.known_recordings import KnownRecordings

USUAL_RECORDINGS_A_NIGHT = 2.0
PART_ROWS = 500_000
"""Rows that are scored at once; about 50 MB, 100 recordings."""


@dataclass(frozen=True)
class Batch:
    """The new recordings of a cycle.

    Parameters
    ----------
    files
        Valid new files.
    fingerprint
        Of their contents.
    data_quality
        Name -> note about measurements that were taken as missing.
    notes
        What else became of the files in new_gts/, in a sentence each.
    stand_ins
        Name in used_gts/ -> the file that would take its place, in a dry run.
    judges
        Run id of the production that is judged on them.
    """

    files: tuple[GroundTruthFile, ...]
    fingerprint: str
    data_quality: Mapping[str, str]
    notes: Sequence[str] = ()
    stand_ins: Mapping[str, Path] = field(default_factory=dict)
    judges: str = ""

    @property
    def hashes(self) -> dict[str, str]:
        """Name -> SHA-256."""
        return {one.name: one.sha256 for one in self.files}

    @property
    def sessions(self) -> dict[str, str]:
        """Name -> session; empty for one of its own."""
        return {one.name: one.session for one in self.files}

    @property
    def names(self) -> list[str]:
        """Of the files."""
        return [one.name for one in self.files]

    @property
    def recordings(self) -> list[str]:
        """What looks name them by, in order of arrival."""
        return [one.recording for one in sorted(self.files, key=lambda one: one.night)]

    @property
    def selection(self) -> Selection:
        """How they came to be checked, and what each weighs in production's mean error."""
        return Selection.of([one.mark for one in self.files], self.judges)

    @property
    def weights(self) -> dict[str, float]:
        """Name -> what it weighs in the mean over all."""
        return dict(zip(self.names, self.selection.weights or [1.0] * len(self.files), strict=True))

    def with_offsets(self, errors: pd.Series[float]) -> pd.Series[float]:
        """Return the errors of these recordings as they stand for their pool in a mean."""
        mine, offsets = errors.loc[self.names], self.selection.offsets
        return mine if offsets is None else mine + offsets

    @property
    def a_night(self) -> float:
        """Recordings of a night that brought some, the first one left out."""
        nights = sorted(one.night for one in self.files)
        later = [night for night in nights if night > nights[0]]
        return len(later) / len(set(later)) if later else USUAL_RECORDINGS_A_NIGHT

    @property
    def manifest(self) -> Manifest:
        """The files as they are recorded with a run."""
        return Manifest(
            tuple(
                TrainingFile(one.name, one.sha256, one.n_rows, one.identity) for one in self.files
            )
        )

    def newest(self, at_least: int, fewest_sessions: int = 0) -> Batch:
        """Return the window of the newest recordings, at least so many if there are."""
        window = self._newest(at_least)
        while window.n_sessions < fewest_sessions and len(window.files) < len(self.files):
            window = self._newest(len(window.files) + 1)
        return window

    def _newest(self, at_least: int) -> Batch:
        is_in = newest([one.night for one in self.files], at_least)
        return self._only(one for one, kept in zip(self.files, is_in, strict=True) if kept)

    @property
    def n_sessions(self) -> int:
        """How many sessions the recordings are of."""
        sessions = [one.session for one in self.files]
        return len({*sessions} - {""}) + sessions.count("")

    def without(self, learnt: Collection[str]) -> Batch:
        """Return those that are new to a version, given SHA-256 of what it learnt."""
        return self._only(one for one in self.files if not one.was_learnt_as(learnt))

    def _only(self, files: Iterable[GroundTruthFile]) -> Batch:
        return dataclasses.replace(self, files=tuple(files))

    def parts(self) -> Iterator[list[GroundTruthFile]]:
        """Give the files in groups of at most `PART_ROWS` rows, or of one file."""
        part: list[GroundTruthFile] = []
        for one in self.files:
            if part and sum(each.n_rows for each in part) + one.n_rows > PART_ROWS:
                yield part
                part = []
            part.append(one)
        if part:
            yield part


@dataclass(frozen=True)
class Champion:
    """The production model, loaded and verified, and what it was trained on."""

    version: RegisteredVersion
    model: Any
    manifest: Manifest

    @property
    def number(self) -> int:
        """Of its version."""
        return self.version.number


@dataclass(frozen=True)
class Monitoring:
    """How the production model does on a batch.

    Parameters
    ----------
    errors
        One row per recording of the batch.
    mean_error, interval_low, interval_high
        Mean error of the recordings that decide, and its 95 % interval: over the pool, where they
        were listed from one.
    mean_of_all
        Mean error of the whole batch, as weighted.
    """

    errors: pd.DataFrame
    mean_error: float
    interval_low: float
    interval_high: float
    mean_of_all: float


@dataclass(frozen=True)
class Probation:
    """A newly promoted version against the one before, on the first recordings new to both.

    Parameters
    ----------
    version
        The one before.
    errors
        Its own, one row per recording.
    verdict
        Whether that one is better; it stands in the challenger's place.
    """

    version: RegisteredVersion
    errors: pd.DataFrame
    verdict: Verdict


@dataclass(frozen=True)
class Challenger:
    """A retrained model.

    Parameters
    ----------
    result
        What training returned.
    manifest
        What it was trained on.
    version
        In the registry; None in a dry run.
    """

    result: TrainedModel
    manifest: Manifest
    version: RegisteredVersion | None

    @property
    def out_of_fold(self) -> dict[str, float]:
        """SHA-256 of a recording -> error by a model that never saw it."""
        return out_of_fold_by_hash(self.result, self.manifest)

    @property
    def sessions(self) -> dict[str, str]:
        """SHA-256 of a recording -> session; empty for one of its own."""
        return {one.sha256: self.result.sessions.get(one.name, "") for one in self.manifest.files}


def out_of_fold_by_hash(trained: TrainedModel, manifest: Manifest) -> dict[str, float]:
    """Return SHA-256 of a recording -> error by a model that never saw it."""
    errors = trained.out_of_fold[ERROR]
    return {one.sha256: float(errors[one.name]) for one in manifest.files}


@dataclass(frozen=True)
class RecordingResult:
    """One recording of the batch, as both models count it.

    Parameters
    ----------
    name
        Of its file.
    true_count
        How many there really are; None where nothing is counted.
    champion_count, champion_error
        How many there are by the production model, and its error.
    challenger_count, challenger_error
        The same for the challenger; None without one.
    window
        "decides" for the newest ones; "compared" for those that the models are compared on as
        well; empty for older ones.
    mark
        "chosen" or "random" of one that was listed for checking; else empty.
    weight
        In the mean of those that decide; 0 for the others.
    """

    name: str
    true_count: int | None
    champion_count: int | None
    champion_error: float
    challenger_count: int | None = None
    challenger_error: float | None = None
    window: str = ""
    mark: str = ""
    weight: float = 0.0

    @property
    def gain(self) -> float:
        """Champion's error minus challenger's; 0 without a challenger."""
        return 0.0 if self.challenger_error is None else self.champion_error - self.challenger_error


@dataclass(frozen=True)
class CycleResult:
    """What one run found and did.

    Parameters
    ----------
    outcome
        How it ended.
    message
        The verdict in one line.
    facts
        Numbers and names behind it, for `--json`.
    stuck
        Why a person is needed; empty if nobody is; None if the registry was not asked.
    recordings
        The batch as both models count it; empty if it was not monitored.
    unit
        Of their errors.
    notes
        What else became of the files in new_gts/.
    estimate
        What production probably does on recordings that nobody has checked; None without any.
    """

    outcome: Outcome
    message: str
    facts: Mapping[str, Any]
    stuck: str | None = ""
    recordings: tuple[RecordingResult, ...] = ()
    unit: str = ""
    notes: Sequence[str] = ()
    estimate: Estimated | None = None

    @property
    def alarm(self) -> str:
        """Why somebody should look before labels come; empty where nobody need."""
        return self.estimate.alarm if self.estimate else ""


@dataclass
class Cycle:
    """One cycle: what it works with, and what its steps have found so far.

    Parameters
    ----------
    settings, registry, training, champion
        What it works with; the champion is the production model when the cycle began.
    id
        Marks its runs and versions.
    known
        The recordings that the home knows, those of the batch among them.
    batch, monitoring, probation, challenger, verdict, look
        What the steps returned; None before.
    past
        What the home has judged before.
    history
        Batches that were monitored before, the oldest first.
    monitoring_run
        Id of the run `ModelMonitoring`; empty before and in a dry run.
    result
        How the cycle ended; None before.
    """

    settings: Settings
    registry: Registry
    training: Training
    champion: Champion
    id: str
    known: KnownRecordings
    batch: Batch = field(default_factory=lambda: Batch((), "", {}))
    past: Past = Past()
    monitoring: Monitoring | None = None
    probation: Probation | None = None
    history: Sequence[MonitoredBatch] = ()
    monitoring_run: str = ""
    challenger: Challenger | None = None
    verdict: Verdict | None = None
    look: Look | None = None
    result: CycleResult | None = None

    @property
    def threshold(self) -> float:
        """Largest mean error of a healthy model: the operator's, or the module's."""
        return threshold_of(self.settings, self.training)

    @property
    def unit(self) -> str:
        """Of all errors."""
        return str(self.training.error_unit)

    @property
    def errors(self) -> pd.DataFrame:
        """The champion's errors on the batch, one row per recording."""
        if self.monitoring is None:
            raise ValueError("nothing was monitored")
        return self.monitoring.errors

    @property
    def decided(self) -> Batch:
        """The recordings that decide whether production is good enough."""
        return self.batch.newest(self.settings.min_new_files)

    @property
    def window(self) -> Batch:
        """The recordings that two models are compared on; those that decide are among them.

        They are at least so many as a significant p-value takes, and twice so many sessions where
        recordings share them.
        """
        fewest = fewest_differences(self.settings.significance)
        if self.batch.n_sessions < len(self.batch.files):
            fewest *= 2
        return self.batch.newest(max(self.settings.window, self.settings.min_new_files), fewest)

    @property
    def question(self) -> str:
        """What a verdict depends on beside the recordings and production."""
        return self.settings.verdict_fingerprint(self.training.code_sha256, self.threshold)

    @property
    def tags(self) -> dict[str, str]:
        """For its runs and versions."""
        return {
            TAG_CYCLE: self.id,
            TAG_UNIT: self.unit,
            TAG_BATCH: self.batch.fingerprint,
            TAG_CHAMPION: str(self.champion.number),
            TAG_SETTINGS: self.question,
        }

    @property
    def lost_probation(self) -> Probation | None:
        """The probation, if the version before is better."""
        return self.probation if self.probation and self.probation.verdict.promote else None

    @property
    def rival(self) -> RegisteredVersion | None:
        """The version that production was compared with, if any."""
        if self.lost_probation:
            return self.lost_probation.version
        return self.challenger.version if self.challenger else None

    @property
    def final_verdict(self) -> Verdict | None:
        """The verdict that decided."""
        return self.lost_probation.verdict if self.lost_probation else self.verdict

    def recordings(self) -> tuple[RecordingResult, ...]:
        """Return the batch as production and, once there is a verdict, the other model count it."""
        if self.monitoring is None:
            return ()
        production, other = self.monitoring.errors, None
        if self.lost_probation:
            other = self.lost_probation.errors
        elif self.challenger and self.verdict:
            names = self.challenger.manifest.names
            of_batch = {names[one.sha256]: one.name for one in self.batch.files}
            other = self.challenger.result.out_of_fold.loc[list(of_batch)].rename(of_batch)
        windows = dict.fromkeys(self.window.names, "compared") if other is not None else {}
        windows |= dict.fromkeys(self.decided.names, "decides")
        weights = self.decided.weights
        return tuple(
            RecordingResult(
                name=one.name,
                window=windows.get(one.name, ""),
                mark=one.mark.how if one.mark else "",
                weight=weights.get(one.name, 0.0),
                true_count=_count(production, TRUE_COUNT, one.name),
                champion_count=_count(production, PREDICTED_COUNT, one.name),
                champion_error=float(production[ERROR][one.name]),
                challenger_count=_count(other, PREDICTED_COUNT, one.name),
                challenger_error=_error(other, one.name),
            )
            for one in self.batch.files
        )


def threshold_of(settings: Settings, training: Training) -> float:
    """Return the largest mean error of a healthy model: the operator's, or the module's."""
    return float(training.threshold if settings.threshold is None else settings.threshold)


def _count(errors: pd.DataFrame | None, column: str, name: str) -> int | None:
    """Return a count of a recording; None without a model, or where nothing is counted."""
    if errors is None or column not in errors or name not in errors.index:
        return None
    return int(errors[column][name])


def _error(errors: pd.DataFrame | None, name: str) -> float | None:
    """Return the error of a recording; None without a model, or where it learnt the recording."""
    return None if errors is None or name not in errors.index else float(errors[ERROR][name])
