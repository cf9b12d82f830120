"""The pipeline reads, splits, fits and scores: for every module in the same way."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from retraining.cross_validation import Resources, fit_on, input_example, train
from retraining.errors import PipelineError
from retraining.settings import Settings
from retraining.training import TrainedModel, Training, load_training_module

MODULE = """
import numpy as np
import pandas as pd

MODEL_COLUMNS, TRUSTED_TYPES, PACKAGES = ("size", "colour"), (), ("pandas",)
ERROR_NAME, ERROR_UNIT, ERROR_COLUMN, THRESHOLD = "error", "%", "wrong", 10
LABEL_COLUMN = "good"
seen, fitted = [], []

def parse_ground_truth(content, name):
    rows = pd.read_csv(__import__("io").BytesIO(content))
    if not len(rows):
        raise ValueError("there is nothing in it")
    return rows

class Model:
    def __init__(self, known):
        self.known = known

    def predict(self, rows):
        seen.append((list(rows.columns), len(rows)))
        return (rows["size"] > 5).to_numpy()

def fit(examples, random_state):
    fitted.append((set(examples["file"]), len(examples), random_state))
    return Model(set(examples["file"]))

def count_errors(rows, predicted):
    assert rows["file"].nunique() == 1
    wrong = 100 * float((predicted != rows["good"].to_numpy()).mean())
    return pd.DataFrame({"wrong": [wrong]}, index=[rows["file"].iloc[0]])
"""


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[..., Training]]:
    """Give a loader of modules, with what is added to or changed in the source."""
    folders = list(sys.path)

    def make(addition: str = "", source: str = MODULE) -> Training:
        path = tmp_path / "its_module.py"
        path.write_text(f"{source}\n{addition}\n")
        return load_training_module(Settings(training_module=str(path)))

    yield make
    sys.path[:] = folders
    sys.modules.pop("its_module", None)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Give eight recordings of a size, a colour and whether it is good."""
    found = []
    random = np.random.default_rng(0)
    for number in range(8):
        size = random.uniform(0, 10, 6 + number)
        table = pd.DataFrame({"size": size, "colour": number, "good": size > 5})
        found.append(tmp_path / f"r{number}.csv")
        table.to_csv(found[-1], index=False)
    return found


def trained(training: Training, paths: list[Path], **resources: Any) -> TrainedModel:
    """Train in this process with four folds."""
    found, _ = train(
        training, paths, n_folds=4, random_state=3, resources=Resources(n_jobs=1, **resources)
    )
    return found


class TestWhatAModuleIsGiven:
    """The promises of the contract."""

    def test_fit_never_sees_what_is_scored(
        self, load: Callable[..., Training], paths: list[Path]
    ) -> None:
        """Each recording is left out once; the last fit has them all."""
        training = load()
        result = trained(training, paths)
        *folds, (everything, n_examples, seed) = training.module.fitted
        assert everything == {path.name for path in paths}
        assert (n_examples, seed) == (sum(6 + number for number in range(8)), 3)
        left_out = [everything - names for names, _, _ in folds]
        assert sorted(name for names in left_out for name in names) == sorted(everything)
        assert list(result.out_of_fold.index) == [path.name for path in paths]
        assert result.model.known == everything

    def test_predict_gets_one_recording_without_the_truth(
        self, load: Callable[..., Training], paths: list[Path]
    ) -> None:
        """Whole, with the columns of the contract and no other."""
        training = load("LABEL_COLUMN = ''")
        trained(training, paths)
        columns, lengths = zip(*training.module.seen, strict=True)
        assert set(map(tuple, columns)) == {("size", "colour")}
        assert sorted(lengths) == sorted([6 + number for number in range(8)] * 2)

    def test_examples_are_made_of_one_recording_at_a_time(
        self, load: Callable[..., Training], paths: list[Path]
    ) -> None:
        """In order of their names."""
        training = load(
            "made = []\n"
            "def examples(rows):\n"
            "    made.append(set(rows['file']))\n"
            "    return rows.tail(2)\n"
        )
        trained(training, paths[::-1])
        assert training.module.made == [{path.name} for path in paths]
        assert training.module.fitted[-1][1] == 2 * len(paths)

    def test_what_is_called_out_of_fold_is_not_asked(
        self, load: Callable[..., Training], paths: list[Path]
    ) -> None:
        """A model that knows its recordings by heart is found out on the others."""
        training = load(
            "class Parrot(Model):\n"
            "    def predict(self, rows):\n"
            "        known = rows['file'].iloc[0] in self.known\n"
            "        return (rows['size'] > 5).to_numpy() if known else np.zeros(len(rows), bool)\n"
            "def fit(examples, random_state):\n"
            "    return Parrot(set(examples['file']))\n"
            "MODEL_COLUMNS = ('size', 'file')\n"
            "LABEL_COLUMN = ''\n"
        )
        result = trained(training, paths)
        assert (result.in_sample["error"] == 0).all()
        assert (result.out_of_fold["error"] > 0).all()


