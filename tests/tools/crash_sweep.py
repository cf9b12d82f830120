"""Kill the real commands at every write, start them again and compare with an uninterrupted twin.

A forked process counts what it opens for writing, renames, links, removes and connects to, and
sends itself SIGKILL at the n-th; n counts up until a run is not hit. Then the same command runs
again, and a cycle after it: the files, versions, aliases and runs must be those of a twin that was
never interrupted, and one more run must change nothing.

Usage::

    python tests/tools/crash_sweep.py [--scenario NAME]... [--sample N [--begin B]] [--random N]
        [--report FILE]

Without `--sample` every point is tried. Prints one line per scenario and ends with status 1 if
anything differed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import functools
import hashlib
import importlib
import io
import json
import os
import platform
import random
import shlex
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "tools")]

import numpy as np
import pandas as pd
import pytest
from conftest import (
    BATCH,
    DOMAINS,
    FAST_WORDS,
    copy_home,
    flags_of,
    leave_charts_out,
    make_home,
    train_small_models,
    write_home,
    write_mislabelled,
)
from losers import add_loser
from relabel import relabel, sha256
from sample_gts import write_recordings
from sampling import spread

import pipeline_orchestrator
import register_first_model
from retraining import archives, notices
from retraining.commands import backup as backup_command
from retraining.errors import PipelineError
from retraining.files import read_sealed
from retraining.journal import (
    JOURNAL_NAME,
    Arrival,
    Home,
    Journal,
    Replaced,
    Vouch,
    WithdrawalUndone,
    Withdrawn,
)
from retraining.kept_tables import CACHE_FOLDER, KeptTables
from retraining.known_recordings import FILE_NAME as RECORDINGS_NAME
from retraining.registry import open_registry, store
from retraining.registry.pruned import Pruned
from retraining.registry.stored_models import MODEL_FILE, folder_digest
from retraining.report import drift
from retraining.settings import RESTORING_NOTE, Settings

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
COUNTED = {
    *("os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.truncate"),
    *("sqlite3.connect", "socket.connect"),
}
KEPT_HIDDEN = (
    *(".pipeline.lock", ".pipeline_last_run.json", ".cache"),
    *(JOURNAL_NAME, RECORDINGS_NAME),
)
EXPORTED = "exported.tar"
OTHER = flags_of(DOMAINS["grain"].settings)


@dataclass(frozen=True)
class Scenario:
    """What is killed.

    Parameters
    ----------
    name
        For the report.
    template
        A home to start from.
    commands
        Run in this order; the first one is killed.
    """

    name: str
    template: Path
    commands: tuple[Callable[[list[str]], int], ...]

    def copied(self, home: Path) -> Path:
        """Return a copy of the template; where moving is what is tried, its store stays behind."""
        if relocate in self.commands:
            return Path(shutil.copytree(self.template, home, symlinks=True))
        return copy_home(self.template, home)


def cycle(home: list[str]) -> int:
    """Run the orchestrator, which tells of a change of production."""
    tell = f"tee {shlex.quote(str(Path(home[1]).parent / 'told.json'))}"
    return pipeline_orchestrator.main(["run", *FAST_WORDS, "--on-promotion", tell, *home])


def cycle_of_other(home: list[str]) -> int:
    """Run the orchestrator with another training module."""
    return cycle([*home, *OTHER])


def register_other(home: list[str]) -> int:
    """Register the first model of another training module."""
    return register_first_model.main([*home, *OTHER])


def register(home: list[str]) -> int:
    """Register the first model."""
    return register_first_model.main(home)


def upgrade(home: list[str]) -> int:
    """Migrate the store."""
    return pipeline_orchestrator.main(["upgrade-store", *home])


def rollback(home: list[str]) -> int:
    """Roll back to version 1."""
    return pipeline_orchestrator.main(["rollback", "--to", "1", *home])


def healthy(home: list[str]) -> int:
    """Run a cycle that ends with monitoring."""
    return pipeline_orchestrator.main(["run", *FAST_WORDS, "--threshold", "1000", *home])


def idle(home: list[str]) -> int:
    """Run the orchestrator on a night without news."""
    return pipeline_orchestrator.main(["run", "--min-new-files", "100", *home[:2]])


def withdraw(home: list[str]) -> int:
    """Withdraw a used and a waiting recording; what is done already is refused."""
    if Journal(Path(home[1])).read().withdrawn():
        return idle(home)
    return pipeline_orchestrator.main(["withdraw", "old_01.csv", "new_gts/new_01.csv", *home])


def withdraw_deleting(home: list[str]) -> int:
    """Withdraw them and keep nothing."""
    return withdraw(["--home", home[1], "--delete"])


def undo(home: list[str]) -> int:
    """Take both withdrawals back."""
    if not Journal(Path(home[1])).read().withdrawn():
        return idle(home)
    return pipeline_orchestrator.main(["withdraw", "--undo", "old_01.csv", "new_01.csv", *home])


def correct(home: list[str]) -> int:
    """Correct a used and a waiting recording, whose corrections were parked."""
    if any(one.by_person for one in Journal(Path(home[1])).read().all(Replaced)):
        return idle(home)
    return pipeline_orchestrator.main(["correct", "mended.csv", "waiting.csv", *home])


def relocate(home: list[str]) -> int:
    """Let the store of a copied home point to it; one that does already stays as it is."""
    return pipeline_orchestrator.main(["relocate", "--copy", *home])


ARCHIVE = "stems.tar"


def backup(home: list[str]) -> int:
    """Write an archive beside the home; one that is there is whole, and is not overwritten."""
    path = Path(home[1]).with_name(ARCHIVE)
    status = pipeline_orchestrator.main(["backup", str(path), *home])
    return 0 if path.exists() else status


def restore(home: list[str]) -> int:
    """Make a home of the archive that lies in its folder; one that is made is left."""
    folder = Path(home[1])
    if (folder / JOURNAL_NAME).exists() and not (folder / RESTORING_NOTE).exists():
        return idle(home)
    return pipeline_orchestrator.main(["restore", str(folder / ARCHIVE), *home])


def prune(home: list[str]) -> int:
    """Prune all that lost."""
    return pipeline_orchestrator.main(["prune", "--keep", "0", *home])


def bring(home: list[str]) -> int:
    """Import what another home exported."""
    archive = str(Path(home[1], EXPORTED))
    return pipeline_orchestrator.main(["import", archive, "--reason", "moved", *home])


def lose(home: list[str]) -> int:
    """Let three versions lose; the first of them is deleted, and one has an alias."""
    settings = Settings(home=Path(home[1]))
    numbers = [add_loser(settings).number for _ in range(3)]
    client = open_registry(settings).runs.connection.client
    client.delete_model_version(settings.model_name, str(numbers[0]))
    client.set_registered_model_alias(settings.model_name, "canary", str(numbers[2]))
    return 0


def take_along(home: list[str]) -> int:
    """Export, and leave nothing but the archive and the recordings."""
    status = pipeline_orchestrator.main(["export", str(Path(home[1], EXPORTED)), *home])
    shutil.rmtree(Path(home[1], "mlflow_server"))
    Path(home[1], "mlflow_server").mkdir()
    Path(home[1], JOURNAL_NAME).unlink()
    return status


PRELOADED = (
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg"),
    *("mlflow.sklearn", "mlflow.store.tracking.sqlalchemy_store", "skops.io", "sklearn.ensemble"),
    *("mlflow.store.model_registry.sqlalchemy_store", "mlflow.utils.requirements_utils"),
    *("scipy.stats", "sklearn.inspection", "sklearn.model_selection", "pandas"),
    *("retraining.intake", "retraining.known_recordings"),
)


def warm_up() -> None:
    """Make trials quick: import here what every forked process needs, train and draw little."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    store.prepare_environment()
    for name in PRELOADED:
        importlib.import_module(name)
    sys.modules["mlflow.utils.requirements_utils"]._init_packages_to_modules_map()
    schema = store._schema_needed()
    store._schema_needed = lambda: schema
    patch = pytest.MonkeyPatch()
    train_small_models(patch)
    leave_charts_out(patch)
    drift.compare_examples = lambda *_: drift.ChangedData()


