"""Every figure of what is told before labels come, measured anew.

Seasons, flipped labels and corrupted files on the real recordings, with the product's classifier;
coverage, lives and replays on synthetic ones (`graded_seasons`), with a small forest.

Usage::

    python tests/tools/before_labels.py [--only SECTION ...] [--jobs 2] [--errors-allowed N]
        [--seeds 5] [--calibrations 60] [--lives 200] [--replays 100] [--report FILE]

Prints one table per section, and ends with status 1 if a goal is missed by more than so many
standard errors. What needs the real recordings is left out, visibly, where they are not there.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "tools")]

import numpy as np
import pandas as pd
from conftest import SHARED
from findings import Finding, Section, share, write_sections
from graded_seasons import OLD, described, module, productions, told
from joblib import Parallel, delayed
from life_simulation import Figure
from scipy import stats
from threadpoolctl import threadpool_limits
from triage_replays import (
    ALONE,
    AT_RANDOM,
    ORDERS,
    TRIAGE,
    WIDE,
    Replayed,
    Rules,
    replay_all,
    replay_real,
)
from unlabelled_lives import (
    CONFIDENCES,
    HARD,
    HEALTHY,
    HEALTHY_HARD,
    IN_PART,
    MODERATE,
    MODERATE_OF_MANY,
    NIGHTS,
    STRONG,
    WORLDS,
    Lived,
    World,
    live_all,
)

import train_classification_model as stems
from retraining.calibration import Calibration, Estimate
from retraining.cross_validation import Resources, train
from retraining.estimates import Estimator
from retraining.training import COUNT_SPREAD, ERROR, PREDICTED_COUNT, TRUE_COUNT, TrainedModel

RECORDINGS = SHARED / "gts"
LAST_OF_THE_OLDER_SEASON, N_FOLDS, FIRST_SEED = 22, 5, 42
FLIPPED = 33
SURE = 0.9
LEARNT, HELD_OUT = 30, 25
"""Recordings of a synthetic training, and those that it is tried on."""


# --- Real recordings ---


def real_recordings() -> tuple[list[Path], list[Path]]:
    """Return those of the older season, and of the newer one."""
    paths = sorted(RECORDINGS.glob("*.csv"), key=lambda path: int(path.stem))
    is_old = [int(path.stem) <= LAST_OF_THE_OLDER_SEASON for path in paths]
    return (
        [path for path, old in zip(paths, is_old, strict=True) if old],
        [path for path, old in zip(paths, is_old, strict=True) if not old],
    )


def trained_on(paths: Sequence[Path], seed: int) -> TrainedModel:
    """Train as the pipeline does, in this process."""
    os.environ["TQDM_DISABLE"] = "1"
    resources = Resources(1)
    return train(module(), paths, n_folds=N_FOLDS, random_state=seed, resources=resources)[0]


def calibrated(trained: TrainedModel) -> Calibration:
    """Return the calibration of a training."""
    calibration = Calibration.of(trained, module())
    assert calibration is not None
    return calibration


def expected_of(trained: TrainedModel) -> pd.DataFrame:
    """Return what models expected that never saw the recordings."""
    assert trained.expected is not None
    return trained.expected


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the rank correlation."""
    return float(stats.spearmanr(one, other).statistic)


def is_covered(calibration: Calibration, count: float, spread: float, true: float) -> bool:
    """Say whether the interval of a count holds the true one."""
    interval = calibration.count_interval(count, spread)
    return interval is not None and interval[0] <= true <= interval[1]


