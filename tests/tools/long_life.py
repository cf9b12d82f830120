"""Live years of nights in one home: seasons, people beside it, deaths; look every morning.

Each evening people drop some recordings, bad ones and copies among them; now and then somebody
moves an alias, deletes or renames things in MLflow, or registers again. Each night the real
commands run, some of them killed at a write. Where a night ends with an error, the command that
its message advises is run, as it stands. Every morning all that must hold is looked at: no file
lost or twice, no wrong promotion, production loads, no run left open, the history in order.

Usage::

    python tests/tools/long_life.py [--nights 365] [--seed 0] [--keep-losers 2] [--report FILE]

Prints what happened and how store, artifacts, folders and the time of a night grew; ends with
status 1 if anything did not hold.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import functools
import math
import os
import platform
import random
import re
import shlex
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "tools")]

from conftest import DOMAINS, FAST_WORDS, make_home, write_home
from crash_sweep import register, run_forked, warm_up
from relabel import relabel, sha256
from sample_gts import SEASONS, Season, make_recording

import pipeline_orchestrator
import register_first_model
from retraining.journal import BecameProduction, Journal
from retraining.registry import open_registry
from retraining.registry.facts import TAG_VERDICT, VERDICT_PROMOTE
from retraining.settings import Settings
from retraining.training import load_training_module

Work = Callable[[list[str]], int]
N_TRACKS = 14
NIGHTS_OF_A_SEASON = 45
RECORDINGS_A_NIGHT = 0.8
CHANCE_OF_A_PERSON = 0.15
CHANCE_OF_A_DEATH = 0.15
MOST_POINTS = 400
MOST_ADVICE = 4
ADVISED = re.compile(r"(?:[A-Z_]+=\S+ )?python (-m mlflow |[a-z_]+\.py)([^;,()]*)")
COPY = "copy_"
COMPLAINT = re.compile("^(error|by hand): |^the experiment ")
FOLDERS = {
    "store": "mlflow_server/backend_db",
    "artifacts": "mlflow_server/artifacts",
    "reports": "reports",
    "cache": ".cache",
}
GATHERED = 30
"""Nights over which the time of one is taken."""


# --- What people do in MLflow ---


def _client(home: list[str]) -> tuple[Any, str]:
    settings = Settings(home=Path(home[1]))
    return open_registry(settings).runs.connection.client, settings.model_name


def _numbers(home: list[str]) -> list[int]:
    client, name = _client(home)
    return sorted(int(one.version) for one in client.search_model_versions(f"name = '{name}'"))


def _production(home: list[str]) -> int:
    client, name = _client(home)
    return int(client.get_registered_model(name).aliases.get("production", 0))


def move_the_alias(home: list[str], chance: random.Random) -> None:
    """Set production to any version, a loser or an old one."""
    client, name = _client(home)
    client.set_registered_model_alias(name, "production", str(chance.choice(_numbers(home))))


def delete_the_alias(home: list[str], _chance: random.Random) -> None:
    """Delete production's name."""
    client, name = _client(home)
    client.delete_registered_model_alias(name, "production")


def delete_production(home: list[str], _chance: random.Random) -> None:
    """Delete the version itself, where there is another one to go back to."""
    client, name = _client(home)
    memory, number = Journal(Path(home[1])).read(), _production(home)
    others = {one.version for one in memory.all(BecameProduction)} - {number}
    if others & {*_numbers(home)}:
        client.delete_model_version(name, str(number))


def delete_a_loser(home: list[str], chance: random.Random) -> None:
    """Clean up."""
    client, name = _client(home)
    were = {one.version for one in Journal(Path(home[1])).read().all(BecameProduction)}
    losers = [number for number in _numbers(home) if number not in were]
    if losers:
        client.delete_model_version(name, str(chance.choice(losers)))


def delete_runs(home: list[str], chance: random.Random) -> None:
    """Delete some runs, as far as MLflow's pages do."""
    client, name = _client(home)
    runs = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    for run in chance.sample(runs, min(len(runs), 5)):
        client.delete_run(run.info.run_id)


