"""Kept tables: the same result, read once, and nothing on disk is trusted."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sample_gts import write_recordings

import train_classification_model as training
from retraining import files
from retraining.cross_validation import Resources
from retraining.cross_validation import train as cross_validate
from retraining.kept_tables import CACHE_FOLDER, KeptTables
from retraining.settings import Settings
from retraining.training import TrainedModel, load_training_module

SHA256 = "ab" * 32
TABLE = pd.DataFrame(
    {
        "numbers": [0.1, np.nan, -0.0],
        "counts": np.array([1, 2, 3], dtype=np.uint8),
        "text": ["a note: ä", None, ""],
        "truth": pd.array([True, None, False], dtype="boolean"),
    }
)
TABLE.attrs = {"n_rows": 3, "note": "ä"}

pytestmark = pytest.mark.usefixtures("fast_training")


def entries(home: Path) -> list[Path]:
    """Return the files of the cache."""
    return sorted((home / CACHE_FOLDER).iterdir())


def tables_of(
    home: Path, maker: str = "1", max_mb: float = 1, *, read_only: bool = False
) -> KeptTables:
    """Open the kept tables of a home."""
    return KeptTables(home / CACHE_FOLDER, maker, max_mb, read_only)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """Give a home whose cache holds one entry."""
    tables_of(tmp_path).put("rows", SHA256, TABLE)
    return tmp_path


class TestEntries:
    """What is put in comes out, or nothing does."""

    def test_a_table_comes_back_bit_for_bit(self, filled: Path) -> None:
        """Names, types, NaN and the sign of zero, and what is said of it."""
        found = tables_of(filled).get("rows", SHA256)
        assert found is not None
        pd.testing.assert_frame_equal(found, TABLE, check_exact=True)
        assert found["numbers"].to_numpy().tobytes() == TABLE["numbers"].to_numpy().tobytes()
        assert found.attrs == TABLE.attrs

    @pytest.mark.parametrize(
        "table",
        [
            pd.DataFrame({"mixed": [1, "a"]}),
            pd.DataFrame({"object": [object()]}),
            pd.DataFrame([[1, 2]], columns=["same", "same"]),
            pd.DataFrame({"complex": [1j]}),
        ],
        ids=["mixed", "object", "same names", "complex"],
    )
    def test_what_would_not_come_back_is_not_kept(
        self, tmp_path: Path, table: pd.DataFrame
    ) -> None:
        """It is computed again each time: slower, and never another table."""
        tables_of(tmp_path).put("rows", SHA256, table)
        assert tables_of(tmp_path).get("rows", SHA256) is None

    def test_nothing_is_found_for_another_content_or_code(self, filled: Path) -> None:
        """The name of an entry is both, and its kind."""
        assert tables_of(filled).get("examples", SHA256) is None
        assert tables_of(filled).get("rows", "cd" * 32) is None
        assert tables_of(filled, maker="2").get("rows", SHA256) is None

    def test_a_home_without_a_cache_has_no_entries_and_gets_no_folder(self, tmp_path: Path) -> None:
        """Looking changes nothing."""
        assert tables_of(tmp_path).get("rows", SHA256) is None
        tables_of(tmp_path).trim()
        assert list(tmp_path.iterdir()) == []

    def test_only_the_owner_may_enter(self, filled: Path) -> None:
        """Folders 0700, files 0600."""
        folders = (filled / CACHE_FOLDER, (filled / CACHE_FOLDER).parent)
        assert [oct(folder.stat().st_mode)[-3:] for folder in folders] == ["700", "700"]
        assert [oct(path.stat().st_mode)[-3:] for path in entries(filled)] == ["600"]

    def test_a_read_only_cache_writes_nothing(self, filled: Path) -> None:
        """No entry, no time of use, no removal: as a dry run promises."""
        (path,) = entries(filled)
        os.utime(path, (1, 1))
        cache = tables_of(filled, max_mb=0, read_only=True)
        assert cache.get("rows", SHA256) is not None
        cache.put("rows", "cd" * 32, TABLE)
        cache.trim()
        assert entries(filled) == [path]
        assert path.stat().st_mtime == 1

    def test_a_full_disk_costs_only_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One warning, no exception, no half entry."""

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", fail)
        cache = tables_of(tmp_path)
        for sha256 in (SHA256, "cd" * 32):
            cache.put("rows", sha256, TABLE)
        assert entries(tmp_path) == []
        assert caplog.text.count("No space left on device") == 1


