"""What a page tells, as values: of a cycle, a failure, a rollback or a quiet night.

Whatever takes work or may be damaged is gathered by itself: what fails is noted with its reason and
costs the page one section. Nothing heavy is imported here.
"""

from __future__ import annotations

import math
import platform
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retraining import ground_truth
from retraining.cross_validation import Reader, Recording
from retraining.cycle import Challenger, Cycle, CycleResult, RecordingResult, threshold_of
from retraining.errors import PipelineError
from retraining.estimates import Estimated, trend
from retraining.files import hash_file
from retraining.ground_truth import Refusal
from retraining.inventory import Inventory, take_inventory
from retraining.journal import Journal
from retraining.kept_tables import tables_of
from retraining.outcome import Outcome
from retraining.registry.facts import OLDER_UNIT, MonitoredBatch, TrainingFile
from retraining.registry.stored_models import requirements
from retraining.report import drift
from retraining.report.drift import ChangedData
from retraining.settings import SCRIPTS, Settings
from retraining.text import as_local_time, now, printable
from retraining.training import Training

if TYPE_CHECKING:
    import pandas as pd

    from retraining.gate import Verdict

LONGEST_REASON, SHOWN_DOUBTS = 300, 20


# --- Values ---


@dataclass(frozen=True)
class FeatureImportance:
    """What more is wrong without a feature: mean and standard deviation over the folds."""

    feature: str
    mean: float
    deviation: float


@dataclass(frozen=True)
class PageFacts:
    """Everything that a page tells; what is empty or None has no section.

    Parameters
    ----------
    at
        When it was, ISO 8601.
    outcome, message
        How it ended, as a value and in the sentence of the terminal.
    production
        The production version now.
    training
        None on a quiet night, which loads no module.
    cycle
        None where nothing was monitored.
    history
        Monitored batches, the oldest first; the last one is this cycle's.
    rejected
        Files that wait for a person.
    notes
        What else became of the files in new_gts/.
    inventory
        How used_gts/ differs from what production learnt.
    importances
        The most important one first.
    estimates
        Of the production that was judged, on recordings that nobody had checked, the oldest first.
    doubts
        Labels that models of this training contradict which never saw them, the surest first.
    lineage
        Title -> (name -> version, hash or value).
    missing
        Name of a fact that could not be gathered -> why.
    """

    settings: Settings
    at: str
    outcome: Outcome
    message: str
    production: str
    training: Training | None = None
    cycle: Cycle | None = None
    history: Sequence[MonitoredBatch] = ()
    rejected: Sequence[Refusal] = ()
    notes: Sequence[str] = ()
    inventory: Inventory = Inventory()
    changed: ChangedData = ChangedData()
    importances: Sequence[FeatureImportance] = ()
    estimates: Sequence[Estimated] = ()
    doubts: Sequence[Mapping[str, Any]] = ()
    lineage: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    missing: Mapping[str, Exception] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """Of all errors."""
        return str(self.training.error_unit) if self.training else OLDER_UNIT

    @property
    def error_name(self) -> str:
        """What the module calls its error."""
        return str(self.training.error_name) if self.training else "error"

    @property
    def counted_things(self) -> str:
        """What the error counts, in the plural; empty if nothing is counted."""
        return str(self.training.counted_things) if self.training else ""

    @property
    def described_things(self) -> str:
        """What an example is, in the plural."""
        return str(self.training.described_things) if self.training else "rows"

    @property
    def features_in_words(self) -> str:
        """What the features have in common, such as their units."""
        return str(self.training.features_in_words) if self.training else ""

    @property
    def threshold(self) -> float:
        """Largest mean error of a healthy model; NaN where no module says it."""
        return threshold_of(self.settings, self.training) if self.training else math.nan

    @property
    def champion(self) -> str:
        """The version that was production when the cycle began."""
        return str(self.cycle.champion.number) if self.cycle else ""

    @property
    def rival(self) -> str:
        """The version that it was compared with, in words."""
        rival = self.cycle.rival if self.cycle else None
        return f"version {rival.number}" if rival else "the challenger"

    @property
    def verdict(self) -> Verdict | None:
        """What decided, if two models were compared."""
        return self.cycle.final_verdict if self.cycle else None

    @property
    def still_above(self) -> float | None:
        """The threshold, if a version was promoted that is above it as well."""
        result = self.cycle.result if self.cycle else None
        verdict = result.facts.get("verdict") if result else None
        return verdict["still_above"] if verdict else None

    @property
    def recordings(self) -> tuple[RecordingResult, ...]:
        """The batch, as the models count it."""
        return self.cycle.recordings() if self.cycle else ()

    @property
    def label_has_decimals(self) -> bool:
        """Whether examples are predicted more or less closely, rather than rightly or wrongly."""
        if self.cycle is None or self.cycle.challenger is None:
            return False
        examples, label = self.cycle.challenger.result.examples, self.cycle.training.label_column
        return label in examples and examples[label].to_numpy().dtype.kind == "f"

    @property
    def files(self) -> dict[str, Sequence[TrainingFile]]:
        """Title -> the recordings of that group."""
        if self.cycle is None:
            return {}
        champion = self.cycle.champion
        return {
            "New recordings": self.cycle.batch.manifest.files,
            f"Version {champion.number} was trained on": champion.manifest.files,
        }


