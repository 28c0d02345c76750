"""Passwords are kept as scrypt hashes."""

from __future__ import annotations

import base64
import hashlib
import runpy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsvc.base import passwords
from netsvc.base.passwords import MAX_PASSWORD, PasswordError, check_hash, hash_password, verify_password


def cheap(password: str) -> str:
    """A hash at the lowest cost, so that tests are fast."""
    salt = b"0123456789abcdef"
    derived = hashlib.scrypt(password.encode(), salt=salt, n=2, r=1, p=1, dklen=16)
    return f"$scrypt$ln=1,r=1,p=1${base64.b64encode(salt).decode()[:-2]}${base64.b64encode(derived).decode()[:-2]}"


def test_the_password_is_right_and_another_is_wrong() -> None:
    # As in a server, at the real cost: one of the choices that OWASP recommends.
    hashed = runpy.run_path(passwords.__file__)["hash_password"]("geheim")
    assert hashed.startswith("$scrypt$ln=15,r=8,p=3$")
    assert "geheim" not in hashed
    assert verify_password("geheim", hashed)
    assert not verify_password("Geheim", hashed)


def test_two_hashes_of_a_password_differ() -> None:
    assert hash_password("a") != hash_password("a")


def test_the_vector_of_the_rfc() -> None:
    # RFC 7914, section 12: password, NaCl, N=1024, r=8, p=16.
    derived = bytes.fromhex(
        "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b373162"
        "2eaf30d92e22a3886ff109279d9830dac727afb94a83ee6d8360cbdfa2cc0640"
    )
    hashed = f"$scrypt$ln=10,r=8,p=16$TmFDbA${base64.b64encode(derived).decode().rstrip('=')}"
    assert verify_password("password", hashed)
    assert not verify_password("passwort", hashed)


def test_a_name_without_a_password_takes_as_long_as_one_with_one() -> None:
    assert passwords.dummy_hash().rpartition("$")[0].rpartition("$")[0] in hash_password("a")
    assert not verify_password("a", passwords.dummy_hash())


@pytest.mark.parametrize("typed", ["\u00c5", "A\u030a", "\u212b"])
def test_each_way_to_type_a_letter_is_the_same(typed: str) -> None:
    # OpaqueString of RFC 8265, section 4.2, composes.
    assert verify_password(typed, cheap("\u00c5"))


@pytest.mark.parametrize("space", ["\u00a0", "\u3000", "\u2003"])
def test_a_space_of_another_script_is_a_space(space: str) -> None:
    assert verify_password(f"a{space}b", cheap("a b"))


@pytest.mark.parametrize("password", ["", "x" * (MAX_PASSWORD + 1), "\u00e9" * MAX_PASSWORD])
def test_an_empty_or_endless_password_is_refused(password: str) -> None:
    with pytest.raises(PasswordError):
        hash_password(password)
    assert not verify_password(password, cheap("a"))


@pytest.mark.parametrize(
    "hashed",
    [
        "",
        "secret",
        "$2b$12$abcdefghijklmnopqrstuv",
        cheap("a").replace("ln=1", "ln=0"),
        cheap("a").replace("r=1", "r=0"),
        cheap("a").replace("p=1", "p=0"),
        # 1 GiB of memory, and too much work in bearable memory.
        cheap("a").replace("ln=1,r=1", "ln=20,r=8"),
        cheap("a").replace("ln=1,r=1,p=1", "ln=15,r=8,p=99"),
        cheap("a") + "\n",
        cheap("a").replace("1,r", "1,R"),
        "$scrypt$ln=1,r=1,p=1$AAAAA$AAAAAAAAAAAAAAAAAAAAAA",
    ],
)
def test_what_is_no_hash_or_too_dear_is_an_error(hashed: str) -> None:
    with pytest.raises(PasswordError):
        check_hash(hashed)
    with pytest.raises(PasswordError):
        verify_password("a", hashed)


@given(st.text(max_size=200))
def test_a_hash_is_checked_whatever_it_is(hashed: str) -> None:
    with pytest.raises(PasswordError):
        check_hash(hashed)
