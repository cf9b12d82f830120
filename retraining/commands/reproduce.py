"""`reproduce`: train a version again from its manifest and compare predictions. Changes nothing."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retraining import ground_truth
from retraining.command_line import Command, print_result
from retraining.confined import run_confined
from retraining.errors import EXIT_DONE, EXIT_ERROR, PipelineError, TryLaterError
from retraining.files import hash_file, link_or_copy
from retraining.journal import Journal
from retraining.registry import open_registry
from retraining.registry.facts import TAG_MODULE, Manifest, RegisteredVersion
from retraining.registry.packaged import columns_of_version
from retraining.registry.stored_models import MODEL_FILE
from retraining.settings import SCRIPTS, Settings, check_home

SHOWN_NAMES = 5
RESULT = {"recordings", "predictions", "different", "probabilities", "largest_difference"}
REBUILD = Path(__file__).with_name("rebuild.py")

logger = logging.getLogger("pipeline")


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("version", type=int, metavar="VERSION", help="its number")


def _work(settings: Settings, options: argparse.Namespace) -> int:
    result = reproduce(settings, options.version)
    print_result(as_line(result), result, as_json=options.json)
    return EXIT_DONE if result["identical"] else EXIT_ERROR


def reproduce(settings: Settings, number: int) -> dict[str, Any]:
    """Train a version again, with its own code, seed and recordings, and compare predictions.

    Parameters
    ----------
    settings
        Folds and seed are those of the version, or these if it came as a pickle.

    Returns
    -------
    dict
        What `rebuild.rebuild` returned, and `version`, `identical`, `n_folds`, `random_state`,
        `recorded` (whether these two are known to be the version's) and `packages`: name ->
        version it was registered with and installed one, where they differ.

    Raises
    ------
    PipelineError
        If a recording is missing or changed, if its code does not train, or trains something else.
    """
    check_home(settings)
    registry = open_registry(settings)
    version = registry.versions.get(number)
    recorded = registry.runs.trained_with(version.run_id)
    trained_with = recorded or {
        "n_folds": settings.n_folds,
        "random_state": settings.random_state,
    }
    manifest = registry.versions.manifest(version)
    with (
        tempfile.TemporaryDirectory(prefix="pipeline-reproduce-") as name,
        registry.models.verified_files(version) as files,
    ):
        folder = Path(name)
        _gather(settings, number, manifest, folder / "recordings")
        required, optional = columns_of_version(files)
        task = {
            "code": str(files / "code"),
            "module": _packaged_module(version, files),
            "package": str(SCRIPTS),
            "recordings": str(folder / "recordings"),
            "stored": str(files / MODEL_FILE),
            "columns": [*required, *optional],
            "n_jobs": settings.n_jobs,
            "limits": dataclasses.asdict(settings.limits),
            **trained_with,
        }
        result = _rebuilt(settings, folder, number, task, len(manifest.files))
        packages = _other_packages(files)
    return {
        "version": number,
        "identical": result["largest_difference"] == 0,
        **result,
        **trained_with,
        "recorded": recorded is not None,
        "packages": packages,
    }


def _packaged_module(version: RegisteredVersion, files: Path) -> str:
    """Return the name of the module that made a version."""
    name = version.read.text(TAG_MODULE)
    if not name or not (files / "code" / f"{name}.py").is_file():
        raise PipelineError(f"version {version.number} does not carry the code that made it")
    return name


def _gather(settings: Settings, number: int, manifest: Manifest, folder: Path) -> None:
    """Collect the recordings of a manifest under the names that they were trained on with."""
    places: dict[str, Path] = {}
    rejected = [] if ground_truth.rejected_problem(settings) else [settings.rejected_gts]
    for place in (
        *(*rejected, settings.withdrawn_gts, settings.replaced_gts),
        *(settings.new_gts, settings.used_gts),
    ):
        if place.is_dir():
            names = ground_truth.hashes_in(place, max_mb=settings.max_file_mb)
            places |= {sha256: place / name for sha256, name in names.items()}
    missing = [one for one in manifest.files if one.sha256 not in places]
    if missing:
        there = {path.name: path for path in places.values()}
        withdrawn = {
            sha256: entry
            for entry in Journal(settings.home).read().withdrawn().values()
            for sha256 in (entry.sha256, *entry.earlier)
        }
        words = []
        for one in missing:
            if one.sha256 in withdrawn:
                entry = withdrawn[one.sha256]
                gone = "deleted" if entry.folder and not entry.kept_as else "is gone"
                state = f"was withdrawn on {entry.at[:10]} and {gone}"
            elif one.name in there:
                state = f"was changed ({there[one.name].parent.name}/ has another content)"
            else:
                state = "is missing"
            words.append(f"{one.name!r} {state}")
        more = f" and {len(words) - SHOWN_NAMES} more" if len(words) > SHOWN_NAMES else ""
        raise PipelineError(
            f"version {number} cannot be reproduced, {len(missing)} of its {len(manifest.files)} "
            f"recordings are not in used_gts/ or new_gts/: {', '.join(words[:SHOWN_NAMES])}{more}; "
            "put them back from a backup"
        )
    folder.mkdir()
    for one in manifest.files:
        try:
            link_or_copy(places[one.sha256], folder / one.name)
        except FileNotFoundError as error:
            raise TryLaterError(f"{one.name!r} was moved while this ran; run again") from error
        if hash_file(folder / one.name) != one.sha256:
            raise TryLaterError(f"{one.name!r} changed while this ran; run again")


def _rebuilt(
    settings: Settings, folder: Path, number: int, task: Mapping[str, Any], n_recordings: int
) -> dict[str, Any]:
    """Let another process, which finds the version's own code first, do the task."""
    (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
    logger.info("training version %d again on %d recordings", number, n_recordings)
    run_confined(
        [str(REBUILD), str(folder / "task.json")],
        settings,
        f"version {number} cannot be trained again with its own code",
        "install the packages of its requirements.txt in another environment and try there",
    )
    try:
        result = json.loads((folder / "result.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise PipelineError(f"the code of version {number} gave no result: {error}") from error
    if not isinstance(result, dict) or not (result.keys() >= RESULT or "types" in result):
        raise PipelineError(f"the code of version {number} gave no result")
    if "types" in result:
        stored, trained = result["types"]
        raise PipelineError(
            f"version {number} cannot be reproduced: it is a {stored}, its code trains a "
            f"{trained}; only whoever made the pickle can make it again"
        )
    return dict(result)


def _other_packages(files: Path) -> dict[str, list[str]]:
    """Return name -> [version that was pinned, installed one] where these differ."""
    from importlib.metadata import PackageNotFoundError, version

    other = {}
    for line in (files / "requirements.txt").read_text(encoding="utf-8").split():
        name, _, pinned = line.partition("==")
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = "none"
        if installed != pinned:
            other[name] = [pinned, installed]
    return other


def as_line(result: Mapping[str, Any]) -> str:
    """Return what `reproduce` found as a line for a person."""
    what = "probabilities" if result["probabilities"] else "predictions"
    text = f"trained again on {result['recordings']} recordings, {result['predictions']:,} {what}"
    if result["identical"]:
        return f"version {result['version']} is reproduced: {text}, largest difference 0"
    text += f", {result['different']:,} of them differ, by up to {result['largest_difference']:.3g}"
    if not result["recorded"]:
        text += (
            "; it came as a pickle, and nobody wrote down how it was trained: this was "
            f"--n-folds {result['n_folds']} --random-state {result['random_state']}"
        )
    if result["packages"]:
        words = [
            f"{name} {now} instead of {was}" for name, (was, now) in result["packages"].items()
        ]
        text += f"; other packages are installed than it was registered with: {', '.join(words)}"
    return f"version {result['version']} is not reproduced: {text}"


COMMAND = Command(
    "reproduce", "train a version again and compare its predictions", _add_flags, _work
)
