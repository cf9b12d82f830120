"""What a cycle works with and what it leaves: models, errors, runs, and the sentence it ends with.

The steps of `pipeline_orchestrator` hand these records to each other. What MLflow keeps of them
is written here, and so is the one line with which a cycle ends. Nothing heavy is imported here.
"""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import cycle_report
import model_registry
from cycle_report import MonitoredBatch, RecordingResult
from gts_folder import GroundTruthFile
from model_registry import Manifest, ModelRegistry, RegisteredVersion, TrainingFile
from pipeline_settings import Settings
from training_module import ERROR, PREDICTED_COUNT, TRUE_COUNT

if TYPE_CHECKING:
    import pandas as pd

    from champion_gate import Verdict
    from training_module import TrainedModel, Training

PART_ROWS = 500_000
"""Rows that are scored at once; about 50 MB, 100 recordings."""


logger = logging.getLogger("pipeline")


# --- What the steps hand to each other ---


class Outcome(Enum):
    """How a cycle ended."""

    WAITING = "waiting"
    ALREADY_JUDGED = "already_judged"
    HEALTHY = "healthy"
    NOT_PROMOTED = "not_promoted"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"


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
    """

    outcome: Outcome
    message: str
    facts: Mapping[str, Any]
    stuck: str | None = ""
    recordings: tuple[RecordingResult, ...] = ()
    unit: str = ""


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
    """

    files: tuple[GroundTruthFile, ...]
    fingerprint: str
    data_quality: Mapping[str, str]

    @property
    def hashes(self) -> dict[str, str]:
        """Name -> SHA-256."""
        return {one.name: one.sha256 for one in self.files}

    @property
    def manifest(self) -> Manifest:
        """The files as they are recorded with a run."""
        return Manifest(tuple(TrainingFile(one.name, one.sha256, one.n_rows) for one in self.files))

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
    """The production model.

    Parameters
    ----------
    version
        In the registry.
    model
        Loaded and verified.
    manifest
        What it was trained on.
    """

    version: RegisteredVersion
    model: Any
    manifest: Manifest


@dataclass(frozen=True)
class Monitoring:
    """How the production model does on a batch.

    Parameters
    ----------
    errors
        One row per recording.
    mean_error, interval_low, interval_high
        Mean error and its 95 % interval.
    """

    errors: pd.DataFrame
    mean_error: float
    interval_low: float
    interval_high: float


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
        errors = self.result.out_of_fold[ERROR]
        return {
            one.sha256: float(errors[one.name])
            for one in self.manifest.files
            if one.name in errors.index
        }


@dataclass
class Findings:
    """What a cycle has found so far, for its page; it grows step by step.

    Parameters
    ----------
    settings
        Of this home.
    registry
        Where the runs are.
    training
        The training module.
    champion
        The production model when the cycle began.
    history
        Batches that were monitored before.
    batch, monitoring, probation, challenger, verdict
        What the steps returned; None before.
    monitoring_run
        Id of the run `ModelMonitoring`; empty before and in a dry run.
    result
        How the cycle ended; None before.
    """

    settings: Settings
    registry: ModelRegistry
    training: Training
    champion: Champion
    history: Sequence[MonitoredBatch] = ()
    batch: Batch | None = None
    monitoring: Monitoring | None = None
    probation: Probation | None = None
    monitoring_run: str = ""
    challenger: Challenger | None = None
    verdict: Verdict | None = None
    result: CycleResult | None = None

    @property
    def lost_probation(self) -> Probation | None:
        """The probation, if the version before is better."""
        return self.probation if self.probation and self.probation.verdict.promote else None

    def recordings(self) -> tuple[RecordingResult, ...]:
        """Return the batch as production and, once there is a verdict, the other model count it."""
        if self.batch is None or self.monitoring is None:
            return ()
        production, other = self.monitoring.errors, None
        if self.lost_probation:
            other = self.lost_probation.errors
        elif self.challenger and self.verdict:
            names = self.challenger.manifest.names
            of_batch = {names[one.sha256]: one.name for one in self.batch.files}
            other = self.challenger.result.out_of_fold.loc[list(of_batch)].rename(of_batch)
        return tuple(
            RecordingResult(
                name=one.name,
                true_count=_count(production, TRUE_COUNT, one.name),
                champion_count=_count(production, PREDICTED_COUNT, one.name),
                champion_error=float(production[ERROR][one.name]),
                challenger_count=_count(other, PREDICTED_COUNT, one.name),
                challenger_error=None if other is None else float(other[ERROR][one.name]),
            )
            for one in self.batch.files
        )


