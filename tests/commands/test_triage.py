"""What to check next: the list, and how its marks follow recordings to monitoring."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import BATCH, DOMAINS, FAST_WORDS, ROOT, both_modules_in_time, make_home
from sample_gts import write_recordings
from test_json import documented
from test_pipeline_orchestrator import snapshot

import register_first_model
from pipeline_orchestrator import main, run_orchestrator
from retraining import intake
from retraining.commands.replay import replay
from retraining.commands.triage import Listing, triage
from retraining.errors import PipelineError, TryLaterError, UsageError
from retraining.files import exclusive_lock
from retraining.identity import observe
from retraining.journal import Journal, Memory
from retraining.known_recordings import FILE_NAME, KnownRecordings
from retraining.marks import CHOSEN, RANDOM, Mark, Triaged, marks
from retraining.outcome import Outcome
from retraining.registry import open_registry
from retraining.settings import Settings
from retraining.training import load_training_module

SettingsOf = Callable[..., Any]
LAST_OF_FIRST_SEASON = 22
pytestmark = pytest.mark.usefixtures("fast_training")


def put_unlabelled(home: Path, count: int, season: str = "new", seed: int = 7) -> list[Path]:
    """Write recordings that nobody has checked; their labels stay in labelled/."""
    paths = write_recordings(home / "labelled", count, season, seed, prefix="night")
    (home / "unlabelled").mkdir(exist_ok=True)
    for path in paths:
        rows = pd.read_csv(path).drop(columns="ground_truth")
        rows.to_csv(home / "unlabelled" / path.name, index=False)
    return paths


def listed(found: Listing, how: str) -> list[str]:
    """Return the names that were listed like that, in order."""
    return [one.estimate.name for one in found.listed if one.how == how]


def check(home: Path, name: str, to: str = "") -> Path:
    """Do what a person does: label a recording, and save it anew under another name."""
    rows = pd.read_csv(home / "labelled" / name)
    path = home / "new_gts" / (to or f"checked_{name}")
    rows.iloc[::-1].to_csv(path, index=False, lineterminator="\r\n")
    return path


class TestList:
    """`triage [FOLDER]`."""

    def test_it_lists_what_to_check(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Chosen ones with the reason, random ones among them, and what to do with both."""
        put_unlabelled(home, 9)
        words = ["triage", "--count", "6", "--home", str(home)]
        assert main(words) == 0
        out = capsys.readouterr().out.splitlines()
        where = home / "unlabelled"
        assert out[0] == (
            f"to check next: 6 of 9 recordings in {where}: 4 chosen, 2 drawn at random"
        )
        assert out[1].split() == ["rank", "file", "why"]
        assert [line.split()[0] for line in out[2:8]] == ["1", "2", "3", "4", "5", "6"]
        assert sum("random: must be checked, too" in line for line in out[2:8]) == 2
        assert sum("% unsure" in line for line in out[2:8]) == 4
        assert out[-1].startswith("next: check them all, the random ones, too, and put the lab")
        assert main(words) == 0
        assert capsys.readouterr().out.splitlines() == out

    @pytest.mark.slow
    def test_json_is_what_is_documented(
        self, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Every field, of the document and of its lists."""
        put_unlabelled(home, 4)
        (home / "unlabelled" / "bad.csv").write_text("no, table")
        (home / "unlabelled" / "old.csv").write_bytes((home / "used_gts/old_01.csv").read_bytes())
        assert main(["triage", "--json", "--dry-run", "--home", str(home)]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document.pop("schema_version") == 2
        assert set(document) == set(documented("triage"))
        text = (ROOT / "docs" / "json.md").read_text().split("## triage")[1].split("## ")[0]
        for name in ("listed", "left_out", "bad"):
            for one in document[name][0]:
                assert f"`{one}`" in text

    def test_known_recordings_are_left_out(self, home: Path, settings_of: SettingsOf) -> None:
        """In used_gts/, in new_gts/, withdrawn, in other bytes, in part; copies count once."""
        put_unlabelled(home, 3)
        folder = home / "unlabelled"
        main(["withdraw", "old_02.csv", "--home", str(home)])
        sources = {
            "used": home / "used_gts/old_01.csv",
            "new": home / "new_gts/new_01.csv",
            "withdrawn": home / "withdrawn/old_02.csv",
            "copy": home / "labelled/night_02.csv",
        }
        for name, source in sources.items():
            rows = pd.read_csv(source).drop(columns="ground_truth")
            rows.iloc[::-1].to_csv(folder / f"z_{name}.csv", index=False)
        half = pd.read_csv(sources["used"])
        half[half["frames"] < half["frames"].median()].to_csv(folder / "z_part.csv", index=False)
        (folder / "z_same.csv").write_bytes((folder / "night_03.csv").read_bytes())
        found = triage(settings_of(home))
        assert found.n_pool == 3
        assert {one.estimate.name for one in found.listed} == {f"night_0{n}.csv" for n in (1, 2, 3)}
        assert found.left_out == {
            "z_copy.csv": "is known, wholly or in part: night_02.csv of this folder holds it",
            "z_new.csv": "is known, wholly or in part: new_gts/new_01.csv",
            "z_part.csv": "is known, wholly or in part: used_gts/old_01.csv",
            "z_same.csv": "has the same content as night_03.csv",
            "z_used.csv": "is known, wholly or in part: used_gts/old_01.csv",
            "z_withdrawn.csv": "is known, wholly or in part: old_02.csv, withdrawn",
        }

    @pytest.mark.parametrize("domain", ["grain"], indirect=True)
    def test_any_module_can_be_asked(self, home: Path, settings_of: SettingsOf) -> None:
        """One whose rows are its examples, and that names no identity."""
        DOMAINS["grain"].write(home / "unlabelled", 6, "new", seed=9, prefix="bag")
        found = triage(settings_of(home), count=3)
        assert (found.n_pool, len(listed(found, CHOSEN)), len(listed(found, RANDOM))) == (6, 2, 1)

    def test_hostile_files_cost_a_line_each(
        self, home: Path, settings_of: SettingsOf, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Pipes, links, names with control characters, formulas, no tables."""
        put_unlabelled(home, 2)
        folder = home / "unlabelled"
        os.mkfifo(folder / "pipe.csv")
        (folder / "link.csv").symlink_to("/etc/passwd")
        (folder / "folder.csv").mkdir()
        (folder / "a\x1b[31m\n.csv").write_bytes((folder / "night_01.csv").read_bytes())
        (folder / "=cmd|' !A1.csv").write_text("=1+1")
        (folder / "2026-01-01 00:00:00 INFO promoted.csv").write_text("")
        os.close(os.open(os.fsencode(folder) + b"/\xff.csv", os.O_CREAT))
        found = triage(settings_of(home), dry_run=True)
        assert (found.n_pool, len(found.bad)) == (2, 7)
        assert main(["triage", "--dry-run", "--home", str(home)]) == 0
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert out.count("bad: ") == 7
        assert all(
            line.startswith(("to ", "rank", "  ", "note", "bad", "next"))
            for line in out.splitlines()
        )

    def test_what_cannot_be_done_is_one_line(
        self, home: Path, settings_of: SettingsOf, tmp_path: Path
    ) -> None:
        """No folder, no files, wrong numbers; nothing is remembered."""
        settings, before = settings_of(home), snapshot(home)
        with pytest.raises(PipelineError, match=r"unlabelled is no folder that can be read .*put"):
            triage(settings)
        (tmp_path / "empty").mkdir()
        found = triage(settings, tmp_path / "empty")
        assert "nothing to check: put new recordings into" in found.as_lines()[-1]
        assert (found.notes, found.marked) == ([], False)
        for wrong in ({"count": 0}, {"random_share": 1.5}, {"random_share": float("nan")}):
            with pytest.raises(UsageError, match="must be from"):
                triage(settings, tmp_path / "empty", **wrong)
        assert snapshot(home) == before


class TestMarks:
    """What was listed is remembered, and recognised when its labels are there."""

    def test_a_dry_run_remembers_nothing(self, home: Path, settings_of: SettingsOf) -> None:
        """The home is what it was, byte for byte."""
        put_unlabelled(home, 3)
        before = snapshot(home)
        assert not triage(settings_of(home), dry_run=True).marked
        assert snapshot(home) == before

    def test_only_they_need_the_lock(
        self, home: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All is read while a cycle is at work; then no list is shown of which nothing is known."""
        from retraining.commands import triage as command

        put_unlabelled(home, 2)
        settings, remember = settings_of(home), command._remember
        reached: list[int] = []

        def noted(settings: Settings, pool: Any, listed: Any) -> None:
            reached.append(len(pool.found))
            remember(settings, pool, listed)

        monkeypatch.setattr(command, "_remember", noted)
        with exclusive_lock(settings, "run"), pytest.raises(TryLaterError, match="run"):
            triage(settings)
        assert reached == [2]
        assert marks(Journal(home).read()) == {}

    @both_modules_in_time
    def test_they_follow_the_labelled_file(
        self, home: Path, domain: Any, settings_of: SettingsOf
    ) -> None:
        """Under another name, in other bytes; also where the kept sketches are lost."""
        for path in (home / "new_gts").glob("*.csv"):
            path.unlink()
        settings = settings_of(home)
        if domain is DOMAINS["stems"]:
            put_unlabelled(home, 5)
        else:
            domain.write(home / "unlabelled", 5, "new", seed=9, prefix="night")
        found = triage(settings, count=3)
        for one in found.listed:
            if domain is DOMAINS["stems"]:
                check(home, one.estimate.name)
            else:
                rows = pd.read_csv(home / "unlabelled" / one.estimate.name)
                rows.iloc[::-1].to_csv(home / f"new_gts/checked_{one.estimate.name}", index=False)
        training = load_training_module(settings)

        def taken_in(memory: Memory) -> dict[str, Mark | None]:
            known = KnownRecordings.of(home, training)
            taken = intake.take_in(settings, training, known, memory, intake.Learnt())
            return {one.name: one.mark for one in taken.files}

        memory = Journal(home).read()
        expected = {f"checked_{one.estimate.name}": one.how for one in found.listed}
        found_again = taken_in(memory)
        assert {name: mark and mark.how for name, mark in found_again.items()} == expected
        assert {(one.pool, one.n_chosen) for one in found_again.values() if one} == {(5, 2)}
        (home / FILE_NAME).unlink()
        hows = {name: mark and mark.how for name, mark in taken_in(memory).items()}
        assert hows == expected
        assert {*taken_in(Memory()).values()} == {None}

    def test_a_rounded_file_is_recognised_by_its_sketch(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """Some observations became others; and of two lists the newer one counts."""
        put_unlabelled(home, 4)
        settings = settings_of(home)
        triage(settings, count=2)
        journal, training = Journal(home), load_training_module(settings)
        (first,) = journal.read().all(Triaged)
        name = next(
            one.estimate.name
            for one in triage(settings, count=2, dry_run=True).listed
            if one.estimate.sha256 == first.chosen[0]
        )
        path = check(home, name)
        rows = pd.read_csv(path)
        rows.loc[rows.index % 10 == 0, "scores"] += 0.2
        rows.to_csv(path, index=False)
        known = KnownRecordings.of(home, training)
        taken = intake.take_in(settings, training, known, journal.read(), intake.Learnt())
        (mark,) = [one.mark for one in taken.files if one.name == path.name]
        own = (first.identities[0], None, None, first.run_id, first.group)
        assert mark == Mark(CHOSEN, 4, 1, *own)
        again = Triaged(3, [], first.chosen, first.identities[:1], "ann", "later")
        later = journal.read().and_then(again)
        known = KnownRecordings.of(home, training)
        taken = intake.take_in(settings, training, known, later, intake.Learnt())
        (mark,) = [one.mark for one in taken.files if one.name == path.name]
        assert mark == Mark(RANDOM, 3, 0, first.identities[0])

    def test_what_is_listed_is_not_known(self, home: Path, settings_of: SettingsOf) -> None:
        """A labelled file with the very bytes of the listed one is new, and its labels are read."""
        for path in (home / "new_gts").glob("*.csv"):
            path.unlink()
        paths = write_recordings(home / "unlabelled", 2, "new", 7, prefix="night")
        settings = settings_of(home)
        assert triage(settings).n_pool == 2
        for path in paths:
            path.rename(home / "new_gts" / path.name)
        training = load_training_module(settings)
        known = KnownRecordings.of(home, training)
        found = intake.take_in(settings, training, known, Journal(home).read(), intake.Learnt())
        assert [one.name for one in found.files] == ["night_01.csv", "night_02.csv"]
        for one in found.files:
            fresh = KnownRecordings(home / FILE_NAME, training.has_identity)
            fresh.add([(one.sha256, observe(training, one.rows))], training.maker())
            assert one.labels == fresh.labels(one.sha256)

    @pytest.mark.slow
    @pytest.mark.parametrize("after", ["save", "append"])
    def test_a_killed_command_leaves_nothing_half(
        self, home: Path, settings_of: SettingsOf, after: str
    ) -> None:
        """Before the journal's line nothing was listed, after it all was; the next one works."""
        put_unlabelled(home, 4)
        place = {
            "save": "retraining.known_recordings.KnownRecordings.save",
            "append": "retraining.journal.Journal.append",
        }[after]
        owner, _, name = place.rpartition(".")
        program = (
            "import importlib, os, signal, sys\n"
            f"module = importlib.import_module({owner.rpartition('.')[0]!r})\n"
            f"kind = getattr(module, {owner.rpartition('.')[2]!r})\n"
            f"done = kind.{name}\n"
            "def then_die(self, *values):\n"
            "    done(self, *values)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            f"kind.{name} = then_die\n"
            "from pipeline_orchestrator import main\n"
            f"main(['triage', '--home', {str(home)!r}])\n"
        )
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
        assert done.returncode == -signal.SIGKILL
        assert len(marks(Journal(home).read())) == (4 if after == "append" else 0)
        assert len(triage(settings_of(home)).listed) == 4
        assert len(marks(Journal(home).read())) == 4


@pytest.mark.slow
class TestMonitoring:
    """The mean error is that of the pool."""

    def ready(self, home: Path, settings: Settings, n_pool: int = 12) -> Listing:
        """List what to check, of a pool; nothing else waits."""
        for path in (home / "new_gts").glob("*.csv"):
            path.unlink()
        put_unlabelled(home, n_pool)
        return triage(settings, count=BATCH)

    def test_a_list_that_was_checked_whole(
        self, home: Path, settings_of: SettingsOf, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """4 chosen and 2 random ones of 12: a third and two thirds, in every place that tells."""
        settings = settings_of(home, threshold=1000)
        found = self.ready(home, settings)
        for one in found.listed:
            check(home, one.estimate.name)
        words = ["--threshold", "1000", "--json", *FAST_WORDS, "--home", str(home)]
        assert main(words) == 0
        document = json.loads(capsys.readouterr().out)
        errors: dict[str, list[float]] = {CHOSEN: [], RANDOM: []}
        for one in document["by_recording"]:
            errors[one["mark"]].append(one["champion_error"])
            assert one["weight"] == pytest.approx({CHOSEN: 0.5, RANDOM: 2}[one["mark"]])
        means = {how: sum(some) / len(some) for how, some in errors.items()}
        expected = means[CHOSEN] / 3 + means[RANDOM] * 2 / 3
        assert document["mean_error"] == pytest.approx(expected)
        assert document["mean_error_of_all"] == pytest.approx(expected)
        low, high = document["mean_error_interval"]
        assert low <= expected <= high
        assert document["selection"] == {
            "chosen": 4,
            "random": 2,
            "unlisted": 0,
            "pools": [12],
            "weighted": True,
            "assisted": False,
        }
        told = "estimated for the pool of 12 from 4 chosen and 2 random recordings"
        assert document["message"].endswith(told)
        (page,) = (home / "reports").glob("*.html")
        assert told in page.read_text()
        assert "each chosen one weighs 0.50, each random one 2.00" in page.read_text()

    def test_the_weighted_mean_decides_and_is_the_gates_condition(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """A threshold between the plain mean and that of the pool."""
        settings = settings_of(home, threshold=1000)
        for one in self.ready(home, settings).listed:
            check(home, one.estimate.name)
        healthy = run_orchestrator(settings, dry_run=True)
        plain = sum(one.champion_error for one in healthy.recordings) / BATCH
        mean = float(healthy.facts["mean_error"])
        assert abs(plain - mean) > 0.5
        limit = (plain + mean) / 2
        result = run_orchestrator(settings_of(home, threshold=limit), dry_run=True)
        assert (result.outcome is Outcome.HEALTHY) is (mean < limit)
        below = run_orchestrator(settings_of(home, threshold=0.99 * mean), dry_run=True)
        verdict = below.facts["verdict"]
        weights = {one.name: one.weight for one in below.recordings}
        rival = sum(weights[one.name] * (one.challenger_error or 0) for one in below.recordings)
        decided = verdict["challenger_mean_error_decided"]
        assert decided == pytest.approx(rival / sum(weights.values()))
        assert "estimated for the pool of 12 from 4 chosen and 2 random" in below.message

    def test_without_the_random_ones_it_is_said(self, home: Path, settings_of: SettingsOf) -> None:
        """All weigh the same, and the mean is no mean of all."""
        settings = settings_of(home, threshold=1000, min_new_files=4)
        for name in listed(self.ready(home, settings), CHOSEN):
            check(home, name)
        result = run_orchestrator(settings)
        assert {one.weight for one in result.recordings} == {1}
        assert result.facts["selection"]["weighted"] is False
        assert "this batch was selected: 4 chosen recordings of a list are in it" in result.message
        assert "check the random ones, too" in result.message

    def test_a_promoted_list_is_archived_and_replayed(
        self, home: Path, settings_of: SettingsOf
    ) -> None:
        """The look, the journal and a replay of that night hold; what was checked is known then."""
        settings = settings_of(home, threshold=1, significance=1)
        for one in self.ready(home, settings).listed:
            check(home, one.estimate.name)
        assert run_orchestrator(settings).outcome is Outcome.PROMOTED
        found = triage(settings_of(home))
        assert found.n_pool == 6
        assert len(found.left_out) == 6
        assert all("used_gts/checked_" in why for why in found.left_out.values())
        again = replay(settings, [settings], run_orchestrator)
        last = again.lives[0].nights[-1]
        assert last.outcome == "promoted"
        assert "estimated for the pool of 12 from 4 chosen and 2 random" in last.message


@pytest.mark.slow
def test_the_chosen_ones_of_a_real_season_are_harder_than_the_others(
    tmp_path: Path, shared_folder: Path, figure: Callable[[str, Any], None]
) -> None:
    """18 older recordings learnt, 6 of 15 newer ones chosen: the plain mean would be far off."""
    home = make_home(tmp_path / "home")
    (home / "unlabelled").mkdir()
    for path in (shared_folder / "gts").glob("*.csv"):
        folder = "used_gts" if int(path.stem) <= LAST_OF_FIRST_SEASON else "unlabelled"
        shutil.copy2(path, home / folder)
    settings = Settings(home=home)
    register_first_model.register_first_model(settings, train=True)
    registry, training = open_registry(settings), load_training_module(settings)
    model = registry.models.load(registry.production.champion(), training)
    rows = {path.name: training.read(path)[0] for path in (home / "unlabelled").glob("*.csv")}
    errors = {name: training.errors(model, [one])["error"].iloc[0] for name, one in rows.items()}
    found = triage(settings, count=9)
    chosen = [errors.pop(name) for name in listed(found, CHOSEN)]
    assert (found.n_pool, len(chosen)) == (15, 6)
    mean, rest = sum(chosen) / 6, sum(errors.values()) / 9
    pool, plain = (6 * mean + 9 * rest) / 15, (6 * mean + 3 * rest) / 9
    said = f"chosen {mean:.1f}, all {pool:.1f}, a list of 9 not weighted {plain:.1f} on average"
    figure("mean error of a real season, %", said)
    assert mean > 1.5 * pool
    assert plain > pool + 1
