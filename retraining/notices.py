"""Tell programs outside: the operator's commands after a change, and when somebody must look.

`--on-promotion` runs after production changed, `--on-attention` when a run failed, rejected files,
rolled back by itself, is stuck or production is probably degraded, and when `status` finds the
pipeline overdue. Both run at least once, also if the machine dies in between: what was told is
noted only afterwards. Nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from retraining.advice import with_given_flags
from retraining.confined import without_passwords
from retraining.errors import PipelineError, StoppedBySignal
from retraining.files import read_regular_file, write_durably
from retraining.ground_truth import rejected_problem, rejected_times
from retraining.outcome import Outcome
from retraining.registry import Registry
from retraining.registry.facts import EVENT_PROBATION
from retraining.registry.store import as_pipeline_error
from retraining.settings import JSON_SCHEMA_VERSION, Settings
from retraining.text import as_local_time, now, printable, without_secrets

HEARTBEAT_NAME = ".pipeline_last_run.json"
MAX_HEARTBEAT_MB = 100.0
STUCK, ALARM = "stuck", "estimate"

logger = logging.getLogger("pipeline")


# --- The operator's commands ---


def announce_change(settings: Settings, registry: Registry, cycle_id: str) -> None:
    """Run `--on-promotion` for the change of production that a cycle made, if it made one."""
    if not settings.on_promotion.strip():
        return
    for change in registry.production.changes(cycle_id):
        details = asdict(change)
        del details["cycle"], details["sequence"]
        details["at"] = as_local_time(details.pop("at_ms") / 1000)
        details["replaced"], details["production"] = details.pop("old"), details.pop("new")
        _run("--on-promotion", settings.on_promotion, settings, details)


def announce_lost_probation(settings: Settings, registry: Registry, cycle_id: str) -> None:
    """Call for attention to a rollback that a dead cycle made by itself."""
    for change in registry.production.changes(cycle_id):
        if change.event == EVENT_PROBATION:
            text = f"rolled back: version {change.new} is production again: {change.why}"
            call_for_attention(
                settings, "attention", text, items=[text], outcome=Outcome.ROLLED_BACK.value
            )


def call_for_attention(settings: Settings, event: str, message: str, **details: Any) -> None:
    """Run `--on-attention`.

    Parameters
    ----------
    message
        What somebody must look at, in one line.
    """
    if settings.on_attention.strip():
        items = [with_given_flags(text) for text in details.pop("items", [])]
        details |= {"items": items} if items else {}
        details = {"event": event, "message": with_given_flags(message), **details}
        _run("--on-attention", settings.on_attention, settings, details)


def _run(flag: str, command: str, settings: Settings, details: Mapping[str, Any]) -> None:
    """Run a command without a shell; its failure is only logged."""
    text = json.dumps(
        {
            "schema_version": JSON_SCHEMA_VERSION,
            "home": str(settings.home),
            "model": settings.model_name,
            **without_secrets(details),
        }
    )
    try:
        subprocess.run(
            shlex.split(command),
            input=text,
            encoding="utf-8",
            stdout=sys.stderr,
            env=without_passwords(),
            timeout=settings.hook_timeout,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        _say_that_it_failed(flag, f"exit status {error.returncode}")
    except subprocess.TimeoutExpired:
        _say_that_it_failed(flag, f"it took more than {settings.hook_timeout:g} s")
    except (OSError, ValueError, IndexError) as error:
        _say_that_it_failed(flag, error)


def _say_that_it_failed(flag: str, why: object) -> None:
    """Log it without the words of the command, which may hold a password."""
    logger.warning("%s failed: %s; everything else went on", flag, why)


# --- The heartbeat: how the last run ended, and what was told ---


def read_heartbeat(settings: Settings) -> dict[str, Any]:
    """Return how the last run ended; empty if there was none."""
    try:
        content = read_regular_file(settings.home / HEARTBEAT_NAME, MAX_HEARTBEAT_MB)
        return dict(json.loads(content))
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        return {}


@contextlib.contextmanager
def failure_noted(settings: Settings) -> Iterator[None]:
    """Note a run that fails and call for attention; the failure goes on."""
    try:
        yield
    except StoppedBySignal:
        raise
    except Exception as error:
        known = error if isinstance(error, PipelineError) else None
        known = known or as_pipeline_error(error, settings)
        message = printable(known or f"unexpected failure: {type(error).__name__}")
        before = read_heartbeat(settings)
        with contextlib.suppress(OSError):  # the disk may be what failed
            _write_heartbeat(
                settings, {**before, "outcome": Outcome.FAILED.value, "message": message}
            )
        call_for_attention(
            settings, Outcome.FAILED.value, message, exit_status=known.exit_status if known else 1
        )
        raise


def note_end(
    settings: Settings, outcome: str, message: str, stuck: str | None, alarm: str = ""
) -> None:
    """Call for attention to what is new, then note that a run came to its end.

    Parameters
    ----------
    stuck
        Why a person is needed; empty if nobody is; None if this run did not look.
    alarm
        Why somebody should look before labels come; empty where nobody need.
    """
    before = read_heartbeat(settings).get("attention")
    before = before if isinstance(before, dict) else {}
    rejections = _rejections(settings).items()
    attention = {printable(key): printable(text) for key, text in rejections}
    if stuck is None and STUCK in before:
        attention[STUCK] = before[STUCK]
    elif stuck:
        attention[STUCK] = printable(stuck)
    if alarm:
        attention[ALARM] = printable(alarm)
    message = printable(message)
    if outcome == Outcome.ROLLED_BACK.value:
        attention[outcome] = message
    new = [text for key, text in attention.items() if before.get(key) != text]
    if new:
        call_for_attention(settings, "attention", "; ".join(new), items=new, outcome=outcome)
    heartbeat = {
        "outcome": outcome,
        "message": message,
        "completed_at": now(),
        "attention": attention,
    }
    _write_heartbeat(settings, heartbeat)


def _rejections(settings: Settings) -> dict[str, str]:
    """Return a text for each rejected file, under a key that changes if it is rejected again.

    And one for what stands in the place of their folder.
    """
    times = rejected_times(settings)
    keys = {f"{name!r} {ns}": f"rejected: {name!r}" for name, ns in times.items()}
    problem = rejected_problem(settings)
    return keys | {"rejected": problem} if problem else keys


def _write_heartbeat(settings: Settings, content: Mapping[str, Any]) -> None:
    text = json.dumps({**content, "at": now()})
    write_durably(settings.home / HEARTBEAT_NAME, text.encode(), mode=0o600)
