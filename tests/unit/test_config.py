"""A configuration file becomes the plan that a command line with the same content makes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from netsvc.config.arguments import read_arguments, survey_arguments
from netsvc.config.draft import Draft
from netsvc.config.file import MOST_SUBSTITUTED, read_config
from netsvc.plan.plan import Plan, ServiceUse
from tests.builders.arguments import FILE, THIS, WHOLE, catalogue, listens
from tests.builders.certificates import write_certificate
from tests.builders.facts import lacks

WORDS = [
    *("--drain", "2.5", "--limit", "connections=10000", "--limit", "deny=192.0.2.0/24,@/run/blocked.txt"),
    *("--limit", "hours=mon-fri 08:00-18:00", "--limit", "idle=none", "--limit", "read=65536"),
    *("--tcp", "9001", "--udp", "9002", "--udp", "127.0.0.1:9003"),
    *("--udp", "guard:sessionidle=5:dryrun=sessions:udp:9004"),
    *("--gate", "guard:perip=4:9005", "--gate", "unix:/run/gate", "--gate-letter", "9006", "--gate-size", "7"),
    *("--gate-loud", "--gate-text", "hi", "--gate-limit", "idle=86400", "--gate-limit", "periprate=0.5"),
    *("--with", "web --listen tcp:8080 --path 'a b'"),
]

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file and return its name."""

    def make(text: str) -> str:
        (tmp_path / "netsvc.toml").write_text(text, "utf-8")
        return str(tmp_path / "netsvc.toml")

    return make


def read(file: str, *words: str) -> Plan:
    return read_arguments(["--config", file, *words], catalogue())


def surveyed(text: str, environment: dict[str, str], path: Path) -> Draft:
    path.write_text(text, "utf-8")
    draft = Draft(catalogue(), environment=environment)
    read_config(str(path), draft)
    draft.check()
    return draft


def test_a_file_is_the_plan_of_a_command_line_with_the_same_content(write: Write) -> None:
    made = read(write(WHOLE))
    assert made == read_arguments(WORDS, catalogue())
    assert made.limits["connections"] == 10000
    assert made.uses["gate"].settings == {"size": "7", "loud": True, "text": "hi"}
    assert [each.limits for each in made.listeners if each.limits] == [
        {"sessionidle": 5.0, "dryrun": frozenset({"sessions"})},
        {"perip": 4},
    ]
    assert made.twistd[0].arguments == ("web", "--listen", "tcp:8080", "--path", "a b")


def test_a_plan_knows_the_file_and_where_everything_stood_in_it(write: Write) -> None:
    file = write(WHOLE)
    made = read(os.path.relpath(file))
    assert made.config == file
    assert read_arguments(["--tcp", "0"], catalogue()).config is None
    shown = os.path.relpath(file)
    assert made.listeners[0].origin == f"{shown}:12: services.echo.tcp 9001: "
    assert made.listeners[3].origin == f"{shown}:13: services.echo.udp.address udp:9004: "
    assert made.uses["gate"].origin == f"{shown}:15: services.gate: "
    assert made.twistd[0].origin == f"{shown}:24: twistd.run: "
    assert made.origin == f"{shown}:6: limits.deny: "


def test_places_make_no_difference_between_plans(write: Write) -> None:
    file = write("[services.echo]\ntcp = 1\n[[twistd]]\nrun = 'web'")
    before = read(file)
    write("# moved\n[services.echo]\ntcp = 1\n[[twistd]]\nrun = 'web'")
    assert read(file) == before


def test_several_services_of_one_kind_have_their_own_names(write: Write) -> None:
    file = write('[services.lobby]\nservice = "gate"\nline = 1\nsize = 2\n[services.gate]\nlisten = 2')
    made = read(file)
    assert made.uses == {"lobby": ServiceUse("gate", {"size": "2"}), "gate": ServiceUse("gate")}
    assert listens(made) == [("lobby", "line", "stream", "1"), ("gate", "line", "stream", "2")]


def test_a_class_straight_from_a_module_or_a_file_has_a_name_as_well(write: Write) -> None:
    mine, other = f'serve = "{THIS}:Letter"\nlisten = 1', f'serve = "{FILE}:Line"\nstream = 2'
    file = write(f"[services.mine]\n{mine}\n[services.a]\n{other}")
    made = read(file)
    assert made.uses == {
        "mine": ServiceUse(f"{THIS}:Letter", adhoc=True, name="mine"),
        "a": ServiceUse(f"{FILE}:Line", adhoc=True, name="a"),
    }
    assert listens(made) == [("mine", "datagram", "datagram", "1"), ("a", "stream", "stream", "2")]


