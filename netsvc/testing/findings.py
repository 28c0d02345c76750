"""What `check_service` finds, and where: findings are data, raised together as one error."""

from __future__ import annotations

import gc
import inspect
import os
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from twisted.logger import ILogObserver, LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer

from netsvc.base.errors import ANYTHING, describe
from netsvc.base.text import escape
from netsvc.testing.watchdog import OverrunError, Watchdog
from netsvc.testing.wire import EndlessError

__all__ = ["KINDS", "Finding", "Findings", "FindingsError", "ProblemError", "Step", "call_name", "effects", "source_of"]

_REACTOR = "twisted.internet.reactor"

#: Seconds of processor time that a service may take for what one client does.
LONGEST = 5.0

#: The kinds of findings, and the cure of each.
KINDS = {
    "declaration": "see netsvc.interfaces.INetworkService",
    "import": "import nothing at the top of the module that needs a reactor or a running program",
    "side-effect": "do that in start() of the core, and undo it in stop(); use context.reactor",
    "settings": "give check_service the options that the service needs",
    "raises": "handle any bytes from any peer; an exception closes the connection and is logged",
    "leftover": "cancel or close it in connectionLost, or in stop() of the core; of a gauge, remove the function",
    "split": "buffer until a message is complete: netsvc.stream.LineProtocol, or read_line of a coroutine's stream",
    "unbounded": "bound what is held: LineProtocol.longest, the limit of read_line, or close the connection",
    "endless": "leave the loop at the end of the input (None, b''), and await what has to be waited for; allow it if "
    "the protocol has an answer without an end",
    "half-close": "subclass netsvc.stream.StreamProtocol, or implement IHalfCloseableProtocol",
    "slow-reader": "subclass netsvc.stream.StreamProtocol, or call transport.registerProducer(transport, True)",
    "amplification": "answer with less, or verify the peer's address first and declare verifies_peers=True",
    "empty-datagram": "return None for an empty datagram, unless the protocol requires an answer",
    "drain": "let the Deferred that drain() returns fire when the connections are gone",
}


@dataclass(frozen=True)
class Finding:
    """One thing that would fail, or do harm, in production.

    - `kind`: one of `KINDS`.
    - `what`: what is wrong, in one line.
    - `where`: the file and line of the class or function, `shout.py:8 (Shout)`; empty if unknown.
    - `protocol`: the name of the protocol; empty if the finding is about the whole service.
    """

    kind: str
    what: str
    where: str = ""
    protocol: str = ""

    @property
    def cure(self) -> str:
        """What to do."""
        return KINDS[self.kind]

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        protocol = f" {self.protocol}" if self.protocol else ""
        return f"{place}[{self.kind}{protocol}] {self.what}; {self.cure}"


class FindingsError(AssertionError):
    """A service has findings. `findings` has all of them; the text is a line for each."""

    def __init__(self, service: str, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        lines = [f"{service}: {len(findings)} finding{'s' * (len(findings) > 1)}", *(f"  {each}" for each in findings)]
        super().__init__("\n".join(lines))


class ProblemError(Exception):
    """A finding that ends the step that made it."""

    def __init__(self, kind: str, what: str) -> None:
        self.kind = kind
        super().__init__(what)


@dataclass
class Findings:
    """Collects findings, each once. `allowed` kinds are dropped."""

    allowed: Collection[str] = ()
    found: dict[tuple[str, str, str], Finding] = field(default_factory=dict)

    def add(self, finding: Finding, reason: str = "") -> None:
        """Add a finding, unless it is allowed, or was found before for the same reason."""
        if finding.kind not in self.allowed and f"{finding.protocol} {finding.kind}" not in self.allowed:
            self.found.setdefault((finding.kind, finding.protocol, reason or finding.what), finding)

    @contextmanager
    def step(self, what: str, where: str = "", protocol: str = "") -> Iterator[Step]:
        """Run a block that exercises a service. What it raises, logs or leaves open are findings as well."""
        step = Step(self, what, where, protocol)
        try:
            with step.watchdog.watching(), _watched(step):
                yield step
        except ProblemError as problem:
            step.failed = True
            step.add(problem.kind, str(problem))
        except EndlessError as error:
            step.failed = True
            step.add("endless", f"{step.what}: {error}", "endless")
        except OverrunError:
            # See below: it may have been caught as well.
            pass
        except ANYTHING as error:
            step.failed = True
            step.add("raises", f"{step.what} raised {describe(error)}", describe(error))
        if step.watchdog.overran:
            step.failed = True
            spent = f"takes more than {LONGEST:g} s of processor time, at {step.watchdog.overran}"
            step.add("endless", f"{step.what} {spent}", "endless")


@dataclass
class Step:
    """A step of a check. `what` is what happens at the moment."""

    findings: Findings
    what: str
    where: str
    protocol: str
    #: The kind of a finding about what is left open.
    leaves: str = "leftover"
    #: Whether it was not completed.
    failed: bool = False
    #: Ends it if it does not end.
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(LONGEST))

    def begin(self, what: str) -> None:
        """Say what happens from now on, which must not take more than `LONGEST`."""
        self.what = what
        self.watchdog.feed()

    def add(self, kind: str, what: str, reason: str = "") -> None:
        """Add a finding; see `Findings.add`."""
        self.findings.add(Finding(kind, what, self.where, self.protocol), reason)


