"""Read how the house is built: who imports whom, and how many lines stand where.

All imports count, also those inside functions and those for types only: what a reader must know
first does not depend on when Python looks for it. `ORDER` says who stands above whom;
`tests/test_house.py` holds it.

Usage::

    python tests/tools/house.py [--root FOLDER]

Prints lines of code, of docstrings and of comments per file, the length of functions, circles and
upward imports. A layout without `retraining/`, as the first edition had it, can be measured too.
"""

from __future__ import annotations

import argparse
import ast
import io
import itertools
import statistics
import sys
import tokenize
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "retraining"
TRAINING_MODULE = "train_classification_model"
SCRIPTS = ("pipeline_orchestrator", "register_first_model", TRAINING_MODULE)
ORDER: tuple[tuple[str, ...], ...] = (
    ("contract", "errors", "outcome", "text", "windows"),
    ("resampling", "settings", "workers"),
    ("advice", "gate"),
    ("confined", "files", "typed_names"),
    ("archives", "journal", "kept_tables"),
    ("looks", "marks", "training"),
    ("calibration", "cross_validation", "dask_cluster", "ground_truth", "identity"),
    ("estimates", "known_recordings", "triage"),
    ("intake",),
    ("registry.*",),
    ("command_line", "cycle", "inventory", "notices", "pruning", "vouching"),
    ("records", "recovery", "unlabelled"),
    ("report.*",),
    ("recorder",),
    ("commands.*",),
    SCRIPTS,
)
"""Modules of the package and the scripts, row above row: a module imports from lower rows only.

`NAME.*` is a package, whose modules may import each other as long as no circle comes of it.
"""
HEAVY_THEMSELVES = tuple(
    f"{PACKAGE}.{name}"
    for name in (
        *("calibration", "gate", "resampling", "identity", "known_recordings", "intake"),
        "triage",
    )
)
"""Need numpy for everything they do; so they are imported late, as numpy is."""
FOR_TYPES_ONLY = ("TYPE_CHECKING", "typing.TYPE_CHECKING")
IMPORTING_CALLS = ("importlib.import_module", "import_module", "__import__")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (ast.Module, ast.ClassDef, *FUNCTIONS)
LAYOUT_TOKENS = {
    *(tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
    tokenize.COMMENT,
}


# --- Imports ---


@dataclass(frozen=True)
class Import:
    """One import.

    Parameters
    ----------
    importer, imported
        Dotted names; of another package its first name only.
    line
        In the importer's file.
    function
        The outermost function that it stands in; empty at module level.
    for_types
        Whether only a type checker sees it.
    """

    importer: str
    imported: str
    line: int
    function: str
    for_types: bool

    def __str__(self) -> str:
        return f"{self.importer} (line {self.line}) imports {self.imported}"


def modules_of(root: Path) -> dict[str, Path]:
    """Return dotted name -> file of all modules of a checkout, tests and docs left out."""
    paths = [*root.glob("*.py"), *(root / PACKAGE).rglob("*.py")]
    return {_dotted(path.relative_to(root)): path for path in sorted(paths)}


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(modules: dict[str, Path]) -> list[Import]:
    """Return all imports of all modules; those of a module of itself left out."""
    found = (
        one for name, path in modules.items() for one in _imports_in(name, path, modules.keys())
    )
    return [one for one in dict.fromkeys(found) if one.importer != one.imported]


def _imports_in(name: str, path: Path, known: Collection[str]) -> Iterator[Import]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def walk(node: ast.AST, function: str, for_types: bool) -> Iterator[Import]:
        for imported in _imported_by(node, package, known):
            yield Import(name, imported, getattr(node, "lineno", 0), function, for_types)
        if isinstance(node, FUNCTIONS):
            function = function or node.name
        types_only = isinstance(node, ast.If) and ast.unparse(node.test) in FOR_TYPES_ONLY
        below = node.orelse if types_only and isinstance(node, ast.If) else []
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function, for_types or (types_only and child not in below))

    yield from walk(ast.parse(path.read_bytes()), "", False)


def _imported_by(node: ast.AST, package: str, known: Collection[str]) -> Iterator[str]:
    """Give what one statement or call imports: a module where there is one of that name."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield _as_known(alias.name, known)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:
            full = f"{base}.{alias.name}"
            yield full if full in known else _as_known(base, known)
    elif (
        isinstance(node, ast.Call)
        and ast.unparse(node.func) in IMPORTING_CALLS
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ):
        yield _as_known(str(node.args[0].value), known)


def _as_known(name: str, known: Collection[str]) -> str:
    return name if name in known else name.partition(".")[0]


def circles(imports: Sequence[Import]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or by way of others."""
    reached: dict[str, set[str]] = {}
    for one in imports:
        reached.setdefault(one.importer, set()).add(one.imported)
    for middle, start in itertools.product(list(reached), repeat=2):  # Warshall's closure
        if middle in reached[start]:
            reached[start] |= reached[middle]
    groups = {
        frozenset(other for other in reached[name] if name in reached.get(other, ()))
        for name in reached
        if name in reached[name]
    }
    return sorted(sorted(group) for group in groups)


def closing_imports(imports: Sequence[Import]) -> list[Import]:
    """Return the fewest imports without which there is no circle: whatever the order, they go up.

    A module that imports another several times counts once; late ones are named before others.
    """
    found: list[Import] = []
    late_first = sorted(imports, key=lambda one: not (one.function or one.for_types))
    for group in circles(imports):
        inside = {(one.importer, one.imported): one for one in late_first if one.importer in group}
        inside = {pair: one for pair, one in inside.items() if pair[1] in group}
        tries = (
            taken
            for number in range(1, len(inside) + 1)
            for taken in itertools.combinations(inside, number)
            if not circles([one for pair, one in inside.items() if pair not in taken])
        )
        found += [inside[pair] for pair in next(tries)]
    return found


