"""Every mistake in a configuration file is a line with its place and the accepted form, all of them at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netsvc.arguments import survey_arguments
from netsvc.config.draft import Draft
from netsvc.config.reading import KEYS, LARGEST
from netsvc.errors import MistakeError
from netsvc.limits import LIMITS
from tests.test_arguments import catalogue

CATALOGUE = catalogue()

#: A plan, so that only what is wrong is said.
ECHO = "[services.echo]\ntcp = 0\n"

TOP = "drain, workers, log, access, state, admin, limits, services, twistd"
TABLES = '1: twistd: this is a list of tables; write [[twistd]] and below it run = "web --path public"'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mistakes(text: str, *words: str) -> list[str]:
    Path("x.toml").write_text(text, "utf-8")
    return survey_arguments(["--config", "x.toml", *words], CATALOGUE)[1]


def mistake(text: str, *words: str) -> str:
    [line] = mistakes(text, *words)
    return line


def test_all_are_found_at_once_in_the_order_of_the_lines() -> None:
    lines = mistakes(
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
        ("drain = 86401", "1: drain 86401: seconds from 0 to 86400, or with m, h, d (10m)"),
        ("drain = []", "1: drain: this is a number"),
        ("workers = 'many'", "1: workers many: a whole number from 1 to 256, or auto: one for each core"),
        ("workers = true", "1: workers: this is a number"),
        ("drain = 1e300", "1: drain: no number here is as large as that"),
        ("drain = nan", "1: drain: no number here is as large as that"),
        (f"workers = 0x{'f' * 9000}", "1: workers: no number here is as large as that"),
        ("gate = 1", "1: gate: there is no such key; did you mean [services.gate]?"),
        ("servces = 1", "1: servces: there is no such key; did you mean services?"),
        ("quux = 1", f"1: quux: there is no such key; there are {TOP}"),
        ('"a b\\u001b" = 1', f'1: "a b\\x1b": there is no such key; there are {TOP}'),
        ("idle = 1", "1: idle: there is no such key; limits have a table: limits = { idle = … }"),
        (
            "services.gate = { line = 1, idle = 1 }",
            "1: services.gate.idle: there is no such key; limits have a table: limits = { idle = … }",
        ),
        ("limits = 1", "1: limits: this is a table; write [limits], or limits = { idle = 60 }"),
        ("limits.idle = {}", "1: limits.idle: this is a number, a text or a list, or none"),
        ("limits.deny = ['x']", None),
        ("limits.deny = [[]]", "1: limits.deny: this is a number or a text"),
        ("limits.idle = 2000-01-01", "1: limits.idle: this is a number, a text or a list, or none"),
        ("limits.idle = [1]", "1: limits.idle=1: seconds from 0.1 to 31622400, or with m, h, d (10m), or none"),
        ("services = 1", "1: services: this is a table; write [services.echo]"),
        ("services.echo = 1", "1: services.echo: this is a table; write [services.echo]"),
        ("services.a_b = {}", "1: services.a_b: no name for a service: use a-z, 0-9 and single hyphens"),
        ("services.x = {}", "1: services.x: no service is called x"),
        ("services.x.service = 1", "1: services.x.service: no service is called 1"),
        ("services.x.service = []", '1: services.x.service: this is the name of a service, such as "chat"'),
        (
            "services.x = { service = 'gate', serve = 'x:Y' }",
            "1: services.x.serve: service is given as well; write one of them",
        ),
        (
            "services.echo = { service = 'gate' }",
            "1: services.echo: echo is the name of another service; choose another name",
        ),
        (
            "services.echo = { serve = 'x:Y', listen = 1 }",
            "1: services.echo: echo is the name of another service; choose another name",
        ),
        (
            "services.x.serve = 'x'",
            "1: services.x.serve: write PATH_OR_MODULE:NAME, such as ./my.py:MyProtocol",
        ),
        (
            "services.x.serve = []",
            "1: services.x.serve: this is PATH_OR_MODULE:NAME, such as ./my.py:MyProtocol",
        ),
        ("services.gate = {}", "1: services.gate: gate listens nowhere; give it an address, such as line = 9001"),
        (
            "services.gate = { line = 1, leter = 2 }",
            "1: services.gate.leter: gate has no protocol, no option and no other key of that name; "
            "did you mean letter?",
        ),
        (
            "services.gate.line = true",
            '1: services.gate.line: this is an address, such as 9001 or "127.0.0.1:9001", or a list of them',
        ),
        ("services.gate = { line = 1, loud = 1 }", "1: services.gate.loud: this is true or false"),
        ("services.gate = { line = 1, loud = 'yes' }", "1: services.gate.loud: this is true or false"),
        ("services.gate = { line = 1, text = true }", "1: services.gate.text: this is a text or a number"),
        ("services.gate = { line = 1, text = ['x'] }", "1: services.gate.text: this is a text or a number"),
        ("services.gate = { line = 1, loud = true }", "1: services.gate.loud needs services.gate.text"),
        (
            "services.reply = { listen = 0,encoding = 'ascii', text = 'é' }",
            "1: services.reply.encoding ascii cannot express services.reply.text 'é': choose another of either",
        ),
        ("services.broken = { listen = 0 }", None),
        ("twistd = 1", TABLES),
        ("twistd = [1]", TABLES),
        ("twistd = [{ run = [] }]", "1: twistd.run: this is a text with a twistd plugin and its options"),
        (
            "twistd = [{ run = '' }]",
            "1: twistd.run : nothing is named; write a twistd plugin and its options, "
            "such as web --listen tcp:8080 --path public",
        ),
    ],
)  # fmt: skip
def test_each_is_told_with_the_accepted_form(text: str, expected: str | None) -> None:
    line = mistake(f"{text}\n{ECHO if 'services.echo' not in text and 'services = ' not in text else ''}")
    assert line.startswith("x.toml:1: ") if expected is None else line == f"x.toml:{expected}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = 1\nb = \nc", "2: column 5: invalid value; the file is TOML (toml.io)"),
        ("[services.echo]\ntcp = 1\ntcp = 2", "3: at the end: cannot overwrite a value; the file is TOML (toml.io)"),
        ("a = [1,\n2", "2: at the end: unclosed array; the file is TOML (toml.io)"),
        ("a = " + "9" * 5000, " Exceeds the limit"),
        ("a = " + "[" * 100_000, ": arrays in arrays, too many to read; no value here needs more than two"),
    ],
)
def test_what_is_no_toml_is_one_line_with_the_place(text: str, expected: str) -> None:
    line = mistake(text)
    assert line.startswith(f"x.toml:{expected}") or line == f"x.toml{expected}"


def test_a_file_that_cannot_be_read_is_one_line(here: Path) -> None:
    def said(name: str) -> str:
        [line] = survey_arguments(["--config", name], CATALOGUE)[1]
        return line

    cure = "name a file that can be read, such as netsvc init writes"
    assert said("no/such.toml") == f"no/such.toml: No such file or directory; {cure}"
    assert said("\x1b[2J") == f"\\x1b[2J: No such file or directory; {cure}"
    assert said("\0") == f"\\x00: no file has such a name; {cure}"
    assert said(".") == f".: Is a directory; {cure}"
    os.mkfifo("fifo")
    assert said("fifo") == f"fifo: it is no file; {cure}"
    Path("large").write_text("#" * LARGEST + "\n")
    assert said("large") == f"large: it is larger than {LARGEST} bytes; {cure}"
    Path("largest").write_text(ECHO + "#" * (LARGEST - len(ECHO)))
    assert survey_arguments(["--config", "largest"], CATALOGUE)[1] == []
    Path("latin").write_bytes(b"# a\n# \xe9\n")
    assert said("latin") == "latin:2: not UTF-8, which a TOML file is"
    Path("empty").write_bytes(b"")
    assert said("empty") == "empty: nothing to run; write [services.echo] and below it tcp = 9001, for example"


def test_a_byte_order_mark_does_no_harm() -> None:
    assert mistakes("\ufeff" + ECHO) == []


def test_config_names_one_file() -> None:
    Path("x.toml").write_text(ECHO)
    words = ["--config", "x.toml"]
    assert survey_arguments([*words, "--config=y.toml"], CATALOGUE)[1] == ["--config is given twice: one file has all"]
    for missing in (["--config"], ["--config="], ["--config", "--drain=1"]):
        [line] = survey_arguments(["--tcp", "0", *missing], CATALOGUE)[1]
        assert line == "--config needs the name of a file; netsvc init writes one"


def test_what_only_the_whole_shows_has_a_place_as_well() -> None:
    assert mistake("workers = 2\n[services.gate]\nline = 1").startswith("x.toml:1: workers 2: gate may not run in")
    assert mistake("[services.gate]\nline = 1\n", "--workers=2").startswith("--workers 2: gate may not run in")
    assert mistake("workers = 2\n[services.echo]\ntcp = 0\n[[twistd]]\nrun = 'web'") == (
        "x.toml:1: workers 2: web opens its own ports, which several processes cannot share; "
        "run it in a netsvc of its own, without --workers"
    )
    assert mistake("[services.echo]\ntcp = [1,\n1]") == (
        "x.toml:3: services.echo.tcp 1: 1 is asked for twice: by echo tcp and by echo tcp"
    )
    assert mistake(ECHO + "[services.files]\nlisten = 0") == (
        "x.toml:3: services.files: files needs services.files.root DIR, the directory whose files are sent"
    )


def test_of_a_mistake_between_the_file_and_the_command_line_both_are_named() -> None:
    text = "[services.reply]\nlisten = 0\ntext = 'é'"
    assert mistake(text, "--reply-encoding", "ascii") == (
        "x.toml:1: services.reply: --reply-encoding ascii cannot express services.reply.text 'é': "
        "choose another of either"
    ) or mistake(text, "--reply-encoding", "ascii") == (
        "--reply-encoding ascii cannot express services.reply.text 'é': choose another of either"
    )
    assert mistake(ECHO, "--gate-size", "1") == "--gate-size is set, but gate listens nowhere: add --gate ADDRESS"
    assert mistake("[services.lobby]\nservice = 'gate'\nline = 1", "--gate-size", "1") == (
        "--gate-size is set, but gate listens nowhere: add --gate ADDRESS, or write --lobby-…"
    )


def test_an_unusable_service_of_the_file_is_named_once_whatever_the_command_line_says() -> None:
    text = "[services.lobby]\nservice = 'gat'"
    for words in (["--lobby", "1"], ["--lobby-size=1"], ["--lobby-limit", "idle=1"]):
        assert mistake(text, *words) == "x.toml:2: services.lobby.service: no service is called gat; did you mean gate?"


KEY = st.sampled_from(
    ["drain", "workers", "limits", "services", "twistd", "echo", "gate", "lobby", "service", "serve", "listen", "tcp",
     "udp", "line", "letter", "size", "loud", "text", "run", "address", "broken", "twice", *LIMITS, "q", '"\\u001b"']
)  # fmt: skip
VALUE = st.recursive(
    st.sampled_from(
        ["1", "-1", "0.5", "9001", '"9001"', "true", "'gate'", "'${HOME}'", "'${X:-5}'", "'none'", "'$'", "inf",
         "2000-01-01", "08:00:00", "'web --path x'", '"\'"', "'unix:x'", "'guard:perip=1:9001'", "'tests.a:B'", "''",
         '"\\u001b\\u202e"', "0xffffffffffffffffffffffffff", "'all'", "'10.0.0.0/8'", "'@x'", "'mon 08:00-09:00'"]
    ),
    lambda inner: st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
    | st.lists(st.tuples(KEY, inner), max_size=3, unique_by=lambda pair: pair[0]).map(
        lambda pairs: "{ " + ", ".join(f"{key} = {value}" for key, value in pairs) + " }"
    ),
    max_leaves=6,
)  # fmt: skip
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
    assert {line.split(": ")[1] for line in mistakes("".join(f"{key} = true\n" for key in KEYS))} == set(KEYS)


def test_a_draft_starts_with_nothing() -> None:
    draft: Any = Draft(CATALOGUE)
    draft.judge()
    assert draft.mistakes == []
    assert MistakeError(draft.mistakes).mistakes == ()


def test_of_very_many_mistakes_so_many_are_told(tmp_path: Path) -> None:
    file = tmp_path / "netsvc.toml"
    file.write_text("".join(f"x{number} = 1\n" for number in range(5000)))
    _, mistakes = survey_arguments(["--config", str(file)], catalogue())
    told = [mistake for mistake in mistakes if "there is no such key" in mistake]
    assert len(told) == len(mistakes) - 1 == 100
    assert f"{file}: that is enough; mend these 100 mistakes, and see what is left" in mistakes
