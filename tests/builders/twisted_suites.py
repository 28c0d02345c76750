"""Runs Twisted's own reactor suites against one reactor, and tells how each test ended.

    python -m tests.builders.twisted_suites MODULE:CLASS FILE

writes a JSON object, test to outcome. The suites come with Twisted; those that need PyHamcrest need it here too.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from twisted.python.reflect import namedAny
from twisted.trial import reporter

#: Suites that build reactors of their own, of every kind in `ReactorBuilder._reactors`.
BUILT = (
    "core",
    "endpoints",
    "fdset",
    "process",
    "socket",
    "tcp",
    "threads",
    "time",
    "tls",
    "udp",
    "unix",
)
#: Suites that run on the process's reactor.
INSTALLED = ("test_tcp", "test_ssl", "test_udp", "test_unix", "test_policies")

_WORST = ("success", "skip", "expected failure", "unexpected success", "failure", "error")


class Outcomes(reporter.TestResult):
    """Keeps the worst outcome of each test, and its failures' last lines."""

    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[str, str] = {}
        self.reasons: dict[str, str] = {}

    def _note(self, test: Any, outcome: str, reason: object = "") -> None:
        name = test.id()
        before = self.outcomes.get(name, outcome)
        self.outcomes[name] = max(outcome, before, key=_WORST.index)
        if reason:
            self.reasons[name] = str(reason).strip()[-2000:]

    def addSuccess(self, test: Any) -> None:
        self._note(test, "success")

    def addSkip(self, test: Any, reason: Any) -> None:
        self._note(test, "skip")

    def addExpectedFailure(self, test: Any, failure: Any, todo: Any = None) -> None:
        self._note(test, "expected failure")

    def addUnexpectedSuccess(self, test: Any, todo: Any = None) -> None:
        self._note(test, "unexpected success")

    def addFailure(self, test: Any, failure: Any) -> None:
        self._note(test, "failure", _text(failure))

    def addError(self, test: Any, error: Any) -> None:
        self._note(test, "error", _text(error))


def _text(failure: Any) -> Any:
    return failure.getTraceback() if hasattr(failure, "getTraceback") else repr(failure)


def main(name: str, file: str) -> None:
    """Run the suites against the reactor class `name`, given as MODULE:CLASS, and write how they ended."""
    reactor_class = namedAny(name.replace(":", "."))
    sys.modules.pop("twisted.internet.reactor", None)
    from twisted.internet.main import installReactor

    installReactor(reactor_class())

    from twisted.internet.test.reactormixins import ReactorBuilder
    from twisted.trial.runner import TestLoader

    # What cannot be asked of epoll cannot be asked of a kind of it: the suites tell it by its name.
    module: Any = ModuleType("under_test")
    sys.modules[module.__name__] = module
    module.EPollReactor = type("EPollReactor", (reactor_class,), {})
    builder: Any = ReactorBuilder
    builder._reactors = ["under_test.EPollReactor"]
    names = [f"twisted.internet.test.test_{module}" for module in BUILT]
    names += [f"twisted.test.{module}" for module in INSTALLED]
    result = Outcomes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        TestLoader().loadByNames(names, recurse=True).run(result)
    Path(file).write_text(json.dumps({"outcomes": result.outcomes, "reasons": result.reasons}), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
