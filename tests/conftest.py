"""Fails a test that leaves a delayed call, an open port or a logged error behind."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from twisted.logger import ILogObserver, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

# It is for this run of pytest, not for those that tests start.
os.environ.pop("PYTEST_ADDOPTS", None)

# A shell starts what is to run in the background with Ctrl-C ignored, nohup does so with HUP, and what the tests
# start would inherit that.
for _number, _default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _default)

# A deadline is a timing assertion: what it says depends on who else uses the machine.
settings.register_profile("netsvc", deadline=None, max_examples=50)
settings.load_profile("netsvc")


@pytest.fixture(autouse=True, scope="module")
def _frozen() -> None:
    """Let the many garbage collections of the contract checks pass over what was there before a module's tests."""
    gc.collect()
    gc.freeze()


class LoggedErrors(list[Any]):
    """The failures logged during a test. A test that provokes some takes them out with `flush`."""

    def flush(self, *types: type[BaseException]) -> list[Failure]:
        """Remove and return the logged failures of these types (all, if none is given)."""
        taken = [failure for failure in self if not types or failure.check(*types)]
        self[:] = [failure for failure in self if failure not in taken]
        return taken


@pytest.fixture(autouse=True)
def logged_errors() -> Iterator[LoggedErrors]:
    """Watch the log and the reactor."""
    from twisted.internet import reactor

    any_reactor: Any = reactor
    errors = LoggedErrors()

    @implementer(ILogObserver)
    def observe(event: Any) -> None:
        # The second is how what the reactor itself caught is logged (twisted.python.log.err).
        failure = event.get("log_failure") or event.get("failure")
        if failure is not None and failure not in errors:
            errors.append(failure)

    def leftovers() -> set[Any]:
        internal: set[Any] = getattr(any_reactor, "_internalReaders", set())
        return (set(any_reactor.getReaders()) | set(any_reactor.getWriters())) - set(internal)

    calls, readers = set(any_reactor.getDelayedCalls()), leftovers()
    globalLogPublisher.addObserver(observe)
    yield errors
    globalLogPublisher.removeObserver(observe)
    assert not errors, f"logged and not expected: {[str(error.value) for error in errors]}"
    new_calls = [call for call in any_reactor.getDelayedCalls() if call not in calls and call.active()]
    for call in new_calls:
        call.cancel()
    assert not new_calls, f"left pending: {new_calls}"
    assert not leftovers() - readers, f"left open: {leftovers() - readers}"