def delete_the_experiment(home: list[str], _chance: random.Random) -> None:
    """With all that is in it."""
    client, name = _client(home)
    client.delete_experiment(client.get_experiment_by_name(name).experiment_id)


def rename_the_experiment(home: list[str], _chance: random.Random) -> None:
    """Give it a nicer name."""
    client, name = _client(home)
    client.rename_experiment(client.get_experiment_by_name(name).experiment_id, "stems, spring")


def edit_words(home: list[str], chance: random.Random) -> None:
    """Edit a description and a tag that is for people."""
    client, name = _client(home)
    number = str(chance.choice(_numbers(home)))
    client.update_model_version(name, number, "the good one\n\x1b[2J")
    client.set_model_version_tag(name, number, "owner", "somebody")


def register_again(home: list[str], _chance: random.Random) -> None:
    """Follow an old note of how to begin."""
    register_first_model.main([*home, "--force"])


def roll_back(home: list[str], _chance: random.Random) -> None:
    """Go back to the version before."""
    pipeline_orchestrator.main(["rollback", *home])


PEOPLE = (
    *(move_the_alias, delete_the_alias, delete_production, delete_a_loser, delete_runs),
    *(delete_the_experiment, rename_the_experiment, edit_words, register_again, roll_back),
)


# --- What people drop ---


def drop(home: Path, season: str, night: int, chance: random.Random) -> None:
    """Drop recordings of a season, now and then a bad one, a copy or a corrected one."""
    new, used = home / "new_gts", sorted((home / "used_gts").glob("*.csv"))
    count = sum(chance.random() < RECORDINGS_A_NIGHT / 4 for _ in range(4))
    for number in range(count):
        table = make_recording(1000 * night + number, season, N_TRACKS)
        table.to_csv(new / f"night_{night:04d}_{number}.csv", index=False)
    if chance.random() < 0.05:
        (new / f"bad_{night:04d}.csv").write_text(f"frame,object_id\n{night},x\n")
    if used and chance.random() < 0.05:
        shutil.copy(chance.choice(used), new / f"{COPY}{night:04d}.csv")
    if used and chance.random() < 0.03:
        relabel(chance.choice(used), new / f"mended_{night:04d}.csv")


def add_seasons(n_nights: int, chance: random.Random) -> list[str]:
    """Make a season for every so many nights; return their names in order."""
    names = []
    for number in range(math.ceil(n_nights / NIGHTS_OF_A_SEASON)):
        names.append(f"season {number:02d}")
        speed, area, rows = (math.exp(chance.uniform(-1, 1)) for _ in range(3))
        SEASONS[names[-1]] = Season(speed, area, rows, chance.uniform(-0.12, 0.12))
    return names


# --- What must hold ---


@dataclass
class Life:
    """One home, and what happened in it.

    Parameters
    ----------
    home
        Its folder.
    words
        Of the command line, beside the usual ones.
    dropped
        SHA-256 of every recording that was ever dropped or there at the beginning.
    events
        What happened -> how often.
    wrong
        What did not hold.
    seconds
        Of each night.
    sizes
        Night -> folder -> bytes.
    """

    home: Path
    words: list[str]
    dropped: set[str] = field(default_factory=set)
    events: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    sizes: dict[int, dict[str, int]] = field(default_factory=dict)

    def run(self, work: Work, kill_at: int = 0) -> tuple[int, str]:
        """Run something in a process of its own; return its status and what it said."""
        log = self.home.parent / "log.txt"
        log.unlink(missing_ok=True)
        status, _ = run_forked(work, self.home, kill_at)
        shutil.rmtree(self.home.parent / "tmp", ignore_errors=True)
        return status, log.read_text() if log.exists() else ""

    def night(self, home: list[str]) -> int:
        """Run a cycle as cron does."""
        return pipeline_orchestrator.main(["run", "--quiet", *FAST_WORDS, *self.words, *home])

    def ask(self, home: list[str]) -> int:
        """Ask how things are, as the person does who comes after a night."""
        return pipeline_orchestrator.main(["status", *FAST_WORDS, *self.words, *home])

    def mend(self, said: str, night: int, chance: random.Random) -> None:
        """Do what messages advise until nobody complains of what people did."""
        for _ in range(MOST_ADVICE):
            complaints = [one for one in said.splitlines() if COMPLAINT.search(one)]
            found = [advice for one in complaints for advice in ADVISED.finditer(one)]
            if not complaints:
                return
            if not found:
                break
            advice = chance.choice(found)
            self.events[f"advice: {advice[1].strip()} {advice[2].split()[0]}"] += 1
            status, told = self.run(functools.partial(_obey, advice[0].strip()))
            if status:
                self.wrong.append(f"night {night}: {advice[0]} ended with {status}: {told[-300:]}")
                return
            _, said = self.run(self.ask)
        self.wrong.append(f"night {night}: no advice helps: {said[-500:]}")


