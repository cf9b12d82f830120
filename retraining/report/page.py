"""Facts and charts -> the values of `page.html` -> the page: self-contained, without a script.

The page answers, from top to bottom: what was decided; how production did over time, and what was
estimated before labels came; this batch, recording by recording; the gate's criteria and the paired
differences; what changed in the data; what the challenger relies on, and which labels its models
doubt; which files were odd or refused; what everything was made of. A section that fails becomes a
sentence that says why, and the others stand.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retraining.cycle import RecordingResult
from retraining.ground_truth import KNOWN
from retraining.marks import CHOSEN, RANDOM, Selection
from retraining.registry.facts import MonitoredBatch
from retraining.report import charts
from retraining.report.charts import alike, signed
from retraining.report.drift import ChangedData, FeatureShift
from retraining.report.facts import PageFacts, why
from retraining.text import as_local_time, error_text, moment, number_text, printable
from retraining.training import DOUBT, FILE

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from retraining.gate import Verdict

TEMPLATE = Path(__file__).with_name("page.html")
MOST_ROWS = 300
"""Longer tables and charts show their first rows: a page stays under 1 MB."""
SHOWN_SHIFTS, MOST_SHIFTS = 6, 30
MOST_LINES = 20
"""Longer tables of the lineage are seen on demand."""
NOTHING = "\N{EN DASH}"
NUMBER, HASH, WORDS, WORD = "number", "hash", "words", "word"
DISTANCE = {"feature": WORDS, "distance": NUMBER, "p-value": NUMBER}
REASONS = {
    "TEST_LEAK": "production was trained on some of the new recordings",
    "NOT_BETTER": "the challenger's mean error is not low enough",
    "TOO_FEW_RECORDINGS": "the models differ on too few {things}",
    "NOT_SIGNIFICANT": "the gain may be chance",
    "FORGETS": "the challenger got worse on the old recordings",
    "NO_BETTER_THAN_NO_MODEL": "the challenger is no better than no model at all",
}

logger = logging.getLogger("pipeline")


# --- Pieces ---


@dataclass(frozen=True)
class Paragraph:
    """One paragraph."""

    text: str
    kind: str = "paragraph"


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its header.

    Parameters
    ----------
    columns
        Head -> kind of its cells.
    rows
        As they are shown.
    """

    caption: str
    columns: Mapping[str, str]
    rows: Sequence[Sequence[str]]
    kind: str = "table"

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of the cells of a row."""
        return tuple(self.columns.values())


@dataclass(frozen=True)
class Chart:
    """A chart.

    Parameters
    ----------
    name
        Its own on the page.
    body
        Of its SVG.
    alternative
        What it shows, for those who do not see it.
    """

    name: str
    figure: Figure
    body: Markup
    width: float
    height: float
    alternative: str
    title: str
    caption: str
    kind: str = "chart"


@dataclass(frozen=True)
class Panels:
    """Small charts side by side."""

    charts: Sequence[Chart]
    kind: str = "panels"


@dataclass(frozen=True)
class Key:
    """Which colour of the panels is which."""

    kind: str = "key"


@dataclass(frozen=True)
class More:
    """What is seen on demand."""

    summary: str
    pieces: Sequence[Piece]
    kind: str = "more"


Piece = Paragraph | Table | Chart | Panels | Key | More


def _table(caption: str, columns: Mapping[str, str], rows: Sequence[Sequence[object]]) -> Table:
    """Return a table of the first rows; a cell that is None is a dash."""
    left_out = len(rows) - MOST_ROWS
    if left_out > 0:
        caption += f"; {left_out} more are left out here, MLflow has them all"
    shown = [[NOTHING if cell is None else str(cell) for cell in row] for row in rows[:MOST_ROWS]]
    return Table(caption, columns, shown)


def _chart(
    name: str, figure: Figure, alternative: str, caption: str = "", *, title: str = ""
) -> Chart:
    from markupsafe import Markup

    drawn = charts.drawing(figure, name)
    # matplotlib has escaped what it wrote.
    body = Markup(drawn.body)
    return Chart(name, figure, body, drawn.width, drawn.height, alternative, title, caption)


def _number(value: float | None) -> str | None:
    """Return an error in its digits; None of one that nobody knows."""
    return None if value is None or math.isnan(value) else number_text(value)


# --- Sections ---


def over_time(facts: PageFacts) -> list[Piece]:
    """Show how production did on the batches so far."""
    batches = dict(enumerate(facts.history, 1))
    if not batches:
        return []
    comparable = {number: one for number, one in batches.items() if one.unit == facts.unit}
    changes = _changes(facts)
    pieces: list[Piece] = [Paragraph(_trend_in_words(facts, list(comparable.values())))]
    if len(comparable) > 1:
        figure = charts.error_over_time(comparable, changes, facts.threshold, facts.error_name)
        pieces.append(
            _chart(
                "error_over_time",
                figure,
                _trend_described(facts, list(comparable.values()), changes),
                "Points: mean over the recordings of a batch. Bars: 95 % interval. "
                "Vertical lines: production changed.",
            )
        )
    return [*pieces, More("The values as a table", [_batch_table(facts, batches)])]


def _trend_in_words(facts: PageFacts, batches: Sequence[MonitoredBatch]) -> str:
    limit, n_others = f"{facts.threshold:g} {facts.unit}", len(facts.history) - len(batches)
    above = sum(not one.mean_error <= facts.threshold for one in batches)
    if len(facts.history) == 1 and batches:
        found = error_text(batches[0].mean_error, facts.unit)
        return f"This is the first monitored batch: {found}, threshold {limit}."
    said = f"{len(batches)} batches were monitored, {above} of them above the threshold of {limit}."
    if n_others:
        said += f" {n_others} more, in another unit, stand in the table only."
    return said


def _trend_described(
    facts: PageFacts, batches: Sequence[MonitoredBatch], changes: Sequence[tuple[int, str]]
) -> str:
    marked = "; ".join(f"{what} after batch {number}" for number, what in changes)
    return (
        f"Line chart of the mean {facts.error_name} of production over {len(batches)} batches, "
        f"from {number_text(batches[0].mean_error)} to "
        f"{error_text(batches[-1].mean_error, facts.unit)}, with the threshold of "
        f"{facts.threshold:g} {facts.unit}. Changes of production: {marked or 'none'}. "
        "The table below has all values."
    )


def _changes(facts: PageFacts) -> list[tuple[int, str]]:
    """Return after which batches production changed, and to what."""
    versions = [*(one.version for one in facts.history), facts.production]
    return [
        (number, f"to version {after}")
        for number, (before, after) in enumerate(pairwise(versions), 1)
        if after != before
    ]


def _batch_table(facts: PageFacts, batches: Mapping[int, MonitoredBatch]) -> Table:
    rows = []
    for number, one in reversed(list(batches.items())):
        foreign = "" if one.unit == facts.unit else f" {one.unit}"
        low, high = _number(one.interval_low), _number(one.interval_high)
        interval = None if low is None or high is None else f"{low} to {high}{foreign}"
        error = f"{number_text(one.mean_error)}{foreign}"
        when = moment(as_local_time(one.at_ms / 1000))
        outcome = one.outcome.replace("_", " ")
        rows.append((number, when, one.version, one.recordings_in_words, error, interval, outcome))
    return _table(
        "Every monitored batch, the newest first",
        {
            "batch": NUMBER,
            "date": WORD,
            "version": NUMBER,
            "recordings": NUMBER,
            f"mean error, {facts.unit}": NUMBER,
            f"95 % interval, {facts.unit}": NUMBER,
            "outcome": WORD,
        },
        rows,
    )


def before_labels(facts: PageFacts) -> list[Piece]:
    """Show what was estimated of production on recordings that nobody had checked."""
    known = [one for one in facts.estimates if one.mean_error is not None]
    if not known:
        return []
    last = known[-1]
    pieces: list[Piece] = [
        Paragraph(
            f"{last.in_words[0].upper()}{last.in_words[1:]}. This is an estimate, from how unsure "
            "the model is and how wrong it was where it was as unsure: it neither retrains nor "
            "promotes."
        )
    ]
    of_production = (last.unit, facts.champion)
    measured = [one for one in facts.history if (one.unit, one.version) == of_production]
    if len(known) > 1:
        figure = charts.estimates_over_time(measured, known, facts.threshold, facts.error_name)
        alternative = (
            f"Chart of the {facts.error_name} of production over time: {len(known)} estimates, "
            f"the last one {error_text(last.mean_error or 0.0, last.unit)}, beside {len(measured)} "
            "measured batches. The table below has all estimates."
        )
        caption = "Rings: estimates before labels, with their 95 % intervals. Points: measured."
        pieces.append(_chart("estimates_over_time", figure, alternative, caption))
    rows = [
        (
            moment(one.at),
            one.n_recordings,
            _number(one.mean_error),
            f"{_number(one.mean_error_low)} to {_number(one.mean_error_high)}",
            _percent(one.unsure),
            _percent(one.outside),
            one.n_unlike,
        )
        for one in reversed(known)
    ]
    columns = {
        "date": WORD,
        "recordings": NUMBER,
        f"estimate, {last.unit}": NUMBER,
        f"95 % interval, {last.unit}": NUMBER,
        "unsure, %": NUMBER,
        "outside, %": NUMBER,
        "unlike": NUMBER,
    }
    said = "Every estimate of this production, the newest first; outside, unlike what was learnt"
    table = _table(said, columns, rows)
    return [*pieces, More("The estimates as a table", [table])]


def _percent(share: float | None) -> str | None:
    return None if share is None else number_text(100 * share)


def doubts(facts: PageFacts) -> list[Piece]:
    """Show the labels that models contradict which never saw them."""
    if not facts.doubts:
        return []
    names = [name for name in facts.doubts[0] if name != DOUBT]
    columns = {name.replace("_", " "): WORDS if name == FILE else WORD for name in names}
    rows = [[*(one[name] for name in names), f"{100 * one[DOUBT]:.0f}"] for one in facts.doubts]
    said = (
        "Each by a model that never saw the recording. They may be wrong, and so may the models: "
        "look at them. Nothing is changed or left out by itself."
    )
    caption = "Labels that models contradict, the surest first"
    return [Paragraph(said), _table(caption, {**columns, "sure, %": NUMBER}, rows)]


def by_recording(facts: PageFacts) -> list[Piece]:
    """Show what both models make of each recording of this batch."""
    recordings = facts.recordings
    if not recordings:
        return []
    counted, things = _are_counted(facts), facts.counted_things
    said = _sums(facts) if counted else f"{len(recordings)} recordings."
    said = f"{said} {_windows_in_words(recordings)} {_selection_in_words(facts)}"
    pieces: list[Piece] = [Paragraph(" ".join(said.split()))]
    if counted and len(recordings) > 1:
        alternative = (
            f"Scatter chart of counted against real {things}, one point per recording and model; "
            "points on the diagonal are exactly right. The table below has all values."
        )
        figure = charts.true_and_predicted(_worst(recordings)[:MOST_ROWS], things)
        pieces.append(_chart("true_and_predicted", figure, alternative))
    return [*pieces, _recording_table(facts, counted=counted)]


def _windows_in_words(recordings: Sequence[RecordingResult]) -> str:
    """Say on which recordings what was decided; nothing where it is all of them."""
    n_decide = sum(one.window == "decides" for one in recordings)
    n_compared = sum(one.window != "" for one in recordings)
    if n_decide == len(recordings):
        return ""
    said = f"The newest {n_decide} decide whether production is good enough"
    if n_compared > n_decide:
        said += f", the newest {n_compared} compare the models"
    if n_compared < len(recordings):
        said += "; older ones stay in new_gts/ until a promotion, and no challenger may forget them"
    return f"{said}."


def _selection_in_words(facts: PageFacts) -> str:
    """Say how recordings that were listed for checking weigh; nothing where none was."""
    selection = facts.cycle.decided.selection if facts.cycle else Selection()
    if selection.weights is None:
        said = selection.in_words
        return f"{said[:1].upper()}{said[1:]}." if said else ""
    weight_of = {one.mark: number_text(one.weight, 2) for one in facts.recordings if one.weight}
    return (
        f"The mean error of those that decide is {selection.in_words}: each chosen one weighs "
        f"{weight_of[CHOSEN]}, each random one {weight_of[RANDOM]}, so that hard recordings count "
        "no more than there are of them. The models are compared recording by recording, where "
        "each weighs the same."
    )


def _are_counted(facts: PageFacts) -> bool:
    """Say whether the error is one of counts."""
    return bool(facts.counted_things) and all(
        one.true_count is not None and one.champion_count is not None for one in facts.recordings
    )


def _worst(recordings: Sequence[RecordingResult]) -> list[RecordingResult]:
    """Return the recordings in the order of a page: the worst of production first."""
    return sorted(recordings, key=lambda one: (-one.champion_error, one.name))


def _sums(facts: PageFacts) -> str:
    """Say how many things there are in all, and by which model."""
    recordings = facts.recordings
    true = sum(one.true_count or 0 for one in recordings)
    by_production = sum(one.champion_count or 0 for one in recordings)
    said = (
        f"{len(recordings)} recordings hold {true} real {facts.counted_things}; production "
        f"counts {by_production} ({_signed_count(by_production - true)})"
    )
    if facts.verdict is None:
        return f"{said}."
    by_challenger = sum(one.challenger_count or 0 for one in recordings)
    return (
        f"{said}, the challenger {by_challenger} ({_signed_count(by_challenger - true)}), counted "
        "on each recording by a model that did not train on it."
    )


def _signed_count(count: int) -> str:
    return f"{count:+d}".replace("-", charts.MINUS) if count else "0"


def _recording_table(facts: PageFacts, *, counted: bool) -> Table:
    judged = facts.verdict is not None
    columns = {"recording": WORDS}
    if counted:
        columns |= {f"real {facts.counted_things}": NUMBER, "production": NUMBER}
    columns[f"production's error, {facts.unit}"] = NUMBER
    if judged:
        columns |= {"challenger": NUMBER} if counted else {}
        columns |= {f"challenger's error, {facts.unit}": NUMBER, "gain": NUMBER}
    has_windows = len({one.window for one in facts.recordings}) > 1
    columns |= {"window": WORD} if has_windows else {}
    were_listed = any(one.mark for one in facts.recordings)
    columns |= {"listed as": WORD} if were_listed else {}
    rows = []
    for one in _worst(facts.recordings):
        row: list[object] = [one.name]
        row += [one.true_count, one.champion_count] if counted else []
        row.append(number_text(one.champion_error))
        if judged:
            row += [one.challenger_count] if counted else []
            row += [_number(one.challenger_error), signed(one.gain)]
        row += [one.window or "older"] if has_windows else []
        row += [one.mark or "not"] if were_listed else []
        rows.append(row)
    return _table("By recording, the worst of production first", columns, rows)


def criteria(facts: PageFacts) -> list[Piece]:
    """Show what the gate asked, and what it found."""
    verdict = facts.verdict
    if verdict is None:
        return []
    marks = {
        "passed": "✓ passed",
        "failed": "✗ failed",
        "not applicable": f"{NOTHING} not applicable",
    }
    rows = [
        (
            one.name,
            None if one.value is None else f"{one.value:.4g}",
            None if one.limit is None else f"{one.limit:.4g}",
            marks[one.outcome.value],
            one.explanation,
        )
        for one in verdict.criteria
    ]
    columns = {"criterion": WORDS, "value": NUMBER, "limit": NUMBER, "result": WORD}
    caption = "A challenger is promoted if no criterion fails"
    pieces: list[Piece] = [_table(caption, {**columns, "in words": WORDS}, rows)]
    if verdict.unconditional_p_value != verdict.p_value:
        pieces.append(
            Paragraph(
                f"The p-value of {verdict.p_value:.3g} is that of nights on which production is "
                "over its threshold, as there is no comparison else; of any night it would be "
                f"{verdict.unconditional_p_value:.3g}."
            )
        )
    if verdict.hints:
        said = "; ".join(verdict.hints)
        pieces.append(Paragraph(f"{said[0].upper()}{said[1:]}."))
    return pieces


def differences(facts: PageFacts) -> list[Piece]:
    """Show on which recordings the challenger is better, and by how much."""
    verdict, recordings = facts.verdict, [one for one in facts.recordings if one.window]
    if verdict is None:
        return []
    pieces: list[Piece] = [Paragraph(_gains_in_words(recordings, verdict))]
    if len(recordings) > 1:
        figure = charts.paired_differences(_worst(recordings)[:MOST_ROWS], verdict)
        low, high = signed(verdict.difference_low), signed(verdict.difference_high)
        alternative = (
            "Chart of the gain of the challenger on each recording, with the mean of "
            f"{signed(verdict.difference)} and its interval from {low} to {high}. The table of the "
            "section before has the values as gain."
        )
        caption = (
            "Gain: production's error minus the challenger's; right of 0 the challenger is better. "
            "Band: 95 % interval of the mean."
        )
        pieces.append(_chart("paired_differences", figure, alternative, caption))
    return pieces


def _gains_in_words(recordings: Sequence[RecordingResult], verdict: Verdict) -> str:
    better, worse = (sum(sign * one.gain > 0 for one in recordings) for sign in (1, -1))
    interval = f"{signed(verdict.difference_low)} to {signed(verdict.difference_high)}"
    return (
        f"The challenger is closer to the truth on {better} recordings and farther from it on "
        f"{worse}; {len(recordings) - better - worse} are alike. Mean gain "
        f"{signed(verdict.difference)} {verdict.difference_unit}, 95 % interval {interval} "
        f"(bootstrap-t over {verdict.independent_things})."
    )


def changed_data(facts: PageFacts) -> list[Piece]:
    """Show how the new examples differ from those that production was trained on."""
    changed, shifts = facts.changed, facts.changed.shifts
    if not (shifts or changed.lost or changed.gained):
        return []
    pieces: list[Piece] = [Paragraph(said) for said in _change_in_words(facts)]
    if not shifts:
        return pieces
    panels = [
        _shift_panel(number, one, facts.described_things)
        for number, one in enumerate(shifts[:MOST_SHIFTS])
    ]
    others = panels[SHOWN_SHIFTS:]
    tables = (
        _quantiles([one for one in shifts if not one.categories]),
        _shares([one for one in shifts if one.categories]),
        _missing_values(shifts),
    )
    pieces += [Key(), Panels(panels[:SHOWN_SHIFTS])]
    pieces.append(More("All values as a table", [table for table in tables if table.rows]))
    return [*pieces, More("The other features", [Panels(others)])] if others else pieces


def _change_in_words(facts: PageFacts) -> list[str]:
    changed, things, said = facts.changed, facts.described_things, []
    if changed.shifts:
        first = changed.shifts[0]
        said.append(
            f"{facts.features_in_words} {changed.n_new} new {things} against "
            f"{changed.n_trained_on} that production was trained on. The most shifted feature is "
            f"{first.feature} (distance {first.statistic:.2f})."
        )
    if changed.p_value is not None:
        said.append(_chance_in_words(changed, changed.p_value))
    if changed.shifts:
        said.append(_distances_in_words(changed.shifts))
    if changed.lost:
        lost = ", ".join(changed.lost)
        said.append(f"No new recording has a value of what production was trained with: {lost}.")
    if changed.gained:
        gained = ", ".join(changed.gained)
        said.append(f"Production was trained without a value of what is known now: {gained}.")
    return said


def _chance_in_words(changed: ChangedData, p_value: float) -> str:
    """Say whether anything changed at all."""
    (n_old, n_new), things = changed.n_shuffled, changed.shuffled_things
    n_all, n_arrangements = n_old + n_new, changed.n_arrangements
    every = n_arrangements == math.comb(n_all, n_new)
    choices = f"all {n_arrangements:,} choices" if every else f"{n_arrangements:,} random choices"
    n_alike = f"{round(p_value * n_arrangements):,}"
    return (
        f"Whether anything changed at all: p = {p_value:.2g}. If all {n_all} {things} were of one "
        f"kind, any {n_new} of them might have been the new ones; in {n_alike} of {choices} of "
        f"{n_new} the most unusual feature is as unusual as it is here. Whole {things} are chosen, "
        "because what comes from one is alike."
    )


def _distances_in_words(shifts: Sequence[FeatureShift]) -> str:
    said = []
    if any(not one.categories for one in shifts):
        said.append(
            "The distance is the statistic of Kolmogorov and Smirnov: the largest distance of the "
            "two cumulative distributions, 0 alike, 1 apart."
        )
    if any(one.categories for one in shifts):
        said.append(
            "Of values that are no numbers the distance is the total variation: the share that "
            "would have to take another value, 0 alike, 1 apart."
        )
    said.append(
        "Each feature has its own p-value from the same choices; one in twenty is below 0.05 by "
        "chance."
    )
    return " ".join(said)


def _shift_panel(number: int, one: FeatureShift, things: str) -> Chart:
    kind, below = ("Bar chart", "shares") if one.categories else ("Histogram", "quantiles")
    return _chart(
        f"shift_{number}",
        charts.shift(one, things),
        f"{kind} of {one.feature} of new {things} against those trained on: distance "
        f"{one.statistic:.2f}. The table below has the {below}.",
        f"distance {one.statistic:.2f}",
        title=one.feature,
    )


def _quantiles(shifts: Sequence[FeatureShift]) -> Table:
    import numpy as np

    rows = []
    for one in shifts:
        old, new = (np.quantile(values, [0.1, 0.5, 0.9]) for values in (one.trained_on, one.new))
        said = alike([*old, *new])
        rows.append((*_distance(one), " / ".join(said[:3]), " / ".join(said[3:])))
    columns = {**DISTANCE, "trained on": NUMBER, "new": NUMBER}
    return _table("Quantiles of each feature: 10 % / 50 % / 90 %", columns, rows)


def _distance(one: FeatureShift) -> tuple[str, str, str]:
    return one.feature, f"{one.statistic:.3f}", f"{one.p_value:.2g}"


def _shares(shifts: Sequence[FeatureShift]) -> Table:
    rows = [
        (*_distance(one), each.value, f"{100 * each.trained_on:.1f}", f"{100 * each.new:.1f}")
        for one in shifts
        for each in one.categories
    ]
    columns = {**DISTANCE, "value": WORDS, "trained on, %": NUMBER, "new, %": NUMBER}
    return _table("Shares of the most frequent values", columns, rows)


def _missing_values(shifts: Sequence[FeatureShift]) -> Table:
    rows = [
        (
            one.feature,
            f"{one.missing_p_value:.2g}",
            *(f"{100 * share:.1f}" for share in one.missing),
        )
        for one in shifts
        if any(one.missing)
    ]
    columns = {"feature": WORDS, "p-value": NUMBER, "trained on, %": NUMBER, "new, %": NUMBER}
    return _table("Values that are missing", columns, rows)


def reliance(facts: PageFacts) -> list[Piece]:
    """Show what the challenger's predictions rest on."""
    found, things = facts.importances, facts.described_things
    if not found:
        return []
    if facts.label_has_decimals and facts.training:
        name = facts.training.label_column
        what = f"by how much the mean absolute error of {name} grows"
        axis = f"growth of the mean absolute error of {name}"
    else:
        what = f"how many more of 100 {things} are predicted wrongly"
        axis = f"more {things} predicted wrongly, of 100"
    pieces: list[Piece] = [
        Paragraph(
            f"Permutation importance: {what} when one feature is shuffled, on those {things} that "
            "the model was not trained on. Features that say the same can stand in for each other, "
            "so a low value does not mean useless."
        )
    ]
    means, deviations = alike([one.mean for one in found]), alike([one.deviation for one in found])
    if any(one.mean > 0 for one in found):
        alternative = (
            f"Bar chart of permutation importance; the highest is {found[0].feature} with "
            f"{means[0]}. The table below has all values."
        )
        caption = "Lines: ± 1 standard deviation over the folds."
        figure = charts.importance(found, axis)
        pieces.append(_chart("importance", figure, alternative, caption))
    rows = [(one.feature, *values) for one, *values in zip(found, means, deviations, strict=True)]
    columns = {"feature": WORDS, "mean": NUMBER, "deviation over folds": NUMBER}
    table = _table("Importance of every feature", columns, rows)
    return [*pieces, More("All values as a table", [table])]


