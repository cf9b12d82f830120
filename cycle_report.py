"""One cycle as one page: a record of facts in, self-contained HTML out.

The page answers, from top to bottom: what was decided; how production did over time; this batch,
recording by recording; the gate's criteria and the paired differences; what changed in the data;
what the challenger relies on; which files were odd or refused; what everything was made of. It
needs no network and no script. No MLflow and no files here; heavy packages are imported late.
"""

from __future__ import annotations

import contextlib
import html
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from champion_gate import Verdict
    from gts_folder import Refusal
    from model_registry import TrainingFile

MOST_ROWS = 300
"""Longer tables and charts show their first rows: a page stays under 1 MB."""
NAMED_ROWS = 40
"""A chart of more recordings leaves their names to its table."""
SHOWN_SHIFTS = 6
SHOWN_IMPORTANCES = 12
LONGEST_LABEL = 22

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


# --- Facts ---


@dataclass(frozen=True)
class MonitoredBatch:
    """How production did on one batch.

    Parameters
    ----------
    at
        When, ISO 8601.
    version
        Production at that time.
    n_recordings
        Recordings of the batch.
    mean_error, interval_low, interval_high
        Mean error and its 95 % interval.
    outcome
        How that cycle ended.
    """

    at: str
    version: str
    n_recordings: int
    mean_error: float
    interval_low: float
    interval_high: float
    outcome: str


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
    """

    name: str
    true_count: int | None
    champion_count: int | None
    champion_error: float
    challenger_count: int | None = None
    challenger_error: float | None = None

    @property
    def gain(self) -> float:
        """Champion's error minus challenger's; 0 without a challenger."""
        return 0.0 if self.challenger_error is None else self.champion_error - self.challenger_error


@dataclass(frozen=True)
class FeatureShift:
    """How far a feature of the new recordings is from what production was trained on.

    Parameters
    ----------
    feature
        Its name.
    statistic, p_value
        Of the two-sample Kolmogorov-Smirnov test over tracks.
    trained_on, new
        Known values, one per track.
    """

    feature: str
    statistic: float
    p_value: float
    trained_on: np.ndarray
    new: np.ndarray


@dataclass(frozen=True)
class FeatureImportance:
    """What a feature is worth to the challenger.

    Parameters
    ----------
    feature
        Its name.
    mean, deviation
        Percentage points of held-out tracks that are judged wrongly in addition when the feature
        is shuffled: mean and standard deviation over the folds.
    """

    feature: str
    mean: float
    deviation: float


@dataclass(frozen=True)
class CycleFacts:
    """Everything that a page tells; what is empty or None has no section.

    Parameters
    ----------
    model_name
        Of the registered model.
    at
        When the cycle ended, ISO 8601.
    outcome
        waiting, already_judged, healthy, not_promoted, promoted, rolled_back, failed or another
        word.
    message
        The verdict in one sentence, as on the terminal.
    production
        The production version now.
    threshold
        Largest mean error of a healthy model.
    error_name, unit
        The metric of all errors, and its unit.
    counted_things, described_things
        In the plural: what the error counts, if it does, and what has features.
    champion, challenger
        Versions that were compared.
    history
        Monitored batches, the oldest first; the last one is this cycle's if it has recordings.
    recordings
        Of this batch.
    verdict
        Of the gate.
    shifts
        As `feature_shifts` returns them.
    importances
        Of the challenger's features.
    features_in_words
        What the features have in common, and their unit.
    data_quality
        Recording -> note about measurements that were taken as missing.
    rejected
        Files that wait for a person.
    files
        Title -> files of that group.
    lineage
        Title -> (name -> version, hash or value).
    """

    model_name: str
    at: str
    outcome: str
    message: str
    production: str
    threshold: float
    error_name: str = "error"
    unit: str = "%"
    counted_things: str = ""
    described_things: str = "rows"
    champion: str = ""
    challenger: str = ""
    history: Sequence[MonitoredBatch] = ()
    recordings: Sequence[RecordingResult] = ()
    verdict: Verdict | None = None
    shifts: Sequence[FeatureShift] = ()
    importances: Sequence[FeatureImportance] = ()
    features_in_words: str = ""
    data_quality: Mapping[str, str] | None = None
    rejected: Sequence[Refusal] = ()
    files: Mapping[str, Sequence[TrainingFile]] | None = None
    lineage: Mapping[str, Mapping[str, object]] | None = None


def feature_shifts(trained_on: pd.DataFrame, new: pd.DataFrame) -> tuple[FeatureShift, ...]:
    """Compare the distribution of each feature, the most shifted one first.

    Parameters
    ----------
    trained_on, new
        One row per track, the same columns.

    Notes
    -----
    The statistic of the two-sample Kolmogorov-Smirnov test is the largest vertical distance of the
    two cumulative distributions, from 0 to 1. Its p-value takes tracks as independent; those of
    one recording are not, so it flatters and serves for ranking at most.

    References
    ----------
    N. V. Smirnov, "Table for estimating the goodness of fit of empirical distributions", Annals of
    Mathematical Statistics 19, 1948.
    """
    from scipy import stats

    shifts = []
    for feature in new.columns:
        samples = [table[feature].dropna().to_numpy(dtype=float) for table in (trained_on, new)]
        if not all(len(sample) for sample in samples):
            continue
        test = stats.ks_2samp(*samples, method="asymp")
        shifts.append(FeatureShift(feature, float(test.statistic), float(test.pvalue), *samples))
    return tuple(sorted(shifts, key=lambda one: (-one.statistic, one.feature)))


# --- Words ---

HEADLINES = {
    "healthy": ("✓", "Healthy", "Version {production} stays production"),
    "promoted": ("✓", "Promoted", "Version {production} is production now"),
    "not_promoted": ("!", "Not promoted", "Version {production} stays production"),
    "rolled_back": ("↶", "Rolled back", "Version {production} is production again"),
    "failed": ("✗", "Failed", "The cycle did not come to its end"),
    "waiting": ("…", "Waiting", "Nothing was judged"),
    "already_judged": ("=", "Nothing new", "Version {production} stays production"),
}
NEXT_STEPS = {
    "healthy": "Nothing.",
    "promoted": "Nothing. `python pipeline_orchestrator.py rollback` goes back to version "
    "{champion}.",
    "not_promoted": "Nothing at once: the files stay in new_gts/, and the next recordings add "
    "evidence. If this happens again and again, look at the recordings that both models get "
    "wrong, and improve the training module.",
    "rolled_back": "Find out why the version that was left failed, before its successor is "
    "trained in the same way.",
    "failed": "Do what the message says, or nothing: no file was lost, and the next run goes on. "
    "`python pipeline_orchestrator.py status` tells which version is production. If the same "
    "message comes back, look at the log.",
    "waiting": "Nothing. The next run looks again.",
    "already_judged": "Nothing, until new recordings arrive. `python pipeline_orchestrator.py "
    "--force` judges these again.",
}
REASONS = {
    "TEST_LEAK": "production was trained on some of the new recordings",
    "NOT_BETTER": "the challenger's mean error is not low enough",
    "TOO_FEW_RECORDINGS": "the models differ on too few recordings",
    "NOT_SIGNIFICANT": "the gain may be chance",
    "FORGETS": "the challenger got worse on the old recordings",
    "NO_BETTER_THAN_NO_MODEL": "the challenger is no better than no model at all",
}


def visible(value: object) -> str:
    r"""Return a text on one line with every control character and stray byte as an escape.

    Parameters
    ----------
    value
        A name, perhaps chosen to do harm.

    Examples
    --------
    >>> visible("two\nlines")
    'two\\nlines'
    """
    text = str(value).encode(errors="backslashreplace").decode()
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def _text(value: object) -> str:
    return html.escape(visible(value))


def _label(name: str) -> str:
    """Shorten a name in its middle: its beginning and its number tell it apart."""
    name = visible(name)
    if len(name) <= LONGEST_LABEL:
        return name
    half = (LONGEST_LABEL - 1) // 2
    return f"{name[:half]}…{name[-half:]}"


def _moment(at: str) -> str:
    return at[:16].replace("T", " ")


def _signed(value: float, digits: int = 1) -> str:
    text = f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
    return text if float(f"{value:.{digits}f}") else text[1:]


# --- Charts ---


@contextlib.contextmanager
def _house_style(name: str) -> Iterator[None]:
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


def draw(facts: CycleFacts) -> dict[str, Figure]:
    """Draw the charts that tell more than a number would; name -> figure.

    Parameters
    ----------
    facts
        Of the cycle.
    """
    figures = {}
    with _house_style("charts"):
        if len(facts.history) > 1:
            figures["error_over_time"] = _draw_history(facts)
        if len(facts.recordings) > 1 and _counted(facts):
            shown = _worst(facts.recordings)
            figures["true_and_predicted"] = _draw_counts(shown, facts.counted_things)
        if facts.verdict is not None and len(facts.recordings) > 1:
            figures["paired_differences"] = _draw_gains(facts, facts.verdict)
        if any(one.mean > 0 for one in facts.importances):
            figures["importance"] = _draw_importances(facts)
        for number, shift in enumerate(facts.shifts):
            figures[f"shift_{number}"] = _draw_shift(shift, facts.described_things)
    return figures


def _blank(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty chart of that size in inches, of 72 points on a page."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.tick_params(length=0)
    return figure, axes


def _note(
    axes: Axes, text: str, place: tuple[float, float], offset: tuple[int, int], **look: Any
) -> None:
    """Write beside a place of a chart, at a distance in points."""
    axes.annotate(text, place, offset, textcoords="offset points", **{"fontsize": 9, **look})


def _draw_history(facts: CycleFacts) -> Figure:
    figure, axes = _blank(5.0, 2.7)
    batches = facts.history
    places = list(range(1, len(batches) + 1))
    errors = [one.mean_error for one in batches]
    axes.vlines(
        places,
        [one.interval_low for one in batches],
        [one.interval_high for one in batches],
        color=CHAMPION,
        alpha=0.35,
        linewidth=5 if len(batches) < 30 else 2,
    )
    axes.plot(places, errors, color=CHAMPION, marker="o", markersize=5, linewidth=1.5)
    top = max(facts.threshold, *(one.interval_high for one in batches)) * 1.22
    axes.set(xlim=(0.5, len(batches) + 0.9), ylim=(0, top))
    axes.axhline(facts.threshold, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.text(
        *(1.01, facts.threshold, f"threshold\n{facts.threshold:g} {facts.unit}"),
        transform=axes.get_yaxis_transform(),
        va="center",
        fontsize=9,
    )
    for place, text in _changes(facts):
        axes.axvline(place, color=CHALLENGER, linewidth=1.2)
        _note(axes, text, (place, top), (-5, -2), color=CHALLENGER, ha="right", va="top")
    last = (places[-1], errors[-1])
    _note(
        axes,
        f"{errors[-1]:.1f} {facts.unit}",
        last,
        (-7, 5),
        ha="right",
        weight="bold",
        fontsize=10,
    )
    step = -(-len(batches) // 4)
    shown = places[::-1][::step]
    axes.set_xticks(shown, [batches[place - 1].at[:10] for place in shown], fontsize=8.5)
    axes.set(ylabel=f"mean {facts.error_name}, {facts.unit}", xlabel="monitored batches, in order")
    axes.grid(axis="x", visible=False)
    return figure


def _changes(facts: CycleFacts) -> list[tuple[float, str]]:
    """Return where production changed between two batches or after the last one, and to what."""
    versions = [*(one.version for one in facts.history), facts.production]
    return [
        (place + 0.5, f"to version {after}")
        for place, (before, after) in enumerate(pairwise(versions), 1)
        if after != before
    ]


def _worst(recordings: Sequence[RecordingResult]) -> list[RecordingResult]:
    """Return the recordings that a page shows, the worst of production first."""
    return sorted(recordings, key=lambda one: (-one.champion_error, one.name))[:MOST_ROWS]


def _draw_counts(recordings: Sequence[RecordingResult], things: str) -> Figure:
    figure, axes = _blank(5.0, 3.7)
    true = [one.true_count or 0 for one in recordings]
    judged = [one for one in recordings if one.challenger_count is not None]
    counts = [one.champion_count or 0 for one in recordings]
    everything = [*true, *counts, *(one.challenger_count or 0 for one in judged)]
    margin = 0.1 * (max(everything) - min(everything)) + 1
    ends = [max(min(everything) - margin, 0), max(everything) + margin]
    axes.plot(ends, ends, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    middle = 0.25 * ends[0] + 0.75 * ends[1]
    _note(axes, "exactly right", (middle, middle), (8, -12), color=MUTED)
    axes.vlines(
        [one.true_count or 0 for one in judged],
        [one.champion_count or 0 for one in judged],
        [one.challenger_count or 0 for one in judged],
        color=LINE,
        linewidth=1,
    )
    axes.scatter(true, counts, s=38, facecolors="none", edgecolors=CHAMPION, linewidths=1.6)
    axes.scatter(
        [one.true_count or 0 for one in judged],
        [one.challenger_count or 0 for one in judged],
        s=22,
        marker="s",
        color=CHALLENGER,
    )
    axes.text(0.02, 0.97, "○ production", transform=axes.transAxes, va="top", color=CHAMPION)
    if judged:
        axes.text(0.02, 0.9, "■ challenger", transform=axes.transAxes, va="top", color=CHALLENGER)
    for one in recordings[:3]:
        if one.champion_error > 0:
            place = (one.true_count or 0, one.champion_count or 0)
            above = place[1] > place[0]
            _note(axes, _label(one.name), place, (0, 7 if above else -14), ha="center")
    axes.set(xlim=ends, ylim=ends)
    axes.set(xlabel=f"real {things} of a recording", ylabel=f"counted {things}")
    return figure


def _draw_gains(facts: CycleFacts, verdict: Verdict) -> Figure:
    recordings = sorted(_worst(facts.recordings), key=lambda one: (one.gain, one.name))
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
    axes.set_yticks(
        places if named else [], [_label(one.name) for one in recordings][: 10**6 * named]
    )
    axes.set_ylim(0.2, len(recordings) + 1.9)
    left = verdict.difference < (min(gains) + max(gains)) / 2
    _note(
        *(axes, f"mean {_signed(verdict.difference)}", (verdict.difference, len(recordings) + 1.8)),
        (5, -2) if left else (-5, -2),
        color=CHALLENGER,
        va="top",
        ha="left" if left else "right",
        weight="bold",
        fontsize=10,
    )
    axes.set_xlabel(f"production's error minus challenger's, {verdict.difference_unit}")
    axes.grid(axis="y", visible=False)
    return figure


def _draw_importances(facts: CycleFacts) -> Figure:
    shown = facts.importances[:SHOWN_IMPORTANCES][::-1]
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
    axes.set_yticks(places, [visible(one.feature) for one in shown], fontsize=9)
    for place, one in zip(places, shown, strict=True):
        end = max(one.mean + one.deviation, 0)
        _note(axes, f"{one.mean:.2f}", (end, place), (5, 0), va="center")
    axes.margins(x=0.12)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_xlabel(f"more {facts.described_things} judged wrongly, of 100")
    axes.grid(axis="y", visible=False)
    return figure


def _draw_shift(shift: FeatureShift, things: str) -> Figure:
    """Draw both distributions over the middle 98 % of their values."""
    import numpy as np

    figure, axes = _blank(3.0, 1.7)
    low, high = np.quantile(np.concatenate([shift.trained_on, shift.new]), [0.01, 0.99])
    edges = np.linspace(low, high if high > low else low + 1, 26)
    for values, colour, filled in ((shift.trained_on, TRAINED_ON, True), (shift.new, NEW, False)):
        share = 100 * np.histogram(values, edges)[0] / len(values)
        axes.stairs(share, edges, color=colour, fill=filled, alpha=0.45 if filled else 1, lw=1.8)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="value", ylabel=f"{things}, %")
    axes.grid(axis="x", visible=False)
    axes.locator_params(nbins=5)
    return figure


def inline_svg(figure: Figure, name: str, alternative: str) -> str:
    """Return a chart as SVG for a page: in the colours of its theme, with ids of its own.

    Parameters
    ----------
    figure
        The chart.
    name
        Different for each chart of a page.
    alternative
        What it shows, for those who do not see it.
    """
    stream = io.StringIO()
    with _house_style(name):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    written = stream.getvalue()
    body = written[written.index('<g id="figure_1">') :]
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    body = re.sub(r'\bxlink:href="#', f'href="#{name}-', body)
    body = re.sub(r"font: (?:(\d+|bold) )?([\d.]+)px [^;\"]*", _font, body)
    for colour, variable in THEME.items():
        body = body.replace(colour, variable)
    body = re.sub(r">\s+<", "><", body)
    width, height = 72 * figure.get_size_inches()
    box = f'viewBox="0 0 {width:g} {height:g}"'
    return f'<svg role="img" aria-label="{_text(alternative)}" {box}>{body.strip()}'


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}px"


# --- Pieces of a page ---

NOTHING = "\N{EN DASH}"
NUMBER, HASH, WORDS, WORD = "number", "hash", "words", "word"


def _table(caption: str, columns: Mapping[str, str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table: column -> kind of its cells; the first cell of a row is its header."""
    heads = "".join(
        f'<th scope="col" class="{kind}">{_text(name)}</th>' for name, kind in columns.items()
    )
    kinds = list(columns.values())
    body = "".join(
        f'<tr><th scope="row" class="{kinds[0]}">{_text(row[0])}</th>'
        + "".join(
            f'<td class="{kind}">{_text(cell)}</td>'
            for kind, cell in zip(kinds[1:], row[1:], strict=True)
        )
        + "</tr>"
        for row in rows[:MOST_ROWS]
    )
    left_out = len(rows) - MOST_ROWS
    if left_out > 0:
        caption += f"; {left_out} more are left out here, MLflow has them all"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(caption)}">'
        f"<table><caption>{_text(caption)}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _more(summary: str, *parts: str) -> str:
    return f"<details><summary>{_text(summary)}</summary>{''.join(parts)}</details>"


