"""A class is served straight from a file or a module, without any plugin."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol
from twisted.internet.task import Clock
from twisted.logger import Logger

from netsvc.base.errors import PluginError
from netsvc.config.adhoc import ServedClass, adhoc_service
from netsvc.interfaces import Context, Options
from netsvc.service import PlainCore
from netsvc.testing.wire import bind_datagrams
from tests.builders.facts import lacks
from tests.builders.processes import ROOT
from tests.builders.site import Place, new_place


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    yield from new_place(tmp_path, monkeypatch)


def served(reference: str) -> str:
    with pytest.raises(PluginError) as raised:
        adhoc_service(reference)
    [line] = raised.value.errors
    return line


CLASSES = """
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol

class Line(Protocol):
    pass

class LineFactory(Factory):
    protocol = Line

class Letter(DatagramProtocol):
    pass

class Outer:
    class Inner(Protocol):
        pass

line_factory = LineFactory()
letter = Letter()
five = 5

def function():
    pass
"""


@pytest.mark.parametrize(
    ("name", "protocols"),
    [
        ("Line", {"stream": "stream"}),
        ("LineFactory", {"stream": "stream"}),
        ("line_factory", {"stream": "stream"}),
        ("Outer.Inner", {"stream": "stream"}),
        ("Letter", {"datagram": "datagram"}),
        ("letter", {"datagram": "datagram"}),
    ],
)
def test_a_class_or_a_factory_object_is_served_straight_from_a_file_or_a_module(
    place: Place, name: str, protocols: dict[str, str]
) -> None:
    file = place.write("my_classes.py", CLASSES)
    for target in (str(file), "my_classes"):
        service = adhoc_service(f"{target}:{name}")
        assert service.protocols == protocols
        [protocol] = protocols
        instance = service.build(Options(), Context(Clock(), Logger("test")))
        built: Any = instance.protocol(protocol)
        assert isinstance(built, Factory | DatagramProtocol)
        if isinstance(built, Factory):
            assert isinstance(built.buildProtocol(None), Protocol)


def test_a_relative_path_is_below_the_current_directory(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write("deep/my.py", CLASSES)
    monkeypatch.chdir(place.path)
    assert adhoc_service("deep/my.py:Line").protocols == {"stream": "stream"}
    monkeypatch.chdir(place.path / "deep")
    assert adhoc_service("./my.py:Line").protocols == {"stream": "stream"}
    assert adhoc_service("my.py:Line").protocols == {"stream": "stream"}


def test_a_module_is_looked_for_in_the_current_directory_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_unique_module.py").write_text(CLASSES)
    importlib.invalidate_caches()
    # As the console script twistd has it: no "" and no current directory.
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    monkeypatch.chdir(tmp_path)
    try:
        assert adhoc_service("my_unique_module:Line").protocols == {"stream": "stream"}
        assert sys.path[0] == str(tmp_path)
        adhoc_service("my_unique_module:Letter")
        assert sys.path.count(str(tmp_path)) == 1
    finally:
        del sys.modules["my_unique_module"]


def test_functions_are_served_by_what_they_take(place: Place) -> None:
    place.write(
        "functions.py",
        """
        async def talk(stream): await stream.write(b"hello")
        def answer(data, peer): return data
        async def later(data, peer): return data
        """,
    )
    protocols = {
        name: adhoc_service(f"{place.path}/functions.py:{name}").protocols for name in ("talk", "answer", "later")
    }
    datagram = {"datagram": "datagram"}
    assert protocols == {"talk": {"stream": "stream"}, "answer": datagram, "later": datagram}


def test_two_classes_of_one_file_share_its_module(place: Place) -> None:
    file = place.write("counted.py", CLASSES + "\nimport builtins\nloads = []\n")
    one, other = adhoc_service(f"{file}:Line"), adhoc_service(f"{file}:LineFactory")
    assert isinstance(one, ServedClass)
    assert isinstance(other, ServedClass)
    assert other.sources["stream"].protocol is one.sources["stream"]


@pytest.mark.parametrize("name", ["ShoutUDP", "answerer"])
def test_a_class_that_answers_datagrams_does_so_over_the_default_core(place: Place, name: str) -> None:
    text = (ROOT / "examples/shout/shout.py").read_text("utf-8")
    service = adhoc_service(f"{place.write('answering.py', f'{text}answerer = ShoutUDP()')}:{name}")
    protocol = service.build(Options(), Context(Clock(), Logger("test"))).protocol("datagram")
    transport = bind_datagrams(protocol)
    transport.feed(b"hello", ("192.0.2.1", 54321))
    transport.feed(b"hello", ("192.0.2.1", 7))
    assert transport.written == [(b"HELLO", ("192.0.2.1", 54321))]


DECLARED = """
from netsvc.interfaces import Options
from netsvc.service import Service, ServicePlugin
from twisted.internet.protocol import Protocol