def row_of(name: str) -> int | None:
    """Return the row of a module in `ORDER`, from below; None if it has no place."""
    short = name.removeprefix(f"{PACKAGE}.")
    if name == PACKAGE:  # imported with each of its modules
        return -1
    for number, row in enumerate(ORDER):
        if short in row or f"{short.partition('.')[0]}.*" in row:
            return number
    return None


def without_a_place(modules: Collection[str]) -> list[str]:
    """Return the modules that `ORDER` does not name."""
    return [name for name in modules if row_of(name) is None]


def upward_imports(imports: Sequence[Import]) -> list[Import]:
    """Return the imports that do not go down in `ORDER`."""
    found = []
    for one in imports:
        above, below = row_of(one.importer), row_of(one.imported)
        if above is None or below is None or below < above:
            continue
        packages = {name.split(".")[1] for name in (one.importer, one.imported) if "." in name}
        if below > above or len(packages) != 1 or f"{packages.pop()}.*" not in ORDER[above]:
            found.append(one)
    return list({(one.importer, one.imported): one for one in found}.values())


def heavy_imports(imports: Sequence[Import], modules: Collection[str]) -> list[Import]:
    """Return what is imported with a module beyond Python's own library and the house's modules.

    Left out is what may be heavy, and must be imported late itself: `HEAVY_THEMSELVES` and the
    training module.
    """
    return [
        one
        for one in imports
        if one.importer not in (*HEAVY_THEMSELVES, TRAINING_MODULE)
        and not (one.function or one.for_types)
        and (
            one.imported in (*HEAVY_THEMSELVES, TRAINING_MODULE)
            or (one.imported not in sys.stdlib_module_names and one.imported not in modules)
        )
    ]


# --- Lines ---


@dataclass(frozen=True)
class Lines:
    """What a file consists of, in lines.

    Parameters
    ----------
    code
        Neither blank nor of one of the other two kinds.
    docstrings
        Of modules, classes and functions, blank lines inside included.
    comments
        With nothing else on them.
    functions
        Name and lines of code of each, those of functions inside included.
    """

    code: int
    docstrings: int
    comments: int
    functions: tuple[tuple[str, int], ...]


def lines_of(path: Path) -> Lines:
    """Count the lines of a file; in a page that is no Python, all that are not blank are code."""
    text = path.read_text()
    if path.suffix != ".py":
        return Lines(sum(bool(line.strip()) for line in text.splitlines()), 0, 0, ())
    tree = ast.parse(text)
    blank = {number for number, line in enumerate(text.splitlines(), 1) if not line.strip()}
    documented = [node for node in ast.walk(tree) if isinstance(node, DOCUMENTED)]
    docstrings = {number for node in documented for number in _docstring_lines(node)}
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    code = {
        number
        for token in tokens
        if token.type not in LAYOUT_TOKENS
        for number in range(token.start[0], token.end[0] + 1)
    } - docstrings.union(blank)
    comments = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    functions = tuple(
        (node.name, len(code & set(range(node.lineno, (node.end_lineno or node.lineno) + 1))))
        for node in documented
        if isinstance(node, FUNCTIONS)
    )
    return Lines(len(code), len(docstrings), len(comments - code - docstrings), functions)


def _docstring_lines(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> range:
    if ast.get_docstring(node, clean=False) is None:
        return range(0)
    first = node.body[0]
    return range(first.lineno, (first.end_lineno or first.lineno) + 1)


def print_lines(root: Path) -> None:
    """Print lines per file, their sums, the largest file and the length of functions."""
    pages = sorted((root / PACKAGE).rglob("*.html"))
    found = {path: lines_of(path) for path in (*modules_of(root).values(), *pages)}
    print("  code  docstrings  comments")
    for path, lines in found.items():
        print(_row(lines.code, lines.docstrings, lines.comments, str(path.relative_to(root))))
    sums = (sum(getattr(one, kind) for one in found.values()) for kind in Lines.__annotations__)
    code, docstrings, comments = itertools.islice(sums, 3)
    print(_row(code, docstrings, comments, f"all {len(found)} files"))
    largest = max(found, key=lambda path: found[path].code)
    print(f"\nlargest file: {largest.relative_to(root)}, {found[largest].code} lines of code")
    functions = [
        (length, f"{name} in {path.relative_to(root)}")
        for path, lines in found.items()
        for name, length in lines.functions
    ]
    lengths = [length for length, _ in functions]
    print(
        f"{len(lengths)} functions, lines of code: median {statistics.median(lengths):g}, "
        f"90th percentile {statistics.quantiles(lengths, n=10)[-1]:g}, "
        f"longest {max(functions)[0]} ({max(functions)[1]})"
    )


def _row(code: int, docstrings: int, comments: int, name: str) -> str:
    return f"{code:>6,}{docstrings:>12,}{comments:>10,}  {name}"


def print_imports(root: Path) -> None:
    """Print circles and upward imports."""
    imports = imports_of(modules_of(root))
    imports = [one for one in imports if one.imported in modules_of(root)]
    up = upward_imports(imports) if (root / PACKAGE).is_dir() else closing_imports(imports)
    groups = circles(imports)
    print(f"{len(groups)} circles, {len(up)} upward imports")
    for group in groups:
        print(f"  circle: {', '.join(group)}")
    for one in up:
        print(f"  upward: {one}")


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="Count lines, circles and upward imports.")
    parser.add_argument("--root", type=Path, default=ROOT)
    root = parser.parse_args().root.resolve()
    print_lines(root)
    print_imports(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
