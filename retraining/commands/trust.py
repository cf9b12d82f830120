"""`trust`: let this home load and run a version that it did not register, on a person's word."""

from __future__ import annotations

import argparse

from retraining import recovery, vouching
from retraining.command_line import Command, print_result
from retraining.errors import EXIT_DONE, UsageError
from retraining.files import exclusive_lock
from retraining.registry import open_registry
from retraining.registry.facts import TAG_ARTIFACT_HASH, TAG_CODE, TAG_MANIFEST_HASH
from retraining.settings import Settings, check_home


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("version", type=int, metavar="VERSION", help="its number")
    parser.add_argument(
        "--reason", required=True, metavar="TEXT", help="why, for the history: where it comes from"
    )


def _work(settings: Settings, options: argparse.Namespace) -> int:
    print_result(trust(settings, options.version, options.reason), {}, as_json=False)
    return EXIT_DONE


def trust(settings: Settings, number: int, reason: str) -> list[str]:
    """Vouch for a version as it is stored now; return what was done, in lines.

    Raises
    ------
    UsageError
        If no reason is given.
    PipelineError
        If there is no such version, or its files are not those that it tells of.
    """
    if not reason.strip():
        raise UsageError("--reason must say why the version is trusted")
    check_home(settings)
    with exclusive_lock(settings, "trust"):
        recovery.tidy(settings)
        registry = open_registry(settings)
        version = registry.versions.seal(registry.versions.get(number))
        says_what_it_learnt = TAG_MANIFEST_HASH in version.tags
        if says_what_it_learnt:
            registry.versions.manifest(version)
        vouching.vouch_for(settings, registry, version, reason)
    notes = (
        []
        if says_what_it_learnt
        else [
            "it does not say what it was trained on: predict and rollback take it, a cycle does not"
        ]
    )
    return [
        *notes,
        f"version {number} is trusted from now on: {reason}",
        f"its files have SHA-256 {version.tags[TAG_ARTIFACT_HASH]}",
        f"its code has SHA-256 {version.read.text(TAG_CODE, 'unknown')}",
    ]


COMMAND = Command("trust", "vouch for a version from elsewhere", _add_flags, _work)
