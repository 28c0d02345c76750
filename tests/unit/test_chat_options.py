from __future__ import annotations

import pytest

from netsvc.base.errors import UserError
from netsvc.interfaces import INetworkService
from netsvc.options import declared_settings, parse_settings
from netsvc.services.chat import service
from netsvc.services.chat.options import ChatOptions
from netsvc.services.chat.store.redis_link import parse_address


@pytest.mark.parametrize(
    ("name", "python_name"),
    [
        ("gbk", "gbk"),
        ("GB18030", "gb18030"),
        ("big5", "big5"),
        ("euc-jp", "euc_jp"),
        ("euc-kr", "euc_kr"),
        ("latin-1", "iso8859-1"),
        ("cp1251", "cp1251"),
        ("koi8-r", "koi8-r"),
        ("utf-8", "utf-8"),
        ("ascii", "ascii"),
    ],
)
def test_an_encoding_that_has_ascii_unchanged_is_accepted(name: str, python_name: str) -> None:
    assert parse_settings(ChatOptions, {"encoding": name})["encoding"] == python_name


@pytest.mark.parametrize(
    "name",
    ["utf-16", "utf-16-le", "utf-32", "utf-7", "utf-8-sig", "cp037", "hz", "iso2022_jp", "unicode_escape"],
)
def test_an_encoding_whose_bytes_hide_line_ends_or_slashes_is_refused(name: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_settings(ChatOptions, {"encoding": name})
    assert str(refused.value) == (
        f"--encoding {name}: an encoding that has ASCII unchanged, such as gbk, big5, euc-jp or latin-1"
    )


@pytest.mark.parametrize("value", ["https://a.example", "http://localhost:8000, *", "", "app://x"])
def test_origins_are_as_a_browser_sends_them(value: str) -> None:
    origins = parse_settings(ChatOptions, {"web-origins": value})["web-origins"]
    assert origins == tuple(each.strip() for each in value.split(",") if each.strip())


@pytest.mark.parametrize("value", ["a.example", "https://a.example/", "https://", "https://a b", "https://a.example,,"])
def test_what_is_no_origin_is_refused(value: str) -> None:
    with pytest.raises(UserError):
        parse_settings(ChatOptions, {"web-origins": value})


@pytest.mark.parametrize("name", ["nonsense", "base64", "rot13", ""])
def test_what_is_no_text_encoding_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="the name of a text encoding"):
        parse_settings(ChatOptions, {"encoding": name})


#: Their defaults are empty, but for the encoding.
_NO_LIMITS = {"encoding", "store", "sync", "reserved", "operators", "plain-passwords"}
_NO_LIMITS |= {"irc-name", "irc-password", "irc-sts-port", "web-origins"}


def test_every_option_but_the_encoding_is_a_limit_with_a_default() -> None:
    declared = declared_settings(ChatOptions)
    assert {setting.name for setting in declared} - _NO_LIMITS == set(ChatOptions.limits)
    assert all(setting.description for setting in declared)
    no_default = {setting.name for setting in declared if not setting.default}
    assert no_default == _NO_LIMITS - {"encoding", "irc-name"} | {"keep-days", "peer-members", "peer-rooms"}


@pytest.mark.parametrize("place", ["", "disk", "sqlite:", "sqlite", "disk://x", "sqlite:a\0b"])
def test_a_store_is_memory_a_file_or_a_redis(place: str) -> None:
    assert parse_settings(ChatOptions, {"store": "memory"})["store"] == "memory"
    for address in ("redis://h", "rediss://u:p@h:1/2?prefix=x", "redis+unix:///a"):
        assert parse_settings(ChatOptions, {"store": address})["store"] == parse_address(address)
    with pytest.raises(UserError, match="sqlite:FILE"):
        parse_settings(ChatOptions, {"store": place})


@pytest.mark.parametrize("name", ChatOptions.limits)
@pytest.mark.parametrize("value", ["-1", "many", "99999999999"])
def test_a_limit_out_of_bounds_is_refused_with_the_bounds(name: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"--{name} {value}: .*from "):
        parse_settings(ChatOptions, {name: value})


def test_the_defaults_are_within_the_bounds() -> None:
    chosen = {setting.name: setting.default for setting in declared_settings(ChatOptions) if setting.default}
    assert dict(parse_settings(ChatOptions, chosen)).items() >= chosen.items()


def test_reserved_names_are_listed_with_commas() -> None:
    assert parse_settings(ChatOptions, {"reserved": "Chef, 老板"})["reserved"] == ("Chef", "老板")
    with pytest.raises(UserError, match="a space"):
        parse_settings(ChatOptions, {"reserved": "Chef,the boss"})
    with pytest.raises(UserError, match="1001"):
        parse_settings(ChatOptions, {"reserved": ",".join("x" * 1001)})


def test_the_service_is_declared() -> None:
    assert INetworkService.providedBy(service)
    assert (service.name, service.protocols) == ("chat", dict.fromkeys(("line", "irc", "web"), "stream"))
