"""The JSON Schema of the configuration file: what the reader accepts fits it, and obvious mistakes do not."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from twisted.internet.protocol import Protocol
from twisted.python import usage

from netsvc.config.arguments import survey_arguments
from netsvc.config.discovery import Catalogue, FoundService, discover
from netsvc.config.example import OWN_SERVICES, example
from netsvc.config.file import KEYS, SERVICE_KEYS, TWISTD_KEYS
from netsvc.config.schema import configuration_schema, write_schema
from netsvc.options import declared_settings
from netsvc.plan.limits import DEFAULTS, LIMITS
from netsvc.service import Service
from tests.builders.arguments import VALUE, WHOLE, Loaded, catalogue
from tests.builders.processes import ROOT

CATALOGUE = catalogue()
#: Of our services, and those of the tests.
SCHEMA = configuration_schema(CATALOGUE)
VALIDATOR = Draft202012Validator(SCHEMA)

PUBLISHED = ROOT / "docs/netsvc.schema.json"


def wrong(text: str) -> list[str]:
    """List what the schema has against a file."""
    return [error.message for error in VALIDATOR.iter_errors(tomllib.loads(text))]


def accepted(text: str, directory: Path) -> bool:
    (directory / "x.toml").write_text(text, "utf-8")
    return not survey_arguments(["--config", str(directory / "x.toml")], CATALOGUE)[1]


def test_the_published_one_is_current() -> None:
    written = write_schema(discover(), list(OWN_SERVICES))
    assert PUBLISHED.read_text("utf-8") == written, f"run: python -m tests.unit.test_schema (writes {PUBLISHED})"


def test_it_is_a_schema() -> None:
    for made in (SCHEMA, json.loads(PUBLISHED.read_text("utf-8"))):
        Draft202012Validator.check_schema(made)
        assert made["$schema"] == Draft202012Validator.META_SCHEMA["$id"]


def test_it_has_every_key_limit_option_and_default() -> None:
    assert tuple(SCHEMA["properties"]) == KEYS
    assert tuple(SCHEMA["properties"]["twistd"]["items"]["properties"]) == TWISTD_KEYS
    limits = SCHEMA["$defs"]["limits"]["properties"]
    assert list(limits) == list(LIMITS)
    assert {name: schema["default"] for name, schema in limits.items() if "default" in schema} == DEFAULTS
    for name in ("stream", "datagram"):
        assert list(SCHEMA["$defs"][f"{name}-limits"]["properties"]) == [
            limit.name for limit in LIMITS.values() if name in limit.kinds
        ]
    for name in OWN_SERVICES:
        service = CATALOGUE.load(name)
        properties = SCHEMA["$defs"][f"service-{name}"]["properties"]
        settings = declared_settings(service.options)
        assert set(properties) == {*SERVICE_KEYS, *service.protocols, *(each.name for each in settings)} - {"serve"}
        for setting in settings:
            assert properties[setting.name].get("default") == (None if setting.flag else setting.default)


def test_what_does_not_load_is_left_out() -> None:
    services = SCHEMA["properties"]["services"]["properties"]
    assert "gate" in services
    assert not {"broken", "twice"} & set(services)


@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        example(discover()),
        "",
        "[services.echo]\ntcp = 0",
        # A declared service has protocols and options that the schema cannot know.
        "[services.loud]\nserve = './shout.py:service'\nudp = 0",
    ],
)
def test_real_files_fit(text: str) -> None:
    assert wrong(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "dran = 4",
        "drain = -1",
        "drain = 'soon'",
        "drain = true",
        "workers = 0",
        "workers = 1.5",
        "workers = 'all'",
        "limits = 5",
        "limits.idel = 5",
        "limits.idle = true",
        "limits.idle = 'never'",
        "limits.perip = 0",
        "limits.perip = 1.5",
        "limits.perip = [1]",
        "limits.read = 'fast'",
        "limits.deny = 5",
        "limits.deny = [5]",
        "services = []",
        "services.a_b = { service = 'chat' }",
        "services.lobby = { line = 1 }",
        "services.lobby = { service = 'chta', line = 1 }",
        "services.lobby = { service = 'chat', tcp = 1 }",
        "services.lobby = { service = 'chat', serve = 'x:Y' }",
        "services.lobby = { serve = 'x', listen = 1 }",
        "services.echo = { service = 'chat', line = 1 }",
        "services.echo.tcp = true",
        "services.echo.tcp = 65536",
        "services.echo.tcp = ''",
        "services.echo.tcp = { adress = 1 }",
        "services.echo.tcp = { limits = { idle = 5 } }",
        "services.echo.tcp = { address = 1, limits = { sessions = 5 } }",
        "services.echo.udp = [{ address = 1, limits = { idle = 5 } }]",
        "services.echo.limits.idle = 0",
        "services.chat = { line = 1, histroy = 5 }",
        "services.chat = { line = 1, history = 5000 }",
        "services.chat = { line = 1, history = 'many' }",
        "services.chat = { line = 1, line-bytes = '4 apples' }",
        "services.reply = { listen = 1, amplify = 1 }",
        "services.reply = { listen = 1, amplify = 'yes' }",
        "services.reply = { listen = 1, text = ['x'] }",
        "twistd = 'web'",
        "twistd = [{ ran = 'web' }]",
        "twistd = [{ run = '' }]",
        "twistd = [{ run = ['web'] }]",
        "twistd = [{ run = 'web', limits = { prip = 1 } }]",
    ],
)
def test_obvious_mistakes_do_not_fit_and_are_not_accepted(text: str, tmp_path: Path) -> None:
    assert wrong(text)
    assert not accepted(text, tmp_path)


VALUES = st.sampled_from(
    [
        *("0", "1", "7", "0.5", "64", "9001", "50_000", "-1", "true", "false", "[]", "[1]", "{}", "2000-01-01"),
        *("'7'", "' 1.5e1 '", "'64K'", "'9001'", "'none'", "'${HOME}'", "'${X:-5}'", "'all'", "'10.0.0.0/8'", "''"),
        *("['10.0.0.0/8', 'all']", "'mon 08:00-09:00'", "'hi'", "'gbk'", "'auto'", "'unix:x'", "'127.0.0.1:0'"),
        *("['idle']", "'guard:perip=1:9002'", "[0, 0]", "{ address = 0 }"),
        "[{ address = '0', limits = { perip = 1 } }]",
    ]
)
LEVELS = (
    "limits.{} = {{}}\n",
    "services.gate = {{{{ line = 1, limits = {{{{ {} = {{}} }}}} }}}}\n",
    "services.gate.v2 = {{{{ address = 1, limits = {{{{ {} = {{}} }}}} }}}}\n",
    "services.gate.letter = [{{{{ address = 1, limits = {{{{ {} = {{}} }}}} }}}}]\n",
    "twistd = [{{{{ run = 'web', limits = {{{{ {} = {{}} }}}} }}}}]\n",
)


def statements() -> Iterator[str]:
    """List the statements of a file, each with a place for a value."""
    yield from ("drain = {}\n", "workers = {}\n", "twistd = [{{ run = {} }}]\n")
    yield "services.gate.v2 = {{ address = {} }}\n"
    yield from (level.format(name) for level in LEVELS for name in LIMITS)
    for name in (*OWN_SERVICES, "gate"):
        service = CATALOGUE.load(name)
        addresses = ("listen", *service.protocols)
        for key in (*addresses, *(each.name for each in declared_settings(service.options))):
            needed = "" if key in addresses else "listen = 1, "
            if name == "files" and key != "root":
                needed += "root = '.', "
            if key == "loud":
                needed += "text = 'x', "
            yield f"services.{name} = {{{{ {needed}{key} = {{}} }}}}\n"


STATEMENTS = list(statements())
#: So that there is something to run.
ENOUGH = "services.lobby = { service = 'gate', line = 0 }\n"


@pytest.mark.slow
@settings(max_examples=300)
@given(statement=st.sampled_from(STATEMENTS), value=VALUES, other=st.sampled_from(STATEMENTS), more=VALUES | VALUE)
def test_what_the_reader_accepts_fits(
    tmp_path_factory: pytest.TempPathFactory, statement: str, value: str, other: str, more: str
) -> None:
    for text in (statement.format(value), statement.format(value) + other.format(more)):
        if accepted(text + ENOUGH, tmp_path_factory.getbasetemp()):
            assert wrong(text + ENOUGH) == []


def test_there_is_a_value_for_every_statement_that_the_reader_accepts(tmp_path: Path) -> None:
    """Or else the test above would show nothing of it."""
    values = ["1", "64", "9001", "true", "'10.0.0.0/8'", "'mon 08:00-09:00'", "'idle'", "'utf-8'", "'gbk'", "'web'"]
    values += ["'2000-2001'", "'no-cache'", "'*'", "'memory'", "'none'"]
    for statement in STATEMENTS:
        # Not every limit is one of every kind.
        if statement.startswith(("services.gate.v2", "services.gate.letter")) and "limits" in statement:
            continue
        assert any(accepted(statement.format(value) + ENOUGH, tmp_path) for value in values), statement


def test_coercers_of_others_are_not_asked() -> None:
    def coerce(value: object) -> object:
        raise AssertionError("called")

    class Options(usage.Options):
        optParameters = [
            ["a", None, 1, "It\n  is", coerce],
            ["b", None, object(), "A thing", str],
            ["c", None, None, "c"],
        ]

    found = Catalogue()
    service = Service("x", "X", options=Options, streams={"tcp": Protocol})
    found.add(FoundService("x", "x.py", "x:service", Loaded(service)))
    properties = configuration_schema(found)["$defs"]["service-x"]["properties"]
    assert properties["a"] == {"description": "It is", "default": 1, "type": ["string", "number"]}
    assert properties["b"] == {"description": "A thing", "type": ["string", "number"]}


if __name__ == "__main__":
    PUBLISHED.write_text(write_schema(discover(), list(OWN_SERVICES)), "utf-8")
