"""The reference has every table, and every table has all that the code declares."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.python.reflect import namedAny

from netsvc import testing
from netsvc.cli.status import STATUS_FIELDS, Snapshot
from netsvc.config.file import (
    ADMIN_KEYS,
    KEYS,
    LARGEST,
    LISTENER_KEYS,
    MOST_SUBSTITUTED,
    SERVICE_KEYS,
    TWISTD_KEYS,
)
from netsvc.config.schema import OTHER_KEYS
from netsvc.config.settings import SETTINGS
from netsvc.config.toml_lines import DEEPEST, MOST_TOKENS
from netsvc.server.process import SIGNALS
from tests.builders.looks import connection, process, status
from tests.builders.processes import ROOT, Server
from tests.docs.tables import TABLE, TABLES, setting_key, with_tables


def test_every_table_is_shown_once() -> None:
    pages = [path.read_text("utf-8") for path in (ROOT / "docs").rglob("*.md")]
    assert Counter(name for page in pages for _, name, _ in TABLE.findall(page)) == dict.fromkeys(TABLES, 1)


@pytest.mark.parametrize("name", TABLES)
def test_a_changed_table_is_written_again(name: str) -> None:
    document = f"before\n<!-- table: {name} -->\n\n| old |\n| --- |\n\nafter\n"
    made = with_tables(document)
    assert made == f"before\n<!-- table: {name} -->\n\n{TABLES[name]()}\nafter\n"
    assert with_tables(made) == made


@pytest.mark.parametrize("name", TABLES)
def test_every_row_has_all_cells(name: str) -> None:
    rows = [re.split(r"(?<!\\)\|", line) for line in TABLES[name]().splitlines()]
    assert len({len(row) for row in rows}) == 1
    assert len(rows) > 2


def test_every_key_has_its_row() -> None:
    keys = [*OTHER_KEYS, *map(setting_key, SETTINGS)]
    assert {key[0] for key in keys} == set(KEYS)
    assert {key[1] for key in OTHER_KEYS if key[0] == "twistd"} == set(TWISTD_KEYS)
    assert {key[1] for key in keys if key[0] == "admin"} == set(ADMIN_KEYS)
    assert {key[2] for key in OTHER_KEYS if len(key) == 3} == {*SERVICE_KEYS, "PROTOCOL", "OPTION"}
    assert {key[3] for key in OTHER_KEYS if len(key) == 4} == set(LISTENER_KEYS)


def names(value: Any, path: str) -> Iterator[str]:
    """List the names in an object, of a list those in its first item."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value, path = value[0], f"{path}[]"
    # What is counted by limit or reason has names of its own.
    if isinstance(value, dict) and path.rpartition(".")[2] not in ("refused", "reported", "ended"):
        for name, each in value.items():
            inner = f"{path}.{name}".removeprefix(".")
            yield inner
            # They have the names of all processes together, and of `totals`.
            if inner not in ("processes[].listeners", "listeners[].counts"):
                yield from names(each, inner)


def test_the_bounds_of_a_configuration_file_are_those_of_the_code() -> None:
    page = (ROOT / "docs/reference/configuration.md").read_text("utf-8")
    [limits] = re.findall(r"^\*Limits\.\*(.*?)\n\n", page, re.M | re.S)
    numbers = [int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", limits)]
    assert numbers == [LARGEST // 1024, MOST_TOKENS, DEEPEST, DEEPEST, MOST_SUBSTITUTED]


def test_every_name_of_the_status_is_explained_in_its_order() -> None:
    written = Snapshot.read(status(process(0, [connection(1)])), 0.0).to_json()
    assert list(STATUS_FIELDS) == [name for name in names(written, "") if name != "processes[].vitals"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_signal_that_is_taken_is_in_the_table(workers: str) -> None:
    with Server.twistd("--tcp", "127.0.0.1:0", "--workers", workers) as server:
        text = Path(f"/proc/{server.process.pid}/status").read_text("ascii")
        caught = int(re.search(r"SigCgt:\s*(\w+)", text)[1], 16)  # type: ignore[index]
        taken = {number.name for number in signal.Signals if caught >> (number - 1) & 1}
    # A child that ends wakes the reactor with it.
    assert taken - {"SIGCHLD"} == set(SIGNALS)


@pytest.mark.source
def test_the_reference_of_the_api_has_every_public_name_of_the_tests_and_links_each_to_its_source() -> None:
    page = ROOT / "docs/reference/api.md"
    listed = dict(re.findall(r"^- \[`(netsvc\.[\w.]+)`\]\((\S+)\)$", page.read_text("utf-8"), re.M))
    assert {f"netsvc.testing.{name}" for name in testing.__all__} <= set(listed)
    for name, source in listed.items():
        found = namedAny(name)
        module = getattr(found, "__module__", None) or name.rpartition(".")[0]
        assert (page.parent / source).resolve() == Path(namedAny(module).__file__)