def test_what_the_command_line_says_is_added_and_wins(write: Write) -> None:
    file = write(
        'drain = 1\nworkers = 3\nlimits = { idle = 5, perip = 6 }\n[services.echo]\ntcp = 1\n'
        '[services.lobby]\nservice = "gate"\nline = 2\nsize = 2\ntext = "a"\nlimits = { idle = 1, perip = 2 }'
    )  # fmt: skip
    made = read(
        file, "--drain=2", "--workers=1", "--limit=idle=7", "--lobby-size", "3", "--lobby-limit", "idle=9",
        "--tcp", "3", "--lobby", "4", "--gate-letter", "5",
    )  # fmt: skip
    assert (made.drain, made.workers, made.limits) == (2, 1, {"idle": 7.0, "perip": 6})
    assert made.uses["lobby"] == ServiceUse("gate", {"size": "3", "text": "a"}, limits={"idle": 9.0, "perip": 2})
    assert listens(made) == [
        ("echo", "tcp", "stream", "1"),
        ("lobby", "line", "stream", "2"),
        ("echo", "tcp", "stream", "3"),
        ("lobby", "line", "stream", "4"),
        ("gate", "letter", "datagram", "5"),
    ]
    assert [each.origin == "" for each in made.listeners] == [False, False, True, True, True]


def test_an_address_may_come_from_the_command_line_alone(write: Write) -> None:
    assert listens(read(write("[services.gate]\nsize = 1"), "--gate", "1")) == [("gate", "line", "stream", "1")]


def test_a_file_with_another_twistd_plugin_alone_is_a_plan(write: Write) -> None:
    made = read(write("[[twistd]]\nrun = 'web'\nlimits = { perip = 1 }\n[[twistd]]\nrun = 'ftp'"))
    assert [(each.arguments, each.limits) for each in made.twistd] == [(("web",), {"perip": 1}), (("ftp",), {})]


def test_a_flag_may_be_false(write: Write) -> None:
    assert read(write("[services.gate]\nline = 1\nloud = false")).uses["gate"].settings == {}


class TestSubstitution:
    FILE = """
    drain = "${DRAIN}"
    workers = "${WORKERS:-1}"
    limits = { perip = "${PERIP}", deny = ["${NET}", "10.0.0.${LAST:-1}"] }
    [services.gate]
    line = ["${PORT}", { address = "${HOST:-127.0.0.1}:${PORT}1", limits = { idle = "${IDLE:-none}" } }]
    text = "$$ $${X} $5 ${EMPTY} ${EMPTY:-empty} ${UNSET:-a b:-c}"
    size = "${SIZE}"
    loud = "${LOUD}"
    [[twistd]]
    run = "web --path '${DIRECTORY}'"
    """
    ENVIRONMENT = {
        "DRAIN": "3", "PERIP": "8", "NET": "192.0.2.0/24", "PORT": "900", "SIZE": "7", "LOUD": "true", "EMPTY": "",
        "DIRECTORY": "/a b",
    }  # fmt: skip

    def test_puts_the_environment_into_texts_and_for_numbers(self, tmp_path: Path) -> None:
        draft = surveyed(self.FILE, self.ENVIRONMENT, tmp_path / "x.toml")
        assert draft.errors == []
        made = draft.plan()
        assert (made.drain, made.workers) == (3, 1)
        assert made.limits == {"perip": 8, "deny": ("192.0.2.0/24", "10.0.0.1")}
        assert made.uses["gate"].settings == {"text": "$ ${X} $5  empty a b:-c", "size": "7", "loud": True}
        assert [each.address.text for each in made.listeners] == ["900", "127.0.0.1:9001"]
        assert made.listeners[1].limits == {"idle": None}
        assert made.twistd[0].arguments == ("web", "--path", "/a b")

    def test_names_what_the_environment_does_not_have(self, tmp_path: Path) -> None:
        environment = {**self.ENVIRONMENT, "LOUD": "perhaps"}
        del environment["PERIP"], environment["PORT"]
        place = tmp_path / "x.toml"
        facts = (
            (f"{place}:4: limits.perip: ", "PERIP", "${PERIP:-DEFAULT}"),
            (f"{place}:6: services.gate.line: ", "PORT", "${PORT:-DEFAULT}"),
            (f"{place}:6: services.gate.line.address: ", "PORT", "${PORT:-DEFAULT}"),
            (f"{place}:9: services.gate.loud: ", "true", "false"),
        )
        lines = surveyed(self.FILE, environment, place).errors
        assert [lacks(line, *each) for line, each in zip(lines, facts, strict=False)] == [[]] * 4

    @pytest.mark.parametrize("times", [1, 2, 8])
    def test_is_put_in_up_to_a_bound_for_the_whole_file(self, times: int, tmp_path: Path) -> None:
        size = MOST_SUBSTITUTED // times
        text = "[services.gate]\nline = 1\ntext = '" + times * "${LONG}" + "'\n"
        draft = surveyed(text, {"LONG": size * "x"}, tmp_path / "x.toml")
        assert draft.errors == []
        assert draft.plan().uses["gate"].settings["text"] == times * size * "x"
        place = tmp_path / "y.toml"
        more = surveyed(f"{text}drain = '${{LONG}}'\n", {"LONG": size * "x"}, place)
        [line] = [line for line in more.errors if "drain" in line]
        assert lacks(line, f"{place}:4: services.gate.drain: ", "LONG", str(MOST_SUBSTITUTED)) == []

    @pytest.mark.parametrize("text", ["${", "${}", "${A", "${1}", "${A-b}", "${A:b}", "${ A}", "${é}"])
    def test_wants_one_form_alone(self, text: str, tmp_path: Path) -> None:
        place = tmp_path / "x.toml"
        [mistake] = surveyed(f"[services.gate]\nline = 1\ntext = '{text}'", {"A": "b"}, place).errors
        assert lacks(mistake, f"{place}:3: services.gate.text: ", "${NAME}", "${NAME:-DEFAULT}", "$$") == []

    def test_is_no_way_to_put_in_a_substitution(self, tmp_path: Path) -> None:
        draft = surveyed("[services.gate]\nline = 1\ntext = '${A}'", {"A": "${B} $$"}, tmp_path / "x.toml")
        assert draft.plan().uses["gate"].settings == {"text": "${B} $$"}


