"""What the pipeline asks of a training module, and what it says of one that lacks it."""

from __future__ import annotations

import itertools
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import DOMAINS, Domain, both_modules, make_home, write_home
from sample_gts import write_recordings

import register_first_model
from pipeline_orchestrator import main
from retraining.contract import CONTRACT, NEEDED, Entry
from retraining.errors import PipelineError
from retraining.files import UnusableFile, waiting_names
from retraining.registry import open_registry
from retraining.settings import Settings
from retraining.training import Training, load_training_module

WHOLE = """
import pandas as pd

MODEL_COLUMNS, TRUSTED_TYPES, PACKAGES = ("size",), (), ("pandas",)
ERROR_NAME, ERROR_UNIT, ERROR_COLUMN, THRESHOLD = "error", "mm", "off", 3

class SizeModel:
    def predict(self, rows):
        return rows["size"]

def parse_ground_truth(content, name):
    return pd.DataFrame({"size": [float(content)]})

def fit(examples, random_state):
    return SizeModel()

def count_errors(rows, predicted):
    return pd.DataFrame({"off": 0.0}, index=pd.Index(rows["file"].unique(), name="file"))
"""
"""A module with everything that is needed, and nothing else."""


NEEDED_ENTRIES = [entry for entry in CONTRACT if entry.default is NEEDED]
OPTIONAL_ENTRIES = [entry for entry in CONTRACT if entry.default is not NEEDED]

CHANGES_ITSELF = """
from pathlib import Path

_parse = parse_ground_truth

def parse_ground_truth(content, name):
    Path(__file__).write_text("# another one")
    return _parse(content, name)
"""


class SizeModel:
    """Predicts what it is given, and remembers that."""

    def predict(self, rows: Any) -> Any:
        self.columns = list(rows.columns)
        return rows["size"]


