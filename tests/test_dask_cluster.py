"""Training on a real cluster: a scheduler and two workers on loopback, and what may go wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import FAST, QUICK_PROCESS, ROOT, copy_home, free_port, script
from sample_gts import write_recordings

from retraining import cross_validation, dask_cluster
from retraining.cross_validation import (
    Fitter,
    FoldResult,
    Recording,
    Resources,
    _check_results,
)
from retraining.errors import PipelineError, TryLaterError, UsageError
from retraining.kept_tables import KeptTables
from retraining.settings import Settings
from retraining.training import TrainedModel, Training, load_training_module

CYCLE = [
    *("--min-new-files", str(FAST["min_new_files"])),
    *("--n-folds", str(FAST["n_folds"]), "--threshold", "0.1"),
]


@dataclass(frozen=True)
class Cluster:
    """A scheduler and its workers, each a process group of its own."""

    address: str
    scheduler: subprocess.Popen[bytes]
    workers: tuple[subprocess.Popen[bytes], ...]
    start_worker: Callable[[str], subprocess.Popen[bytes]]

    def settings(self, **values: Any) -> Settings:
        """Return settings that use it."""
        return Settings(backend="dask", scheduler=self.address, **values)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


def end_all(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Kill several processes."""
    for process in processes:
        end(process)


@contextmanager
def running(folder: Path, **environment: str) -> Iterator[Cluster]:
    """Run a cluster in an empty folder; its processes end with the block."""
    pytest.importorskip("distributed", reason="dask is not installed: requirements-dask.txt")
    file = folder / "scheduler.json"
    processes = []

    def start(name: str, *words: str) -> subprocess.Popen[bytes]:
        with (folder / f"{name}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "dask", *words, "--scheduler-file", str(file)],
                    cwd=folder,
                    env={**os.environ, **environment},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
        return processes[-1]

    try:
        local = ("--host", "127.0.0.1", "--no-dashboard")
        scheduler = start("scheduler", "scheduler", *local, "--port", "0")

        def start_worker(name: str) -> subprocess.Popen[bytes]:
            return start(name, "worker", *local, "--nthreads", "1", "--no-nanny")

        workers = tuple(start_worker(f"worker-{n}") for n in (1, 2))
        for _ in range(600):
            log = (folder / "scheduler.log").read_text()
            if file.exists() and log.count("Register worker") == len(workers):
                break
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        yield Cluster(address, scheduler, workers, start_worker)
    finally:
        end_all(processes)


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give a cluster of the test's own, which may be hurt."""
    with running(tmp_path_factory.mktemp("cluster")) as one:
        yield one


@pytest.fixture(scope="module")
def lasting_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give a cluster that outlives the tests."""
    with running(tmp_path_factory.mktemp("lasting_cluster")) as one:
        yield one


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give six synthetic recordings."""
    folder = tmp_path_factory.mktemp("recordings")
    write_recordings(folder, 6)
    return folder


@pytest.fixture(scope="module")
def trained_here(recordings: Path) -> TrainedModel:
    """Train in this process alone."""
    return train(Settings(), recordings, n_jobs=1)


def train(settings: Settings, folder: Path, **resources: Any) -> TrainedModel:
    """Train where the settings say."""
    module = load_training_module(settings)
    with dask_cluster.joblib_backend(settings, module) as backend:
        trained, _ = cross_validation.train(
            module,
            sorted(folder.glob("*.csv")),
            n_folds=3,
            random_state=42,
            resources=Resources(backend=backend, **resources),
        )
    return trained


def assert_equal(one: TrainedModel, other: TrainedModel, folder: Path) -> None:
    """Every metric, and every prediction to the last bit."""
    for name in ("out_of_fold", "in_sample", "input_example", "examples", "importance"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), check_exact=True)
    for name in ("mean_error", "data_quality", "row_counts"):
        assert getattr(one, name) == getattr(other, name)
    module = load_training_module(Settings())
    for path in sorted(folder.glob("*.csv")):
        rows, _ = module.read(path)
        assert np.array_equal(one.model.predict_proba(rows), other.model.predict_proba(rows))


