"""The worker process, one of several that serve a plan: `python -m netsvc.workers.worker`.

`netsvc.workers.workers` starts it. Orders and reports go through inherited pipes. It drains when ordered to, on
SIGTERM, and when its parent has ended.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, globalLogBeginner
from twisted.python.reflect import namedModule
from zope.interface import implementer

from netsvc.base.errors import StartError
from netsvc.base.requests import GATHERED
from netsvc.base.signals import unblock
from netsvc.config.discovery import discover
from netsvc.config.draft import load_use
from netsvc.listen.handoff import Handoff, Sockets, WorkerStart
from netsvc.log.access import AccessLog, RecordLimit
from netsvc.log.common import record_line
from netsvc.log.formats import JsonLines, LogLines, TextLines
from netsvc.plan.plan import access_form
from netsvc.plan.record import AnyRecord
from netsvc.server.process import stop_reactor
from netsvc.server.server import Server
from netsvc.workers.channel import IGNORED, ORDERS, REPORTS, Orders, Reporter, Retirement, report
from netsvc.workers.cover import Cover
from netsvc.workers.keyfiles import with_key_files
from netsvc.workers.reports import LONGEST_TEXT, access_report, log_report, requests_report
from netsvc.workers.status import answer, serialize


@implementer(ILogObserver)
class _Log:
    """Reports log events to the parent."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        #: Sends buffered access records, so that the order of records and events is kept.
        self.flush: Callable[[], None] = lambda: None
        self._requests: AccessLog[LogEvent] | None = None
        self._send = send

    def gather(self, reactor: Any, lines: LogLines) -> None:
        """Report the lines of requests together, until the reactor has stopped."""
        self._requests = AccessLog(
            lambda event: lines.event(event) or "",
            lambda text: self._send(requests_report(text)),
            reactor,
            LONGEST_TEXT,
        )
        reactor.addSystemEventTrigger("after", "shutdown", self._settle)

    def _settle(self) -> None:
        requests, self._requests = self._requests, None
        if requests is not None:
            requests.close()

    def __call__(self, event: LogEvent) -> None:
        if self._requests is not None and GATHERED in event:
            self._requests.record(event)
        elif line := log_report(event):
            self.flush()
            if self._requests is not None:
                self._requests.flush()
            self._send(line)


def _lines(start: WorkerStart) -> LogLines:
    return JsonLines(start.number) if start.plan.log == "json" else TextLines(start.number)


def _record(
    reactor: Any, start: WorkerStart, send: Callable[[bytes], None], log: _Log | None
) -> Callable[[AnyRecord], None] | None:
    """Return a function that reports access records to the parent, which writes them; None if access logs are off."""
    if start.plan.access == "off":
        return None
    line = record_line(_lines(start), access_form(start.plan.access)[0])
    gathered = AccessLog(line, lambda text: send(access_report(text)), reactor, LONGEST_TEXT)
    if log is not None:
        log.flush = gathered.flush
    flood = RecordLimit(gathered.record, reactor)
    for close in (flood.close, gathered.close):
        reactor.addSystemEventTrigger("after", "shutdown", close)
    return flood.record


def serve(reactor: Any, handoff: Handoff, send: Callable[[bytes], None], orders: int, log: _Log | None = None) -> bool:
    """Serve the plan of a handoff until the reactor stops. Returns False if it could not be started, or failed."""
    start, ports = handoff.worker, handoff.ports
    assert start is not None
    listeners = tuple(
        replace(listener, address=with_key_files(listener.address, port.key_files))
        for listener, port in zip(start.plan.listeners, ports, strict=True)
    )
    catalogue = discover()
    failed: list[str] = []
    forced = False

    def die(reason: str) -> None:
        failed.append(reason)
        send(report("failed", *reason.splitlines()))
        stop_reactor(reactor)

    def force(_: bytes) -> None:
        nonlocal forced
        forced = True
        stop_reactor(reactor)
        host.force()

    def retire(arguments: bytes) -> None:
        retirement = Retirement.from_arguments(arguments)
        cover.end(take=False)
        host.retire(retirement.closed, retirement.drained, retirement.seconds).addCallback(
            lambda _: stop_reactor(reactor)
        )

    def report_final_status(result: Any) -> Any:
        # The parent keeps the counts.
        send(report("drained", *host.drain_command.lines))
        send(report("final", serialize(host.overview.last(), host.departed())))
        return result

    def drain() -> Deferred[None]:
        cover.end(take=True)
        draining = host.stopService().addBoth(report_final_status)
        if forced:
            host.force()
        return draining

    def orphaned() -> None:
        # Printing would raise an error, as the pipes are closed.
        with open(os.devnull, "w") as nowhere:
            for descriptor in (1, 2):
                os.dup2(nowhere.fileno(), descriptor)
        stop_reactor(reactor)

    host = Server(
        replace(start.plan, listeners=listeners),
        lambda use: load_use(use, catalogue),
        reactor,
        die=die,
        sockets=[Sockets(port.sockets) for port in ports],
        ready=lambda: send(report("ready")),
        held=start.paused,
        worker=start.number,
    )
    try:
        host.privilegedStartService()
        host.guard.book.record = _record(reactor, start, send, log)
        if log is not None:
            log.gather(reactor, _lines(start))
        host.startService()
    except StartError as error:
        send(report("failed", *error.reason.splitlines()))
        return False
    known = {
        b"force": force,
        b"drain": lambda _: stop_reactor(reactor),
        b"serve": lambda _: host.serve(0, 1),
        b"retire": retire,
        b"ask": lambda arguments: answer(host, arguments, send),
    }
    Orders(reactor, orders, known, orphaned).startReading()
    cover = Cover(reactor, start.cover, host.factory_of)
    reactor.addSystemEventTrigger("before", "shutdown", drain)
    reactor.run()
    return not failed


def main() -> None:
    """Run a worker."""
    # Only the parent acts on these, but a terminal, or `kill -- -PGID`, sends them to every process of the group.
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    unblock(IGNORED)
    send = Reporter(REPORTS)
    with open(ORDERS, "rb", buffering=0, closefd=False) as orders:
        line = orders.readline()
    if not line.endswith(b"\n"):
        # The parent has ended.
        return
    handoff = Handoff.from_line(line)
    # A process that a plugin starts would keep the ports open.
    for descriptor in (ORDERS, REPORTS, *handoff.descriptors()):
        os.set_inheritable(descriptor, False)
    start = handoff.worker
    assert start is not None
    sys.path[:] = start.search_path
    with suppress(KeyError):
        del os.environ["PYTHONPATH"]
    if start.python_path is not None:
        os.environ["PYTHONPATH"] = start.python_path
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    namedModule(start.reactor).install()
    from twisted.internet import reactor

    # Printed lines have their own pipes.
    log = _Log(send)
    globalLogBeginner.beginLoggingTo([log], redirectStandardIO=False)
    succeeded = serve(reactor, handoff, send, ORDERS, log)
    # Collecting garbage at the exit takes ten times as long as the rest of it, and the parent waits.
    gc.freeze()
    sys.exit(0 if succeeded else 1)


if __name__ == "__main__":
    main()