@pytest.fixture
def module_of(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Give a writer of modules; each has a name of its own, for modules are loaded once."""
    before, folders = set(sys.modules), list(sys.path)
    numbers = itertools.count()

    def write(source: str, name: str = "") -> Path:
        path = tmp_path / f"{name or f'module_{next(numbers)}'}.py"
        path.write_text(source)
        return path

    yield write
    sys.path[:] = folders
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def load(path: Path) -> Training:
    """Load a module as a command does."""
    return load_training_module(Settings(training_module=str(path)))


def refusal(path: Path) -> str:
    """Return the one line with which a module is refused."""
    with pytest.raises(PipelineError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestLimits:
    """A recording that would take memory or time without end is refused first."""

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    @pytest.mark.parametrize(("n_rows", "is_read"), [(3, True), (4, False)])
    def test_rows_are_counted_before_the_module_sees_them(
        self, monkeypatch: pytest.MonkeyPatch, end: str, n_rows: int, is_read: bool
    ) -> None:
        """By line ends, whichever they are; also of a file that nobody has checked."""
        training = load_training_module(Settings(max_rows=3))
        content = end.join(["head", *["row"] * n_rows, ""]).encode()
        seen: list[str] = []
        for name in ("parse_ground_truth", "parse_unlabelled"):
            monkeypatch.setattr(training.module, name, lambda *_, name=name: seen.append(name))
        for parse in (training.parse, training.parse_unlabelled):
            with pytest.raises((PipelineError, UnusableFile)) as caught:
                parse(content, "a.csv")
            if not is_read:
                assert str(caught.value) == "holds more than 3 rows; split it or raise --max-rows"
        assert seen == (["parse_ground_truth", "parse_unlabelled"] if is_read else [])

    @pytest.mark.parametrize(("n_objects", "is_read"), [(2, True), (3, False)])
    def test_objects_are_counted_before_anything_is_made_of_them(
        self, tmp_path: Path, n_objects: int, is_read: bool
    ) -> None:
        """As many as the module's OBJECT_COLUMN tells apart."""
        (path,) = write_recordings(tmp_path, 1)
        rows = pd.read_csv(path)
        rows = rows[rows["object_id"].isin(rows["object_id"].unique()[:n_objects])]
        rows.to_csv(path, index=False)
        training = load_training_module(Settings(max_objects=2))
        if is_read:
            assert len(training.read(path)[0]) == len(rows)
            return
        with pytest.raises(UnusableFile, match="more than 2 objects; split it or raise --max-obj"):
            training.read(path)

    def test_another_process_keeps_them(self) -> None:
        """Wherever a recording is read."""
        training = load_training_module(Settings(max_rows=3))
        assert pickle.loads(pickle.dumps(training)).limits == Settings(max_rows=3).limits


class TestLoading:
    """Checked when it is loaded, before anything is read or trained."""

    def test_what_is_needed_is_enough(self, module_of: Callable[..., Path]) -> None:
        """Everything optional has its documented default."""
        training = load(module_of(WHOLE))
        assert (training.error_name, training.error_unit) == ("error", "mm")
        assert (training.counted_things, training.described_things) == ("", "rows")
        assert training.optional_columns == ()
        assert training.threshold == 3
        assert training.label_column == ""
        assert training.first_model_path == Path("model", f"{training.name}.pkl")
        rows = training.parse(b"6.5", "a.csv")
        assert rows.to_dict("list") == {"size": [6.5], "file": ["a.csv"]}
        assert training.data_quality_note(rows) == ""
        assert training.errors_without_a_model(rows) is None
        model = SizeModel()
        assert training.as_row_model(model) is model
        assert training.errors(model, [rows])["error"].to_dict() == {"a.csv": 0.0}
        assert training.examples(rows) is rows
        assert training.session(rows) == ""
        assert training.parse_unlabelled(b"6.5", "a.csv").equals(rows)
        assert model.columns == ["size"]

    @both_modules
    def test_the_modules_of_this_project_keep_it(self, domain: Domain) -> None:
        """The default one and the template."""
        training = load_training_module(Settings(**domain.settings))  # type: ignore[arg-type]
        assert training.module is domain.module

    @pytest.mark.parametrize(
        "entry",
        [entry for entry in NEEDED_ENTRIES if isinstance(entry.kind, str)],
        ids=lambda entry: entry.name,
    )
    def test_a_missing_constant_is_named(
        self, module_of: Callable[..., Path], entry: Entry
    ) -> None:
        """With its kind and where to read on; so is one of another kind."""
        kind = "a tuple of texts" if entry.kind == "texts" else f"a {entry.kind}"
        for change in (f"del {entry.name}", f"{entry.name} = object()"):
            path = module_of(f"{WHOLE}\n{change}\n")
            expected = f"{path} lacks the constant {entry.name}, {kind}; see docs/own_model.md"
            assert refusal(path) == expected

    @pytest.mark.parametrize(
        "entry",
        [entry for entry in NEEDED_ENTRIES if not isinstance(entry.kind, str)],
        ids=lambda entry: entry.name,
    )
    def test_a_missing_or_wrong_function_is_named(
        self, module_of: Callable[..., Path], entry: Entry
    ) -> None:
        """With the arguments that it is called with."""
        name = entry.name
        for change in (f"del {name}", f"{name} = 'a text'"):
            path = module_of(f"{WHOLE}\n{change}\n")
            assert f"{path} lacks the function {entry.signature}; see" in refusal(path)
        path = module_of(f"{WHOLE}\ndef {name}(one):\n    return one\n")
        assert f"{path}: {name} cannot be called as {entry.signature}: " in refusal(path)

    @pytest.mark.parametrize("entry", OPTIONAL_ENTRIES, ids=lambda entry: entry.name)
    def test_what_is_optional_is_checked_where_it_is_there(
        self, module_of: Callable[..., Path], entry: Entry
    ) -> None:
        """A wrong one would fail at night."""
        path = module_of(f"{WHOLE}\n{entry.name} = object()\n")
        assert f"{path} lacks the " in refusal(path)
        assert entry.signature in refusal(path)

    def test_a_module_of_the_first_edition_is_told_what_it_lacks(
        self, module_of: Callable[..., Path]
    ) -> None:
        """It trained by itself."""
        path = module_of(WHOLE.replace("def fit", "def train_classification_model"))
        assert "lacks the function fit(examples, random_state)" in refusal(path)

    def test_it_travels_by_name(self, module_of: Callable[..., Path]) -> None:
        """Another process imports the module itself."""
        training = load(module_of(WHOLE))
        there = pickle.loads(pickle.dumps(training))
        assert (there.module, there.path) == (training.module, training.path)

    @pytest.mark.parametrize(
        ("source", "text"),
        [
            ("def wrong(:\n", "does not load: SyntaxError: "),
            ("import no_such_package\n", "does not load: ModuleNotFoundError: No module named"),
            ("1 / 0\n", "does not load: ZeroDivisionError: division by zero"),
            ("import sys; sys.exit(3)\n", "does not load: SystemExit: 3"),
            (b"\xff\x00".decode("latin-1"), "does not load: "),
        ],
        ids=["syntax", "missing package", "fails", "ends", "binary"],
    )
    def test_a_module_that_does_not_import(
        self, module_of: Callable[..., Path], source: str, text: str
    ) -> None:
        """With Python's own reason; mended, it loads in the same process."""
        path = module_of(source)
        assert refusal(path).startswith(f"{path} {text}")
        path.write_text(WHOLE)
        assert load(path).name == path.stem

    def test_a_package_that_is_not_installed(self, module_of: Callable[..., Path]) -> None:
        """A stored model would need it."""
        path = module_of(f"{WHOLE}\nPACKAGES = ('pandas', 'no-such-package')\n")
        assert refusal(path).startswith(
            f"{path}: PACKAGES names no-such-package, not installed; see"
        )

    def test_a_name_that_is_taken(self, module_of: Callable[..., Path]) -> None:
        """Stored models would refer to the other one."""
        path = module_of(WHOLE, "json")
        assert refusal(path) == f"{path}: another module is called 'json'; rename the file"


class TestCommands:
    """The real commands say the same, in one line."""

    def status(self, capsys: pytest.CaptureFixture[str], run: Callable[[], int]) -> tuple[int, str]:
        """Return the exit status and the only line of standard error."""
        status = run()
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        return status, captured.err

    @pytest.mark.parametrize("name", ["nowhere.py", "no_such_name"])
    def test_a_file_that_is_not_there(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
    ) -> None:
        """Status 2 at every start, also on a night without news."""
        home = make_home(tmp_path / "home")
        words = ["--home", str(home), "--training-module", name]
        for run in (lambda: main(words), lambda: register_first_model.main(words)):
            status, line = self.status(capsys, run)
            assert status == 2
            assert line.startswith(f"error: --training-module {name}: there is no file /")

    def test_a_module_that_is_wrong(
        self, tmp_path: Path, module_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Status 1, and no store is created."""
        home = make_home(tmp_path / "home")
        path = module_of(f"{WHOLE}\ndel count_errors\n")
        words = ["--home", str(home), "--training-module", str(path)]
        status, line = self.status(capsys, lambda: register_first_model.main(words))
        assert status == 1
        assert line.startswith(f"error: {path} lacks the function count_errors(rows, predicted)")
        assert not (home / "mlflow_server/backend_db/mlflow.db").exists()

    def test_a_registered_home_says_it_too(
        self, home: Path, module_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Before a file is moved or a run is begun."""
        path = module_of("import no_such_package\n")
        (home / "new_gts" / "bad.csv").write_text("nonsense\n")
        words = ["--min-new-files", "1", "--quiet", "--training-module", str(path)]
        status, line = self.status(capsys, lambda: main([*words, "--home", str(home)]))
        assert (status, line.startswith(f"error: {path} does not load: ")) == (1, True)
        assert (home / "new_gts" / "bad.csv").exists()

    def test_the_module_of_another_model_moves_nothing(
        self, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Somebody forgot or mixed up --training-module: the files are not to blame."""
        before = waiting_names(home / "new_gts")
        words = ["--min-new-files", "1", "--quiet", "--home", str(home)]
        path = DOMAINS["grain"].settings["training_module"]
        status, line = self.status(capsys, lambda: main([*words, "--training-module", path]))
        assert status == 1
        assert line.startswith(
            "error: grain_quality.py can use none of the new files, the first of them "
        )
        assert line.endswith(
            "version 1 was made by train_classification_model.py: name the right one with "
            "--training-module; no file was moved\n"
        )
        assert waiting_names(home / "new_gts") == before


class TestWhatItReturns:
    """Checked when it comes back."""

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            ("return None", "the table of count_errors has no column 'off'; see"),
            (
                "return pd.DataFrame({'off': [0.0, 0.0]}, index=['a.csv', 'a.csv'])",
                "the table of count_errors must have one row for each file; see",
            ),
            (
                "return pd.DataFrame({'off': [0.0]}, index=['b.csv'])",
                "the table of count_errors must have one row for each file; see",
            ),
            (
                "return pd.DataFrame({'off': [-0.5]}, index=['a.csv'])",
                "count_errors gave the error -0.5; it must be a number, at least 0, which is best;",
            ),
            (
                "return pd.DataFrame({'off': [float('nan')]}, index=['a.csv'])",
                "count_errors gave the error nan; it must be a number, at least 0",
            ),
            (
                "return pd.DataFrame({'off': [float('inf')]}, index=['a.csv'])",
                "count_errors gave the error inf; it must be a number, at least 0",
            ),
            (
                "return pd.DataFrame({'off': ['much']}, index=['a.csv'])",
                "count_errors gave the error much; it must be a number, at least 0",
            ),
        ],
        ids=["none", "twice", "another file", "negative", "missing", "infinite", "text"],
    )
    def test_a_table_that_is_none_of_errors(
        self, module_of: Callable[..., Path], body: str, text: str
    ) -> None:
        """A wrong one would make a bad model look healthy for ever."""
        path = module_of(f"{WHOLE}\ndef count_errors(rows, predicted):\n    {body}\n")
        training = load(path)
        with pytest.raises(PipelineError) as caught:
            training.errors(SizeModel(), [training.parse(b"6.5", "a.csv")])
        assert str(caught.value).startswith(f"{path.name}: {text}")

    @pytest.mark.parametrize(
        "function",
        ["parse_ground_truth", "data_quality_note", "predict_without_a_model", "count_errors"],
    )
    def test_a_mistake_is_told_with_its_line(
        self, module_of: Callable[..., Path], function: str
    ) -> None:
        """The last line of the module that was at work."""
        source = f"{WHOLE}\ndef {function}(*values, **named):\n    return wrong + 1\n"
        training = load(module_of(source))
        with pytest.raises(PipelineError) as caught:
            rows = training.parse(b"6.5", "a.csv")
            training.data_quality_note(rows)
            training.errors_without_a_model(rows)
            training.errors(SizeModel(), [rows])
        line = len(source.splitlines())
        assert str(caught.value) == (
            f"{training.path.name}, line {line}: {function} fails: NameError: "
            "name 'wrong' is not defined"
        )

    def test_a_file_that_becomes_no_table(self, module_of: Callable[..., Path]) -> None:
        """The module forgot to return it."""
        path = module_of(f"{WHOLE}\ndef parse_ground_truth(content, name):\n    pass\n")
        with pytest.raises(PipelineError, match="parse_ground_truth returned no table but None"):
            load(path).parse(b"6.5", "a.csv")

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            ("pass", "fit returned a NoneType, which cannot predict; see"),
            ("return {}['a']", "fit fails: KeyError: 'a'"),
            ("raise ValueError('too few')", "^cannot train: too few$"),
        ],
    )
    def test_a_fit_with_a_mistake(
        self, module_of: Callable[..., Path], body: str, text: str
    ) -> None:
        """In one line as well; a ValueError says what the recordings lack."""
        training = load(module_of(f"{WHOLE}\ndef fit(examples, random_state):\n    {body}\n"))
        with pytest.raises(PipelineError, match=text):
            training.fit(training.parse(b"6.5", "a.csv"), 0)

    @pytest.mark.parametrize("function", ["examples", "session", "predict_examples"])
    def test_a_mistake_in_what_is_optional(
        self, module_of: Callable[..., Path], function: str
    ) -> None:
        """With its line, too."""
        source = f"{WHOLE}\ndef {function}(*values):\n    return wrong\n"
        training = load(module_of(source))
        rows = training.parse(b"6.5", "a.csv")
        calls: dict[str, Callable[[], Any]] = {
            "examples": lambda: training.examples(rows),
            "session": lambda: training.session(rows),
            "predict_examples": lambda: training.predict_examples(SizeModel(), rows),
        }
        with pytest.raises(PipelineError, match=f"line {len(source.splitlines())}: {function} "):
            calls[function]()

    def test_a_table_without_its_column(self, module_of: Callable[..., Path]) -> None:
        """The file, the function and the column are named."""
        path = module_of(WHOLE.replace('{"off": 0.0}', '{"other": 0.0}'))
        training = load(path)
        with pytest.raises(PipelineError) as caught:
            training.errors(SizeModel(), [training.parse(b"6.5", "a.csv")])
        assert str(caught.value) == (
            f"{path.name}: the table of count_errors has no column 'off'; see docs/own_model.md"
        )

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            ("return next(iter(()))", "StopIteration: "),
            ("import csv; raise csv.Error('odd')", "Error: odd"),
            ("return {}['size']", "KeyError: 'size'"),
        ],
    )
    def test_a_file_that_cannot_be_read(
        self, module_of: Callable[..., Path], body: str, text: str
    ) -> None:
        """The file is to blame, and the others go on."""
        path = module_of(f"{WHOLE}\ndef parse_ground_truth(content, name):\n    {body}\n")
        with pytest.raises(ValueError, match=text):
            load(path).parse(b"6.5", "a.csv")

    def test_a_column_file_of_its_own(self, module_of: Callable[..., Path]) -> None:
        """Recordings could not be told apart."""
        path = module_of(WHOLE.replace('{"size": [float(content)]}', '{"file": ["video.mp4"]}'))
        with pytest.raises(PipelineError, match="the column 'file' must hold the name of the file"):
            load(path).parse(b"6.5", "a.csv")


@pytest.mark.usefixtures("fast_training")
class TestWhileItRuns:
    """A cycle with a module that changes, or that cannot do what is asked."""

    def test_a_file_that_changes_is_not_stored(
        self, tmp_path: Path, module_of: Callable[..., Path]
    ) -> None:
        """No version has code beside it that did not make it."""
        grain = DOMAINS["grain"]
        home = make_home(tmp_path / "home")
        write_home(home, grain)
        source = Path(grain.module.__file__).read_text()
        path = module_of(f"{source}\n{CHANGES_ITSELF}", "restless")
        (home / "model/grain_quality.pkl").rename(home / "model/restless.pkl")
        settings = Settings(home=home, training_module=str(path), model_name="Restless")
        with pytest.raises(PipelineError) as caught:
            register_first_model.register_first_model(settings)
        assert str(caught.value) == (
            f"{path} was changed while this ran; nothing is registered with code that did not "
            "make it: run again"
        )
        assert open_registry(settings).production.number() is None

    def test_a_type_that_is_not_trusted(
        self, tmp_path: Path, module_of: Callable[..., Path]
    ) -> None:
        """The message has what to add."""
        grain = DOMAINS["grain"]
        home = make_home(tmp_path / "home")
        write_home(home, grain)
        source = Path(grain.module.__file__).read_text()
        path = module_of(f"{source}\nTRUSTED_TYPES = ()\n", "suspicious")
        (home / "model/grain_quality.pkl").rename(home / "model/suspicious.pkl")
        settings = Settings(home=home, training_module=str(path), model_name="Suspicious")
        with pytest.raises(PipelineError) as caught:
            register_first_model.register_first_model(settings)
        assert str(caught.value) == (
            "suspicious.py: the model holds types that TRUSTED_TYPES lacks: "
            "sklearn.tree._tree.Tree; add them if you trust them"
        )
        assert open_registry(settings).production.number() is None
