"""A real `mlflow models serve` and MLflow's own command line against real clients."""

from __future__ import annotations

import configparser
import contextlib
import csv
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import requests
from conftest import (
    ROOT,
    SERVER_SECONDS,
    copy_home,
    free_port,
    wait_for,
)
from sample_gts import make_recording, write_recordings
from small import make_fast_classifier
from test_docs import FOLDER, SERVING, blocks, shell_lines

import train_classification_model as training
from retraining.cross_validation import Resources, train
from retraining.registry import Registry, open_registry
from retraining.registry.facts import RETRAINING_RUN, TAG_CYCLE, Manifest
from retraining.settings import Settings
from retraining.training import load_training_module

pytestmark = pytest.mark.slow

PORT = "5001"
REQUESTS_AT_ONCE = 200
CLIENTS = 50
PROGRAMS = Path(sys.executable).parent
MODEL = "StemClassifierPostprocessing"


@dataclass(frozen=True)
class Served:
    """A server at work, and the same version loaded in this process."""

    address: str
    home: Path
    model: Any

    def post(self, body: str | bytes, content_type: str | None) -> requests.Response:
        """Send a body as it is."""
        headers = {} if content_type is None else {"Content-Type": content_type}
        return requests.post(f"{self.address}/invocations", body, headers=headers, timeout=60)

    def answer(self, body: str | bytes, content_type: str) -> list[bool]:
        """Return the predictions for a body that is to be answered."""
        answer = self.post(body, content_type)
        assert answer.status_code == 200, answer.text
        assert list(answer.json()) == ["predictions"]
        return list(answer.json()["predictions"])


