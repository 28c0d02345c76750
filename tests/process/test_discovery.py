"""Services are found in two ways, and whatever is wrong with one is a line that names it, its file and the cure."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.protocol import Protocol
from twisted.logger import LogEvent, globalLogPublisher
from zope.interface import implementer

from netsvc.base.errors import PluginError
from netsvc.config.discovery import Catalogue, FoundService, discover
from netsvc.interfaces import INetworkService
from netsvc.service import Service
from tests.builders.facts import states
from tests.builders.processes import PATIENCE
from tests.builders.site import SERVICE, Place, forget, new_place
from tests.conftest import LoggedErrors


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    yield from new_place(tmp_path, monkeypatch)


def refusal(catalogue: Catalogue, name: str) -> str:
    with pytest.raises(PluginError) as raised:
        catalogue.load(name)
    [line] = raised.value.errors
    return line


def test_the_services_of_netsvc_itself_are_found_first_and_in_their_order() -> None:
    catalogue = discover()
    assert catalogue.names()[:4] == ["echo", "reply", "chat", "files"]
    assert catalogue.problems == []
    assert catalogue.rivals == {}
    assert catalogue.warnings() == []
    assert catalogue.services["echo"].origin.endswith("netsvc_plugins.py")
    assert "RFC 862" in catalogue.services["echo"].description


def test_every_service_of_netsvc_loads_under_its_own_name_and_description() -> None:
    catalogue = discover()
    for name in ("echo", "reply", "chat", "files"):
        assert catalogue.load(name).name == name
        assert catalogue.load(name).description == catalogue.services[name].description


def test_a_service_in_a_zip_file_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "acme.zip", "w") as archive:
        archive.writestr("acme_zipped.py", SERVICE.format(name="zipped"))
        archive.writestr("acme-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
        entry_points = "[netsvc.services]\nzipped = acme_zipped:service\n"
        archive.writestr("acme-1.0.dist-info/entry_points.txt", entry_points)
    monkeypatch.syspath_prepend(tmp_path / "acme.zip")
    catalogue = discover()
    assert catalogue.services["zipped"].origin == "entry point of acme 1.0"
    assert catalogue.load("zipped").protocols == {"tcp": "stream"}
    del sys.modules["acme_zipped"]


def test_an_entry_point_is_a_service_and_is_not_imported_until_it_is_used(place: Place) -> None:
    place.module("acme_gate", "gate")
    place.distribution("acme-gate", "gate = acme_gate:service", "2.3")
    catalogue = discover()
    assert states(catalogue.services["gate"].origin, "acme-gate 2.3")
    assert "acme_gate" not in sys.modules
    assert catalogue.load("gate").name == "gate"
    assert "gate" in catalogue.names()[4:]


def test_a_plugin_file_is_a_service_and_its_module_is_not_imported_until_it_is_used(place: Place) -> None:
    place.module("acme_gate", "gate")
    file = place.plugin_file("acme_plugins", 'gate = ServicePlugin("gate", "acme_gate:service", "A gate")')
    catalogue = discover()
    assert catalogue.services["gate"].origin == str(file)
    assert catalogue.services["gate"].description == "A gate"
    assert "acme_gate" not in sys.modules
    assert catalogue.load("gate").name == "gate"


def test_a_whole_declaration_may_stand_in_a_plugin_file(place: Place) -> None:
    place.plugin_file("acme_plugins", SERVICE.format(name="gate"))
    catalogue = discover()
    assert catalogue.services["gate"].target == "twisted.plugins.acme_plugins:service"
    assert catalogue.load("gate").protocols == {"tcp": "stream"}


def test_an_entry_point_may_name_a_pointer(place: Place) -> None:
    place.module("acme_gate", "gate")
    place.write(
        "acme_pointer.py",
        'from netsvc.service import ServicePlugin\ngate = ServicePlugin("gate", "acme_gate:service", "A gate")',
    )
    place.distribution("acme-gate", "gate = acme_pointer:gate")
    assert discover().load("gate").description == "Found by a test"


def test_services_of_others_are_listed_after_our_own_by_name(place: Place) -> None:
    place.distribution("acme", "zebra = acme:zebra\nalpaca = acme:alpaca")
    names = discover().names()
    assert names[:4] == ["echo", "reply", "chat", "files"]
    assert names[4:] == sorted(names[4:])
    assert {"alpaca", "zebra"} <= set(names[4:])


def test_the_same_target_found_in_both_ways_is_one_service(place: Place) -> None:
    place.module("acme_gate", "gate")
    place.distribution("acme-gate", "gate = acme_gate : service")
    place.plugin_file("acme_plugins", 'gate = ServicePlugin("gate", "acme_gate:service", "A gate")')
    catalogue = discover()
    assert catalogue.rivals == {}
    assert catalogue.load("gate").name == "gate"


def test_a_name_declared_twice_is_refused_with_both_origins(place: Place) -> None:
    place.distribution("acme-gate", "gate = acme_gate:service")
    place.distribution("other-gate", "gate = other_gate:service", "3")
    catalogue = discover()
    line = refusal(catalogue, "gate")
    assert line.startswith("service gate ")
    both = [("acme_gate:service", "acme-gate 1.0"), ("other_gate:service", "other-gate 3")]
    assert all(states(line, *each) for each in both)
    assert catalogue.warnings() == [line]
    assert catalogue.load("echo").name == "echo"


def test_nobody_takes_a_name_of_ours_in_silence(place: Place) -> None:
    place.distribution("acme-echo", "echo = acme_echo:service")
    line = refusal(discover(), "echo")
    assert states(line, "netsvc.services.echo:service", "netsvc_plugins.py")
    assert states(line, "acme_echo:service", "acme-echo 1.0")


def test_three_claims_to_a_name_are_all_named_and_one_of_them_found_twice_is_named_once() -> None:
    catalogue = Catalogue()
    for target in ("a:s", "b:s", "a:s", "b:s", "c:s"):
        catalogue.add(FoundService("gate", f"file of {target}", target, None))
    line = refusal(catalogue, "gate")
    assert states(line, "gate", *(f"{target} (from file of {target})" for target in ("a:s", "b:s", "c:s")))
    assert line.count("file of") == 3


@pytest.mark.parametrize(
    ("module", "cause"),
    [
        ("import no_such_module_here", "ModuleNotFoundError: No module named 'no_such_module_here' at {file}:1"),
        ("\nraise ValueError('one\\ntwo')", "ValueError: one at {file}:2"),
        ("x = (", "SyntaxError: '(' was never closed (acme_gate.py, line 1) at {file}:1"),
        ("raise SystemExit(3)", "SystemExit: 3 at {file}:1"),
        ("service = 5", "acme_gate:service is int"),
        ("x = 5", "AttributeError: module 'acme_gate' has no attribute 'service'"),
        (SERVICE.format(name="door"), "service gate calls itself door"),
        (SERVICE.format(name="Door!").strip(), "ValueError: 'Door!' is "),
        (SERVICE.format(name="gate") + "service.options = lambda: 1 / 0", "ZeroDivisionError: division by zero"),
        (SERVICE.format(name="gate") + "del service.protocols", "AttributeError: 'Service' object has no attribute"),
    ],
)
@pytest.mark.parametrize("way", ["entry point", "plugin file"])
def test_a_service_that_cannot_be_used_is_one_line_with_its_cause_its_origin_and_a_cure(
    place: Place, module: str, cause: str, way: str
) -> None:
    file = place.write("acme_gate.py", module)
    if way == "entry point":
        place.distribution("acme-gate", "gate = acme_gate:service")
        origin = "entry point of acme-gate 1.0"
    else:
        origin = str(place.plugin_file("acme_plugins", 'gate = ServicePlugin("gate", "acme_gate:service", "")'))
    catalogue = discover()
    assert catalogue.warnings() == []
    line = refusal(catalogue, "gate")
    assert cause.format(file=file) in line
    assert f"(from {origin}); " in line
    assert catalogue.load("echo").name == "echo"


def test_an_option_with_the_name_of_a_protocol_is_refused(place: Place) -> None:
    option = "Options.optParameters = [['tcp', None, None, '']]\nservice.options = Options\n"
    place.write(
        "acme_gate.py",
        "from netsvc.interfaces import Options as Base\n"
        + SERVICE.format(name="gate")
        + "class Options(Base):\n    pass\n"
        + option,
    )
    place.distribution("acme-gate", "gate = acme_gate:service")
    line = refusal(discover(), "gate")
    assert "--gate-tcp" in line
    assert "called tcp" in line


def test_the_line_names_the_authors_file_wherever_that_lies(place: Place) -> None:
    # Not to be taken for Python's own importlib.
    file = place.write("importlib_tricks/__init__.py", "\n\n1 / 0")
    place.distribution("acme-gate", "gate = importlib_tricks:service")
    assert f"ZeroDivisionError: division by zero at {file}:3 (from" in refusal(discover(), "gate")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("import no_such_module_here", "ModuleNotFoundError: No module named 'no_such_module_here' at {file}:2"),
        ("x = (", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3 at {file}:2"),
        ("raise Exception", "Exception"),
    ],
)
def test_a_broken_plugin_file_is_a_problem_and_harms_nobody(
    place: Place, text: str, cause: str, logged_errors: LoggedErrors
) -> None:
    file = place.plugin_file("acme_plugins", text)
    logged: list[LogEvent] = []
    observe: Any = logged.append
    globalLogPublisher.addObserver(observe)
    catalogue = discover()
    globalLogPublisher.removeObserver(observe)
    logged_errors.flush()
    # Twisted logs it, once; not we.
    assert [event["log_namespace"] for event in logged] == ["log_legacy"]
    [problem] = catalogue.problems
    assert problem.startswith(f"plugin file {file} does not load: {cause.format(file=file)}")
    assert catalogue.warnings() == [problem]
    assert catalogue.load("echo").name == "echo"


@pytest.mark.parametrize(
    ("limits", "facts"),
    [
        ({"idel": 5, "perip": "x"}, ["idel", "unknown limit", "sessions, perip, ", "perip x", "1 to 1000000"]),
        ({"deny": "@/no/such/file"}, ["deny @/no/such/file", "No such file"]),
    ],
)
@pytest.mark.parametrize("declares", ["a Service", "another class"])
def test_a_wrong_limit_of_a_service_is_named_with_the_file_of_the_plugin(
    limits: dict[str, object], facts: list[str], declares: str
) -> None:
    class Loading:
        def load(self) -> Any:
            if declares == "a Service":
                return Service("acme", "Acme", streams={"tcp": Protocol}, limits=limits)
            service: Any = type("Own", (Service,), {})("acme", "Acme", streams={"tcp": Protocol})
            service.limits = limits
            return Plain(service)

    @implementer(INetworkService)
    class Plain:  # type: ignore[misc]
        def __init__(self, service: Any) -> None:
            vars(self).update(vars(service), build=service.build)

    catalogue = Catalogue()
    catalogue.add(FoundService("acme", "acme_plugin.py", "acme:service", Loading()))
    line = refusal(catalogue, "acme")
    assert all(fact in line for fact in ("acme", "(from acme_plugin.py)", *facts))
    assert "UserError" not in line and "netsvc/guard" not in line


def test_an_unknown_name_is_explained_with_the_nearest_and_with_the_files_that_do_not_load(
    place: Place, logged_errors: LoggedErrors
) -> None:
    catalogue = discover()
    assert states(refusal(catalogue, "ehco"), " ehco", " echo?")
    assert " telepathy" in refusal(catalogue, "telepathy")
    assert r" e\x1b" in refusal(catalogue, "e\x1b")
    place.plugin_file("acme_plugins", "1 / 0")
    with pytest.raises(PluginError, match="gate") as raised:
        discover().load("gate")
    logged_errors.flush(ZeroDivisionError)
    assert "acme_plugins.py does not load: ZeroDivisionError" in raised.value.errors[1]


def test_a_plugin_file_whose_imports_have_gone_since_it_was_cached_is_a_problem(place: Place) -> None:
    gone = place.write("acme_names.py", "NAME = 'gate'")
    file = place.plugin_file(
        "acme_plugins", 'from acme_names import NAME\ngate = ServicePlugin(NAME, "acme_gate:service", "A gate")'
    )
    os.utime(file, (1, 1))
    assert "gate" in discover().names()
    gone.unlink()
    forget("acme_names")
    forget("twisted.plugins.acme_plugins")
    importlib.invalidate_caches()
    catalogue = discover()
    assert "gate" not in catalogue.names()
    [problem] = catalogue.problems
    assert problem.startswith("plugin file twisted.plugins.acme_plugins ")
    assert f"ModuleNotFoundError: No module named 'acme_names' at {file}:2" in problem


def test_a_plugin_without_what_a_service_has_is_a_problem(place: Place) -> None:
    text = """
    from zope.interface import implementer
    from netsvc.interfaces import INetworkService

    @implementer(INetworkService)
    class Half:
        pass

    half = Half()
    """
    place.plugin_file("acme_plugins", textwrap.dedent(text))
    [problem] = discover().problems
    assert "AttributeError: 'Half' object has no attribute 'name'" in problem


def test_other_plugins_of_twisted_are_passed_over(place: Place) -> None:
    place.plugin_file(
        "acme_plugins", 'from twisted.application.service import ServiceMaker\nx = ServiceMaker("x", "y", "z", "w")'
    )
    assert "x" not in discover().names()


def test_malformed_entry_points_of_anybody_harm_nobody(place: Place) -> None:
    place.distribution("acme-gate", "this is no entry point")
    catalogue = discover()
    assert catalogue.load("echo").name == "echo"
    [problem] = catalogue.problems
    assert "entry_points.txt" in problem


def test_an_entry_point_of_no_distribution_is_named_so() -> None:
    from importlib.metadata import EntryPoint

    from netsvc.config.discovery import _entry_point_origin

    assert _entry_point_origin(EntryPoint("x", "y:z", "netsvc.services")) == "entry point"


def run_python(code: str, *path: str) -> tuple[int, str]:
    """Run code in a process of its own with our own directory last on its path; return its status and stderr."""
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*path, str(Path(__file__).parents[2])])},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return ended.returncode, ended.stderr


@pytest.mark.slow
def test_listing_twistds_commands_imports_no_service_and_no_reactor() -> None:
    code = """
    import sys
    import twisted.plugins.netsvc_plugins
    from twisted.application.app import ServerOptions

    names = [command[0] for command in ServerOptions().subCommands]
    assert "netsvc" in names and "netsvc-echo" in names and "netsvc-chat" in names, names
    from netsvc.config.discovery import discover
    assert discover().names()[:4] == ["echo", "reply", "chat", "files"]
    loaded = [name for name in sys.modules if name.startswith("netsvc.services")]
    assert not loaded, loaded
    assert "twisted.internet.reactor" not in sys.modules
    assert "netsvc.tap" not in sys.modules
    """
    assert run_python(code) == (0, "")


@pytest.mark.slow
def test_a_plugin_file_of_others_is_a_twistd_command_before_and_after_it_was_cached(place: Place) -> None:
    # Its name comes before ours: nothing of netsvc is loaded yet when Twisted reads it from its cache.
    place.plugin_file("aaa_plugins", 'gate = ServicePlugin("gate", "acme_gate:service", "A gate")')
    code = """
    import sys
    from twisted.application.app import ServerOptions
    assert "netsvc-gate" in [command[0] for command in ServerOptions().subCommands]
    assert "acme_gate" not in sys.modules
    """
    for _ in range(2):
        assert run_python(code, str(place.path)) == (0, "")
    assert (place.path / "twisted/plugins/dropin.cache").is_file()