class TestSessions:
    """Recordings that belong together are never split."""

    def test_a_session_is_in_one_fold(
        self, load: Callable[..., Training], paths: list[Path]
    ) -> None:
        """Two recordings each, four folds."""
        training = load("def session(rows):\n    return rows['colour'].iloc[0] // 2\n")
        trained(training, paths)
        everything = {path.name for path in paths}
        left_out = {frozenset(everything - names) for names, _, _ in training.module.fitted[:-1]}
        pairs = [{f"r{number}.csv", f"r{number + 1}.csv"} for number in range(0, 8, 2)]
        assert left_out == set(map(frozenset, pairs))

    def test_there_are_no_more_folds_than_sessions(
        self, load: Callable[..., Training], paths: list[Path]
    ) -> None:
        """Eight recordings of three sessions: three of the four folds."""
        training = load("def session(rows):\n    return rows['colour'].iloc[0] % 3\n")
        result = trained(training, paths)
        everything = {path.name for path in paths}
        left_out = {frozenset(everything - names) for names, _, _ in training.module.fitted[:-1]}
        of_three = [frozenset(f"r{n}.csv" for n in range(first, 8, 3)) for first in range(3)]
        assert left_out == set(of_three)
        assert result.sessions == {f"r{number}.csv": str(number % 3) for number in range(8)}

    def test_sessions_may_be_fewer_than_folds_where_recordings_are(
        self, load: Callable[..., Training], paths: list[Path]
    ) -> None:
        """Three recordings, two of one session: two folds of the four."""
        training = load(
            "def session(rows):\n    return 'together' if rows['colour'].iloc[0] < 2 else None\n"
        )
        result = trained(training, paths[:3])
        assert len(training.module.fitted) == 2 + 1
        assert result.sessions == {"r0.csv": "together", "r1.csv": "together"}

    @pytest.mark.parametrize("n_recordings", [2, 8])
    def test_one_session_is_too_few(
        self, load: Callable[..., Training], paths: list[Path], n_recordings: int
    ) -> None:
        """Nothing is left to test on."""
        training = load("def session(rows):\n    return 'the same'\n")
        with pytest.raises(PipelineError, match="^cannot train: all recordings are of one session"):
            trained(training, paths[:n_recordings])

    @pytest.mark.parametrize("nothing", ["''", "None"])
    def test_without_a_session_all_is_as_without_the_function(
        self, load: Callable[..., Training], paths: list[Path], nothing: str
    ) -> None:
        """The same folds and errors to the last bit; too few recordings are too few."""
        without = trained(load(), paths)
        training = load(f"def session(rows):\n    return {nothing}\n")
        found = trained(training, paths)
        pd.testing.assert_frame_equal(found.out_of_fold, without.out_of_fold, check_exact=True)
        assert found.importance is not None
        assert without.importance is not None
        pd.testing.assert_frame_equal(found.importance, without.importance, check_exact=True)
        assert found.sessions == without.sessions == {}
        with pytest.raises(PipelineError, match="there are 3 recordings; 4 folds need at least 4"):
            trained(training, paths[:3])


class TestImportance:
    """What a model relies on, by the examples of every module."""

    def test_a_feature_that_is_used_counts(
        self, load: Callable[..., Training], paths: list[Path]
    ) -> None:
        """In percentage points of examples; one that is not used counts nothing."""
        importance = trained(load(), paths).importance
        assert importance is not None
        assert list(importance.index) == ["size", "colour"]
        assert importance["mean"]["size"] > 10
        assert importance["mean"]["colour"] == 0

    @pytest.mark.parametrize(
        "addition",
        ["LABEL_COLUMN = ''", "def examples(rows):\n    return rows.assign(colour='red')\n"],
        ids=["no label", "text"],
    )
    def test_no_numbers_or_no_label_is_no_importance(
        self, load: Callable[..., Training], paths: list[Path], addition: str
    ) -> None:
        """The report leaves the section out."""
        assert trained(load(addition), paths).importance is None

    def test_a_label_with_decimals_is_measured_in_its_unit(
        self, load: Callable[..., Training], paths: list[Path]
    ) -> None:
        """By the mean absolute error."""
        training = load(
            "LABEL_COLUMN = 'weight'\n"
            "def examples(rows):\n"
            "    return rows[['size', 'colour']].assign(weight=2.0 * rows['size'])\n"
            "def predict_examples(model, examples):\n"
            "    return 2.0 * examples['size']\n"
            "def fit(examples, random_state):\n"
            "    return Model(set())\n"
        )
        importance = trained(training, paths).importance
        assert importance is not None
        assert 0 < importance["mean"]["size"] < 20
        assert importance["mean"]["colour"] == 0