def _chart(figures: Mapping[str, Figure], name: str, alternative: str, caption: str = "") -> str:
    if name not in figures:
        return ""
    text = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{text}{inline_svg(figures[name], name, alternative)}</figure>"


def _paragraph(text: str) -> str:
    return f"<p>{_text(text)}</p>"


# --- Sections ---


def _head(facts: CycleFacts) -> str:
    fallback = (
        "•",
        facts.outcome.replace("_", " ").capitalize(),
        "Production is version {production}",
    )
    mark, word, headline = HEADLINES.get(facts.outcome, fallback)
    step = NEXT_STEPS.get(facts.outcome, "")
    words = {"production": facts.production, "champion": facts.champion}
    if facts.rejected:
        step += f" Rejected files that wait to be mended: {len(facts.rejected)}, see below."
    step = re.sub("`(.*?)`", r"<code>\1</code>", _text(step.format(**words)))
    todo = f"<p><strong>What to do:</strong> {step}</p>" if step else ""
    sentence = facts.message[:1].upper() + facts.message[1:].replace("->", "→")
    return (
        f'<header id="verdict"><p class="eyebrow">Cycle report · {_text(facts.model_name)} · '
        f'<time datetime="{_text(facts.at)}">{_text(_moment(facts.at))}</time></p>'
        f'<h1><span class="badge {_text(facts.outcome)}"><span aria-hidden="true">{mark}</span> '
        f"{_text(word)}</span> {_text(headline.format(**words))}</h1>"
        f'<p class="lead">{_text(sentence)}</p>{_reasons(facts)}{todo}{_tiles(facts)}</header>'
    )


