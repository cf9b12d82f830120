"""What `status` says, for any unit and any threshold."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipeline_orchestrator import main
from retraining.commands.status import _degraded, _threshold, as_lines
from retraining.estimates import Estimated
from retraining.looks import Past
from retraining.outcome import Outcome
from retraining.registry.facts import MonitoredBatch, RegisteredVersion
from retraining.settings import Settings

CHAMPION = RegisteredVersion(2, "run", {}, 0)
ESTIMATE = Estimated(
    model_name="Stems",
    version=2,
    run_id="run",
    at="2026-05-01T00:00:00+00:00",
    n_files=20,
    n_new=2,
    n_recordings=15,
    mean_error=18.0,
    mean_error_low=9.0,
    mean_error_high=27.0,
    unit="%",
    threshold=10.0,
    unsure=0.25,
    outside=0.06,
)


def monitored(**values: Any) -> MonitoredBatch:
    """Return a batch of a module that measures in metres."""
    usual = {
        "at_ms": 0,
        "run_id": "run",
        "version": "2",
        "batch": "batch",
        "n_recordings": 15,
        "mean_error": 0.00662,
        "interval_low": 0.005,
        "interval_high": 0.008,
        "unit": "m",
        "threshold": 0.005,
        "outcome": Outcome.NOT_PROMOTED.value,
    }
    return MonitoredBatch(**{**usual, **values})


def state(**values: Any) -> dict[str, Any]:
    """Return what `status` found."""
    cycle = {
        "at": "2026-05-01T02:00:00+02:00",
        "version": "2",
        "mean_error": 0.00662,
        "unit": "m",
        "recordings": 15,
        "decided_on": 15,
        "outcome": "not_promoted",
    }
    return {
        "production": 2,
        "production_since": "2026-04-01T02:00:00+02:00",
        "threshold": 0.005,
        "waiting": 15,
        "judged": 0,
        "unseen": 15,
        "last_verdict": None,
        "min_new_files": 15,
        "rejected": [],
        "parked": [],
        "training_data": [],
        "unlabelled": 0,
        "estimates": [],
        "unfinished": None,
        "last_run": None,
        "cycles": [cycle, {**cycle, "mean_error": 0.00331}],
        "problems": [],
        **values,
    }


class TestThreshold:
    """Which one holds."""

    @pytest.mark.parametrize(
        ("of_the_operator", "of_batches", "shown"),
        [
            (0.01, [0.005], 0.01),
            (0.0, [0.005], 0.0),
            (None, [0.005, 0.02], 0.005),
            (None, [0.0], 0.0),
            (None, [None], 10),
            (None, [], 10),
        ],
    )
    def test_the_operators_then_the_newest_batchs_then_the_modules(
        self, of_the_operator: float | None, of_batches: list[float | None], shown: float
    ) -> None:
        """That of the stem module is 10; 0 is a threshold, too."""
        batches = [monitored(threshold=one) for one in of_batches]
        assert _threshold(Settings(threshold=of_the_operator), batches) == shown


class TestDegraded:
    """Somebody must look if production lost and nothing better was found."""

    @pytest.mark.parametrize(
        ("batches", "is_said"),
        [
            ([], False),
            ([monitored()], True),
            ([monitored(version="1")], False),
            ([monitored(outcome="promoted"), monitored()], False),
        ],
    )
    def test_the_newest_batch_decides(self, batches: list[MonitoredBatch], is_said: bool) -> None:
        """If it is of the version that is production now."""
        assert bool(_degraded(Past(), batches, CHAMPION)) is is_said

    def test_a_small_error_is_no_zero(self) -> None:
        """A loss of 0.0066 m must not read 0.0 m."""
        assert _degraded(Past(), [monitored()], CHAMPION).startswith(
            "degraded: production errs by 0.0066 m and no challenger was better; "
        )


class TestLines:
    """What a person reads."""

    def test_small_errors_have_enough_digits(self) -> None:
        """In the trend and in each cycle."""
        lines = as_lines(state())
        assert "mean error, oldest first: ▅█ 0.0033, 0.0066 m (threshold 0.005 m)" in lines
        assert (
            "cycle 2026-05-01T02:00:00+02:00: version 2 0.0066 m on 15 recordings, not_promoted"
        ) in lines

    def test_the_recordings_that_decided_are_told(self) -> None:
        """They may be fewer than there were."""
        lines = as_lines(state(cycles=[{**state()["cycles"][0], "recordings": 23}]))
        assert "0.0066 m on the newest 15 of 23 recordings, not_promoted" in lines[-1]

    def test_what_is_not_there_is_not_said(self) -> None:
        """A home on its first day has three lines."""
        assert as_lines(state(cycles=[])) == [
            "production: version 2 since 2026-04-01T02:00:00+02:00",
            "waiting: 15 of 15 new files, 0 rejected",
            "last run: never",
        ]

    def test_what_was_judged_is_told_from_what_was_not(self) -> None:
        """Files of a healthy batch stay where they are."""
        lines = as_lines(state(waiting=27, judged=23, unseen=4, last_verdict="healthy"))
        assert (
            lines[1] == "waiting: 27 of 15 new files, 23 judged and healthy, 4 unseen, 0 rejected"
        )

    def test_problems_come_last(self) -> None:
        """Where a person looks."""
        assert as_lines(state(problems=["overdue: x"], unfinished={}))[-1] == "overdue: x"

    def test_a_command_that_was_cut_off_is_named(self) -> None:
        """With the time, if it could note it."""
        lines = as_lines(state(unfinished={"command": "run", "since": "then"}))
        assert "unfinished: run since then, running or cut off; the next run tidies up" in lines
        lines = as_lines(state(unfinished={"cycle_id": "dead"}))
        assert lines[3].startswith("unfinished: a command since unknown, ")

    def test_parked_corrections_come_with_their_command(self) -> None:
        """In words that a shell reads as they are."""
        lines = as_lines(state(parked=["a b.csv", "8.csv"]))
        assert lines[3] == (
            "parked, until a person has looked at the reasons beside them: "
            "python pipeline_orchestrator.py correct 'a b.csv' 8.csv"
        )


class TestEstimates:
    """What is estimated where nobody has checked, called so."""

    def test_the_trend_stands_beside_the_measured_one(self) -> None:
        """Oldest first, in words that no one takes for a measurement."""
        one = asdict(ESTIMATE)
        lines = as_lines(state(unlabelled=20, estimates=[{**one, "mean_error": 21.5}, one]))
        assert lines[-2:] == [
            "estimate before labels, oldest first: ▇█ 18.0, 21.5 % (no measurement)",
            "estimated before labels: 21.5 % (95 % interval 9.0 to 27.0) on 15 recordings that "
            "nobody has checked, 25 % unsure, 6 % of the values outside what was learnt",
        ]

    def test_what_nobody_can_tell_is_said(self) -> None:
        """And that a run is to come."""
        one = {**asdict(ESTIMATE), "mean_error": None}
        assert "nobody can tell how wrong" in as_lines(state(unlabelled=2, estimates=[one]))[-1]
        assert as_lines(state(unlabelled=2))[-1] == (
            "not checked: 2 recordings; the next run estimates them"
        )


class TestTrainingData:
    """Whether used_gts/ is what production learnt."""

    def test_a_manifest_that_is_gone_is_a_problem_beside_the_rest(
        self, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """What can be said is said."""
        (manifest,) = (home / "mlflow_server").rglob("training_files.json")
        manifest.unlink()
        assert main(["status", "--home", str(home)]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("production: version 1 since ")
        assert lines[-1].startswith("training_files.json of version 1 is missing")
