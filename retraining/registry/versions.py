"""The versions of the registered model: find them, read what they were trained on, create them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retraining.errors import PipelineError, TryLaterError
from retraining.files import hash_bytes
from retraining.registry.facts import (
    BEFORE_LABELS_FILE,
    MANIFEST_FILE,
    MILLISECONDS,
    MONITORING_RUN,
    MOST,
    OTHER_VERSION,
    OUT_OF_FOLD_FILE,
    PRODUCTION,
    REPORT_FILE,
    TABLES,
    TAG_ARTIFACT_HASH,
    TAG_BEFORE_LABELS_HASH,
    TAG_CODE,
    TAG_CREATED,
    TAG_CYCLE,
    TAG_DIGEST,
    TAG_MANIFEST_HASH,
    TAG_METRIC,
    TAG_MODULE,
    TAG_OUT_OF_FOLD_HASH,
    TAG_PLACE,
    TAG_VERDICT,
    VERDICT_REJECT,
    Manifest,
    NotInRegistry,
    RegisteredVersion,
    Tags,
    a_time,
    damaged,
    numbers_by_name,
    unreadable,
)
from retraining.registry.runs import Runs
from retraining.registry.store import NOT_THERE, Connection
from retraining.registry.stored_models import LoggedModel, StoredModels
from retraining.training import TrainedModel, Training

if TYPE_CHECKING:
    from retraining.calibration import BeforeLabels

MODEL_DESCRIPTION = (
    f"Versions come from the retraining pipeline. {PRODUCTION!r} is the one in use, the alias of "
    "the one before is 'previous_production'. The description of a version says what became of "
    "it; the comparison with the champion of its day is in comparison.json of its run, the page "
    f"of a cycle in {REPORT_FILE} of its {MONITORING_RUN}."
)

NO_FILE = "none"
"""Digest of a table that a version does not have: one that is put there later is not believed."""
logger = logging.getLogger("pipeline")


@dataclass(frozen=True)
class Versions:
    """The versions of this model."""

    connection: Connection
    runs: Runs
    models: StoredModels

    # --- Finding ---

    def model_exists(self) -> bool:
        """Say whether the registered model is there."""
        client, name = self.connection.client, self.connection.name
        return bool(client.search_registered_models(f"name = '{name}'"))

    def alias(self, alias: str) -> int | None:
        """Return the number of the version with that alias, None where there is none."""
        if not self.model_exists():
            return None
        model = self.connection.client.get_registered_model(self.connection.name)
        number = model.aliases.get(alias)
        return None if number is None else _number(number)

    def aliases(self) -> dict[str, int]:
        """Return every alias, people's own included, and the version that it names."""
        model = self.connection.client.get_registered_model(self.connection.name)
        return {alias: _number(number) for alias, number in model.aliases.items()}

    def get(self, number: int) -> RegisteredVersion:
        """Return one version.

        Raises
        ------
        NotInRegistry
            If there is none of that number.
        """
        name = self.connection.name
        try:
            if not 0 < number <= MOST:
                raise NotInRegistry(f"there is no version {number} of {name!r}")
            found = self.connection.client.get_model_version(name, str(number))
        except self.connection.mlflow.MlflowException as error:
            if error.error_code != NOT_THERE:
                raise
            raise NotInRegistry(f"there is no version {number} of {name!r}") from error
        return _version(found)

    def all(self) -> list[RegisteredVersion]:
        """Return all versions, the newest first."""
        return sorted(self.with_tags({}), key=lambda version: -version.number)

    def with_tags(self, tags: Mapping[str, str]) -> list[RegisteredVersion]:
        """Return the versions that carry these tags."""
        conditions = "".join(f" and tags.{key} = '{value}'" for key, value in tags.items())
        found = self.connection.client.search_model_versions(
            f"name = '{self.connection.name}'{conditions}"
        )
        return [_version(one) for one in found]

    def manifest(self, version: RegisteredVersion) -> Manifest:
        """Return the files that a version was trained on.

        Raises
        ------
        PipelineError
            If it is missing or was changed.
        """
        content = self.runs.artifact(version.run_id, MANIFEST_FILE)
        expected = version.tags.get(TAG_MANIFEST_HASH)
        source = f"version {version.number}"
        if content is None and self.runs.is_gone(version.run_id):
            raise PipelineError(
                f"the run of {source} was removed from MLflow for good, and what it learnt with "
                f"it: no cycle can use it; restore the store from a backup, or {OTHER_VERSION}"
            )
        if content is None:
            raise unreadable(source, MANIFEST_FILE, None)
        if expected and hash_bytes(content) != expected:
            raise damaged(source, MANIFEST_FILE, "is not the one that was registered")
        return Manifest.from_bytes(content, source)

    def manifests(self) -> Iterator[tuple[RegisteredVersion, Manifest | None]]:
        """Give every version, the newest first, with what it was trained on.

        None, and a warning, where that is missing or was changed.
        """
        for version in self.all():
            try:
                manifest = self.manifest(version)
            except TryLaterError:
                raise
            except PipelineError as error:
                logger.warning("%s", error)
                manifest = None
            yield version, manifest

    def out_of_fold_errors(
        self, version: RegisteredVersion, training: Training
    ) -> dict[str, float]:
        """Return SHA-256 of a recording -> error of a model that never saw it.

        Empty for a version without such errors, and if they were counted by another metric.

        Raises
        ------
        PipelineError
            If they are missing or were changed.
        """
        expected = version.tags.get(TAG_OUT_OF_FOLD_HASH)
        if self._counts_otherwise(version, training) or expected == NO_FILE:
            return {}
        content = self.runs.artifact(version.run_id, OUT_OF_FOLD_FILE)
        source = f"version {version.number}"
        if content is None and expected is None:  # of an older pipeline
            return {}
        if content is None:
            raise unreadable(source, OUT_OF_FOLD_FILE, None)
        if expected not in (None, hash_bytes(content)):
            raise damaged(source, OUT_OF_FOLD_FILE, "is not the one that was registered")
        return numbers_by_name(content, source, OUT_OF_FOLD_FILE)

    def before_labels(self, version: RegisteredVersion, training: Training) -> BeforeLabels:
        """Return what a version's training left for the time before labels come.

        Empty for a version whose module told nothing, and if errors were counted by another metric.

        Raises
        ------
        PipelineError
            If it is missing or was changed.
        """
        from retraining.calibration import BeforeLabels

        expected = version.tags.get(TAG_BEFORE_LABELS_HASH)
        if expected is None or self._counts_otherwise(version, training):
            return BeforeLabels()
        content = self.runs.artifact(version.run_id, BEFORE_LABELS_FILE)
        source = f"version {version.number}"
        if content is None:
            raise unreadable(source, BEFORE_LABELS_FILE, None)
        if hash_bytes(content) != expected:
            raise damaged(source, BEFORE_LABELS_FILE, "is not the one that was registered")
        try:
            return BeforeLabels.from_bytes(content)
        except ValueError as error:
            raise unreadable(source, BEFORE_LABELS_FILE, error) from error

    def _counts_otherwise(self, version: RegisteredVersion, training: Training) -> bool:
        """Say whether a version's errors were counted by another metric than the module's."""
        return version.read.text(TAG_METRIC, training.error_name) != training.error_name

    # --- Writing ---

    def create_model(self) -> None:
        """Create the registered model where it is missing."""
        if not self.model_exists():
            self.connection.client.create_registered_model(
                self.connection.name, description=MODEL_DESCRIPTION
            )

    def register(
        self,
        trained: TrainedModel,
        *,
        run_id: str,
        training: Training,
        manifest: Manifest,
        out_of_fold: bytes,
        tags: Mapping[str, str],
        before_labels: bytes = b"",
    ) -> RegisteredVersion:
        """Log a model and its manifest to the open run, then register it as a new version.

        Parameters
        ----------
        out_of_fold, before_labels
            What `out_of_fold_errors` and `before_labels` read; empty if there is none.

        Notes
        -----
        The client repeats a POST whose reply was lost; of versions with one cycle id only the
        one returned stays.

        Raises
        ------
        PipelineError
            If the model holds a type that its module does not trust or that its packages do not
            bring, or the module's file changed.
        """
        training.check_unchanged()
        training.check_packages()
        made_by = {
            TAG_MODULE: training.name,
            TAG_CODE: training.code_sha256,
            TAG_METRIC: training.error_name,
        }
        return self._create(
            lambda: self.models.log(trained.model, trained.input_example, training, run_id),
            run_id=run_id,
            manifest=manifest,
            out_of_fold=out_of_fold,
            before_labels=before_labels,
            tags={**tags, **made_by},
        )

    def adopt(
        self,
        files: Path,
        *,
        run_id: str,
        manifest: Manifest,
        out_of_fold: bytes,
        tags: Mapping[str, str],
    ) -> RegisteredVersion:
        """Log a manifest and the files of another store's version as they are, and register them.

        Parameters
        ----------
        files
            Verified ones.
        tags
            With what that version says of its training module.
        """
        return self._create(
            lambda: self.models.adopt(files, run_id),
            run_id=run_id,
            manifest=manifest,
            out_of_fold=out_of_fold,
            tags=tags,
        )

    def _create(
        self,
        log_model: Callable[[], LoggedModel],
        *,
        run_id: str,
        manifest: Manifest,
        out_of_fold: bytes,
        tags: Mapping[str, str],
        before_labels: bytes = b"",
    ) -> RegisteredVersion:
        # The files first: a version is there only when everything that it names is.
        content = manifest.to_bytes()
        self.runs.log_file(content, MANIFEST_FILE, run_id)
        if out_of_fold:
            self.runs.log_file(out_of_fold, OUT_OF_FOLD_FILE, run_id)
        if before_labels:
            self.runs.log_file(before_labels, BEFORE_LABELS_FILE, run_id)
        logged = log_model()
        digests = {
            TAG_ARTIFACT_HASH: logged.digest,
            TAG_MANIFEST_HASH: hash_bytes(content),
            TAG_OUT_OF_FOLD_HASH: hash_bytes(out_of_fold) if out_of_fold else NO_FILE,
        }
        if before_labels:
            digests[TAG_BEFORE_LABELS_HASH] = hash_bytes(before_labels)
        place = {TAG_PLACE: self.connection.place}
        made = RegisteredVersion(0, run_id, {**tags, **digests, **place}, 0)
        created = self.connection.client.create_model_version(
            self.connection.name,
            logged.uri,
            run_id=run_id,
            model_id=logged.model_id,
            tags={**made.tags, TAG_DIGEST: made.digest},
        )
        for twin in self.with_tags({TAG_CYCLE: tags[TAG_CYCLE]}):
            if twin.number != _number(created.version):
                self.delete(twin.number)
        # What was made here, whatever the store makes of it.
        return replace(_version(created), run_id=run_id, tags=made.tags)

    def seal(self, version: RegisteredVersion) -> RegisteredVersion:
        """Note the digests that a version lacks, of what is there now; return it with them.

        Raises
        ------
        PipelineError
            If its files are missing, or differ from a digest that it has.
        """
        lacking = {
            name: text for name, text in self._digests(version).items() if name not in version.tags
        }
        sealed = version.with_tags(lacking)
        if TAG_ARTIFACT_HASH not in lacking:
            with self.models.registered_files(sealed):
                pass
        if lacking or version.tags.get(TAG_DIGEST) != sealed.digest:
            for name, text in {**lacking, TAG_DIGEST: sealed.digest}.items():
                self.set_tag(version.number, name, text)
        return sealed

    def _digests(self, version: RegisteredVersion) -> dict[str, str]:
        found = {}
        if TAG_ARTIFACT_HASH not in version.tags:
            found[TAG_ARTIFACT_HASH] = self.models.digest(version)
        for tag, name in TABLES.items():
            content = self.runs.artifact(version.run_id, name)
            if content is not None:
                found[tag] = hash_bytes(content)
        return {TAG_OUT_OF_FOLD_HASH: NO_FILE, **found}

    def describe(self, number: int, text: str) -> None:
        """Set the description of a version."""
        self.connection.client.update_model_version(self.connection.name, str(number), text)

    def set_tag(self, number: int, key: str, value: str) -> None:
        """Tag a version."""
        client = self.connection.client
        client.set_model_version_tag(self.connection.name, str(number), key, value)

    def delete(self, number: int) -> None:
        """Delete a version."""
        self.connection.client.delete_model_version(self.connection.name, str(number))

    def delete_unfinished(self, cycle_id: str, kept: set[int | None]) -> None:
        """Delete what a dead cycle registered without bringing it to an end.

        Versions that are `kept`, because of an alias, and rejected ones stay.
        """
        for version in self.with_tags({TAG_CYCLE: cycle_id}):
            if version.number in kept or version.tags.get(TAG_VERDICT) == VERDICT_REJECT:
                continue
            logger.info("deleting version %d of a cycle that was cut off", version.number)
            self.delete(version.number)


def _version(found: Any) -> RegisteredVersion:
    number, tags = _number(found.version), dict(found.tags)
    created = tags.get(TAG_CREATED, "")  # in the store that it was imported from
    return RegisteredVersion(
        number,
        str(found.run_id or ""),
        tags,
        int(created)
        if MILLISECONDS.fullmatch(created)
        else a_time(found.creation_timestamp, f"version {number}"),
    )


def _number(text: object) -> int:
    """Return the number of a version, as a store tells it."""
    return Tags({"version": str(text)}, "the store").integer("version")