def _obey(command: str, _home: list[str]) -> int:
    """Run a command of a message, as it stands, in this process."""
    python, name, *words = shlex.split(command)
    if python != "python":
        return _mlflow(command)
    if name == "register_first_model.py":
        return register_first_model.main(words)
    return pipeline_orchestrator.main(words)


def _mlflow(command: str) -> int:
    """Run MLflow's own command line, with the address of the store in front."""
    from mlflow.cli import cli

    variable, *words = shlex.split(command)
    name, _, value = variable.partition("=")
    os.environ[name] = value
    arguments = words[words.index("mlflow") + 1 :]
    try:
        cli.main(args=arguments, standalone_mode=False)
    except Exception as error:
        sys.stdout.write(f"{error}\n")
        return 1
    return 0


def look(life: Life, night: int) -> list[str]:
    """Return what does not hold this morning; opens the store, so in a process of its own."""
    home, found = life.home, []
    contents = collections.Counter(
        sha256(path)
        for folder in ("new_gts", "used_gts", "used_gts/replaced", "new_gts/rejected", "withdrawn")
        for path in (home / folder).glob("*.csv")
    )
    found += [f"{one[:8]} is lost" for one in life.dropped - contents.keys()]
    kept = collections.Counter(
        sha256(path)
        for folder in ("new_gts", "used_gts")
        for path in (home / folder).glob("*.csv")
        if not path.name.startswith(COPY)  # which may lie unread, while there are few files
    )
    found += [f"{one[:8]} is there {n} times" for one, n in kept.items() if n > 1]
    settings = Settings(home=home)
    registry = open_registry(settings)
    client, name = registry.runs.connection.client, settings.model_name
    champion = registry.production.champion()
    registry.models.load_and_try(champion, load_training_module(settings))
    if champion.number != registry.production.recorded_number():
        found.append(f"production is {champion.number}, which the journal does not say")
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'")
    found += [f"the run {run.info.run_name} is open" for run in runs]
    for change in registry.production.changes():
        if change.event == "promotion" and change.new in _numbers(["--home", str(home)]):
            verdict = registry.versions.get(change.new).tags.get(TAG_VERDICT)
            if verdict != VERDICT_PROMOTE:
                found.append(f"version {change.new} was promoted with verdict {verdict}")
    sequences = [one.sequence for one in registry.production.changes()]
    if sequences != sorted(sequences, reverse=True) or len({*sequences}) != len(sequences):
        found.append(f"the history is out of order: {sequences}")
    return [f"night {night}: {text}" for text in found]


# --- A life ---


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(home: Path) -> dict[str, int]:
    """Return the sizes of what grows, in bytes, and the number of files beside."""
    sizes = {name: size_of(home / folder) for name, folder in FOLDERS.items()}
    sizes["journal"] = (home / ".pipeline_journal").stat().st_size
    sizes["recordings kept"] = size_of(home / "new_gts") + size_of(home / "used_gts")
    database = home / FOLDERS["store"] / "mlflow.db"
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as store:
        (models,) = store.execute("SELECT count(*) FROM model_versions").fetchone()
    sizes["versions"] = models
    sizes["model files"] = len([*(home / FOLDERS["artifacts"]).rglob("model.skops")])
    return sizes


