"""What tests share: real recordings, a registered home, fast training."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sampling
from sample_gts import write_recordings
from small import MODELS, without_charts

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
OLD_SEASON_FILES = 6
BATCH = 6
SERVER_SECONDS = "14400"
"""A server ends by itself, even if the process that started it is killed."""
FAST = {"min_new_files": BATCH, "n_folds": 3, "n_jobs": 1}
TOOLS = ROOT / "tests" / "tools"
QUICK_PROCESS = {"PYTHONPATH": f"{TOOLS / 'quick_process'}{os.pathsep}{TOOLS}"}
"""Lets a process train small models and draw no charts."""
FULL_SIZE = {"PYTHONPATH": ""}
"""Lets it train what people train."""
collect_ignore = ["tools/quick_process"]
"""Imported, it would change every module that is loaded after it in this process."""
OWN_MODEL = ROOT / "docs" / "own_model"
sys.path[:0] = [str(ROOT), str(OWN_MODEL)]


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Let long tables be run in part."""
    pluginmanager.register(sampling)


def flags_of(values: Mapping[str, object]) -> list[str]:
    """Return settings as words of a command line."""
    return [
        word
        for name, value in values.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


FAST_WORDS = flags_of(FAST)


@dataclass(frozen=True)
class Domain:
    """A training module and what belongs to it.

    Parameters
    ----------
    module_name
        As it is imported.
    settings
        With which the pipeline finds it.
    write
        Writes files of a season; takes the arguments of `write_recordings`.
    """

    module_name: str
    settings: dict[str, str]
    write: Callable[..., list[Path]]

    @property
    def module(self) -> Any:
        """The module itself."""
        return importlib.import_module(self.module_name)


def write_samples(*values: Any, **named: Any) -> list[Path]:
    """Write samples of grain, as docs/own_model/make_samples.py does."""
    from make_samples import write_samples

    return write_samples(*values, **named)


GRAIN = {
    "training_module": str(OWN_MODEL / "grain_quality.py"),
    "model_name": "GrainQuality",
}
DOMAINS = {
    "stems": Domain("train_classification_model", {}, write_recordings),
    "grain": Domain("grain_quality", GRAIN, write_samples),
}
both_modules = pytest.mark.parametrize("domain", list(DOMAINS), indirect=True)
"""The test runs with the default training module and with that of docs/own_model/."""
_LATER = (pytest.mark.slow, pytest.mark.sampled(0.34, "the other module"))
both_modules_in_time = pytest.mark.parametrize(
    "domain", ["stems", pytest.param("grain", marks=_LATER)], indirect=True
)
"""The same; the second one among the slow tests, of each file one table."""


def take_settings_away() -> None:
    """Take away the tester's settings, and the stores that MLflow left in the environment."""
    for name in list(os.environ):
        if name.startswith("PIPELINE_") or name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            del os.environ[name]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Let no fixture find the store of the test before."""
    take_settings_away()


@pytest.fixture(autouse=True)
def no_settings_from_outside() -> None:
    """Let no test find the store of its module's fixtures."""
    take_settings_away()


def write_mislabelled(folder: Path, seed: int) -> None:
    """Write recordings of the old season whose stems are called false, and the false ones stems."""
    import pandas as pd

    for path in write_recordings(folder, BATCH, "old", seed=seed, prefix="wrong"):
        rows = pd.read_csv(path)
        rows["ground_truth"] = ~rows["ground_truth"].astype(bool)
        rows.to_csv(path, index=False)


def make_home(folder: Path) -> Path:
    """Create the empty folders of a home."""
    for name in ("new_gts", "used_gts", "model", "mlflow_server/artifacts"):
        (folder / name).mkdir(parents=True)
    (folder / "mlflow_server" / "backend_db").mkdir()
    return folder


def script(
    name: str, *words: str, home: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run one of the project's scripts as a process of its own; a quick one by default."""
    return subprocess.run(
        [sys.executable, str(ROOT / name), *words, "--home", str(home)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **QUICK_PROCESS, **environment},
    )


def run_sweep(name: str, *words: str) -> str:
    """Run a sweep as a process of its own, because it forks; return what it printed."""
    done = subprocess.run(
        [sys.executable, f"tests/tools/{name}", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_home(source: Path, target: Path) -> Path:
    """Copy a home with its store; the store's absolute paths follow."""
    shutil.copytree(source, target, symlinks=True)
    database = target / "mlflow_server" / "backend_db" / "mlflow.db"
    if database.exists():
        with closing(sqlite3.connect(database)) as connection:
            for table, column in _text_columns(connection):
                connection.execute(
                    f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?)',
                    (str(source), str(target)),
                )
            connection.commit()
    return target


def _text_columns(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return [
        (table, column[1])
        for (table,) in tables
        for column in connection.execute(f'PRAGMA table_info("{table}")').fetchall()
        if column[1] in ("artifact_location", "artifact_uri", "source", "storage_location")
    ]


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str, Any], None]:
    """Give a recorder of figures that are printed at the end of the run."""
    return lambda name, value: record_property("figure", f"{name}: {value}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests recorded."""
    figures = [
        value
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        for name, value in report.user_properties
        if name == "figure"
    ]
    if figures:
        terminalreporter.section("figures")
        for line in figures:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Give the folder of real recordings and golden values, or skip."""
    if not (SHARED / "gts").is_dir():
        pytest.skip(f"no real recordings at {SHARED}")
    return SHARED


def train_small_models(patch: pytest.MonkeyPatch) -> None:
    """Let both training modules take milliseconds instead of seconds."""
    for domain in DOMAINS.values():
        for name, value in MODELS.items():
            if hasattr(domain.module, name):
                patch.setattr(domain.module, name, value)


def leave_charts_out(patch: pytest.MonkeyPatch) -> None:
    """Draw no charts for the pages of cycles: half of a cycle's time."""
    from retraining.report import page

    for name, value in without_charts(page).items():
        patch.setattr(page, name, value)


@pytest.fixture
def fast_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train small models in this process."""
    train_small_models(monkeypatch)


@pytest.fixture(autouse=True)
def charts_where_they_matter(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leave charts out of the pages of tests that are not about pages.

    They are drawn in tests/report/, in the demo and by the commands of the documents.
    """
    if "report" not in request.path.parts:
        leave_charts_out(monkeypatch)


@pytest.fixture(scope="session")
def history_of(
    template_of: Callable[[Domain], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Any]]:
    """Give a maker of homes with a past, which is lived once and then copied.

    Its arguments: the domain, a name, what happens in a home (and returns something), and where
    the copy goes; it returns the copy and what was returned.
    """
    lived: dict[tuple[str, str], tuple[Path, Any]] = {}

    def make(
        domain: Domain, name: str, happen: Callable[[Path], Any], target: Path
    ) -> tuple[Path, Any]:
        key = domain.module_name, name
        if key not in lived:
            home = copy_home(template_of(domain), tmp_path_factory.mktemp("lived") / "home")
            with pytest.MonkeyPatch.context() as patch:
                train_small_models(patch)
                lived[key] = home, happen(home)
        home, result = lived[key]
        return copy_home(home, target), result

    return make


def write_home(home: Path, domain: Domain) -> None:
    """Fill an empty home: a first model of the old season, with a new season waiting."""
    import joblib

    from retraining.cross_validation import Resources, train
    from retraining.settings import Settings
    from retraining.training import load_training_module

    domain.write(home / "used_gts", OLD_SEASON_FILES, "old", seed=1, prefix="old")
    domain.write(home / "new_gts", BATCH, "new", seed=2, prefix="new")
    training = load_training_module(Settings(home=home, **domain.settings))  # type: ignore[arg-type]
    paths = sorted((home / "used_gts").glob("*.csv"))
    result, _ = train(training, paths, n_folds=3, random_state=42, resources=Resources(n_jobs=1))
    pickle = home / training.first_model_path
    joblib.dump(result.model, pickle)
    pickle.chmod(0o600)


@pytest.fixture(scope="session")
def template_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Domain], Path]:
    """Give a maker of registered homes, one for each training module."""
    import register_first_model
    from retraining.settings import Settings

    @functools.cache
    def make(module_name: str) -> Path:
        (domain,) = [one for one in DOMAINS.values() if one.module_name == module_name]
        home = make_home(tmp_path_factory.mktemp("template") / "home")
        settings = Settings(home=home, **domain.settings)  # type: ignore[arg-type]
        with pytest.MonkeyPatch.context() as patch:
            train_small_models(patch)
            write_home(home, domain)
            register_first_model.register_first_model(settings)
        take_settings_away()
        return home

    return lambda domain: make(domain.module_name)


@pytest.fixture
def domain(request: pytest.FixtureRequest) -> Domain:
    """Give the training module of a test: the default one, or that of `both_modules`."""
    return DOMAINS[getattr(request, "param", "stems")]


@pytest.fixture(scope="session")
def registered_template(template_of: Callable[[Domain], Path]) -> Path:
    """Give a home whose production is a model of the old season, with a new season waiting."""
    return template_of(DOMAINS["stems"])


@pytest.fixture
def home(template_of: Callable[[Domain], Path], domain: Domain, tmp_path: Path) -> Path:
    """Give a fresh copy of a registered home."""
    return copy_home(template_of(domain), tmp_path / "home")


@pytest.fixture
def ten_seconds() -> Iterator[None]:
    """Let a test that waits for ever fail instead."""

    def too_late(*_: object) -> None:
        raise TimeoutError("still waiting after ten seconds")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def settings_of(domain: Domain) -> Callable[..., Any]:
    """Give a maker of quick settings for a home."""
    from retraining.settings import Settings

    def make(home: Path, **values: Any) -> Any:
        return Settings(home=home, **{**FAST, **domain.settings, **values})

    return make


def free_port() -> int:
    """Return a port that nobody listens on."""
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def mlflow_server(store: str, artifacts: Path | str, **environment: str) -> Iterator[str]:
    """Start a real `mlflow server` on loopback, give its address, and end it.

    Parameters
    ----------
    store
        URI of its database.
    artifacts
        Where it keeps files.
    **environment
        Variables for it.
    """
    port = free_port()
    process = subprocess.Popen(
        [
            *("timeout", SERVER_SECONDS, sys.executable, "-m", "mlflow", "server"),
            *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", store, "--artifacts-destination", str(artifacts)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **environment,
        },
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/health")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def wait_for(address: str) -> None:
    """Wait until a server answers; a minute at most."""
    for _ in range(300):
        with contextlib.suppress(OSError), urllib.request.urlopen(address):
            return
        time.sleep(0.2)
    raise TimeoutError(f"{address} did not start")


def serve(home: Path) -> contextlib.AbstractContextManager[str]:
    """Serve the embedded store of a home, as `make server` does."""
    folder = home / "mlflow_server"
    return mlflow_server(f"sqlite:///{folder}/backend_db/mlflow.db", folder / "artifacts")


@pytest.fixture
def free_server() -> Iterator[Callable[..., str]]:
    """Give a starter of servers in a folder, by default with a store of their own.

    They end with the test.
    """
    with contextlib.ExitStack() as stack:

        def start(folder: Path, store: str = "") -> str:
            folder.mkdir()
            store = store or f"sqlite:///{folder}/mlflow.db"
            return stack.enter_context(mlflow_server(store, folder / "artifacts"))

        yield start
