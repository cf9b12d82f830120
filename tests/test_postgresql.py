"""A full cycle on PostgreSQL: through a server, and directly."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import BATCH, free_port, make_home, script
from sample_gts import write_recordings

PASSWORD = "a-secret-of-this-test"
QUICK = {"PIPELINE_MIN_NEW_FILES": f"{BATCH}", "PIPELINE_N_FOLDS": "3"}

pytestmark = pytest.mark.slow


def postgresql_programs() -> Path:
    """Return the folder of initdb and postgres, Debian's newest or that of the PATH; or skip."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=version_of)
    on_path = shutil.which("initdb")
    if found:
        return found[-1].parent
    if on_path is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    return Path(on_path).resolve().parent


def version_of(initdb: Path) -> int:
    """Return Debian's major version of a program such as /usr/lib/postgresql/15/bin/initdb."""
    return int(initdb.parent.parent.name)


def unprivileged_user() -> str | None:
    """Return whom PostgreSQL runs as: it refuses root. None stands for the tester."""
    if os.getuid() != 0:
        return None
    names = {one.pw_name for one in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@pytest.fixture
def database() -> Iterator[str]:
    """Give the URI of an empty database, on a PostgreSQL of its own on loopback."""
    programs, user, port = postgresql_programs(), unprivileged_user(), free_port()
    as_user = {"user": user, "extra_groups": []} if user else {}
    folder = Path(tempfile.mkdtemp(prefix="pipeline-postgresql-"))  # tmp_path is closed to others
    process: subprocess.Popen[bytes] | None = None
    try:
        secret = folder / "password"
        secret.write_text(PASSWORD)
        for path in (folder, secret):
            if user:
                shutil.chown(path, user)
        subprocess.run(
            [
                *(programs / "initdb", "--pgdata", folder / "data", "--username", "mlflow"),
                *("--auth", "scram-sha-256", "--pwfile", secret, "--no-sync"),
                *("--encoding", "UTF8", "--locale", "C"),
            ],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            **as_user,  # type: ignore[call-overload]
        )
        process = subprocess.Popen(
            [
                *(programs / "postgres", "-D", folder / "data", "-p", str(port)),
                *("-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"),
            ],
            cwd=folder,
            stderr=subprocess.DEVNULL,
            **as_user,  # type: ignore[call-overload]
        )
        create_database(port)
        yield f"postgresql://mlflow:{PASSWORD}@127.0.0.1:{port}/mlflow"
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            process.wait(timeout=60)
        shutil.rmtree(folder)


def create_database(port: int) -> None:
    """Create the database `mlflow` as soon as PostgreSQL answers."""
    import psycopg

    for _ in range(100):
        try:
            connection = psycopg.connect(
                host="127.0.0.1", port=port, user="mlflow", password=PASSWORD, dbname="postgres"
            )
        except psycopg.OperationalError:
            time.sleep(0.2)
            continue
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE mlflow")
        connection.close()
        return
    raise TimeoutError("PostgreSQL did not start")


@pytest.fixture
def season(registered_template: Path, tmp_path: Path) -> Path:
    """Give a home without a store: a first model, and a season on which it fails."""
    home = make_home(tmp_path / "home")
    for name in ("new_gts", "used_gts", "model"):
        shutil.copytree(registered_template / name, home / name, dirs_exist_ok=True)
    return home


def command(home: Path, uri: str, name: str, *words: str) -> str:
    """Run one of the scripts on a store; return what it printed."""
    done = script(name, *words, home=home, **QUICK, MLFLOW_TRACKING_URI=uri)
    assert done.returncode == 0, done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    return done.stdout


def run_full_cycle(home: Path, uri: str) -> None:
    """Register, promote, wait, watch a healthy batch, roll back; ask in between."""
    orchestrator = "pipeline_orchestrator.py"
    assert "registered version 1" in command(home, uri, "register_first_model.py")
    assert "version 1 is production already" in command(home, uri, "register_first_model.py")
    first = json.loads(command(home, uri, orchestrator, "--json"))
    assert first["outcome"] == "promoted", first
    assert list((home / "new_gts").glob("*.csv")) == []
    assert json.loads(command(home, uri, orchestrator, "--json"))["outcome"] == "waiting"
    write_recordings(home / "new_gts", BATCH, "new", seed=3, prefix="later")
    assert json.loads(command(home, uri, orchestrator, "--json"))["outcome"] == "healthy"
    state = json.loads(command(home, uri, orchestrator, "status", "--json"))
    assert (state["production"], state["problems"]) == (2, [])
    assert "version 1 is production, it was version 2" in command(
        home, uri, orchestrator, "rollback"
    )
    changes = json.loads(command(home, uri, orchestrator, "history", "--json"))["changes"]
    assert [one["event"] for one in changes] == ["rollback", "promotion", "registration"]
    assert list((home / "mlflow_server/backend_db").iterdir()) == []


@pytest.mark.sampled(0.5, "full cycles")
def test_a_full_cycle_through_a_server(
    database: str, season: Path, tmp_path: Path, free_server: Callable[..., str]
) -> None:
    """`mlflow server --backend-store-uri postgresql://...`; the pipeline knows its address only.

    `mlflow db upgrade` finds the database up to date.
    """
    run_full_cycle(season, free_server(tmp_path / "server", database))
    assert list((tmp_path / "server/artifacts").iterdir()) != []
    subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", database], check=True)


@pytest.mark.sampled(0.5, "full cycles")
def test_a_full_cycle_without_a_server(
    database: str, season: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`MLFLOW_TRACKING_URI=postgresql+psycopg://...`; the password is shown nowhere."""
    monkeypatch.chdir(tmp_path)
    run_full_cycle(season, with_driver(database))


def test_models_stay_in_the_home_without_a_server(
    database: str, season: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the folder where cron happens to be."""
    monkeypatch.chdir(tmp_path)
    command(season, with_driver(database), "register_first_model.py")
    assert list((season / "mlflow_server/artifacts").iterdir()) != []
    assert not (tmp_path / "mlruns").exists()


def with_driver(uri: str) -> str:
    """Return the URI as docs/operations.md writes it."""
    return uri.replace("postgresql://", "postgresql+psycopg://")


def test_only_registration_makes_an_empty_database_a_store(database: str, season: Path) -> None:
    """Any other command says what to run, and creates nothing."""
    import sqlalchemy

    uri = with_driver(database)
    done = script("pipeline_orchestrator.py", home=season, **QUICK, MLFLOW_TRACKING_URI=uri)
    assert done.returncode == 1
    assert "is empty; run: python register_first_model.py" in done.stderr
    engine = sqlalchemy.create_engine(uri)
    assert sqlalchemy.inspect(engine).get_table_names() == []
    engine.dispose()


def test_an_unreachable_database_is_tried_later(season: Path) -> None:
    """One line, without the password."""
    uri = f"postgresql+psycopg://mlflow:{PASSWORD}@127.0.0.1:{free_port()}/mlflow"
    done = script("pipeline_orchestrator.py", home=season, **QUICK, MLFLOW_TRACKING_URI=uri)
    assert done.returncode == 75, done.stderr
    assert "does not answer" in done.stderr
    assert PASSWORD not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_query_that_never_ends_is_left(database: str, season: Path) -> None:
    """Somebody holds a table: no read ever fails, and nothing comes."""
    import psycopg

    uri = with_driver(database)
    command(season, uri, "register_first_model.py")
    with psycopg.connect(database) as holder:
        holder.execute("LOCK TABLE registered_models IN ACCESS EXCLUSIVE MODE")
        begun = time.monotonic()
        limits = {"PIPELINE_STORE_TIMEOUT": "3", "MLFLOW_TRACKING_URI": uri}
        done = script("pipeline_orchestrator.py", home=season, **QUICK, **limits)
        assert time.monotonic() - begun < 60
    assert done.returncode == 75, done.stderr
    assert done.stderr.count("error: ") == 1
    assert PASSWORD not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_refusal_is_told_from_an_outage_and_a_repeated_request(
    database: str, season: Path
) -> None:
    """A wrong password, a database that is not there: 1; a row that is there already: 75."""
    from mlflow.exceptions import MlflowException

    from retraining.errors import PipelineError
    from retraining.registry import open_registry
    from retraining.registry.store import as_pipeline_error
    from retraining.settings import Settings

    uri = with_driver(database)
    settings = Settings(home=season, tracking_uri=uri)
    for wrong in (uri.replace(PASSWORD, "guessed"), uri.replace("/mlflow", "/other")):
        with pytest.raises(PipelineError, match=r" refused: .*; mend --tracking-uri") as refused:
            open_registry(Settings(home=season, tracking_uri=wrong))
        assert refused.value.exit_status == 1
    client = open_registry(settings, create=True).runs.connection.client
    client.create_experiment("twice")
    with pytest.raises(MlflowException, match="UniqueViolation") as caught:
        client.create_experiment("twice")
    known = as_pipeline_error(caught.value, settings)
    assert known is not None
    assert known.exit_status == 75
    with pytest.raises(MlflowException) as failed:
        client.log_param("0" * 32, "name", "value")
    known = as_pipeline_error(failed.value, settings)
    assert known is not None
    assert known.exit_status == 1