# --- A process that dies ---


def run_forked(
    command: Callable[[list[str]], int], home: Path, kill_at: int = 0, kill_after: float = 0
) -> tuple[int, int]:
    """Run a command in a forked process; return its exit status and how many points it passed.

    Negative statuses are signals, as in `subprocess`.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _be_the_child(command, home, kill_at, writer)
    os.close(writer)
    if kill_after:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader) as stream:
        passed = stream.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int(passed or 0)


def _be_the_child(
    command: Callable[[list[str]], int], home: Path, kill_at: int, writer: int
) -> None:
    log = os.open(home.parent / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    passed = 0
    # What a killed process leaves there goes with the trial.
    tempfile.tempdir = str(home.parent / "tmp")
    Path(tempfile.tempdir).mkdir(exist_ok=True)

    def count(event: str, values: tuple[Any, ...]) -> None:
        nonlocal passed
        if event == "open":
            flags = values[2]
            if not (isinstance(flags, int) and flags & WRITING):
                return
        elif event not in COUNTED:
            return
        passed += 1
        if passed == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    status = 99
    try:
        status = command(["--home", str(home)])
    except BaseException:
        traceback.print_exc()
    os.write(writer, str(passed).encode())
    os._exit(status)


# --- What must be equal ---


def describe(home: Path) -> dict[str, Any]:
    """Return everything that must equal the twin's, without opening the store through MLflow."""
    pruned: list[int] = []
    with contextlib.suppress(PipelineError):  # a damaged journal is told below
        pruned = sorted({one.version for one in Journal(home).read().all(Pruned)})
    database = home / "mlflow_server/backend_db/mlflow.db"
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as store:
        rows = store.execute
        integrity = rows("PRAGMA integrity_check").fetchone()[0]
        aliases = dict(rows("SELECT alias, version FROM registered_model_aliases").fetchall())
        versions = rows(
            "SELECT version FROM model_versions WHERE current_stage != 'Deleted_Internal'"
        ).fetchall()
        running = rows("SELECT count(*) FROM runs WHERE status = 'RUNNING'").fetchone()[0]
        promotions = rows(
            "SELECT count(*) FROM runs WHERE name = 'ModelPromotion' AND status = 'FINISHED'"
        ).fetchone()[0]
        schema = rows("SELECT version_num FROM alembic_version").fetchone()[0]
        models = sorted(
            (number, (_files_of(store, number, home) / MODEL_FILE).is_file(), "pruned" in tags)
            for (number,) in versions
            for tags in [_tags(store, number)]
        )
        recipes = {alias: _recipe(store, number, home) for alias, number in aliases.items()}
        remembered = _remembered(home, {alias: _tags(store, aliases[alias]) for alias in aliases})
    return {
        "new": _contents(home / "new_gts"),
        "used": _contents(home / "used_gts"),
        "names": sorted(path.name for path in (home / "used_gts").glob("*.csv")),
        "replaced": _contents(home / "used_gts/replaced"),
        "withdrawn": _contents(home / "withdrawn"),
        "rejected": _contents(home / "new_gts/rejected"),
        "reasons": len(list((home / "new_gts/rejected").glob("*.reason.json"))),
        "left over": sorted(
            str(path.relative_to(home))
            for path in home.rglob(".*")
            if path.name not in KEPT_HIDDEN
            # A dead run's own artifact folder may hold a piece of an upload; nothing refers to it.
            and "artifacts" not in path.parts
        ),
        "store": (integrity, schema),
        "versions": len(versions),
        "model files": models if pruned else len(models),
        "pruned": pruned,
        "running": running,
        "promotions": promotions,
        "aliases": recipes,
        "journal": remembered,
        "changes": _changes(home),
        "known": _known(home),
        "read of deleted ones": _read_of_deleted_ones(home),
        "change told": (home.parent / "told.json").exists(),
        "archive": _archived(home.with_name(ARCHIVE)),
        "left beside": sorted(path.name for path in home.parent.glob(".*")),
    }


