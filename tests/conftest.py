"""Runs the quick tests in several processes; fails a test that leaves a delayed call, a port or a logged error."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from functools import cache
from typing import Any

import _pytest.unittest
import pytest
from hypothesis import HealthCheck, settings
from twisted.logger import ILogObserver, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from netsvc.base import passwords
from netsvc.base.signals import TAKEN, Signals, process_signals
from tests.builders.processes import ROOT

pytest_plugins = ["netsvc.pytest_plugin"]

# Until all tests are collected, which makes millions of objects that stay or are gone at once: looking through them
# again and again takes longer than to make them.
gc.disable()

# It is for this run of pytest, not for those that tests start.
os.environ.pop("PYTEST_ADDOPTS", None)

# A shell starts what is to run in the background with Ctrl-C ignored, nohup does so with HUP, and what the tests
# start would inherit that.
for _number, _default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _default)

# A deadline is a timing assertion, and so is the check that examples are made quickly: what they say depends on who
# else uses the machine.
settings.register_profile("quick", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=10)
#: For --hypothesis-profile.
settings.register_profile("full", settings.get_profile("quick"), max_examples=20)
settings.load_profile("quick")


# What a hash costs in a server would be a tenth of all quick tests; tests/unit/test_passwords.py pays it once.
passwords.COST = passwords.Cost(4, 8, 1)

# pytest reads the version of Twisted from its metadata before each test, which takes longer than most tests.
_pytest.unittest._get_twisted_version = cache(_pytest.unittest._get_twisted_version)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Use several processes for all quick tests; one for the slow ones, which start servers, and for named tests.

    `-n 0` uses one, and `-n 4` four, whatever the tests.
    """
    if hasattr(config, "workerinput"):
        # One of the processes: it would start more, each of which starts more.
        return
    # pytest-cov has to know of several processes before this: give `-n` with `--cov`.
    measured = getattr(config.option, "cov_source", None)
    all_quick = config.args_source is pytest.Config.ArgsSource.TESTPATHS and config.option.markexpr == "not slow"
    if all_quick and not measured and not config.option.usepdb and getattr(config.option, "numprocesses", 0) is None:
        config.option.numprocesses = min(4, len(os.sched_getaffinity(0)))
        config.option.dist = "worksteal"


def pytest_collection_finish() -> None:
    """Collect garbage again, but not look through the tests and all that they import."""
    gc.freeze()
    gc.enable()


#: What takes minutes begins first: with `--dist=loadfile --no-loadscope-reorder` a process takes the next file.
LONGEST = ("test_docs.py", "test_container.py", "test_contributing.py", "test_new.py", "test_distribution.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest files begin; skip what reads the source of netsvc, where the tests are for an installed wheel."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    if not (ROOT / "netsvc").is_dir():
        for item in items:
            if item.get_closest_marker("source"):
                item.add_marker(pytest.mark.skip(reason="reads the source of netsvc, which is not here"))


@pytest.fixture(autouse=True, scope="module")
def _frozen() -> None:
    """Let the many garbage collections of the contract checks pass over what was there before a module's tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Give back the signals that a server in this process has taken over."""
    before = {number: signal.getsignal(number) for number in TAKEN}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    vars(process_signals).update(vars(Signals()))


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