def during_the_fits(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Do something when the folds have been handed out and none has come back."""
    progress = cross_validation._progress

    def watched(items: Any, total: int, what: str) -> Iterator[Any]:
        if what == "fitting":
            action()
        yield from progress(items, total, what)

    monkeypatch.setattr(cross_validation, "_progress", watched)


class TestCluster:
    """A real scheduler and two real workers."""

    @pytest.mark.slow
    def test_the_result_is_that_of_one_process(
        self, lasting_cluster: Cluster, recordings: Path, trained_here: TrainedModel
    ) -> None:
        """Bit for bit."""
        assert_equal(trained_here, train(lasting_cluster.settings(), recordings), recordings)

    @pytest.mark.slow
    def test_a_killed_worker_costs_only_time(
        self,
        cluster: Cluster,
        recordings: Path,
        trained_here: TrainedModel,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The other one does its tasks."""
        during_the_fits(monkeypatch, lambda: end(cluster.workers[0]))
        assert_equal(trained_here, train(cluster.settings(), recordings), recordings)
        assert cluster.workers[0].returncode == -signal.SIGKILL

    @pytest.mark.sampled(0.5)
    @pytest.mark.parametrize("who", ["scheduler", "workers"])
    @pytest.mark.slow
    def test_a_lost_cluster_ends_the_wait(
        self, cluster: Cluster, recordings: Path, monkeypatch: pytest.MonkeyPatch, who: str
    ) -> None:
        """Instead of waiting for results that never come."""
        monkeypatch.setattr(dask_cluster, "CONNECT_SECONDS", 2)
        monkeypatch.setattr(dask_cluster, "PATIENCE_SECONDS", 2)
        killed = cluster.workers if who == "workers" else (cluster.scheduler,)
        during_the_fits(monkeypatch, lambda: end_all(killed))
        with pytest.raises(TryLaterError, match=r"127\.0\.0\.1:\d+ or all its workers were lost"):
            train(cluster.settings(), recordings)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL

    @pytest.mark.slow
    def test_packages_are_compared_again_after_the_training(
        self, lasting_cluster: Cluster, recordings: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Workers may have joined meanwhile; what they have not installed is named, too."""
        same = load_training_module(lasting_cluster.settings()).package_versions()
        wanted = iter([same, {**same, "no-such-package": "1.0"}])
        monkeypatch.setattr(Training, "package_versions", lambda _: next(wanted))
        with pytest.raises(PipelineError, match=r"no-such-package none instead of 1\.0"):
            train(lasting_cluster.settings(), recordings)
        assert next(wanted, None) is None

    @pytest.mark.slow
    def test_an_invalid_recording_is_named(self, lasting_cluster: Cluster, tmp_path: Path) -> None:
        """The worker's refusal arrives as it is."""
        paths = write_recordings(tmp_path / "recordings", 3)
        paths[1].write_text("object_id\n1\n")
        with pytest.raises(PipelineError, match=r"^cannot train: recording_02\.csv: lacks"):
            train(lasting_cluster.settings(), paths[0].parent)

    @pytest.mark.slow
    def test_recordings_that_the_workers_do_not_see_are_explained(
        self, lasting_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A relative path means something else in the workers' folder."""
        write_recordings(tmp_path / "here", 3)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(PipelineError, match="a file system that all workers share"):
            train(lasting_cluster.settings(), Path("here"))

    @pytest.mark.slow
    def test_a_file_that_is_none_is_named(self, lasting_cluster: Cluster, tmp_path: Path) -> None:
        """The refusal of our own reader arrives as it is, too."""
        paths = write_recordings(tmp_path / "recordings", 3)
        paths[1].rename(tmp_path / "elsewhere.csv")
        paths[1].symlink_to(tmp_path / "elsewhere.csv")
        with pytest.raises(PipelineError, match=r"cannot train: .*is a symbolic link; put the"):
            train(lasting_cluster.settings(), paths[0].parent)

    @pytest.mark.slow
    def test_workers_that_live_longer_than_a_run_compute_with_its_code(
        self,
        cluster: Cluster,
        recordings: Path,
        trained_here: TrainedModel,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """With this package as it is here: after another copy of it, and then the first again."""
        copy = shutil.copytree(dask_cluster.PACKAGE, tmp_path / dask_cluster.PACKAGE.name)
        code = (copy / "cross_validation.py").read_text()
        begin = "        import joblib\n\n        training, held_out ="
        assert begin in code
        told = f'        raise PipelineError("another copy")\n{begin}'
        (copy / "cross_validation.py").write_text(code.replace(begin, told))
        for _ in range(2):
            assert_equal(trained_here, train(cluster.settings(), recordings), recordings)
            with monkeypatch.context() as patch:
                patch.setattr(dask_cluster, "PACKAGE", copy)
                with pytest.raises(PipelineError, match="another copy"):
                    train(cluster.settings(), recordings)

    @pytest.mark.slow
    def test_a_worker_that_joins_later_has_the_code(
        self,
        cluster: Cluster,
        recordings: Path,
        trained_here: TrainedModel,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It does all the fits, because the others are gone."""

        def others_take_over() -> None:
            cluster.start_worker("late")
            end_all(cluster.workers)

        during_the_fits(monkeypatch, others_take_over)
        assert_equal(trained_here, train(cluster.settings(), recordings), recordings)

    @pytest.mark.slow
    def test_known_recordings_are_not_read_by_the_workers(
        self,
        lasting_cluster: Cluster,
        recordings: Path,
        trained_here: TrainedModel,
        tmp_path: Path,
    ) -> None:
        """What was kept on the file system that all share is the same for them."""
        module = load_training_module(lasting_cluster.settings())
        tables = KeptTables(tmp_path / "kept" / "features", module.code_sha256, 10)
        for n_known in (0, 6):
            with dask_cluster.joblib_backend(lasting_cluster.settings(), module) as backend:
                result, found = cross_validation.train(
                    module,
                    sorted(recordings.glob("*.csv")),
                    n_folds=3,
                    random_state=42,
                    resources=Resources(backend=backend, tables=tables),
                )
            assert found == n_known
            assert_equal(trained_here, result, recordings)

    @pytest.mark.slow
    def test_a_cycle_ends_as_on_one_machine(
        self, registered_template: Path, tmp_path: Path
    ) -> None:
        """Same verdict, same numbers."""
        printed: list[str] = []
        (tmp_path / "cluster").mkdir()
        with running(tmp_path / "cluster", **QUICK_PROCESS) as cluster:
            for words in ((), ("--backend", "dask", "--scheduler", cluster.address)):
                home = copy_home(registered_template, tmp_path / f"home{len(printed)}")
                done = script("pipeline_orchestrator.py", *CYCLE, *words, home=home)
                assert done.returncode == 0, done.stderr
                printed.append(done.stdout)
        assert printed[0].startswith("promoted: version 2")
        assert printed[0] == printed[1]
        assert "computing on 2 Dask workers" in done.stderr


class TestPackage:
    """What is sent along of our own code."""

    def test_its_name_tells_its_content(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same for the same files, whatever their times; and all code is in it."""
        copy = shutil.copytree(dask_cluster.PACKAGE, tmp_path / dask_cluster.PACKAGE.name)
        here = dask_cluster._packed(tmp_path)
        monkeypatch.setattr(dask_cluster, "PACKAGE", copy)
        for path in copy.rglob("*.py"):
            os.utime(path, (0, 0))
        assert dask_cluster._packed(tmp_path) == here
        with zipfile.ZipFile(here) as archive:
            assert "retraining/registry/__init__.py" in archive.namelist()
            assert archive.read("retraining/files.py") == (copy / "files.py").read_bytes()
        with (copy / "files.py").open("a") as stream:
            stream.write("# one line more\n")
        assert dask_cluster._packed(tmp_path) != here

    def test_nothing_is_left_of_it_here(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The temporary file goes as soon as it is read."""
        pytest.importorskip("distributed", reason="dask is not installed: requirements-dask.txt")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        on_scheduler, on_worker = dask_cluster._package_plugins()
        assert on_scheduler.data == on_worker.data
        assert list(tmp_path.iterdir()) == []


class TestNoCluster:
    """What is said without one."""

    @pytest.mark.slow
    def test_an_unreachable_scheduler_is_one_line_and_75(self, home: Path) -> None:
        """Nothing is promoted or moved; without dask that is what is missing."""
        installed = bool(pytest.importorskip("distributed", reason="dask is not installed"))
        address = f"tcp://127.0.0.1:{free_port()}"
        words = (*CYCLE, "--quiet", "--backend", "dask", "--scheduler", address)
        done = script("pipeline_orchestrator.py", *words, home=home)
        assert installed
        assert (done.returncode, done.stdout) == (75, "")
        assert done.stderr.count("\n") == 1
        assert f"the Dask scheduler {address} does not answer" in done.stderr
        assert len(list((home / "new_gts").glob("*.csv"))) == FAST["min_new_files"]
        assert list(home.glob(".training-*")) == []

    def test_an_unreachable_cluster_is_reported_within_30_s(self) -> None:
        """Both waits together leave room for the start of Python."""
        assert dask_cluster.CONNECT_SECONDS + dask_cluster.WORKERS_SECONDS <= 20

    def test_a_missing_package_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With the command that installs it."""
        monkeypatch.setitem(sys.modules, "distributed", None)
        settings = Settings(backend="dask", scheduler="tcp://127.0.0.1:8786")
        with (
            pytest.raises(PipelineError, match=r"pip install -r requirements-dask\.txt") as caught,
            dask_cluster.joblib_backend(settings, load_training_module(settings)),
        ):
            pytest.fail("connected")
        assert caught.value.exit_status == 1
        assert (ROOT / "requirements-dask.txt").exists()

    def test_a_worker_with_other_packages_is_refused(self) -> None:
        """It might compute something else."""
        here = {"numpy": "2.4.6", "pandas": "3.1.1"}
        dask_cluster._refuse_other_versions("tcp://w:1", here, here)
        with pytest.raises(PipelineError, match=r"tcp://w:1 has numpy 2\.3\.0 instead of 2\.4\.6"):
            dask_cluster._refuse_other_versions("tcp://w:1", here, {**here, "numpy": "2.3.0"})

    @pytest.mark.parametrize("scheduler", ["", "host:8786", "http://host:8786"])
    def test_an_address_that_is_none_is_wrong_usage(self, scheduler: str) -> None:
        """Only where it is used."""
        assert Settings(scheduler=scheduler).backend == "local"
        with pytest.raises(UsageError, match="--scheduler .*tcp:// or tls://"):
            Settings(backend="dask", scheduler=scheduler)

    def test_one_machine_needs_no_dask(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing of it is imported."""
        monkeypatch.setitem(sys.modules, "distributed", None)
        with dask_cluster.joblib_backend(Settings(), load_training_module(Settings())) as backend:
            assert backend == "loky"


class TestForeignCluster:
    """Whoever runs the scheduler or a worker: at worst a night ends with a line."""

    @pytest.fixture
    def silent_scheduler(self) -> Iterator[str]:
        """Give the address of a server that takes whatever it is sent, and says nothing."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"

    @pytest.mark.slow
    def test_a_silent_scheduler_is_left_in_time(
        self, silent_scheduler: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its client would ask again for as long as it is told."""
        pytest.importorskip("distributed", reason="dask is not installed: requirements-dask.txt")
        monkeypatch.setattr(dask_cluster, "CONNECT_SECONDS", 2)
        settings = Settings(backend="dask", scheduler=silent_scheduler)
        begun = time.monotonic()
        with (
            pytest.raises(TryLaterError, match="does not answer"),
            dask_cluster.joblib_backend(settings, load_training_module(settings)),
        ):
            pass
        assert time.monotonic() - begun < 20

    @pytest.mark.slow
    def test_a_worker_that_never_answers_is_left_in_time(
        self, cluster: Cluster, recordings: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Stopped, not dead: its connection stays."""
        monkeypatch.setattr(dask_cluster, "ANSWER_SECONDS", 5)
        for worker in cluster.workers:
            os.killpg(worker.pid, signal.SIGSTOP)
        with pytest.raises(TryLaterError, match="no worker of the Dask scheduler"):
            train(cluster.settings(), recordings)

    @pytest.mark.slow
    def test_a_result_that_never_comes_is_not_awaited(
        self, cluster: Cluster, recordings: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All workers are there, and none of them computes."""

        def stop() -> None:
            for worker in cluster.workers:
                os.killpg(worker.pid, signal.SIGSTOP)

        during_the_fits(monkeypatch, stop)
        with pytest.raises(TryLaterError, match="gave no result for 3 seconds"):
            train(cluster.settings(task_timeout=3), recordings)

    def test_what_is_no_result_is_refused(self) -> None:
        """Another recording, an error below zero, no number, another type."""
        fitter = Fitter(
            reader=None,  # type: ignore[arg-type]
            recordings=tuple(
                Recording(Path(name), "", pd.DataFrame(), 1, "", "", was_known=True)
                for name in ("a.csv", "b.csv")
            ),
            examples=pd.DataFrame(),
            recording_of=np.array([0, 1]),
            random_state=0,
        )
        tests = [np.array([0]), np.array([1])]

        def results(error: Any, name: str = "b.csv") -> list[FoldResult]:
            tables = [pd.DataFrame({"error": [1.0]}, index=["a.csv"])]
            tables.append(pd.DataFrame({"error": [error]}, index=[name]))
            return [FoldResult(None, table, None) for table in tables]

        _check_results(fitter, results(0.0), tests)
        for bad in (results(-1.0), results(float("nan")), results(float("inf")), results(1.0, "c")):
            with pytest.raises(PipelineError, match="no result of its task"):
                _check_results(fitter, bad, tests)
        with pytest.raises(PipelineError, match="no result of its task"):
            _check_results(fitter, [*results(1.0)[:1], "code"], tests)  # type: ignore[list-item]
