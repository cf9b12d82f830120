"""The template in docs/own_model/ goes through a whole life of its own."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grain_quality
import joblib
import numpy as np
import pandas as pd
import pytest
from conftest import (
    BATCH,
    DOMAINS,
    FAST,
    OLD_SEASON_FILES,
    OWN_MODEL,
    ROOT,
    Domain,
    flags_of,
    make_home,
)
from make_samples import make_sample, write_samples

import model_registry
from pipeline_orchestrator import main, run_orchestrator
from pipeline_settings import Settings
from register_first_model import register_first_model
from training_module import load_training_module

WORDS_OF_STEMS = re.compile(r"(?i)\b\w*(?:(?<!sy)stems?\b|Stem(?=[A-Z])|count|track)\w*")
"""Of the default module: no other one's readers should meet them."""
WORDS = flags_of({**FAST, **DOMAINS["grain"].settings})
GOOD = "length_mm,width_mm,brightness,moisture_percent,quality\n6.5,3.2,170,12.1,sound\n"

SETTINGS = Settings(**DOMAINS["grain"].settings)  # type: ignore[arg-type]

own_model = pytest.mark.parametrize("domain", ["grain"], indirect=True)


def texts_of(home: Path) -> Iterator[str]:
    """Give everything that a store and the pages hold for a reader."""
    yield from (path.read_text() for path in (home / "reports").glob("*.html"))
    database = home / "mlflow_server/backend_db/mlflow.db"
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as store:
        for (table,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
            for row in store.execute(f'SELECT * FROM "{table}"').fetchall():
                yield from (cell for cell in row if isinstance(cell, str))


class TestModule:
    """The file that somebody copies."""

    def test_it_is_short(self) -> None:
        """At most 120 lines, `main` and blank lines included."""
        assert len((OWN_MODEL / "grain_quality.py").read_text().splitlines()) <= 120

    @pytest.mark.parametrize(
        ("content", "text"),
        [
            (b"", "each of these columns must be there once: length_mm, width_mm, brightness"),
            (GOOD.replace("brightness", "light"), "must be there once: brightness"),
            (GOOD.replace("width_mm", "length_mm"), "must be there once: length_mm, width_mm"),
            (GOOD.splitlines()[0], "no grain in it"),
            (GOOD.replace("sound", ""), "grain 1: quality is '', not sound, broken, mouldy"),
            (GOOD.replace("sound", "Sound"), "grain 1: quality is 'Sound', not sound"),
            (GOOD.replace("170", "bright"), "grain 1: brightness is 'bright', not a number"),
            (GOOD.replace("170", ""), "grain 1: brightness is '', not a number"),
            (GOOD.replace("170", "nan"), "grain 1: brightness is 'nan'"),
            (GOOD.replace("170", "-1"), "grain 1: brightness is '-1'"),
            (GOOD.replace("170", "9" * 400), "grain 1: brightness is '999"),
            (GOOD + "6.5,3.2\n", "grain 2 has not as many cells as the header"),
            (GOOD + "6.5,3.2,170,12.1,sound,1\n", "grain 2 has not as many cells"),
            (GOOD + '"6.5', "no CSV in UTF-8: unexpected end of data"),
            (b"\xff\xfe\x00", "no CSV in UTF-8: 'utf-8' codec can't decode"),
        ],
    )
    def test_nothing_is_guessed(self, content: str | bytes, text: str) -> None:
        """What is wrong with a file is said with its place."""
        content = content.encode() if isinstance(content, str) else content
        with pytest.raises(ValueError, match=re.escape(text)):
            grain_quality.parse_ground_truth(content, "a.csv")

    def test_what_is_read(self) -> None:
        """Numbers and the class; other columns, a byte order mark and CRLF do no harm."""
        content = b"\xef\xbb\xbf" + GOOD.replace("\n", ",x\r\n").encode()
        (grain,) = grain_quality.parse_ground_truth(content, "a.csv").to_dict("records")
        assert grain == {
            **{"length_mm": 6.5, "width_mm": 3.2, "brightness": 170.0},
            **{"moisture_percent": 12.1, "quality": "sound"},
        }

    def test_the_error_rate(self) -> None:
        """In percent of the grains of each file."""
        rows = pd.DataFrame(
            {"file": ["a", "a", "a", "a", "b"], "quality": ["sound"] * 4 + ["mouldy"]}
        )
        predicted = np.array(["sound", "broken", "sound", "sound", "sound"])
        errors = grain_quality.count_errors(rows, predicted)
        assert errors["error_rate"].to_dict() == {"a": 25.0, "b": 100.0}

    def test_the_same_seed_gives_the_same_model(self, tmp_path: Path) -> None:
        """And the maker of samples the same files."""
        write_samples(tmp_path, 3, "old", 1)
        one, two = (
            grain_quality.train_classification_model(tmp_path, n_folds=3, random_state=1)
            for _ in range(2)
        )
        assert one.out_of_fold.equals(two.out_of_fold)
        rows = make_sample(7, "new")[list(grain_quality.FEATURES)]
        assert (one.model.predict(rows) == two.model.predict(rows)).all()
        assert make_sample(7, "new").equals(make_sample(7, "new"))

    def test_too_few_files(self, tmp_path: Path) -> None:
        """Fewer than folds."""
        write_samples(tmp_path, 2, "old", 1)
        with pytest.raises(ValueError, match="holds 2 samples, 3 folds need as many"):
            grain_quality.train_classification_model(tmp_path, n_folds=3, random_state=1)

    def test_the_first_model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It lies where registration looks for it, closed to others; too few files: one line."""
        home = make_home(tmp_path / "home")
        write_samples(home / "used_gts", 4, "old", 1)
        monkeypatch.setattr(sys, "argv", ["grain_quality.py", "--home", str(home)])
        with pytest.raises(SystemExit, match=r"^error: \S+ holds 4 samples, 5 folds need as many$"):
            grain_quality.main()
        write_samples(home / "used_gts", 5, "old", 1)
        assert grain_quality.main() == 0
        pickle = home / load_training_module(SETTINGS).first_model_path
        assert pickle.stat().st_mode & 0o022 == 0
        assert list(joblib.load(pickle).classes_) == sorted(grain_quality.CLASSES)

    def test_a_class_of_its_own_has_its_own_name(self, tmp_path: Path) -> None:
        """Run as a script, a copy pickles its classes for other programs, not for itself."""
        source = (OWN_MODEL / "grain_quality.py").read_text()
        grown = source.replace(
            "\n\ndef main(", "\n\nclass Forest(RandomForestClassifier):\n    pass\n\n\ndef main("
        ).replace("forest = RandomForestClassifier(", "forest = Forest(")
        (tmp_path / "grain_quality.py").write_text(grown)
        home = make_home(tmp_path / "home")
        write_samples(home / "used_gts", 5, "old", 1)
        command = [sys.executable, str(tmp_path / "grain_quality.py"), "--home", str(home)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"wrote {home}/model/grain_quality.pkl: ")
        content = (home / "model/grain_quality.pkl").read_bytes()
        assert b"grain_quality" in content
        assert b"__main__" not in content


@own_model
@pytest.mark.usefixtures("fast_training", "domain")
class TestLife:
    """Its own home, store and registered name."""

    def test_a_whole_cycle(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Production fails on the new season and is replaced; nobody reads of other things."""
        said: list[str] = []

        def run(*words: str) -> str:
            assert main([*words, *WORDS, "--home", str(home)]) == 0
            captured = capsys.readouterr()
            said.extend(captured)
            return str(captured.out)

        (home / "new_gts" / "bad.csv").write_text(GOOD.replace("sound", "rotten"))
        dry = run("run", "--dry-run")
        assert dry.startswith("dry run, nothing changed: promoted: the challenger")
        promoted = run("run", "--verbose")
        found = re.search(r"version 2 replaces version 1: (\S+) % -> (\S+) % on 6", promoted)
        assert found is not None
        before, after = map(float, found.groups())
        assert before > 40
        assert after < 10
        assert "recording   production  challenger\nnew_0" in said[-1]
        assert run("run") == "waiting: 0 of 6 new ground truth files\n"
        assert run("status").startswith("production: version 2 since ")
        assert "1 -> 2  promotion" in run("history")
        assert "version 1 is production" in run("rollback")
        assert len(list((home / "used_gts").glob("*.csv"))) == OLD_SEASON_FILES + BATCH
        (page,) = (home / "reports").glob("*_promoted.html")
        for text in (
            *("GrainQuality", "Sizes are in mm", "new grains against"),
            "grain 1: quality is &#x27;rotten&#x27;",
        ):
            assert text in page.read_text(), text
        for text in (*said, *texts_of(home)):
            elsewhere = text.replace(str(ROOT), "").replace(str(home), "")
            assert WORDS_OF_STEMS.findall(elsewhere) == []

    def test_serving_takes_rows_as_they_are(self, home: Path) -> None:
        """Without the name of a file; the signature tells columns and types."""
        import mlflow

        settings = Settings(home=home, **DOMAINS["grain"].settings)  # type: ignore[arg-type]
        mlflow.set_tracking_uri(settings.store_uri)
        model = mlflow.pyfunc.load_model("models:/GrainQuality@production")
        rows = make_sample(7, "old")
        predicted = model.predict(rows.drop(columns="quality"))
        assert (predicted == rows["quality"]).mean() > 0.9
        assert model.metadata.signature.inputs.input_names() == list(grain_quality.FEATURES)
        assert [str(one) for one in model.metadata.signature.outputs.input_types()] == [
            "DataType.string"
        ]


@pytest.mark.slow
@pytest.mark.usefixtures("fast_training")
def test_two_models_side_by_side(
    home: Path, tmp_path: Path, template_of: Callable[[Domain], Path], settings_of: Any
) -> None:
    """One store, two names: each home promotes its own and leaves the other alone."""
    grain = DOMAINS["grain"]
    second = make_home(tmp_path / "second")
    for name in ("new_gts", "used_gts", "model"):
        shutil.copytree(template_of(grain) / name, second / name, dirs_exist_ok=True)
    stems = settings_of(home)
    grains = settings_of(second, tracking_uri=stems.store_uri, **grain.settings)
    register_first_model(grains)
    assert run_orchestrator(grains).message.startswith("promoted: version 2 replaces version 1")
    assert model_registry.open_registry(stems).production_number() == 1
    assert run_orchestrator(stems).message.startswith("promoted: version 2 replaces version 1")
    assert model_registry.open_registry(grains).production_number() == 2
    assert len(list((second / "used_gts").glob("*.csv"))) == OLD_SEASON_FILES + BATCH
