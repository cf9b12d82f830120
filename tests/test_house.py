"""Imports go one way, nothing heavy comes with a module, and the top level is the card."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import house
import pytest
from conftest import ROOT

MODULES = house.modules_of(ROOT)
IMPORTS = house.imports_of(MODULES)
IN_THE_HOUSE = [one for one in IMPORTS if one.imported in MODULES]


def lines(found: list[house.Import]) -> str:
    """Return one import per line, for the message of a failure."""
    return "\n".join(str(one) for one in found)


class TestThisHouse:
    """The modules of the package and the scripts beside it."""

    def test_every_module_has_its_place(self) -> None:
        """A new one belongs into a row of `house.ORDER`: above all that it imports."""
        missing = house.without_a_place(MODULES)
        assert missing == [], f"put into a row of ORDER in tests/tools/house.py: {missing}"

    def test_every_place_has_its_module(self) -> None:
        """No row names what is gone."""
        names = {name.removeprefix(f"{house.PACKAGE}.") for name in MODULES}
        places = [place for row in house.ORDER for place in row]
        assert [place for place in places if place.removesuffix(".*") not in names] == []
        assert len(places) == len(set(places))

    def test_imports_only_go_down(self) -> None:
        """Late and type-only ones included."""
        upward = house.upward_imports(IN_THE_HOUSE)
        assert upward == [], f"these do not go down in house.ORDER:\n{lines(upward)}"

    def test_there_are_no_circles(self) -> None:
        """Inside a package neither."""
        assert house.circles(IN_THE_HOUSE) == []

    def test_the_top_level_is_the_card(self) -> None:
        """Three scripts and one package."""
        assert {path.stem for path in ROOT.glob("*.py")} == set(house.SCRIPTS)
        assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == {house.PACKAGE}

    def test_the_training_module_knows_the_pipeline_in_its_main_only(self) -> None:
        """A stored model carries that file alone."""
        found = [one for one in IN_THE_HOUSE if one.importer == house.TRAINING_MODULE]
        assert [str(one) for one in found if one.function != "main"] == []
        assert found != []

    def test_nothing_heavy_comes_with_a_module(self) -> None:
        """A night without news imports Python's own library and the house; the rest comes late."""
        heavy = house.heavy_imports(IMPORTS, MODULES)
        assert heavy == [], f"import these inside the function that needs them:\n{lines(heavy)}"

    def test_the_package_itself_imports_nothing(self) -> None:
        """Whoever imports one module imports `retraining`, too."""
        assert [str(one) for one in IMPORTS if one.importer == house.PACKAGE] == []


def build(root: Path, **modules: str) -> list[house.Import]:
    """Build a house of modules given as name -> code; return all its imports."""
    for name, code in {"__init__": "", **modules}.items():
        path = root / house.PACKAGE / f"{name.replace('__in__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    return house.imports_of(house.modules_of(root))


FOR_TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {}\n"
LATE = "def work():\n    if True:\n        {}\n"
WAYS = ["{}\n", LATE, FOR_TYPES, "class A:\n    def b(self):\n        {}\n"]
FILES_FROM_SETTINGS = [
    "import retraining.files",
    "from retraining import files",
    "from retraining import files as others",
    "from retraining.files import move_file",
    "from . import files",
    "from .files import move_file",
    "import importlib; importlib.import_module('retraining.files')",
]


