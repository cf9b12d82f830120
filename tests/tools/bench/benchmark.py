"""Measure what the README promises about time and memory, as ratios taken side by side.

What is compared runs alternately in one run, so that a busy machine slows both alike; a figure is
the median of the pairs' ratios with their range.

Usage::

    python tests/tools/bench/benchmark.py [--only PART] [--report FILE]

Takes the recordings of ../shared/gts, or synthetic ones where they are missing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[3]
TOOLS = ROOT / "tests" / "tools"
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(TOOLS), str(TOOLS / "bench")]

import first_generation
import joblib
import numpy as np
import pandas as pd
from conftest import copy_home, make_home
from grow import grow
from large_files import peak_memory, write_large
from sample_gts import write_recordings

import train_classification_model as module
from retraining import cross_validation, ground_truth
from retraining.cross_validation import Fitter, Reader, Recording, Resources, train
from retraining.identity import Observations, observe
from retraining.intake import Learnt, take_in
from retraining.journal import Memory
from retraining.kept_tables import CACHE_FOLDER, KeptTables
from retraining.known_recordings import KnownRecordings
from retraining.settings import Settings
from retraining.training import load_training_module

SHARED = ROOT.parent / "shared"
TRAINING = load_training_module(Settings())
N_FOLDS, RANDOM_STATE = 5, 42
N_RECORDINGS, N_NEW = 33, 15
REPETITIONS = 7
N_NAMES = 99_999
N_KNOWN, N_BATCH = 10_000, 30
N_BAD, BAD_REPETITIONS = 5000, 3
LARGE_ROWS = 990_000
GOLDEN_DIGITS = 1e-6
STANDARD_LIBRARY = "import argparse, dataclasses, hashlib, json, logging, subprocess, tempfile"
"""What any program needs that has flags, a log, settings, and files that survive a power cut."""


@dataclass(frozen=True)
class Figure:
    """One line of the report.

    Parameters
    ----------
    what
        What is compared with what.
    ratios
        One per repetition.
    absolute
        Median seconds or megabytes, for orientation.
    limit
        What was asked; empty if nothing was.
    """

    what: str
    ratios: list[float]
    absolute: str
    limit: str = ""

    def row(self) -> str:
        """Return it as a row of a table."""
        spread = f"{min(self.ratios):.2f} to {max(self.ratios):.2f}, n = {len(self.ratios)}"
        middle = f"**{statistics.median(self.ratios):.2f}**"
        return f"| {self.what} | {middle} | {spread} | {self.limit} | {self.absolute} |"


# --- How it is measured ---


def seconds(action: Callable[[], Any]) -> float:
    """Return how long an action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def compare(
    what: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    limit: str = "",
    *,
    repetitions: int = REPETITIONS,
    warm_up: int = 1,
) -> Figure:
    """Run two actions alternately, after pairs that do not count."""
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(warm_up + repetitions)][warm_up:]
    mine, yours = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = [one / other for one, other in pairs]
    return Figure(what, ratios, f"{mine:.3f} s to {yours:.3f} s", limit)


