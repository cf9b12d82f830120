"""What a page tells, as values: of a cycle, a failure, a rollback or a quiet night.

Whatever takes work or may be damaged is gathered by itself: what fails is noted with its reason and
costs the page one section. Nothing heavy is imported here.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retraining import ground_truth
from retraining.cross_validation import Reader
from retraining.cycle import Challenger, Cycle, CycleResult, RecordingResult, threshold_of
from retraining.errors import PipelineError
from retraining.files import hash_file
from retraining.ground_truth import Refusal
from retraining.inventory import Inventory, take_inventory
from retraining.journal import Journal
from retraining.kept_tables import tables_of
from retraining.outcome import Outcome
from retraining.registry.facts import OLDER_UNIT, MonitoredBatch, TrainingFile
from retraining.registry.stored_models import requirements
from retraining.settings import SCRIPTS, Settings
from retraining.text import as_local_time, now, printable
from retraining.training import Training

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from retraining.gate import Verdict

MOST_CATEGORIES = 6
"""Texts are compared by their most frequent values; rarer ones count together."""
OTHER_KNOWN, OTHER_NEW = "other known ones", "other new ones"
NUMBERS = {"integer", "floating", "mixed-integer-float", "decimal"}
"""What pandas calls a column of numbers, whatever type it is kept in."""
LONGEST_REASON = 300


# --- Values ---


@dataclass(frozen=True)
class Share:
    """How many of 1 example have a value: of those trained on, and of the new ones."""

    value: str
    trained_on: float
    new: float


@dataclass(frozen=True)
class FeatureShift:
    """How far a feature of the new examples is from what production was trained on.

    Parameters
    ----------
    statistic
        Distance of the two distributions, from 0 (alike) to 1 (apart).
    p_value
        Of examples that are alike, if they were independent.
    trained_on, new
        Known values, one per example: finite numbers, or texts.
    missing
        Share of examples without such a value: of those trained on, and of the new ones.
    categories
        Of texts, the most frequent first; empty for numbers.
    """

    feature: str
    statistic: float
    p_value: float
    trained_on: np.ndarray
    new: np.ndarray
    missing: tuple[float, float] = (0.0, 0.0)
    categories: tuple[Share, ...] = ()


@dataclass(frozen=True)
class ChangedData:
    """The new examples beside those that production was trained on.

    Parameters
    ----------
    shifts
        As `feature_shifts` returns them.
    lost
        Features that production learnt from and that no new example knows.
    n_trained_on, n_new
        How many examples there are.
    """

    shifts: Sequence[FeatureShift] = ()
    lost: Sequence[str] = ()
    n_trained_on: int = 0
    n_new: int = 0


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
    )
    gathered = _gather(
        rejected=lambda: ground_truth.rejected_files(settings),
        inventory=lambda: inventory_of(cycle),
        changed=lambda: changed_data(cycle),
        importances=lambda: importances(cycle),
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
    import pandas as pd

    training, challenger = cycle.training, cycle.challenger
    learnt = cycle.champion.manifest.names
    if challenger:
        old = [_of_challenger(challenger, learnt)]
        new = [_of_challenger(challenger, cycle.batch.hashes.values())]
    else:
        old = _read_again(cycle, learnt)
        new = [training.examples(one.rows) for one in cycle.batch.files]
    if not sum(len(each) for each in old):
        return ChangedData()
    trained_on, found = (_features(training, pd.concat(each)) for each in (old, new))
    return ChangedData(
        shifts=feature_shifts(trained_on, found),
        lost=lost_features(trained_on, found),
        n_trained_on=len(trained_on),
        n_new=len(found),
    )


def _of_challenger(challenger: Challenger, hashes: Collection[str]) -> pd.DataFrame:
    """Return the examples of recordings from what the challenger was trained on."""
    names, examples = challenger.manifest.names, challenger.result.examples
    return examples[examples.index.isin([names[one] for one in hashes if one in names])]


def _read_again(cycle: Cycle, hashes: Collection[str]) -> list[pd.DataFrame]:
    """Return the examples of recordings that production learnt, as far as the files are there."""
    settings, training = cycle.settings, cycle.training
    tables = tables_of(settings, training.maker(), read_only=True)
    reader = Reader(training, tables, settings.max_file_mb)
    names = ground_truth.hashes_in(settings.used_gts)
    paths = [settings.used_gts / names[one] for one in hashes if one in names]
    return [reader.recording(path).examples for path in paths]


def _features(training: Training, examples: pd.DataFrame) -> pd.DataFrame:
    """Return what a model may look at: never the truth, also where examples are whole rows."""
    features = training.features(examples)
    if training.said("examples") is None:
        features = features[training.columns_of(features)]
    return features


def lost_features(trained_on: pd.DataFrame, new: pd.DataFrame) -> tuple[str, ...]:
    """Return the features that have values in the one table and none in the other."""
    return tuple(
        str(feature)
        for feature in trained_on.columns
        if trained_on[feature].notna().any()
        and (feature not in new or not new[feature].notna().any())
    )


def feature_shifts(trained_on: pd.DataFrame, new: pd.DataFrame) -> tuple[FeatureShift, ...]:
    """Compare the distribution of each feature, the most shifted one first.

    Parameters
    ----------
    trained_on, new
        One row per example; columns that only one of them has are left out, and those without a
        known value in one of them.

    Notes
    -----
    Of numbers the distance is the statistic of the two-sample Kolmogorov-Smirnov test: the largest
    vertical distance of the two cumulative distributions. Of texts (and whatever else is no
    number) it is the total variation: half the sum of the differences of all shares, that is the
    share of examples that would have to take another value; its p-value is that of the chi-squared
    test. Rare values count together, those that production has seen apart from those that it has
    not: many rare values would be far apart by chance alone. The p-values take examples as
    independent; those of one recording are not, so they flatter and serve for ranking at most.

    References
    ----------
    N. V. Smirnov, "Table for estimating the goodness of fit of empirical distributions", Annals of
    Mathematical Statistics 19, 1948.

    A. L. Gibbs and F. E. Su, "On choosing and bounding probability metrics", International
    Statistical Review 70, 2002.
    """
    shifts = [
        _shift(str(feature), trained_on[feature], new[feature])
        for feature in new.columns
        if feature in trained_on
    ]
    found = [shift for shift in shifts if shift is not None]
    return tuple(sorted(found, key=lambda one: (-one.statistic, one.feature)))


def _shift(feature: str, trained_on: pd.Series[Any], new: pd.Series[Any]) -> FeatureShift | None:
    """Compare one feature; None where one side knows no value."""
    numbers = [_as_numbers(values) for values in (trained_on, new)]
    if any(each is None for each in numbers):
        compare = _category_shift
        known = [values.dropna().astype(object).map(printable) for values in (trained_on, new)]
    else:
        compare, known = _number_shift, [each for each in numbers if each is not None]
    if not all(len(each) for each in known):
        return None
    old, found = known
    missing = (1 - len(old) / len(trained_on), 1 - len(found) / len(new))
    return dataclasses.replace(compare(feature, old, found), missing=missing)


def _as_numbers(values: pd.Series[Any]) -> pd.Series[Any] | None:
    """Return the finite values; None if they are no numbers. Without a value, they may be."""
    import numpy as np
    import pandas as pd

    known = values.dropna()
    if len(known) and pd.api.types.infer_dtype(known) not in NUMBERS:
        return None
    numbers = known.astype(float)
    return numbers[np.isfinite(numbers)]


def _number_shift(feature: str, old: pd.Series[Any], new: pd.Series[Any]) -> FeatureShift:
    from scipy import stats

    samples = old.to_numpy(), new.to_numpy()
    test = stats.ks_2samp(*samples, method="asymp")
    return FeatureShift(feature, float(test.statistic), float(test.pvalue), *samples)


def _category_shift(feature: str, old: pd.Series[Any], new: pd.Series[Any]) -> FeatureShift:
    import pandas as pd
    from scipy import stats

    counts = pd.DataFrame([each.value_counts() for each in (old, new)], index=[0, 1]).fillna(0).T
    shares = counts / counts.sum()
    # A small batch counts as much as all that is known; the name settles ties.
    order = shares.sum(axis=1).sort_index().sort_values(ascending=False, kind="stable").index
    shown, rare = order[:MOST_CATEGORIES], counts.loc[order[MOST_CATEGORIES:]]
    together = counts.loc[shown]
    for name, part in ((OTHER_KNOWN, rare[rare[0] > 0]), (OTHER_NEW, rare[rare[0] == 0])):
        if len(part):
            together = pd.concat([together, part.sum().rename(name).to_frame().T])
    shares = together / together.sum()
    return FeatureShift(
        feature,
        statistic=min(float((shares[0] - shares[1]).abs().sum() / 2), 1.0),
        p_value=float(stats.chi2_contingency(together.T.to_numpy()).pvalue),
        trained_on=old.to_numpy(),
        new=new.to_numpy(),
        categories=tuple(Share(str(name), *of_1) for name, *of_1 in shares.itertuples()),
    )
