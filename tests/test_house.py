"""The structure of the source: which room may import which, where Ray is, how long things may be."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("gansfp", "tune", "jobs") for path in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# Rooms by floor: a module imports from its own room, and from rooms on lower floors.
FLOORS = (
    {"gansfp"},  # the ground: errors, labels, store, device, stopwatch
    {"gansfp.images", "gansfp.statistics", "gansfp.networks"},
    {"gansfp.collection", "gansfp.embedding", "gansfp.scoring"},
    {"gansfp.training", "gansfp.simulation"},
    {"gansfp.decision", "gansfp.published"},
    {"gansfp.runtime"},
    {"gansfp.report"},  # reads what all others have written, also the log of a run
    {"tune"},
    {"jobs.benchmarks", "jobs.reproduction", "jobs.validation"},
    {"jobs"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Rooms on one floor do not import each other, with this exception.
NEIGHBOURS = {("gansfp.published", "gansfp.decision")}  # systems write their predictions as the final step does


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in SOURCES}


def room_of(module: str) -> str:
    return module if module in FLOOR else module.rpartition(".")[0]


def imports(source: str, module: str = "") -> set[str]:
    """The modules of ours, and Ray, that a source imports, at the top or inside a function; type checking apart."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    ours = {name for name in found if name in MODULES and name != module}
    return ours | {name for name in found if name.split(".")[0] == "ray"}


def test_every_room_is_on_a_floor():
    assert {room_of(module) for module in MODULES} == set(FLOOR)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    here = room_of(module)
    for other in imports(MODULES[module].read_text(), module):
        if other.split(".")[0] == "ray":
            allowed = here in ("gansfp.runtime", "jobs", "jobs.benchmarks", "jobs.reproduction")
            assert allowed or module == "tune.trials", f"{module} imports Ray"
            continue
        there = room_of(other)
        lower = FLOOR[there] < FLOOR[here] or (here, there) in NEIGHBOURS
        assert there == here or lower, f"{module} imports {other}, which is not below it"


def test_no_circle():
    graph = {module: imports(path.read_text(), module) & MODULES.keys() for module, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for other in graph[module]:
                visit(other, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_a_package_holds_a_docstring_and_nothing_else():
    for path in SOURCES:
        if path.name == "__init__.py":
            body = ast.parse(path.read_text()).body
            assert [type(node) for node in body] == [ast.Expr], path


def branches(function: ast.AST) -> int:
    """Ways that a function can take: conditions, loops, handlers, cases, and what `and` and `or` join."""
    kinds = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.IfExp, ast.match_case, ast.comprehension)
    nodes = list(ast.walk(function))
    joined = sum(len(node.values) - 1 for node in nodes if isinstance(node, ast.BoolOp))
    return joined + sum(isinstance(node, kinds) for node in nodes)


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_is_too_long(path):
    source = path.read_text()
    assert source.count("\n") <= 350
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, f"{node.name} has more than 50 lines"
            assert branches(node) <= 15, f"{node.name} has {branches(node)} branches"


def test_few_untyped_records():
    untyped = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for _ in re.findall(r"dict\[str, Any\]", line)
    ]
    assert len(untyped) < 20, untyped