def _archived(path: Path) -> list[tuple[str, str]]:
    """Return what a backup holds, read as restoring does, but for what has times in it."""
    if not path.exists():
        return []
    with archives.opened(path, backup_command.KIND) as archive:
        return sorted(
            (name, one.sha256)
            for name, one in archive.files.items()
            if name not in (JOURNAL_NAME, backup_command.STORE, notices.HEARTBEAT_NAME)
        )


def _contents(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file() and not path.name.endswith(".json")
    )


def _remembered(home: Path, tags_of: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Return what the journal must know, whatever its ids and times: vouches by alias."""
    try:
        memory = Journal(home).read()
    except PipelineError as error:
        return {"damaged": str(error)}
    vouches = {
        str(one.version): (one.artifact_sha256, one.manifest_sha256) for one in memory.all(Vouch)
    }
    return {
        "homes": len(memory.all(Home)),
        **{
            alias: vouches.get(tags["version"])
            == (tags["artifact_sha256"], tags["manifest_sha256"])
            for alias, tags in tags_of.items()
        },
    }


def _changes(home: Path) -> list[tuple[Any, ...]]:
    """Return what the journal tells of recordings, whatever the times and dates."""
    try:
        memory = Journal(home).read()
    except PipelineError:
        return []
    found: list[tuple[Any, ...]] = []
    for one in memory.in_order(Replaced, Withdrawn, WithdrawalUndone):
        facts = dataclasses.asdict(one)
        facts["kept_as"] = bool(facts.get("kept_as"))
        found.append((one.KIND, *(facts[name] for name in sorted({*facts} - {"at", "who"}))))
    arrivals = sorted({one.sha256 for one in memory.all(Arrival)})
    return [*found, ("arrivals", *arrivals)]


def _known(home: Path) -> list[bytes]:
    """Return the contents that the home can recognise."""
    content = read_sealed(home / RECORDINGS_NAME, RECORDINGS_NAME)
    return [] if content is None else sorted(np.load(io.BytesIO(content))["sha256"].tolist())


def _read_of_deleted_ones(home: Path) -> list[str]:
    """Return what is kept of the contents that a person had deleted."""
    deleted = [
        sha256
        for one in Journal(home).read().withdrawn().values()
        if not one.kept_as
        for sha256 in (one.sha256, *one.earlier)
    ]
    folder = home / CACHE_FOLDER
    return [path.name for path in folder.glob("*") if path.name[:64] in deleted]


def _tags(store: sqlite3.Connection, number: int) -> dict[str, str]:
    """Return the tags of a version, and its number."""
    rows = "SELECT key, value FROM model_version_tags WHERE version = ?"
    return {"version": f"{number}", **dict(store.execute(rows, (number,)).fetchall())}


def _recipe(store: sqlite3.Connection, number: int, home: Path) -> tuple[Any, ...]:
    """Return what a version was made of, and whether its files are whole."""
    tags = _tags(store, number)
    whole = folder_digest(_files_of(store, number, home))
    return (
        tags["manifest_sha256"],
        tags.get("verdict", ""),
        whole == tags["artifact_sha256"],
    )


def _files_of(store: sqlite3.Connection, number: int, home: Path) -> Path:
    """Return where the files of a version lie."""
    (location,) = store.execute(
        "SELECT storage_location FROM model_versions WHERE version = ?", (number,)
    ).fetchone()
    served = f"{home}/mlflow_server/artifacts"  # a server gives addresses relative to its folder
    return Path(location.removeprefix("file://").replace("mlflow-artifacts:", served, 1))


# --- The sweep ---


def finish(scenario: Scenario, home: Path) -> dict[str, Any]:
    """Run every command of the scenario to its end, then describe the home."""
    for command in scenario.commands:
        status, _ = run_forked(command, home)
        if status:
            return {"status": status, "log": (home.parent / "log.txt").read_text()[-2000:]}
    return describe(home)


def differences(scenario: Scenario, twin: dict[str, Any], home: Path) -> list[str]:
    """Return what differs from the twin after one more start, and after a second one."""
    found = []
    for start in ("first", "second"):
        state = finish(scenario, home)
        if state != twin:
            wrong = {key: (twin.get(key), state.get(key)) for key in {*twin, *state}}
            shown = {key: pair for key, pair in wrong.items() if pair[0] != pair[1]}
            found.append(f"after the {start} start: {shown}")
    return found


def sweep(
    scenario: Scenario, folder: Path, sample: int, n_random: int, begin: float
) -> tuple[int, int]:
    """Kill the scenario at its points; return how many were tried and how many differed."""
    twin_home = scenario.copied(folder / "twin" / "home")
    began = time.monotonic()
    status, n_points = run_forked(scenario.commands[0], twin_home)
    seconds = time.monotonic() - began
    if status:
        sys.exit((folder / "twin" / "log.txt").read_text())
    twin = finish(scenario, twin_home)
    if not all(twin["journal"].values()):
        sys.exit(f"the journal of an uninterrupted home does not vouch for all: {twin['journal']}")
    n_tried = min(sample or n_points, n_points)
    instants = random.Random(begin)
    plans = [(f"point {n + 1}", n + 1, 0.0) for n in spread(n_tried, n_points, begin)]
    plans += [
        (f"instant {second:.3f} s", 0, second)
        for second in (instants.uniform(0.001, seconds) for _ in range(n_random))
    ]
    wrong = 0
    for name, kill_at, kill_after in plans:
        home = scenario.copied(folder / "trial" / "home")
        run_forked(scenario.commands[0], home, kill_at, kill_after)
        found = differences(scenario, twin, home)
        wrong += bool(found)
        for text in found:
            print(f"{scenario.name}, {name}: {text}", flush=True)
        shutil.rmtree(folder / "trial")
    print(
        f"{scenario.name}: {len(plans) - n_random} of {n_points} points and {n_random} random "
        f"instants killed, {wrong} differences",
        flush=True,
    )
    return len(plans), wrong


class Homes:
    """The homes that the commands start from, each prepared when it is first asked for.

    Parameters
    ----------
    folder
        Where they are made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @functools.cached_property
    def bare(self) -> Path:
        """A first model and new recordings, duplicates and a damaged one among them; no store."""
        home = make_home(self._folder / "bare")
        write_home(home, DOMAINS["stems"])
        new = home / "new_gts"
        shutil.copy(home / "used_gts/old_01.csv", new / "again.csv")
        (new / "old_02.csv").write_bytes((new / "new_01.csv").read_bytes() + b"x\n")
        (new / "old_03.csv").write_bytes((new / "new_02.csv").read_bytes())
        (new / "new_02.csv").unlink()
        return home

    @functools.cached_property
    def registered(self) -> Path:
        """The first model is production."""
        return _after(register, self.bare, self._folder / "registered")

    @functools.cached_property
    def promoted(self) -> Path:
        """A retrained one is."""
        return _after(cycle, self.registered, self._folder / "promoted")

    @functools.cached_property
    def older(self) -> Path:
        """The store has an older schema."""
        home = copy_home(self.registered, self._folder / "older")
        run_forked(_downgrade, home)
        return home

    @functools.cached_property
    def misled(self) -> Path:
        """Production learnt wrong labels, and right ones arrive."""
        home = copy_home(self.registered, self._folder / "misled")
        shutil.rmtree(home / "new_gts")
        write_mislabelled(home / "new_gts", seed=2)
        run_forked(cycle, home)
        write_recordings(home / "new_gts", BATCH, "old", seed=3, prefix="right")
        lost = _after(cycle, home, self._folder / "lost" / "home")
        if "lost its probation" not in (lost.parent / "log.txt").read_text():
            sys.exit("the scenario of a lost probation loses none")
        return home

    @functools.cached_property
    def corrected(self) -> Path:
        """Production waits for news, and labels of a used and of a waiting file were corrected."""
        home = _after(healthy, self.registered, self._folder / "corrected")
        relabel(home / "used_gts/old_01.csv", home / "new_gts/mended.csv")
        relabel(home / "new_gts/new_01.csv", home / "new_gts/waiting.csv")
        return home

    @functools.cached_property
    def with_a_past(self) -> Path:
        """Two recordings were corrected, and read before."""
        home = _after(healthy, self.corrected, self._folder / "with a past")
        tables = KeptTables(home / CACHE_FOLDER, "maker", 10)
        for path in (*home.glob("used_gts/**/*.csv"), *home.glob("new_gts/*.csv")):
            tables.put("rows", sha256(path), pd.read_csv(path))
        return home

    @functools.cached_property
    def withdrawn(self) -> Path:
        """Two recordings were withdrawn."""
        return _after(withdraw, self.with_a_past, self._folder / "withdrawn")

    @functools.cached_property
    def parked(self) -> Path:
        """Corrections of a used and of a waiting file wait for a person."""
        home = copy_home(self.corrected, self._folder / "parked unseen")
        relabel(home / "used_gts/old_01.csv", home / "new_gts/mended.csv", share=0.5)
        relabel(home / "new_gts/new_01.csv", home / "new_gts/waiting.csv", share=0.5)
        return _after(healthy, home, self._folder / "parked")

    @functools.cached_property
    def archived(self) -> Path:
        """An archive of a home, in a folder that is to become one."""
        _after(backup, self.with_a_past, self._folder / "archived" / "home")
        folder = self._folder / "empty"
        folder.mkdir()
        return (self._folder / "archived" / ARCHIVE).rename(folder / ARCHIVE).parent

    @functools.cached_property
    def lost(self) -> Path:
        """Two versions lost, one of which has an alias; a third one was deleted."""
        return _after(lose, self.registered, self._folder / "with losers")

    @functools.cached_property
    def packed(self) -> Path:
        """The same, pruned and exported: nothing is left but the archive and the recordings."""
        pruned = _after(prune, self.lost, self._folder / "pruned")
        return _after(take_along, pruned, self._folder / "packed")

    @functools.cached_property
    def other(self) -> Path:
        """The first model of another training module is production."""
        home = make_home(self._folder / "other bare")
        write_home(home, DOMAINS["grain"])
        shutil.copy(home / "used_gts/old_01.csv", home / "new_gts/again.csv")
        (home / "new_gts/bad.csv").write_text("length_mm\n6.5\n")
        return _after(register_other, home, self._folder / "other")


SCENARIOS: dict[str, tuple[str, tuple[Callable[[list[str]], int], ...]]] = {
    "a cycle with a promotion": ("registered", (cycle,)),
    "the first registration": ("bare", (register, cycle)),
    "upgrade-store": ("older", (upgrade, cycle)),
    "a rollback": ("promoted", (rollback, cycle)),
    "a lost probation": ("misled", (cycle, cycle)),
    "a cycle of another model": ("other", (cycle_of_other,)),
    "a correction": ("corrected", (healthy, healthy)),
    "correct": ("parked", (correct, idle)),
    "withdraw": ("with_a_past", (withdraw, idle)),
    "withdraw --delete": ("with_a_past", (withdraw_deleting, idle)),
    "withdraw --undo": ("withdrawn", (undo, idle)),
    "relocate": ("promoted", (relocate, healthy)),
    "backup": ("with_a_past", (backup, idle)),
    "restore": ("archived", (restore, healthy)),
    "prune": ("lost", (prune, idle)),
    "import": ("packed", (bring, idle)),
}
"""Name -> home and commands."""


def _after(command: Callable[[list[str]], int], template: Path, home: Path) -> Path:
    copy_home(template, home)
    status, _ = run_forked(command, home)
    if status:
        sys.exit((home.parent / "log.txt").read_text())
    return home


def _downgrade(home: list[str]) -> int:
    sys.path.append(str(ROOT / "tests" / "registry"))
    from test_store import downgrade

    downgrade(Path(home[1]) / "mlflow_server/backend_db/mlflow.db")
    return 0


def write_report(path: Path, command: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Write the result as a table with its date and command."""
    table = [columns, ["---"] * len(columns), *rows]
    text = "\n".join(
        [
            f"# {command.removeprefix('make ').replace('-', ' ').capitalize()}",
            "",
            f"{datetime.date.today().isoformat()}, {platform.python_implementation()} "
            f"{platform.python_version()}, {os.cpu_count()} cores: `{command}`",
            "",
            *(f"| {' | '.join(str(cell) for cell in row)} |" for row in table),
            "",
        ]
    )
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def wanted(names: list[str]) -> list[str]:
    """Return the scenarios of some names, or of a part of a name if it is none."""
    return [
        title
        for title in SCENARIOS
        if any(title == name or (name not in SCENARIOS and name in title) for name in names)
    ]


def main() -> int:
    """Sweep the scenarios and return the exit status."""
    parser = argparse.ArgumentParser(description="Kill the commands everywhere.")
    parser.add_argument("--scenario", action="append")
    parser.add_argument("--sample", type=int, default=0, help="points per scenario; 0: all")
    parser.add_argument("--random", type=int, default=0, help="random instants per scenario")
    parser.add_argument("--begin", type=float, default=0, help="turns a sample over, in [0, 1)")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    warm_up()
    rows: list[list[Any]] = []
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="crash-sweep-") as name:
        homes = Homes(Path(name))
        for title, (home, commands) in SCENARIOS.items():
            if options.scenario and title not in wanted(options.scenario):
                continue
            scenario = Scenario(title, getattr(homes, home), commands)
            place = Path(name) / "sweep" / scenario.name
            tried, differed = sweep(scenario, place, options.sample, options.random, options.begin)
            wrong += differed
            rows.append([scenario.name, tried - options.random, options.random, differed])
    if options.report:
        columns = ["command", "points killed", "random instants", "differences"]
        write_report(options.report, "make crash-sweep", columns, rows)
    killed = sum(points + instants for _, points, instants, _ in rows)
    print(json.dumps({"scenarios": len(rows), "killed": killed, "differences": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