def flip_a_bit(path: Path) -> None:
    """Damage the last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    """Leave half of the file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    """Leave nothing."""
    path.write_bytes(b"")


def rename_another(path: Path) -> None:
    """Put the entry of another recording there."""
    tables_of(path.parents[2]).put("rows", "cd" * 32, TABLE.head(1))
    (path.parent / f"{'cd' * 32}-1-rows").replace(path)


def link(path: Path) -> None:
    """Put a link to a good entry there."""
    elsewhere = path.parents[2] / "elsewhere"
    path.replace(elsewhere)
    path.symlink_to(elsewhere)


def pipe(path: Path) -> None:
    """Put a pipe there, which nobody writes to."""
    path.unlink()
    os.mkfifo(path)


def open_to_all(path: Path) -> None:
    """Let everybody write the entry."""
    path.chmod(0o666)


def open_folder_to_all(path: Path) -> None:
    """Let everybody write the folder."""
    path.parent.chmod(0o777)


def link_folder(path: Path) -> None:
    """Put a link to the folder in its place."""
    elsewhere = path.parents[2] / "elsewhere"
    path.parent.rename(elsewhere)
    path.parent.symlink_to(elsewhere)


class Trap:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (f"{Path(__file__).parent}/the-trap-sprang",)


def forge_code(path: Path) -> None:
    """Write a pickle with the digest that belongs to it."""
    stream = io.BytesIO()
    np.savez(stream, numbers=np.array([Trap()], dtype=object))
    payload = stream.getvalue()
    path.write_bytes(files._seal(path.name, payload) + payload)


class TestTampering:
    """Whatever stands in the folder: computed again, never trusted, never run."""

    @pytest.mark.parametrize(
        "tamper",
        [
            *(flip_a_bit, cut_off, empty, rename_another, link, pipe, open_to_all),
            *(open_folder_to_all, link_folder, forge_code),
        ],
        ids=lambda tamper: tamper.__name__,
    )
    def test_a_changed_entry_is_not_found(
        self, filled: Path, tamper: Callable[[Path], None]
    ) -> None:
        """By content, by name, by kind or by owner."""
        (path,) = entries(filled)
        tamper(path)
        assert tables_of(filled).get("rows", SHA256) is None
        assert not (Path(__file__).parent / "the-trap-sprang").exists()

    @pytest.mark.parametrize("tamper", [flip_a_bit, empty, link, open_to_all, forge_code])
    def test_a_changed_entry_is_replaced(
        self, filled: Path, tamper: Callable[[Path], None]
    ) -> None:
        """By what is computed then."""
        (path,) = entries(filled)
        tamper(path)
        tables_of(filled).put("rows", SHA256, TABLE)
        assert tables_of(filled).get("rows", SHA256) is not None

    def test_a_folder_of_others_is_not_written_to(
        self, filled: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is left alone, with a warning."""
        (path,) = entries(filled)
        open_folder_to_all(path)
        tables_of(filled).put("rows", "cd" * 32, TABLE)
        assert entries(filled) == [path]
        assert "open to others" in caplog.text


class TestTrim:
    """The size is bounded."""

    def test_what_was_not_used_for_the_longest_time_goes(self, tmp_path: Path) -> None:
        """Finding an entry counts as use."""
        table = pd.DataFrame({"numbers": np.random.default_rng(0).random(30_000)})
        for number in range(4):
            tables_of(tmp_path).put("rows", f"{number}", table)
            os.utime(tmp_path / CACHE_FOLDER / f"{number}-1-rows", (number, number))
        assert tables_of(tmp_path).get("rows", "0") is not None
        size_mb = entries(tmp_path)[0].stat().st_size / 1e6
        tables_of(tmp_path, max_mb=2.5 * size_mb).trim()
        assert [path.name for path in entries(tmp_path)] == ["0-1-rows", "3-1-rows"]

    def test_the_piece_of_a_killed_write_goes(self, filled: Path) -> None:
        """Even if there is room for it."""
        (path,) = entries(filled)
        (path.parent / "abc.tmp").touch()
        tables_of(filled).trim()
        assert entries(filled) == [path]


@pytest.fixture(scope="module")
def sample_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give five recordings: one of them with a note, and one without any counted object."""
    folder = tmp_path_factory.mktemp("recordings")
    paths = write_recordings(folder, 5)
    rows = pd.read_csv(paths[0])
    rows.assign(scores=rows["scores"].where(rows.index > 2, 7.0)).to_csv(paths[0], index=False)
    pd.read_csv(paths[4]).assign(counted=False).to_csv(paths[4], index=False)
    return folder


def train(folder: Path, tables: KeptTables | None) -> tuple[TrainedModel, int]:
    """Train small models; also return how many recordings were known."""
    return cross_validate(
        load_training_module(Settings()),
        sorted(folder.glob("*.csv")),
        n_folds=2,
        random_state=42,
        resources=Resources(n_jobs=1, tables=tables),
    )


def assert_equal(one: TrainedModel, other: TrainedModel) -> None:
    """Every field, and every prediction to the last bit."""
    for name in ("out_of_fold", "in_sample", "input_example", "examples", "importance"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), check_exact=True)
    for name in ("mean_error", "data_quality", "row_counts"):
        assert getattr(one, name) == getattr(other, name)
    rows = one.input_example
    assert np.array_equal(one.model.predict_proba(rows), other.model.predict_proba(rows))