def source_of(thing: Any) -> str:
    """Return the file and line where a class, function or object is defined, with its name; empty if unknown."""
    while isinstance(thing, partial):
        thing = thing.func
    thing = inspect.unwrap(getattr(thing, "__func__", thing)) if callable(thing) else thing
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        thing = type(thing)
    try:
        code = getattr(thing, "__code__", None)
        line = code.co_firstlineno if code else inspect.getsourcelines(thing)[1]
        path = Path(inspect.getsourcefile(thing) or "")
    except (OSError, TypeError):
        return ""
    shown = os.path.relpath(path)
    return f"{path if shown.startswith('..') else shown}:{line} ({thing.__qualname__.rpartition('<locals>.')[2]})"


def call_name(call: Any) -> str:
    """Return the name of the function of a delayed call."""
    return str(getattr(call.func, "__qualname__", call.func))


# What code does to the world outside.

#: Audit events of Python that are effects (docs.python.org/3/library/audit_events.html), and what they are.
_EFFECTS = {
    "socket.bind": "binds a socket",
    "socket.connect": "connects a socket",
    "subprocess.Popen": "starts a process",
    "os.posix_spawn": "starts a process",
    "os.fork": "starts a process",
    "os.mkdir": "creates a directory",
    "os.remove": "removes a file",
    "os.rename": "renames a file",
    "sqlite3.connect": "opens a database",
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
#: The effects of the present block, each once, and its thread; None outside of one.
_seen: dict[str, None] | None = None
_thread = 0
_is_hooked = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None or threading.get_ident() != _thread:
        return
    effect = _EFFECTS.get(event)
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
        effect = f"writes {escape(str(arguments[0]), 100)}"
    if effect is not None and not _imports():
        _seen[effect] = None


def _imports() -> bool:
    """Return whether Python imports a module at the moment, whose compiled code it writes."""
    frame = inspect.currentframe()
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


@contextmanager
def effects() -> Iterator[dict[str, None]]:
    """Return the effects of a block on files, sockets, threads and processes, in words."""
    global _is_hooked, _seen, _thread  # noqa: PLW0603  (an audit hook cannot be removed, so there is one for the process)
    if not _is_hooked:
        _is_hooked = True
        sys.addaudithook(_audit)
    threads, _thread = set(threading.enumerate()), threading.get_ident()
    seen = _seen = {}
    try:
        yield seen
    finally:
        _seen = None
    if set(threading.enumerate()) - threads:
        seen["starts a thread"] = None


def _descriptors() -> set[int]:
    # Reading the directory uses a descriptor itself: the lowest free one, each time.
    return {int(name) for name in os.listdir("/dev/fd")}


def _real_calls() -> set[Any]:
    """Return the delayed calls of the process's own reactor, if it is installed."""
    return set(sys.modules[_REACTOR].getDelayedCalls()) if _REACTOR in sys.modules else set()


@contextmanager
def _watched(step: Step) -> Iterator[None]:
    """Raise `ProblemError` if the block logs an error, or leaves a descriptor or a call on the real reactor."""
    errors: list[str] = []

    @implementer(ILogObserver)
    def observe(event: Any) -> None:
        if event.get("log_failure") is not None:
            errors.insert(0, describe(event["log_failure"].value))
        elif event.get("log_level") in (LogLevel.error, LogLevel.critical):
            errors.append(escape(formatEvent(event)))

    descriptors, calls, had_reactor = _descriptors(), _real_calls(), _REACTOR in sys.modules
    globalLogPublisher.addObserver(observe)
    try:
        yield
        # An unhandled failure of a Deferred is logged when it is collected.
        gc.collect()
    finally:
        globalLogPublisher.removeObserver(observe)
        scheduled = [call for call in _real_calls() - calls if call.active()]
        names = [call_name(call) for call in scheduled]
        for call in scheduled:
            call.cancel()
    if errors:
        raise ProblemError("raises", f"{step.what} logged an error: {errors[0]}")
    if names:
        raise ProblemError("side-effect", f"{step.what} left a call on the process's own reactor ({names[0]})")
    # A reactor that was installed meanwhile has descriptors of its own.
    left = len(_descriptors() - descriptors)
    if left and had_reactor == (_REACTOR in sys.modules):
        raise ProblemError(step.leaves, f"{step.what} left {left} file descriptor{'s' * (left > 1)} open")
