"""`check`: what would fail at night shows by day, one line each, and nothing is changed."""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import DOMAINS, OWN_MODEL, make_home
from make_samples import write_samples
from sample_gts import write_recordings
from test_json import documented

from pipeline_orchestrator import main
from register_first_model import register_first_model
from retraining.commands import check as check_command
from retraining.commands.check import as_lines, check
from retraining.errors import PipelineError, TryLaterError
from retraining.files import exclusive_lock
from retraining.registry import open_registry
from retraining.settings import Settings
from retraining.training import load_training_module

TEMPLATE = (OWN_MODEL / "grain_quality.py").read_text().replace("N_TREES = 100", "N_TREES = 10")
FOREST = (
    "    forest = RandomForestClassifier(N_TREES, min_samples_leaf=2, random_state=random_state)"
)
OS = ("import csv\n", "import csv\nimport os\n")
RETURN = "    return forest.fit(examples[list(FEATURES)], examples[LABEL_COLUMN])"
CLASS = """
class Forest(RandomForestClassifier):
    def predict(self, rows):
        {body}


TRUSTED_TYPES = (*TRUSTED_TYPES, __name__ + ".Forest")
_fit = fit


def fit(examples, random_state):
    forest = Forest(N_TREES, random_state=random_state)
    return forest.fit(examples[list(FEATURES)], examples[LABEL_COLUMN])
"""
"""An estimator of the module's own."""
STATE = """return [self.__dict__.get('word', 'mouldy')] * len(rows)

    def __getstate__(self):
        state = super().__getstate__()
        state.pop('word', None)
        return state
"""
FORGETFUL = CLASS.format(body=STATE).replace(
    "    return forest.fit(", "    forest.word = 'sound'\n    return forest.fit("
)
OLD, NEW = 4, 3

Module = Callable[..., Settings]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Give a home of grain: checked samples, no store."""
    home = make_home(tmp_path / "home")
    write_samples(home / "used_gts", OLD, "old", seed=1, prefix="old")
    write_samples(home / "new_gts", NEW, "new", seed=2, prefix="new")
    return home


@pytest.fixture
def module_of(tmp_path: Path, home: Path) -> Iterator[Module]:
    """Give a writer of modules, each of another name; it returns settings that name it."""
    before, folders = set(sys.modules), list(sys.path)
    numbers = itertools.count()

    def write(*replaced: tuple[str, str], more: str = "", **settings: Any) -> Settings:
        source = TEMPLATE
        for old, new in replaced:
            assert old in source
            source = source.replace(old, new)
        path = tmp_path / f"checked_{next(numbers)}.py"
        path.write_text(f"{source}\n\n{more}")
        quick = {"n_folds": 3, "n_jobs": 1, "model_name": "Checked"}
        return Settings(home=home, training_module=str(path), **{**quick, **settings})

    yield write
    sys.path[:] = folders
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes seconds: the fit in a process of its own."""
    monkeypatch.setattr(check_command, "_fitted_beside", lambda *_: [])


