"""What plugins may rely on, docs/reference/api.md, is what public_api.txt recorded.

A change fails here, so that it is noticed, is noted in CHANGELOG.md, and follows docs/explanation/compatibility.md.
Then `python -m tests.unit.test_public_api` writes the record again.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.python.reflect import namedAny
from zope.interface.interface import InterfaceClass, Method

from tests.builders.processes import ROOT

RECORD = Path(__file__).with_name("public_api.txt")
NAMES = re.findall(r"^- \[`(netsvc\.[\w.]+)`\]", (ROOT / "docs/reference/api.md").read_text("utf-8"), re.M)


def form(function: Any) -> str:
    """Return the parameters as a caller sees them: `(name, optional=, *, keyword)`."""
    shown = []
    starred = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            starred = True
            shown.append("*")
        starred = starred or parameter.kind is parameter.VAR_POSITIONAL
        stars = "*" * (parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD))
        stars *= 1 + (parameter.kind is parameter.VAR_KEYWORD)
        shown.append(f"{stars}{parameter.name}{'' if parameter.default is parameter.empty else '='}")
    return f"({', '.join(shown)})"


def members(owner: type[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that classes of ours give a class; not what Twisted calls, whose names are in camelCase."""
    found: dict[str, Any] = {}
    for base in reversed(owner.__mro__):
        if base.__module__.partition(".")[0] == "netsvc":
            found.update(dict.fromkeys(inspect.get_annotations(base)))
            found.update(vars(base))
    yield from ((name, found[name]) for name in sorted(found) if not re.search("^_|[a-z][A-Z]", name))


def described(name: str) -> Iterator[str]:
    """Yield a line for a name of the contract, and one for each of its members."""
    thing = namedAny(name)
    if isinstance(thing, InterfaceClass):
        yield name
        for member, attribute in sorted(thing.namesAndDescriptions(all=True)):
            yield f"{name}.{member}" + (
                re.sub("=[^,)]*", "=", attribute.getSignatureString()) if isinstance(attribute, Method) else ""
            )
    elif isinstance(thing, type):
        made = next((base for base in thing.__mro__ if "__init__" in vars(base)), object)
        ours = made.__module__.partition(".")[0] == "netsvc"
        yield name + (form(vars(made)["__init__"]) if ours else "")
        for member, value in members(thing):
            function = inspect.unwrap(getattr(value, "__func__", value))
            yield f"{name}.{member}" + (form(function) if inspect.isfunction(function) else "")
    else:
        yield name + (form(thing) if callable(thing) else "")


def contract() -> str:
    """Return the record: a line for each name, in alphabetical order."""
    return "".join(f"{line}\n" for line in sorted({line for name in NAMES for line in described(name)}))


def test_the_contract_is_the_recorded_one() -> None:
    assert len(NAMES) > 20
    recorded, now = set(RECORD.read_text("utf-8").splitlines()), set(contract().splitlines())
    assert (sorted(recorded - now), sorted(now - recorded)) == ([], []), (
        "the contract has changed (gone, new): note it in CHANGELOG.md, read docs/explanation/compatibility.md, "
        "and run python -m tests.unit.test_public_api"
    )


class Sample:
    """A class with what the record has to see."""

    limit: int = 3

    def __init__(self, first: int, second: int = 2, *, third: int = 3) -> None:
        self._hidden = first + second + third


def test_a_parameter_that_is_gone_renamed_or_required_is_seen() -> None:
    assert form(Sample.__init__) == "(first, second=, *, third=)"
    assert form(lambda *given, a, **rest: None) == "(*given, a, **rest)"
    assert form(lambda a, b: None) != form(lambda a, b=1: None) != form(lambda a, c=1: None)


def test_methods_fields_and_functions_are_recorded() -> None:
    lines = contract().splitlines()
    for beginning in ("netsvc.service.Service(", "netsvc.coroutine.Stream.read_line(", "netsvc.coroutine.LINE_LIMIT"):
        assert any(line.startswith(beginning) for line in lines), beginning


if __name__ == "__main__":
    RECORD.write_text(contract(), "utf-8")