class LoudOptions(Options):
    optParameters = [["NAME", None, "5", "An option"]]

class NeedsArgument(Protocol):
    def __init__(self, core):
        self.core = core

service = Service("loud", "Declared", options=LoudOptions, streams={"tcp": NeedsArgument, "v2": Protocol})
plugin = ServicePlugin("loud", "declared:service", "Declared")
"""


def test_a_declared_service_is_served_as_it_is(place: Place) -> None:
    file = place.write("declared.py", DECLARED.replace("NAME", "size"))
    for target in (f"{file}:service", "declared:service", "declared:plugin"):
        service = adhoc_service(target, "given")
        assert (service.name, dict(service.protocols)) == ("loud", {"tcp": "stream", "v2": "stream"})
        assert not isinstance(service, ServedClass)


@pytest.mark.parametrize("name", ["tcp", "limit"])
def test_a_declared_service_is_checked_as_an_installed_one_is(place: Place, name: str) -> None:
    file = place.write("declared.py", DECLARED.replace("NAME", name))
    assert lacks(served(f"{file}:service"), "service loud ", name, str(file), "rename ") == []


def test_a_class_that_needs_arguments_is_refused_with_the_way_to_give_it_some(place: Place) -> None:
    file = place.write("declared.py", DECLARED)
    line = served(f"{file}:NeedsArgument")
    assert lacks(line, f"--serve {file}:NeedsArgument: ", "'core'", "lambda core: NeedsArgument(") == []


def test_a_class_that_needs_another_core_is_told_of_it() -> None:
    core: Any = PlainCore(Options(), Context(Clock(), Logger("test")))
    with pytest.raises(AttributeError) as raised:
        core.members.add(1)
    assert lacks(str(raised.value), "members", "core=") == []
    assert getattr(core, "members", None) is None


@pytest.mark.parametrize("name", ["five", "function", "Outer", "twisted_missing"])
def test_what_is_no_protocol_is_not_served(place: Place, name: str) -> None:
    file = place.write("my_classes.py", CLASSES)
    line = served(f"{file}:{name}")
    assert line.startswith(f"--serve {file}:{name}")
    if name == "twisted_missing":
        assert lacks(served(f"{file}:Lime"), f"--serve {file}:Lime: ", "Lime", " Line?") == []
    else:
        kind = {"five": "int", "function": "function", "Outer": "another class"}[name]
        assert lacks(line, name, kind, "Protocol", "DatagramProtocol", "Factory") == []


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("x = (", "SyntaxError: '(' was never closed (broken.py, line 1) at {file}:1"),
        ("\n1 / 0", "ZeroDivisionError: division by zero at {file}:2"),
        ("import sys\nsys.exit('usage: broken')", "SystemExit: usage: broken at {file}:2"),
        ("import no_such_module_here", "ModuleNotFoundError: No module named 'no_such_module_here' at {file}:1"),
    ],
)
def test_a_file_that_does_not_load_is_one_line_with_cause_and_place_each_time(
    place: Place, text: str, cause: str
) -> None:
    file = place.write("broken.py", text)
    for _ in range(2):
        assert lacks(served(f"{file}:Line"), f"--serve {file}:Line ", cause.format(file=file)) == []
    place.write("broken.py", CLASSES + "# mended, and longer than before")
    assert adhoc_service(f"{file}:Line").protocols == {"stream": "stream"}


def test_a_missing_file_a_missing_module_and_an_empty_name_are_one_line_each() -> None:
    assert lacks(served("./no/such.py:X"), "--serve ./no/such.py:X ", "FileNotFoundError: ", "./no/such.py") == []
    assert "ModuleNotFoundError: No module named 'no_such_module_here'" in served("no_such_module_here:X")
    assert "ValueError: Empty module name" in served("X")
    assert served("netsvc:").startswith("--serve netsvc:: ")
    assert lacks(served("a\nb:X"), r"--serve a\nb:X ", "ModuleNotFoundError") == []
