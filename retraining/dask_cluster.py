"""Spread a training over a Dask cluster: connect, check that it computes the same, send the code.

Used with `--backend dask` only; the packages are those of requirements-dask.txt. Nothing heavy is
imported here.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from retraining.errors import PipelineError, TryLaterError
from retraining.files import hash_bytes
from retraining.settings import Settings
from retraining.training import Training

CONNECT_SECONDS = 10
WORKERS_SECONDS = 10
"""An unreachable cluster is reported within 30 s, the start of Python included."""
PATIENCE_SECONDS = 60
"""For workers that are started again in the middle of a training."""
REMEDY = "the next run tries again; --backend local does without"
PACKAGE = Path(__file__).parent
USED_PACKAGES = ("numpy", "pandas", "pyarrow", "scikit-learn", "threadpoolctl")
"""By our own code on a worker, whatever the training module needs."""

logger = logging.getLogger("pipeline")


@contextlib.contextmanager
def joblib_backend(settings: Settings, training: Training) -> Iterator[Any]:
    """Give the joblib backend of the settings, connected to its cluster if it has one.

    Every worker gets the very file of the training module, and this package as it is here.

    Raises
    ------
    TryLaterError
        If scheduler or workers do not answer, or are lost.
    PipelineError
        If dask is not installed, or the workers have other packages or do not see the recordings.
    """
    if settings.backend == "local":
        yield "loky"
        return
    try:
        import distributed
    except ImportError as error:
        raise PipelineError(
            "--backend dask needs packages that are not installed: "
            "python -m pip install -r requirements-dask.txt"
        ) from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # we say in one line what is wrong
    with _connected(distributed, settings.scheduler) as client:
        _prepare_workers(client, training)
        with (
            _explained(distributed, settings.scheduler),
            _given_up_when_lost(client, settings.scheduler),
            warnings.catch_warnings(),
        ):
            # The tracks travel with each task on purpose: no worker's death may lose them.
            warnings.filterwarnings("ignore", message="Sending large graph")
            yield _backend(client)
            _refuse_other_packages(client, training)  # of workers that joined meanwhile


@contextlib.contextmanager
def _connected(distributed: Any, scheduler: str) -> Iterator[Any]:
    try:
        client = distributed.Client(scheduler, timeout=CONNECT_SECONDS)
    except (OSError, TimeoutError) as error:
        raise TryLaterError(
            f"the Dask scheduler {scheduler} does not answer: {error}; {REMEDY}"
        ) from error
    try:
        yield client
    finally:
        with contextlib.suppress(OSError, TimeoutError):
            client.close(timeout=CONNECT_SECONDS)


def _backend(client: Any) -> Any:
    """Return joblib's Dask backend, mended: it never told joblib of a task that cannot be run."""
    from joblib._dask import DaskDistributedBackend

    class Backend(DaskDistributedBackend):
        def submit(self, func: Any, callback: Any = None) -> Any:
            future = super().submit(func, callback)
            future.add_done_callback(
                lambda done: callback(done.exception()) if done.exception() else None
            )
            return future

    return Backend(client=client)


def _prepare_workers(client: Any, training: Training) -> None:
    """Send our code and the training module to every worker, and compare its packages."""
    from distributed.diagnostics.plugin import SchedulerUploadFile, UploadFile

    scheduler = client.scheduler.address
    try:
        client.wait_for_workers(1, timeout=WORKERS_SECONDS)
        file = str(training.path)
        # The scheduler unpickles tasks, too.
        for plugin in (*_package_plugins(), SchedulerUploadFile(file), UploadFile(file)):
            # Under one name each: workers that join later get the last code only.
            client.register_plugin(plugin, name=f"{type(plugin).__name__} of the pipeline")
    except (OSError, TimeoutError) as error:
        raise _silent(scheduler) from error
    n_workers = _refuse_other_packages(client, training)
    logger.info("computing on %d Dask workers of %s", n_workers, scheduler)