def _reasons(facts: CycleFacts) -> str:
    if facts.verdict is None or facts.verdict.promote:
        return ""
    words = [REASONS.get(reason, reason) for reason in facts.verdict.reasons]
    return _paragraph(f"In plain words: {'; '.join(words)}.")


def _tiles(facts: CycleFacts) -> str:
    tiles = []
    if facts.recordings:
        batch = facts.history[-1]
        low, high = batch.interval_low, batch.interval_high
        interval = f"95 % interval {low:.1f} to {high:.1f} {facts.unit}"
        error = f"{batch.mean_error:.1f} {facts.unit}"
        limit = f"{facts.threshold:g} {facts.unit}"
        tiles += [
            (error, f"error of version {batch.version}", interval),
            (limit, "threshold", "largest mean error of a healthy model"),
        ]
        if facts.verdict is None:
            tiles.append((str(len(facts.recordings)), "new recordings", ""))
    if facts.verdict is not None:
        verdict = facts.verdict
        error = f"{verdict.challenger_mean_error:.1f} {facts.unit}"
        name = f"version {facts.challenger}" if facts.challenger else "the challenger"
        tiles += [
            (error, f"error of {name}", "on the same recordings, which it did not train on"),
            (f"{verdict.p_value:.2g}", "p-value", f"{verdict.n_recordings} recordings, paired"),
        ]
    body = "".join(
        f"<div><dt>{_text(name)}</dt><dd><strong>{_text(value)}</strong>"
        f"<span>{_text(note)}</span></dd></div>"
        for value, name, note in tiles
    )
    return f"<dl>{body}</dl>" if body else ""