class TestWhatComesBack:
    """A trained model and what is known of it."""

    def test_the_first_rows_are_the_example(
        self, load: Callable[..., Training], paths: list[Path]
    ) -> None:
        """Five of two recordings, as a model takes them."""
        training = load()
        example = trained(training, paths).input_example
        assert (list(example.columns), len(example)) == (["size", "colour"], 10)
        rows = [training.read(path)[0] for path in paths[:2]]
        assert example.equals(input_example(training, rows))

    @pytest.mark.slow
    def test_two_processes_find_the_same(
        self, load: Callable[..., Training], paths: list[Path]
    ) -> None:
        """To the last bit."""
        training = load("fit_in = fit\ndef fit(examples, random_state):\n    return Model(set())\n")
        one = trained(training, paths)
        two, _ = train(training, paths, n_folds=4, random_state=3, resources=Resources(n_jobs=2))
        pd.testing.assert_frame_equal(one.out_of_fold, two.out_of_fold, check_exact=True)
        pd.testing.assert_frame_equal(one.in_sample, two.in_sample, check_exact=True)

    def test_a_fit_without_folds_is_that_of_all(
        self, load: Callable[..., Training], paths: list[Path]
    ) -> None:
        """For reproducing a version."""
        training = load()
        assert fit_on(training, paths[::-1], 3).known == trained(training, paths).model.known
        assert training.module.fitted[0] == training.module.fitted[-1]


class TestRefusals:
    """One line each."""

    def test_too_few_recordings(self, load: Callable[..., Training], paths: list[Path]) -> None:
        """With what to do."""
        with pytest.raises(PipelineError) as caught:
            trained(load(), paths[:3])
        assert str(caught.value) == (
            "cannot train: there are 3 recordings; 4 folds need at least 4: add recordings or "
            "lower --n-folds"
        )

    def test_a_file_that_cannot_be_read(
        self, load: Callable[..., Training], paths: list[Path]
    ) -> None:
        """Its ValueError is the message."""
        paths[2].write_text("size,colour,good\n")
        with pytest.raises(PipelineError, match=r"^cannot train: r2.csv: there is nothing in it$"):
            trained(load(), paths)


FIRST_EDITION = "2b7eed6"
"""The last commit whose training module trained by itself."""
PRINT_ITS_RESULT = """
import json, sys
from pathlib import Path
import train_classification_model as module
result = module.train_classification_model(Path(sys.argv[1]))
rows = [module.read_ground_truth(path) for path in sorted(Path(sys.argv[1]).iterdir())]
print(json.dumps({
    "out_of_fold": result.out_of_fold["error_percent"].to_dict(),
    "in_sample": result.in_sample["error_percent"].to_dict(),
    "importance": result.importance.to_dict(),
    "probabilities": [result.model.predict_proba(one)[:, 1].tolist() for one in rows],
}))
"""


@pytest.mark.slow
class TestFirstEdition:
    """What the stem module's own training found is found through the pipeline."""

    def test_every_number_is_equal_to_the_last_bit(
        self, shared_folder: Path, tmp_path: Path
    ) -> None:
        """On the 33 real recordings: errors, probabilities and what the model relies on."""
        git = ["git", "-C", str(ROOT), "archive", FIRST_EDITION, "train_classification_model.py"]
        archive = subprocess.run(git, capture_output=True, check=False)
        if archive.returncode:
            pytest.skip(f"no commit {FIRST_EDITION} in this checkout")
        subprocess.run(["tar", "-x", "-C", str(tmp_path)], input=archive.stdout, check=True)
        recordings = tmp_path / "recordings"
        recordings.mkdir()
        for path in (shared_folder / "gts").glob("*.csv"):
            shutil.copyfile(path, recordings / path.name)
        words = [sys.executable, "-c", PRINT_ITS_RESULT, str(recordings)]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
        expected = json.loads(done.stdout)
        training, paths = load_training_module(Settings()), sorted(recordings.iterdir())
        found, _ = train(training, paths, n_folds=5, random_state=42)
        assert found.importance is not None
        assert found.out_of_fold["error"].to_dict() == expected["out_of_fold"]
        assert found.in_sample["error"].to_dict() == expected["in_sample"]
        assert found.importance.to_dict() == expected["importance"]
        rows = [training.read(path)[0] for path in paths]
        probabilities = [found.model.predict_proba(one)[:, 1].tolist() for one in rows]
        assert probabilities == expected["probabilities"]