def _count(errors: pd.DataFrame | None, column: str, name: str) -> int | None:
    """Return a count of a recording; None without a model, or where nothing is counted."""
    return None if errors is None or column not in errors else int(errors[column][name])


# --- What MLflow keeps ---


def record_monitoring(
    registry: ModelRegistry,
    settings: Settings,
    monitoring: Monitoring,
    batch: Batch,
    tags: Mapping[str, str],
    history: Sequence[MonitoredBatch],
    probation: Probation | None,
) -> str:
    """Write the run `ModelMonitoring` and return its id.

    Parameters
    ----------
    registry
        Where to.
    settings
        Logged as parameters.
    monitoring
        What was found.
    batch
        On which recordings.
    tags
        Cycle, batch, champion and settings.
    history
        Batches that were monitored before.
    probation
        What `end_probation` returned.

    Notes
    -----
    `mean_error` has one step for each monitored batch so far, this one last: so the newest run
    draws the trend of production by itself, and its value is still this batch's.
    """
    errors = monitoring.errors
    bias = {}
    if TRUE_COUNT in errors and PREDICTED_COUNT in errors:
        bias["mean_count_bias"] = float((errors[PREDICTED_COUNT] - errors[TRUE_COUNT]).mean())
    with registry.run(model_registry.MONITORING_RUN, tags) as run_id:
        registry.log_numbers(
            {
                "mean_error_low": monitoring.interval_low,
                "mean_error_high": monitoring.interval_high,
                "max_error": float(errors[ERROR].max()),
                "recordings": len(errors),
                **bias,
            },
            settings.for_the_run(),
        )
        earlier = [one.mean_error for one in history]
        registry.log_trend(run_id, "mean_error", [*earlier, monitoring.mean_error])
        registry.log_table(errors, "errors_by_recording.json")
        registry.log_dataset(batch.manifest, "new_gts", "monitoring")
        _log_data_quality(registry, batch.data_quality)
        if probation:
            content = {
                "against_version": probation.version.number,
                **probation.verdict.as_dict(),
            }
            registry.log_file(json.dumps(content, indent=1).encode(), model_registry.PROBATION_FILE)
    return run_id


def _log_data_quality(registry: ModelRegistry, notes: Mapping[str, str]) -> None:
    if notes:
        registry.log_file(json.dumps(notes, indent=1).encode(), "data_quality.json")


def training_manifest(hashes: Mapping[str, str], row_counts: Mapping[str, int]) -> Manifest:
    """Return the manifest of a training folder.

    Parameters
    ----------
    hashes
        Name -> SHA-256.
    row_counts
        Name -> number of rows.
    """
    return Manifest(
        tuple(TrainingFile(name, hashes[name], row_counts[name]) for name in sorted(hashes))
    )


def record_training(
    registry: ModelRegistry,
    settings: Settings,
    result: TrainedModel,
    manifest: Manifest,
    batch: Batch,
) -> None:
    """Log errors, parameters and data of a training to the open run.

    Parameters
    ----------
    registry
        Has the open run.
    settings
        Logged as parameters.
    result
        What training returned.
    manifest
        What was trained on.
    batch
        What champion and challenger are compared on.
    """
    in_sample, out_of_fold = result.in_sample, result.out_of_fold
    registry.log_numbers(
        {
            "mean_error": result.mean_error,
            "max_error": float(out_of_fold[ERROR].max()),
            "in_sample_mean_error": float(in_sample[ERROR].mean()),
            "recordings": len(out_of_fold),
        },
        {**settings.for_the_run(), "model": type(result.model).__name__},
    )
    registry.log_table(out_of_fold, "out_of_fold_by_recording.json")
    registry.log_dataset(manifest, "used_gts and new_gts", "training")
    registry.log_dataset(batch.manifest, "new_gts", "evaluation")
    errors = Challenger(result, manifest, None).out_of_fold
    registry.log_file(json.dumps(errors, indent=1).encode(), model_registry.OUT_OF_FOLD_FILE)
    _log_data_quality(registry, result.data_quality)


