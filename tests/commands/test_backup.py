"""`backup` and `restore`: one archive, whole or not at all, from one home to another."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import BATCH, Domain, make_home

import pipeline_orchestrator
from pipeline_orchestrator import champion_on_used, run_orchestrator
from retraining.archives import CONTENTS, ArchiveWriter
from retraining.commands import backup as backup_command
from retraining.commands import restore as restore_command
from retraining.commands.backup import KIND, KNOWN_RECORDINGS, STORE, backup
from retraining.commands.history import relocation_line, relocations
from retraining.commands.predict import predict
from retraining.commands.restore import restore
from retraining.commands.status import status
from retraining.errors import PipelineError, TryLaterError
from retraining.files import exclusive_lock, hash_file
from retraining.journal import JOURNAL_NAME, Home, Journal
from retraining.known_recordings import FILE_NAME
from retraining.outcome import Outcome
from retraining.registry import open_registry, places
from retraining.registry.relocation import Relocated, relocate
from retraining.registry.store import upgrade_store
from retraining.settings import RESTORING, RESTORING_NOTE

SettingsOf = Callable[..., Any]
MADE_AGAIN = (".pipeline.lock", ".gitkeep")


def contents(home: Path) -> dict[str, str]:
    """Return the digest of every file of a home that is not made again, its store aside."""
    return {
        str(path.relative_to(home)): hash_file(path)
        for path in home.rglob("*")
        if path.is_file()
        and path.name not in (*MADE_AGAIN, JOURNAL_NAME)
        and not path.name.startswith("mlflow.db")
        and ".cache" not in path.parts
    }


def names_in(archive: Path) -> list[str]:
    """Return the names of an archive's members."""
    with tarfile.open(archive) as tar:
        return tar.getnames()


@pytest.fixture
def archive(home: Path, tmp_path: Path, settings_of: SettingsOf) -> Path:
    """Give a backup of a registered home."""
    path = tmp_path / "stems.tar"
    backup(settings_of(home), path)
    return path


