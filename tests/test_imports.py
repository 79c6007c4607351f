"""Data flows one way: text, batch, prompt, forward, loss or answer, artifact. Nothing imports backwards."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import softprompt
from softprompt.prompts import METHODS

ROOT = Path(softprompt.__file__).parent

# What each room may know of the others, and of the libraries that are more than tools.
MAY_KNOW = {
    "errors": set(),
    "atomic": set(),
    "checks": {"errors"},
    "backbone": {"errors", "checks", "torch", "transformers"},
    "text": {"errors", "checks", "torch", "transformers"},
    "prompts": {"errors", "checks", "text.task", "text.template", "text.worked", "torch"},
    "run": {"errors", "backbone", "text", "prompts", "torch", "transformers"},
}
HEAVY = {"torch", "transformers", "datasets", "numpy", "peft"}


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by its name inside it."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Everything that may be run, inside functions too; what stands there for the type checker alone is no import."""
    for child in ast.iter_child_nodes(node):
        if not is_type_checking(child):
            yield child
            yield from walk(child)


def imported(tree: ast.AST) -> set[str]:
    """Modules of the package by their names inside it, and of other packages by the first part of theirs."""
    names: set[str] = set()
    for node in walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            ours = {name for name in inner if name.removeprefix("softprompt.") in modules()}
            names |= ours or {node.module or ""}
    return {n.removeprefix("softprompt.") if n.startswith("softprompt") else n.partition(".")[0] for n in names}


def room(module: str) -> str:
    return module.partition(".")[0]


def test_there_is_something_to_look_at():
    assert set(MAY_KNOW) <= {room(name) for name in modules()}
    assert {"text.batch", "prompts.prompt", "backbone.backbone", "torch"} <= imported(modules()["run.forward"])


@pytest.mark.parametrize("name", MAY_KNOW)
def test_a_lower_room_knows_only_what_it_may(name):
    rooms = {room(module) for module in modules() if module}
    for module, tree in modules().items():
        if room(module) != name:
            continue
        known = {i for i in imported(tree) if room(i) in rooms or i in HEAVY}
        strange = {i for i in known if room(i) != name and i not in MAY_KNOW[name] and room(i) not in MAY_KNOW[name]}
        assert not strange, f"{module} imports {', '.join(sorted(strange))}"


def test_nothing_imports_the_command_line():
    for module, tree in modules().items():
        if room(module) not in ("cli", "__main__"):
            assert not [i for i in imported(tree) if room(i) == "cli"], module


def test_learning_and_answering_do_not_know_each_other():
    for module, tree in modules().items():
        others = {"learn": {"answer", "serve"}, "answer": {"learn", "serve"}}.get(room(module), set())
        assert not {room(i) for i in imported(tree)} & others, module


def test_no_module_imports_itself_over_others():
    graph = {module: {i for i in imported(tree) if i in modules()} for module, tree in modules().items()}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way, module])
        if module in done:
            return
        for next_module in graph[module] - {module}:
            visit(next_module, (*way, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def names_in(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} | {
        n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)
    }


def test_nobody_outside_asks_which_method_it_has():
    classes = {method.__name__ for method in METHODS.values()} | {"Method"}
    for module, tree in modules().items():
        if room(module) == "prompts":
            continue
        for node in ast.walk(tree):
            place = f"{module}, line {getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call) and names_in(node.func) & {"isinstance", "issubclass"}:
                assert not names_in(node.args[1]) & classes, place
            elif isinstance(node, ast.MatchClass):
                assert not names_in(node.cls) & classes, place
            elif isinstance(node, ast.Compare):
                compared = [node.left, *node.comparators]
                written = {n.value for part in compared for n in ast.walk(part) if isinstance(n, ast.Constant)}
                assert not written & set(METHODS), place
                assert not {n for part in compared if isinstance(part, ast.Name) for n in names_in(part)} & classes, (
                    place
                )


def test_nobody_outside_keeps_a_table_of_methods():
    for module, tree in modules().items():
        if room(module) == "prompts":
            continue
        tables = [n for n in ast.walk(tree) if isinstance(n, ast.Dict) and any(map(names_a_method, n.keys))]
        assert not tables, f"{module}, line {tables[0].lineno}"


def names_a_method(key: ast.expr | None) -> bool:
    if isinstance(key, ast.Constant):
        return key.value in METHODS
    return isinstance(key, ast.Name) and key.id in {method.__name__ for method in METHODS.values()}


@pytest.mark.parametrize(
    ("statement", "left_out"),
    [
        ("import softprompt, softprompt.errors, softprompt.atomic", {"torch", "transformers", "numpy", "datasets"}),
        ("import softprompt.prompts, softprompt.text.task", {"transformers", "datasets"}),
    ],
)
def test_an_import_brings_in_no_more_than_it_needs(statement, left_out):
    script = f"import sys\n{statement}\nprint(*sorted({left_out!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
