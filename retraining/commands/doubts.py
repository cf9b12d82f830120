"""`doubts`: which labels do models contradict that never saw them? Changes nothing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from retraining.command_line import Command, print_result
from retraining.errors import EXIT_DONE, PipelineError, TryLaterError
from retraining.ground_truth import hashes_in
from retraining.registry import Registry, open_registry
from retraining.registry.facts import TAG_BEFORE_LABELS_HASH, RegisteredVersion
from retraining.settings import Settings, check_home
from retraining.text import aligned
from retraining.training import DOUBT, FILE, Training, load_training_module

WHAT_TO_DO = (
    "Look at these in the recordings. A wrong label is corrected in a copy of the file, which goes "
    "into new_gts/ and takes the old one's place; nothing is changed or left out by itself"
)
NO_MODULE = "docs/own_model.md says how a module tells them: doubtful_labels(model, rows)"


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=_count, default=20, help="labels to list (default: 20)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{count}: must be at least 1")
    return count


def _work(settings: Settings, options: argparse.Namespace) -> int:
    found = doubts(settings, options.count)
    print_result(as_lines(found), found, as_json=options.json)
    return EXIT_DONE


def doubts(settings: Settings, count: int) -> dict[str, Any]:
    """Return the labels that the models of the last training contradict most.

    Parameters
    ----------
    count
        That are listed at most.

    Returns
    -------
    dict
        `version` (of that training), `labels` (the surest first: `file`, `doubt`, and what the
        module tells of each), `more` (how many are not listed) and `gone` (how many are of
        recordings that were corrected, withdrawn or removed since).

    Raises
    ------
    PipelineError
        If no training told any.
    """
    check_home(settings)
    training = load_training_module(settings)
    registry = open_registry(settings)
    version, told = _last_told(registry, training)
    today = hashes_in(settings.new_gts) | hashes_in(settings.used_gts)
    there = [{**one, FILE: today[one["sha256"]]} for one in told if one.get("sha256") in today]
    return {
        "version": version.number,
        "labels": there[:count],
        "more": len(there) - len(there[:count]),
        "gone": len(told) - len(there),
    }


def _last_told(
    registry: Registry, training: Training
) -> tuple[RegisteredVersion, list[Mapping[str, Any]]]:
    for version in registry.versions.all():
        if TAG_BEFORE_LABELS_HASH not in version.tags:
            continue
        try:
            registry.vouches.check(version)
            return version, [*registry.versions.before_labels(version, training).doubts]
        except TryLaterError:
            raise
        except PipelineError:  # of another home, or damaged: the one before is as good
            continue
    raise PipelineError(
        "no version of this home says which labels its models doubt: the next training tells "
        f"(python pipeline_orchestrator.py run --retrain), if the module does; {NO_MODULE}"
    )


def as_lines(found: Mapping[str, Any]) -> list[str]:
    """Return what `doubts` found as lines for a person."""
    labels = found["labels"]
    gone = f"{found['gone']} of recordings that were corrected or taken out since" * bool(
        found["gone"]
    )
    if not labels:
        return [
            f"the models of version {found['version']} contradict no label of what is there"
            + (f" ({gone})" if gone else "")
        ]
    heads = [name for name in labels[0] if name not in (DOUBT, "sha256")]
    rows = [
        [*(_cell(name, one.get(name)) for name in heads), f"{100 * one[DOUBT]:.0f} %"]
        for one in labels
    ]
    lines = aligned([[*(name.replace("_", " ") for name in heads), "sure"], *rows])
    left_out = [f"{found['more']} more: --count" * bool(found["more"]), gone]
    return [
        f"labels that models contradict which never saw them (training of version "
        f"{found['version']}), the surest first:",
        *lines,
        *(one for one in left_out if one),
        WHAT_TO_DO,
    ]


def _cell(name: str, value: object) -> str:
    if name == "count_change" and isinstance(value, (int, float)):
        return f"{value:+g}"
    return "" if value is None else str(value)


COMMAND = Command("doubts", "labels that models contradict which never saw them", _add_flags, _work)
