"""The charts of a page: facts in, figures out, and the SVG of a figure for the page.

They tell more than a number would, look the same wherever they are made, and take the colours of
the page's theme. Heavy packages are imported late.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from retraining.cycle import RecordingResult
from retraining.estimates import Estimated
from retraining.registry.facts import MonitoredBatch
from retraining.report.drift import FeatureShift
from retraining.report.facts import FeatureImportance
from retraining.text import as_local_time, error_text, number_text, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from retraining.gate import Verdict

NAMED_ROWS = 40
"""A chart of more recordings leaves their names to its table."""
SHOWN_IMPORTANCES = 12
INTERVAL = ("mean_error_low", "mean_error_high")
"""Of an estimate."""
DAY_SECONDS = 86_400
LONGEST_LABEL = 22
LONGEST_VALUE = 16
MOST_DECIMALS = 12
MINUS = "\N{MINUS SIGN}"
DIGITS_OF_THE_GATE = 9
"""It rounds differences to a billionth; what is smaller is noise of the computer's arithmetic."""

INK, MUTED, LINE = "#1f2328", "#59636e", "#d0d7de"
CHAMPION, CHALLENGER = "#b84f00", "#0072b2"
TRAINED_ON, NEW = "#6e7781", "#007a59"
THEME = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    CHAMPION: "var(--champion)",
    CHALLENGER: "var(--challenger)",
    TRAINED_ON: "var(--trained)",
    NEW: "var(--new)",
}
"""Colours of the charts, told apart by the colour-blind too, and what stands for them in a page."""


# --- Words ---