# --- Gathering ---


def of_cycle(cycle: Cycle) -> PageFacts:
    """Gather what the page of a cycle tells whose result is there."""
    if cycle.result is None:
        raise ValueError("the cycle has not come to its end")
    result = cycle.result
    production = result.facts.get("production", cycle.champion.number)
    return _of_monitored(cycle, result.outcome, result.message, str(production))


def of_failure(cycle: Cycle, message: str) -> PageFacts:
    """Gather what the page of a failed cycle tells; asks no store, which may be what failed."""
    return _of_monitored(cycle, Outcome.FAILED, message, str(cycle.champion.number))


def _of_monitored(cycle: Cycle, outcome: Outcome, message: str, production: str) -> PageFacts:
    monitoring, settings, moment = cycle.monitoring, cycle.settings, time.time()
    if monitoring is None:
        raise ValueError("nothing was monitored")
    this_batch = MonitoredBatch(
        at_ms=int(1000 * moment),
        run_id=cycle.monitoring_run,
        version=str(cycle.champion.number),
        batch=cycle.batch.fingerprint,
        n_recordings=len(cycle.batch.files),
        mean_error=monitoring.mean_error,
        interval_low=monitoring.interval_low,
        interval_high=monitoring.interval_high,
        unit=cycle.unit,
        threshold=cycle.threshold,
        outcome=outcome.value,
        n_decided=len(cycle.decided.files),
    )
    gathered = _gather(
        rejected=lambda: ground_truth.rejected_files(settings),
        inventory=lambda: inventory_of(cycle),
        changed=lambda: changed_data(cycle),
        importances=lambda: importances(cycle),
        estimates=lambda: estimates(cycle),
        doubts=lambda: doubts(cycle),
        lineage=lambda: lineage(settings, cycle.training, cycle),
    )
    return PageFacts(
        settings=settings,
        at=as_local_time(moment),
        outcome=outcome,
        message=message,
        production=production,
        training=cycle.training,
        cycle=cycle,
        history=(*cycle.history, this_batch),
        notes=cycle.batch.notes,
        **gathered,
    )


def inventory_of(cycle: Cycle) -> Inventory:
    """Compare used_gts/ with what production learnt; a version promoted now learnt all of it."""
    if cycle.verdict and cycle.verdict.promote:
        return Inventory()
    memory = Journal(cycle.settings.home).read()
    return take_inventory(cycle.settings, cycle.champion.manifest, memory)


def of_rollback(
    settings: Settings,
    training: Training,
    history: Callable[[], Sequence[MonitoredBatch]],
    production: int,
    message: str,
) -> PageFacts:
    """Gather what the page of a rollback by hand tells."""
    return PageFacts(
        settings=settings,
        at=now(),
        outcome=Outcome.ROLLED_BACK,
        message=message,
        production=str(production),
        training=training,
        **_gather(
            history=history,
            rejected=lambda: ground_truth.rejected_files(settings),
            lineage=lambda: lineage(settings, training),
        ),
    )


def of_quiet_night(settings: Settings, result: CycleResult) -> PageFacts:
    """Gather what the page of a night tells on which nothing was judged."""
    return PageFacts(
        settings=settings,
        at=now(),
        outcome=result.outcome,
        message=result.message,
        production=str(result.facts.get("production", "")),
        notes=result.notes,
        **_gather(rejected=lambda: ground_truth.rejected_files(settings)),
    )


def _gather(**facts: Callable[[], Any]) -> dict[str, Any]:
    """Return name -> fact, and under `missing` why others are not among them."""
    gathered: dict[str, Any] = {}
    missing: dict[str, Exception] = {}
    for name, get in facts.items():
        try:
            gathered[name] = get()
        except Exception as error:
            missing[name] = error
    return {**gathered, "missing": missing}


