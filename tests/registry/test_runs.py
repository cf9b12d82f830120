"""Runs of dead cycles, and what is read from runs."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from mlflow.exceptions import MlflowException

from retraining.errors import PipelineError, TryLaterError
from retraining.registry import open_registry
from retraining.registry.facts import (
    MANIFEST_FILE,
    MONITORING_RUN,
    PROMOTION_RUN,
    RETRAINING_RUN,
    RunRecord,
)
from retraining.registry.runs import Runs

SettingsOf = Callable[..., Any]


class TestTidying:
    """Runs of dead cycles."""

    def test_only_runs_of_this_home_are_closed(self, home: Path, settings_of: SettingsOf) -> None:
        """Another home's run on a shared store goes on."""
        registry = open_registry(settings_of(home))
        experiment = registry.runs.experiment_id()
        ours = registry.runs.connection.client.create_run(
            experiment,
            tags={"pipeline_home": registry.runs.connection.home_id},
            run_name="ModelMonitoring",
        )
        theirs = registry.runs.connection.client.create_run(
            experiment, tags={"pipeline_home": "elsewhere"}
        )
        older = registry.runs.connection.client.create_run(
            experiment, tags={"pipeline_home": f"a-host-of-old:{home}"}
        )
        registry.runs.close_left_over("", registry.production.number())
        for run in (ours, older):
            assert registry.runs.connection.client.get_run(run.info.run_id).info.status == "KILLED"
        assert registry.runs.connection.client.get_run(theirs.info.run_id).info.status == "RUNNING"

    def test_a_promotion_that_happened_belongs_to_history(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """Killed after the alias had moved: the run is finished, not killed."""
        registry = open_registry(settings_of(home))
        for target, status in (("1", "FINISHED"), ("9", "KILLED")):
            run = registry.runs.connection.client.create_run(
                registry.runs.experiment_id(),
                tags={"pipeline_home": registry.runs.connection.home_id, "pipeline_to": target},
                run_name=PROMOTION_RUN,
            )
            registry.runs.close_left_over("", registry.production.number())
            assert registry.runs.connection.client.get_run(run.info.run_id).info.status == status


class TestArtifacts:
    """Files of runs."""

    @pytest.mark.parametrize(
        ("uri", "error"), [("http://127.0.0.1:9", TryLaterError), ("", MlflowException)]
    )
    def test_a_file_that_is_listed_and_not_given(
        self,
        home: Path,
        settings_of: SettingsOf,
        monkeypatch: pytest.MonkeyPatch,
        uri: str,
        error: type[Exception],
    ) -> None:
        """A server that fails between both is asked again later, whatever MLflow calls it."""
        settings = settings_of(home)
        runs = open_registry(settings).runs
        champion = open_registry(settings).production.champion()

        def fail(*_: Any) -> str:
            raise MlflowException("please ensure that the path is correct")

        monkeypatch.setattr(runs.connection.client, "download_artifacts", fail)
        other = dataclasses.replace(settings, tracking_uri=uri)
        there = Runs(dataclasses.replace(runs.connection, settings=other))
        with pytest.raises(error, match="please ensure that the path is correct"):
            there.artifact(champion.run_id, MANIFEST_FILE)


class TestFacts:
    """What is read from runs, as values of ours."""

    def finished(self, settings: Any, name: str, tags: dict[str, str], **values: Any) -> str:
        """Leave a run as a cycle of the same home does; return its id."""
        runs = open_registry(settings).runs
        with runs.open(name, tags) as run_id:
            runs.log(run_id, RunRecord(**values))
        return run_id

    def test_a_monitored_batch(self, home: Path, settings_of: SettingsOf) -> None:
        """With everything that its run has, found by its tags, the newest first."""
        settings = settings_of(home)
        tags = {"pipeline_batch": "b1", "pipeline_champion": "1", "error_unit": "m"}
        metrics = {"mean_error": 0.5, "mean_error_low": 0.25, "mean_error_high": 0.75}
        for outcome in ("healthy", "not_promoted"):
            run_id = self.finished(
                settings,
                MONITORING_RUN,
                {**tags, "pipeline_outcome": outcome},
                metrics={**metrics, "recordings": 6},
                params={"threshold": 0.25},
            )
        newest, older = open_registry(settings).runs.monitored({"pipeline_batch": "b1"})
        assert (older.outcome, newest.outcome, newest.run_id) == ("healthy", "not_promoted", run_id)
        assert (newest.version, newest.batch, newest.unit) == ("1", "b1", "m")
        assert (newest.mean_error, newest.interval_low, newest.interval_high) == (0.5, 0.25, 0.75)
        assert (newest.n_recordings, newest.threshold) == (6, 0.25)
        assert open_registry(settings).runs.monitored({"pipeline_batch": "b2"}) == []

    def test_a_monitored_batch_that_was_cut_off(self, home: Path, settings_of: SettingsOf) -> None:
        """Before it measured it is none, before its end interrupted; an older one has gaps."""
        settings = settings_of(home)
        self.finished(settings, MONITORING_RUN, {})
        self.finished(settings, MONITORING_RUN, {}, metrics={"mean_error": 5.0})
        (found,) = open_registry(settings).runs.monitored()
        assert (found.outcome, found.threshold, found.unit) == ("interrupted", None, "%")
        assert found.interval_low != found.interval_low

    @pytest.mark.parametrize(
        ("values", "what"),
        [
            (
                {"metrics": {"mean_error": 1.0}, "params": {"threshold": "much"}},
                r"the parameter 'threshold' of run \w+ reads 'much'",
            ),
            (
                {"metrics": {"mean_error": 1.0, "recordings": 1.5}},
                r"the metric 'recordings' of run \w+ reads '1\.5'",
            ),
            (
                {"metrics": {"mean_error": math.nan}},
                r"the metric 'mean_error' of run \w+ reads 'nan'",
            ),
            (
                {"metrics": {"mean_error": math.inf}},
                r"the metric 'mean_error' of run \w+ reads '1\.79.*'",
            ),
        ],
    )
    def test_a_monitored_batch_that_does_not_read(
        self,
        home: Path,
        settings_of: SettingsOf,
        caplog: pytest.LogCaptureFixture,
        values: dict[str, Any],
        what: str,
    ) -> None:
        """The run is named, so that somebody finds it; the others are there."""
        settings = settings_of(home)
        good = self.finished(settings, MONITORING_RUN, {}, metrics={"mean_error": 5.0})
        self.finished(settings, MONITORING_RUN, {}, **values)
        assert [one.run_id for one in open_registry(settings).runs.monitored()] == [good]
        assert re.search(f"{what}: .*; it is left out", caplog.text)

    @pytest.mark.parametrize("name", ["pipeline_to", "pipeline_from"])
    def test_a_change_that_does_not_read(
        self, home: Path, settings_of: SettingsOf, caplog: pytest.LogCaptureFixture, name: str
    ) -> None:
        """Somebody edited a tag of the history: which one is said, with its run."""
        settings = settings_of(home)
        (first,) = open_registry(settings).production.changes()
        assert (first.old, first.new) == (None, 1)
        run_id = self.finished(
            settings, PROMOTION_RUN, {"pipeline_to": "2", "pipeline_from": "1", name: "two"}
        )
        assert open_registry(settings).production.changes() == [first]
        assert f"the tag '{name}' of run {run_id} reads 'two'" in caplog.text

    def test_a_change_of_a_year_that_no_calendar_has(
        self, home: Path, settings_of: SettingsOf, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whoever may create runs names their time."""
        settings = settings_of(home)
        registry = open_registry(settings)
        client, (first,) = registry.runs.connection.client, registry.production.changes()
        experiment = client.get_experiment_by_name(settings.model_name).experiment_id
        made = client.create_run(
            experiment, 10**18, {"pipeline_to": "1"}, run_name="ModelPromotion"
        )
        client.set_terminated(made.info.run_id)
        assert registry.production.changes() == [first]
        assert f"the time of run {made.info.run_id} reads '1000000000000000000'" in caplog.text

    def test_a_run_that_names_no_version_is_no_change(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """Such as one that somebody made by hand."""
        settings = settings_of(home)
        self.finished(settings, PROMOTION_RUN, {})
        assert [one.new for one in open_registry(settings).production.changes()] == [1]

    def test_what_a_version_was_trained_with(self, home: Path, settings_of: SettingsOf) -> None:
        """Of a training run; a first model that came as a pickle has none."""
        settings = settings_of(home)
        runs = open_registry(settings).runs
        params = {"n_folds": 3, "random_state": 42}
        trained = self.finished(settings, RETRAINING_RUN, {}, params=params)
        older = self.finished(settings, RETRAINING_RUN, {}, params={"n_folds": 3})
        other = self.finished(settings, MONITORING_RUN, {}, params=params)
        assert [runs.trained_with(run_id) for run_id in (trained, older, other, "")] == [
            params,
            *[None] * 3,
        ]
        edited = self.finished(settings, RETRAINING_RUN, {}, params={**params, "n_folds": "three"})
        with pytest.raises(PipelineError, match=f"'n_folds' of run {edited} reads 'three'"):
            runs.trained_with(edited)

    def test_an_artifact_that_is_not_there_is_none(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """Of a run without one, of no run, and of one that was deleted for good."""
        settings = settings_of(home)
        runs = open_registry(settings).runs
        run_id = self.finished(settings, MONITORING_RUN, {}, files={"a.json": b"{}"})
        assert runs.artifact(run_id, "a.json") == b"{}"
        assert runs.artifact(run_id, "b.json") is None
        assert runs.artifact("", "a.json") is None
        assert runs.artifact("0" * 32, "a.json") is None


DIES_IN_A_RUN = """
import os, sys
from pathlib import Path
from retraining.registry import open_registry
from retraining.settings import Settings
runs = open_registry(Settings(home=Path(sys.argv[1]))).runs
with runs.open("ModelMonitoring", {"pipeline_cycle_id": "dead"}) as run_id:
    print(run_id, flush=True)
    os._exit(9)
"""
TIDIES = """
import sys
from pathlib import Path
from retraining.recovery import tidy
from retraining.settings import Settings
home = Path(sys.argv[1])
(home / ".pipeline_state.json").write_text('{"cycle_id": "another"}')
tidy(Settings(home=home))
"""


@pytest.mark.slow
def test_a_container_that_is_called_otherwise_closes_the_run_of_the_one_before(
    home: Path, settings_of: SettingsOf
) -> None:
    """The host's name is another one at each start."""

    def on_host(name: str, code: str) -> str:
        inner = f"hostname {name} && exec {sys.executable} -c {shlex.quote(code)} {home}"
        done = subprocess.run(
            ["unshare", "--uts", "sh", "-c", inner],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if "Operation not permitted" in done.stderr:
            pytest.skip("no other host name may be set here")
        return done.stdout.strip()

    run_id = on_host("first", DIES_IN_A_RUN)
    client = open_registry(settings_of(home)).runs.connection.client
    assert client.get_run(run_id).info.status == "RUNNING"
    on_host("second", TIDIES)
    assert client.get_run(run_id).info.status == "KILLED"
    assert client.get_run(run_id).data.tags["pipeline_place"] == f"first:{home}"
