"""The page of a cycle: gather its facts, keep it in reports/, and give it to MLflow.

`cycle_report` draws and writes what is gathered here. Nothing depends on a page: one that cannot
be made is a line in the log. Nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cycle_records
import cycle_report
import gts_folder
import model_registry
from cycle_records import Batch, CycleResult, Findings, Outcome
from cycle_report import CycleFacts, MonitoredBatch
from model_registry import ModelRegistry
from pipeline_settings import Settings, StoppedBySignal
from training_module import Training, load_training_module

if TYPE_CHECKING:
    import pandas as pd

LONGEST_HISTORY = 500
"""Monitored batches that a page and the trend in MLflow go back to."""
MONITORING_METRICS = {"mean_error", "mean_error_low", "mean_error_high", "recordings"}
KEPT_REPORTS = 30
QUIET_NIGHT = "quiet_night.html"

logger = logging.getLogger("pipeline")


def monitored_batches(
    registry: ModelRegistry, left_out: Mapping[str, str] | None = None
) -> tuple[MonitoredBatch, ...]:
    """Return how production did on the last batches, the oldest first.

    Parameters
    ----------
    registry
        Has the runs. Of a batch that was monitored again with the same production, the last one.
    left_out
        Tags with the batch and the champion that are about to be monitored, perhaps again.
    """
    found: dict[tuple[str, str], MonitoredBatch] = {}
    for run in reversed(registry.runs(model_registry.MONITORING_RUN, limit=LONGEST_HISTORY)):
        tags, metrics = run.data.tags, run.data.metrics
        if not metrics.keys() >= MONITORING_METRICS:
            continue
        found.pop(_question(tags), None)
        found[_question(tags)] = MonitoredBatch(
            at=gts_folder.as_local_time(run.info.start_time / 1000),
            version=tags.get(model_registry.TAG_CHAMPION, ""),
            n_recordings=int(metrics["recordings"]),
            mean_error=metrics["mean_error"],
            interval_low=metrics["mean_error_low"],
            interval_high=metrics["mean_error_high"],
            outcome=tags.get(model_registry.TAG_OUTCOME, "interrupted"),
        )
    found.pop(_question(left_out or {}), None)
    return tuple(found.values())


def _question(tags: Mapping[str, str]) -> tuple[str, str]:
    """Return which batch was held against which production."""
    return tags.get(model_registry.TAG_BATCH, ""), tags.get(model_registry.TAG_CHAMPION, "")


def conclude(findings: Findings, result: CycleResult) -> None:
    """Write the page of a cycle whose verdict is final, then note how the cycle ended.

    Parameters
    ----------
    findings
        Of the cycle.
    result
        How it ended.

    Notes
    -----
    A page that cannot be made is only logged. It comes first so that a store which fails from
    here on is noticed by the note that must be there.
    """
    if not findings.monitoring_run:
        return
    findings.result = result
    with _only_logged():
        facts = _facts(findings, result.outcome.value, result.message)
        figures, content = _make_page(findings.settings, facts)
        _attach_page(findings, figures, content)
    cycle_records.record_outcome(findings.registry, findings.monitoring_run, result)


@contextlib.contextmanager
def failure_explained(findings: Findings) -> Iterator[None]:
    """Leave a page if the cycle fails between monitoring and its verdict; the error goes on.

    Parameters
    ----------
    findings
        Of the cycle.
    """
    try:
        yield
    except StoppedBySignal:
        raise
    except Exception as error:
        if findings.monitoring_run and findings.result is None:
            with _only_logged():
                known = model_registry.as_pipeline_error(error, findings.settings) or error
                message = f"the cycle failed: {str(known) or type(known).__name__}"
                _make_page(findings.settings, _facts(findings, "failed", message))
        raise


def report_rollback(
    settings: Settings, registry: ModelRegistry, run_id: str, number: int, message: str
) -> None:
    """Write the page of a rollback; one that cannot be made is only logged.

    Parameters
    ----------
    settings
        Of this home.
    registry
        Has the runs.
    run_id
        The run `ModelPromotion` of the rollback.
    number
        The version that is production now.
    message
        What was done, in one line.
    """
    with _only_logged():
        training = load_training_module(settings)
        facts = CycleFacts(
            model_name=settings.model_name,
            at=gts_folder.now(),
            outcome="rolled_back",
            message=message,
            production=str(number),
            threshold=settings.threshold,
            history=monitored_batches(registry),
            rejected=gts_folder.rejected_files(settings),
            lineage=_lineage(settings, training, {}),
        )
        _, content = _make_page(settings, _in_words_of(training, facts))
        registry.log_file(content, model_registry.REPORT_FILE, run_id)


def note_quiet_night(settings: Settings, result: CycleResult) -> None:
    """Write the page of a night on which nothing was judged; it replaces the one before.

    Parameters
    ----------
    settings
        Of this home.
    result
        How the cycle ended; a cycle that judged something has a page of its own.
    """
    if result.outcome not in (Outcome.WAITING, Outcome.ALREADY_JUDGED):
        return
    with _only_logged():
        facts = CycleFacts(
            model_name=settings.model_name,
            at=gts_folder.now(),
            outcome=result.outcome.value,
            message=result.message,
            production=str(result.facts.get("production", "")),
            threshold=settings.threshold,
            rejected=gts_folder.rejected_files(settings),
        )
        settings.reports.mkdir(exist_ok=True)
        content = cycle_report.page(facts, {}).encode()
        gts_folder.write_durably(settings.reports / QUIET_NIGHT, content)


@contextlib.contextmanager
def _only_logged() -> Iterator[None]:
    """Log in one line why there is no page: nothing depends on it."""
    try:
        yield
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        logger.warning(
            "the page of this cycle is missing or not in MLflow; all else went on: %s: %s (%s:%s)",
            type(error).__name__,
            cycle_report.visible(error)[:300],
            Path(place.filename).name,
            place.lineno,
        )


def _make_page(settings: Settings, facts: CycleFacts) -> tuple[Mapping[str, Any], bytes]:
    """Keep a page in reports/, together with those before it; return its charts and itself."""
    figures = cycle_report.draw(facts)
    content = cycle_report.page(facts, figures).encode()
    settings.reports.mkdir(exist_ok=True)
    name = f"{facts.at[:19].replace(':', '-')}_{facts.outcome}.html"
    path = settings.reports / gts_folder.free_name(name, settings.reports)
    gts_folder.write_durably(path, content)
    kept = sorted(settings.reports.glob("????-??-??T*.html"), key=lambda page: page.stem)
    for old in kept[:-KEPT_REPORTS]:
        old.unlink()
    logger.info("report: %s", path)
    return figures, content


def _attach_page(findings: Findings, figures: Mapping[str, Any], content: bytes) -> None:
    """Give MLflow the page and the charts, each with the run that a person would look at."""
    registry, run_id = findings.registry, findings.monitoring_run
    registry.log_file(content, model_registry.REPORT_FILE, run_id)
    training_run = ""
    if findings.challenger and findings.challenger.version:
        training_run = findings.challenger.version.run_id
    for name, run in (
        ("error_over_time", run_id),
        ("true_and_predicted", training_run or run_id),
        ("importance", training_run),
    ):
        if name in figures:
            registry.log_figure(run, figures[name], f"{name}.png")


def _facts(findings: Findings, outcome: str, message: str) -> CycleFacts:
    """Gather what the page of a cycle tells; asks no store, which may be what failed."""
    settings, champion, batch = findings.settings, findings.champion, findings.batch
    monitoring, challenger, verdict = findings.monitoring, findings.challenger, findings.verdict
    if batch is None or monitoring is None:
        raise ValueError("nothing was monitored")
    number = challenger.version.number if challenger and challenger.version else None
    production = number if outcome == "promoted" else champion.version.number
    if findings.lost_probation:
        verdict = findings.lost_probation.verdict
        number = findings.lost_probation.version.number
        production = number if outcome == "rolled_back" else production
    now = gts_folder.now()
    this_batch = MonitoredBatch(
        at=now,
        version=str(champion.version.number),
        n_recordings=len(batch.files),
        mean_error=monitoring.mean_error,
        interval_low=monitoring.interval_low,
        interval_high=monitoring.interval_high,
        outcome=outcome,
    )
    facts = CycleFacts(
        model_name=settings.model_name,
        at=now,
        outcome=outcome,
        message=message,
        production=str(production),
        threshold=settings.threshold,
        champion=str(champion.version.number),
        challenger=str(number or ""),
        history=(*findings.history, this_batch),
        recordings=findings.recordings(),
        verdict=verdict,
        data_quality=batch.data_quality,
        rejected=gts_folder.rejected_files(settings),
        files={
            "New recordings": batch.manifest.files,
            f"Version {champion.version.number} was trained on": champion.manifest.files,
        },
        lineage=_lineage(settings, findings.training, _versions(findings)),
    )
    facts = _in_words_of(findings.training, facts)
    return replace(facts, **_facts_of_features(findings, batch))


def _in_words_of(training: Training, facts: CycleFacts) -> CycleFacts:
    """Let the training module say what the metric is called, and what it counts."""
    return replace(
        facts,
        error_name=training.error_name,
        unit=training.error_unit,
        counted_things=training.counted_things,
        described_things=training.described_things,
        features_in_words=training.features_in_words,
    )


def _facts_of_features(findings: Findings, batch: Batch) -> dict[str, Any]:
    """Return what changed in the data, and what the challenger relies on."""
    import pandas as pd

    facts: dict[str, Any] = {}
    describe = findings.training.feature_table
    if describe is not None:
        old = _known_features(findings, describe)
        if old is not None:
            new = pd.concat([describe(one.rows) for one in batch.files])
            facts["shifts"] = cycle_report.feature_shifts(old, new)
    if findings.challenger is not None and findings.challenger.result.importance is not None:
        table = findings.challenger.result.importance.sort_values("mean", ascending=False)
        facts["importances"] = [
            cycle_report.FeatureImportance(str(feature), float(mean), float(deviation))
            for feature, mean, deviation in table.itertuples()
        ]
    return facts


def _known_features(
    findings: Findings, describe: Callable[[pd.DataFrame], pd.DataFrame]
) -> pd.DataFrame | None:
    """Return the features that production was trained on, as far as the files are there."""
    import pandas as pd

    settings, trained_on = findings.settings, findings.champion.manifest.names
    features = findings.challenger.result.features if findings.challenger else None
    if findings.challenger is not None and features is not None:
        names = findings.challenger.manifest.names
        known = features[features.index.isin([names[one] for one in trained_on if one in names])]
        return known if len(known) else None
    names = gts_folder.hashes_in(settings.used_gts)
    tables = [
        describe(findings.training.read(settings.used_gts / names[sha256], settings.max_file_mb)[0])
        for sha256 in trained_on
        if sha256 in names
    ]
    return pd.concat(tables) if tables else None


def _versions(findings: Findings) -> dict[str, object]:
    champion, challenger = findings.champion.version, findings.challenger
    versions: dict[str, object] = {
        f"version {champion.number} (production before)": f"run {champion.run_id}"
    }
    if challenger and challenger.version:
        made = challenger.version
        versions[f"version {made.number} (challenger)"] = f"run {made.run_id}"
    return {**versions, "run ModelMonitoring": findings.monitoring_run}


def _lineage(
    settings: Settings, training: Training, versions: Mapping[str, object]
) -> dict[str, Any]:
    packages = dict(one.split("==") for one in model_registry.requirements(training))
    scripts = sorted({*Path(__file__).resolve().parent.glob("*.py"), training.path})
    return {
        "Versions and runs": versions,
        "Settings of the verdict": settings.of_the_verdict(),
        "Packages": {"python": platform.python_version(), **packages},
        "Code, SHA-256": {path.name: gts_folder.hash_file(path) for path in scripts},
    }