class TestBackup:
    """All of a home, and nothing else."""

    def test_the_name_of_known_recordings(self) -> None:
        """It is written twice, because the other module brings numpy."""
        assert KNOWN_RECORDINGS == FILE_NAME

    def test_everything_is_there_once_and_the_manifest_last(
        self, home: Path, archive: Path
    ) -> None:
        """Each member with its digest; the archive is its owner's alone."""
        names = names_in(archive)
        assert names[-1] == CONTENTS
        assert sorted(names[:-1]) == sorted([*contents(home), JOURNAL_NAME, STORE])
        with tarfile.open(archive) as tar:
            manifest = json.load(tar.extractfile(CONTENTS) or io.BytesIO())
            for name, member in manifest["files"].items():
                content = (tar.extractfile(name) or io.BytesIO()).read()
                assert hashlib.sha256(content).hexdigest() == member["sha256"]
        assert archive.stat().st_mode & 0o777 == 0o600

    def test_what_is_made_again_is_left_out(
        self, home: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """Lock, cache, half-written files, bytecode; and what people keep beside."""
        for name in (
            *(".cache/readings/one", ".training-1/x.csv", "new_gts/.pipeline-1.tmp"),
            *("mlflow_server/artifacts/models/__pycache__/x.pyc", "notes.txt", ".venv/bin/python"),
        ):
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text("x")
        backup(settings_of(home), tmp_path / "stems.tar")
        for name in names_in(tmp_path / "stems.tar"):
            assert not any(word in name for word in ("cache", "training-", "tmp", "notes", "venv"))

    def test_links_and_strange_files_are_told_and_not_followed(
        self, home: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """What they lead to is none of the home."""
        (tmp_path / "secret").write_text("nobody may read it")
        (home / "new_gts/link.csv").symlink_to(tmp_path / "secret")
        (home / "used_gts/folder").symlink_to(tmp_path)
        os.mkfifo(home / "new_gts/pipe.csv")
        lines = backup(settings_of(home), tmp_path / "stems.tar")
        for name in ("new_gts/link.csv", "used_gts/folder", "new_gts/pipe.csv"):
            assert name in lines[-1]
            assert name not in names_in(tmp_path / "stems.tar")
        assert b"nobody may read it" not in (tmp_path / "stems.tar").read_bytes()

    def test_nothing_is_overwritten(
        self, archive: Path, home: Path, settings_of: SettingsOf
    ) -> None:
        """Neither a file nor a dangling link."""
        before = archive.read_bytes()
        with pytest.raises(PipelineError, match="is there already"):
            backup(settings_of(home), archive)
        assert archive.read_bytes() == before

    def test_a_file_in_the_home_is_not_in_itself(self, home: Path, settings_of: SettingsOf) -> None:
        """Nor is its temporary; a folder whose files are backed up takes none."""
        with pytest.raises(PipelineError, match="new_gts, a folder of the home; name a file else"):
            backup(settings_of(home), home / "new_gts/stems.tar")
        path = home / "stems.tar"
        backup(settings_of(home), path)
        assert not any("stems.tar" in name or "tmp" in name for name in names_in(path))

    def test_a_missing_folder_is_named(
        self, home: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """None is created somewhere wrong."""
        with pytest.raises(PipelineError, match="not a folder; create it"):
            backup(settings_of(home), tmp_path / "wrong/stems.tar")

    def test_it_waits_for_no_other_command(
        self, home: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """A night at work is not half backed up."""
        settings = settings_of(home)
        with exclusive_lock(settings, "run"), pytest.raises(TryLaterError):
            backup(settings, tmp_path / "stems.tar")

    @pytest.mark.slow
    def test_the_store_is_of_one_moment_while_others_write(
        self, home: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """MLflow's pages may be open: two rows of one transaction are both there, or neither."""
        database = home / STORE
        ended = threading.Event()

        def write() -> None:
            with contextlib.closing(sqlite3.connect(database, timeout=30)) as store:
                while not ended.is_set():
                    with store:
                        store.execute("INSERT INTO pairs VALUES (1)")
                        store.execute("INSERT INTO pairs VALUES (2)")

        with contextlib.closing(sqlite3.connect(database)) as store:
            store.execute("CREATE TABLE pairs (n INTEGER)")
        writer = threading.Thread(target=write)
        writer.start()
        try:
            backup(settings_of(home), tmp_path / "stems.tar")
        finally:
            ended.set()
            writer.join()
        restore(settings_of(tmp_path / "new"), tmp_path / "stems.tar")
        with contextlib.closing(sqlite3.connect(tmp_path / "new" / STORE)) as store:
            counts = store.execute("SELECT n, count(*) FROM pairs GROUP BY n").fetchall()
        assert len({count for _, count in counts}) <= 1
        assert places.damage(tmp_path / "new" / STORE) == ""

    def test_a_store_elsewhere_is_told(
        self, home: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """The home alone is backed up."""
        shutil.move(home / STORE, tmp_path / "shared.db")
        settings = settings_of(home, tracking_uri=f"sqlite:///{tmp_path}/shared.db")
        lines = backup(settings, tmp_path / "stems.tar")
        assert "without the store" in lines[1]
        assert "shared.db" in lines[1]
        assert STORE not in names_in(tmp_path / "stems.tar")
        lines = restore(settings_of(tmp_path / "new"), tmp_path / "stems.tar")
        assert "holds no store" in lines[1]

    def test_what_a_killed_one_left_is_removed_by_the_next(
        self, home: Path, tmp_path: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also where it was to be written to another name; those of other homes stay."""
        left: list[str] = []

        def die(folder: Path, *_: object, **__: object) -> None:
            left.extend(shutil.copy(one, f"{one}.kept") for one in folder.glob(".pipeline-*"))
            raise KeyboardInterrupt

        def writing(_: Any, writer: ArchiveWriter) -> list[Path]:
            die(writer.temporary.parent)
            return []

        with monkeypatch.context() as patch:
            patch.setattr(backup_command, "_add_store", writing)
            with pytest.raises(KeyboardInterrupt):
                backup(settings_of(home), tmp_path / "one.tar")
        for one in left:
            Path(one).rename(str(one).removesuffix(".kept"))
        other = tmp_path / ".pipeline-backup-0123456789abcdef-x.tmp"
        other.write_text("of another home")
        assert len(list(tmp_path.glob(".pipeline-*"))) == 2
        backup(settings_of(home), tmp_path / "two.tar")
        assert list(tmp_path.glob(".pipeline-*")) == [other]
        shutil.copy(tmp_path / "two.tar", left[-1].removesuffix(".kept"))
        with pytest.raises(PipelineError, match="is there already"):
            backup(settings_of(home), tmp_path / "two.tar")
        assert list(tmp_path.glob(".pipeline-*")) == [other]

    def test_a_full_disk_leaves_nothing(
        self, home: Path, tmp_path: Path, settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One line, with the name of the file."""

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(tarfile.TarFile, "addfile", full)
        with pytest.raises(PipelineError, match=r"stems\.tar was not written: No space left"):
            backup(settings_of(home), tmp_path / "stems.tar")
        assert not list(tmp_path.glob("*.tar"))
        assert not list(tmp_path.glob(".pipeline-*"))

    def test_a_damaged_store_is_not_backed_up(
        self, home: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """A backup that cannot be restored is worse than none."""
        content = (home / STORE).read_bytes()
        half = len(content) // 2 // 4096 * 4096
        (home / STORE).write_bytes(content[:half] + b"\xff" * 8192 + content[half + 8192 :])
        with pytest.raises(PipelineError, match=r"is (damaged|not a readable)"):
            backup(settings_of(home), tmp_path / "stems.tar")
        assert not (tmp_path / "stems.tar").exists()


class TestRestore:
    """A home as it was, here or elsewhere."""

    def test_a_home_comes_back_elsewhere(
        self, home: Path, archive: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """All files, and a store that points to them; it is the same home."""
        before, ours = contents(home), Journal(home).read().home_id
        shutil.rmtree(home)
        settings = settings_of(tmp_path / "new")
        lines = restore(settings, archive)
        assert lines[0].startswith("restored: ")
        assert lines[1] == "1 versions are whole"
        assert contents(tmp_path / "new") == before
        assert places.elsewhere(settings) is None
        assert status(settings, None)["problems"] == []
        assert predict(settings, [str(settings.new_gts / "new_01.csv")]) == 0
        memory = Journal(settings.home).read()
        assert memory.home_id == ours
        (entry,) = memory.all(Relocated)
        assert (entry.origin, entry.to, entry.backup) == (
            str(home),
            str(settings.home),
            "stems.tar",
        )
        assert "restored: stems.tar, of" in relocation_line(relocations(settings)[0])

    def test_names_that_are_no_text_come_back(
        self, home: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """Long ones and those in other characters, too."""
        names = [b"\xff.csv", "ä ö.csv".encode(), b"n" * 200 + b".csv", b"line\nbreak.csv"]
        for name in names:
            Path(os.fsdecode(os.fsencode(home / "new_gts") + b"/" + name)).write_bytes(name)
        backup(settings_of(home), tmp_path / "stems.tar")
        restore(settings_of(tmp_path / "new"), tmp_path / "stems.tar")
        assert contents(tmp_path / "new") == contents(home)

    def test_into_the_old_place(self, home: Path, archive: Path, settings_of: SettingsOf) -> None:
        """As after a lost disk; nothing has to be rewritten."""
        shutil.rmtree(home)
        restore(settings_of(home), archive)
        assert status(settings_of(home), None)["production"] == 1

    def test_into_the_empty_folders_of_a_checkout(
        self, archive: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """As git leaves them."""
        new = make_home(tmp_path / "new")
        for name in ("new_gts", "used_gts", "mlflow_server/artifacts"):
            (new / name / ".gitkeep").touch()
        restore(settings_of(new), archive)
        assert status(settings_of(new), None)["production"] == 1
        assert (new / "new_gts/.gitkeep").exists()

    @pytest.mark.parametrize(
        "name", ["used_gts/a.csv", "new_gts/rejected/a.csv", STORE, JOURNAL_NAME, "withdrawn/a"]
    )
    def test_nothing_is_restored_over_a_home(
        self, name: str, archive: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """Not over a part of one either."""
        new = tmp_path / "new"
        (new / name).parent.mkdir(parents=True)
        (new / name).write_text("x")
        with pytest.raises(PipelineError, match="nothing is restored over it"):
            restore(settings_of(new), archive)
        assert [path for path in new.rglob("*") if path.is_file()] == [new / name]

    def test_a_restored_copy_is_told_and_gets_an_id(
        self, home: Path, archive: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """By the command that the line names, or at once."""
        settings = settings_of(tmp_path / "new")
        lines = restore(settings, archive)
        assert f"{home} is still there" in lines[-1]
        assert lines[-1].endswith("relocate --copy")
        relocate(settings, as_copy=True)
        restore(settings_of(tmp_path / "other"), archive, as_copy=True)
        ids = {Journal(one).read().home_id for one in (home, tmp_path / "new", tmp_path / "other")}
        assert len(ids) == 3
        assert len(Journal(tmp_path / "new").read().all(Home)) == 2

    def test_by_the_command_line(
        self, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Both commands, into a folder that is missing."""
        path, new = tmp_path / "stems.tar", tmp_path / "a new" / "home"
        assert pipeline_orchestrator.main(["backup", str(path), "--home", str(home)]) == 0
        assert "backup: " in capsys.readouterr().out
        assert pipeline_orchestrator.main(["restore", str(path), "--home", str(new)]) == 0
        assert "restored: " in capsys.readouterr().out
        assert pipeline_orchestrator.main(["restore", str(path), "--home", str(new)]) == 1
        assert "has .pipeline_journal already" in capsys.readouterr().err

    def test_the_archive_of_a_home_that_was_reached_by_a_link(
        self, home: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """Its store names the link."""
        disk = home.rename(tmp_path / "disk")
        home.symlink_to(disk)
        backup(settings_of(disk), tmp_path / "stems.tar")
        home.unlink()
        shutil.rmtree(disk)
        settings = settings_of(tmp_path / "new")
        restore(settings, tmp_path / "stems.tar")
        assert places.elsewhere(settings) is None
        assert status(settings, None)["production"] == 1

    def test_versions_that_are_not_whole_are_not_restored(
        self, home: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """Backed up when they were broken already: an older backup is needed."""
        (model,) = home.glob("mlflow_server/artifacts/models/*/artifacts/MLmodel")
        model.write_text("other")
        backup(settings_of(home), tmp_path / "stems.tar")
        with pytest.raises(PipelineError, match="restore from an older backup; nothing was"):
            restore(settings_of(tmp_path / "new"), tmp_path / "stems.tar")
        assert not (tmp_path / "new/used_gts").exists()

    def test_a_disk_that_is_too_small_is_told_before(
        self,
        archive: Path,
        tmp_path: Path,
        settings_of: SettingsOf,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """With how much is needed."""
        usage = dataclasses.make_dataclass("Usage", ["free"])(10)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(PipelineError, match="the backup of a home needs"):
            restore(settings_of(tmp_path / "new"), archive)

    @pytest.mark.slow
    @pytest.mark.usefixtures("fast_training")
    def test_a_restored_home_lives_on(
        self, archive: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """Recordings that waited are judged, and what comes of it is written here alone."""
        settings = settings_of(tmp_path / "new")
        restore(settings, archive)
        before = contents(tmp_path / "home")
        assert run_orchestrator(settings).outcome is Outcome.PROMOTED
        assert contents(tmp_path / "home") == before
        assert places.elsewhere(settings) is None


def written(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    """Write an archive by hand."""
    with tarfile.open(path, "w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def plain(name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "") -> tarfile.TarInfo:
    """Return the head of a member."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, linkname
    return member


def manifest(contents_of: dict[str, bytes], **changes: Any) -> bytes:
    """Return what an archive should say of its members."""
    facts = {"home": "/srv/stems", "homes": [], "at": "2026-11-26T00:00:00+00:00"}
    files = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "n_bytes": len(content)}
        for name, content in contents_of.items()
    }
    told = {"schema": 1, "kind": KIND, "facts": facts, "files": files, **changes}
    return json.dumps(told).encode()


X = b"x"
TOLD = {"home": "/srv/stems", "homes": [], "at": ""}
HOSTILE: dict[str, list[tuple[tarfile.TarInfo, bytes]]] = {
    "absolute": [
        (plain("/tmp/evil"), X),
        (plain(CONTENTS), manifest({"/tmp/evil": X})),
    ],
    "leads out": [
        (plain("new_gts/../../evil"), X),
        (plain(CONTENTS), manifest({"new_gts/../../evil": X})),
    ],
    "code": [
        (plain("pipeline_orchestrator.py"), X),
        (plain(CONTENTS), manifest({"pipeline_orchestrator.py": X})),
    ],
    "the lock": [
        (plain(".pipeline.lock"), X),
        (plain(CONTENTS), manifest({".pipeline.lock": X})),
    ],
    "a link": [
        (plain("used_gts/a.csv", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (plain(CONTENTS), manifest({"used_gts/a.csv": b""})),
    ],
    "a hard link": [
        (plain("used_gts/a.csv", tarfile.LNKTYPE, "/etc/passwd"), b""),
        (plain(CONTENTS), manifest({"used_gts/a.csv": b""})),
    ],
    "a pipe": [
        (plain("used_gts/a.csv", tarfile.FIFOTYPE), b""),
        (plain(CONTENTS), manifest({"used_gts/a.csv": b""})),
    ],
    "twice": [
        (plain("used_gts/a.csv"), X),
        (plain("used_gts/a.csv"), X),
        (plain(CONTENTS), manifest({"used_gts/a.csv": X})),
    ],
    "file and folder": [
        (plain("used_gts/a"), X),
        (plain("used_gts/a/b"), X),
        (plain(CONTENTS), manifest({"used_gts/a": X, "used_gts/a/b": X})),
    ],
    "more than it says": [
        (plain("used_gts/a.csv"), X),
        (plain("used_gts/b.csv"), X),
        (plain(CONTENTS), manifest({"used_gts/a.csv": X})),
    ],
    "less than it says": [
        (plain(CONTENTS), manifest({"used_gts/a.csv": X})),
    ],
    "another size": [
        (plain("used_gts/a.csv"), X * 2),
        (plain(CONTENTS), manifest({"used_gts/a.csv": X})),
    ],
    "another content": [
        (plain("used_gts/a.csv"), b"y"),
        (plain(CONTENTS), manifest({"used_gts/a.csv": X})),
    ],
    "no manifest": [(plain("used_gts/a.csv"), X)],
    "a manifest that is none": [(plain(CONTENTS), b"[1]")],
    "a deep manifest": [(plain(CONTENTS), b"[" * 100_000)],
    "a newer one": [(plain(CONTENTS), manifest({}, schema=2))],
    "a digest that is none": [
        (plain(CONTENTS), manifest({}, files={"used_gts/a": {"sha256": 1, "n_bytes": 1}}))
    ],
    "a size that is none": [
        (
            plain(CONTENTS),
            manifest({}, files={"used_gts/a": {"sha256": "0" * 64, "n_bytes": True}}),
        )
    ],
    "no store": [(plain(CONTENTS), manifest({}, facts={**TOLD, "homes": ["/srv/stems"]}))],
    "a home that is none": [(plain(CONTENTS), manifest({}, facts={**TOLD, "home": 1}))],
    "homes that are none": [(plain(CONTENTS), manifest({}, facts={**TOLD, "homes": [[]]}))],
    "no facts": [(plain(CONTENTS), manifest({}, facts={}))],
    "an export": [(plain(CONTENTS), manifest({}, kind="export of a model"))],
}


class TestHostileArchives:
    """Whatever an archive holds, nothing is written that its manifest and a home do not have."""

    @pytest.mark.parametrize("name", list(HOSTILE))
    def test_it_is_refused_in_one_line(
        self, name: str, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """And leaves nothing behind."""
        path = written(tmp_path / "evil.tar", HOSTILE[name])
        with pytest.raises(PipelineError, match="is no whole backup of a home: it "):
            restore(settings_of(tmp_path / "new"), path)
        left = [one for one in tmp_path.rglob("*") if one.is_file() and one != path]
        assert [one.name for one in left] in ([], [".pipeline.lock"])
        assert not list(tmp_path.glob("new/.pipeline-*"))

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
    def test_one_that_was_cut_off_is_refused(
        self, share: float, archive: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """The manifest comes last."""
        content = archive.read_bytes().rstrip(b"\0")
        archive.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(PipelineError, match="is no whole backup of a home"):
            restore(settings_of(tmp_path / "new"), archive)

    def test_a_flipped_bit_is_found(
        self, archive: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """In whatever member."""
        with tarfile.open(archive) as tar:
            place = tar.getmember("used_gts/old_01.csv").offset_data + 100
        content = bytearray(archive.read_bytes())
        content[place] ^= 1
        archive.write_bytes(content)
        with pytest.raises(PipelineError, match=r"used_gts/old_01\.csv, which is not what was"):
            restore(settings_of(tmp_path / "new"), archive)

    def test_another_file_and_none(self, tmp_path: Path, settings_of: SettingsOf) -> None:
        """One line each."""
        (tmp_path / "text").write_text("no archive")
        with pytest.raises(PipelineError, match="is no whole backup"):
            restore(settings_of(tmp_path / "new"), tmp_path / "text")
        with pytest.raises(PipelineError, match="there is no file"):
            restore(settings_of(tmp_path / "new"), tmp_path / "nothing.tar")
        assert not (tmp_path / "new").exists()


class TestKilled:
    """Half a home is none, and a second call makes it whole."""

    @pytest.fixture
    def half(
        self,
        home: Path,
        archive: Path,
        tmp_path: Path,
        settings_of: SettingsOf,
        monkeypatch: pytest.MonkeyPatch,
    ) -> Path:
        """Give a home that was being put in place."""
        assert home.is_dir()

        def half_place(source: Path, target: Path) -> None:
            (source / "new_gts").rename(target / "new_gts")
            (source / "used_gts").rename(target / "used_gts")
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(restore_command, "_place", half_place)
            with pytest.raises(KeyboardInterrupt):
                restore(settings_of(tmp_path / "new"), archive)
        return tmp_path / "new"

    def test_no_command_works_in_half_a_home(self, half: Path, settings_of: SettingsOf) -> None:
        """It says how to go on."""
        for work in (run_orchestrator, lambda settings: status(settings, None)):
            with pytest.raises(PipelineError, match=r"was cut off.* restore FILE"):
                work(settings_of(half))
        assert not (half / JOURNAL_NAME).exists()

    def test_a_second_call_ends_it(
        self, half: Path, home: Path, archive: Path, settings_of: SettingsOf
    ) -> None:
        """What came into new_gts/ meanwhile is kept."""
        (half / "new_gts/mine.csv").write_text("mine")
        restore(settings_of(half), archive)
        assert (half / "new_gts/mine.csv").read_text() == "mine"
        (half / "new_gts/mine.csv").unlink()
        assert contents(half) == contents(home)
        assert not (half / RESTORING).exists()
        assert not (half / RESTORING_NOTE).exists()

    def test_another_archive_does_not_mix_with_it(
        self, half: Path, home: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """It says which one is to be ended first."""
        (home / "new_gts/later.csv").write_text("later")
        backup(settings_of(home), tmp_path / "other.tar")
        with pytest.raises(PipelineError, match=r"from stems\.tar was cut off; end that first"):
            restore(settings_of(half), tmp_path / "other.tar")

    def test_one_that_was_extracting_begins_again(
        self, home: Path, archive: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """What it had is removed."""
        new = tmp_path / "new"
        (new / RESTORING / "used_gts").mkdir(parents=True)
        (new / RESTORING / "used_gts/half.csv").write_text("half")
        restore(settings_of(new), archive)
        assert contents(new) == contents(home)

    def test_the_store_can_be_upgraded_afterwards(
        self, archive: Path, tmp_path: Path, settings_of: SettingsOf
    ) -> None:
        """It is a store as any."""
        restore(settings_of(tmp_path / "new"), archive)
        assert "nothing to do" in upgrade_store(settings_of(tmp_path / "new"))


@pytest.mark.usefixtures("fast_training")
class TestAnOlderStore:
    """Only the store is put back: used_gts/ holds what production of then never learnt."""

    @pytest.fixture
    def older(
        self,
        history_of: Callable[..., tuple[Path, Any]],
        domain: Domain,
        tmp_path: Path,
        settings_of: SettingsOf,
    ) -> Path:
        """Give a home whose store is that of before its last promotion."""

        def promote(home: Path) -> None:
            places.copy_database(home / STORE, home / "before.db")
            assert run_orchestrator(settings_of(home)).outcome is Outcome.PROMOTED
            (home / "before.db").rename(home / STORE)

        home, _ = history_of(domain, "an older store", promote, tmp_path / "home")
        return home

    @pytest.mark.slow
    def test_its_recordings_are_told_learnt_and_evidence(
        self,
        older: Path,
        domain: Domain,
        settings_of: SettingsOf,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """None is lost, none a duplicate of itself, and no model learnt them: they may judge."""
        settings = settings_of(older)
        unlearnt = {hash_file(path) for path in settings.used_gts.glob("new_*.csv")}
        judged_on = []

        def judging(*values: Any) -> Any:
            errors = champion_on_used(*values)
            judged_on.append({*errors.index})
            return errors

        monkeypatch.setattr(pipeline_orchestrator, "champion_on_used", judging)
        used = {path.name for path in settings.used_gts.glob("*.csv")}
        state = status(settings, None)
        assert state["production"] == 1
        assert any("new_01.csv" in line for line in state["training_data"])
        (problem,) = state["problems"]
        assert "version 2, which the pipeline had made production, is not in the store" in problem
        domain.write(settings.new_gts, BATCH, "new", seed=9, prefix="later")
        result = run_orchestrator(settings)
        assert result.outcome is Outcome.PROMOTED
        assert f"holds {BATCH} recordings that production did not learn" in result.notes[0]
        registry = open_registry(settings)
        champion = registry.production.champion()
        learnt = {one.name for one in registry.learnt_by(champion).files}
        later = {f"later_{number:02d}.csv" for number in range(1, BATCH + 1)}
        assert learnt == used | later
        assert {path.name for path in settings.used_gts.glob("*.csv")} == used | later
        assert judged_on == [unlearnt]

    @pytest.mark.slow
    def test_a_copy_of_one_is_still_a_duplicate(
        self, older: Path, domain: Domain, settings_of: SettingsOf
    ) -> None:
        """It is known, although production did not learn it."""
        settings = settings_of(older)
        shutil.copy(settings.used_gts / "new_01.csv", settings.new_gts / "again.csv")
        domain.write(settings.new_gts, BATCH - 1, "new", seed=9, prefix="later")
        result = run_orchestrator(settings)
        assert result.outcome is Outcome.WAITING
        assert (settings.rejected_gts / "again.csv").is_file()

    @pytest.mark.slow
    def test_with_an_older_journal_as_well(self, older: Path, settings_of: SettingsOf) -> None:
        """Then nobody knows how they came there, and a person looks."""
        journal = Journal(older).path
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(lines[0])
        state = status(settings_of(older), None)
        told = " ".join([*state["training_data"], *state["problems"]])
        assert "new_01.csv" in told