class TestReading:
    """What would be found in a house that is not in order."""

    @pytest.mark.parametrize("way", WAYS, ids=["at once", "late", "for types", "in a class"])
    @pytest.mark.parametrize("how", FILES_FROM_SETTINGS)
    def test_no_import_is_overlooked(self, tmp_path: Path, way: str, how: str) -> None:
        """However it is written and wherever it stands."""
        imports = build(tmp_path, settings=way.format(how), files="")
        (found,) = house.upward_imports(imports)
        assert (found.importer, found.imported) == ("retraining.settings", "retraining.files")
        assert (found.function != "", found.for_types) == ("def" in way, way == FOR_TYPES)

    def test_down_is_allowed_and_sideways_is_not(self, tmp_path: Path) -> None:
        """Neither journal nor kept_tables stands above the other."""
        imports = build(
            tmp_path, files="import retraining.settings", journal="", settings="", kept_tables=""
        )
        assert house.upward_imports(imports) == []
        imports = build(tmp_path, kept_tables="from retraining import files, journal")
        assert [one.imported for one in house.upward_imports(imports)] == ["retraining.journal"]

    def test_the_modules_of_a_package_may_use_each_other(self, tmp_path: Path) -> None:
        """As long as it comes to no circle, and nothing outside stands above them."""
        imports = build(
            tmp_path,
            registry__in__runs="from retraining.registry.facts import A",
            registry__in__facts="from retraining import recorder",
            recorder="",
        )
        assert [one.imported for one in house.upward_imports(imports)] == ["retraining.recorder"]
        assert house.circles(imports) == []

    def test_a_circle_is_found_however_long(self, tmp_path: Path) -> None:
        """With the one import that closes it."""
        imports = build(
            tmp_path,
            cycle="from retraining import records",
            records="from retraining import recovery",
            recovery=LATE.format("from retraining import cycle"),
            notices="from retraining import cycle",
        )
        members = [f"retraining.{name}" for name in ("cycle", "records", "recovery")]
        assert house.circles(imports) == [members]
        assert [str(one) for one in house.closing_imports(imports)] == [
            "retraining.recovery (line 3) imports retraining.cycle"
        ]

    def test_a_module_without_a_place_is_named(self, tmp_path: Path) -> None:
        """In a package that is no row of its own, too."""
        build(tmp_path, guess="", guesses__in__one="", registry__in__new="")
        missing = house.without_a_place(house.modules_of(tmp_path))
        assert missing == ["retraining.guess", "retraining.guesses.one"]

    @pytest.mark.parametrize(
        ("code", "n_found"),
        [
            ("import pandas as pd", 1),
            ("from sklearn.base import clone", 1),
            ("try:\n    import mlflow\nexcept ImportError:\n    pass", 1),
            ("class A:\n    import numpy", 1),
            ("from retraining import gate", 1),
            ("if not TYPE_CHECKING:\n    import numpy", 1),
            (FOR_TYPES.format("import numpy") + "else:\n    import scipy", 1),
            (LATE.format("import numpy"), 0),
            (FOR_TYPES.format("from retraining.gate import Verdict"), 0),
            ("import json, os.path\nfrom retraining.files import move_file", 0),
        ],
    )
    def test_what_comes_with_a_module_is_found(
        self, tmp_path: Path, code: str, n_found: int
    ) -> None:
        """The gate counts as heavy, because it is."""
        imports = build(tmp_path, cycle=code, gate="import numpy", files="")
        assert len(house.heavy_imports(imports, house.modules_of(tmp_path))) == n_found

    def test_lines_are_counted_once_each(self, tmp_path: Path) -> None:
        """By hand: five of code, four of docstrings with the blank one, two of comments."""
        path = tmp_path / "some.py"
        path.write_text(
            '"""One.\n\nThree."""\n'
            "# why\n"
            "A = 1  # beside code\n"
            '"""Of A: no docstring."""\n'
            "\n"
            "def work():\n"
            '    """Four."""\n'
            "    # because\n"
            '    return """two\n\nlines"""\n'
        )
        found = house.lines_of(path)
        assert (found.code, found.docstrings, found.comments) == (5, 4, 2)
        assert found.functions == (("work", 3),)


def test_it_prints_the_figures() -> None:
    """For the closing note of a change."""
    done = subprocess.run(
        [sys.executable, "tests/tools/house.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "0 circles, 0 upward imports" in done.stdout
    assert "retraining/gate.py" in done.stdout