def live(folder: Path, n_nights: int, seed: int, keep_losers: int) -> Life:
    """Live so many nights."""
    chance = random.Random(seed)
    home = make_home(folder / "home")
    write_home(home, DOMAINS["stems"])
    words = ["--keep-losers", str(keep_losers)] if keep_losers else []
    life = Life(home, words)
    if life.run(register)[0]:
        sys.exit((folder / "log.txt").read_text())
    seasons = add_seasons(n_nights, chance)
    for night in range(1, n_nights + 1):
        drop(home, seasons[(night - 1) // NIGHTS_OF_A_SEASON], night, chance)
        life.dropped |= {
            sha256(path) for name in ("new_gts", "used_gts") for path in (home / name).glob("*.csv")
        }
        has_visitor = chance.random() < CHANCE_OF_A_PERSON
        if has_visitor:
            _let_somebody_in(life, night, chance)
        if chance.random() < CHANCE_OF_A_DEATH:
            life.events["deaths"] += 1
            life.run(life.night, kill_at=chance.randint(1, MOST_POINTS))
        began = time.monotonic()
        status, said = life.run(life.night)
        life.seconds.append(time.monotonic() - began)
        life.events["nights with an error"] += bool(status)
        if status or has_visitor:
            life.mend(said + life.run(life.ask)[1], night, chance)
        _look_in_the_morning(life, night)
        if night in (1, n_nights // 2, n_nights):
            life.sizes[night] = measure(home)
        if life.wrong:
            break
    return life


def _let_somebody_in(life: Life, night: int, chance: random.Random) -> None:
    person = chance.choice(PEOPLE)
    life.events[person.__name__.replace("_", " ")] += 1
    status, told = life.run(lambda words: person(words, chance) or 0)
    chance.random()  # what they drew, another process drew
    if status:
        life.wrong.append(f"night {night}: {person.__name__}: {told[-300:]}")


def _look_in_the_morning(life: Life, night: int) -> None:
    def morning(_: list[str]) -> int:
        wrong = look(life, night)
        sys.stdout.write("".join(f"WRONG {one}\n" for one in wrong))
        return 0

    status, said = life.run(morning)
    life.wrong += [line[6:] for line in said.splitlines() if line.startswith("WRONG ")]
    if status:
        life.wrong.append(f"night {night}: cannot be looked at: {said[-500:]}")


def report(life: Life, n_nights: int, command: str) -> str:
    """Return what happened, and what grew, as a page."""
    nights = [*life.sizes]
    rows: list[list[str]] = [["", *(f"night {night}" for night in nights)]]
    rows.append(["---"] * len(rows[0]))
    for name in life.sizes[nights[-1]]:
        values = [life.sizes[night][name] for night in nights]
        is_count = name in ("versions", "model files")
        rows.append([name, *(f"{one}" if is_count else f"{one / 1e6:.2f} MB" for one in values)])
    times = [_around(life.seconds, night) for night in nights]
    rows.append(["median time of a night", *(f"{one:.2f} s" for one in times)])
    events = "; ".join(f"{what}: {count}" for what, count in sorted(life.events.items()))
    return "\n".join(
        [
            "# A long life",
            "",
            f"{datetime.date.today().isoformat()}, Python {platform.python_version()}, "
            f"{os.cpu_count()} cores: `{command}`",
            "",
            f"{len(life.seconds)} of {n_nights} nights, {len(life.dropped)} recordings, "
            f"{len(life.wrong)} things that did not hold.",
            "",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            f"What happened: {events}.",
            "",
        ]
    )


def _around(seconds: Sequence[float], night: int) -> float:
    low = max(0, min(night - GATHERED // 2, len(seconds) - GATHERED))
    return statistics.median(seconds[low : low + GATHERED])


def main() -> int:
    """Live and say what happened."""
    parser = argparse.ArgumentParser(description="Live years of nights in one home.")
    parser.add_argument("--nights", type=int, default=365)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-losers", type=int, default=2, help="0: all")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    warm_up()
    with tempfile.TemporaryDirectory(prefix="long-life-") as name:
        life = live(Path(name), options.nights, options.seed, options.keep_losers)
        text = report(life, options.nights, "make long-life")
    sys.stdout.write(text + "".join(f"WRONG {one}\n" for one in life.wrong))
    if options.report:
        options.report.write_text(text)
    return 1 if life.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