def run(*words: str | Path, cache: Path) -> None:
    """Run Python as a process of its own; as on any other night, its bytecode is at hand."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(cache)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    words = (sys.executable, *map(str, words))
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(done.stderr)


@dataclass(frozen=True)
class Retraining:
    """A retraining in a process of its own.

    Parameters
    ----------
    seconds
        Without the imports.
    peak_mb
        Largest sum of the proportional memory (PSS) of all its processes.
    """

    seconds: float
    peak_mb: float


def train_apart(folder: Path, n_jobs: int) -> Retraining:
    """Train in a new process and watch its memory."""
    words = [sys.executable, __file__, "--train", str(folder), "--n-jobs", str(n_jobs)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, memory_mb(process.pid))
            time.sleep(0.1)
        assert process.stdout is not None
        if process.returncode:
            sys.exit(f"training on {folder} failed")
        return Retraining(peak_mb=peak, **json.loads(process.stdout.read()))


def memory_mb(pid: int) -> float:
    """Return the proportional memory of a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(folder.name))
    total, family = 0, [pid]
    while family:
        member = family.pop()
        family += children.get(member, [])
        try:
            rollup = Path(f"/proc/{member}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line[:4] == "Pss:")
    return total / 1000


def train_here(folder: Path, n_jobs: int) -> None:
    """Be the process of `train_apart`."""
    took = seconds(lambda: train_on(recordings_in(folder), n_jobs))
    print(json.dumps({"seconds": took}))


def train_on(paths: list[Path], n_jobs: int) -> Any:
    """Train as a cycle does, without what was read before; return the model."""
    trained, _ = train(
        TRAINING,
        paths,
        n_folds=N_FOLDS,
        random_state=RANDOM_STATE,
        resources=Resources(n_jobs=n_jobs),
    )
    return trained.model


def recordings_in(folder: Path) -> list[Path]:
    """Return the files of a folder, sorted."""
    return sorted(folder.glob("*.csv"))


def read(paths: list[Path], tables: KeptTables | None = None) -> list[Recording]:
    """Read recordings in this process, as a training does."""
    reader = Reader(TRAINING, tables)
    return [reader.recording(path) for path in paths]


# --- What is measured ---


def nights(folder: Path) -> Iterator[Figure]:
    """Compare a night below the trigger with a bare Python."""
    orchestrator = ROOT / "pipeline_orchestrator.py"
    for name in ("empty", "full"):
        for each in ("new_gts", "used_gts"):
            (folder / name / each).mkdir(parents=True)
    for number in range(N_NAMES):
        (folder / "full" / "new_gts" / f"{number}.csv").touch()
    python = partial(run, cache=folder / "bytecode")
    list_names = f"import os; sorted(os.listdir({str(folder / 'full' / 'new_gts')!r}))"
    empty = (orchestrator, "--quiet", "--home", folder / "empty")
    full = (orchestrator, "--min-new-files", str(N_NAMES + 1), "--home", folder / "full")
    yield compare(
        "a night without news to `python -c pass`",
        lambda: python(*empty),
        lambda: python("-c", "pass"),
        "0.25 s",
    )
    yield compare(
        f"the same to `python -c '{STANDARD_LIBRARY}'`",
        lambda: python(*empty),
        lambda: python("-c", STANDARD_LIBRARY),
    )
    yield compare(
        f"the same with {N_NAMES:,} files, to Python listing and sorting them",
        lambda: python(*full),
        lambda: python("-c", list_names),
    )


def reading(paths: list[Path], home: Path) -> Iterator[Figure]:
    """Compare reading with features with a bare `pandas.read_csv`."""
    tables = KeptTables(home / CACHE_FOLDER, TRAINING.maker(), 256)
    reader = Reader(TRAINING, tables)

    def read_csv() -> None:
        for path in paths:
            pd.read_csv(path)

    def read_all() -> None:
        for path in paths:
            rows, _ = TRAINING.read(path)
            TRAINING.examples(rows)
            observe(TRAINING, rows)

    yield compare(
        f"reading {len(paths)} recordings, features and identity included, to bare `read_csv`",
        read_all,
        read_csv,
        "7",
    )
    yield compare(
        "the same from kept tables, to bare `read_csv`",
        lambda: read(paths, tables),
        read_csv,
    )
    yield compare(
        "the same and the rows to score, from kept tables, to bare `read_csv`",
        lambda: [reader.rows(one) for one in read(paths, tables)],
        read_csv,
    )


def bad_files(folder: Path) -> Iterator[Figure]:
    """Compare the intake of many tiny bad files with the same without waiting for the disk."""
    homes = [folder / "bad" / str(number) for number in range(2 * BAD_REPETITIONS)]
    for home in homes:
        for name in ("new_gts", "used_gts"):
            (home / name).mkdir(parents=True)
        for number in range(N_BAD):
            (home / "new_gts" / f"{number}.csv").write_bytes(b"bad %d" % number)
    os.sync()
    waiting = iter(homes)
    logging.getLogger("pipeline").setLevel(logging.ERROR)

    def refuse_all() -> None:
        settings = Settings(home=next(waiting))
        known = KnownRecordings.of(settings.home, TRAINING)
        found = take_in(settings, TRAINING, known, Memory(), Learnt())
        ground_truth.reject(settings, found.refusals)

    def refuse_all_at_risk() -> None:
        with mock.patch.object(os, "fsync", lambda _: None):
            refuse_all()

    yield compare(
        f"rejecting {N_BAD:,} tiny bad files to the same without waiting for the disk",
        refuse_all,
        refuse_all_at_risk,
        "5",
        repetitions=BAD_REPETITIONS,
        warm_up=0,
    )


def memory(folder: Path) -> Iterator[Figure]:
    """Compare the peak memory of reading a large file with its size."""
    for n_rows, n_objects in ((LARGE_ROWS, 400), (LARGE_ROWS, 20_000)):
        path = write_large(folder / f"large-{n_objects}.csv", n_rows, n_objects)
        ratios = [peak_memory(path, {}) for _ in range(3)]
        size = path.stat().st_size / 1e6
        yield Figure(
            f"peak memory of all that is made of a file with {n_rows:,} rows and {n_objects:,} "
            "objects, to its size",
            ratios,
            f"{statistics.median(ratios) * size:.0f} MB to {size:.0f} MB",
            "12",
        )


def known_recordings(folder: Path) -> Iterator[Figure]:
    """Compare the comparison of a batch with all that a home knows with a `sleep`."""
    random = np.random.default_rng(0)

    def recording() -> Observations:
        hashes = np.unique(random.integers(0, 2**64, random.integers(1500, 12_000), np.uint64))
        digests = f"{hashes[0]:032x}", f"{hashes[1]:032x}"
        return Observations(hashes, hashes, hashes, hashes > 0, *digests)

    old = {f"{number:064x}": recording() for number in range(N_KNOWN)}
    new = {f"{N_KNOWN + number:064x}": recording() for number in range(N_BATCH)}
    known = KnownRecordings.of(folder, TRAINING)
    known.add(old.items(), "bench")
    known.add(new.items(), "bench")
    known.save()

    def look_up() -> None:
        KnownRecordings.of(folder, TRAINING).common(new, [*old, *new])

    yield compare(
        f"comparing {N_BATCH} recordings with {N_KNOWN:,} known ones, their file read, to 0.3 s",
        look_up,
        lambda: time.sleep(0.3),
        "1",
    )


def generations(paths: list[Path]) -> Iterator[Figure]:
    """Compare the first generation's algorithm with ours where both compute the same."""
    for path in sorted(paths, key=lambda path: path.stat().st_size)[:3]:
        rows = module.read_ground_truth(path)
        golden = SHARED / "golden" / f"detection_features_{path.stem}.csv"
        same = equal_features(rows, golden)
        yield compare(
            f"first generation's features of {path.name} ({len(rows):,} rows) to the same of ours"
            f", equal {same}",
            partial(first_generation.detection_features, rows),
            partial(module.detection_features, rows),
            repetitions=5,
        )


def equal_features(rows: pd.DataFrame, golden: Path) -> str:
    """Say to what both results are equal."""
    theirs, ours = first_generation.detection_features(rows), module.detection_features(rows)
    np.testing.assert_allclose(theirs, ours, rtol=GOLDEN_DIGITS, atol=GOLDEN_DIGITS)
    if not golden.exists():
        return "to each other"
    table = pd.read_csv(golden)[first_generation.FEATURES]
    np.testing.assert_allclose(ours.sort_index(), table, rtol=GOLDEN_DIGITS, atol=GOLDEN_DIGITS)
    return "to each other and to the golden values"


def trainings(folders: dict[int, Path]) -> Iterator[Figure]:
    """Compare retraining in two processes with one, and large folders with small ones."""
    small = folders[N_RECORDINGS]
    runs = {n_jobs: [train_apart(small, n_jobs) for _ in range(5)] for n_jobs in (2, 1)}
    took = {n_jobs: [one.seconds for one in each] for n_jobs, each in runs.items()}
    middle = {n_jobs: statistics.median(each) for n_jobs, each in took.items()}
    memory = ", ".join(f"{max(one.peak_mb for one in runs[n]):.0f} MB" for n in (2, 1))
    yield Figure(
        f"six fits on {N_RECORDINGS} recordings, starting processes included: two processes to one",
        [two / one for two, one in zip(took[2], took[1], strict=True)],
        f"{middle[2]:.1f} s to {middle[1]:.1f} s; peak {memory}",
        "10 s, 600 MB",
    )
    n_tracks = sum(len(one.examples) for one in read(recordings_in(small)))
    for count, folder in list(folders.items())[1:]:
        large = [train_apart(folder, 2) for _ in range(5)]
        growth = count / N_RECORDINGS
        yield Figure(
            f"retraining on {count:,} recordings ({n_tracks * count // N_RECORDINGS:,} tracks) "
            f"in two processes, per recording, to {N_RECORDINGS}",
            [many.seconds / few / growth for many, few in zip(large, took[2], strict=True)],
            f"{statistics.median(one.seconds for one in large):.0f} s, "
            f"peak {max(one.peak_mb for one in large):,.0f} MB",
        )


def growing(folders: dict[int, Path]) -> Iterator[Figure]:
    """Compare reading many recordings with reading few, and reading in parallel."""
    small, middle, large = (recordings_in(folders[n]) for n in sorted(folders))
    growth = len(large) / len(small)
    yield compare(
        f"reading {len(large):,} recordings to reading {len(small)} of them {growth:.0f} times",
        lambda: [len(one.examples) for one in read(large)],
        lambda: [read(small) for _ in range(round(growth))],
        repetitions=5,
        warm_up=0,
    )
    always = mock.patch.object(cross_validation, "PARALLEL_READING_BYTES", 0)
    reader, two = Reader(TRAINING, None), Resources(n_jobs=2)
    with always, cross_validation._workers(two):
        yield compare(
            f"reading {len(middle):,} recordings in two running processes to one",
            lambda: cross_validation._read(reader, middle, two),
            lambda: read(middle),
            repetitions=5,
        )


def threads(paths: list[Path]) -> Iterator[Figure]:
    """Compare fits as they are, with one thread each, to fits with a thread per core."""
    recordings = read(paths)
    one = partial(fit_alone, recordings)
    many = partial(fit_unbounded, recordings)
    what = "a fit with one thread to one with a thread per core"
    yield compare(f"{what}, nothing else running", one, many, repetitions=5)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        yield compare(f"{what}, beside two busy processes", one, many, repetitions=5)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    yield compare(
        "two fits at once with one thread each to two with a thread per core each",
        partial(twice_at_once, fit_alone, recordings),
        partial(twice_at_once, fit_unbounded, recordings),
        repetitions=5,
    )


def fit_unbounded(recordings: list[Recording]) -> None:
    """Fit without the bound on threads."""
    unbounded = SimpleNamespace(limit=lambda **_: nullcontext())
    with mock.patch.object(module, "_threads", lambda: unbounded):
        fit_alone(recordings)


def twice_at_once(fit: Callable[[list[Recording]], Any], recordings: list[Recording]) -> None:
    """Fit in two processes that may use all cores each."""
    with joblib.parallel_config("loky", n_jobs=2, inner_max_num_threads=os.cpu_count()):
        joblib.Parallel()(joblib.delayed(fit)(recordings) for _ in range(2))


def final_fit(folder: Path) -> Iterator[Figure]:
    """Measure the one task that cannot be spread, up to the largest folder."""
    recordings = read(recordings_in(folder))
    pairs = [
        [fit_alone(recordings[: len(recordings) // share]) for share in (10, 1)] for _ in range(5)
    ]
    (few, n_few), (many, n_many) = (
        (statistics.median(took for took, _ in runs), runs[0][1])
        for runs in zip(*pairs, strict=True)
    )
    yield Figure(
        "the final fit alone, per track: all recordings to a tenth of them",
        [large / n_many / (small / n_few) for (small, _), (large, _) in pairs],
        f"{n_many:,} tracks {many:.0f} s, {n_few:,} tracks {few:.1f} s",
    )


def fit_alone(recordings: list[Recording]) -> tuple[float, int]:
    """Return how long the fit on recordings takes, and the number of their tracks."""
    everything = np.arange(len(recordings))
    lengths = [len(one.examples) for one in recordings]
    fitter = Fitter(
        reader=Reader(TRAINING, None),
        recordings=tuple(one.without_examples() for one in recordings),
        examples=pd.concat([one.examples for one in recordings], ignore_index=True),
        recording_of=np.repeat(everything, lengths),
        random_state=RANDOM_STATE,
    )
    took = seconds(lambda: TRAINING.fit(fitter.part(everything), RANDOM_STATE))
    return took, sum(lengths)


def cycles(paths: list[Path], folder: Path) -> Iterator[Figure]:
    """Compare a whole cycle, with a promotion, with the retraining in it."""
    home, everything = make_home(folder / "before" / "home"), folder / "before" / "all"
    everything.mkdir()
    for number, path in enumerate(paths):
        waiting = number >= len(paths) - N_NEW
        for target in (home / ("new_gts" if waiting else "used_gts"), everything):
            shutil.copy(path, target)
    first_model = home / TRAINING.first_model_path
    joblib.dump(train_on(recordings_in(home / "used_gts"), n_jobs=2), first_model)
    first_model.chmod(0o600)
    python = partial(run, cache=folder / "bytecode")
    python(ROOT / "register_first_model.py", "--home", home)
    # Whatever both models do on the new ones, the cycle goes all its way.
    words = ("--threshold", "0", "--significance", "1", "--max-regression", "100000")
    pairs = []
    for number in range(5):
        copy = copy_home(home, folder / f"cycle-{number}" / "home")
        orchestrator = (ROOT / "pipeline_orchestrator.py", *words, "--home", copy)
        cycle = seconds(partial(python, *orchestrator))
        pairs.append((cycle, train_apart(everything, 2).seconds))
    mine, yours = (statistics.median(column) for column in zip(*pairs, strict=True))
    yield Figure(
        f"a full cycle on {len(paths) - N_NEW} + {N_NEW} recordings to the retraining in it",
        [one / other for one, other in pairs],
        f"{mine:.1f} s to {yours:.1f} s",
        "12 s",
    )


# --- The report ---

HEADER = """# Benchmarks

{date}, {machine}, {cores} cores, load {load:.1f} before the start, {python}, {recordings}:
`{command}`. Took {minutes:.0f} minutes.

Each figure is a ratio measured side by side in one run: its median, and its range over the
repetitions. The absolute values are for orientation only: the machine had other work to do.
Memory is the largest sum of the proportional set sizes (PSS) of **all** processes of a retraining.
Copies are easier to learn than new recordings, so their trees are smaller than real ones would be.

| | ratio | range | asked | absolute |
|---|---|---|---|---|
"""


def make_folders(folder: Path) -> tuple[dict[int, Path], str]:
    """Return number of recordings -> folder, and where they come from."""
    source, text = SHARED / "gts", "real recordings and copies with jitter"
    if not source.is_dir():
        source, text = folder / "samples", "synthetic recordings and copies with jitter"
        write_recordings(source, N_RECORDINGS)
    folders = {N_RECORDINGS: source}
    for n_copies in (10, 100):
        count = len(recordings_in(source)) * n_copies
        folders[count] = folder / f"grown-{n_copies}"
        grow(source, folders[count], n_copies)
    return folders, text


def measure(folder: Path, only: str) -> tuple[list[Figure], str]:
    """Return the figures of one part or of all, printing each as it comes."""
    folders, text = make_folders(folder)
    paths = recordings_in(folders[N_RECORDINGS])
    figures = []
    parts = {
        "nights": nights(folder),
        "reading": reading(paths, folder),
        "known": known_recordings(folder),
        "bad": bad_files(folder),
        "memory": memory(folder),
        "generations": generations(paths),
        "threads": threads(paths),
        "cycles": cycles(paths, folder),
        "trainings": trainings(folders),
        "growing": growing(folders),
        "fit": final_fit(folders[max(folders)]),
    }
    for part in [parts[only]] if only else parts.values():
        for figure in part:
            print(figure.row(), flush=True)
            figures.append(figure)
    return figures, text


def main() -> int:
    """Print the figures, and write them."""
    parser = argparse.ArgumentParser(description="Measure time and memory as ratios.")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--only", default="", metavar="PART", help="such as reading or known")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--n-jobs", type=int, default=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train_here(options.train, options.n_jobs)
        return 0
    began, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="stem-bench-") as name:
        figures, text = measure(Path(name), options.only)
    report = HEADER.format(
        date=datetime.date.today().isoformat(),
        machine=f"{platform.system()} {platform.machine()}",
        cores=os.cpu_count(),
        load=load,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        recordings=text,
        command="make bench",
        minutes=(time.monotonic() - began) / 60,
    ) + "\n".join([*(figure.row() for figure in figures), ""])
    if options.report:
        options.report.parent.mkdir(exist_ok=True)
        options.report.write_text(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
