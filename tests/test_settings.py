"""Settings: where each value comes from, what is refused, and how a command ends."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from retraining.command_line import add_settings, read_settings
from retraining.cycle import threshold_of
from retraining.errors import (
    EXIT_STATUSES,
    PipelineError,
    StoppedBySignal,
    TryLaterError,
    UsageError,
)
from retraining.settings import Settings, check_home, environment_variable, flag
from retraining.training import load_training_module

FIELDS = dataclasses.fields(Settings)
WITH_RANGE = [field for field in FIELDS if field.metadata["at_least"] is not None]


def read(*words: str, **environment: str) -> Settings:
    """Return the settings of a command line in an environment."""
    parser = argparse.ArgumentParser()
    add_settings(parser)
    return read_settings(parser.parse_args(words), environment)


class TestFields:
    """Every setting can be found, set and understood."""

    @pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
    def test_every_setting_has_help_a_flag_and_a_variable(
        self, field: dataclasses.Field[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And all three stand in --help."""
        monkeypatch.setenv("COLUMNS", "1000")
        parser = argparse.ArgumentParser()
        add_settings(parser)
        help_text = " ".join(parser.format_help().split())
        unit = f" [{field.metadata['unit']}]" if field.metadata["unit"] else ""
        assert field.metadata["help"]
        assert f"{field.metadata['help']}{unit} ({environment_variable(field)}" in help_text
        assert f" {flag(field)} " in help_text.partition("settings (command line over")[2]

    def test_flags_and_variables_follow_from_the_name(self) -> None:
        """Except for the variable that MLflow itself reads."""
        names = {field.name: (flag(field), environment_variable(field)) for field in FIELDS}
        assert names["min_new_files"] == ("--min-new-files", "PIPELINE_MIN_NEW_FILES")
        assert names["tracking_uri"] == ("--tracking-uri", "MLFLOW_TRACKING_URI")
        assert len(set(names.values())) == len(names)

    def test_the_defaults_are_those_of_the_design(self) -> None:
        """15 files, windows of 15 and 30, 10 percent, 5 percent, no least gain, 2 points."""
        threshold = threshold_of(Settings(), load_training_module(Settings()))
        assert Settings().of_the_verdict(threshold) == {
            "min_new_files": 15,
            "window": 30,
            "threshold": 10,
            "decide": "point",
            "significance": 0.05,
            "min_improvement": 0,
            "max_regression": 2,
            "n_folds": 5,
            "random_state": 42,
        }
        assert not Settings().allow_pickle

    def test_only_what_a_verdict_depends_on_changes_its_fingerprint(self) -> None:
        """The same question is not asked twice, another one is."""
        usual = Settings().verdict_fingerprint("code", 10)
        assert Settings(n_jobs=1, stuck_after=9).verdict_fingerprint("code", 10) == usual
        others = [
            Settings(min_new_files=3),
            Settings(window=15),
            Settings(significance=1),
            Settings(min_improvement=1),
            Settings(max_regression=1),
            Settings(n_folds=4),
            Settings(random_state=1),
        ]
        prints = {one.verdict_fingerprint("code", 10) for one in others}
        assert len({usual, *prints, Settings().verdict_fingerprint("code", 11)}) == 9

    def test_the_threshold_is_the_modules_unless_the_operator_sets_one(self) -> None:
        """Setting what the module says anyway asks no other question, and is told no other way."""
        training = load_training_module(Settings())
        for settings in (Settings(), Settings(threshold=training.threshold)):
            threshold = threshold_of(settings, training)
            assert threshold == training.threshold
            assert settings.for_the_run(threshold)["threshold"] == threshold
            assert settings.verdict_fingerprint("code", threshold) == (
                Settings().verdict_fingerprint("code", training.threshold)
            )
        assert threshold_of(Settings(threshold=0), training) == 0

    def test_settings_cannot_be_changed(self) -> None:
        """They were checked once."""
        with pytest.raises(dataclasses.FrozenInstanceError):
            Settings().threshold = -1  # type: ignore[misc]