def _over_time(facts: CycleFacts, figures: Mapping[str, Figure]) -> str:
    batches = facts.history
    if not batches:
        return ""
    above = sum(not one.mean_error <= facts.threshold for one in batches)
    text = (
        f"{len(batches)} batches were monitored, {above} of them above the threshold of "
        f"{facts.threshold:g} {facts.unit}."
        if len(batches) > 1
        else f"This is the first monitored batch: {batches[0].mean_error:.1f} {facts.unit}, "
        f"threshold {facts.threshold:g} {facts.unit}."
    )
    changes = "; ".join(f"{what} after batch {place:.0f}" for place, what in _numbered(facts))
    alternative = (
        f"Line chart of the mean {facts.error_name} of production over {len(batches)} batches, "
        f"from {batches[0].mean_error:.1f} to {batches[-1].mean_error:.1f} {facts.unit}, with the "
        f"threshold of {facts.threshold:g} {facts.unit}. Changes of production: "
        f"{changes or 'none'}. The table below has all values."
    )
    table = _table(
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
        [
            (
                number,
                _moment(one.at),
                one.version,
                one.n_recordings,
                f"{one.mean_error:.1f}",
                f"{one.interval_low:.1f} to {one.interval_high:.1f}",
                one.outcome.replace("_", " "),
            )
            for number, one in reversed(list(enumerate(batches, 1)))
        ],
    )
    caption = "Points: mean over the recordings of a batch. Bars: 95 % interval. "
    caption += "Vertical lines: production changed."
    return (
        _paragraph(text)
        + _chart(figures, "error_over_time", alternative, caption)
        + _more("The values as a table", table)
    )


