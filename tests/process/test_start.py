"""A plain start imports what it uses, with no full garbage collection meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.builders.processes import run

#: Starts twistd with the arguments given, and prints facts of the process once it is ready.
STARTED = """\
import gc, json, os, sys
from twisted.logger import globalLogPublisher
from twisted.scripts.twistd import run

collections = []
gc.callbacks.append(lambda phase, info: collections.append(("netsvc.tap" in sys.modules, phase, info["generation"])))

def observe(event):
    if event.get("log_format") == "ready":
        from twisted.internet import reactor
        frozen, enabled = gc.get_freeze_count(), gc.isenabled()
        modules = sorted(sys.modules)
        os.write(2, json.dumps([modules, enabled, frozen, collections.count((True, "start", 2))]).encode())
        reactor.callLater(0, reactor.stop)

globalLogPublisher.addObserver(observe)
sys.argv = ["twistd", "-n", "--pidfile=", "netsvc", *sys.argv[1:]]
run()
"""

#: What takes long to import, and a plain start does not need.
HEAVY = {
    "click",
    "netsvc.admin.exposition",
    "netsvc.admin.server",
    "netsvc.cli",
    "netsvc.embedded.tree",
    "netsvc.listen.haproxy",
    "twisted.internet.endpoints",
    "netsvc.upgrade.successor",
    "netsvc.upgrade.predecessor",
    "netsvc.workers.workers",
    "prometheus_client",
    "rich",
    "sqlite3",
    "twisted.conch",
    "twisted.web",
    "twisted.words.protocols",
}


def started(*arguments: str) -> tuple[set[str], bool, int, int]:
    """Start; return the modules, whether garbage is collected, frozen objects, and full collections meanwhile."""
    ended = run(sys.executable, "-c", STARTED, *arguments)
    assert ended.returncode == 0, ended.stdout
    modules, enabled, frozen, collections = json.loads(ended.stderr)
    return set(modules), enabled, frozen, collections


def test_a_plain_start_imports_nothing_heavy_with_no_full_collection() -> None:
    modules, enabled, frozen, collections = started("--tcp", "127.0.0.1:0")
    assert "netsvc.services.echo" in modules
    assert not HEAVY & modules
    assert enabled
    assert frozen > 10_000
    assert collections == 0


def test_what_is_configured_is_imported() -> None:
    modules, *_ = started("--tcp", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--with", "web --listen tcp:0")
    assert {"netsvc.admin.server", "twisted.web"} <= modules


@pytest.mark.slow
@pytest.mark.parametrize(("service", "imported"), [("echo", False), ("chat", True)])
def test_prometheus_client_is_imported_with_the_first_metric_of_a_service(service: str, imported: bool) -> None:
    program = f"""
import sys
import netsvc.admin.exposition
from netsvc.testing import serve
serve("{service}").metrics.samples()
print("prometheus_client" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == f"{imported}\n"
