"""Answer a person: which version is production, since when and why, and is all well.

Changes nothing. Nothing heavy is imported here.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import cycle_records
import gts_folder
import model_registry
import notifications
from gts_folder import as_local_time
from model_registry import ModelRegistry, RegisteredVersion
from pipeline_settings import Settings, UsageError, check_home

SHOWN_CYCLES = 10
BARS = "▁▂▃▄▅▆▇█"


# --- status ---


def status(settings: Settings, max_age_hours: float | None) -> dict[str, Any]:
    """Return the state of the pipeline; `problems` is what somebody must look at.

    Parameters
    ----------
    settings
        Of this home.
    max_age_hours
        Complain if no run came to its end within so many hours, and run `--on-attention`; None
        never complains.
    """
    check_home(settings)
    registry = model_registry.open_registry(settings)
    champion = registry.champion()
    cycles = [
        {
            "at": as_local_time(run.info.start_time / 1000),
            "version": run.data.tags.get(model_registry.TAG_CHAMPION, ""),
            "mean_error": run.data.metrics.get("mean_error"),
            "unit": run.data.tags.get(model_registry.TAG_UNIT, model_registry.OLDER_UNIT),
            "recordings": int(run.data.metrics.get("recordings", 0)),
            "outcome": run.data.tags.get(model_registry.TAG_OUTCOME, "interrupted"),
        }
        for run in registry.runs(model_registry.MONITORING_RUN, limit=SHOWN_CYCLES)
        if "mean_error" in run.data.metrics
    ]
    last_run = notifications.read_heartbeat(settings)
    stuck = cycle_records.stuck_text(settings, champion.number, registry.lost_batches(champion))
    overdue = _overdue(last_run, max_age_hours)
    if overdue:
        notifications.call_for_attention(settings, "overdue", overdue)
    failed = last_run.get("outcome") == "failed"
    problems = [
        overdue,
        f"failed: the last run, at {last_run['at']}: {last_run['message']}" if failed else "",
        stuck or _degraded(cycles, champion),
    ]
    return {
        "production": champion.number,
        "production_since": _production_since(registry, champion),
        "threshold": settings.threshold,
        "waiting": len(gts_folder.waiting_names(settings.new_gts)),
        "min_new_files": settings.min_new_files,
        "rejected": gts_folder.rejected_names(settings),
        "unfinished": gts_folder.unfinished_cycle(settings),
        "last_run": last_run or None,
        "cycles": cycles,
        "problems": [problem for problem in problems if problem],
    }


def _overdue(last_run: Mapping[str, Any], max_age_hours: float | None) -> str:
    if max_age_hours is None:
        return ""
    completed_at = last_run.get("completed_at")
    if completed_at is None:
        return f"overdue: no run ever came to its end, {max_age_hours:g} hours are allowed"
    then = datetime.datetime.fromisoformat(completed_at)
    hours = (datetime.datetime.now().astimezone() - then).total_seconds() / 3600
    if hours <= max_age_hours:
        return ""
    return f"overdue: the last run ended {hours:.1f} hours ago, {max_age_hours:g} are allowed"


def _degraded(cycles: Sequence[Mapping[str, Any]], champion: RegisteredVersion) -> str:
    latest = cycles[0] if cycles else {}
    if latest.get("outcome") != "not_promoted" or latest["version"] != str(champion.number):
        return ""
    return (
        f"degraded: production errs by {latest['mean_error']:.1f} {latest['unit']} and no "
        "challenger "
        "was better; add recordings or improve the training module"
    )


def _production_since(registry: ModelRegistry, champion: RegisteredVersion) -> str:
    changes = registry.changes({model_registry.TAG_TO: str(champion.number)})
    return as_local_time((changes[0].at_ms if changes else champion.created_ms) / 1000)


def as_text(state: Mapping[str, Any]) -> str:
    """Return a state as lines for a person.

    Parameters
    ----------
    state
        What `status` returned.
    """
    last_run, cycles = state["last_run"], state["cycles"]
    lines = [
        f"production: version {state['production']} since {state['production_since']}",
        f"waiting: {state['waiting']} of {state['min_new_files']} new files, "
        f"{len(state['rejected'])} rejected",
        f"last run: {last_run['at']}: {last_run['message']}" if last_run else "last run: never",
    ]
    if state["unfinished"]:
        lines.append(
            f"unfinished: {state['unfinished'].get('command', 'a command')} since "
            f"{state['unfinished'].get('since', 'unknown')}, running or cut off; the next run "
            "tidies up"
        )
    if cycles:
        errors = [one["mean_error"] for one in reversed(cycles)]
        lines.append(
            f"mean error, oldest first: {sparkline(errors)} "
            f"{', '.join(f'{error:.1f}' for error in errors)} {cycles[0]['unit']} (threshold "
            f"{state['threshold']:g} {cycles[0]['unit']})"
        )
    lines += [
        f"cycle {one['at']}: version {one['version']} {one['mean_error']:.1f} {one['unit']} on "
        f"{one['recordings']} recordings, {one['outcome']}"
        for one in cycles
    ]
    return "\n".join([*lines, *state["problems"]])


def sparkline(values: Sequence[float]) -> str:
    """Return one bar for each value, from 0 to the largest.

    Parameters
    ----------
    values
        0 or more.

    Examples
    --------
    >>> sparkline([0, 5, 10])
    '▁▅█'
    """
    largest = max(values) or 1
    return "".join(BARS[round(value / largest * (len(BARS) - 1))] for value in values)


# --- history ---


def history(settings: Settings) -> list[dict[str, Any]]:
    """Return every change of production, the newest first.

    Parameters
    ----------
    settings
        Of this home.

    Notes
    -----
    If somebody moved the alias by hand, the newest entry says so, without a time.
    """
    check_home(settings)
    registry = model_registry.open_registry(settings)
    changes: list[dict[str, Any]] = [
        {
            "at": as_local_time(one.at_ms / 1000),
            "event": one.event,
            "from": one.old,
            "to": one.new,
            "mean_error_before": one.mean_error_before,
            "mean_error_after": one.mean_error_after,
            "unit": one.unit,
            "who": one.who,
            "why": one.why,
        }
        for one in registry.changes()
    ]
    production = registry.production_number()
    recorded = changes[0]["to"] if changes else None
    if production != recorded:
        moved = dict.fromkeys(("at", "mean_error_before", "mean_error_after", "unit"))
        why = "the alias was moved outside this pipeline"
        changes.insert(
            0,
            {
                **moved,
                "event": "unrecorded",
                "from": recorded,
                "to": production,
                "who": "unknown",
                "why": why,
            },
        )
    return changes


def change_line(change: Mapping[str, Any]) -> str:
    """Return one change of production as a line for a person.

    Parameters
    ----------
    change
        One that `history` returned.
    """
    before, after = change["mean_error_before"], change["mean_error_after"]
    measured = [error for error in (before, after) if error is not None]
    errors = " -> ".join(f"{error:.1f} {change['unit']}" for error in measured)
    parts = [
        change["at"] or "time unknown",
        f"{change['from'] or '-'} -> {change['to'] or '-'}",
        change["event"],
        "" if errors in change["why"] else errors,
        change["who"],
        change["why"],
    ]
    return "  ".join(part for part in parts if part)


def production_at(changes: Sequence[Mapping[str, Any]], at: str) -> Mapping[str, Any] | None:
    """Return the change that made a version production which it still was at that time.

    Parameters
    ----------
    changes
        What `history` returned.
    at
        ISO 8601; local time unless it has an offset.

    Raises
    ------
    UsageError
        If it is no time.
    """
    try:
        moment = datetime.datetime.fromisoformat(at).astimezone()
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(f"--at {at!r}: must be a time such as 2026-05-01T12:00") from error
    for change in changes:
        if change["at"] and datetime.datetime.fromisoformat(change["at"]) <= moment:
            return change
    return None
