"""One of several processes that serve a plan: `python -m netsvc.worker`, started by `netsvc.workers.workers`.

It is told everything through the descriptors that it inherits, and says everything through them. It drains on
TERM, and when the process that started it is gone.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.main import CONNECTION_DONE
from twisted.logger import ILogObserver, LogEvent, globalLogBeginner
from twisted.python.failure import Failure
from twisted.python.reflect import namedModule
from zope.interface import implementer

from netsvc.arguments import load_use
from netsvc.discovery import discover
from netsvc.errors import StartError
from netsvc.host.host import Host
from netsvc.listeners.inherited import Inherited
from netsvc.log.access import AccessLog
from netsvc.log.flood import Flood
from netsvc.log.jsonlines import JsonLines
from netsvc.log.text import TextLines
from netsvc.records import Record
from netsvc.workers.briefing import ORDERS, REPORTS, Briefing, Retirement
from netsvc.workers.inquiry import answer, written
from netsvc.workers.keyfiles import with_key_files
from netsvc.workers.reports import LONGEST_TEXT, LineCutter, access_report, log_report, report

__all__ = ["Orders", "Reporter", "main", "serve"]

#: Bytes: room for the numbers of thousands of listeners.
LONGEST_ORDER = 1 << 16


class Reporter:
    """Writes reports, each whole: nothing else writes to this descriptor. Once nobody reads them, they are dropped."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __call__(self, line: bytes) -> None:
        """Write a report. Waits while the reader does not read, as for a log file on a slow disk."""
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except OSError:
                return


@implementer(ILogObserver)
class _Log:
    """Reports what is logged."""

    def __init__(self, tell: Callable[[bytes], None]) -> None:
        #: Reports what waits to be reported.
        self.flush: Callable[[], None] = lambda: None
        self._tell = tell

    def __call__(self, event: LogEvent) -> None:
        if said := log_report(event):
            self.flush()
            self._tell(said)


def _record(
    reactor: Any, briefing: Briefing, tell: Callable[[bytes], None], log: _Log | None
) -> Callable[[Record], None] | None:
    """Return what reports access records, if anybody wants them; the process that started this one writes them."""
    if briefing.plan.access == "off":
        return None
    lines = JsonLines(briefing.number) if briefing.plan.log == "json" else TextLines(briefing.number)
    gathered = AccessLog(lines.record, lambda text: tell(access_report(text)), reactor, LONGEST_TEXT)
    if log is not None:
        log.flush = gathered.flush
    flood = Flood(gathered.record, reactor)
    for close in (flood.close, gathered.close):
        reactor.addSystemEventTrigger("after", "shutdown", close)
    return flood.record


class Orders(FileDescriptor):
    """Reads the pipe of orders; its end says that the process that started us is gone.

    An order is a line: a word, which `orders` has, and what that order is given.
    """

    def __init__(
        self,
        reactor: Any,
        descriptor: int,
        orders: Mapping[bytes, Callable[[bytes], None]],
        orphaned: Callable[[], None],
    ) -> None:
        super().__init__(reactor)
        self._descriptor = descriptor
        self._orders = orders
        self._orphaned = orphaned
        self._lines = LineCutter(LONGEST_ORDER)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def doRead(self) -> Exception | None:
        """Read what there is."""
        data = os.read(self._descriptor, 4096)
        if not data:
            return CONNECTION_DONE
        for line in self._lines.feed(data):
            word, _, rest = line.partition(b" ")
            if word in self._orders:
                self._orders[word](rest)
        return None

    def connectionLost(self, reason: Failure) -> None:
        """Stop."""
        super().connectionLost(reason)
        self._orphaned()


def serve(
    reactor: Any, briefing: Briefing, tell: Callable[[bytes], None], orders: int, log: _Log | None = None
) -> bool:
    """Serve the plan of a briefing until the reactor stops. Returns whether it could be started."""
    listeners = tuple(
        replace(listener, address=with_key_files(listener.address, contents))
        for listener, contents in zip(briefing.plan.listeners, briefing.key_files, strict=True)
    )
    catalogue = discover()
    failed: list[str] = []
    forced = False

    def die(reason: str) -> None:
        failed.append(reason)
        tell(report("failed", *reason.splitlines()))
        stop()

    def stop() -> None:
        # In its turn behind a signal that has come before it: the signal's own call must not find it stopped.
        reactor.callFromThread(stop_once)

    def stop_once() -> None:
        with suppress(ReactorNotRunning):
            reactor.stop()

    def force(_: bytes) -> None:
        nonlocal forced
        forced = True
        stop()
        host.force()

    def retire(words: bytes) -> None:
        retirement = Retirement.from_words(words)
        host.retire(retirement.closed, retirement.drained, retirement.seconds).addCallback(lambda _: stop())

    def say_farewell(result: Any) -> Any:
        # Who started us counts on with it.
        tell(report("drained", *host.farewell.lines))
        tell(report("farewell", written(host.overview.last(), host.departed())))
        return result

    def drain() -> Deferred[None]:
        draining = host.stopService().addBoth(say_farewell)
        if forced:
            host.force()
        return draining

    def orphaned() -> None:
        # What is printed now would be an error in whoever prints it.
        with open(os.devnull, "w") as nowhere:
            for descriptor in (1, 2):
                os.dup2(nowhere.fileno(), descriptor)
        stop()

    host = Host(
        replace(briefing.plan, listeners=listeners),
        lambda use: load_use(use, catalogue),
        reactor,
        die=die,
        inherited=[Inherited(each) for each in briefing.descriptors],
        ready=lambda: tell(report("ready")),
        held=briefing.held,
        worker=briefing.number,
    )
    try:
        host.privilegedStartService()
        host.guard.book.record = _record(reactor, briefing, tell, log)
        host.startService()
    except StartError as error:
        tell(report("failed", *error.reason.splitlines()))
        return False
    known = {
        b"force": force,
        b"serve": lambda _: host.serve(),
        b"retire": retire,
        b"ask": lambda words: answer(host, words, tell),
    }
    Orders(reactor, orders, known, orphaned).startReading()
    reactor.addSystemEventTrigger("before", "shutdown", drain)
    reactor.run()
    return not failed


def main() -> None:
    """Be a worker."""
    # A terminal sends Ctrl-C, and its end, to every process; the one that started us says what to do then. It has the
    # log files as well, and SIGUSR1 may have been sent to all that are called so.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    tell = Reporter(REPORTS)
    for descriptor in (ORDERS, REPORTS):
        os.set_inheritable(descriptor, False)
    with open(ORDERS, "rb", buffering=0, closefd=False) as orders:
        line = orders.readline()
    if not line.endswith(b"\n"):
        # Nobody is there any more.
        return
    briefing = Briefing.from_line(line)
    sys.path[:] = briefing.search_path
    with suppress(KeyError):
        del os.environ["PYTHONPATH"]
    if briefing.python_path is not None:
        os.environ["PYTHONPATH"] = briefing.python_path
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    namedModule(briefing.reactor).install()
    from twisted.internet import reactor

    # Printed lines have pipes of their own.
    log = _Log(tell)
    globalLogBeginner.beginLoggingTo([log], redirectStandardIO=False)
    sys.exit(0 if serve(reactor, briefing, tell, ORDERS, log) else 1)


if __name__ == "__main__":
    main()
