"""Everything that talks to MLflow.

The registry is the truth: the alias `production` names the model in use, and that version's
manifest names the files that it was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

from retraining.registry.copies import Copies
from retraining.registry.facts import Manifest, RegisteredVersion
from retraining.registry.judgements import Judgements
from retraining.registry.production import Production
from retraining.registry.runs import Runs
from retraining.registry.store import connect
from retraining.registry.stored_models import StoredModels
from retraining.registry.versions import Versions
from retraining.registry.vouches import Vouches
from retraining.settings import Settings


@dataclass(frozen=True)
class Registry:
    """The registered model, its versions and the pipeline's runs, in one store."""

    runs: Runs
    versions: Versions
    models: StoredModels
    production: Production
    judgements: Judgements
    vouches: Vouches
    copies: Copies

    def learnt_by(self, version: RegisteredVersion) -> Manifest:
        """Return what a version was trained on, if this home vouches for it.

        Raises
        ------
        PipelineError
            If it does not, or the manifest is missing or was changed.
        """
        self.vouches.check(version)
        return self.versions.manifest(version)

    def create_experiment_and_model(self) -> None:
        """Create the experiment and the registered model where they are missing."""
        self.runs.create_experiment()
        self.versions.create_model()


def open_registry(settings: Settings, *, create: bool = False) -> Registry:
    """Open the registry of a home; see `store.connect`."""
    connection = connect(settings, create=create)
    runs = Runs(connection)
    vouches = Vouches(connection.settings)
    models = StoredModels(connection, vouches)
    versions = Versions(connection, runs, models)
    return Registry(
        runs=runs,
        versions=versions,
        models=models,
        production=Production(connection, runs, versions, vouches),
        judgements=Judgements(connection, runs, versions),
        vouches=vouches,
        copies=Copies(connection, runs, versions, models),
    )