def label(name: str, longest: int = LONGEST_LABEL) -> str:
    """Shorten a name in its middle: its beginning and its number tell it apart."""
    name = printable(name)
    if len(name) <= longest:
        return name
    half = (longest - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def signed(value: float) -> str:
    """Return a difference with its sign and the digits that tell it from nothing.

    Examples
    --------
    >>> signed(12.34), signed(0.0066), signed(0.0)
    ('+12.3', '+0.0066', '0.0')
    """
    value = round(value, DIGITS_OF_THE_GATE)
    sign = "+" if value > 0 else MINUS if value < 0 else ""
    return f"{sign}{number_text(abs(value))}"


def alike(values: Sequence[float]) -> list[str]:
    """Return values with two decimals each, or as many as show three digits of the largest.

    Examples
    --------
    >>> alike([12.345, 0.001]), alike([0.00231, -0.00004])
    (['12.35', '0.00'], ['0.00231', '-0.00004'])
    """
    largest = max(map(abs, values), default=0.0)
    decimals = 2 - math.floor(math.log10(largest)) if 0 < largest < 1 else 2
    decimals = min(decimals, MOST_DECIMALS)
    # The sum takes the sign from a zero.
    return [f"{round(value, decimals) + 0.0:.{decimals}f}" for value in values]


# --- Style ---


@contextlib.contextmanager
def house_style(name: str) -> Iterator[None]:
    """Draw the same way wherever this runs; names need no glyph to be drawn without a warning."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib as mpl

    look: Any = {
        "font.size": 10.0,
        "axes.labelsize": 10.0,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": LINE,
        "grid.linewidth": 0.7,
        "text.color": INK,
        "text.parse_math": False,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "svg.fonttype": "none",
        "svg.hashsalt": name,
    }
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mpl.rcdefaults()
        mpl.rcParams.update(look)
        yield


def _blank(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty chart of that size in inches, of 72 points on a page."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.tick_params(length=0)
    return figure, axes


def _note(
    axes: Axes, said: str, place: tuple[float, float], offset: tuple[int, int], **look: Any
) -> None:
    """Write beside a place of a chart, at a distance in points."""
    axes.annotate(said, place, offset, textcoords="offset points", **{"fontsize": 9, **look})


# --- Charts ---


@house_style("charts")
def error_over_time(
    batches: Mapping[int, MonitoredBatch],
    changes: Sequence[tuple[int, str]],
    threshold: float,
    error_name: str,
) -> Figure:
    """Draw the mean error of each batch with its interval, and where production changed.

    Parameters
    ----------
    batches
        Number -> batch; at least one, all in one unit.
    changes
        Number of the batch after which production changed, and to what.
    """
    figure, axes = _blank(5.0, 2.7)
    numbers, shown = list(batches), list(batches.values())
    errors, unit = [one.mean_error for one in shown], shown[-1].unit
    axes.vlines(
        numbers,
        [one.interval_low for one in shown],
        [one.interval_high for one in shown],
        color=CHAMPION,
        alpha=0.35,
        linewidth=5 if len(shown) < 30 else 2,
    )
    axes.plot(numbers, errors, color=CHAMPION, marker="o", markersize=5, linewidth=1.5)
    # An interval that an older pipeline did not write is no number.
    highs = (one.interval_high for one in shown if one.interval_high == one.interval_high)
    top = max(threshold, *errors, *highs) * 1.22 or 1
    axes.set(xlim=(numbers[0] - 0.5, numbers[-1] + 0.9), ylim=(0, top))
    _mark_threshold(axes, threshold, unit)
    _mark_changes(axes, changes, top, len(batches) / 4)
    _note(
        axes,
        error_text(errors[-1], unit),
        (numbers[-1], errors[-1]),
        (-7, 5),
        ha="right",
        weight="bold",
        fontsize=10,
    )
    dated = numbers[::-1][:: -(-len(numbers) // 4)]
    days = [as_local_time(batches[number].at_ms / 1000)[:10] for number in dated]
    axes.set_xticks(dated, days, fontsize=8.5)
    axes.set(ylabel=f"mean {error_name}, {unit}", xlabel="monitored batches, in order")
    axes.grid(axis="x", visible=False)
    return figure


@house_style("charts")
def estimates_over_time(
    measured: Sequence[MonitoredBatch],
    estimates: Sequence[Estimated],
    threshold: float,
    error_name: str,
) -> Figure:
    """Draw what was estimated before labels came beside what was measured.

    Parameters
    ----------
    measured
        Batches, the oldest first, of the estimates' unit.
    estimates
        At least one, the oldest first; each with a mean error.
    """
    figure, axes = _blank(5.0, 2.7)
    days = [datetime.datetime.fromisoformat(one.at).timestamp() / DAY_SECONDS for one in estimates]
    errors = [one.mean_error or 0.0 for one in estimates]
    lows, highs = ([getattr(one, name) or 0.0 for one in estimates] for name in INTERVAL)
    axes.vlines(days, lows, highs, color=MUTED, alpha=0.35, linewidth=2)
    look: Any = {"marker": "o", "markersize": 5, "linewidth": 1.2}
    axes.plot(days, errors, color=MUTED, linestyle=(0, (4, 3)), markerfacecolor="none", **look)
    measured_on = [one.at_ms / 1000 / DAY_SECONDS for one in measured]
    axes.plot(measured_on, [one.mean_error for one in measured], color=CHAMPION, **look)
    top = max(threshold, *errors, *(one.mean_error for one in measured)) * 1.6 or 1
    dated = sorted({math.floor(one) for one in (*days, *measured_on)})
    shown = dated[:: max(len(dated) // 4, 1)]
    axes.set_xticks(shown, [as_local_time(one * DAY_SECONDS)[:10] for one in shown], fontsize=8.5)
    axes.set(ylim=(0, top), ylabel=f"mean {error_name}, {estimates[-1].unit}")
    _mark_threshold(axes, threshold, estimates[-1].unit)
    axes.grid(axis="x", visible=False)
    return figure


def _mark_threshold(axes: Axes, threshold: float, unit: str) -> None:
    axes.axhline(threshold, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.text(
        *(1.01, threshold, f"threshold\n{threshold:g} {unit}"),
        transform=axes.get_yaxis_transform(),
        va="center",
        fontsize=9,
    )


def _mark_changes(axes: Axes, changes: Sequence[tuple[int, str]], top: float, width: float) -> None:
    """Draw a line for each change; words of this width that would overlap take turns in height."""
    before, level = -math.inf, 0
    for number, what in changes:
        level = (level + 1) % 3 if number - before < width else 0
        axes.axvline(number + 0.5, color=CHALLENGER, linewidth=1.2)
        place, offset = (number + 0.5, top), (-5, -2 - 13 * level)
        _note(axes, what, place, offset, color=CHALLENGER, ha="right", va="top")
        before = number


@house_style("charts")
def true_and_predicted(recordings: Sequence[RecordingResult], things: str) -> Figure:
    """Draw what both models count against what is there.

    Parameters
    ----------
    recordings
        The worst of production first.
    things
        What is counted.
    """
    figure, axes = _blank(5.0, 3.7)
    judged = [one for one in recordings if one.challenger_count is not None]
    true, counts = _counts(recordings, "true_count"), _counts(recordings, "champion_count")
    true_of_judged = _counts(judged, "true_count")
    by_challenger = _counts(judged, "challenger_count")
    everything = [*true, *counts, *by_challenger]
    margin = 0.1 * (max(everything) - min(everything)) + 1
    ends = [max(min(everything) - margin, 0), max(everything) + margin]
    axes.plot(ends, ends, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    middle = 0.25 * ends[0] + 0.75 * ends[1]
    _note(axes, "exactly right", (middle, middle), (8, -12), color=MUTED)
    from_champion = _counts(judged, "champion_count")
    axes.vlines(true_of_judged, from_champion, by_challenger, color=LINE, linewidth=1)
    axes.scatter(true, counts, s=38, facecolors="none", edgecolors=CHAMPION, linewidths=1.6)
    axes.scatter(true_of_judged, by_challenger, s=22, marker="s", color=CHALLENGER)
    axes.text(0.02, 0.97, "○ production", transform=axes.transAxes, va="top", color=CHAMPION)
    if judged:
        axes.text(0.02, 0.9, "■ challenger", transform=axes.transAxes, va="top", color=CHALLENGER)
    for one in recordings[:3]:
        if one.champion_error > 0:
            place = (one.true_count or 0, one.champion_count or 0)
            above = place[1] > place[0]
            _note(axes, label(one.name), place, (0, 7 if above else -14), ha="center")
    axes.set(xlim=ends, ylim=ends)
    axes.set(xlabel=f"real {things} of a recording", ylabel=f"counted {things}")
    return figure


def _counts(recordings: Sequence[RecordingResult], whose: str) -> list[int]:
    return [getattr(one, whose) or 0 for one in recordings]


@house_style("charts")
def paired_differences(shown: Sequence[RecordingResult], verdict: Verdict) -> Figure:
    """Draw the gain on each recording, and the mean with its interval."""
    recordings = sorted(shown, key=lambda one: (one.gain, one.name))
    named = len(recordings) <= NAMED_ROWS
    figure, axes = _blank(5.0, 1.2 + len(recordings) * (0.2 if named else 0.02))
    places = list(range(1, len(recordings) + 1))
    gains = [one.gain for one in recordings]
    axes.axvspan(verdict.difference_low, verdict.difference_high, color=CHALLENGER, alpha=0.15)
    axes.axvline(verdict.difference, color=CHALLENGER, linewidth=1.2)
    axes.axvline(0, color=INK, linewidth=1)
    for sign, colour, marker in ((1, CHALLENGER, "s"), (0, MUTED, "."), (-1, CHAMPION, "o")):
        side = [(x, y) for x, y in zip(gains, places, strict=True) if (x > 0) - (x < 0) == sign]
        x_values, y_values = [x for x, _ in side], [y for _, y in side]
        axes.hlines(y_values, 0, x_values, color=colour, linewidth=1.6 if named else 0.8)
        axes.scatter(x_values, y_values, color=colour, marker=marker, s=22 if named else 4)
    names = [label(one.name) for one in recordings]
    axes.set_yticks(places if named else [], names if named else [])
    axes.set_ylim(0.2, len(recordings) + 1.9)
    left = verdict.difference < (min(gains) + max(gains)) / 2
    _note(
        *(axes, f"mean {signed(verdict.difference)}", (verdict.difference, len(recordings) + 1.8)),
        (5, -2) if left else (-5, -2),
        color=CHALLENGER,
        va="top",
        ha="left" if left else "right",
        weight="bold",
        fontsize=10,
    )
    axes.set_xlabel(f"gain, {verdict.difference_unit}")
    axes.locator_params(axis="x", nbins=6)
    axes.grid(axis="y", visible=False)
    return figure


@house_style("charts")
def importance(importances: Sequence[FeatureImportance], what: str) -> Figure:
    """Draw what the most important features are worth; `what` is on the axis."""
    shown = importances[:SHOWN_IMPORTANCES][::-1]
    figure, axes = _blank(5.0, 0.8 + 0.24 * len(shown))
    places = list(range(len(shown)))
    means = [one.mean for one in shown]
    axes.barh(places, means, height=0.62, color=CHALLENGER)
    axes.hlines(
        places,
        [one.mean - one.deviation for one in shown],
        [one.mean + one.deviation for one in shown],
        color=INK,
        linewidth=1.2,
    )
    axes.set_yticks(places, [label(one.feature, 2 * LONGEST_LABEL) for one in shown], fontsize=9)
    for place, one, said in zip(places, shown, alike(means), strict=True):
        end = max(one.mean + one.deviation, 0)
        _note(axes, said, (end, place), (5, 0), va="center")
    axes.margins(x=0.12)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_xlabel(what)
    axes.locator_params(axis="x", nbins=6)
    axes.grid(axis="y", visible=False)
    return figure


def shift(one: FeatureShift, things: str) -> Figure:
    """Draw both distributions of a feature."""
    return _shares(one, things) if one.categories else _histograms(one, things)


@house_style("charts")
def _histograms(one: FeatureShift, things: str) -> Figure:
    """Draw the middle 98 % of the values."""
    import numpy as np

    figure, axes = _blank(3.0, 1.7)
    low, high = np.quantile(np.concatenate([one.trained_on, one.new]), [0.01, 0.99])
    edges = np.linspace(low, high if high > low else low + 1, 26)
    for values, colour, filled in ((one.trained_on, TRAINED_ON, True), (one.new, NEW, False)):
        share = 100 * np.histogram(values, edges)[0] / len(values)
        axes.stairs(share, edges, color=colour, fill=filled, alpha=0.45 if filled else 1, lw=1.8)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="value", ylabel=f"{things}, %")
    axes.grid(axis="x", visible=False)
    axes.locator_params(nbins=5)
    return figure


@house_style("charts")
def _shares(one: FeatureShift, things: str) -> Figure:
    """Draw a pair of bars for each value, the most frequent one on top."""
    shown = one.categories[::-1]
    figure, axes = _blank(3.0, max(1.3, 0.7 + 0.26 * len(shown)))
    places = range(len(shown))
    above, below = [place + 0.2 for place in places], [place - 0.2 for place in places]
    trained_on = [100 * each.trained_on for each in shown]
    new = [100 * each.new for each in shown]
    axes.barh(above, trained_on, height=0.36, color=TRAINED_ON, alpha=0.45)
    axes.barh(below, new, height=0.36, fill=False, edgecolor=NEW, linewidth=1.8)
    axes.set_yticks(list(places), [label(each.value, LONGEST_VALUE) for each in shown], fontsize=9)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{things}, %")
    axes.grid(axis="y", visible=False)
    return figure


# --- For a page ---


@dataclass(frozen=True)
class Drawing:
    """A chart for a page: what stands in its `<svg>`, and its size in points."""

    body: str
    width: float
    height: float


def drawing(figure: Figure, name: str) -> Drawing:
    """Return a chart as SVG in the colours of the page's theme.

    Parameters
    ----------
    name
        Different for each chart of a page: its ids begin with it.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_text("\n".join(map(printable, text.get_text().split("\n"))))
    stream = io.StringIO()
    with house_style(name):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    written = stream.getvalue()
    body = written[written.index('<g id="figure_1">') : written.rindex("</svg>")]
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    body = re.sub(r'\bxlink:href="#', f'href="#{name}-', body)
    # In the font of the page, however this matplotlib writes down its own.
    body = re.sub(r"font: (?:(\d+|bold) )?([\d.]+)px [^;\"]*", _font, body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r' transform="rotate\(-0 [^"]*"', "", body)
    body = re.sub(r'\b(?:d|x|y)="[^"]*"', _hundredths, body)
    for colour, variable in THEME.items():
        body = body.replace(colour, variable)
    width, height = 72 * figure.get_size_inches()
    return Drawing(re.sub(r">\s+<", "><", body).strip(), round(width, 1), round(height, 1))


def _hundredths(match: re.Match[str]) -> str:
    """Leave places with two decimals: of a point, nobody sees more."""
    return re.sub(r"(\.\d\d)\d+", r"\1", match[0])


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}px"
