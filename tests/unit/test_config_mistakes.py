"""Every mistake in a configuration file is a line with its place and the accepted form, all of them at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netsvc.base.errors import UserError
from netsvc.config.arguments import survey_arguments
from netsvc.config.draft import Draft
from netsvc.config.file import KEYS, LARGEST, MOST_ERRORS
from tests.builders.arguments import KEY, VALUE, catalogue
from tests.builders.facts import lacks

CATALOGUE = catalogue()

#: A plan, so that only what is wrong is said.
ECHO = "[services.echo]\ntcp = 0\n"

TOP = "drain, workers, log, access, debug, state, admin, limits, services, twistd"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def errors(text: str, *words: str) -> list[str]:
    Path("x.toml").write_text(text, "utf-8")
    return survey_arguments(["--config", "x.toml", *words], CATALOGUE)[1]


def mistake(text: str, *words: str) -> str:
    [line] = errors(text, *words)
    return line


def test_all_are_found_at_once_in_the_order_of_the_lines() -> None:
    lines = errors(
        'drain = "soon"\nworkers = 0\ndran = 1\n'
        '[limits]\nperip = "x"\nidel = 3\n'
        "[services.echo]\ntcp = 9001\n"
        'udp = [\n9001,\n{ address = 9003, limits = { connections = 3, idle = true } },\n{ adress = 4 },\n99999]\n'
        '[services.lobby]\nservice = "gate"\nline = 9001\nsize = 11\nsise = 5\nlimits = { life = "${NO}" }\n'
        '[services.mine]\nserve = "./my.py:Mine"\nlisten = 9004\n'
        '[services.Bad]\nlimits.idle = "x"\n'
        '[services.x]\nservice = "gat"\n'
        "[services.reply]\n"
        "[services.files]\nlisten = 0\n"
        "[[twistd]]\nrun = \"web '\"\n[[twistd]]\nran = 5\n",
        "--lobby-loud",
    )  # fmt: skip
    assert [line.partition(": ")[0] for line in lines] == [f"x.toml:{n}" for n in (
        1, 2, 3, 5, 6, 11, 11, 12, 12, 13, 16, 17, 18, 19, 21, 23, 24, 26, 27, 28, 31, 32, 33
    )]  # fmt: skip
    assert [line.split(": ")[1].split(" ")[0] for line in lines] == [
        "drain", "workers", "dran", "limits.perip=x", "limits.idel", "services.echo.udp.limits.idle",
        "services.echo.udp.limits.connections", "services.echo.udp.adress", "services.echo.udp", "services.echo.udp",
        "services.lobby.line", "services.lobby.size", "services.lobby.sise", "services.lobby.limits.life",
        "services.mine.serve", "services.Bad", "services.Bad.limits.idle=x", "services.x.service",
        "services.reply", "services.files", "twistd.run", "twistd", "twistd.ran",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("drain = 86401", ("1: drain 86401: ", "0 to 86400")),
        ("drain = []", ("1: drain: ", "a number")),
        ("workers = 'many'", ("1: workers many: ", "1 to 256", "auto")),
        ("workers = true", ("1: workers: ", "a number")),
        ("drain = 1e300", ("1: drain: ",)),
        ("drain = nan", ("1: drain: ",)),
        (f"workers = 0x{'f' * 9000}", ("1: workers: ",)),
        ("gate = 1", ("1: gate: ", "[services.gate]")),
        ("servces = 1", ("1: servces: ", "did you mean services?")),
        ("quux = 1", ("1: quux: ", TOP)),
        ('"a b\\u001b" = 1', ('1: "a b\\x1b": ', TOP)),
        ("idle = 1", ("1: idle: ", "limits = { idle = … }")),
        ("services.gate = { line = 1, idle = 1 }", ("1: services.gate.idle: ", "limits = { idle = … }")),
        ("limits = 1", ("1: limits: ", "[limits]", "limits = { idle = 60 }")),
        ("limits.idle = {}", ("1: limits.idle: ", "number", "none")),
        ("limits.deny = ['x']", ("1: limits.deny=x: ", "10.0.0.0/8", "@FILE")),
        ("limits.deny = [[]]", ("1: limits.deny: ", "number")),
        ("limits.idle = 2000-01-01", ("1: limits.idle: ", "number", "none")),
        ("limits.idle = [1]", ("1: limits.idle=1: ", "0.1 to 31622400", "none")),
        ("services = 1", ("1: services: ", "[services.echo]")),
        ("services.echo = 1", ("1: services.echo: ", "[services.echo]")),
        ("services.a_b = {}", ("1: services.a_b: ", "a-z, 0-9")),
        ("services.x = {}", ("1: services.x: ", "x")),
        ("services.x.service = 1", ("1: services.x.service: ", "1")),
        ("services.x.service = []", ("1: services.x.service: ", '"chat"')),
        ("services.x = { service = 'gate', serve = 'x:Y' }", ("1: services.x.serve: ", "service ")),
        ("services.echo = { service = 'gate' }", ("1: services.echo: ", "echo", "another")),
        ("services.echo = { serve = 'x:Y', listen = 1 }", ("1: services.echo: ", "echo", "another")),
        ("services.x.serve = 'x'", ("1: services.x.serve: ", "PATH_OR_MODULE:NAME", "./my.py:MyProtocol")),
        ("services.x.serve = []", ("1: services.x.serve: ", "PATH_OR_MODULE:NAME", "./my.py:MyProtocol")),
        ("services.gate = {}", ("1: services.gate: ", "line = 9001")),
        ("services.gate = { line = 1, leter = 2 }", ("1: services.gate.leter: ", "gate", "did you mean letter?")),
        ("services.gate.line = true", ("1: services.gate.line: ", "9001", '"127.0.0.1:9001"', "list")),
        ("services.gate = { line = 1, loud = 1 }", ("1: services.gate.loud: ", "true", "false")),
        ("services.gate = { line = 1, loud = 'yes' }", ("1: services.gate.loud: ", "true", "false")),
        ("services.gate = { line = 1, text = true }", ("1: services.gate.text: ", "number")),
        ("services.gate = { line = 1, text = ['x'] }", ("1: services.gate.text: ", "number")),
        ("services.gate = { line = 1, loud = true }", ("1: services.gate.loud needs services.gate.text",)),
        (
            "services.reply = { listen = 0,encoding = 'ascii', text = 'é' }",
            ("1: services.reply.encoding ascii ", "services.reply.text 'é'"),
        ),
        ("services.broken = { listen = 0 }", ("1: services.broken: ", "ImportError")),
        ("twistd = 1", ("1: twistd: ", "[[twistd]]", "run = ")),
        ("twistd = [1]", ("1: twistd: ", "[[twistd]]", "run = ")),
        ("twistd = [{ run = [] }]", ("1: twistd.run: ", "plugin")),
        ("twistd = [{ run = '' }]", ("1: twistd.run : ", "web --listen tcp:8080 --path public")),
    ],
)  # fmt: skip
def test_each_is_told_with_the_accepted_form(text: str, expected: tuple[str, ...]) -> None:
    line = mistake(f"{text}\n{ECHO if 'services.echo' not in text and 'services = ' not in text else ''}")
    assert line.startswith(f"x.toml:{expected[0]}")
    assert lacks(line, *expected) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = 1\nb = \nc", "2: column 5: "),
        ("[services.echo]\ntcp = 1\ntcp = 2", "3: "),
        ("a = [1,\n2", "2: "),
        ("a = " + "9" * 5000, " "),
        ("a = 1\nb = " + "[" * 100_000, "2: "),
        ("a." * 20_000 + "a = 1", "1: "),
    ],
)
def test_what_is_no_toml_is_one_line_with_the_place(text: str, expected: str) -> None:
    line = mistake(text)
    assert line.startswith((f"x.toml:{expected}", f"x.toml{expected}"))


def test_a_file_that_cannot_be_read_is_one_line(here: Path) -> None:
    def said(name: str) -> str:
        [line] = survey_arguments(["--config", name], CATALOGUE)[1]
        return line

    assert said("no/such.toml").startswith("no/such.toml: No such file or directory")
    assert "netsvc init" in said("no/such.toml")
    assert said("\x1b[2J").startswith("\\x1b[2J: No such file or directory")
    assert said("\0").startswith("\\x00: ")
    assert said(".").startswith(".: Is a directory")
    os.mkfifo("fifo")
    assert said("fifo").startswith("fifo: ")
    Path("large").write_text("#" * LARGEST + "\n")
    assert f"{LARGEST} bytes" in said("large")
    Path("largest").write_text(ECHO + "#" * (LARGEST - len(ECHO)))
    assert survey_arguments(["--config", "largest"], CATALOGUE)[1] == []
    Path("latin").write_bytes(b"# a\n# \xe9\n")
    assert said("latin").startswith("latin:2: not UTF-8")
    Path("empty").write_bytes(b"")
    assert said("empty").startswith("empty: ")
    assert "tcp = 9001" in said("empty")


def test_a_byte_order_mark_does_no_harm() -> None:
    assert errors("\ufeff" + ECHO) == []


def test_config_names_one_file() -> None:
    Path("x.toml").write_text(ECHO)
    words = ["--config", "x.toml"]
    [line] = survey_arguments([*words, "--config=y.toml"], CATALOGUE)[1]
    assert lacks(line, "--config", "twice") == []
    for missing in (["--config"], ["--config="], ["--config", "--drain=1"]):
        [line] = survey_arguments(["--tcp", "0", *missing], CATALOGUE)[1]
        assert lacks(line, "--config needs ", "file", "netsvc init") == []


def test_what_only_the_whole_shows_has_a_place_as_well() -> None:
    assert mistake("workers = 2\n[services.gate]\nline = 1").startswith("x.toml:1: workers 2: gate ")
    assert mistake("[services.gate]\nline = 1\n", "--workers=2").startswith("--workers 2: gate ")
    line = mistake("workers = 2\n[services.echo]\ntcp = 0\n[[twistd]]\nrun = 'web'")
    assert lacks(line, "x.toml:1: workers 2: web ", "--workers") == []
    line = mistake("[services.echo]\ntcp = [1,\n1]")
    assert lacks(line, "x.toml:3: services.echo.tcp 1: 1 ", "echo tcp", "echo tcp") == []
    assert (
        lacks(mistake(ECHO + "[services.files]\nlisten = 0"), "x.toml:3: services.files: ", "services.files.root DIR")
        == []
    )


def test_of_a_mistake_between_the_file_and_the_command_line_both_are_named() -> None:
    text = "[services.reply]\nlisten = 0\ntext = 'é'"
    assert lacks(mistake(text, "--reply-encoding", "ascii"), "--reply-encoding ascii ", "services.reply.text 'é'") == []
    assert lacks(mistake(ECHO, "--gate-size", "1"), "--gate-size ", " gate ", "--gate ADDRESS") == []
    line = mistake("[services.lobby]\nservice = 'gate'\nline = 1", "--gate-size", "1")
    assert lacks(line, "--gate-size ", " gate ", "--gate ADDRESS", "--lobby-…") == []


def test_an_unusable_service_of_the_file_is_named_once_whatever_the_command_line_says() -> None:
    text = "[services.lobby]\nservice = 'gat'"
    for words in (["--lobby", "1"], ["--lobby-size=1"], ["--lobby-limit", "idle=1"]):
        assert lacks(mistake(text, *words), "x.toml:2: services.lobby.service: ", "gat", " gate?") == []


LINE = (
    st.tuples(KEY, VALUE).map(" = ".join)
    | st.lists(KEY, min_size=1, max_size=3).map(".".join).map("[{}]".format)
    | KEY.map("[services.{}]".format)
    | st.just("[[twistd]]")
    | st.text(max_size=6)
)


@given(st.lists(LINE, max_size=12).map("\n".join) | st.text(max_size=40))
@example("[services.gate]\nline = 0\ntext = '\\'")
@example("[services.echo]\ntcp = 'unix:\x7f'")
def test_any_text_gives_a_plan_or_printable_lines_with_their_place(text: str) -> None:
    Path("fuzz.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    plan, lines = survey_arguments(["--config", "fuzz.toml"], CATALOGUE)
    assert lines or plan.listeners or plan.twistd
    for line in lines:
        # What is wrong with a plugin is so wherever it is asked for.
        assert line.startswith("fuzz.toml:")
        assert line.splitlines() == [line]
        assert not set(line) & set("\x1b\u202e\x00\x7f")


def test_every_key_is_read() -> None:
    assert {
        line.split(": ")[1] for line in errors("".join(f"{key} = {1 if key == 'debug' else 'true'}\n" for key in KEYS))
    } == set(KEYS)


def test_a_draft_starts_with_nothing() -> None:
    draft: Any = Draft(CATALOGUE)
    draft.check()
    assert draft.errors == []
    assert UserError(draft.errors).errors == ()


def test_of_very_many_mistakes_so_many_are_told(tmp_path: Path) -> None:
    file = tmp_path / "netsvc.toml"
    file.write_text("".join(f"x{number} = 1\n" for number in range(5000)))
    _, errors = survey_arguments(["--config", str(file)], catalogue())
    [last] = [line for line in errors if line.startswith(f"{file}: ")]
    assert len(errors) - 1 == MOST_ERRORS
    assert str(MOST_ERRORS) in last


def test_errors_that_only_the_draft_finds_are_bounded_too() -> None:
    addresses = ", ".join(f"'localhost:{65536 + number}'" for number in range(2 * MOST_ERRORS))
    lines = errors(f"[services.echo]\ntcp = [{addresses}]")
    # One more than the limit shows that there are more.
    assert len(lines) <= MOST_ERRORS + 2
    [last] = [line for line in lines if line.startswith("x.toml: ")]
    assert str(MOST_ERRORS) in last