class TestRelativePaths:
    def test_are_those_below_the_directory_of_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        here = tmp_path / "conf"
        here.mkdir()
        key, _ = write_certificate(here, "c")
        (here / "my.py").write_text("from twisted.internet.protocol import Protocol as Mine\n")
        (here / "netsvc.toml").write_text(
            'limits = { deny = ["@blocked.txt", "@/etc/x"], allow = "all,@a" }\n'
            '[services.echo]\ntcp = ["unix:e.sock:mode=600", "guard:deny=@b:9001", "tls:9002:cert=c.pem:key='
            f'{key}"]\n'
            "[services.files]\nclassic = 1\nroot = './public'\n"
            "[services.mine]\nserve = './my.py:Mine'\nlisten = 2\n[[twistd]]\nrun = 'web --path public'"
        )
        monkeypatch.chdir(tmp_path)
        made = read("conf/netsvc.toml")
        assert made.limits == {"deny": (f"@{here}/blocked.txt", "@/etc/x"), "allow": ("all", f"@{here}/a")}
        texts = [each.address.text for each in made.listeners]
        assert texts[:3] == [f"unix:{here}/e.sock:mode=600", "9001", f"tls:9002:cert={here}/c.pem:key={key}"]
        assert made.listeners[1].limits == {"deny": (f"@{here}/b",)}
        assert made.uses["files"].settings == {"root": f"{here}/public"}
        assert made.uses["mine"].service == f"{here}/my.py:Mine"
        # These words are not netsvc's to read.
        assert made.twistd[0].arguments == ("web", "--path", "public")

    def test_are_on_the_command_line_what_they_always_were(self) -> None:
        made = read_arguments(
            ["--tcp", "unix:x", "--files", "1", "--files-root", "y", "--limit", "deny=@z"], catalogue()
        )
        assert made.listeners[0].address.text == "unix:x"
        assert made.uses["files"].settings == {"root": "y"}
        assert made.limits == {"deny": ("@z",)}


def test_a_file_is_read_anew_each_time(write: Write) -> None:
    words = ["--config", write("[services.echo]\ntcp = 1")]
    assert survey_arguments(words, catalogue())[0].listeners[0].address.port == 1
    write("[services.echo]\ntcp = 2")
    assert survey_arguments(words, catalogue())[0].listeners[0].address.port == 2
    write("[services.echo]\ntcp = x")
    assert len(survey_arguments(words, catalogue())[1]) == 1
