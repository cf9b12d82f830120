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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retraining.errors import PipelineError, TryLaterError, raised_by
from retraining.files import hash_bytes
from retraining.settings import Settings
from retraining.text import printable
from retraining.training import Training

CONNECT_SECONDS = 10
WORKERS_SECONDS = 10
"""An unreachable cluster is reported within 30 s, the start of Python included."""
ANSWER_SECONDS = 60
"""For all that is asked before and after a training."""
PATIENCE_SECONDS = 60
"""For workers that are started again in the middle of a training."""
REMEDY = "the next run tries again; --backend local does without"
PACKAGE = Path(__file__).parent
CLUSTER_CODE = ("distributed", "dask", "joblib", "concurrent")
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
    scheduler = settings.scheduler
    with _explained(distributed, scheduler), _connected(distributed, scheduler) as client:
        with _answering_within(ANSWER_SECONDS, _silent(scheduler)):
            _prepare_workers(client, training)
        done = _Done()
        with _given_up_when_lost(client, settings, done), warnings.catch_warnings():
            # The tracks travel with each task on purpose: no worker's death may lose them.
            warnings.filterwarnings("ignore", message="Sending large graph")
            yield _backend(client, done)
        with _answering_within(ANSWER_SECONDS, _silent(scheduler)):
            _refuse_other_packages(client, training)  # of workers that joined meanwhile


@contextlib.contextmanager
def _connected(distributed: Any, scheduler: str) -> Iterator[Any]:
    try:
        with _answering_within(CONNECT_SECONDS + 2, _mute(scheduler, "it says nothing")):
            client = distributed.Client(scheduler, timeout=CONNECT_SECONDS)
    except (OSError, TimeoutError) as error:
        raise _mute(scheduler, error) from error
    try:
        yield client
    finally:
        with contextlib.suppress(OSError, TimeoutError):
            client.close(timeout=CONNECT_SECONDS)


@dataclass
class _Done:
    """When the last task was done."""

    at: float = field(default_factory=time.monotonic)


def _backend(client: Any, last: _Done) -> Any:
    """Return joblib's Dask backend, mended: it never told joblib of a task that cannot be run."""
    from joblib._dask import DaskDistributedBackend

    class Backend(DaskDistributedBackend):
        def submit(self, func: Any, callback: Any = None) -> Any:
            def note(done: Any) -> None:
                last.at = time.monotonic()
                if done.exception():
                    callback(done.exception())

            last.at = time.monotonic()
            future = super().submit(func, callback)
            future.add_done_callback(note)
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


def _mute(scheduler: str, reason: object) -> TryLaterError:
    return TryLaterError(
        f"the Dask scheduler {scheduler} does not answer: {printable(reason)}; {REMEDY}"
    )


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
        if not isinstance(there, dict):
            raise PipelineError(f"the Dask worker {printable(worker)} does not say its packages")
        _refuse_other_versions(worker, here, there)
    return len(found)


def _refuse_other_versions(worker: str, here: Mapping[str, str], there: Mapping[str, str]) -> None:
    other = [
        f"{name} {printable(there.get(name), 60)} instead of {version}"
        for name, version in here.items()
        if there.get(name) != version
    ]
    if other:
        raise PipelineError(
            f"the Dask worker {printable(worker)} has {', '.join(other)} and might compute "
            "something else; install the same versions there"
        )


def _lost(scheduler: str) -> TryLaterError:
    return TryLaterError(
        f"the Dask scheduler {scheduler} or all its workers were lost during training; {REMEDY}"
    )


@contextlib.contextmanager
def _given_up_when_lost(client: Any, settings: Settings, last: _Done) -> Iterator[None]:
    """End the wait for a cluster that is gone, or from which no result comes for too long."""
    last_seen = time.monotonic()

    def lost() -> PipelineError | None:
        nonlocal last_seen
        now = time.monotonic()
        if now - last.at > settings.task_timeout:
            return TryLaterError(
                f"the Dask scheduler {settings.scheduler} gave no result for "
                f"{settings.task_timeout:g} seconds; raise --task-timeout if it may take so long; "
                f"{REMEDY}"
            )
        if _has_workers(client):
            last_seen = now
        elif client.status == "closed" or now - last_seen > PATIENCE_SECONDS:
            return _lost(settings.scheduler)
        return None

    with _given_up(lost):
        yield


@contextlib.contextmanager
def _answering_within(seconds: float, error: PipelineError) -> Iterator[None]:
    """End the wait for what a cluster is asked: its client waits for ever."""
    until = time.monotonic() + seconds
    with _given_up(lambda: error if time.monotonic() > until else None):
        yield


@contextlib.contextmanager
def _given_up(reason: Callable[[], PipelineError | None]) -> Iterator[None]:
    """End the wait of this thread, the main one, when there is a reason to; asked every second.

    Raised by a signal, because nothing else reaches a thread that waits.
    """
    found: list[PipelineError] = []

    def give_up(*_: object) -> None:
        raise found[0]

    def watch() -> None:
        while not done.wait(1):
            why = reason()
            if why is not None:
                found.append(why)
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
    """Say in one line what went wrong on the cluster, whatever it sent."""
    import asyncio
    import concurrent.futures

    try:
        yield
    except PipelineError:
        raise
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
    except Exception as error:
        if not raised_by(error, CLUSTER_CODE, called_by=PACKAGE.name):
            raise
        raise PipelineError(
            f"the Dask cluster {scheduler} failed: {type(error).__name__}: {printable(error, 300)}"
        ) from error
