"""What MLflow keeps of each step, and the sentence that a cycle ends with. Pure: values only."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retraining.cycle import (
    Challenger,
    Cycle,
    CycleResult,
    Monitoring,
    RecordingResult,
    out_of_fold_by_hash,
)
from retraining.files import listed
from retraining.ground_truth import PARKED
from retraining.journal import COPY, WHOLE, Replaced
from retraining.looks import Judged, Look, Past
from retraining.outcome import Outcome
from retraining.registry.facts import (
    DECIDED_ON,
    PROBATION_FILE,
    Dataset,
    Manifest,
    RunRecord,
)
from retraining.settings import Settings
from retraining.text import error_text, line_start, now, number_text, without_secrets
from retraining.training import ERROR, PREDICTED_COUNT, TRUE_COUNT, TrainedModel, Training
from retraining.windows import newest_in_words

if TYPE_CHECKING:
    from retraining.gate import Verdict
    from retraining.intake import Intake

# --- What MLflow keeps ---


def monitoring_record(cycle: Cycle) -> RunRecord:
    """Return what the run `ModelMonitoring` keeps.

    Notes
    -----
    `mean_error` has one step for each monitored batch so far, this one last: so the newest run
    draws the trend of production by itself, and its value is still this batch's.
    """
    monitoring, errors = cycle.monitoring, cycle.errors
    if monitoring is None:
        raise ValueError("nothing was monitored")
    metrics = {
        "mean_error_low": monitoring.interval_low,
        "mean_error_high": monitoring.interval_high,
        "mean_error_of_all": monitoring.mean_of_all,
        "max_error": float(errors[ERROR].max()),
        "recordings": len(errors),
        DECIDED_ON: len(cycle.decided.files),
    }
    if TRUE_COUNT in errors and PREDICTED_COUNT in errors:
        metrics["mean_count_bias"] = float((errors[PREDICTED_COUNT] - errors[TRUE_COUNT]).mean())
    selection = cycle.decided.selection
    if selection.is_listed:
        metrics |= {"chosen_recordings": selection.n_chosen}
        metrics |= {"random_recordings": selection.n_random}
    files = _data_quality(cycle.batch.data_quality)
    if cycle.probation:
        verdict = cycle.probation.verdict.as_dict()
        against = {"against_version": cycle.probation.version.number}
        files[PROBATION_FILE] = json.dumps({**against, **verdict}, indent=1).encode()
    earlier = [one.mean_error for one in cycle.history]
    return RunRecord(
        metrics=metrics,
        params=cycle.settings.for_the_run(cycle.threshold),
        trends={"mean_error": [*earlier, monitoring.mean_error]},
        tables={"errors_by_recording.json": errors},
        files=files,
        datasets=[Dataset(cycle.batch.manifest, "new_gts", "monitoring")],
    )


def training_record(cycle: Cycle, trained: TrainedModel, manifest: Manifest) -> RunRecord:
    """Return what the run `ModelRetraining` keeps beside the model."""
    return RunRecord(
        metrics={
            "mean_error": trained.mean_error,
            "max_error": float(trained.out_of_fold[ERROR].max()),
            "in_sample_mean_error": float(trained.in_sample[ERROR].mean()),
            "recordings": len(trained.out_of_fold),
        },
        params={
            **cycle.settings.for_the_run(cycle.threshold),
            "model": type(trained.model).__name__,
        },
        tables={"out_of_fold_by_recording.json": trained.out_of_fold},
        files=_data_quality(trained.data_quality),
        datasets=[
            Dataset(manifest, "used_gts and new_gts", "training"),
            Dataset(cycle.batch.manifest, "new_gts", "evaluation"),
        ],
    )


def out_of_fold_table(trained: TrainedModel, manifest: Manifest) -> bytes:
    """Return the JSON of SHA-256 of a recording -> error by a model that never saw it."""
    return json.dumps(out_of_fold_by_hash(trained, manifest), indent=1).encode()


def before_labels(trained: TrainedModel, training: Training, manifest: Manifest) -> bytes:
    """Return what a version keeps for the time before labels come; empty if there is nothing."""
    from retraining.calibration import BeforeLabels

    hashes = {one.name: one.sha256 for one in manifest.files}
    return BeforeLabels.of(trained, training, hashes).to_bytes()


def _data_quality(notes: Mapping[str, str]) -> dict[str, bytes]:
    text = json.dumps(without_secrets(notes), indent=1)
    return {"data_quality.json": text.encode()} if notes else {}


def version_description(verdict: Verdict) -> str:
    """Return what became of a challenger, in one line that tells its date."""
    word = "promoted" if verdict.promote else "not promoted"
    return f"{word} {datetime.date.today().isoformat()}: {verdict.explain()}"


# --- What the home remembers ---


def look(cycle: Cycle, challenger: Challenger, verdict: Verdict) -> Look:
    """Return what is remembered of a comparison, whatever becomes of it."""
    from retraining.resampling import mean_interval, weighted_mean

    window = cycle.window
    production, weights = window.with_offsets(cycle.errors[ERROR]), window.selection.weights
    return Look(
        **_asked(cycle),
        learnt=challenger.manifest.digest,
        compared=window.recordings,
        mean_error=max(weighted_mean(production, weights), 0.0),
        mean_error_low=mean_interval(
            production,
            [window.sessions[name] for name in window.names],
            weights=weights,
            at_least=0.0,
        )[0],
        challenger=challenger.version.number if challenger.version else 0,
        challenger_mean_error=verdict.challenger_mean_error_decided,
        threshold=cycle.threshold,
        decided=cycle.decided.recordings,
        promote=verdict.promote,
        at=now(),
    )


def judged_entry(cycle: Cycle, result: CycleResult) -> Judged:
    """Return what is remembered of a verdict: the next night does not ask the same."""
    return Judged(
        **_asked(cycle),
        outcome=result.outcome.value,
        what=_found(cycle, result),
        at=now(),
    )


def _asked(cycle: Cycle) -> dict[str, Any]:
    """Return of which production, and what of it, was asked: in a look as in a verdict."""
    before = cycle.past.judged_by(cycle.champion.number, cycle.question)
    return {
        "model_name": cycle.settings.model_name,
        "version": cycle.champion.number,
        "run_id": cycle.champion.version.run_id,
        "question": cycle.question,
        "cycle": cycle.id,
        "recordings": [one for one in cycle.batch.recordings if one not in before],
    }


def _found(cycle: Cycle, result: CycleResult) -> str:
    """Return what was found, in words for the night that asks again."""
    if result.outcome is Outcome.HEALTHY and cycle.monitoring:
        return f"production was healthy ({error_text(cycle.monitoring.mean_error, cycle.unit)})"
    rival = f"version {cycle.rival.number}" if cycle.rival else "a model"
    if result.outcome is Outcome.ROLLED_BACK:
        return f"production lost its probation against {rival}"
    reasons = f"not promoted ({', '.join(cycle.verdict.reasons)})" if cycle.verdict else "judged"
    promoted = result.outcome is Outcome.PROMOTED
    return f"its challenger, {rival}, was {'promoted' if promoted else reasons}"


# --- What became of the files ---


def intake_notes(found: Intake) -> tuple[str, ...]:
    """Say what became of files that are neither new nor bad, one sentence each."""
    notes = [replacement_text(one) for one in found.replacements]
    notes += [f"archived: {name} is what production learnt" for name in found.learnt]
    notes += [
        f"parked: {one.name} {one.what}; {one.remedy}"
        for one in found.refusals
        if one.kind == PARKED
    ]
    if found.unlearnt:
        notes.append(
            f"used_gts/ holds {len(found.unlearnt)} recordings that production did not learn "
            f"({listed(found.unlearnt)}): the next retraining learns them"
        )
    return tuple(notes)


def replacement_text(one: Replaced) -> str:
    """Say whose place a file takes, and why."""
    new, place = one.source.rpartition("/")[2], f"{one.folder}/{one.name}"
    kept = f"the old one is kept as used_gts/replaced/{one.kept_as}"
    if one.reason == COPY:
        return f"restored: {new} is {place} in other bytes, which production learnt"
    if one.reason == WHOLE:
        return f"completed: {new} takes the place of {place}, which is a part of it; {kept}"
    return (
        f"corrected: {new} takes the place of {place}, "
        f"{100 * one.labels_changed:.0f} % of the labels changed; {kept}"
    )


# --- How a cycle ends ---


def waiting(settings: Settings, count: int, *, anyway: bool = False) -> CycleResult:
    """Too few new files; `anyway`, none at all."""
    needed = "; --retrain judges on new recordings, and there are none" if anyway else ""
    return CycleResult(
        Outcome.WAITING,
        f"waiting: {count} of {settings.min_new_files} new ground truth files{needed}",
        {"waiting": count, "min_new_files": settings.min_new_files},
        stuck=None,
    )


def already_judged(cycle: Cycle, earlier: str) -> CycleResult:
    """Nothing has changed since the same question was answered."""
    n_files = len(cycle.batch.files)
    return CycleResult(
        Outcome.ALREADY_JUDGED,
        f"nothing new: these {n_files} recordings were judged before: {earlier}; "
        "--force judges them again",
        {"production": cycle.champion.number, "recordings": n_files},
        stuck=stuck_text(cycle.settings, cycle.champion.number, cycle.past),
    )


def stuck_text(settings: Settings, production: int, past: Past) -> str:
    """Say why a person is needed; empty while nobody is."""
    n_lost = past.lost_in_a_row(production)
    if n_lost < settings.stuck_after:
        return ""
    return (
        f"stuck: production version {production} is surely above the threshold and its challengers "
        f"lost {n_lost} looks in a row, each mostly at other recordings; a person is needed: look "
        "at the reasons, check the labels, then add recordings or improve the training module"
    )


def healthy(cycle: Cycle) -> CycleResult:
    """Production is good enough."""
    monitoring, production, unit = cycle.monitoring, cycle.champion.number, cycle.unit
    if monitoring is None:
        raise ValueError("nothing was monitored")
    low, high = number_text(monitoring.interval_low), number_text(monitoring.interval_high)
    limit = f"{cycle.threshold:g} {unit}"
    if cycle.settings.decide == "bound":
        allowed = f"the lower end may be at most {limit}"
    else:
        allowed = f"at most {limit} is allowed"
    return CycleResult(
        Outcome.HEALTHY,
        f"healthy: production version {production} errs by "
        f"{error_text(monitoring.mean_error, unit)} (95 % interval {low} to {high}) on "
        f"{_judged_on(cycle, monitoring)}, {allowed}{_selected(cycle)}",
        {
            "production": production,
            **_measured(cycle, monitoring),
        },
    )


def _measured(cycle: Cycle, monitoring: Monitoring) -> dict[str, object]:
    """Return what was measured of production, and what it was held against."""
    return {
        "recordings": len(cycle.batch.files),
        "decided_on": len(cycle.decided.files),
        "selection": cycle.decided.selection.as_facts,
        "mean_error": monitoring.mean_error,
        "mean_error_of_all": monitoring.mean_of_all,
        "mean_error_interval": [monitoring.interval_low, monitoring.interval_high],
        "threshold": cycle.threshold,
        "decide": cycle.settings.decide,
    }


def _selected(cycle: Cycle) -> str:
    """Say of what the mean of those that decided is an estimate; nothing where of themselves."""
    said = cycle.decided.selection.in_words
    return f"; {said}" if said else ""


def _windows(cycle: Cycle, verdict: Verdict) -> str:
    """Say which recordings decided and were compared; nothing where it was all of them."""
    n_all, n_decided = len(cycle.batch.files), len(cycle.decided.files)
    if cycle.monitoring is None:
        return ""
    if n_all == n_decided:
        if cycle.decided.selection.weights is None:
            return _selected(cycle)
        error = error_text(cycle.monitoring.mean_error, cycle.unit)
        return f"; version {cycle.champion.number} errs by {error}, {_selected(cycle)[2:]}"
    compared = newest_in_words(verdict.n_recordings, n_all)
    error = error_text(cycle.monitoring.mean_error, cycle.unit)
    on_all = error_text(cycle.monitoring.mean_of_all, cycle.unit)
    return (
        f"; compared were {compared} new recordings, and version {cycle.champion.number} errs by "
        f"{error} on the newest {n_decided}, which decided, by {on_all} on all{_selected(cycle)}"
    )


def judged(cycle: Cycle, verdict: Verdict) -> CycleResult:
    """Both models were compared; a challenger without a version is one of a dry run."""
    old = cycle.champion.number
    number = cycle.rival.number if cycle.rival else None
    name = f"version {number}" if number else "the challenger (dry run)"
    stuck, why = "", verdict.explain() + _windows(cycle, verdict)
    if verdict.promote:
        message = f"promoted: {name} replaces version {old}: {why}"
    else:
        stuck = stuck_text(cycle.settings, old, cycle.past.and_then(cycle.look))
        message = f"not promoted: production stays version {old}, {name}: {why}"
        message += f"; {stuck}" if stuck else ""
    return CycleResult(
        Outcome.PROMOTED if verdict.promote else Outcome.NOT_PROMOTED,
        message,
        {
            "production": number if number and verdict.promote else old,
            **_compared(cycle, number, verdict),
        },
        stuck,
    )


def rolled_back(cycle: Cycle) -> CycleResult:
    """Production lost its probation against the version before."""
    probation = cycle.lost_probation
    if probation is None:
        raise ValueError("no probation was lost")
    number, verdict = probation.version.number, probation.verdict
    return CycleResult(
        Outcome.ROLLED_BACK,
        f"rolled back: version {number} is production again, version {cycle.champion.number} "
        f"lost its probation: {verdict.explain()}",
        {
            "production": number,
            **_compared(cycle, number, verdict),
        },
    )


def _compared(cycle: Cycle, number: int | None, verdict: Verdict) -> dict[str, object]:
    return {
        "champion": cycle.champion.number,
        "challenger": number,
        **(_measured(cycle, cycle.monitoring) if cycle.monitoring else {}),
        "compared_on": verdict.n_recordings,
        "verdict": verdict.as_dict(),
    }


def _judged_on(cycle: Cycle, monitoring: Monitoring) -> str:
    """Say on which recordings production was judged, and its mean error on all if they are more."""
    n_all, n_decided = len(cycle.batch.files), len(cycle.decided.files)
    said = f"{newest_in_words(n_decided, n_all)} new recordings"
    if n_all == n_decided:
        return said
    return f"{said} ({error_text(monitoring.mean_of_all, cycle.unit)} on all)"


# --- What --verbose shows ---


def recordings_table(recordings: Sequence[RecordingResult], unit: str) -> str:
    """Return the recordings of a batch as lines for a terminal, the worst first."""
    counted = all(one.true_count is not None for one in recordings)
    width = max(len("recording"), *(len(line_start(one.name)) for one in recordings))
    heads = "  true  production    error  challenger    error"
    lines = [f"{'recording':<{width}}{heads if counted else '  production  challenger'}"]
    for one in sorted(recordings, key=lambda one: -one.champion_error):
        line = f"{line_start(one.name):<{width}}"
        line += f"  {one.true_count:>4}" if counted else ""
        line += _cells(one.champion_count, one.champion_error, unit, counted=counted)
        if one.challenger_error is not None:
            line += _cells(one.challenger_count, one.challenger_error, unit, counted=counted)
        lines.append(line)
    return "\n".join(lines) + "\n"


def _cells(count: int | None, error: float, unit: str, *, counted: bool) -> str:
    """Return what a table says of one model and recording."""
    if not counted:
        return f"  {error_text(error, unit):>10}"
    return f"  {'-' if count is None else count:>10}  {number_text(error):>5} {unit}"
