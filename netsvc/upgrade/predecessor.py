"""The process whose place this one takes, as seen from here: what it has told, and what it is told."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from twisted.internet.endpoints import _SystemdParser
from twisted.python.systemd import ListenFDs

from netsvc.upgrade.briefing import STDERR, STDOUT, VARIABLE, Briefing
from netsvc.upgrade.inheritance import Inheritance
from netsvc.worker import Orders, Reporter
from netsvc.workers.briefing import REPORTS
from netsvc.workers.reports import report

__all__ = ["Predecessor"]

#: Bytes of a briefing: thousands of ports, and the certificates of as many.
_LONGEST_BRIEFING = 1 << 26


class Predecessor:
    """The other process. `briefing` is what it has told."""

    def __init__(self, briefing: Briefing, orders: int) -> None:
        self.briefing = briefing
        self.inheritance = Inheritance(briefing.ports)
        self._orders = orders
        #: Whether it has said that it does not want this process any more.
        self.has_given_up = False
        self._tell = Reporter(REPORTS)

    @classmethod
    def met(cls, environ: MutableMapping[str, str]) -> Predecessor | None:
        """Read what the environment's variable names, and take that variable out; None if there is none.

        From then on this process prints where the other one does. Raises `ValueError` if nothing sensible is told.
        """
        number = environ.pop(VARIABLE, None)
        if number is None:
            return None
        if not number.isdigit():
            raise ValueError(f"{VARIABLE} is set, but not by a process that is upgraded; unset it")
        try:
            with open(int(number), "rb", buffering=0, closefd=False) as orders:
                line = _read_line(orders)
            briefing = Briefing.from_line(line)
        except OSError as error:
            raise ValueError(f"{VARIABLE} is set, but not by a process that is upgraded; unset it") from error
        for descriptor in (int(number), REPORTS, *briefing.descriptors()):
            os.set_inheritable(descriptor, False)
        for stream, real, target in ((sys.stdout, STDOUT, 1), (sys.stderr, STDERR, 2)):
            stream.flush()
            os.dup2(real, target)
            os.close(real)
            stream.reconfigure(line_buffering=target == 2 or os.isatty(1))  # type: ignore[union-attr]
        for ignored in briefing.ignored:
            signal.signal(ignored, signal.SIG_IGN)
        if briefing.systemd:
            names, numbers = zip(*briefing.systemd, strict=True)
            _SystemdParser._sddaemon = ListenFDs(list(numbers), names)
        return cls(briefing, int(number))

    def failed(self, *lines: str) -> None:
        """Tell it why this process cannot take its place."""
        self._tell(report("failed", *lines))

    def ready(self, numbers: list[int], processes: int) -> None:
        """Tell it which of its ports are taken, and how many processes will serve."""
        self._tell(report("ready", ",".join(map(str, numbers)), str(processes)))

    def serving(self, step: int) -> None:
        """Tell it that what it has asked for last is done."""
        self._tell(report("serving", str(step)))

    def listen(self, reactor: Any, serve: Callable[[int, int], None], gone: Callable[[], None]) -> None:
        """Call `serve` with what it is to do next, a step and the number of steps; and `gone` when it is gone."""

        def read(words: bytes) -> None:
            step, steps = words.split()[:2]
            serve(int(step), int(steps))

        def give_up(_: bytes) -> None:
            self.has_given_up = True

        orders: Mapping[bytes, Callable[[bytes], None]] = {b"serve": read, b"end": give_up}
        Orders(reactor, self._orders, orders, gone).startReading()


def _read_line(file: Any) -> bytes:
    """Read a line. Nothing follows it before the other process has had an answer."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _LONGEST_BRIEFING and (more := file.read(1 << 16)):
        line += more
    return line