def odd_files(facts: PageFacts) -> list[Piece]:
    """Show which files a person should look at."""
    pieces: list[Piece] = []
    quality = facts.cycle.batch.data_quality if facts.cycle else {}
    if quality:
        caption = "What is odd in recordings that were used"
        rows = sorted(quality.items())
        pieces.append(_table(caption, {"recording": WORDS, "note": WORDS}, rows))
    if facts.rejected:
        pieces.append(
            _table(
                "Files in new_gts/rejected/; those that are mended there go back with: "
                "python pipeline_orchestrator.py requeue",
                {"file": WORDS, "what is wrong": WORDS, "what to do": WORDS},
                [(one.name, one.what, one.remedy) for one in facts.rejected],
            )
        )
    if facts.notes:
        notes = [[one] for one in facts.notes]
        pieces.append(_table("What became of other files", {"note": WORDS}, notes))
    if facts.inventory.lines:
        lines = [[line] for line in facts.inventory.lines]
        caption = "used_gts/ and what production learnt"
        pieces.append(_table(caption, {"difference": WORDS}, lines))
    return pieces or [Paragraph("Nothing to note, and no file is rejected.")]


def made_of(facts: PageFacts) -> list[Piece]:
    """Show what everything was made of."""
    pieces: list[Piece] = []
    for title, values in facts.lineage.items():
        table = _table(title, {"name": WORDS, "value": HASH}, list(values.items()))
        if len(values) > MOST_LINES:
            pieces.append(More(f"{title}: {len(values)} lines", [table]))
        elif values:
            pieces.append(table)
    for title, files in facts.files.items():
        rows = [(one.name, one.rows, one.sha256) for one in files]
        columns = {"file": WORDS, "rows": NUMBER, "SHA-256": HASH}
        summary = f"{title}: {len(files)} files, {sum(one.rows for one in files)} rows"
        if files:
            pieces.append(More(summary, [_table(title, columns, rows)]))
    return pieces


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Parameters
    ----------
    id
        By which links find it.
    make
        Returns its pieces, or nothing if it has nothing to say.
    needs
        Names of the facts without which it cannot be made.
    """

    id: str
    title: str
    make: Callable[[PageFacts], Sequence[Piece]]
    needs: tuple[str, ...] = ()


SECTIONS = (
    Section("over-time", "Production's error over time", over_time, ("history",)),
    Section("before-labels", "Estimated before labels came", before_labels, ("estimates",)),
    Section("recordings", "This batch, recording by recording", by_recording),
    Section("criteria", "The gate's criteria", criteria),
    Section("differences", "Paired differences", differences),
    Section("data", "What changed in the data", changed_data, ("changed",)),
    Section("reliance", "What the challenger relies on", reliance, ("importances",)),
    Section("doubts", "Labels to look at again", doubts, ("doubts",)),
    Section(
        "files",
        "Files: data quality, corrections, rejections",
        odd_files,
        ("rejected", "inventory"),
    ),
    Section("lineage", "Lineage", made_of, ("lineage",)),
)


# --- The page ---


@dataclass(frozen=True)
class Tile:
    """A number that everybody looks for."""

    value: str
    name: str
    note: str
    kind: str = "tile"


@dataclass(frozen=True)
class Page:
    """A page of HTML, and its charts by name."""

    content: str
    figures: Mapping[str, Figure]


def make_page(facts: PageFacts) -> Page:
    """Return the page of these facts."""
    bodies = {section: _guarded(section, facts) for section in SECTIONS}
    shown = {section: pieces for section, pieces in bodies.items() if pieces}
    return Page(
        content=render(
            TEMPLATE,
            model_name=facts.settings.model_name,
            at=facts.at,
            moment=moment(facts.at),
            outcome=facts.outcome,
            headline=_in_words(facts, facts.outcome.headline),
            message=facts.message[:1].upper() + facts.message[1:].replace("->", "→"),
            reasons=_guarded(Section("reasons", "In plain words", _reasons), facts),
            next_step=_next_step(facts),
            tiles=_guarded(Section("numbers", "The numbers", _numbers), facts),
            sections=shown,
        ),
        figures={
            piece.name: piece.figure
            for pieces in shown.values()
            for piece in pieces
            if isinstance(piece, Chart)
        },
    )


def _guarded(section: Section, facts: PageFacts) -> Sequence[Any]:
    """Return what a section makes; where it fails, a sentence that says why."""
    try:
        for name in section.needs:
            if name in facts.missing:
                raise facts.missing[name]
        return section.make(facts)
    except Exception as error:
        said = why(error)
        logger.warning("the report lacks %r; all else is in it: %s", section.title, said)
        return [Paragraph(f"This part could not be made: {said}. Everything else stands.")]


def _in_words(facts: PageFacts, sentence: str) -> str:
    return sentence.format(production=facts.production, champion=facts.champion)


def _next_step(facts: PageFacts) -> list[str]:
    """Return what to do; every second part is a command."""
    step = _in_words(facts, facts.outcome.next_step)
    if facts.still_above is not None:
        step = (
            f"Version {facts.production} is better and still above the threshold of "
            f"{facts.still_above:g} {facts.unit}: check more recordings of the kind that "
            "it gets wrong, or improve the training module. "
        ) + step.removeprefix("Nothing. ")
    waiting = [one for one in facts.rejected if one.kind != KNOWN]
    if waiting:
        step += f" Rejected files that wait to be mended: {len(waiting)}, see below."
    return step.split("`")


def _reasons(facts: PageFacts) -> list[Piece]:
    if facts.verdict is None or facts.verdict.promote:
        return []
    things = facts.verdict.independent_things
    words = [REASONS.get(one, one).format(things=things) for one in facts.verdict.reasons]
    return [Paragraph(f"In plain words: {'; '.join(words)}.")]


def _numbers(facts: PageFacts) -> list[Any]:
    tiles = []
    if facts.cycle:
        batch = facts.history[-1]
        low, high = number_text(batch.interval_low), number_text(batch.interval_high)
        interval = f"95 % interval {low} to {high} {facts.unit}"
        error = error_text(batch.mean_error, facts.unit)
        weighted = facts.cycle.decided.selection.weights is not None
        if facts.verdict and (batch.n_decided not in (0, facts.verdict.n_recordings) or weighted):
            pool = " and stand for the pool that they were listed from" if weighted else ""
            interval = (
                f"on the {facts.verdict.recordings_in_words} that were compared; {error} on the "
                f"newest {batch.n_decided}, which decided{pool} ({interval})"
            )
            error = error_text(facts.verdict.champion_mean_error, facts.unit)
        limit = f"{facts.threshold:g} {facts.unit}"
        tiles += [
            Tile(error, f"error of version {batch.version}", interval),
            Tile(limit, "threshold", "largest mean error of a healthy model"),
        ]
        if facts.verdict is None:
            tiles.append(Tile(batch.recordings_in_words, "new recordings", ""))
    if facts.verdict is not None:
        verdict = facts.verdict
        error = error_text(verdict.challenger_mean_error, facts.unit)
        unseen = "on the same recordings, which it did not train on"
        paired = f"{verdict.recordings_in_words}, paired"
        tiles += [
            Tile(error, f"error of {facts.rival}", unseen),
            Tile(f"{verdict.p_value:.2g}", "p-value", paired),
        ]
    return tiles


def render(template: Path, **values: object) -> str:
    """Fill a template; whatever is put into it is made printable, then escaped."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else printable(value),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)
