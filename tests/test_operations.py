"""docs/operations.md has every command, signal, path, metric, field and file, as the code declares them.

Its tables are made here: `python -m tests.test_operations` writes them anew. Its commands and listings are tested by
`tests.test_docs`.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from netsvc.admin.api import PATHS
from netsvc.catalog import rows
from netsvc.client.command import SUBCOMMANDS
from netsvc.host.process import SIGNALS
from netsvc.host.state import STATE_FILE
from netsvc.log.fields import ACCESS_FIELDS, LOG_FIELDS
from netsvc.records import REASONS
from tests.processes import ROOT, Server
from tests.test_configuration import TABLE, code, table

DOCUMENT = ROOT / "docs/operations.md"

#: Every file that a process makes or keeps, and what makes it.
FILES = {
    "stdout, or `twistd --logfile FILE`": "the log; `twistd.log` for a daemon",
    "`--access FILE`": "access records",
    "`FILE.1` … `FILE.8`": "what was rotated of each of these, the newest first",
    "`twistd --pidfile FILE`": "the pid of the process that serves; `twistd.pid` for a daemon; removed at the end",
    f"`--state DIR`, `DIR/{STATE_FILE}`": "its pid, version, state and listeners with their real ports, as JSON",
    "`DIR/NAME/`": "what the service NAME keeps (`Context.state_directory`)",
    "`unix:PATH`, `PATH.lock`": "a UNIX socket, and the lock by which nobody else takes it",
    "`@netsvc-pid-PID`": "no file: the name in the kernel at which commands reach the process",
}


def pairs(heads: tuple[str, str], found: Mapping[str, str]) -> str:
    return table(heads, ((code(name), line) for name, line in found.items()))


TABLES: Mapping[str, Callable[[], str]] = {
    "commands": lambda: pairs(
        ("command", "what it does"), {f"netsvc {name}": line for name, (_, line) in SUBCOMMANDS.items()}
    ),
    "signals": lambda: pairs(("signal", "what it does"), SIGNALS),
    "paths": lambda: pairs(("request", "what it answers"), PATHS),
    "metrics": lambda: table(("metric", "kind", "labels", "what it is"), rows()),
    "log": lambda: pairs(("field", "what it is"), LOG_FIELDS),
    "access": lambda: pairs(("field", "what it is"), ACCESS_FIELDS),
    "reasons": lambda: pairs(("reason", "what it says"), REASONS),
    "files": lambda: table(("where", "what it is"), FILES.items()),
}


def rewritten(document: str) -> str:
    """Return the document with every table as the code has it."""
    return TABLE.sub(lambda match: f"{match[1]}\n{TABLES[match[2]]()}", document)


def test_the_tables_are_what_the_code_declares() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert {name for _, name, _ in TABLE.findall(text)} == set(TABLES)
    assert text == rewritten(text), "run python -m tests.test_operations"


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_signal_that_is_taken_is_in_the_table(workers: str) -> None:
    with Server.twistd("--tcp", "127.0.0.1:0", "--workers", workers) as server:
        status = Path(f"/proc/{server.process.pid}/status").read_text("ascii")
        caught = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)  # type: ignore[index]
        taken = {number.name for number in signal.Signals if caught >> (number - 1) & 1}
    # Children that end wake the reactor up; nobody sends that.
    assert taken - {"SIGCHLD"} == set(SIGNALS)


if __name__ == "__main__":
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text("utf-8")), "utf-8")
    sys.stdout.write(f"{DOCUMENT} rewritten\n")
