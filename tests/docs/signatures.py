"""The signatures in the reference of the API: what each listed name takes, and the first sentence of its docstring.

They follow the names that `docs/reference/api.md` lists; `python -m tests.docs.test_docs` writes them again.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from twisted.python.reflect import namedAny
from zope.interface.interface import InterfaceClass, Method

from tests.unit.test_public_api import members

#: A name in the reference, with a link to its source, and what is said of it here.
NAMED = re.compile(r"^(- \[`(netsvc\.[\w.]+)`\]\(\S+\)\n)((?:  .*\n)*)", re.M)


class _Annotation(str):
    """The text of an annotation, without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def _signature(function: Any) -> str:
    found = inspect.signature(inspect.unwrap(getattr(function, "__func__", function)))
    parameters = [
        each if each.annotation is each.empty else each.replace(annotation=_Annotation(each.annotation))
        for each in found.parameters.values()
        if each.name not in ("self", "cls")
    ]
    returned = found.return_annotation
    code = getattr(function, "__code__", None)
    if code and code.co_flags & inspect.CO_ITERABLE_COROUTINE:
        # `types.coroutine`: the last of its three types is the result.
        returned = returned.removesuffix("]").rpartition(", ")[2]
    shown = found.replace(
        parameters=parameters,
        return_annotation=found.empty if returned in ("None", None, found.empty) else _Annotation(returned),
    )
    return re.sub(r"<InterfaceClass [\w.]+\.(\w+)>|<class '(?:[\w.]+\.)?(\w+)'>", r"\1\2", str(shown))


def _is_async(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return inspect.iscoroutinefunction(function) or bool(code and code.co_flags & inspect.CO_ITERABLE_COROUTINE)


def _says(documentation: str | None) -> str:
    """Return the first sentence of a docstring."""
    paragraph = " ".join(inspect.cleandoc(documentation or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.:]) (?=[A-Z])", paragraph, maxsplit=1)[0]


def _comment(name: str) -> str:
    """Return the comment `#:` before a constant."""
    module, _, constant = name.rpartition(".")
    found = re.search(rf"((?:^#:.*\n)+)^{constant}\b", inspect.getsource(namedAny(module)), re.M)
    return " ".join(line.removeprefix("#:").strip() for line in found[1].splitlines()) if found else ""


def _of_class(owner: type[Any]) -> Iterator[str]:
    """Yield a line for each method and property of ours."""
    for member, value in members(owner):
        if isinstance(value, property) and value.fget is not None:
            yield f"  - `{member}`: {_says(value.__doc__)}"
        elif inspect.isfunction(function := inspect.unwrap(getattr(value, "__func__", value))):
            yield f"  - `{'async ' * _is_async(function)}{member}{_signature(function)}`: {_says(function.__doc__)}"


def _of_interface(interface: InterfaceClass) -> Iterator[str]:
    for member, declared in interface.namesAndDescriptions():
        signature = declared.getSignatureString() if isinstance(declared, Method) else ""
        yield f"  - `{member}{signature}`: {_says(declared.__doc__)}"


def signatures(name: str) -> Iterator[str]:
    """Yield the lines about a name."""
    thing = namedAny(name)
    if isinstance(thing, InterfaceClass):
        yield f"  {_says(thing.__doc__)}"
        yield from _of_interface(thing)
    elif isinstance(thing, type):
        ours = any("__init__" in vars(base) for base in thing.__mro__ if base.__module__.startswith("netsvc."))
        taken = _signature(thing) if ours and not issubclass(thing, BaseException) else ""
        yield f"  `{thing.__name__}{taken}`: {_says(thing.__doc__)}" if taken else f"  {_says(thing.__doc__)}"
        yield from _of_class(thing)
    elif callable(thing):
        short = name.rpartition(".")[2]
        yield f"  `{short}{_signature(thing)}`: {_says(thing.__doc__)}"
    else:
        shown = sorted(thing) if isinstance(thing, frozenset) else thing
        yield f"  `{shown}`. {_comment(name)}"


def with_signatures(document: str) -> str:
    """Return a document with what the code says of each listed name."""

    def written(match: re.Match[str]) -> str:
        lines = [
            each
            for line in signatures(match[2])
            for each in textwrap.wrap(
                line, 120, subsequent_indent="    " if line.startswith("  -") else "  ", break_on_hyphens=False
            )
        ]
        return match[1] + "".join(f"{line}\n" for line in lines)

    return NAMED.sub(written, document)
