"""`status`: which version is production, since when, and is all well? Changes nothing."""

from __future__ import annotations

import argparse
import datetime
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from retraining import ground_truth, notices, records, recovery, unlabelled
from retraining.command_line import Command, print_result
from retraining.cycle import threshold_of
from retraining.errors import EXIT_DONE, EXIT_ERROR, PipelineError, TryLaterError
from retraining.estimates import Estimated, trend
from retraining.files import is_open_to_others, waiting_names
from retraining.ground_truth import PARKED
from retraining.inventory import Inventory, take_inventory
from retraining.journal import Journal, Memory
from retraining.looks import Past
from retraining.outcome import Outcome
from retraining.registry import Registry, open_registry
from retraining.registry.facts import MonitoredBatch, RegisteredVersion
from retraining.settings import Settings, check_home
from retraining.text import as_local_time, error_text, number_text
from retraining.training import load_training_module
from retraining.windows import newest_in_words

SHOWN_CYCLES = 10
CLOCK_HOURS = 0.25
"""By so much a clock may be put right between two commands."""
BARS = "▁▂▃▄▅▆▇█"
NOBODY_TELLS = (
    "nobody can tell how wrong production is: its version was trained without errors out of fold "
    "or they are all 0, or its module does not tell"
)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--max-age", type=float, metavar="HOURS", help="exit 1 if no run ended within so many hours"
    )


def _work(settings: Settings, options: argparse.Namespace) -> int:
    state = status(settings, options.max_age)
    print_result(as_lines(state), state, as_json=options.json)
    return EXIT_ERROR if state["problems"] else EXIT_DONE


def status(settings: Settings, max_age_hours: float | None) -> dict[str, Any]:
    """Return the state of the pipeline; `problems` is what somebody must look at.

    Parameters
    ----------
    max_age_hours
        Complain if no run came to its end within so many hours, and run `--on-attention`; None
        never complains.
    """
    check_home(settings)
    registry = open_registry(settings)
    champion = registry.production.champion()
    monitored = registry.runs.monitored(limit=SHOWN_CYCLES)
    last_run = notices.read_heartbeat(settings)
    overdue = _overdue(last_run, max_age_hours)
    if overdue:
        notices.call_for_attention(settings, "overdue", overdue)
    memory = Journal(settings.home).read()
    past = Past.of(memory, settings.model_name, champion.number, champion.run_id)
    stuck = records.stuck_text(settings, champion.number, past)
    inventory = _inventory(settings, registry, champion, memory)
    since = _production_since(registry, champion)
    problems = [overdue, _failed(last_run, since), *_refused(settings, registry, champion)]
    problems += [registry.production.moved_by_hand(champion)]
    problems += [stuck or _degraded(past, monitored, champion)]
    problems += [_still_above(past, champion, monitored)]
    problems += inventory.unexplained
    estimates = trend(memory, settings.model_name, champion.number, champion.run_id)
    last_estimate = unlabelled.last_estimate(settings)
    if last_estimate and estimates and last_estimate.run_id == champion.run_id:
        problems.append(last_estimate.alarm)
    problems += [ground_truth.rejected_problem(settings), open_to_others(settings)]
    return {
        "production": champion.number,
        "production_since": since,
        "threshold": _threshold(settings, monitored),
        **_waiting(settings, memory, past, champion),
        "min_new_files": settings.min_new_files,
        "rejected": ground_truth.rejected_names(settings),
        "parked": [one.name for one in ground_truth.rejected_files(settings) if one.kind == PARKED],
        "training_data": list(inventory.explained),
        "unlabelled": unlabelled.count(settings),
        "estimates": [asdict(one) for one in reversed(estimates[-SHOWN_CYCLES:])],
        "unfinished": recovery.unfinished_command(settings),
        "last_run": last_run or None,
        "cycles": [
            {
                "at": as_local_time(one.at_ms / 1000),
                "version": one.version,
                "mean_error": one.mean_error,
                "unit": one.unit,
                "recordings": one.n_recordings,
                "decided_on": one.n_decided or one.n_recordings,
                "outcome": one.outcome,
            }
            for one in monitored
        ],
        "problems": [problem for problem in problems if problem],
    }