def _numbered(facts: CycleFacts) -> list[tuple[int, str]]:
    return [(int(place), what) for place, what in _changes(facts)]


def _by_recording(facts: CycleFacts, figures: Mapping[str, Figure]) -> str:
    if not facts.recordings:
        return ""
    judged = facts.verdict is not None
    counted = _counted(facts)
    columns = {"recording": WORDS}
    if counted:
        columns |= {f"real {facts.counted_things}": NUMBER, "production": NUMBER}
    columns[f"production's error, {facts.unit}"] = NUMBER
    if judged:
        columns |= {"challenger": NUMBER} if counted else {}
        columns |= {f"challenger's error, {facts.unit}": NUMBER, "gain": NUMBER}
    rows = []
    for one in _worst(facts.recordings):
        row: list[object] = [one.name]
        row += [one.true_count, one.champion_count] if counted else []
        row.append(f"{one.champion_error:.1f}")
        if judged:
            row += [one.challenger_count] if counted else []
            row += [f"{one.challenger_error:.1f}", _signed(one.gain)]
        rows.append(row)
    alternative = (
        f"Scatter chart of counted against real {facts.counted_things}, one point per recording "
        "and model; points on the diagonal are exactly right. The table below has all values."
    )
    return (
        _paragraph(_sums(facts) if counted else f"{len(facts.recordings)} recordings.")
        + _chart(figures, "true_and_predicted", alternative)
        + _table("By recording, the worst of production first", columns, rows)
    )


