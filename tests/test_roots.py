"""The classes that a root service is made of share no private name by accident: one would overwrite the other's."""

from __future__ import annotations

import ast
import inspect
from itertools import combinations
from typing import Any

import pytest

from netsvc import tap

#: What all of them have in common, and mean to: the reactor.
SHARED = {"_reactor"}


def private_names(made: type) -> set[str]:
    """List the private names that a class defines: its methods, its own values, and what its methods set."""
    [tree] = ast.parse(inspect.getsource(made)).body
    names: set[str] = set()
    assert isinstance(tree, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and node.value is not None and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    for each in ast.walk(tree):
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) and isinstance(each.value, ast.Name):
            # A mixin calls itself `root` where it does what others have.
            names |= {each.attr} if each.value.id in ("self", "root") else set()
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


@pytest.mark.slow
@pytest.mark.parametrize("root", [tap._RootHost, tap._RootWorkers])
def test_no_two_parts_of_a_root_service_define_the_same_private_name(root: type) -> None:
    parts = [each for each in root.__mro__ if each.__module__.startswith(("netsvc.", "twisted."))]
    assert len(parts) > 7
    for one, other in combinations(parts, 2):
        assert private_names(one) & private_names(other) <= SHARED, f"{one.__name__} and {other.__name__}"


def test_the_reading_of_names_sees_what_it_must() -> None:
    found = private_names(_Sample)
    assert found == {"_value", "_method", "_set", "_of_root"}


class _Sample:
    _value = 1
    _only_declared: int

    def _method(self) -> None:
        root: Any = self
        self._set, root._of_root = 1, self._value
        self.public = 2