def _package_plugins() -> list[Any]:
    """Return what puts this package on the scheduler and on each worker, also on later ones.

    A worker lives longer than a run: what it imported of another copy is forgotten, and the new
    one comes before all other places.
    """
    from distributed.diagnostics.plugin import SchedulerUploadFile, UploadFile

    name, beginning = PACKAGE.name, f"{PACKAGE.name}-"

    # In here and with imports of their own, these travel to the workers whole.
    def use(path: str) -> None:
        import importlib
        import sys
        from pathlib import Path

        others = [one for one in sys.path if not Path(one).name.startswith(beginning)]
        sys.path[:] = [path, *others]
        for loaded in [one for one in sys.modules if one.partition(".")[0] == name]:
            del sys.modules[loaded]
        importlib.invalidate_caches()

    class SchedulerPackage(SchedulerUploadFile):
        async def start(self, scheduler: Any) -> None:
            await scheduler.upload_file(self.filename, self.data, load=False)
            use(f"{scheduler.local_directory}/{self.filename}")

    class WorkerPackage(UploadFile):
        async def setup(self, worker: Any) -> None:
            await worker.upload_file(filename=self.filename, data=self.data, load=False)
            use(f"{worker.local_directory}/{self.filename}")

    with tempfile.TemporaryDirectory(prefix="pipeline-package-") as folder:
        path = str(_packed(Path(folder)))
        return [SchedulerPackage(path), WorkerPackage(path)]


def _packed(folder: Path) -> Path:
    """Zip this package, under a name that tells one content from another: zips are cached."""
    sources = {one.relative_to(PACKAGE.parent): one for one in sorted(PACKAGE.rglob("*.py"))}
    contents = {str(name): path.read_bytes() for name, path in sources.items()}
    digest = hash_bytes(repr(contents).encode())[:16]
    packed = folder / f"{PACKAGE.name}-{digest}.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return packed


def _silent(scheduler: str) -> TryLaterError:
    return TryLaterError(f"no worker of the Dask scheduler {scheduler} answers; {REMEDY}")


def _refuse_other_packages(client: Any, training: Training) -> int:
    """Compare the packages of all workers with those here; return how many workers there are."""
    from importlib.metadata import PackageNotFoundError, version

    def installed(names: list[str]) -> dict[str, str]:  # in here, it travels to the workers whole
        found = {}
        for name in names:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "none"
        return found

    here = {**installed(list(USED_PACKAGES)), **training.package_versions()}
    try:
        found = client.run(installed, list(here))
    except (OSError, TimeoutError) as error:
        raise _silent(client.scheduler.address) from error
    for worker, there in found.items():
        _refuse_other_versions(worker, here, there)
    return len(found)


def _refuse_other_versions(worker: str, here: Mapping[str, str], there: Mapping[str, str]) -> None:
    other = [
        f"{name} {there[name]} instead of {version}"
        for name, version in here.items()
        if there[name] != version
    ]
    if other:
        raise PipelineError(
            f"the Dask worker {worker} has {', '.join(other)} and might compute something else; "
            "install the same versions there"
        )


def _lost(scheduler: str) -> TryLaterError:
    return TryLaterError(
        f"the Dask scheduler {scheduler} or all its workers were lost during training; {REMEDY}"
    )


@contextlib.contextmanager
def _given_up_when_lost(client: Any, scheduler: str) -> Iterator[None]:
    """End the wait of this thread, the main one, when the cluster is gone: joblib would wait on.

    Raised by a signal, because nothing else reaches a thread that waits.
    """

    def give_up(*_: object) -> None:
        raise _lost(scheduler)

    def watch() -> None:
        last_seen = time.monotonic()
        while not done.wait(1):
            if _has_workers(client):
                last_seen = time.monotonic()
            elif client.status == "closed" or time.monotonic() - last_seen > PATIENCE_SECONDS:
                signal.raise_signal(signal.SIGUSR1)
                return

    done = threading.Event()
    watcher = threading.Thread(target=watch, daemon=True)
    before = signal.signal(signal.SIGUSR1, give_up)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        signal.signal(signal.SIGUSR1, before)


def _has_workers(client: Any) -> bool:
    try:
        return bool(client.scheduler_info()["workers"])
    except (OSError, TimeoutError, RuntimeError):  # not connected, or closed this very moment
        return False


@contextlib.contextmanager
def _explained(distributed: Any, scheduler: str) -> Iterator[None]:
    """Say in one line what went wrong on the cluster."""
    import asyncio
    import concurrent.futures

    try:
        yield
    except (
        *(asyncio.CancelledError, concurrent.futures.CancelledError),
        distributed.comm.CommClosedError,
    ) as error:
        raise _lost(scheduler) from error
    except distributed.KilledWorker as error:
        raise PipelineError(
            f"a task of the Dask scheduler {scheduler} ended several workers, perhaps for want of "
            f"memory: {error}"
        ) from error
    except FileNotFoundError as error:
        raise PipelineError(
            f"a Dask worker does not see {error.filename}; the home folder must be on a file "
            "system that all workers share, under the same path"
        ) from error