def record_outcome(registry: ModelRegistry, monitoring_run: str, result: CycleResult) -> None:
    """Tag the monitoring run with how its cycle ended.

    Parameters
    ----------
    registry
        Has the run.
    monitoring_run
        Its id; empty in a dry run.
    result
        How the cycle ended.
    """
    if not monitoring_run:
        return
    registry.set_run_tag(monitoring_run, model_registry.TAG_OUTCOME, result.outcome.value)
    registry.set_run_tag(monitoring_run, "pipeline_message", result.message)
    registry.set_run_tag(monitoring_run, model_registry.TAG_DESCRIPTION, result.message)


def version_description(verdict: Verdict) -> str:
    """Return what became of a challenger, in one line that tells its date.

    Parameters
    ----------
    verdict
        Of the gate.
    """
    word = "promoted" if verdict.promote else "not promoted"
    return f"{word} {datetime.date.today().isoformat()}: {verdict.explain()}"


# --- How a cycle ends ---


def waiting(settings: Settings, count: int) -> CycleResult:
    """Too few new files.

    Parameters
    ----------
    settings
        Say how many it takes.
    count
        Files that wait.
    """
    return CycleResult(
        Outcome.WAITING,
        f"waiting: {count} of {settings.min_new_files} new ground truth files",
        {"waiting": count, "min_new_files": settings.min_new_files},
        stuck=None,
    )


def already_judged(
    settings: Settings,
    champion: Champion,
    batch: Batch,
    earlier: str,
    lost_batches: Collection[str],
) -> CycleResult:
    """Nothing has changed since the same question was answered.

    Parameters
    ----------
    settings
        Say after how many lost batches a person is needed.
    champion
        The production model.
    batch
        The new recordings.
    earlier
        What became of them then.
    lost_batches
        On which challengers lost since production was last healthy.
    """
    return CycleResult(
        Outcome.ALREADY_JUDGED,
        f"nothing new: these {len(batch.files)} recordings were judged before: {earlier}; "
        "--force judges them again",
        {"production": champion.version.number, "recordings": len(batch.files)},
        stuck=stuck_text(settings, champion.version.number, lost_batches),
    )


def stuck_text(settings: Settings, production: int, lost_batches: Collection[str]) -> str:
    """Say why a person is needed; empty while nobody is.

    Parameters
    ----------
    settings
        Say after how many lost batches that is.
    production
        Number of the version.
    lost_batches
        On which challengers lost since production was last healthy.
    """
    if len(lost_batches) < settings.stuck_after:
        return ""
    return (
        f"stuck: production version {production} is above the threshold and its challengers "
        f"lost on {len(lost_batches)} batches in a row; a person is needed: look at the reasons, "
        "check the labels, then add recordings or improve the training module"
    )


def healthy(findings: Findings, batch: Batch, monitoring: Monitoring) -> CycleResult:
    """Production is good enough.

    Parameters
    ----------
    findings
        Of the cycle: its settings, the metric and the production model.
    batch
        The new recordings.
    monitoring
        Production's errors on them.
    """
    settings, unit = findings.settings, findings.training.error_unit
    production = findings.champion.version.number
    limit = "the lower end may be at most" if settings.decide == "bound" else "at most"
    return CycleResult(
        Outcome.HEALTHY,
        f"healthy: production version {production} errs by "
        f"{monitoring.mean_error:.1f} {unit} (95 % interval {monitoring.interval_low:.1f} to "
        f"{monitoring.interval_high:.1f}) on {len(batch.files)} new recordings, {limit} "
        f"{settings.threshold:g} {unit}{' is allowed' if limit == 'at most' else ''}",
        {
            "production": production,
            "recordings": len(batch.files),
            "mean_error": monitoring.mean_error,
            "mean_error_interval": [monitoring.interval_low, monitoring.interval_high],
            "threshold": settings.threshold,
            "decide": settings.decide,
        },
    )


