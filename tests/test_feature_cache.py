"""Kept feature tables: the same result, read once, and nothing on disk is trusted."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sample_gts import write_recordings

import feature_cache
import train_classification_model as training
from feature_cache import CACHE_FOLDER, FeatureCache

SHA256 = "ab" * 32
ARRAYS = {"numbers": np.array([[0.1, np.nan], [-0.0, 3.0]]), "text": np.array("a note: ä")}

pytestmark = pytest.mark.usefixtures("fast_training")


def entries(home: Path) -> list[Path]:
    """Return the files of the cache."""
    return sorted((home / CACHE_FOLDER).iterdir())


def cache_of(home: Path, version: str = "1", max_mb: float = 1, **options: bool) -> FeatureCache:
    """Open the cache of a home."""
    return FeatureCache(home, version, max_mb, **options)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """Give a home whose cache holds one entry."""
    cache_of(tmp_path).put(SHA256, ARRAYS)
    return tmp_path


class TestEntries:
    """What is put in comes out, or nothing does."""

    def test_arrays_come_back_bit_for_bit(self, filled: Path) -> None:
        """Names, types, shapes, NaN and the sign of zero."""
        found = cache_of(filled).get(SHA256)
        assert found is not None
        assert list(found) == list(ARRAYS)
        for name, array in ARRAYS.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            assert found[name].tobytes() == array.tobytes()

    def test_nothing_is_found_for_another_content_or_code(self, filled: Path) -> None:
        """The name of an entry is both."""
        assert cache_of(filled).get("cd" * 32) is None
        assert cache_of(filled, version="2").get(SHA256) is None

    def test_a_home_without_a_cache_has_no_entries_and_gets_no_folder(self, tmp_path: Path) -> None:
        """Looking changes nothing."""
        assert cache_of(tmp_path).get(SHA256) is None
        cache_of(tmp_path).trim()
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
        cache = cache_of(filled, max_mb=0, read_only=True)
        assert cache.get(SHA256) is not None
        cache.put("cd" * 32, ARRAYS)
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
        cache = cache_of(tmp_path)
        for sha256 in (SHA256, "cd" * 32):
            cache.put(sha256, ARRAYS)
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
    cache_of(path.parents[2]).put("cd" * 32, {"numbers": np.zeros(1)})
    (path.parent / f"{'cd' * 32}-1").replace(path)


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
    path.write_bytes(feature_cache._digest(path.name, payload) + payload)


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
        assert cache_of(filled).get(SHA256) is None
        assert not (Path(__file__).parent / "the-trap-sprang").exists()

    @pytest.mark.parametrize("tamper", [flip_a_bit, empty, link, open_to_all, forge_code])
    def test_a_changed_entry_is_replaced(
        self, filled: Path, tamper: Callable[[Path], None]
    ) -> None:
        """By what is computed then."""
        (path,) = entries(filled)
        tamper(path)
        cache_of(filled).put(SHA256, ARRAYS)
        assert cache_of(filled).get(SHA256) is not None

    def test_a_folder_of_others_is_not_written_to(
        self, filled: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is left alone, with a warning."""
        (path,) = entries(filled)
        open_folder_to_all(path)
        cache_of(filled).put("cd" * 32, ARRAYS)
        assert entries(filled) == [path]
        assert "writable by others" in caplog.text


class TestTrim:
    """The size is bounded."""

    def test_what_was_not_used_for_the_longest_time_goes(self, tmp_path: Path) -> None:
        """Finding an entry counts as use."""
        array = {"numbers": np.zeros(30_000)}
        for number in range(4):
            cache_of(tmp_path).put(f"{number}", array)
            os.utime(tmp_path / CACHE_FOLDER / f"{number}-1", (number, number))
        assert cache_of(tmp_path).get("0") is not None
        cache_of(tmp_path, max_mb=0.5).trim()
        assert [path.name for path in entries(tmp_path)] == ["0-1", "3-1"]

    def test_the_piece_of_a_killed_write_goes(self, filled: Path) -> None:
        """Even if there is room for it."""
        (path,) = entries(filled)
        (path.parent / "abc.tmp").touch()
        cache_of(filled).trim()
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


def train(folder: Path, tables: FeatureCache | None) -> training.TrainingResult:
    """Train small models."""
    return training.train_classification_model(folder, n_folds=2, n_jobs=1, tables=tables)


def assert_equal(one: training.TrainingResult, other: training.TrainingResult) -> None:
    """Every field, and every prediction to the last bit."""
    for name in ("out_of_fold", "in_sample", "input_example"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), check_exact=True)
    for name in ("mean_error", "data_quality", "row_counts"):
        assert getattr(one, name) == getattr(other, name)
    rows = one.input_example
    assert np.array_equal(one.model.predict_proba(rows), other.model.predict_proba(rows))


class TestTraining:
    """A training with a cache."""

    def test_the_result_is_the_same_without_empty_and_full(
        self, sample_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A training that finds everything parses nothing."""
        without = train(sample_folder, None)
        assert_equal(without, train(sample_folder, cache_of(tmp_path)))
        monkeypatch.setattr(training, "parse_ground_truth", None)
        full = cache_of(tmp_path)
        assert_equal(without, train(sample_folder, full))
        assert full.n_hits == 5

    def test_only_new_recordings_are_parsed(
        self, sample_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A name does not matter, a content does."""
        home, folder = tmp_path / "home", tmp_path / "recordings"
        home.mkdir()
        shutil.copytree(sample_folder, folder)
        train(folder, cache_of(home))
        (folder / "recording_01.csv").rename(folder / "renamed.csv")
        rows = pd.read_csv(folder / "recording_02.csv")
        rows.iloc[5:].to_csv(folder / "recording_02.csv", index=False)
        expected = train(folder, None)
        parsed = []
        parse = training.parse_ground_truth

        def note(content: bytes, name: str) -> pd.DataFrame:
            parsed.append(name)
            return parse(content, name)

        monkeypatch.setattr(training, "parse_ground_truth", note)
        assert_equal(expected, train(folder, cache_of(home)))
        assert parsed == ["recording_02.csv"]

    @pytest.mark.parametrize("tamper", [flip_a_bit, cut_off, rename_another, forge_code])
    def test_a_changed_entry_does_not_change_the_result(
        self, sample_folder: Path, tmp_path: Path, tamper: Callable[[Path], None]
    ) -> None:
        """It is computed again and replaced."""
        expected = train(sample_folder, cache_of(tmp_path))
        tamper(entries(tmp_path)[2])
        assert_equal(expected, train(sample_folder, cache_of(tmp_path)))
        mended = cache_of(tmp_path)
        train(sample_folder, mended)
        assert mended.n_hits == 5

    def test_other_code_has_another_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The tables of an older module are never used."""
        before = training.feature_version()
        monkeypatch.setattr(training, "SOURCE_SHA256", "changed")
        assert training.feature_version() != before