def _counted(facts: CycleFacts) -> bool:
    """Say whether the error is one of counts."""
    return bool(facts.counted_things) and all(
        one.true_count is not None and one.champion_count is not None for one in facts.recordings
    )


def _sums(facts: CycleFacts) -> str:
    """Say how many things there are in all, and by which model."""
    true = sum(one.true_count or 0 for one in facts.recordings)
    by_production = sum(one.champion_count or 0 for one in facts.recordings)
    text = (
        f"{len(facts.recordings)} recordings hold {true} real {facts.counted_things}; production "
        f"counts {by_production} ({_signed(by_production - true, 0)})"
    )
    if facts.verdict is None:
        return f"{text}."
    by_challenger = sum(one.challenger_count or 0 for one in facts.recordings)
    return (
        f"{text}, the challenger {by_challenger} ({_signed(by_challenger - true, 0)}), counted on "
        "each recording by a model that did not train on it."
    )


def _criteria(facts: CycleFacts, _figures: Mapping[str, Figure]) -> str:
    if facts.verdict is None:
        return ""
    marks = {
        "passed": "✓ passed",
        "failed": "✗ failed",
        "not applicable": f"{NOTHING} not applicable",
    }
    rows = [
        (
            one.name,
            NOTHING if one.value is None else f"{one.value:.4g}",
            NOTHING if one.limit is None else f"{one.limit:.4g}",
            marks[one.outcome.value],
            one.explanation,
        )
        for one in facts.verdict.criteria
    ]
    columns = {"criterion": WORDS, "value": NUMBER, "limit": NUMBER, "result": WORD}
    table = _table(
        "A challenger is promoted if no criterion fails", {**columns, "in words": WORDS}, rows
    )
    needed = facts.verdict.recordings_needed
    return table + (
        _paragraph(f"A gain of this size needs about {needed} recordings in all.") if needed else ""
    )


def _differences(facts: CycleFacts, figures: Mapping[str, Figure]) -> str:
    verdict = facts.verdict
    if verdict is None:
        return ""
    better, worse = (sum(sign * one.gain > 0 for one in facts.recordings) for sign in (1, -1))
    interval = f"{_signed(verdict.difference_low)} to {_signed(verdict.difference_high)}"
    text = (
        f"The challenger is closer to the truth on {better} recordings and farther from it on "
        f"{worse}; {len(facts.recordings) - better - worse} are alike. Mean gain "
        f"{_signed(verdict.difference)} {verdict.difference_unit}, 95 % interval {interval} "
        "(bootstrap over recordings)."
    )
    alternative = (
        f"Chart of the gain of the challenger on each recording, with the mean of "
        f"{verdict.difference:.1f} and its interval from {verdict.difference_low:.1f} to "
        f"{verdict.difference_high:.1f}. The table of the section before has the values as gain."
    )
    caption = "Right of 0 the challenger is better. Band: 95 % interval of the mean."
    return _paragraph(text) + _chart(figures, "paired_differences", alternative, caption)