def why(error: Exception) -> str:
    """Say what failed and, of a bug, where: in one line."""
    said = printable(error, LONGEST_REASON)
    if isinstance(error, PipelineError):
        return said
    places = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({Path(place.filename).name}:{place.lineno})" for place in places)
    return f"{type(error).__name__}: {said}{where}"


def estimates(cycle: Cycle) -> Sequence[Estimated]:
    """Return what was estimated of production before labels came."""
    version, memory = cycle.champion.version, Journal(cycle.settings.home).read()
    return trend(memory, cycle.settings.model_name, version.number, version.run_id)


def doubts(cycle: Cycle) -> Sequence[Mapping[str, Any]]:
    """Return the labels that the models of this training contradict most."""
    table = cycle.challenger.result.doubts if cycle.challenger else None
    if table is None:
        return []
    from retraining.calibration import as_records

    return as_records(table.head(SHOWN_DOUBTS), 4)


def importances(cycle: Cycle) -> tuple[FeatureImportance, ...]:
    """Return what the challenger relies on, the most important feature first."""
    table = cycle.challenger.result.importance if cycle.challenger else None
    if table is None:
        return ()
    return tuple(
        FeatureImportance(str(feature), float(mean), float(deviation))
        for feature, mean, deviation in table.sort_values("mean", ascending=False).itertuples()
    )


def lineage(
    settings: Settings, training: Training, cycle: Cycle | None = None
) -> dict[str, dict[str, object]]:
    """Return what everything was made of."""
    threshold = threshold_of(settings, training)
    packages = dict(one.split("==", 1) for one in requirements(training))
    package = Path(__file__).resolve().parents[1]
    scripts = [*SCRIPTS.glob("*.py"), *package.rglob("*.py"), *package.rglob("*.html")]
    code = {path.relative_to(SCRIPTS).as_posix(): hash_file(path) for path in sorted(scripts)}
    return {
        "Versions and runs": _versions(cycle) if cycle else {},
        "Settings of the verdict": dict(settings.of_the_verdict(threshold)),
        "Packages": {"python": platform.python_version(), **packages},
        "Code, SHA-256": {**code, training.path.name: training.code_sha256},
    }


def _versions(cycle: Cycle) -> dict[str, object]:
    champion, challenger = cycle.champion.version, cycle.challenger
    versions = {f"version {champion.number} (production before)": f"run {champion.run_id}"}
    if challenger and challenger.version:
        made = challenger.version
        versions[f"version {made.number} (challenger)"] = f"run {made.run_id}"
    return {**versions, "run ModelMonitoring": cycle.monitoring_run}


# --- What changed in the data ---


def changed_data(cycle: Cycle) -> ChangedData:
    """Compare the examples of the batch with those that production was trained on."""
    training, challenger = cycle.training, cycle.challenger
    learnt = cycle.champion.manifest.names
    if challenger:
        sessions = challenger.result.sessions
        old = _of_challenger(challenger, learnt)
        new = _of_challenger(challenger, cycle.batch.hashes.values())
    else:
        known = _read_again(cycle, learnt)
        sessions = {**cycle.batch.sessions, **{one.name: one.session for one in known}}
        old = _by_recording({one.name: one.examples for one in known})
        new = _by_recording({one.name: training.examples(one.rows) for one in cycle.batch.files})
    if not len(old):
        return ChangedData()
    trained_on, found = _features(training, old), _features(training, new)
    return drift.compare_examples(trained_on, found, sessions)


def _of_challenger(challenger: Challenger, hashes: Collection[str]) -> pd.DataFrame:
    """Return the examples of recordings from what the challenger was trained on."""
    names, examples = challenger.manifest.names, challenger.result.examples
    return examples[examples.index.isin([names[one] for one in hashes if one in names])]


def _read_again(cycle: Cycle, hashes: Collection[str]) -> list[Recording]:
    """Return the recordings that production learnt, as far as the files are there."""
    settings, training = cycle.settings, cycle.training
    tables = tables_of(settings, training.maker(), read_only=True)
    reader = Reader(training, tables)
    names = ground_truth.hashes_in(settings.used_gts)
    paths = [settings.used_gts / names[one] for one in hashes if one in names]
    return [reader.recording(path) for path in paths]


def _by_recording(examples: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return all examples one below the other; the index is the recording."""
    import pandas as pd

    tables = [one.set_axis([name] * len(one)) for name, one in examples.items()]
    return pd.concat(tables) if tables else pd.DataFrame()


def _features(training: Training, examples: pd.DataFrame) -> pd.DataFrame:
    """Return what a model may look at: never the truth, also where examples are whole rows."""
    features = training.features(examples)
    if training.said("examples") is None:
        features = features[training.columns_of(features)]
    return features