def judged(
    settings: Settings,
    champion: Champion,
    challenger: Challenger,
    batch: Batch,
    verdict: Verdict,
    lost_batches: Collection[str],
) -> CycleResult:
    """Both models were compared.

    Parameters
    ----------
    settings
        Say after how many lost batches a person is needed.
    champion
        The production model.
    challenger
        The retrained one; without a version in a dry run.
    batch
        The new recordings.
    verdict
        Of the gate.
    lost_batches
        On which earlier challengers lost since production was last healthy.
    """
    old = champion.version.number
    number = challenger.version.number if challenger.version else None
    name = f"version {number}" if number else "the challenger (dry run)"
    stuck = ""
    if verdict.promote:
        message = f"promoted: {name} replaces version {old}: {verdict.explain()}"
    else:
        stuck = stuck_text(settings, old, {*lost_batches, batch.fingerprint})
        message = f"not promoted: production stays version {old}, {name}: {verdict.explain()}"
        if stuck:
            logger.warning("%s", stuck)
            message += f"; {stuck}"
    return CycleResult(
        Outcome.PROMOTED if verdict.promote else Outcome.NOT_PROMOTED,
        message if number else f"dry run, nothing changed: {message}",
        {
            "production": number if number and verdict.promote else old,
            "champion": old,
            "challenger": number,
            "recordings": len(batch.files),
            "verdict": verdict.as_dict(),
        },
        stuck,
    )


def rolled_back(
    champion: Champion, batch: Batch, probation: Probation, *, dry_run: bool
) -> CycleResult:
    """Production lost its probation against the version before.

    Parameters
    ----------
    champion
        The production model that lost.
    batch
        The new recordings.
    probation
        Has the version before, which is production again.
    dry_run
        Nothing was changed.
    """
    number, verdict = probation.version.number, probation.verdict
    message = (
        f"rolled back: version {number} is production again, version {champion.version.number} "
        f"lost its probation: {verdict.explain()}"
    )
    return CycleResult(
        Outcome.ROLLED_BACK,
        f"dry run, nothing changed: {message}" if dry_run else message,
        {
            "production": champion.version.number if dry_run else number,
            "champion": champion.version.number,
            "challenger": number,
            "recordings": len(batch.files),
            "verdict": verdict.as_dict(),
        },
    )


def recordings_table(recordings: Sequence[RecordingResult], unit: str) -> str:
    """Return the recordings of a batch as lines for a terminal, the worst first.

    Parameters
    ----------
    recordings
        As both models count them.
    unit
        Of their errors.
    """
    counted = all(one.true_count is not None for one in recordings)
    width = max(len("recording"), *(len(cycle_report.visible(one.name)) for one in recordings))
    heads = "  true  production    error  challenger    error"
    lines = [f"{'recording':<{width}}{heads if counted else '  production  challenger'}"]
    for one in sorted(recordings, key=lambda one: -one.champion_error):
        line = f"{cycle_report.visible(one.name):<{width}}"
        line += f"  {one.true_count:>4}" if counted else ""
        line += _cells(one.champion_count, one.champion_error, unit, counted=counted)
        if one.challenger_error is not None:
            line += _cells(one.challenger_count, one.challenger_error, unit, counted=counted)
        lines.append(line)
    return "\n".join(lines) + "\n"


def _cells(count: int | None, error: float, unit: str, *, counted: bool) -> str:
    """Return what a table says of one model and recording."""
    if not counted:
        return f"  {f'{error:.1f} {unit}':>10}"
    return f"  {'-' if count is None else count:>10}  {error:>5.1f} {unit}"
