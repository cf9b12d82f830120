"""What the tests of pages share: a cycle and its facts without any model, and a reader of HTML."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from retraining import gate
from retraining.cycle import Batch, Challenger, Champion, Cycle, CycleResult, Monitoring
from retraining.estimates import Estimated
from retraining.ground_truth import GroundTruthFile
from retraining.known_recordings import KnownRecordings
from retraining.outcome import Outcome
from retraining.registry.facts import Manifest, MonitoredBatch, RegisteredVersion, TrainingFile
from retraining.report.drift import compare_examples
from retraining.report.facts import FeatureImportance, PageFacts
from retraining.report.page import make_page
from retraining.settings import Settings
from retraining.training import (
    ERROR,
    FILE,
    PREDICTED_COUNT,
    TRUE_COUNT,
    TrainedModel,
    Training,
)

VOID = {"meta", "br"}
HOSTILE = "<script>alert('x')</script>\n\"&\udcff\u202e$x_1$\x00.csv"
CHAMPION_ERRORS, CHALLENGER_ERRORS = (30.0, 20.0, 10.0, 5.0, 40.0, 0.0), (5.0, 0, 10, 10, 0, 0)
NAMES = ("0.csv", "1.csv", "2.csv", "3.csv", "4.csv", "5.csv")
DAY_MS = 86_400_000
FIRST_NIGHT_MS = 1_795_312_800_000
"""22 November 2026, about two o'clock at night."""


# --- Reading ---