def _changed_data(facts: CycleFacts, figures: Mapping[str, Figure]) -> str:
    if not facts.shifts:
        return ""
    import numpy as np

    first = facts.shifts[0]
    text = (
        f"{facts.features_in_words} {len(first.new)} new {facts.described_things} against "
        f"{len(first.trained_on)} that production was trained on. The most shifted feature is "
        f"{first.feature} (distance {first.statistic:.2f})."
    )
    test = (
        "Test: two-sample Kolmogorov-Smirnov; its statistic is the largest distance of the two "
        f"cumulative distributions, 0 alike, 1 apart. The {facts.described_things} of one "
        "recording are not independent, so the p-values flatter: rank by the distance."
    )
    panels = [
        _chart(
            figures,
            f"shift_{number}",
            f"Histogram of {one.feature} of new {facts.described_things} against those trained "
            f"on: distance {one.statistic:.2f}. The table below has the quantiles.",
            f"<strong>{_text(one.feature)}</strong><br>distance {one.statistic:.2f}",
        )
        for number, one in enumerate(facts.shifts)
    ]
    rows = []
    for one in facts.shifts:
        old, new = (np.quantile(values, [0.1, 0.5, 0.9]) for values in (one.trained_on, one.new))
        quantiles = [" / ".join(f"{value:.2f}" for value in values) for values in (old, new)]
        rows.append((one.feature, f"{one.statistic:.3f}", f"{one.p_value:.2g}", *quantiles))
    columns = {"feature": WORDS, "distance": NUMBER, "p-value": NUMBER}
    columns |= {"trained on": NUMBER, "new": NUMBER}
    table = _table("Quantiles of each feature: 10 % / 50 % / 90 %", columns, rows)
    key = '<span class="trained">■ trained on</span> <span class="new">□ new</span>'
    return (
        _paragraph(text)
        + _paragraph(test)
        + f'<p class="key">{key}</p>'
        + f'<div class="panels">{"".join(panels[:SHOWN_SHIFTS])}</div>'
        + _more("All values as a table", table)
        + _more("The other features", f'<div class="panels">{"".join(panels[SHOWN_SHIFTS:])}</div>')
    )


def _reliance(facts: CycleFacts, figures: Mapping[str, Figure]) -> str:
    if not facts.importances:
        return ""
    text = (
        f"Permutation importance: how many more of 100 {facts.described_things} are judged wrongly "
        "when one feature is shuffled, on those that the model was not trained on. Features that "
        "say the same can stand in for each other, so a low value does not mean useless."
    )
    rows = [(one.feature, f"{one.mean:.2f}", f"{one.deviation:.2f}") for one in facts.importances]
    alternative = (
        f"Bar chart of permutation importance; the highest is {facts.importances[0].feature} with "
        f"{facts.importances[0].mean:.2f}. The table below has all values."
    )
    columns = {"feature": WORDS, "mean": NUMBER, "deviation over folds": NUMBER}
    return (
        _paragraph(text)
        + _chart(
            figures, "importance", alternative, "Lines: ± 1 standard deviation over the folds."
        )
        + _more("All values as a table", _table("Importance of every feature", columns, rows))
    )


def _odd_files(facts: CycleFacts, _figures: Mapping[str, Figure]) -> str:
    parts = []
    if facts.data_quality:
        rows = sorted(facts.data_quality.items())
        caption = "Measurements that were taken as missing; the recordings were used"
        parts.append(_table(caption, {"recording": WORDS, "note": WORDS}, rows))
    if facts.rejected:
        parts.append(
            _table(
                "Files in new_gts/rejected/; mend them there, then: "
                "python pipeline_orchestrator.py requeue",
                {"file": WORDS, "what is wrong": WORDS, "what to do": WORDS},
                [(one.name, one.what, one.remedy) for one in facts.rejected],
            )
        )
    return "".join(parts) or _paragraph("Nothing to note, and no file is rejected.")


def _lineage(facts: CycleFacts, _figures: Mapping[str, Figure]) -> str:
    parts = [
        _table(title, {"name": WORDS, "value": HASH}, list(values.items()))
        for title, values in (facts.lineage or {}).items()
        if values
    ]
    parts += [
        _more(
            f"{title}: {len(files)} files, {sum(one.rows for one in files)} rows",
            _table(
                title,
                {"file": WORDS, "rows": NUMBER, "SHA-256": HASH},
                [(one.name, one.rows, one.sha256) for one in files],
            ),
        )
        for title, files in (facts.files or {}).items()
        if files
    ]
    return "".join(parts)


SECTIONS = {
    "over-time": ("Production's error over time", _over_time),
    "recordings": ("This batch, recording by recording", _by_recording),
    "criteria": ("The gate's criteria", _criteria),
    "differences": ("Paired differences", _differences),
    "data": ("What changed in the data", _changed_data),
    "reliance": ("What the challenger relies on", _reliance),
    "files": ("Data quality and rejected files", _odd_files),
    "lineage": ("Lineage", _lineage),
}


