"""Relative paths in a file are those below its directory."""

from __future__ import annotations

import pytest

from netsvc.config.file import resolve_reference
from netsvc.plan.address import resolve_address, resolve_networks, resolve_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9001", "9001"),
        ("127.0.0.1:9001", "127.0.0.1:9001"),
        ("[::1]:9001", "[::1]:9001"),
        ("tcp:9001:interface=::1", "tcp:9001:interface=::1"),
        ("unix:echo.sock:mode=660", r"unix:/c\:d/echo.sock:mode=660"),
        ("unix:mode=660:address=echo.sock", r"unix:mode=660:address=/c\:d/echo.sock"),
        (r"unix:./a\:b", r"unix:/c\:d/a\:b"),
        ("unix:/run/x", "unix:/run/x"),
        ("unix:", "unix:"),
        ("unixgram:path=x", r"unixgram:path=/c\:d/x"),
        ("haproxy:unix:x", r"haproxy:unix:/c\:d/x"),
        ("tls:9443:cert=a.pem:key=/b.pem", r"tls:9443:cert=/c\:d/a.pem:key=/b.pem"),
        ("tls:9443:directory=certs", r"tls:9443:directory=/c\:d/certs"),
        ("ssl:1:privateKey=k:certKey=c", r"ssl:1:privateKey=/c\:d/k:certKey=/c\:d/c"),
        ("ssl:1:k:c:dhParameters=d", r"ssl:1:/c\:d/k:/c\:d/c:dhParameters=/c\:d/d"),
        ("unix:ssl:660", r"unix:/c\:d/ssl:660"),
        ("other:path=x", "other:path=x"),
        (r"guard:deny=@b.txt,2001\:db8\:\:/32:perip=2:9001", r"guard:deny=@/c\:d/b.txt,2001\:db8\:\:/32:perip=2:9001"),
        ("guard:perip=2:unix:x", r"guard:perip=2:unix:/c\:d/x"),
        ("a\\", "a\\"),
        ("", ""),
    ],
)
def test_in_an_address(text: str, expected: str) -> None:
    assert resolve_address(text, "/c:d") == expected


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("./my.py:Mine", "/c/my.py:Mine"),
        ("my.py:Mine", "/c/my.py:Mine"),
        ("lib/my:Mine", "/c/lib/my:Mine"),
        ("/a/my.py:Mine", "/a/my.py:Mine"),
        ("my.module:Mine", "my.module:Mine"),
    ],
)
def test_in_a_reference_to_a_class(reference: str, expected: str) -> None:
    assert resolve_reference(reference, "/c") == expected


def test_in_a_list_of_networks() -> None:
    expected = ["@/c/a", "all", "@/b", "@", "10.0.0.0/8"]
    assert resolve_networks(["@a", "all", "@/b", "@", "10.0.0.0/8"], "/c") == expected
    assert resolve_networks("@a, all,@/b,@,10.0.0.0/8", "/c") == expected


def test_an_empty_path_stays_a_mistake() -> None:
    assert resolve_path("", "/c") == ""
    assert resolve_path(".", "/c") == "/c/."