class Reader(HTMLParser):
    """Reads a page as a browser would and complains about what a person could not use."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.headings: list[int] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> in {self.open}"

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        """Everything that can be read."""
        return " ".join("".join(self.words).split())


def read(page: str) -> Reader:
    """Read a page and check what holds for every page."""
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert len(page.encode()) < 1_000_000
    assert "http" not in page.lower().replace("http-equiv", "")
    names = [tag for tag, _ in reader.tags]
    assert not {"script", "link", "img", "iframe", "object"} & set(names)
    assert not [key for _, values in reader.tags for key in values if key.startswith("on")]
    assert len(set(reader.ids)) == len(reader.ids)
    referred = re.findall(r'(?:href="|url\()#([^")]+)', page)
    assert set(referred) <= set(reader.ids)
    assert reader.headings[0] == 1
    assert reader.headings.count(1) == 1
    steps = zip(reader.headings, reader.headings[1:], strict=False)
    assert all(after - before <= 1 for before, after in steps)
    assert all(values["aria-label"] for tag, values in reader.tags if tag == "svg")
    assert all(values["scope"] in ("row", "col") for tag, values in reader.tags if tag == "th")
    assert names.count("caption") == names.count("table")
    assert "prefers-color-scheme:dark" in page
    assert 'name="viewport"' in page
    return reader


def read_page(facts: PageFacts) -> Reader:
    """Make the page of these facts and read it."""
    return read(make_page(facts).content)


# --- A cycle without a model ---


def make_training(**values: Any) -> Training:
    """Return a training module that counts stems; `values` are names of the contract."""
    module = {
        "MODEL_COLUMNS": ("speed", "area"),
        "PACKAGES": ("numpy",),
        "ERROR_NAME": "counting error",
        "ERROR_UNIT": "%",
        "THRESHOLD": 10,
        "COUNTED_THINGS": "stems",
        "DESCRIBED_THINGS": "tracks",
        "LABEL_COLUMN": "is_stem",
        "examples": lambda rows: rows,
        **values,
    }
    return Training(SimpleNamespace(**module), Path("stems.py"), "cd" * 32)


def make_recording(name: str, rows: pd.DataFrame | None = None) -> GroundTruthFile:
    """Return a ground truth file that gives these rows."""
    rows = pd.DataFrame() if rows is None else rows.assign(**{FILE: name})
    return GroundTruthFile(
        name, Path("new_gts", name), f"hash of {name}", len(rows), read=lambda _path: rows
    )


def make_manifest(names: Sequence[str]) -> Manifest:
    """Return a manifest of recordings as `make_recording` makes them."""
    return Manifest(tuple(TrainingFile(name, f"hash of {name}", 100) for name in names))


def make_errors(names: Sequence[str], errors: Sequence[float], *, counted: bool) -> pd.DataFrame:
    """Return a table of errors, with counts that are off by ever more."""
    # The text type of pandas 3 holds no stray bytes.
    index: Any = pd.Index(list(names), dtype="object", name=FILE)
    table = pd.DataFrame({ERROR: errors}, index=index)
    if counted:
        table[TRUE_COUNT] = 20
        table[PREDICTED_COUNT] = range(20, 20 + len(names))
    return table


def make_cycle(
    *,
    names: Sequence[str] = NAMES,
    champion_errors: Sequence[float] = CHAMPION_ERRORS,
    challenger_errors: Sequence[float] | None = CHALLENGER_ERRORS,
    training: Training | None = None,
    data_quality: dict[str, str] | None = None,
    counted: bool = True,
    make_rows: Callable[[str], pd.DataFrame | None] = lambda _: None,
    **settings: Any,
) -> Cycle:
    """Return a cycle that was judged, or, without errors of a challenger, only monitored."""
    training = training or make_training()
    values: dict[str, Any] = {"model_name": "Stems", **settings}
    old = ("old_1.csv", "old_2.csv")
    cycle = Cycle(
        settings=Settings(**values),
        registry=None,  # type: ignore[arg-type]
        training=training,
        champion=Champion(RegisteredVersion(1, "run 1", {}, 0), None, make_manifest(old)),
        known=KnownRecordings(Path(".pipeline_recordings"), has_identity=True),
        id="cycle",
        batch=Batch(
            tuple(make_recording(name, make_rows(name)) for name in names),
            "batch",
            data_quality or {},
        ),
        monitoring=Monitoring(
            make_errors(names, champion_errors, counted=counted),
            *(float(np.mean(champion_errors)) + step for step in (0, -5, 5, 0)),
        ),
        monitoring_run="run of monitoring",
    )
    if challenger_errors is not None:
        learnt = (*old, *names)
        known = [0.0] * len(old)
        errors = make_errors(learnt, [*known, *challenger_errors], counted=counted)
        cycle.challenger = Challenger(
            make_trained(errors, [make_rows(name) for name in learnt]),
            make_manifest(learnt),
            RegisteredVersion(2, "run 2", {}, 0),
        )
        unit = training.error_unit
        cycle.verdict = gate.judge(champion_errors, challenger_errors, unit=unit)
    return cycle


def make_trained(errors: pd.DataFrame, rows: Sequence[pd.DataFrame | None]) -> TrainedModel:
    """Return what a training returns, without a model."""
    tables = [
        table.set_axis(np.repeat([name], len(table)))
        for name, table in zip(errors.index, rows, strict=True)
        if table is not None
    ]
    return TrainedModel(
        model=None,
        out_of_fold=errors,
        in_sample=errors,
        input_example=pd.DataFrame(),
        row_counts={},
        data_quality={},
        examples=pd.concat(tables) if tables else pd.DataFrame(),
        importance=None,
    )


def ended(cycle: Cycle, outcome: Outcome, message: str = "so it is", **facts: Any) -> Cycle:
    """Return a cycle with its result."""
    return replace(cycle, result=CycleResult(outcome, message, facts))


def make_batch(number: int, **values: Any) -> MonitoredBatch:
    """Return the monitored batch of a night, the first one in the night FIRST_NIGHT_MS."""
    error = 21.0 + number
    batch = MonitoredBatch(
        at_ms=FIRST_NIGHT_MS + number * DAY_MS,
        run_id=f"run {number}",
        version="1",
        batch=f"batch {number}",
        n_recordings=6,
        mean_error=error,
        interval_low=error - 5,
        interval_high=error + 5,
        unit="%",
        threshold=10.0,
        outcome="healthy",
    )
    return replace(batch, **values)


def make_estimate(number: int, **values: Any) -> Estimated:
    """Return what was estimated on the evening before the batch of that number."""
    evening = (FIRST_NIGHT_MS + (number - 0.5) * DAY_MS) / 1000
    at = datetime.datetime.fromtimestamp(evening, datetime.UTC)
    error = 18.0 + number
    estimate = Estimated(
        model_name="Stems",
        version=1,
        run_id="run 1",
        at=at.isoformat(),
        n_files=20,
        n_new=2,
        n_recordings=15,
        mean_error=error,
        mean_error_low=error - 9,
        mean_error_high=error + 9,
        unit="%",
        threshold=10.0,
        unsure=0.25,
        outside=0.06,
        n_unlike=1,
    )
    return replace(estimate, **values)


def make_facts(**values: Any) -> PageFacts:
    """Return the facts of a small cycle that ended in a promotion, without any model."""
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {"speed": random.normal(size=300), "area": random.normal(size=300)},
        index=np.repeat(NAMES, 50),
    )
    cycle = values.pop("cycle", None) or make_cycle()
    facts = PageFacts(
        settings=cycle.settings,
        at="2026-11-23T02:00:07+01:00",
        outcome=Outcome.PROMOTED,
        message="promoted: version 2 replaces version 1: 17.5 % -> 4.2 %",
        production="2",
        training=cycle.training,
        cycle=cycle,
        history=tuple(make_batch(number) for number in range(3)),
        changed=compare_examples(table, table.assign(area=table["area"] + 2)),
        importances=(FeatureImportance("speed", 3.2, 0.4), FeatureImportance("area", -0.1, 0.2)),
        estimates=tuple(make_estimate(number) for number in range(3)),
        doubts=({"file": NAMES[0], "object_id": 7, "label": "stem", "doubt": 0.97},),
        lineage={"Packages": {"python": "3.11"}},
    )
    return replace(facts, **values)