def environment(home: Path) -> dict[str, str]:
    """Return the variables of a shell that can serve the store of a home."""
    return {
        **os.environ,
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow_server/backend_db/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


@contextlib.contextmanager
def running(
    words: list[str], variables: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a process group of its own, which ends with the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["timeout", SERVER_SECONDS, *words],
            cwd=log.parent,
            env=variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def production(home: Path) -> Any:
    """Return the model in production, loaded as the pipeline does."""
    registry = open_registry(Settings(home=home))
    champion = registry.production.champion()
    return registry.models.load(champion, load_training_module(Settings(home=home)))


@pytest.fixture(scope="module")
def served(registered_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve a home by the lines of docs/serving.md."""
    folder = tmp_path_factory.mktemp("serving")
    home, port = copy_home(registered_template, folder / "home"), free_port()
    words = ("export", "mlflow models serve")
    start = [line for line in shell_lines(SERVING) if line.startswith(words)]
    text = "\n".join(start).replace(f"{FOLDER}/.venv/bin", str(PROGRAMS))
    text = text.replace(FOLDER, str(home)).replace(PORT, str(port))
    address = f"http://127.0.0.1:{port}"
    with running(["/bin/sh", "-c", text], dict(os.environ), folder / "log"):
        wait_for(f"{address}/ping")
        yield Served(address, home, production(home))


def tracker_rows(seed: int = 77, n_tracks: int = 15) -> pd.DataFrame:
    """Return a recording as the tracker writes it: some objects not counted, no labels."""
    rows = make_recording(seed, "old", n_tracks).drop(columns="ground_truth")
    rows["counted"] = rows["object_id"] != rows["object_id"].iloc[0]
    return rows


def as_csv(rows: pd.DataFrame) -> bytes:
    """Return rows as they stand in a file."""
    return rows.to_csv(index=False).encode()


def split(rows: pd.DataFrame) -> str:
    """Return rows as MLflow's dataframe_split, missing values as null."""
    return f'{{"dataframe_split": {rows.to_json(orient="split")}}}'


def records(rows: pd.DataFrame) -> str:
    """Return rows as MLflow's dataframe_records, missing values as null."""
    return f'{{"dataframe_records": {rows.to_json(orient="records")}}}'


def columns(rows: pd.DataFrame) -> str:
    """Return rows as MLflow's inputs."""
    return json.dumps({"inputs": rows.to_dict(orient="list")})


def instances(rows: pd.DataFrame) -> str:
    """Return rows as MLflow's instances."""
    return json.dumps({"instances": rows.to_dict(orient="records")})


def texts(rows: pd.DataFrame) -> str:
    """Return rows as a client without pandas has them: every cell is text."""
    return json.dumps(
        {"dataframe_records": list(csv.DictReader(io.StringIO(as_csv(rows).decode())))}
    )


WAYS: dict[str, tuple[Callable[[pd.DataFrame], str | bytes], str]] = {
    "csv": (as_csv, "text/csv"),
    "split": (split, "application/json"),
    "records": (records, "application/json; charset=utf-8"),
    "inputs": (columns, "application/json"),
    "instances": (instances, "application/json"),
    "text in every cell": (texts, "application/json"),
}
FLOATS = ["centroids_x", "centroids_y", "area"]
CHANGES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "as it is": lambda rows: rows,
    "without counted": lambda rows: rows.drop(columns="counted"),
    "with file": lambda rows: rows.assign(file="a.csv"),
    "two recordings": lambda rows: pd.concat(
        [rows.assign(file="a.csv"), tracker_rows(5).assign(file="b.csv")], ignore_index=True
    ),
    "with labels": lambda rows: rows.assign(ground_truth=False),
    "integers where floats are expected": lambda rows: rows.astype(dict.fromkeys(FLOATS, "int64")),
    "floats where integers are expected": lambda rows: rows.astype(
        {"object_id": float, "frames": float}
    ),
    "counted in words": lambda rows: rows.assign(
        counted=rows["counted"].map({True: "True Positive", False: "False Positive"})
    ),
    "counted in numbers": lambda rows: rows.assign(counted=rows["counted"].astype(int)),
    "nothing counted": lambda rows: rows.assign(counted=False),
    "other order of columns and rows": lambda rows: rows.iloc[::-1, ::-1],
    "a damaged header": lambda rows: rows.rename(columns=lambda name: name.replace("_", "+AF8-")),
}


class TestAnswers:
    """Every form of the same rows gets the answer that the model gives in this process."""

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("change", CHANGES)
    def test_the_answer_is_that_of_this_process(
        self, served: Served, way: str, change: str
    ) -> None:
        """One boolean per row, in the order of the rows."""
        write, content_type = WAYS[way]
        rows = CHANGES[change](tracker_rows())
        expected = served.model.predict(rows)
        assert served.answer(write(rows), content_type) == expected.tolist()
        assert expected.any() == (change != "nothing counted")

    @pytest.mark.parametrize("way", ["csv", "split", "records"])
    def test_missing_measurements_are_answered(self, served: Served, way: str) -> None:
        """A blank cell, or null."""
        write, content_type = WAYS[way]
        rows = tracker_rows()
        rows.loc[5:60, "area"] = np.nan
        rows["aspect_ratio"] = np.nan
        assert served.answer(write(rows), content_type) == served.model.predict(rows).tolist()

    def test_real_recordings_are_answered(self, served: Served, shared_folder: Path) -> None:
        """The bytes of the file, damaged header included."""
        for path in sorted((shared_folder / "gts").glob("*.csv")):
            content = path.read_bytes()
            rows = pd.read_csv(io.BytesIO(content)).dropna(how="all")
            whole = content if len(rows) == content.count(b"\n") - 1 else as_csv(rows)
            assert served.answer(whole, "text/csv") == served.model.predict(rows).tolist()


def with_cell(column: str, value: Any) -> str:
    """Return records with one cell exchanged."""
    document = json.loads(records(tracker_rows()))
    document["dataframe_records"][3][column] = value
    return json.dumps(document)


def twice(column: str) -> str:
    """Return rows with two columns of one name."""
    document = json.loads(split(tracker_rows().assign(extra=1.0)))
    document["dataframe_split"]["columns"][-1] = column
    return json.dumps(document)


JSON, CSV = "application/json", "text/csv"
ROWS = tracker_rows()
LACKS_AREA = "the rows lack the columns area; a model needs object_id, "
NO_ROWS = "there are no rows; "
NOT_A_FLAG = "column counted has values that are neither true nor false: "
REFUSED: dict[str, tuple[str | bytes, str, int, str]] = {
    "missing column, split": (split(ROWS.drop(columns="area")), JSON, 400, LACKS_AREA),
    "missing column, records": (records(ROWS.drop(columns="area")), JSON, 400, LACKS_AREA),
    "missing column, csv": (as_csv(ROWS.drop(columns="area")), CSV, 400, LACKS_AREA),
    "two missing columns": (
        split(ROWS.drop(columns=["area", "frames"])),
        *(JSON, 400, "the rows lack the columns area, frames; "),
    ),
    "text in a number": (with_cell("area", "large"), JSON, 400, "column area: 'large' is not a nu"),
    "text in a number, csv": (
        as_csv(ROWS.assign(area="large")),
        *(CSV, 400, "column area: 'large' is not a number"),
    ),
    "text as object_id": (
        with_cell("object_id", "a"),
        JSON,
        400,
        "column object_id: 'a' is not a n",
    ),
    "true in a number": (with_cell("area", True), JSON, 400, "column area: 'True' is not a number"),
    "a list in a number": (with_cell("area", [1]), JSON, 400, "column area: '[1]' is not a number"),
    "null object_id": (with_cell("object_id", None), JSON, 400, "column object_id has missing or "),
    "NaN object_id": (
        with_cell("object_id", np.nan),
        JSON,
        400,
        "column object_id has missing or ",
    ),
    "infinite frame": (with_cell("frames", np.inf), JSON, 400, "column frames has missing or inf"),
    "half an object": (
        with_cell("object_id", 1.5),
        JSON,
        400,
        "column object_id: 1.5 is not an in",
    ),
    "huge frame": (with_cell("frames", 2**70), JSON, 400, "column frames: 1.18059e+21 is not an"),
    "counted in other words": (with_cell("counted", "yes"), JSON, 400, f"{NOT_A_FLAG}'yes'"),
    "counted unknown": (with_cell("counted", None), JSON, 400, f"{NOT_A_FLAG}'None'"),
    "unknown file": (
        records(ROWS.assign(file=pd.Series(["a"]))),
        *(JSON, 400, "column file has missing values"),
    ),
    "a column twice": (twice("area"), JSON, 400, "the rows have the column area twice"),
    "no rows, split": (split(ROWS.head(0)), JSON, 400, NO_ROWS),
    "no rows, csv": (as_csv(ROWS.head(0)), CSV, 400, NO_ROWS),
    "no rows, inputs": (columns(ROWS.head(0)), JSON, 400, NO_ROWS),
    "no rows, records": (records(ROWS.head(0)), JSON, 400, "the rows lack the columns object_id, "),
    "no names": (
        json.dumps({"dataframe_split": {"data": ROWS.to_numpy().tolist()}}),
        *(JSON, 400, "the rows lack the columns object_id, "),
    ),
    "numbers without names": ('{"inputs": [[1, 2]]}', JSON, 400, "the rows must be a table of nam"),
    "empty body": (b"", JSON, 400, "JSONDecodeError"),
    "empty body, csv": (b"", CSV, 400, "No columns to parse from file"),
    "no JSON": (b"{object_id", JSON, 400, "JSONDecodeError"),
    "a JSON list": (b"[]", JSON, 400, "The input must be a JSON dictionary"),
    "an empty JSON document": (b"{}", JSON, 400, "The input must be a JSON dictionary"),
    "no UTF-8": (b"\xff\xfe{", JSON, 400, "UnicodeDecodeError"),
    "another Content-Type": (split(ROWS), "text/plain", 415, "only supports the following content"),
    "another encoding": (
        split(ROWS),
        "application/json; charset=latin-1",
        415,
        "only supports UTF-8",
    ),
}


class TestRefusals:
    """What cannot be answered is a 4xx that says why, and leaves the server at work."""

    @pytest.mark.parametrize("case", REFUSED)
    def test_a_bad_request_says_what_is_wrong(self, served: Served, case: str) -> None:
        """A refusal of the model's is the last line of the traceback in MLflow's answer."""
        body, content_type, status, reason = REFUSED[case]
        answer = served.post(body, content_type)
        assert (answer.status_code, reason in answer.text) == (status, True), answer.text
        if "stack_trace" in answer.text:
            last = answer.json()["stack_trace"].strip().splitlines()[-1]
            assert reason in last
            assert last.startswith(("ValueError: ", "pandas.errors.EmptyDataError: "))

    def test_the_page_shows_reasons_as_they_are(self) -> None:
        """Those of the table in docs/serving.md are proven above."""
        shown = [line.split("`")[-2] for line in SERVING.splitlines() if "| 400 | `" in line]
        reasons = [reason for _, _, _, reason in REFUSED.values()]
        for line in shown:
            assert any(line.startswith(reason) or reason in line for reason in reasons) or any(
                reason.startswith(line.removesuffix("...").strip()) for reason in reasons
            ), line
        assert len(shown) == 7
        assert "`the JSON is nested too deeply`" in SERVING

    def test_it_goes_on_after_refusals(self, served: Served) -> None:
        """A good request is answered."""
        served.post(b"", JSON)
        assert served.answer(split(ROWS), JSON) == served.model.predict(ROWS).tolist()


UNREADABLE: dict[str, tuple[bytes, str | None, str]] = {
    "deep": (b"[" * 100_000, JSON, "nested too deeply"),
    "deep and whole": (
        b'{"inputs": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        *(JSON, "nested too deeply"),
    ),
    "5,000 digits": (b'{"inputs": [' + b"1" * 5000 + b"]}", JSON, "cannot be read"),
    "5,000 digits, charset": (b"1" * 5000, "application/json; charset=utf-8", "cannot be read"),
    "5,000 digits, capitals": (b"1" * 5000, "Application/JSON", "cannot be read"),
    "no Content-Type": (b"{}", None, "no Content-Type"),
    "an empty Content-Type": (b"{}", "", "no Content-Type"),
    "a large body": (b" " * 50_000_001, JSON, "at most 50000000 bytes"),
}


@pytest.fixture(scope="module")
def checked(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve the same version by the line of docs/serving.md that checks requests."""
    folder, port = tmp_path_factory.mktemp("checked"), free_port()
    (line,) = [one for one in shell_lines(SERVING) if "serve_checked.py" in one]
    script, uri, _ = shlex.split(line)[1:]
    address = f"http://127.0.0.1:{port}"
    words = [sys.executable, str(ROOT / script), uri, str(port)]
    with running(words, environment(served.home), folder / "log"):
        wait_for(f"{address}/ping")
        yield Served(address, served.home, served.model)
    assert "Traceback" not in (folder / "log").read_text()


class TestChecked:
    """docs/serve_checked.py: who sends what nobody can read gets 4xx, and the server goes on."""

    @pytest.mark.parametrize("case", UNREADABLE)
    def test_what_nobody_can_read_is_refused(self, checked: Served, case: str) -> None:
        """With the reason in `message`, as MLflow's own refusals have it."""
        body, content_type, why = UNREADABLE[case]
        answer = checked.post(body, content_type)
        assert answer.status_code == (413 if case == "a large body" else 400), answer.text
        assert why in answer.json()["message"]
        assert checked.answer(split(ROWS), JSON) == checked.model.predict(ROWS).tolist()

    @pytest.mark.parametrize("way", WAYS)
    def test_the_answer_is_that_of_mlflows_server(self, checked: Served, way: str) -> None:
        """In each form."""
        write, content_type = WAYS[way]
        expected = checked.model.predict(ROWS).tolist()
        assert checked.answer(write(ROWS), content_type) == expected

    @pytest.mark.parametrize("case", REFUSED)
    def test_what_mlflow_refuses_is_refused_by_it(self, checked: Served, case: str) -> None:
        """With its own words."""
        body, content_type, status, reason = REFUSED[case]
        answer = checked.post(body, content_type)
        assert (answer.status_code, reason in answer.text) == (status, True), answer.text


class TestProbabilities:
    """docs/serve_checked.py answers with probabilities, too."""

    @pytest.mark.parametrize("way", WAYS)
    def test_they_are_those_of_the_model(self, checked: Served, way: str) -> None:
        """Below a path of their own, one pair for each row, in each form."""
        write, content_type = WAYS[way]
        url = f"{checked.address}/probabilities/invocations"
        answer = requests.post(
            url, data=write(ROWS), headers={"Content-Type": content_type}, timeout=60
        )
        assert answer.status_code == 200, answer.text
        expected = checked.model.predict_proba(ROWS)
        np.testing.assert_allclose(answer.json()["predictions"], expected, rtol=0, atol=1e-9)

    def test_what_nobody_can_read_is_refused_there_too(self, checked: Served) -> None:
        """By the same check, and by the model."""
        url = f"{checked.address}/probabilities/invocations"
        for body in (b"[" * 100_000, with_cell("area", "large")):
            answer = requests.post(url, data=body, headers={"Content-Type": JSON}, timeout=60)
            assert answer.status_code == 400, answer.text


class TestManyAtOnce:
    """Answers of concurrent requests are not mixed up."""

    def test_200_concurrent_requests_get_their_own_answers(
        self, served: Served, figure: Callable[[str, Any], None]
    ) -> None:
        """Each is another recording with another answer, some of them refused."""
        recordings = [tracker_rows(seed, 4 + seed % 30) for seed in range(REQUESTS_AT_ONCE)]
        expected = [served.model.predict(rows).tolist() for rows in recordings]
        assert len({tuple(one) for one in expected}) == REQUESTS_AT_ONCE
        kinds = list(WAYS.values())[:3]
        bodies = [
            (kinds[number % 3][0](rows), kinds[number % 3][1])
            for number, rows in enumerate(recordings)
        ]

        def ask(number: int) -> list[bool] | str:
            if number % 10 == 9:
                answer = served.post(with_cell("area", f"text {number}"), JSON)
                assert answer.status_code == 400
                return answer.text
            return served.answer(*bodies[number])

        began = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(ask, range(REQUESTS_AT_ONCE)))
        seconds = time.perf_counter() - began
        for number, answer in enumerate(answers):
            if number % 10 == 9:
                assert f"'text {number}' is not a number" in answer
            else:
                assert answer == expected[number]
        figure(f"{REQUESTS_AT_ONCE} requests of {CLIENTS} clients", f"{seconds:.1f} s")


def mlflow_predict(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the line of docs/serving.md on other files."""
    (line,) = [one for one in shell_lines(SERVING) if one.startswith("mlflow models predict")]
    command = shlex.split(line.partition(" -t ")[0])
    return subprocess.run(
        [*command, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment(home),
    )


class TestCommandLine:
    """`mlflow models predict` and `predict` of this project agree with the server."""

    def test_mlflow_predicts_a_tracker_file(self, served: Served, tmp_path: Path) -> None:
        """Whole numbers as pixels, as real trackers write them."""
        rows = CHANGES["integers where floats are expected"](tracker_rows())
        (tmp_path / "a.csv").write_bytes(as_csv(rows))
        done = mlflow_predict(served.home, "-t", "csv", "-i", str(tmp_path / "a.csv"))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["predictions"] == served.answer(as_csv(rows), CSV)

    def test_mlflow_predicts_json_into_a_file(self, served: Served, tmp_path: Path) -> None:
        """The same document that the server takes."""
        source, target = tmp_path / "a.json", tmp_path / "out.json"
        source.write_text(split(ROWS))
        done = mlflow_predict(served.home, "-t", "json", "-i", str(source), "-o", str(target))
        assert done.returncode == 0, done.stderr
        predicted = json.loads(target.read_text())["predictions"]
        assert predicted == served.model.predict(ROWS).tolist()

    def test_mlflow_refuses_what_the_server_refuses(self, served: Served, tmp_path: Path) -> None:
        """The reason is its last line."""
        (tmp_path / "a.csv").write_bytes(as_csv(ROWS.drop(columns="area")))
        done = mlflow_predict(served.home, "-t", "csv", "-i", str(tmp_path / "a.csv"))
        assert done.returncode != 0
        assert done.stderr.strip().splitlines()[-1].startswith(f"ValueError: {LACKS_AREA}")

    def test_pyfunc_predicts_raw_rows(self, served: Served, tmp_path: Path) -> None:
        """As `mlflow.pyfunc.load_model` gives the model to any program."""
        code = (
            "import sys, json, mlflow, pandas as pd\n"
            f"model = mlflow.pyfunc.load_model('models:/{MODEL}@production')\n"
            "print(json.dumps(model.predict(pd.read_csv(sys.argv[1])).tolist()))"
        )
        rows = CHANGES["integers where floats are expected"](tracker_rows())
        (tmp_path / "a.csv").write_bytes(as_csv(rows))
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "a.csv")],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=environment(served.home),
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == served.model.predict(rows).tolist()


class TestDocuments:
    """The lines, the unit and the programs of docs/serving.md."""

    def test_the_curl_line_is_answered(self, served: Served, tmp_path: Path) -> None:
        """A file as it is."""
        if shutil.which("curl") is None:
            pytest.skip("no curl on this machine")
        (line,) = [one for one in shell_lines(SERVING) if one.startswith("curl")]
        (tmp_path / "recording.csv").write_bytes(as_csv(ROWS))
        done = subprocess.run(
            shlex.split(line.replace(f"http://127.0.0.1:{PORT}", served.address)),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout)["predictions"] == served.model.predict(ROWS).tolist()

    def client(self, served: Served, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run the client of docs/ by its line, in a folder that has recording.csv."""
        (line,) = [one for one in shell_lines(SERVING) if "serving_client.py" in one]
        words = shlex.split(line.replace(f"http://127.0.0.1:{PORT}", served.address))
        return subprocess.run(
            [sys.executable, str(ROOT / words[1]), *words[2:]],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    @pytest.mark.parametrize("header", ["object_id", "object+AF8-id"])
    def test_the_client_counts_stems(self, served: Served, tmp_path: Path, header: str) -> None:
        """As many as `predict` of this project, also where the header is damaged."""
        content = as_csv(ROWS).replace(b"object_id", header.encode())
        (tmp_path / "recording.csv").write_bytes(content)
        stems = ROWS.loc[served.model.predict(ROWS), "object_id"].nunique()
        done = self.client(served, tmp_path)
        assert done.stdout == f"recording.csv: {stems} stems\n", done.stderr
        assert 0 < stems < 14
        verdicts = subprocess.run(
            [
                *(sys.executable, str(ROOT / "pipeline_orchestrator.py"), "predict"),
                *("recording.csv", "--home", str(served.home)),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert verdicts.stderr.startswith(f"recording.csv: {stems}, ")
        assert verdicts.stderr.endswith(f"; 14 counted by the tracker, {stems} after correction\n")

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (as_csv(ROWS.drop(columns="area")), f"400: ValueError: {LACKS_AREA}"),
            (
                as_csv(ROWS.assign(area="large")),
                "400: ValueError: column area: 'large' is not a nu",
            ),
            (b"", "400: pandas.errors.EmptyDataError: No columns to parse from file"),
        ],
    )
    def test_the_client_says_why_it_was_refused(
        self, served: Served, tmp_path: Path, content: bytes, reason: str
    ) -> None:
        """In one line."""
        (tmp_path / "recording.csv").write_bytes(content)
        done = self.client(served, tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: recording.csv: {reason}")
        assert done.stderr.count("\n") == 1

    def test_the_client_says_that_nobody_answers(self, tmp_path: Path) -> None:
        """In one line, too; so is a file that is not there."""
        (tmp_path / "recording.csv").write_bytes(as_csv(ROWS))
        for name in ("recording.csv", "nowhere.csv"):
            done = subprocess.run(
                [
                    *(sys.executable, str(ROOT / "docs/serving_client.py")),
                    *(f"http://127.0.0.1:{free_port()}", name),
                ],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 1
            assert done.stderr.startswith(f"error: {name}: ")
            assert done.stderr.count("\n") == 1

    def test_the_unit_starts_what_the_shell_starts(self) -> None:
        """With the same store and PATH; restarted by the crontab's line."""
        (service,) = blocks(SERVING, "ini")
        lines = shell_lines(SERVING)
        (start,) = [one for one in lines if one.startswith("mlflow models serve")]
        units = configparser.ConfigParser(interpolation=None, strict=False)
        units.read_string(service)
        (checked,) = [one for one in lines if "serve_checked.py" in one]
        assert (
            units["Service"]["ExecStart"] == f"{FOLDER}/{checked.replace('docs', f'{FOLDER}/docs')}"
        )
        words = start.split()
        assert {words[words.index("-m") + 1], words[-1]} <= set(checked.split())
        (store,) = [one for one in lines if "MLFLOW_TRACKING_URI=" in one]
        assert f"Environment={store.removeprefix('export ')}\n" in service
        assert f"Environment=PATH={FOLDER}/.venv/bin:" in service
        (hook,) = blocks(SERVING, "crontab")
        assert hook == "PIPELINE_ON_PROMOTION=sudo systemctl restart stems-api\n"
        assert "/etc/systemd/system/stems-api.service" in SERVING

    def test_a_promotion_is_served_soon(self, registered_template: Path, tmp_path: Path) -> None:
        """docs/serve_production.py follows the alias; told again and again to end, it does."""
        home, port = copy_home(registered_template, tmp_path / "home"), free_port()
        (line,) = [one for one in shell_lines(SERVING) if "serve_production.py" in one]
        script, model, *_ = shlex.split(line)[1:]
        registry = open_registry(Settings(home=home))
        client, old = registry.runs.connection.client, production(home)
        new, number = register_a_version_of_the_new_season(home, registry)
        rows = make_recording(5, "new", 20).drop(columns="ground_truth")
        assert old.predict(rows).tolist() != new.predict(rows).tolist()
        words = [sys.executable, str(ROOT / script), model, str(port), "0.5"]
        address, log = f"http://127.0.0.1:{port}", tmp_path / "log"
        with running(words, environment(home), log) as process:
            server = Served(address, home, old)
            assert answer_in_time(server, rows, old) == old.predict(rows).tolist()
            client.set_registered_model_alias(MODEL, "production", number)
            assert answer_in_time(server, rows, new) == new.predict(rows).tolist()
            client.set_registered_model_alias(MODEL, "production", "1")
            assert answer_in_time(server, rows, old) == old.predict(rows).tolist()
            for _ in range(1000):
                os.killpg(process.pid, signal.SIGTERM)
        said = [line for line in log.read_text().splitlines() if line.startswith("serving")]
        assert said == ["serving version 1", f"serving version {number}", "serving version 1"]
        for _ in range(50):
            try:
                requests.get(address, timeout=1)
            except requests.ConnectionError:
                return
            time.sleep(0.2)
        raise AssertionError("the server outlived the program that started it")


def register_a_version_of_the_new_season(home: Path, registry: Registry) -> tuple[Any, str]:
    """Register a second version, without the alias; return its model and its number."""
    module = load_training_module(Settings(home=home))
    paths = write_recordings(home / "more", 4, "new", seed=9)
    resources = Resources(n_jobs=1)
    with mock.patch.object(training, "make_classifier", make_fast_classifier):
        trained, _ = train(module, paths, n_folds=2, random_state=42, resources=resources)
    manifest = Manifest.of(dict.fromkeys(trained.row_counts, "0" * 64), trained.row_counts)
    tags = {TAG_CYCLE: "second"}
    with registry.runs.open(RETRAINING_RUN, tags) as run_id:
        version = registry.versions.register(
            trained,
            run_id=run_id,
            training=module,
            manifest=manifest,
            out_of_fold=b"",
            tags=tags,
        )
    return trained.model, str(version.number)


def answer_in_time(server: Served, rows: pd.DataFrame, model: Any) -> list[bool]:
    """Ask until the answer is that of a model; return the last answer after a minute."""
    predictions: list[bool] = []
    for _ in range(120):
        with contextlib.suppress(requests.ConnectionError):
            predictions = server.answer(split(rows), JSON)
        if predictions == model.predict(rows).tolist():
            break
        time.sleep(0.5)
    return predictions