class TestPrecedence:
    """Command line over environment over default."""

    def test_the_command_line_wins_over_the_environment(self) -> None:
        """And that over the default."""
        assert read().significance == 0.05
        assert read(PIPELINE_SIGNIFICANCE="0.1").significance == 0.1
        assert read("--significance", "0.2", PIPELINE_SIGNIFICANCE="0.1").significance == 0.2
        assert read().threshold is None
        assert read(PIPELINE_THRESHOLD="11").threshold == 11
        assert read("--threshold", "12", PIPELINE_THRESHOLD="11").threshold == 12

    def test_the_process_environment_is_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Unless another one is given."""
        monkeypatch.setenv("PIPELINE_N_FOLDS", "7")
        assert read_settings(argparse.Namespace()).n_folds == 7

    @pytest.mark.parametrize(
        ("variable", "text", "name", "value"),
        [
            ("MLFLOW_TRACKING_URI", "http://host:5000", "tracking_uri", "http://host:5000"),
            ("PIPELINE_MODEL_NAME", "Other", "model_name", "Other"),
            ("PIPELINE_MIN_NEW_FILES", "3", "min_new_files", 3),
            ("PIPELINE_SIGNIFICANCE", "1", "significance", 1.0),
            ("PIPELINE_THRESHOLD", "1", "threshold", 1.0),
            ("PIPELINE_N_JOBS", "-1", "n_jobs", -1),
            ("PIPELINE_HOOK_TIMEOUT", "1.5", "hook_timeout", 1.5),
        ],
    )
    def test_a_text_becomes_a_value_of_the_right_type(
        self, variable: str, text: str, name: str, value: Any
    ) -> None:
        """By flag or by variable."""
        for settings in (
            read(**{variable: text}),
            read(f"--{name.replace('_', '-')}={text}"),
        ):
            found = getattr(settings, name)
            assert (found, type(found)) == (value, type(value))

    def test_a_value_out_of_range_is_named_where_it_comes_from(self) -> None:
        """The variable, if it was one."""
        with pytest.raises(UsageError, match=r"^PIPELINE_THRESHOLD -1\.0: must be from 0"):
            read(PIPELINE_THRESHOLD="-1")
        with pytest.raises(UsageError, match=r"^--threshold -1\.0: must be from 0"):
            read("--threshold=-1", PIPELINE_THRESHOLD="5")

    @pytest.mark.parametrize(
        ("text", "value"),
        [("true", True), ("YES", True), ("1", True), ("False", False), ("no", False), ("0", False)],
    )
    def test_a_boolean_has_six_words(self, text: str, value: bool) -> None:
        """In any case; the flag needs none."""
        assert read(PIPELINE_ALLOW_PICKLE=text).allow_pickle is value
        assert read("--allow-pickle", PIPELINE_ALLOW_PICKLE=text).allow_pickle is True

    def test_empty_means_the_default(self) -> None:
        """A variable set to nothing is not set; an empty flag hides the variable."""
        assert read(PIPELINE_THRESHOLD="", MLFLOW_TRACKING_URI="") == Settings()
        assert read("--tracking-uri", "", MLFLOW_TRACKING_URI="http://host").tracking_uri == ""


class TestHome:
    """Where everything lives."""

    def test_the_home_is_expanded_and_absolute(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Cron's working directory must not matter later."""
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        assert read("--home", "~/stems").home == tmp_path / "stems"
        assert read("--home", "a/../stems").home == tmp_path / "stems"
        assert read(PIPELINE_HOME="stems").home == tmp_path / "stems"

    def test_the_default_home_is_the_folder_of_the_scripts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not the working directory."""
        monkeypatch.chdir(tmp_path)
        assert read().home == Path(__file__).resolve().parent.parent

    def test_all_folders_are_in_the_home(self) -> None:
        """As the README draws them."""
        settings = Settings(home=Path("/home"))
        assert [
            str(path).removeprefix("/home/")
            for path in (
                settings.new_gts,
                settings.rejected_gts,
                settings.used_gts,
                settings.database,
                settings.artifacts,
            )
        ] == [
            "new_gts",
            "new_gts/rejected",
            "used_gts",
            "mlflow_server/backend_db/mlflow.db",
            "mlflow_server/artifacts",
        ]

    def test_the_store_is_embedded_unless_one_is_named(self) -> None:
        """By its absolute path."""
        embedded, served = Settings(home=Path("/home")), Settings(tracking_uri="http://host:5000")
        assert embedded.store_uri == "sqlite:////home/mlflow_server/backend_db/mlflow.db"
        assert (served.store_uri, served.database) == ("http://host:5000", None)

    def test_a_named_sqlite_file_is_known_too(self) -> None:
        """Nothing but registration may create it either."""
        assert Settings(tracking_uri="sqlite:////srv/a.db").database == Path("/srv/a.db")

    @pytest.mark.parametrize("uri", ["mlruns", "file:///srv/mlruns", "databricks", "ftp://x"])
    def test_other_stores_are_refused(self, uri: str) -> None:
        """A folder of files is no registry that survives two writers."""
        with pytest.raises(UsageError, match="--tracking-uri .* must begin with sqlite:///"):
            Settings(tracking_uri=uri)

    def test_a_refused_store_does_not_show_its_password(self) -> None:
        """Cron would mail it."""
        with pytest.raises(UsageError) as caught:
            Settings(tracking_uri="mongodb://me:secret@host/db")
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("missing", ["new_gts", "used_gts"])
    def test_a_home_without_its_folders_is_refused(self, tmp_path: Path, missing: str) -> None:
        """The message says what to do, and nothing is created; a file is no folder."""
        settings = Settings(home=tmp_path)
        for name in {"new_gts", "used_gts"} - {missing}:
            (tmp_path / name).mkdir()
        with pytest.raises(PipelineError, match=rf"{missing} is not a folder; .*--home"):
            check_home(settings)
        (tmp_path / missing).touch()
        with pytest.raises(PipelineError, match=rf"{missing} is not a folder"):
            check_home(settings)
        (tmp_path / missing).unlink()
        (tmp_path / missing).mkdir()
        check_home(settings)


class TestRefusals:
    """A wrong value is named with its flag or variable and the interval."""

    @pytest.mark.parametrize("field", WITH_RANGE, ids=lambda field: field.name)
    def test_the_range_includes_its_ends_and_nothing_beyond(
        self, field: dataclasses.Field[Any]
    ) -> None:
        """Whatever is set, from wherever."""
        low, high = field.metadata["at_least"], field.metadata["at_most"]
        for value in (low, high):
            assert getattr(Settings(**{field.name: value}), field.name) == value
        beyond = [high + 1, low - 1] if field.metadata["kind"] is int else [high * 1.01, low - 1e-6]
        for value in [*beyond, float("nan"), float("inf"), float("-inf")]:
            with pytest.raises(UsageError, match=rf"{flag(field)} .*: must be from .* to .*"):
                Settings(**{field.name: value})

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("--min-new-files=0", "--min-new-files 0: must be from 1 to 100000 files"),
            ("--threshold=-1", "--threshold -1.0: must be from 0 to 100000"),
            ("--threshold=nan", "--threshold nan: must be from 0 to 100000"),
            ("--threshold=inf", "--threshold inf: must be from 0 to 100000"),
            ("--significance=0", "--significance 0.0: must be from 1e-06 to 1"),
            ("--n-folds=1", "--n-folds 1: must be from 2 to 100"),
            ("--n-jobs=0", "--n-jobs 0: must be -1 or at least 1"),
            ("--n-folds=five", "--n-folds 'five': must be an integer"),
            ("--n-folds=5.0", "--n-folds '5.0': must be an integer"),
            ("--threshold=10%", "--threshold '10%': must be a number"),
            ("--threshold=10,5", "--threshold '10,5': must be a number"),
            ("PIPELINE_N_FOLDS=five", "PIPELINE_N_FOLDS 'five': must be an integer"),
            ("PIPELINE_THRESHOLD=ten", "PIPELINE_THRESHOLD 'ten': must be a number"),
            ("PIPELINE_ALLOW_PICKLE=maybe", "PIPELINE_ALLOW_PICKLE 'maybe': must be true or false"),
            ("PIPELINE_HOME=~nobody-of-this-name/x", "PIPELINE_HOME '~nobody-of-this-name/x': "),
        ],
    )
    def test_a_wrong_value_is_named(self, words: str, message: str) -> None:
        """What was given, where, and what would do."""
        name, _, value = words.partition("=")
        with pytest.raises(UsageError) as caught:
            read(words) if name.startswith("--") else read(**{name: value})
        assert str(caught.value).startswith(message)
        assert caught.value.exit_status == 2

    def test_a_circle_of_links_is_no_home(self, tmp_path: Path) -> None:
        """Said in one line, like any wrong value."""
        (tmp_path / "circle").symlink_to("circle")
        with pytest.raises(UsageError, match=r"--home .*circle"):
            read("--home", os.fspath(tmp_path / "circle"))

    @pytest.mark.parametrize("name", ["", "a/b", "a:b", "a'b", 'a"b', "a\nb", "a\0b"])
    def test_a_model_name_that_mlflow_would_misread_is_refused(self, name: str) -> None:
        """It becomes part of models:/NAME@production and of search filters."""
        with pytest.raises(UsageError, match="--model-name"):
            Settings(model_name=name)

    @pytest.mark.parametrize("name", ["Stems", "stem classifier 2", "Bäume_v-1.0", "%s"])
    def test_other_names_are_model_names(self, name: str) -> None:
        """Whatever people call it."""
        assert Settings(model_name=name).model_name == name


class TestExitStatuses:
    """An error knows its exit status."""

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (PipelineError("x"), 1),
            (UsageError("x"), 2),
            (TryLaterError("x"), 75),
            (StoppedBySignal(1), 129),
            (StoppedBySignal(2), 130),
            (StoppedBySignal(15), 143),
        ],
    )
    def test_each_error_has_its_status(self, error: PipelineError, status: int) -> None:
        """As the README lists them."""
        assert error.exit_status == status

    def test_every_status_is_explained(self) -> None:
        """The table of the README has a text for each."""
        assert list(EXIT_STATUSES) == ["0", "1", "2", "75", "128 + n"]
        assert all(EXIT_STATUSES.values())