@dataclasses.dataclass(frozen=True)
class NextSeason:
    """A model of the older season on the newer one, with one seed."""

    spearman: float
    estimate: Estimate
    truth: float
    covered: float
    out_of_fold: float
    of_all: float
    covered_of_all: float

    @classmethod
    def measured(cls, seed: int) -> NextSeason:
        """Train on the older season, and on both for the errors out of fold."""
        old, new = real_recordings()
        trained = trained_on(old, seed)
        calibration = calibrated(trained)
        estimator = Estimator(module(), trained.model, calibration)
        rows = [module().parse(path.read_bytes(), path.name) for path in new]
        found = [estimator.of(one, path.name, "") for one, path in zip(rows, new, strict=True)]
        errors = module().errors(trained.model, rows)
        expected = [float(one.expected or 0) for one in found]
        inside = [
            (one.low or 0) <= true <= (one.high or 0)
            for one, true in zip(found, errors[TRUE_COUNT], strict=True)
        ]
        whole = trained_on([*old, *new], seed)
        return cls(
            spearman=spearman(expected, errors[ERROR].tolist()),
            estimate=calibration.mean_error(expected),
            truth=float(errors[ERROR].mean()),
            covered=float(np.mean(inside)),
            out_of_fold=spearman(
                expected_of(whole)[ERROR].tolist(), whole.out_of_fold[ERROR].tolist()
            ),
            of_all=whole.mean_error,
            covered_of_all=_covered_without_itself(whole),
        )


