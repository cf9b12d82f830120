"""What a version was made of: train it again from its manifest, or find what learnt a recording.

Nothing here changes the home or the store, and nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gts_folder
import model_registry
import packaged_model
from gts_folder import as_local_time, hash_file
from model_registry import Manifest
from pipeline_settings import PipelineError, Settings, TryLaterError, check_home

if TYPE_CHECKING:
    from model_registry import RegisteredVersion

SHOWN_NAMES = 5
REBUILD = Path(__file__).with_name("rebuild_version.py")

logger = logging.getLogger("pipeline")


# --- reproduce ---


def reproduce(settings: Settings, number: int) -> dict[str, Any]:
    """Train a version again, with its own code, seed and recordings, and compare predictions.

    Parameters
    ----------
    settings
        Of this home; folds and seed are those of the version, or these if it came as a pickle.
    number
        Of the version.

    Returns
    -------
    dict
        What `rebuild_version.rebuild` returned, and `version`, `identical`, `n_folds`,
        `random_state`, `recorded` (whether these two are known to be the version's) and
        `packages`: name -> version it was registered with and installed one, where they differ.

    Raises
    ------
    PipelineError
        If a recording is missing or changed, if its code does not train, or trains something else.
    """
    check_home(settings)
    registry = model_registry.open_registry(settings)
    version = registry.version(number)
    recorded = registry.training_parameters(version)
    trained_with = recorded or {
        "n_folds": settings.n_folds,
        "random_state": settings.random_state,
    }
    manifest = registry.manifest(version)
    with (
        tempfile.TemporaryDirectory(prefix="pipeline-reproduce-") as name,
        registry.verified_files(version) as files,
    ):
        recordings = Path(name, "recordings")
        _gather(settings, number, manifest, recordings)
        required, optional = packaged_model.columns_of_version(files)
        task = {
            "code": str(files / "code"),
            "module": _packaged_module(version, files),
            "recordings": str(recordings),
            "stored": str(files / model_registry.MODEL_FILE),
            "columns": [*required, *optional],
            "n_jobs": settings.n_jobs,
            **trained_with,
        }
        Path(name, "task.json").write_text(json.dumps(task))
        logger.info("training version %d again on %d recordings", number, len(manifest.files))
        packaged_model.run_beside(
            [str(REBUILD), str(Path(name, "task.json"))],
            f"version {number} cannot be trained again with its own code",
            "install the packages of its requirements.txt in another environment and try there",
        )
        result = json.loads(Path(name, "result.json").read_bytes())
        if "types" in result:
            stored, trained = result["types"]
            raise PipelineError(
                f"version {number} cannot be reproduced: it is a {stored}, its code trains a "
                f"{trained}; only whoever made the pickle can make it again"
            )
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
    named = version.tags.get(model_registry.TAG_MODULE)
    names = [named] if named else [path.stem for path in sorted((files / "code").glob("*.py"))]
    if len(names) != 1 or not (files / "code" / f"{names[0]}.py").is_file():
        raise PipelineError(f"version {version.number} does not carry the code that made it")
    return names[0]


def _gather(settings: Settings, number: int, manifest: Manifest, folder: Path) -> None:
    """Collect the recordings of a manifest under the names that they were trained on with."""
    places: dict[str, Path] = {}
    for place in (settings.rejected_gts, settings.new_gts, settings.used_gts):
        if place.is_dir():
            places |= {sha256: place / name for sha256, name in gts_folder.hashes_in(place).items()}
    missing = [one for one in manifest.files if one.sha256 not in places]
    if missing:
        there = {path.name: path for path in places.values()}
        words = [
            f"{one.name!r} was changed ({there[one.name].parent.name}/ has another content)"
            if one.name in there
            else f"{one.name!r} is missing"
            for one in missing
        ]
        more = f" and {len(words) - SHOWN_NAMES} more" if len(words) > SHOWN_NAMES else ""
        raise PipelineError(
            f"version {number} cannot be reproduced, {len(missing)} of its {len(manifest.files)} "
            f"recordings are not in used_gts/ or new_gts/: {', '.join(words[:SHOWN_NAMES])}{more}; "
            "put them back from a backup"
        )
    folder.mkdir()
    for one in manifest.files:
        try:
            gts_folder.link_or_copy(places[one.sha256], folder / one.name)
        except FileNotFoundError as error:
            raise TryLaterError(f"{one.name!r} was moved while this ran; run again") from error
        if hash_file(folder / one.name) != one.sha256:
            raise TryLaterError(f"{one.name!r} changed while this ran; run again")


def _other_packages(files: Path) -> dict[str, list[str]]:
    """Return name -> [version that was pinned, installed one] where these differ."""
    from importlib.metadata import PackageNotFoundError, version

    other = {}
    for line in (files / "requirements.txt").read_text().split():
        name, _, pinned = line.partition("==")
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = "none"
        if installed != pinned:
            other[name] = [pinned, installed]
    return other


def reproduction_text(result: Mapping[str, Any]) -> str:
    """Return the outcome of `reproduce` in one line.

    Parameters
    ----------
    result
        What it returned.
    """
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


# --- lineage ---


def lineage(settings: Settings, file: str) -> dict[str, Any]:
    """Find the versions that were trained on a recording.

    Parameters
    ----------
    settings
        Of this home.
    file
        A path, or a name in used_gts/, new_gts/ or new_gts/rejected/.

    Returns
    -------
    dict
        `file`, `sha256`, `versions` (newest first: `version`, `name`, `at`, `alias`),
        `other_content` (versions that learnt another content under that name) and `unknown`
        (versions whose manifest cannot be read).

    Raises
    ------
    PipelineError
        If there is no such file.
    """
    check_home(settings)
    path = _find(settings, file)
    sha256 = hash_file(path)
    registry = model_registry.open_registry(settings)
    versions, other, unknown = [], [], []
    for version in registry.versions():
        try:
            manifest = registry.manifest(version)
        except TryLaterError:
            raise
        except PipelineError as error:
            logger.warning("%s", error)
            unknown.append(version.number)
            continue
        name = manifest.names.get(sha256)
        if name is not None:
            at = as_local_time(version.created_ms / 1000)
            alias = registry.alias_of(version.number)
            versions.append({"version": version.number, "name": name, "at": at, "alias": alias})
        elif path.name in manifest.names.values():
            other.append(version.number)
    return {
        "file": str(path),
        "sha256": sha256,
        "versions": versions,
        "other_content": other,
        "unknown": unknown,
    }


def _find(settings: Settings, file: str) -> Path:
    folders = (settings.used_gts, settings.new_gts, settings.rejected_gts)
    for path in (Path(file), *(folder / file for folder in folders)):
        if path.is_file():
            return path.absolute()
    raise PipelineError(
        f"there is no file {file!r}, neither here nor in used_gts/, new_gts/ or new_gts/rejected/"
    )


def lineage_text(found: Mapping[str, Any]) -> str:
    """Return what `lineage` found as lines for a person.

    Parameters
    ----------
    found
        What it returned.
    """
    lines = [f"{found['file']}: SHA-256 {found['sha256']}"]
    lines += [
        f"version {one['version']} of {one['at']} learnt it as {one['name']!r}"
        + (f"; it is {one['alias']}" if one["alias"] else "")
        for one in found["versions"]
    ]
    if not found["versions"]:
        lines.append("no version was trained on it")
    for key, text in (
        ("other_content", "learnt another content under that name"),
        ("unknown", "unknown: the manifest cannot be read"),
    ):
        lines += [f"version {number}: {text}" for number in found[key]]
    return "\n".join(lines)