class TestTraining:
    """A training with kept tables."""

    def test_the_result_is_the_same_without_empty_and_full(
        self, sample_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A training that finds everything parses nothing."""
        without, _ = train(sample_folder, None)
        assert_equal(without, train(sample_folder, tables_of(tmp_path))[0])
        monkeypatch.setattr(training, "parse_ground_truth", None)
        full, n_known = train(sample_folder, tables_of(tmp_path))
        assert_equal(without, full)
        assert n_known == 5

    def test_a_recording_is_parsed_once(
        self, sample_folder: Path, tmp_path: Path, parsed: list[str]
    ) -> None:
        """However often its rows are scored."""
        train(sample_folder, tables_of(tmp_path))
        assert parsed == sorted(path.name for path in sample_folder.iterdir())

    @pytest.fixture
    def parsed(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Give the names of the recordings that were parsed."""
        names: list[str] = []
        parse = training.parse_ground_truth

        def note(content: bytes, name: str) -> pd.DataFrame:
            names.append(name)
            return parse(content, name)

        monkeypatch.setattr(training, "parse_ground_truth", note)
        return names

    def test_only_new_recordings_are_parsed(
        self, sample_folder: Path, tmp_path: Path, parsed: list[str]
    ) -> None:
        """A name does not matter, a content does."""
        home, folder = tmp_path / "home", tmp_path / "recordings"
        home.mkdir()
        shutil.copytree(sample_folder, folder)
        train(folder, tables_of(home))
        (folder / "recording_01.csv").rename(folder / "renamed.csv")
        rows = pd.read_csv(folder / "recording_02.csv")
        rows.iloc[5:].to_csv(folder / "recording_02.csv", index=False)
        expected, _ = train(folder, None)
        parsed.clear()
        assert_equal(expected, train(folder, tables_of(home))[0])
        assert parsed == ["recording_02.csv"]

    @pytest.mark.sampled(0.5)
    @pytest.mark.parametrize(
        ("kind", "tamper"),
        [
            ("examples", flip_a_bit),
            pytest.param("examples", rename_another, marks=pytest.mark.slow),
            pytest.param("rows", cut_off, marks=pytest.mark.slow),
            ("rows", forge_code),
        ],
    )
    def test_a_changed_entry_does_not_change_the_result(
        self, sample_folder: Path, tmp_path: Path, kind: str, tamper: Callable[[Path], None]
    ) -> None:
        """It is computed again and replaced."""
        expected, _ = train(sample_folder, tables_of(tmp_path, maker="1"))
        damaged = [path for path in entries(tmp_path) if path.name.endswith(f"-1-{kind}")][2]
        tamper(damaged)
        assert_equal(expected, train(sample_folder, tables_of(tmp_path))[0])
        if kind == "examples":
            assert train(sample_folder, tables_of(tmp_path))[1] == 5

    def test_other_code_makes_other_tables(self) -> None:
        """The tables of an older module are never used."""
        module = load_training_module(Settings())
        assert dataclasses.replace(module, code_sha256="changed").maker() != module.maker()