def _waiting(
    settings: Settings, memory: Memory, past: Past, champion: RegisteredVersion
) -> dict[str, Any]:
    """Count the files in new_gts/, and those of them that production was judged on."""
    names = waiting_names(settings.new_gts)
    first_seen, judged = memory.first_seen(), past.judged_by(champion.number)
    waiting = settings.new_gts
    contents = ground_truth.hashes_in(waiting, max_mb=settings.max_file_mb) if judged else {}
    n_judged = sum(
        sha256 in first_seen and first_seen[sha256].identity in judged for sha256 in contents
    )
    last = past.last(champion.number)
    return {
        "waiting": len(names),
        "judged": n_judged,
        "unseen": len(names) - n_judged,
        "last_verdict": last.outcome if last else None,
    }


def _still_above(
    past: Past, champion: RegisteredVersion, monitored: Sequence[MonitoredBatch]
) -> str:
    """Say that production was above the threshold when it was promoted, until it is judged."""
    look = past.promotion_of(champion.number)
    if look is None or past.last(champion.number):
        return ""
    unit = monitored[0].unit if monitored else ""
    if not look.challenger_mean_error > look.threshold:
        return ""
    return (
        f"above: version {champion.number} was promoted at "
        f"{error_text(look.challenger_mean_error, unit)}, still above the threshold of "
        f"{look.threshold:g} {unit}; add recordings or improve the training module"
    )


def open_to_others(settings: Settings) -> str:
    """Say which folders other users can write to; new_gts/ is for others."""
    ours = [settings.home, *(one for one in settings.folders if one != settings.new_gts)]
    if settings.has_own_store and settings.database:
        ours += [settings.database.parent, settings.artifacts]
    found = [str(one) for one in ours if one.is_dir() and is_open_to_others(one)]
    if not found:
        return ""
    return (
        f"other users can write to {', '.join(found)}, and so decide what is learnt and served: "
        f"let the pipeline's user own it, and chmod go-w {shlex.join(found)}"
    )


def _refused(settings: Settings, registry: Registry, champion: RegisteredVersion) -> list[str]:
    """Say why the next run will refuse production, or cannot write what it finds."""

    def load() -> None:
        registry.vouches.check(champion)  # before the training module costs a second
        registry.models.load_and_try(champion, load_training_module(settings))

    problems = []
    for check in (load, registry.runs.find_experiment):
        try:
            check()
        except TryLaterError:
            raise
        except PipelineError as error:
            problems.append(str(error))
    return problems


def _inventory(
    settings: Settings, registry: Registry, champion: RegisteredVersion, memory: Memory
) -> Inventory:
    try:
        manifest = registry.versions.manifest(champion)
    except TryLaterError:
        raise
    except PipelineError as error:
        return Inventory(unexplained=(str(error),))
    return take_inventory(settings, manifest, memory)


def _overdue(last_run: Mapping[str, Any], max_age_hours: float | None) -> str:
    if max_age_hours is None:
        return ""
    completed_at = last_run.get("completed_at")
    if completed_at is None:
        return f"overdue: no run ever came to its end, {max_age_hours:g} hours are allowed"
    then = datetime.datetime.fromisoformat(completed_at)
    hours = (datetime.datetime.now().astimezone() - then).total_seconds() / 3600
    if -hours > CLOCK_HOURS:
        return (
            f"overdue: the last run ended at {completed_at}, {-hours:.1f} hours from now: the "
            "clock was wrong then or is wrong now, and what runs meanwhile is not known; set it "
            "right, then run: python pipeline_orchestrator.py"
        )
    if hours <= max_age_hours:
        return ""
    return f"overdue: the last run ended {hours:.1f} hours ago, {max_age_hours:g} are allowed"


def _failed(last_run: Mapping[str, Any], since: str) -> str:
    """Say so, as long as nobody went to another version: then the next run tells."""
    if last_run.get("outcome") != Outcome.FAILED.value:
        return ""
    at = datetime.datetime.fromisoformat(last_run["at"])
    if datetime.datetime.fromisoformat(since) > at:
        return ""
    return f"failed: the last run, at {last_run['at']}: {last_run['message']}"


