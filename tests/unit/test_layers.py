"""A room imports from itself and from rooms below it only, no modules import each other, and none the reactor."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import netsvc

ROOT = Path(netsvc.__file__).parent

#: What plugin authors import.
CONTRACT = ("interfaces", "service", "options", "stream", "coroutine", "datagram", "metrics", "errors")
#: From the lowest room to the highest. The root package has nothing but the version.
ROOMS = (
    "",
    "base",
    "plan",
    "contract",
    "reactor",
    "listen",
    "guard",
    "http",
    "config",
    "log",
    "embedded",
    "server",
    "control",
    "admin",
    "workers",
    "upgrade",
    "services",
    "app",
    "testing",
    "pytest_plugin",
    "tap",
    "cli",
)
#: Found by name: nothing below them knows them.
FOUND_BY_NAME = {"services", "cli", "tap"}
#: What a service may import.
FOR_SERVICES = {"", "base", "contract", "http"}

REACTOR = "twisted.internet.reactor"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def room(module: str) -> str:
    first = module.partition(".")[0]
    return "contract" if first in CONTRACT else "cli" if first == "__main__" else first


def statements(tree: ast.AST, *, everywhere: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Find the import statements: all of them, or those that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            if everywhere:
                yield from statements(ast.Module(node.body, []), everywhere=True)
            yield from statements(ast.Module(node.orelse, []), everywhere=everywhere)
        elif isinstance(node, ast.expr):
            # No import is in an expression: most of a module is expressions.
            continue
        elif everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from statements(node, everywhere=everywhere)


def names(tree: ast.Module, *, everywhere: bool = True) -> set[str]:
    """List the dotted names that a module imports, those of a `from` import with and without their last part."""
    found = set()
    for statement in statements(tree, everywhere=everywhere):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        else:
            assert statement.level == 0, "a relative import"
            module = statement.module or ""
            found |= {module} | {f"{module}.{alias.name}" for alias in statement.names}
    return found


def own(imported_names: set[str]) -> set[str]:
    """Of imported names, list the modules of netsvc."""
    inside = {
        name.removeprefix("netsvc").removeprefix(".") for name in imported_names if name.split(".")[0] == "netsvc"
    }
    return inside & set(MODULES)


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text("utf-8"))


@cache
def imported(module: str, *, everywhere: bool = True) -> set[str]:
    return names(parsed(module), everywhere=everywhere)


def imports(module: str, *, everywhere: bool = True) -> set[str]:
    return own(imported(module, everywhere=everywhere)) - {module}


def test_every_room_is_in_the_table() -> None:
    assert {room(module) for module in MODULES} == set(ROOMS)


def test_a_module_imports_from_its_own_room_and_lower_ones_only() -> None:
    upward = {
        (module, other)
        for module in MODULES
        for other in imports(module)
        if ROOMS.index(room(other)) > ROOMS.index(room(module))
    }
    assert not upward


def test_what_is_found_by_name_is_imported_by_nothing() -> None:
    importers = [module for module in MODULES if room(module) not in FOUND_BY_NAME]
    found = {(module, other) for module in importers for other in imports(module) if room(other) in FOUND_BY_NAME}
    assert not found


def test_a_service_imports_the_contract_and_itself_only() -> None:
    foreign = set()
    for module in MODULES:
        if room(module) == "services":
            service = module.split(".")[1:2]
            others = {each for each in imports(module) if each.split(".")[1:2] != service or room(each) != "services"}
            foreign |= {(module, each) for each in others - {"services"} if room(each) not in FOR_SERVICES}
    assert not foreign


def test_importing_a_module_imports_no_reactor() -> None:
    assert not [module for module in MODULES if REACTOR in imported(module, everywhere=False)]


def test_below_the_server_the_reactor_comes_through_the_context_alone() -> None:
    below = [module for module in MODULES if ROOMS.index(room(module)) < ROOMS.index("log")]
    assert not [module for module in below if REACTOR in imported(module)]


def test_no_two_modules_import_each_other() -> None:
    # Imports under TYPE_CHECKING and inside functions included.
    graph = {module: imports(module) - {""} for module in MODULES}
    # Raises CycleError with the cycle.
    assert set(TopologicalSorter(graph).static_order()) >= set(MODULES) - {""}


def test_architecture_md_has_the_rooms_in_this_order() -> None:
    text = (Path(__file__).parents[2] / "ARCHITECTURE.md").read_text("utf-8")
    rows = re.findall(r"^\| `(netsvc/[^`]+)` \|", text, re.MULTILINE)
    names = [row.removeprefix("netsvc/").removesuffix(".py").removesuffix("/") for row in rows]
    assert ["contract" if name == "*" else name for name in names] == [name for name in reversed(ROOMS) if name]


def test_the_reading_of_imports_sees_what_it_must() -> None:
    source = """
from typing import TYPE_CHECKING
import netsvc.server.server
if TYPE_CHECKING:
    from netsvc import tap
else:
    from twisted.internet import reactor
try:
    from netsvc.server import drain
except ImportError:
    import netsvc.guard as g

class C:
    from netsvc.control.server import Control

    def late(self):
        from netsvc.listen.opening import listen
"""
    tree = ast.parse(source)
    late = {"tap", "listen.opening"}
    now = {"server", "server.server", "server.drain", "guard", "control.server"}
    assert own(names(tree, everywhere=False)) - {""} == now
    assert own(names(tree)) >= now | late
    assert REACTOR in names(tree, everywhere=False)
    assert REACTOR not in names(ast.parse("def f():\n    from twisted.internet import reactor\n"), everywhere=False)
    assert REACTOR in names(ast.parse("import twisted.internet.reactor\n"), everywhere=False)
    with pytest.raises(AssertionError, match="a relative import"):
        names(ast.parse("from .server import Server"))


def test_no_test_module_imports_another() -> None:
    """What several need is in tests/builders."""
    tests = Path(__file__).parents[1]
    found = set()
    for path in sorted(tests.rglob("test_*.py")):
        text = path.read_text("utf-8")
        # Most name no such module at all, and to parse all of them takes seconds.
        if re.search(r"\btests\.(unit|net|process|docs)\b", text):
            for name in names(ast.parse(text)):
                if re.fullmatch(r"tests\.(unit|net|process|docs)\.test_\w+", name):
                    found.add((str(path.relative_to(tests)), name))
    assert found == set()


def test_no_public_class_name_stands_twice() -> None:
    names = Counter(
        node.name
        for module in MODULES
        for node in parsed(module).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []
