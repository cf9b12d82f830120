"""Versions: what they were trained on, and who changed that."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retraining.errors import PipelineError
from retraining.files import hash_bytes
from retraining.registry import open_registry
from retraining.registry.facts import NotInRegistry, RegisteredVersion
from retraining.training import load_training_module

SettingsOf = Callable[..., Any]


class TestManifest:
    """What a version was trained on."""

    def test_a_changed_manifest_is_refused(self, home: Path, settings_of: SettingsOf) -> None:
        """It decides what is archived."""
        (manifest,) = (home / "mlflow_server/artifacts").rglob("training_files.json")
        manifest.write_text(json.dumps({"files": []}))
        registry = open_registry(settings_of(home))
        with pytest.raises(PipelineError, match="not the one that was registered"):
            registry.versions.manifest(registry.production.champion())
        manifest.unlink()
        with pytest.raises(PipelineError, match="is missing"):
            registry.versions.manifest(registry.production.champion())

    @pytest.mark.parametrize("content", ["{}", '{"files": [{"name": "a.csv"}]}', "no JSON"])
    def test_one_that_does_not_read_is_named(
        self, home: Path, settings_of: SettingsOf, content: str
    ) -> None:
        """Also where nobody noted its digest, or somebody took the note away."""
        (manifest,) = (home / "mlflow_server/artifacts").rglob("training_files.json")
        manifest.write_text(content)
        registry = open_registry(settings_of(home))
        connection = registry.runs.connection
        connection.client.delete_model_version_tag(connection.name, "1", "manifest_sha256")
        with pytest.raises(PipelineError, match=r"^training_files\.json of version 1 reads '"):
            registry.versions.manifest(registry.production.champion())


class TestOutOfFold:
    """Errors by models that never saw a recording."""

    def test_they_are_those_of_the_metric(self, home: Path, settings_of: SettingsOf) -> None:
        """Counted by another one they say nothing; what is no such table is named."""
        settings = settings_of(home)
        registry, module = open_registry(settings), load_training_module(settings)
        version = registry.versions.get(1)
        (manifest,) = (home / "mlflow_server/artifacts").rglob("training_files.json")
        errors = manifest.with_name("out_of_fold_errors.json")
        assert registry.versions.out_of_fold_errors(version, module) == {}
        content = b'{"ab": 2.5}'
        errors.write_bytes(content)
        # It was registered without: one that is put there later is not believed.
        assert registry.versions.out_of_fold_errors(version, module) == {}
        version = version.with_tags({"out_of_fold_sha256": hash_bytes(content)})
        assert registry.versions.out_of_fold_errors(version, module) == {"ab": 2.5}
        other = version.with_tags({"error_name": "another"})
        assert registry.versions.out_of_fold_errors(other, module) == {}

    @pytest.mark.parametrize("content", [b'{"ab": 0.0}', b'{"ab": "x"}', b"[" * 10**5, None])
    def test_changed_ones_are_refused(
        self, home: Path, settings_of: SettingsOf, content: bytes | None
    ) -> None:
        """They say whether a challenger forgets."""
        settings = settings_of(home)
        registry, module = open_registry(settings), load_training_module(settings)
        (manifest,) = (home / "mlflow_server/artifacts").rglob("training_files.json")
        if content is not None:
            manifest.with_name("out_of_fold_errors.json").write_bytes(content)
        version = registry.versions.get(1).with_tags({"out_of_fold_sha256": "0" * 64})
        with pytest.raises(PipelineError, match=r"^out_of_fold_errors\.json of version 1 is "):
            registry.versions.out_of_fold_errors(version, module)
        # One of an older pipeline has no digest: what cannot be read is named all the same.
        older = RegisteredVersion(1, version.run_id, {}, 0)
        if content not in (None, b'{"ab": 0.0}'):
            with pytest.raises(
                PipelineError, match=r"^out_of_fold_errors\.json of version 1 reads"
            ):
                registry.versions.out_of_fold_errors(older, module)


class TestFinding:
    """`get` and `alias`."""

    def test_a_version_that_is_not_there_is_named(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """With the model's name."""
        settings = settings_of(home)
        versions = open_registry(settings).versions
        assert [one.number for one in versions.all()] == [1]
        with pytest.raises(NotInRegistry, match=f"no version 9 of '{settings.model_name}'"):
            versions.get(9)

    def test_a_model_that_is_not_there_has_no_alias(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """And no production, with the command to run."""
        registry = open_registry(settings_of(home, model_name="Another"))
        assert registry.production.number() is None
        assert registry.production.previous_number() is None
        with pytest.raises(NotInRegistry, match="holds other models: Stem.*--model-name"):
            registry.production.champion()
