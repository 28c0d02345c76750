"""docs/status.md explains every name of the JSON, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from netsvc.client.summary import look
from netsvc.host.control import LONGEST_ANSWER
from netsvc.status import DURATIONS, MOST_SHOWN, ORDERS
from tests.looks import connection, process, status
from tests.processes import ROOT

DOCUMENT = (ROOT / "docs" / "status.md").read_text("utf-8")


def names(value: Any, path: str) -> Iterator[str]:
    """List the names in an object; those of the first in each list."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value, path = value[0], f"{path}[]"
    # What is counted by limit or reason has names of its own.
    if isinstance(value, dict) and path.rpartition(".")[2] not in ("refused", "reported", "ended"):
        for name, each in value.items():
            inner = f"{path}.{name}".removeprefix(".")
            yield inner
            # These are those of all processes, and of all listeners, as they stand further down.
            if inner not in ("processes[].listeners", "listeners[].counts"):
                yield from names(each, inner)


def test_every_name_is_explained_in_its_order() -> None:
    written = look(status(process(0, [connection(1)])), 0.0).to_json()
    explained = re.findall(r"^\| `([^`]+)` \|", DOCUMENT, re.M)
    assert explained == [name for name in names(written, "") if name != "processes[].vitals"]


def test_numbers_are_those_of_the_code() -> None:
    assert f"and\n{MOST_SHOWN} at most" in DOCUMENT
    assert ", ".join(f"{each:g}" for each in DURATIONS) in DOCUMENT
    assert LONGEST_ANSWER == 1 << 20
    assert list(ORDERS) == ["rate", "bytes", "age", "new"]