def page(facts: CycleFacts, figures: Mapping[str, Figure]) -> str:
    """Return the page of a cycle.

    Parameters
    ----------
    facts
        Of the cycle.
    figures
        As `draw` returns them for these facts.
    """
    bodies = {name: make(facts, figures) for name, (_, make) in SECTIONS.items()}
    shown = {name: SECTIONS[name][0] for name, body in bodies.items() if body}
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title in shown.items())
    sections = "".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>{bodies[name]}</section>'
        for name, title in shown.items()
    )
    title = _text(f"{facts.outcome.replace('_', ' ')}: {facts.model_name}, {_moment(facts.at)}")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>"
        '<a class="skip" href="#verdict">To the verdict</a><main>'
        f'{_head(facts)}<nav aria-label="Contents"><ul>{links}</ul></nav>{sections}'
        "</main></body></html>\n"
    )


STYLE = """
:root{color-scheme:light dark;--paper:#fff;--panel:#f6f8fa;--ink:#1f2328;--muted:#59636e;
--line:#d0d7de;--champion:#b84f00;--challenger:#0072b2;--trained:#6e7781;--new:#007a59;
--good:#116329;--good-paper:#dafbe1;--bad:#9a1c22;--bad-paper:#ffebe9;--wait:#7d4e00;
--wait-paper:#fff3c4}
@media(prefers-color-scheme:dark){:root{--paper:#0d1117;--panel:#161b22;--ink:#e6edf3;
--muted:#9da7b1;--line:#3a424c;--champion:#ff9a57;--challenger:#5cb8f0;--trained:#9da7b1;
--new:#3ad6a8;--good:#7ee787;--good-paper:#12351f;--bad:#ff9a94;--bad-paper:#42171a;
--wait:#f2cc60;--wait-paper:#3a2d0a}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{max-width:54rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.6rem;line-height:1.25;margin:.2rem 0 .6rem;text-wrap:balance}
h2{font-size:1.2rem;margin:2.6rem 0 .5rem;padding-top:.9rem;border-top:1px solid var(--line)}
p{margin:.5rem 0;max-width:46rem}
.eyebrow,figcaption,caption,dt,dd span{color:var(--muted);font-size:.875rem}
.lead{font-size:1.1rem;overflow-wrap:anywhere}
.badge{display:inline-block;font-size:1rem;padding:.15rem .6rem;border-radius:1rem;
vertical-align:.15em;margin-right:.3rem;border:1px solid}
.badge.healthy,.badge.promoted{color:var(--good);background:var(--good-paper)}
.badge.failed{color:var(--bad);background:var(--bad-paper)}
.badge.not_promoted,.badge.rolled_back{color:var(--wait);background:var(--wait-paper)}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.75rem;
margin:1.2rem 0}
dl div{background:var(--panel);border:1px solid var(--line);border-radius:.5rem;padding:.7rem .9rem}
dt{margin:0}dd{margin:0}dd strong{display:block;font-size:1.7rem;line-height:1.3;
font-variant-numeric:tabular-nums}dd span{display:block;line-height:1.35}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;padding:0;margin:1rem 0 0;
font-size:.9rem}
a{color:var(--challenger)}
a:focus-visible,summary:focus-visible,.scroll:focus-visible{outline:3px solid var(--challenger);
outline-offset:2px}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:.5rem;background:var(--paper);
padding:.4rem}
figure{margin:1rem 0;max-width:37rem}
figcaption{margin-bottom:.3rem}figcaption strong{color:var(--ink)}
svg{display:block;width:100%;height:auto}
svg *{stroke-linejoin:round;stroke-linecap:butt}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:.4rem 1.4rem}
.panels figure{margin:.4rem 0}
.key span{margin-right:1rem;font-weight:600}.trained{color:var(--trained)}.new{color:var(--new)}
.scroll{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding-bottom:.4rem}
th,td{text-align:left;vertical-align:top;padding:.35rem .8rem .35rem 0;
border-bottom:1px solid var(--line)}
tbody th{font-weight:500;overflow-wrap:anywhere;min-width:8rem}thead th{font-weight:600}
th.number,td.number{text-align:right;white-space:nowrap;min-width:0}
td.words{min-width:11rem}td.word{white-space:nowrap}
td.hash,code{font-family:ui-monospace,monospace;font-size:.85em;overflow-wrap:anywhere}
summary{cursor:pointer;color:var(--challenger);padding:.3rem 0}
@media(max-width:30rem){h1{font-size:1.35rem}.badge{display:table;margin-bottom:.4rem}
dl{grid-template-columns:1fr 1fr}
dd strong{font-size:1.35rem}}
@media print{details{display:block}.scroll{overflow:visible}}
"""