def _degraded(past: Past, monitored: Sequence[MonitoredBatch], champion: RegisteredVersion) -> str:
    """Say that the last verdict of this home on production left it above the threshold.

    By the journal: another home may judge the same version, on recordings of its own.
    """
    lost, number = Outcome.NOT_PROMOTED.value, str(champion.number)
    of_production = [one for one in monitored if one.version == number]
    last = past.last(champion.number)
    outcome = last.outcome if last else of_production[0].outcome if of_production else ""
    judged = next((one for one in of_production if one.outcome == lost), None)
    if outcome != lost or judged is None:
        return ""
    if judged.threshold is not None and judged.mean_error <= judged.threshold:  # run --retrain
        return ""
    return (
        f"degraded: production errs by {error_text(judged.mean_error, judged.unit)} and no "
        "challenger was better; add recordings or improve the training module"
    )


def _production_since(registry: Registry, champion: RegisteredVersion) -> str:
    change = registry.production.last_change_to(champion.number)
    return as_local_time((change.at_ms if change else champion.created_ms) / 1000)


def _threshold(settings: Settings, monitored: Sequence[MonitoredBatch]) -> float:
    """Return the operator's threshold, that of the newest batch, or the module's."""
    if settings.threshold is not None:
        return settings.threshold
    if monitored and monitored[0].threshold is not None:
        return monitored[0].threshold
    # Last: the module brings its packages, which takes a second.
    return threshold_of(settings, load_training_module(settings))


def as_lines(state: Mapping[str, Any]) -> list[str]:
    """Return what `status` found as lines for a person."""
    last_run, cycles = state["last_run"], state["cycles"]
    lines = [
        f"production: version {state['production']} since {state['production_since']}",
        f"waiting: {state['waiting']} of {state['min_new_files']} new files, "
        f"{_judged_in_words(state)}{len(state['rejected'])} rejected",
        f"last run: {last_run['at']}: {last_run['message']}" if last_run else "last run: never",
    ]
    lines += state["training_data"]
    if state["parked"]:
        names = " ".join(shlex.quote(name) for name in state["parked"])
        lines.append(
            "parked, until a person has looked at the reasons beside them: python "
            f"pipeline_orchestrator.py correct {names}"
        )
    if state["unfinished"]:
        lines.append(
            f"unfinished: {state['unfinished'].get('command', 'a command')} since "
            f"{state['unfinished'].get('since', 'unknown')}, running or cut off; the next run "
            "tidies up"
        )
    if cycles:
        errors, unit = [one["mean_error"] for one in reversed(cycles)], cycles[0]["unit"]
        lines.append(
            f"mean error, oldest first: {sparkline(errors)} "
            f"{', '.join(number_text(error) for error in errors)} {unit} (threshold "
            f"{state['threshold']:g} {unit})"
        )
    lines += [
        f"cycle {one['at']}: version {one['version']} "
        f"{error_text(one['mean_error'], one['unit'])} on "
        f"{newest_in_words(one['decided_on'], one['recordings'])} recordings, {one['outcome']}"
        for one in cycles
    ]
    return [*lines, *_estimates_in_words(state), *state["problems"]]


def _estimates_in_words(state: Mapping[str, Any]) -> list[str]:
    """Say what is estimated where nobody has checked; nothing without such recordings."""
    if not state["unlabelled"]:
        return []
    estimates = [Estimated(**one) for one in reversed(state["estimates"])]
    if not estimates:
        return [f"not checked: {state['unlabelled']} recordings; the next run estimates them"]
    errors = [one.mean_error for one in estimates if one.mean_error is not None]
    if not errors:
        return [f"not checked: {state['unlabelled']} recordings, of which {NOBODY_TELLS}"]
    last = estimates[-1]
    return [
        f"estimate before labels, oldest first: {sparkline(errors)} "
        f"{', '.join(number_text(error) for error in errors)} {last.unit} (no measurement)",
        last.in_words,
    ]


def _judged_in_words(state: Mapping[str, Any]) -> str:
    if not state["judged"]:
        return ""
    verdict = str(state["last_verdict"]).replace("_", " ")
    return f"{state['judged']} judged and {verdict}, {state['unseen']} unseen, "


def sparkline(values: Sequence[float]) -> str:
    """Return one bar for each value, from 0 to the largest.

    Examples
    --------
    >>> sparkline([0, 5, 10])
    '▁▅█'
    """
    largest = max(values) or 1
    return "".join(BARS[round(value / largest * (len(BARS) - 1))] for value in values)


COMMAND = Command("status", "production version, last cycles, files waiting", _add_flags, _work)