def files_of(folder: Path) -> dict[Path, int]:
    """Return the files of a folder and when each was last written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


class TestNothingWrong:
    """A module that keeps the contract."""

    def test_the_template(
        self, home: Path, module_of: Module, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Three times the same model; what was measured; nothing is changed, no store needed."""
        settings, before = module_of(), files_of(home)
        words = ["--home", str(home), "--training-module", settings.training_module]
        assert main(["check", "--n-folds", "3", "--n-jobs", "1", *words]) == 0
        said, *facts = capsys.readouterr().out.splitlines()
        assert said.startswith("no finding: checked_0.py keeps the contract; it was fitted three")
        assert said.endswith("every prediction is the same bit for bit")
        assert facts[0] == "read: 7 recordings of 7 sessions in used_gts/ and new_gts/"
        assert facts[1] == (
            "told apart: by their rows, of which no two share many: parts are recognised, too"
        )
        assert facts[2].startswith("mean error: ")
        assert " % on 7 of them, each scored by a model that never saw it, without a" in facts[2]
        assert facts[3] == "before labels come: it tells expected_errors, doubtful_labels"
        assert facts[4].startswith("time for one recording: read ")
        assert all(f"{word} " in facts[4] for word in ("examples", "fit", "predict"))
        assert files_of(home) == before

    @pytest.mark.slow
    def test_the_module_of_the_stems(self, tmp_path: Path) -> None:
        """As it is, trees and all."""
        home = make_home(tmp_path / "stems")
        write_recordings(home / "used_gts", OLD, "old", seed=1, prefix="old")
        write_recordings(home / "new_gts", NEW, "new", seed=2, prefix="new")
        found = check(Settings(home=home, n_folds=3))
        assert found["findings"] == []
        assert (found["recordings"], found["examined"], found["unit"]) == (7, 7, "%")

    @pytest.mark.usefixtures("no_other_process")
    def test_as_json(
        self, home: Path, module_of: Module, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """One document; the numbers of the lines."""
        settings = module_of()
        words = ["--home", str(home), "--training-module", settings.training_module, "--json"]
        assert main(["check", "--n-folds", "3", "--n-jobs", "1", *words]) == 0
        document = json.loads(capsys.readouterr().out)
        assert set(document) == {"schema_version", *documented("check")}
        assert document["findings"] == []
        assert (document["recordings"], document["sessions"], document["examined"]) == (7, 7, 7)
        assert 0 <= document["mean_error"] < document["mean_error_without_a_model"] < 100
        assert set(document["seconds"]) == {"read", "examples", "fit", "predict"}

    @pytest.mark.usefixtures("no_other_process")
    def test_a_bounded_number_is_trained_on(
        self, home: Path, module_of: Module, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All are read; old and new ones are among those examined."""
        monkeypatch.setattr(check_command, "MOST_RECORDINGS", 4)
        found = check(module_of())
        assert (found["recordings"], found["examined"], found["findings"]) == (7, 4, [])

    @pytest.mark.slow
    @pytest.mark.usefixtures("no_other_process")
    def test_sessions(self, module_of: Module) -> None:
        """Their number, and the folds that they make; one session is a finding."""
        more = "def session(rows):\n    return rows['file'].iloc[0].partition('_')[0]\n"
        found = check(module_of(more=more))
        assert (found["sessions"], found["folds"], found["findings"]) == (2, 2, [])
        assert "folds: a retraining has 2, of whole sessions" in as_lines(found)
        found = check(module_of(more="def session(rows):\n    return 'the same'\n"))
        assert found["findings"] == [
            "there are not two sessions of recordings to learn from and to test on: put checked "
            "ones into used_gts/"
        ]

    @pytest.mark.usefixtures("no_other_process")
    def test_too_few_recordings(self, module_of: Module) -> None:
        """Where nothing names sessions they are a finding."""
        found = check(module_of(n_folds=8))
        assert found["findings"] == [
            "a retraining needs 8 recordings, one for each fold, and there are 7: add recordings "
            "or lower --n-folds"
        ]


class TestTheModule:
    """Mistakes, each with its remedy."""

    @pytest.mark.usefixtures("no_other_process")
    @pytest.mark.parametrize(
        ("replaced", "more", "finding"),
        [
            pytest.param(
                (),
                "TRUSTED_TYPES = ()",
                "NAME.py: the model holds types that TRUSTED_TYPES lacks: sklearn.tree._tree.Tree; "
                "add them if you trust them",
                id="types",
            ),
            pytest.param(
                (("random_state=random_state)", "random_state=None)"),),
                "",
                "fit gives another model the second time: it says something else of ",
                id="no seed",
            ),
            pytest.param(
                ((FOREST, FOREST.replace("=random_state", "=random_state + len(SEEN)")),),
                "SEEN = []\n_fit = fit\n\n\ndef fit(examples, random_state):\n"
                "    SEEN.append(1)\n    return _fit(examples, random_state)",
                "fit gives another model the second time: it says something else of ",
                id="state",
            ),
            *(
                pytest.param(
                    (OS, (FOREST, f"    {look}\n{FOREST}")),
                    "",
                    "NAME.py asks for the environment variable GRAIN_DEPTH, which another night or "
                    "machine sets otherwise: make it a constant of the module",
                    id=look,
                )
                for look in (
                    "os.environ.get('GRAIN_DEPTH')",
                    "os.getenv('GRAIN_DEPTH', '3')",
                    "'GRAIN_DEPTH' in os.environ",
                )
            ),
            pytest.param(
                ((FOREST, f"    open('more.csv').close()\n{FOREST}"),),
                "",
                "NAME.py: [Errno 2] No such file or directory: 'more.csv'; let it use nothing but",
                id="folder",
            ),
            pytest.param(
                (),
                CLASS.format(body="return super().predict(rows[[*FEATURES]]) if len(rows.quality) "
                "else rows['quality']").replace("len(rows.quality)", "len(rows['quality'])"),
                "fails: KeyError: 'quality'; predict is given what MODEL_COLUMNS and "
                "MODEL_OPTIONAL_COLUMNS name, no more",
                id="the truth",
            ),
            pytest.param(
                (),
                CLASS.format(body="return super().predict(rows)[:1]"),
                "NAME.py: predict gave 1 predictions for ",
                id="one prediction",
            ),
            pytest.param(
                (),
                CLASS.format(
                    body="self.asked = getattr(self, 'asked', 0) + 1\n"
                    "        return [CLASSES[self.asked % 3]] * len(rows)"
                ),
                "predict says something else when it is asked twice: let it keep no state",
                id="asked twice",
            ),
            pytest.param(
                (),
                "MODEL_OPTIONAL_COLUMNS = ('moisture_percent',)",
                "NAME.py: predict fails: ValueError: The feature names should match",
                id="not optional",
            ),
            pytest.param(
                (),
                "MODEL_COLUMNS = (*FEATURES, LABEL_COLUMN)",
                "MODEL_COLUMNS names 'quality', what is to be predicted: take it out",
                id="label",
            ),
            pytest.param(
                (),
                "MODEL_COLUMNS = (*FEATURES, 'weight')",
                "parse_ground_truth gives no column 'weight', which MODEL_COLUMNS names: take it",
                id="no such column",
            ),
            pytest.param(
                (), "THRESHOLD = float('nan')", "THRESHOLD is nan; make it a number", id="threshold"
            ),
            pytest.param(
                (),
                "def examples(rows):\n    return rows.assign(**{rows['file'].iloc[0]: 1.0})",
                "examples gives other columns for new_02.csv than for new_01.csv: let it always",
                id="examples",
            ),
            pytest.param(
                ((RETURN, f"    forest.odd = examples\n{RETURN}"),),
                "",
                "NAME.py: the model cannot be stored: ",
                id="not stored",
            ),
            pytest.param(
                (),
                FORGETFUL,
                "the model predicts something else once it is stored and loaded: keep all that it",
                id="lost when stored",
            ),
            pytest.param(
                (),
                "def verdicts(rows, model):\n    return rows['no']",
                "NAME.py, line LAST: verdicts fails: KeyError: 'no'",
                id="verdicts",
            ),
            *(
                pytest.param((), f"def {function}:\n    return {wrong}", said, id=f"{wrong}")
                for function, wrong, said in (
                    ("expected_errors(model, rows)", "rows['no']", "expected_errors fails: KeyE"),
                    ("expected_errors(model, rows)", "rows", "must return a table of one row"),
                    (
                        "expected_errors(model, rows)",
                        "pd.DataFrame({'error_rate': -1.0}, index=rows['file'].unique())",
                        "must return 'error_rate', and numbers from 0",
                    ),
                    ("doubtful_labels(model, rows)", "rows['quality_'] ", "doubtful_labels fails"),
                    ("doubtful_labels(model, rows)", "rows.head(1)", "a table with 'doubt'"),
                    ("doubtful_labels(model, rows)", "rows.assign(doubt=2)", "from 0 to 1"),
                    ("doubtful_labels(model, rows)", "rows.assign(doubt='sure')", "from 0 to 1"),
                    (
                        "doubtful_labels(model, rows)",
                        "rows.assign(doubt=pd.Timestamp(0))",
                        "from 0 to 1",
                    ),
                    (
                        "expected_errors(model, rows)",
                        "pd.DataFrame({'error_rate': 1, 'unsure': 12.0}, "
                        "index=rows['file'].unique())",
                        "of which 'unsure' is at most 1",
                    ),
                    (
                        "expected_errors(model, rows)",
                        "pd.DataFrame({'error_rate': [10**400]}, index=rows['file'].unique())",
                        "numbers from 0",
                    ),
                    ("unlabelled_examples(rows)", "rows[['width_mm']]", "gives other columns than"),
                    ("identity(rows)", "rows[['quality']]", "identity fails: KeyError"),
                )
            ),
            pytest.param(
                (),
                "def fit(examples, random_state):\n    raise ValueError('too few mouldy grains')",
                "cannot train: too few mouldy grains",
                id="cannot fit",
            ),
            pytest.param(
                (),
                "def count_errors(rows, predicted):\n    return rows.groupby('file').mean()",
                "count_errors fails: TypeError",
                id="errors",
            ),
        ],
    )  # fmt: skip
    def test_a_mistake_is_a_finding(
        self,
        module_of: Module,
        replaced: tuple[tuple[str, str], ...],
        more: str,
        finding: str,
    ) -> None:
        """One line that says what to do."""
        settings = module_of(*replaced, more=more)
        findings = check(settings)["findings"]
        lines = len(settings.training_file.read_text().splitlines())
        wanted = finding.replace("NAME", settings.training_file.stem).replace("LAST", str(lines))
        assert any(wanted in one for one in findings), findings
        assert all("\n" not in one for one in findings)

    @pytest.mark.sampled(0.5)
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("replaced", "more"),
        [
            pytest.param(
                (OS, ("N_TREES = 10", "N_TREES = int(os.environ.get('GRAIN_TREES', '3'))")),
                "",
                id="environment, on import",
            ),
            pytest.param(
                ((FOREST, FOREST.replace("=random_state", "=hash('grain') % 1000")),),
                "",
                id="order of hashes",
            ),
        ],
    )  # fmt: skip
    def test_what_differs_in_another_process(
        self,
        module_of: Module,
        monkeypatch: pytest.MonkeyPatch,
        replaced: tuple[tuple[str, str], ...],
        more: str,
    ) -> None:
        """Under cron there is another environment, another order of sets, another folder."""
        monkeypatch.setenv("GRAIN_TREES", "12")
        (finding,) = check(module_of(*replaced, more=more))["findings"]
        assert finding.startswith(
            "fit gives another model in a process of its own, with cron's small environment, "
            "another working folder and another order of sets: it says something else of "
        )
        assert finding.endswith(
            "let fit depend on its arguments alone, and give random_state to whatever draws numbers"
        )

    @pytest.mark.slow
    def test_what_fails_in_another_process(
        self, module_of: Module, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With the last line that it said."""
        monkeypatch.setenv("GRAIN_TREES", "12")
        settings = module_of(
            OS,
            ("N_TREES = 10", "N_TREES = int(os.environ['GRAIN_TREES'])"),
        )
        (finding,) = check(settings)["findings"]
        assert finding.startswith("it does not fit in a process of its own, with cron's small")
        assert f"{settings.training_file} does not load: KeyError: 'GRAIN_TREES'" in finding

    def test_a_module_that_does_not_keep_the_contract(
        self, home: Path, module_of: Module, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The one finding, exit status 1."""
        settings = module_of(more="del fit")
        words = ["--home", str(home), "--training-module", settings.training_module]
        assert main(["check", *words]) == 1
        assert capsys.readouterr().out.splitlines() == [
            "1 finding: checked_0.py is not ready for the night",
            f"{settings.training_file} lacks the function fit(examples, random_state); "
            "see docs/own_model.md",
        ]


@pytest.mark.usefixtures("no_other_process")
class TestTheRecordings:
    """What is at hand."""

    def test_files_that_cannot_be_read(self, home: Path, module_of: Module) -> None:
        """Each by its name, in the words of the module; the others are used."""
        (home / "new_gts" / "bad.csv").write_text("no sample\n")
        (home / "used_gts" / "link.csv").symlink_to("old_01.csv")
        found = check(module_of())
        assert found["findings"] == [
            "used_gts/link.csv: is a symbolic link; put the file itself into the folder",
            "new_gts/bad.csv: each of these columns must be there once: length_mm, width_mm, "
            "brightness, moisture_percent, quality",
        ]
        assert (found["recordings"], found["examined"]) == (7, 7)

    def test_too_many_to_list(
        self, home: Path, module_of: Module, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A bounded number of lines."""
        monkeypatch.setattr(check_command, "SHOWN_FILES", 2)
        for number in range(4):
            (home / "new_gts" / f"bad_{number}.csv").write_text("no sample\n")
        findings = check(module_of())["findings"]
        assert len(findings) == 3
        assert findings[2] == "2 more files cannot be read; mend these first"

    @pytest.mark.parametrize("kept", [0, 1])
    def test_not_enough(self, home: Path, module_of: Module, kept: int) -> None:
        """One or none: nothing to learn from and to test on."""
        for path in [*(home / "used_gts").iterdir(), *(home / "new_gts").iterdir()][kept:]:
            path.unlink()
        found = check(module_of())
        assert found["findings"] == [
            "there are not two recordings to learn from and to test on: put checked ones into "
            "used_gts/"
        ]
        assert found["recordings"] == kept

    def test_the_same_name_twice(self, home: Path, module_of: Module) -> None:
        """As after a correction: one of both is examined."""
        write_samples(home / "new_gts", 1, "new", seed=5, prefix="old")
        found = check(module_of())
        assert (found["findings"], found["recordings"], found["examined"]) == ([], 8, 7)

    def test_while_another_command_runs(self, module_of: Module) -> None:
        """Files may be moving: try again later."""
        settings = module_of()
        with exclusive_lock(settings, "run"), pytest.raises(TryLaterError, match="is held by pid"):
            check(settings)


# --- Packages ---


def install(folder: Path, package: str, distribution: str) -> None:
    """Write a package with one estimator, and the metadata that an installer would leave."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(
        "from sklearn.ensemble import RandomForestClassifier\n\n\n"
        "class Boosted(RandomForestClassifier):\n    pass\n"
    )
    metadata = folder / f"{distribution.replace('-', '_')}-4.0.dist-info"
    metadata.mkdir()
    lines = ("Metadata-Version: 2.1", f"Name: {distribution}", "Version: 4.0")
    (metadata / "METADATA").write_text("".join(f"{line}\n" for line in lines))
    (metadata / "RECORD").write_text(f"{package}/__init__.py,,\n{metadata.name}/METADATA,,\n")


@pytest.mark.usefixtures("no_other_process")
class TestPackages:
    """A stored model predicts where PACKAGES is installed, and nothing else."""

    @pytest.fixture
    def named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        """Give what installs a package with an estimator under the name of a distribution."""
        monkeypatch.syspath_prepend(tmp_path / "site")
        return functools.partial(install, tmp_path / "site")

    def settings_of(self, module_of: Module, package: str, packages: str = "") -> Settings:
        """Write a module whose model is of that package."""
        return module_of(
            ("import csv\n", f"import csv\nimport {package}\n"),
            ("forest = RandomForestClassifier(", f"forest = {package}.Boosted("),
            ('("sklearn.tree._tree.Tree",)', f'("sklearn.tree._tree.Tree", "{package}.Boosted")'),
            ('"skops")', f'"skops"{packages})'),
        )

    @pytest.mark.slow
    def test_one_that_nobody_names_is_refused(
        self, module_of: Module, named: Callable[..., None]
    ) -> None:
        """Here, and at registration before anything is stored; in service it would be missing."""
        named("lightgbm", "lightgbm")
        settings = self.settings_of(module_of, "lightgbm")
        expected = (
            f"{settings.training_file.name}: TRUSTED_TYPES names lightgbm.Boosted, but nothing in "
            "PACKAGES brings 'lightgbm': add 'lightgbm'; see docs/own_model.md"
        )
        assert check(settings)["findings"] == [expected]
        with pytest.raises(PipelineError) as caught:
            register_first_model(settings, train=True)
        assert str(caught.value) == expected
        assert open_registry(settings).versions.all() == []
        assert list(settings.artifacts.rglob("*.skops")) == []

    @pytest.mark.slow
    def test_one_that_is_named_is_accepted(
        self, module_of: Module, named: Callable[..., None]
    ) -> None:
        """By the name of its distribution: xgboost-cpu counts for xgboost."""
        named("xgboost", "xgboost-cpu")
        settings = self.settings_of(module_of, "xgboost", ', "xgboost-cpu"')
        assert check(settings)["findings"] == []
        message = register_first_model(settings, train=True)
        assert message.startswith("registered version 1 as production: mean error ")

    @pytest.mark.parametrize(
        ("distribution", "packages", "add"),
        [
            ("Xgboost_CPU", ', "xgboost.cpu"', ""),
            ("xgboost-cpu", "", "add 'xgboost-cpu'"),
            ("xgboost", ', "pandas"', "add 'xgboost'"),
        ],
    )
    def test_names_are_compared_as_package_indexes_do(
        self,
        module_of: Module,
        named: Callable[..., None],
        distribution: str,
        packages: str,
        add: str,
    ) -> None:
        """Whatever their case, with - or _ or a dot."""
        named("xgboost", distribution)
        training = load_training_module(self.settings_of(module_of, "xgboost", packages))
        if not add:
            training.check_packages()
            return
        with pytest.raises(PipelineError, match=f"nothing in PACKAGES brings 'xgboost': {add}; "):
            training.check_packages()

    def test_a_file_beside_the_module(
        self, tmp_path: Path, module_of: Module, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No package brings it, and no stored model carries it."""
        (tmp_path / "beside.py").write_text(
            "from sklearn.ensemble import RandomForestClassifier\n\n\n"
            "class Boosted(RandomForestClassifier):\n    pass\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        settings = self.settings_of(module_of, "beside", "")
        (finding,) = check(settings)["findings"]
        assert finding == (
            f"{settings.training_file.name}: TRUSTED_TYPES names beside.Boosted, but nothing in "
            "PACKAGES brings 'beside': nor any other package: a stored model carries no file but "
            "this one; see docs/own_model.md"
        )

    def test_a_package_of_the_default_modules(self) -> None:
        """Both of this project name what their types need."""
        for domain in DOMAINS.values():
            load_training_module(Settings(**domain.settings)).check_packages()  # type: ignore[arg-type]
