"""A file imports from its own floor and from lower ones only, and nobody imports the reactor on the way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import netsvc

ROOT = Path(netsvc.__file__).parent

#: From the lowest floor to the highest; a package stands for everything in it.
FLOORS: tuple[set[str], ...] = (
    {
        "",
        "accepting",
        "interfaces",
        "errors",
        "hush",
        "text",
        "settings",
        "limits",
        "metrics",
        "instruments",
        "exposition",
        "catalog",
        "address",
        "plan",
        "reactor",
        "records",
        "status",
        "steady",
        "transports",
        "udp",
        "whole",
    },
    {"service", "datagram"},
    {"adhoc", "guard", "discovery", "services"},
    {"listeners"},
    {"embedded", "host", "log", "workers"},
    {"admin"},
    {"arguments", "client", "config", "pages", "tap", "upgrade", "worker", "__main__"},
)
#: For authors, and above everything but the two commands.
PUBLIC = "testing"
COMMANDS = {"tap", "client", "__main__"}

REACTOR = "twisted.internet.reactor"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def place(module: str) -> str:
    """Name what stands for a module in the table."""
    return module.partition(".")[0]


def floor(module: str) -> int:
    [found] = [number for number, names in enumerate(FLOORS) if place(module) in names]
    return found


def statements(tree: ast.AST, *, everywhere: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Find the import statements: all of them, or those that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            if everywhere:
                yield from statements(ast.Module(node.body, []), everywhere=True)
            yield from statements(ast.Module(node.orelse, []), everywhere=everywhere)
        elif everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from statements(node, everywhere=everywhere)


def names(source: str, *, everywhere: bool = True) -> set[str]:
    """List the dotted names that a module imports, those of a `from` import with and without their last part."""
    found = set()
    for statement in statements(ast.parse(source), everywhere=everywhere):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        else:
            assert statement.level == 0, "a relative import"
            module = statement.module or ""
            found |= {module} | {f"{module}.{alias.name}" for alias in statement.names}
    return found


def own(imported: set[str]) -> set[str]:
    """Of imported names, list the modules of netsvc."""
    inside = {name.removeprefix("netsvc").removeprefix(".") for name in imported if name.split(".")[0] == "netsvc"}
    return inside & set(MODULES)


def imports(module: str, *, everywhere: bool = True) -> set[str]:
    return own(names(MODULES[module].read_text("utf-8"), everywhere=everywhere)) - {module}


def test_every_module_has_its_floor() -> None:
    listed = set().union(*FLOORS) | {PUBLIC}
    present = {place(module) for module in MODULES}
    assert present - listed == set(), "not in the table"
    assert listed - present <= {PUBLIC, "client", "__main__"}, "in the table, and gone"
    assert sum(map(len, FLOORS)) == len(set().union(*FLOORS)), "on two floors"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_its_own_floor_and_lower_ones_only(module: str) -> None:
    if place(module) == PUBLIC:
        assert not {other for other in imports(module) if place(other) in COMMANDS}
        return
    upward = {other for other in imports(module) if place(other) == PUBLIC or floor(other) > floor(module)}
    assert not upward, f"{module} (floor {floor(module)}) imports {upward}"


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("services.")])
def test_a_service_imports_nothing_of_another_service(module: str) -> None:
    service = module.split(".")[1]
    others = {other for other in imports(module) if place(other) == "services"}
    assert {other.split(".")[1] for other in others - {"services"}} <= {service}


@pytest.mark.parametrize("module", MODULES)
def test_importing_a_module_imports_no_reactor(module: str) -> None:
    assert REACTOR not in names(MODULES[module].read_text("utf-8"), everywhere=False)


@pytest.mark.parametrize("module", [module for module in MODULES if place(module) in set().union(*FLOORS[:4])])
def test_below_the_host_the_reactor_comes_through_the_context_alone(module: str) -> None:
    assert REACTOR not in names(MODULES[module].read_text("utf-8"))


def test_no_two_modules_import_each_other() -> None:
    graph = {module: imports(module, everywhere=False) - {""} for module in MODULES}
    # Raises CycleError with the cycle.
    assert set(TopologicalSorter(graph).static_order()) >= set(MODULES) - {""}


def test_the_reading_of_imports_sees_what_it_must() -> None:
    source = """
from typing import TYPE_CHECKING
import netsvc.host.host
if TYPE_CHECKING:
    from netsvc import tap
else:
    from twisted.internet import reactor
try:
    from netsvc.services.echo import tcp
except ImportError:
    import netsvc.guard as g

class C:
    from netsvc.host.drain import Drain

    def late(self):
        from netsvc.listeners.opening import listen
"""
    assert own(names(source, everywhere=False)) == {
        "",
        "host.host",
        "services.echo",
        "services.echo.tcp",
        "guard",
        "host.drain",
    } - {""}
    assert own(names(source)) >= {"host.host", "tap", "services.echo.tcp", "guard", "host.drain", "listeners.opening"}
    assert REACTOR in names(source, everywhere=False)
    assert REACTOR not in names("def f():\n    from twisted.internet import reactor\n", everywhere=False)
    assert REACTOR in names("import twisted.internet.reactor\n", everywhere=False)
    with pytest.raises(AssertionError, match="a relative import"):
        names("from .host import Host")
