"""docs/configuration.md has every key, option and limit with its default, as the code declares them.

Its tables are made here: `python -m tests.test_configuration` writes them anew. Its commands and listings are tested
by `tests.test_docs`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping

import pytest

from netsvc.arguments import OPTIONS, SHORTHANDS
from netsvc.config.example import OWN_SERVICES
from netsvc.config.reading import ADMIN_KEYS, KEYS, LISTENER_KEYS, SERVICE_KEYS, TWISTD_KEYS
from netsvc.config.schema import accepted_form
from netsvc.discovery import discover
from netsvc.limits import LIMITS, show_limit
from netsvc.plan import DEFAULT_DRAIN
from netsvc.settings import declared_settings
from tests.processes import ROOT

DOCUMENT = ROOT / "docs/configuration.md"
TABLE = re.compile(r"(<!-- table: (\w+) -->\n)(\n(?:\|.*\n)+)?")

#: What stands under a key: its name, what it takes, its default, what it is for.
KEY_ROWS: Mapping[tuple[str, ...], tuple[str, str, str]] = {
    ("drain",): ("seconds", f"{DEFAULT_DRAIN:g}", "that conversations have to end when the process stops"),
    ("workers",): ("number, `auto`", "1", "how many processes serve, on the same ports"),
    ("log",): ("`text`, `json`", "text", "how the log is written; `json` is one object a line"),
    ("access",): ("`log`, `off`, file", "log", "where a record of each connection and session goes when it ends"),
    ("state",): ("directory", "`$STATE_DIRECTORY`", "for what is to be kept; it is made if it is missing"),
    ("admin", "address"): ("address", "", "where the admin page, the metrics and the API are; or `admin = ADDRESS`"),
    ("admin", "token"): ("file", "", "with the word that whoever asks there must know"),
    ("admin", "ca"): ("file", "", "of certificates (PEM), by one of which that of whoever asks must be signed"),
    ("limits",): ("table", "", "limits of the whole process"),
    ("services", "NAME", "service"): ("name", "NAME", "which service it is, if it is not the one of that name"),
    ("services", "NAME", "serve"): ("text", "", "or a class: PATH_OR_MODULE:NAME, as in `--serve`"),
    ("services", "NAME", "listen"): ("listeners", "", "where its default protocol listens"),
    ("services", "NAME", "PROTOCOL"): ("listeners", "", "where the protocol of that name listens"),
    ("services", "NAME", "OPTION"): ("text, number, true", "its own", "an option that the service declares"),
    ("services", "NAME", "limits"): ("table", "its own", "limits of the service"),
    ("services", "NAME", "drain"): ("seconds", "that of the process", "that its conversations have to end"),
    ("services", "NAME", "PROTOCOL", "address"): ("address", "", "of a listener that is written as a table"),
    ("services", "NAME", "PROTOCOL", "limits"): ("table", "", "limits of that listener"),
    ("twistd", "run"): ("text", "", "another twistd plugin and its options; `[[twistd]]` repeats"),
    ("twistd", "limits"): ("table", "", "limits of that plugin's ports"),
}

#: Those of each service.
OF_SERVICES = (
    ("--<service> ADDRESS", "", "Serve its default protocol there"),
    ("--<service>-<protocol> ADDRESS", "", "Serve that protocol there"),
    ("--<service>-<option> VALUE", "", "Set an option of the service"),
    ("--<service>-limit NAME=VALUE", "", "Set a limit for the service"),
    ("--<service>-drain SECONDS", "", "How long its conversations have to end, if it is not as long as all others"),
)


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(heads)]
    lines += [["---"] * len(lines[0]), *(list(row) for row in rows)]
    return "".join(f"| {' | '.join(cell.replace('|', '¦') for cell in line)} |\n" for line in lines)


def code(text: object) -> str:
    return f"`{text}`" if str(text) else ""


def key_table() -> str:
    rows = ((code(".".join(key)), *row) for key, row in KEY_ROWS.items())
    return table(("key", "takes", "default", "what it is"), rows)


def option_table() -> str:
    rows = ((code(name), code(default), line.partition(";")[0]) for name, default, line in (*OPTIONS, *OF_SERVICES))
    return table(("option", "default", "what it does"), rows)


def service_tables() -> str:
    rows = []
    for name in OWN_SERVICES:
        service = discover().load(name)
        for setting in declared_settings(service.options):
            value = "true, false" if setting.flag else setting.placeholder
            default = "false" if setting.flag else "" if setting.default is None else setting.default
            rows.append((name, code(setting.name), value, code(default), " ".join(setting.description.split())))
    return table(("service", "option", "value", "default", "what it is"), rows)


def limit_table() -> str:
    def row(name: str) -> tuple[str, ...]:
        limit = LIMITS[name]
        kinds = ", ".join(f"{kind}s" for kind in limit.kinds)
        default = "" if limit.default is None else code(show_limit(limit.default))
        form = accepted_form(limit.coerce).partition("; there is no")[0]
        return code(name), kinds, "shared" if limit.shared else "", form, default, limit.description

    return table(("limit", "of", "", "value", "default", "what it is"), map(row, LIMITS))


TABLES: Mapping[str, Callable[[], str]] = {
    "keys": key_table,
    "options": option_table,
    "services": service_tables,
    "limits": limit_table,
}


def rewritten(document: str) -> str:
    """Return the document with every table as the code has it."""
    return TABLE.sub(lambda match: f"{match[1]}\n{TABLES[match[2]]()}", document)


def test_the_tables_are_what_the_code_declares() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert {name for _, name, _ in TABLE.findall(text)} == set(TABLES)
    assert text == rewritten(text), "run python -m tests.test_configuration"


def test_every_key_has_its_row() -> None:
    shown = {key[0] for key in KEY_ROWS}
    assert shown == set(KEYS)
    assert {key[1] for key in KEY_ROWS if key[0] == "twistd"} == set(TWISTD_KEYS)
    assert {key[1] for key in KEY_ROWS if key[0] == "admin"} == set(ADMIN_KEYS)
    assert {key[2] for key in KEY_ROWS if len(key) == 3} == {*SERVICE_KEYS, "PROTOCOL", "OPTION"}
    assert {key[3] for key in KEY_ROWS if len(key) == 4} == set(LISTENER_KEYS)


def test_every_shorthand_has_its_row() -> None:
    for short in SHORTHANDS:
        assert any(name.startswith(f"--{short} ") for name, _, _ in OPTIONS)


@pytest.mark.parametrize("name", TABLES)
def test_a_changed_table_is_written_anew(name: str) -> None:
    document = f"before\n<!-- table: {name} -->\n\n| old |\n| --- |\n\nafter\n"
    made = rewritten(document)
    assert made == f"before\n<!-- table: {name} -->\n\n{TABLES[name]()}\nafter\n"
    assert rewritten(made) == made


if __name__ == "__main__":
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text("utf-8")), "utf-8")
    sys.stdout.write(f"{DOCUMENT} rewritten\n")
