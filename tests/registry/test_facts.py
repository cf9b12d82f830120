"""What stands in tags, parameters and artifacts is read as what it should be, or named."""

from __future__ import annotations

import json
import math

import pytest

from retraining.errors import PipelineError
from retraining.registry.facts import (
    Manifest,
    RegisteredVersion,
    Tags,
    TrainingFile,
    numbers_by_name,
    unreadable,
    whole_number,
)

A_FILE = {"name": "a.csv", "sha256": "ab" * 32, "rows": 3}


class TestTags:
    """`Tags`: names the run or the version, the tag and what it reads."""

    def test_what_is_there_is_read(self) -> None:
        """As text or as a whole number."""
        tags = Tags({"to": "12", "why": "better"}, "run ab")
        assert (tags.integer("to"), tags.integer_or_none("to"), tags.text("why")) == (
            12,
            12,
            "better",
        )

    def test_what_is_not_there_has_a_default(self) -> None:
        """Where it may be missing, as in what an older pipeline wrote, or be left empty."""
        tags = Tags({"from": ""}, "run ab")
        assert (tags.text("why"), tags.text("unit", "%")) == ("", "%")
        assert (tags.integer_or_none("to"), tags.integer_or_none("from")) == (None, None)

    @pytest.mark.parametrize("text", ["x", "1.5", "1e3", "0x1", "nan", "[1]", "9" * 5000])
    def test_what_is_no_whole_number_is_named(self, text: str) -> None:
        """With the run, the tag and what stands there."""
        for read in (
            Tags({"to": text}, "run ab").integer,
            Tags({"to": text}, "run ab").integer_or_none,
        ):
            with pytest.raises(PipelineError, match="^the tag 'to' of run ab reads '") as caught:
                read("to")
            assert f"reads '{text[:60]}': it was edited or damaged" in str(caught.value)

    @pytest.mark.parametrize("values", [{}, {"to": ""}])
    def test_a_missing_number_is_named(self, values: dict[str, str]) -> None:
        """Where there is no doing without."""
        with pytest.raises(PipelineError, match="^the tag 'to' of run ab (is missing|reads '')"):
            Tags(values, "run ab").integer("to")

    def test_a_version_names_itself(self) -> None:
        """By its number, which an operator knows."""
        version = RegisteredVersion(7, "ab", {"verdict_recordings": "many"}, 0)
        with pytest.raises(
            PipelineError, match="^the tag 'verdict_recordings' of version 7 reads 'many'"
        ):
            version.read.integer("verdict_recordings")

    def test_what_stands_there_does_no_harm(self) -> None:
        """Somebody wrote it for a terminal, or it is long; the remedy can be typed."""
        text = str(unreadable("version 2", "the tag 'to'", "\x1b[2J\n'; rm " + "x" * 1000))
        assert r"reads '\x1b[2J\n'; rm xxx" in text
        assert text.isprintable()
        assert len(text) < 300
        assert text.endswith("python pipeline_orchestrator.py rollback")


class TestNumbers:
    """Of artifacts and metrics."""

    def test_numbers_are_read_by_name(self) -> None:
        """Whole ones, too."""
        found = numbers_by_name(b'{"a": 1, "b": 0.25}', "version 2", "errors.json")
        assert found == {"a": 1.0, "b": 0.25}

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"[1]",
            b"null",
            b'{"a": "x"}',
            b'{"a": null}',
            b'{"a": [1]}',
            b"\xff",
            b'{"a": -1}',
            b'{"a": NaN}',
            b'{"a": 1e999}',
            b'{"a": %s}' % (b"9" * 5000),
            b"[" * 10**5,
        ],
    )
    def test_anything_else_is_named(self, content: bytes) -> None:
        """With the version and the file, in one line."""
        with pytest.raises(PipelineError, match="^errors.json of version 2 reads '") as caught:
            numbers_by_name(content, "version 2", "errors.json")
        assert str(caught.value).isprintable()

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.5])
    def test_a_count_is_whole(self, value: float) -> None:
        """Whoever logged something else."""
        assert whole_number(15.0, "run ab", "the metric 'recordings'") == 15
        with pytest.raises(PipelineError, match=f"the metric 'n' of run ab reads '{value}'"):
            whole_number(value, "run ab", "the metric 'n'")


class TestManifest:
    """`Manifest`: what a version was trained on."""

    def test_it_comes_back_as_it_was(self) -> None:
        """In order of the names."""
        one, other = "ab" * 32, "cd" * 32
        manifest = Manifest.of({"b.csv": other, "a.csv": one}, {"a.csv": 3, "b.csv": 4})
        assert manifest.files == (TrainingFile("a.csv", one, 3), TrainingFile("b.csv", other, 4))
        assert Manifest.from_bytes(manifest.to_bytes(), "version 2") == manifest
        assert manifest.names == {one: "a.csv", other: "b.csv"}

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"[]",
            b"null",
            b"[" * 10**5,
            json.dumps({"files": 3}).encode(),
            json.dumps({"files": [3]}).encode(),
            json.dumps({"files": [{"name": "a.csv"}]}).encode(),
            json.dumps({"files": [{**A_FILE, "size": 3}]}).encode(),
            json.dumps({"files": [{**A_FILE, "name": 3}]}).encode(),
            json.dumps({"files": [{**A_FILE, "sha256": ["ab"]}]}).encode(),
            json.dumps({"files": [{**A_FILE, "rows": "3"}]}).encode(),
            json.dumps({"files": [{**A_FILE, "rows": -1}]}).encode(),
            json.dumps({"files": [{**A_FILE, "sha256": "AB" * 32}]}).encode(),
            json.dumps({"files": [{**A_FILE, "name": "../a.csv"}]}).encode(),
            json.dumps({"files": [{**A_FILE, "name": ".."}]}).encode(),
            json.dumps({"files": [{**A_FILE, "name": "a\0.csv"}]}).encode(),
        ],
    )
    def test_anything_else_is_named(self, content: bytes) -> None:
        """It decides what is archived: no guess."""
        with pytest.raises(PipelineError, match="^training_files.json of version 2 reads '"):
            Manifest.from_bytes(content, "version 2")


def test_a_password_that_is_cut_short_is_not_shown() -> None:
    """What is shown of a damaged artifact ends in the middle of an address."""
    content = b"x" * 40 + b" http://me:" + b"secret" * 20 + b"@host/ and no JSON"
    with pytest.raises(PipelineError) as caught:
        numbers_by_name(content, "version 3", "errors.json")
    assert "secret" not in str(caught.value)