def draw_next_season(path: Path) -> None:
    """Draw what is estimated of the newer real season beside its errors."""
    from matplotlib.figure import Figure as Drawing

    old, new = real_recordings()
    trained = trained_on(old, FIRST_SEED)
    estimator = Estimator(module(), trained.model, calibrated(trained))
    rows = [module().parse(one.read_bytes(), one.name) for one in new]
    errors = module().errors(trained.model, rows)[ERROR].to_numpy()
    found = [
        estimator.of(one, path.name, "").error or 0.0 for one, path in zip(rows, new, strict=True)
    ]
    figure = Drawing(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    largest = 1.08 * max(*errors, *found)
    axes.plot([0, largest], [0, largest], color="#8c959f", linestyle=(0, (4, 3)), linewidth=1)
    axes.scatter(found, errors, color="#b84f00")
    axes.axhline(errors.mean(), color="#b84f00", linewidth=0.8)
    axes.axvline(float(np.mean(found)), color="#59636e", linewidth=0.8)
    axes.set(
        xlabel=f"estimated error before labels, % (mean {np.mean(found):.1f})",
        ylabel=f"error when the labels came, % (mean {errors.mean():.1f})",
        xlim=(0, largest),
        ylim=(0, largest),
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def _covered_without_itself(trained: TrainedModel) -> float:
    """Return how many counts out of fold lie in the interval of a calibration by all others."""
    expected, errors = expected_of(trained), trained.out_of_fold
    found = []
    for name in expected.index:
        others = dataclasses.replace(
            trained,
            expected=expected.drop(index=name),
            out_of_fold=errors.drop(index=name),
            examples=trained.examples.drop(index=name),
        )
        one = expected.loc[name]
        count, spread, true = one[PREDICTED_COUNT], one[COUNT_SPREAD], errors[TRUE_COUNT][name]
        found.append(is_covered(calibrated(others), count, spread, true))
    return float(np.mean(found))


def seasons(options: argparse.Namespace) -> Section:
    """Measure estimates of the newer season, and out of fold."""
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    found = Parallel(options.jobs)(delayed(NextSeason.measured)(seed) for seed in seeds)
    first = found[0]

    def mean(name: str) -> Figure:
        return Figure.mean(np.array([getattr(one, name) for one in found]))

    estimates = np.array([one.estimate.mean for one in found])
    truths = np.array([one.truth for one in found])
    ends = np.array([[one.estimate.low, one.estimate.high] for one in found])
    inside = (ends[:, 0] <= truths) & (truths <= ends[:, 1])
    findings = [
        Finding("Spearman of estimate and error, newer season", mean("spearman"), least=0.7),
        Finding(f"the same with seed {FIRST_SEED} alone", Figure(first.spearman), least=0.7),
        Finding("estimated mean error", Figure.mean(estimates), unit=" %"),
        Finding("true mean error", Figure.mean(truths), unit=" %"),
        Finding("distance of the two, points", Figure.mean(np.abs(estimates - truths)), most=1.5),
        Finding(
            f"the same with seed {FIRST_SEED} alone",
            Figure(abs(estimates[0] - truths[0])),
            most=1.5,
        ),
        Finding("lower end of the 95 % interval of the mean", Figure.mean(ends[:, 0]), unit=" %"),
        Finding("upper end of the 95 % interval of the mean", Figure.mean(ends[:, 1]), unit=" %"),
        share("seeds whose interval holds the true mean", Figure.mean(inside)),
        Finding("Spearman out of fold, all recordings", mean("out_of_fold"), least=0.6),
        Finding("mean error out of fold, all recordings", mean("of_all"), unit=" %"),
        share(
            "counts in their 90 % interval, out of fold, calibrated by all others",
            mean("covered_of_all"),
        ),
        share("counts in their 90 % interval, newer season", mean("covered")),
    ]
    return Section(
        "Seasons",
        "The product's classifier learns the 18 older real recordings and estimates the 15 newer "
        f"ones, {options.seeds} seeds; and all 33 out of fold, {N_FOLDS} folds.",
        findings,
    )


# --- Flipped labels ---


def flips(options: argparse.Namespace) -> Section:
    """Measure how many of the labels that were flipped on purpose are doubted first."""
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    found = np.array(Parallel(options.jobs)(delayed(_found_flips)(seed) for seed in seeds))
    sure = np.array(Parallel(options.jobs)(delayed(_sure_doubts)(seed) for seed in seeds))
    return Section(
        "Flipped labels",
        f"{FLIPPED} counted tracks of the 33 real recordings, drawn at random, get the other "
        f"label; {options.seeds} seeds.",
        [
            Finding(f"among the first {FLIPPED}", Figure.mean(found[:, 0]), least=20, digits=1),
            Finding(f"among the first {2 * FLIPPED}", Figure.mean(found[:, 1]), digits=1),
            Finding(
                f"real labels contradicted at {SURE:g} or more, nothing flipped",
                Figure.mean(sure),
                digits=1,
            ),
        ],
    )


def _found_flips(seed: int) -> tuple[int, int]:
    paths = [path for season in real_recordings() for path in season]
    tables = [module().parse(path.read_bytes(), path.name) for path in paths]
    tracks = [
        (number, identity)
        for number, rows in enumerate(tables)
        for identity in rows.loc[rows["counted"], "object_id"].unique()
    ]
    drawn = np.random.default_rng(seed).choice(len(tracks), FLIPPED, replace=False)
    flipped = {(paths[tracks[at][0]].name, int(tracks[at][1])) for at in drawn}
    for at in drawn:
        number, identity = tracks[at]
        is_flipped = tables[number]["object_id"] == identity
        tables[number]["ground_truth"] ^= is_flipped.to_numpy()
    with tempfile.TemporaryDirectory() as folder:
        written = [Path(folder, path.name) for path in paths]
        for path, rows in zip(written, tables, strict=True):
            rows.drop(columns="file").to_csv(path, index=False)
        doubts = trained_on(written, seed).doubts
    assert doubts is not None
    hits = [
        (name, int(identity)) in flipped
        for name, identity in zip(doubts["file"], doubts["object_id"], strict=True)
    ]
    return sum(hits[:FLIPPED]), sum(hits[: 2 * FLIPPED])


def _sure_doubts(seed: int) -> int:
    trained = trained_on([path for season in real_recordings() for path in season], seed)
    assert trained.doubts is not None
    return int((trained.doubts["doubt"] >= SURE).sum())


# --- Coverage ---


def coverage(options: argparse.Namespace) -> Section:
    """Measure how often the interval of a count holds the true one."""
    trained = productions(OLD, options.calibrations, LEARNT, options.jobs)
    shares = []
    for seed, one in enumerate(trained):
        new = told(one.model, described(OLD, HELD_OUT, 2_000_000 + seed, 1))
        columns = new[[PREDICTED_COUNT, COUNT_SPREAD, TRUE_COUNT]].to_numpy()
        shares.append(np.mean([is_covered(one.calibration, *row) for row in columns]))
    n = options.calibrations * HELD_OUT
    return Section(
        "Coverage",
        f"{options.calibrations} synthetic trainings on {LEARNT} recordings each, and {HELD_OUT} "
        "held-out recordings of the same season for each. The real ones stand under Seasons.",
        [
            share(
                f"counts in their 90 % interval, {n:,} recordings",
                Figure.mean(np.array(shares)),
                least=0.87,
                most=0.93,
            )
        ],
    )


# --- Corrupted files ---


def _exchanged(rows: pd.DataFrame, _: pd.DataFrame) -> pd.DataFrame:
    return rows.rename(columns={"centroids_x": "centroids_y", "centroids_y": "centroids_x"})


def _turned(rows: pd.DataFrame, _: pd.DataFrame) -> pd.DataFrame:
    boxes = {"aspect_ratio": 1 / rows["aspect_ratio"].where(rows["aspect_ratio"] > 0)}
    return _exchanged(rows, rows).assign(**boxes)


def _without_areas(rows: pd.DataFrame, _: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(area=np.nan)


def _areas_of_zero(rows: pd.DataFrame, _: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(area=0.0)


def _one_track(rows: pd.DataFrame, _: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["object_id"] == rows.loc[rows["counted"], "object_id"].iloc[0]]


def _behind(rows: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    gap = 50
    frames = other["frames"] - other["frames"].min() + rows["frames"].max() + gap
    return _together(rows, other.assign(frames=frames))


def _one_below_the_other(rows: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([rows, other], ignore_index=True)


def _over(rows: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    frames = other["frames"] - other["frames"].min() + rows["frames"].min()
    return _together(rows, other.assign(frames=frames))


def _together(rows: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    objects = other["object_id"] - other["object_id"].min() + rows["object_id"].max() + 1
    return pd.concat([rows, other.assign(object_id=objects)], ignore_index=True)


def _over_in_order(rows: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    both = _over(rows, other)
    begins = both.groupby("object_id")["frames"].min().sort_values(kind="stable")
    numbers = pd.Series(np.arange(1, len(begins) + 1), index=begins.index)
    return both.assign(object_id=both["object_id"].map(numbers))


CORRUPTIONS: dict[str, tuple[Callable[[pd.DataFrame, pd.DataFrame], pd.DataFrame], float]] = {
    "x and y exchanged": (_exchanged, 1.0),
    "x and y exchanged, boxes turned": (_turned, 1.0),
    "areas missing": (_without_areas, 1.0),
    "areas 0": (_areas_of_zero, 1.0),
    "one track only": (_one_track, 1.0),
    "two files one below the other": (_one_below_the_other, 1.0),
    "two recordings behind one another": (_behind, 1.0),
    "two recordings over one another": (_over, 1.0),
    "two recordings over one another, numbered anew": (_over_in_order, 0.0),
}
"""What is done to a recording, and the share that must be told."""
CLEAN = "as they are (called unlike)"


def told_of(estimator: Estimator, recordings: Sequence[pd.DataFrame]) -> dict[str, list[bool]]:
    """Return how each kind of damage is told, and whether the clean recordings are called so."""
    found: dict[str, list[bool]] = {}
    for number, rows in enumerate(recordings):
        other = recordings[(number + 1) % len(recordings)]
        tries = {CLEAN: rows} | {name: make(rows, other) for name, (make, _) in CORRUPTIONS.items()}
        for name, table in tries.items():
            found.setdefault(name, []).append(_is_told(estimator, table))
    return found


def _is_told(estimator: Estimator, table: pd.DataFrame) -> bool:
    """Say whether a file is refused, or its recording called unlike anything learnt."""
    try:
        rows = module().parse_unlabelled(table.to_csv(index=False).encode(), "one.csv")
    except ValueError:
        return True
    return bool(estimator.of(rows, "one.csv", "").unlike)


def _real_corruptions(newer_is_learnt: bool) -> dict[str, list[bool]]:
    old, new = real_recordings()
    learnt, tried = (new, old) if newer_is_learnt else (old, new)
    trained = trained_on(learnt, FIRST_SEED)
    estimator = Estimator(module(), trained.model, calibrated(trained))
    rows = [module().parse(path.read_bytes(), path.name) for path in tried]
    return told_of(estimator, [one.drop(columns=["file", "ground_truth"]) for one in rows])


def _synthetic_corruptions(seed: int) -> dict[str, list[bool]]:
    (one,) = productions(OLD, 1, LEARNT)
    estimator = Estimator(module(), one.model, one.calibration)
    recordings = [OLD.draw((3_000_000 + seed, number)) for number in range(HELD_OUT)]
    return told_of(estimator, [rows.drop(columns="ground_truth") for rows in recordings])


def corrupted(options: argparse.Namespace) -> Section:
    """Measure which damaged files are told."""
    tries = [("synthetic", Parallel(options.jobs)(map(delayed(_synthetic_corruptions), range(2))))]
    if RECORDINGS.exists():
        by_season = Parallel(options.jobs)(map(delayed(_real_corruptions), (False, True)))
        tries.insert(0, ("real", by_season))
    findings = []
    for kind, parts in tries:
        for name in parts[0]:
            flags = np.array([flag for part in parts for flag in part[name]])
            least = CORRUPTIONS[name][1] if name in CORRUPTIONS else 0.0
            title = f"{kind}, {name}, of {len(flags)}"
            findings.append(share(title, Figure.mean(flags), least or -np.inf))
    return Section(
        "Corrupted files",
        "How many of the recordings that are damaged on purpose are refused or called unlike "
        "anything learnt. Each real season is tried with a model of the other one; the synthetic "
        "ones are of the season that was learnt. Two recordings are of one season; in a file they "
        "are numbered on, unless it is said.",
        findings,
    )


# --- Lives ---

MUST_ALARM, MAY_NOT_ALARM = (MODERATE, MODERATE_OF_MANY, STRONG), (HEALTHY, HEALTHY_HARD)
LEAST_ALARMS, MOST_FALSE_ALARMS = 0.9, 0.05


def lives(options: argparse.Namespace) -> Section:
    """Measure alarms before labels, over whole lives."""
    n_each = max(options.lives // options.productions, 1)
    findings = []
    for world in WORLDS:
        lived = live_all(world, options.productions, n_each, options.jobs)
        findings += _of_world(world, lived)
    return Section(
        "Lives",
        f"{options.productions} synthetic productions, {n_each} lives of {NIGHTS} nights each, "
        "in every world; 1 to 3 unlabelled recordings a night, the change after 60 nights. An "
        "alarm is early before the change; without one every alarm is. Beside the alarm of the "
        f"product (lower end of the {100 * CONFIDENCES[0]:g} % interval above the threshold) stand "
        "those of other intervals; 0 % is the estimate itself. Of false counts that look like "
        "stems no model has a doubt: what makes them so is not seen before labels come.",
        findings,
    )


def _of_world(world: World, lived: Lived) -> list[Finding]:
    """Return the figures of one world; the errors are those over productions."""
    what = f"{world.name}, "
    findings = [Finding(f"{what}true mean error at last", Figure.mean(lived.after), unit=" %")]
    if world.after:
        found = Finding(f"{what}before the change", Figure.mean(lived.before), unit=" %")
        findings.insert(0, found)
    estimated = Figure.mean(lived.estimated.mean(axis=1))
    findings.append(Finding(f"{what}estimate of the last night", estimated, unit=" %"))
    for place, confidence in enumerate(CONFIDENCES):
        rule = f"by the {100 * confidence:g} % interval"
        is_product = place == 0
        if is_product or world.after is None:
            early = Figure.mean(np.isfinite(lived.early[..., place]).mean(axis=1))
            most = MOST_FALSE_ALARMS if is_product and world in MAY_NOT_ALARM else np.inf
            findings.append(share(f"{what}lives with an early alarm, {rule}", early, most=most))
        if world.after is None:
            continue
        told = Figure.mean(np.isfinite(lived.late[..., place]).mean(axis=1))
        least = LEAST_ALARMS if is_product and world in MUST_ALARM else -np.inf
        findings.append(share(f"{what}lives with an alarm after it, {rule}", told, least))
        if is_product:
            nights = Figure.median(lived.late[..., place].ravel())
            findings.append(Finding(f"{what}nights until it (median), {rule}", nights, digits=0))
    return findings


# --- Replays ---

MOST_BIAS = 0.5
LEAST_SAVED = 0.25


def replays(options: argparse.Namespace) -> Section:
    """Measure how many labels a replacement takes, by the order of checking."""
    worlds = {"degraded": (OLD, IN_PART), "healthy": (HARD, HARD)}
    findings = []
    for name, (learnt, season) in worlds.items():
        n_replays = options.replays if name == "degraded" else options.healthy_replays
        sizes = (n_replays, options.replayed_productions)
        found = replay_all(learnt, season, *sizes, Rules(), options.jobs)
        findings += _of_replays(name, found, is_degraded=name == "degraded")
        print(f"{name}: {len(found[TRIAGE])} seasons", file=sys.stderr)
    if RECORDINGS.exists():
        old, new = (
            [stems.examples(module().parse(path.read_bytes(), path.name)) for path in season]
            for season in real_recordings()
        )
        found = replay_real(old, new, options.real_replays, options.jobs)
        findings += _of_replays("real, newer season, threshold 5", found, is_degraded=True, asks="")
    return Section(
        "Replays",
        f"{options.replays} synthetic seasons of 100 recordings that degrade "
        f"production, and {options.healthy_replays} healthy ones; five of them checked a night; "
        "production learnt 30 others. A list of triage holds three chosen recordings and two "
        "random ones. On the real recordings three are checked a night, with `--min-new-files 5 "
        "--threshold 5`, by the small forest. degraded: a third of the recordings is much noisier, "
        "and production truly errs by more than 10 %; healthy: nothing changed, in a hard season, "
        "and it errs by less. Where it is never replaced, all labels count. The first look is the "
        "one at the first recordings that suffice. Two rules are none of the product: weights "
        "alone leaves out what is estimated of the pool; wide lets the newest 30 decide, and stand "
        "for the pool of their first list.",
        findings,
    )


def _of_replays(
    name: str, found: dict[str, list[Replayed]], *, is_degraded: bool, asks: str = "degraded"
) -> list[Finding]:
    def column(order: str, field: str) -> np.ndarray:
        return np.array([getattr(one, field) for one in found[order]], dtype=float)

    truth = column(TRIAGE, "truth")
    findings = [Finding(f"{name}, true mean error", Figure.mean(truth), unit=" %")]
    for order in ORDERS:
        if is_degraded:
            for what, figure in (("mean", Figure.mean), ("median", Figure.median)):
                labels = figure(column(order, "labels"))
                title = f"{name}, labels until replaced ({what}), {order}"
                findings.append(Finding(title, labels, digits=1))
        replaced = Figure.mean(column(order, "is_replaced"))
        findings.append(share(f"{name}, replaced at all, {order}", replaced))
        retrained = Figure.ratio(column(order, "retrainings"), column(order, "looks"))
        findings.append(share(f"{name}, looks that retrain, {order}", retrained))
    if is_degraded:
        for order in (TRIAGE, ALONE, WIDE):
            ratio = Figure.ratio(column(order, "labels"), column(AT_RANDOM, "labels"))
            least = LEAST_SAVED if name == asks and order == TRIAGE else -np.inf
            saved = Figure(1 - ratio.value, ratio.error)
            findings.append(share(f"{name}, labels saved by {order}", saved, least))
    for order, field, what in (
        (TRIAGE, "measured", "with the random share and the estimates"),
        (ALONE, "measured", "by the weights of the random share alone"),
        (WIDE, "measured", "wide"),
        (TRIAGE, "unweighted", "unweighted"),
        (TRIAGE, "chosen_alone", "of the chosen ones alone"),
        (AT_RANDOM, "measured", "at random"),
    ):
        off = Figure.mean(column(order, field) - truth)
        is_asked = (order, field) == (TRIAGE, "measured") and name == asks
        findings.append(
            Finding(
                f"{name}, measured minus true error at the first look, points, {what}",
                off,
                -MOST_BIAS if is_asked else -np.inf,
                MOST_BIAS if is_asked else np.inf,
            )
        )
    return findings


# --- The command line ---

SECTIONS: dict[str, Callable[[argparse.Namespace], Section]] = {
    "seasons": seasons,
    "flips": flips,
    "coverage": coverage,
    "corrupted": corrupted,
    "lives": lives,
    "replays": replays,
}
TITLES = {
    "seasons": "Seasons",
    "flips": "Flipped labels",
    "coverage": "Coverage",
    "corrupted": "Corrupted files",
    "lives": "Lives",
    "replays": "Replays",
}
NEED_RECORDINGS = {"seasons", "flips"}
INTRODUCTION = """# Before labels, in figures

What is told before labels come ([before_labels.md](before_labels.md)), measured.
What is asked of a figure stands beside it; the others are reported as they are. ± is one standard
error, over seeds, trainings or recordings; one of 0 is of a single number, or of shares that are
all alike."""


def measured(options: argparse.Namespace) -> Iterator[tuple[str, Section]]:
    """Measure section after section."""
    for name in options.only:
        if name in NEED_RECORDINGS and not RECORDINGS.exists():
            print(f"{name}: left out, there are no real recordings beside the checkout")
            continue
        start = time.monotonic()
        with threadpool_limits(1):
            yield name, SECTIONS[name](options)
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)


SIZES = {
    "seeds": (5, "of the real recordings"),
    "calibrations": (60, "synthetic trainings whose intervals of counts are tried"),
    "productions": (20, "synthetic trainings whose lives are lived"),
    "lives": (200, "of each world"),
    "replays": (100, "of a season that degrades production"),
    "healthy-replays": (30, "of a healthy season"),
    "replayed-productions": (10, "synthetic trainings that are replayed"),
    "real-replays": (10, "of the real newer season"),
}


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the tables and write them into the page; return the exit status.

    Parameters
    ----------
    arguments
        Command line; None for that of the process.
    """
    parser = argparse.ArgumentParser(description="Measure what is told before labels come.")
    names = list(SECTIONS)
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="sections")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    for name, (size, what) in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"how many {what}")
    parser.add_argument(
        "--errors-allowed", type=float, default=0.0, help="standard errors that a goal may miss by"
    )
    parser.add_argument(
        "--picture", type=Path, help="draw the newer real season into this file, and end"
    )
    parser.add_argument("--report", type=Path, help="page that the sections are written into")
    options = parser.parse_args(arguments)
    if options.picture:
        draw_next_season(options.picture)
        return 0
    words = [word for word in sys.argv[1:] if word != "--report" and word != str(options.report)]
    command = " ".join(["python", "tests/tools/before_labels.py", *words])
    texts = dict.fromkeys(TITLES.values(), "")
    all_held = True
    for name, section in measured(options):
        print(section.text(command, options.errors_allowed))
        all_held &= all(one.is_held(options.errors_allowed) for one in section.findings)
        texts[TITLES[name]] = section.text(command)
        if options.report:
            write_sections(options.report, INTRODUCTION, texts)
    return 0 if all_held else 1


if __name__ == "__main__":
    # by its name, so that other processes find what they are to do
    import before_labels

    sys.exit(before_labels.main())
