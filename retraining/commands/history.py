"""`history`: every change of production, or which version was production at a time."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from retraining.command_line import Command, print_result
from retraining.commands.transfer import Imported
from retraining.errors import EXIT_DONE, UsageError
from retraining.journal import Journal, Vouch
from retraining.registry import open_registry
from retraining.registry.facts import Change
from retraining.registry.relocation import Relocated
from retraining.settings import Settings, check_home
from retraining.text import as_local_time, error_text

UNRECORDED = "unrecorded"


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--at", metavar="TIME", help="which version was production then, such as 2026-05-01T12:00"
    )


def _work(settings: Settings, options: argparse.Namespace) -> int:
    changes = history(settings)
    if options.at is None:
        trusted = trusted_versions(settings)
        moved, imported = relocations(settings), imports(settings)
        lines = [
            *(change_line(one) for one in changes),
            *(trust_line(one) for one in trusted),
            *(relocation_line(one) for one in moved),
            *(import_line(one) for one in imported),
        ]
        facts: dict[str, Any] = {
            "changes": changes,
            "trusted": trusted,
            "relocations": moved,
            "imports": imported,
        }
    else:
        lines, facts = _answer(changes, options.at)
    print_result(lines, facts, as_json=options.json)
    return EXIT_DONE


def history(settings: Settings) -> list[dict[str, Any]]:
    """Return every change of production, the newest first.

    Notes
    -----
    If somebody moved the alias by hand, the newest entry says so, without a time.
    """
    check_home(settings)
    registry = open_registry(settings)
    found = registry.production.changes()
    older = [*found[1:], None]
    changes = [_facts(*pair) for pair in zip(found, older, strict=True)]
    production = registry.production.number()
    recorded = changes[0]["to"] if changes else None
    if production != recorded:
        unrecorded = {
            "at": None,
            "clock_went_back": False,
            "event": UNRECORDED,
            "from": recorded,
            "to": production,
            "mean_error_before": None,
            "mean_error_after": None,
            "unit": None,
            "who": "unknown",
            "why": "the alias was moved outside this pipeline",
        }
        changes.insert(0, unrecorded)
    return changes


def trusted_versions(settings: Settings) -> list[dict[str, Any]]:
    """Return which versions people told this home to trust, the newest word first."""
    return [
        {"at": one.at, "version": one.version, "who": one.who, "reason": one.reason}
        for one in reversed(Journal(settings.home).read().all(Vouch))
        if one.reason and one.model_name == settings.model_name
    ]


def trust_line(trusted: Mapping[str, Any]) -> str:
    """Return one word of trust as a line for a person."""
    return f"{trusted['at']}  trusted: {trusted['version']}  {trusted['who']}  {trusted['reason']}"


def relocations(settings: Settings) -> list[dict[str, Any]]:
    """Return when the home was moved, copied or restored, the newest first."""
    return [
        {
            "at": one.at,
            "what": "restored" if one.backup else "copied" if one.as_copy else "moved",
            "from": one.origin,
            "to": one.to,
            "backup": one.backup or None,
            "who": one.who,
        }
        for one in reversed(Journal(settings.home).read().all(Relocated))
    ]


def relocation_line(relocation: Mapping[str, Any]) -> str:
    """Return one of them as a line for a person."""
    origin, backup = relocation["from"], relocation["backup"]
    source = f"{backup}, of {origin}" if backup else origin
    what = f"{relocation['what']}: {source} -> {relocation['to']}"
    return f"{relocation['at']}  {what}  {relocation['who']}"


def imports(settings: Settings) -> list[dict[str, Any]]:
    """Return when the registered model came from another store, the newest first."""
    return [
        {"at": one.at, "versions": one.versions, "who": one.who, "reason": one.reason or None}
        for one in reversed(Journal(settings.home).read().all(Imported))
        if one.model_name == settings.model_name
    ]


def import_line(imported: Mapping[str, Any]) -> str:
    """Return one of them as a line for a person."""
    what = f"imported: {imported['versions']} versions"
    parts = [imported["at"], what, imported["who"], imported["reason"] or ""]
    return "  ".join(part for part in parts if part)


def _facts(change: Change, before: Change | None) -> dict[str, Any]:
    return {
        "at": as_local_time(change.at_ms / 1000),
        "clock_went_back": before is not None and change.at_ms < before.at_ms,
        "event": change.event,
        "from": change.old,
        "to": change.new,
        "mean_error_before": change.mean_error_before,
        "mean_error_after": change.mean_error_after,
        "unit": change.unit,
        "who": change.who,
        "why": change.why,
    }


def change_line(change: Mapping[str, Any]) -> str:
    """Return one change that `history` returned as a line for a person."""
    before, after = change["mean_error_before"], change["mean_error_after"]
    measured = [error for error in (before, after) if error is not None]
    errors = " -> ".join(error_text(error, change["unit"]) for error in measured)
    parts = [
        change["at"] or "time unknown",
        f"{change['from'] or '-'} -> {change['to'] or '-'}",
        change["event"],
        "" if errors in change["why"] else errors,
        change["who"],
        change["why"],
        "(the clock had gone back: this came after the next line)"
        if change["clock_went_back"]
        else "",
    ]
    return "  ".join(part for part in parts if part)


def _answer(changes: Sequence[Mapping[str, Any]], at: str) -> tuple[list[str], dict[str, Any]]:
    """Say which version was production at a time, and whether that is certain."""
    change = production_at(changes, at)
    found = f"version {change['to']}" if change else "none"
    uncertain = bool(changes) and changes[0]["event"] == UNRECORDED
    if uncertain:
        found += f", or {changes[0]['to'] or 'none'}: {changes[0]['why']}, at an unknown time"
    if any(one["clock_went_back"] for one in changes):
        uncertain = True
        found += ", if the clock was right: it went back between two changes"
    production = change["to"] if change else None
    facts = {"at": at, "production": production, "uncertain": uncertain}
    return [f"production at {at}: {found}"], facts


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


COMMAND = Command("history", "every change of production", _add_flags, _work)
