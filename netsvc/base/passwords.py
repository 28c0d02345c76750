"""Passwords as scrypt hashes (RFC 7914). Hashing takes some tenths of a second: call it in a thread."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import unicodedata
from typing import NamedTuple

#: Bytes of memory, and of work (memory times passes), that a hash from a file may cost.
_MOST_MEMORY = 256 * 1024 * 1024
_MOST_WORK = 4 * _MOST_MEMORY

#: Bytes in a password: more would only make the server work.
MAX_PASSWORD = 1024


class PasswordError(ValueError):
    """A password, or the hash of one, cannot be used."""


class Cost(NamedTuple):
    """What scrypt costs: 128 * `block` << `log_cost` bytes of memory, `passes` times."""

    log_cost: int
    block: int
    passes: int


#: Of a new hash: 32 MiB, one of the choices that OWASP recommends.
COST = Cost(15, 8, 3)

_FORM = re.compile(
    r"\$scrypt\$ln=([0-9]{1,2}),r=([0-9]{1,2}),p=([0-9]{1,2})\$([A-Za-z0-9+/]{4,86})\$([A-Za-z0-9+/]{22,86})"
)


def hash_password(password: str) -> str:
    """Return a hash to keep: `$scrypt$ln=15,r=8,p=3$SALT$HASH`, which has its cost in it (the PHC string format).

    Raises `PasswordError` if the password is empty or longer than `MAX_PASSWORD` bytes in UTF-8.
    """
    salt = os.urandom(16)
    derived = _derive(_prepare(password), salt, COST, 32)
    return f"{_parameters()}${_text(salt)}${_text(derived)}"


def verify_password(password: str, hashed: str) -> bool:
    """Return whether `hashed` is a hash of the password. A password that cannot have one is just wrong.

    Raises `PasswordError` if `hashed` is none of ours; see `check_hash`.
    """
    cost, salt, expected = _read(hashed)
    try:
        prepared = _prepare(password)
    except PasswordError:
        return False
    return hmac.compare_digest(_derive(prepared, salt, cost, len(expected)), expected)


def dummy_hash() -> str:
    """Return a hash of no known password, which takes as long to verify as a new one: for names that do not exist."""
    return f"{_parameters()}${'A' * 22}${'A' * 43}"


def check_hash(hashed: str) -> None:
    """Raise `PasswordError` unless `hashed` is a hash that `verify_password` can work with, at a bearable cost."""
    _read(hashed)


def _parameters() -> str:
    return f"$scrypt$ln={COST.log_cost},r={COST.block},p={COST.passes}"


def _prepare(password: str) -> bytes:
    """Return the bytes of a password, the same for each way to type it (RFC 8265, section 4.2)."""
    spaced = "".join(" " if unicodedata.category(each) == "Zs" else each for each in password[: MAX_PASSWORD + 1])
    prepared = unicodedata.normalize("NFC", spaced).encode("utf-8", "surrogatepass")
    if not prepared:
        raise PasswordError("the password is empty")
    if len(prepared) > MAX_PASSWORD or len(password) > MAX_PASSWORD:
        raise PasswordError(f"the password is longer than {MAX_PASSWORD} bytes")
    return prepared


def _read(hashed: str) -> tuple[Cost, bytes, bytes]:
    found = _FORM.fullmatch(hashed)
    if found is None:
        raise PasswordError("not a password hash of the form $scrypt$ln=15,r=8,p=3$SALT$HASH")
    cost = Cost(*map(int, found.group(1, 2, 3)))
    memory = 128 * cost.block << cost.log_cost
    if not all(cost) or memory > _MOST_MEMORY or memory * cost.passes > _MOST_WORK:
        raise PasswordError("the cost of that password hash is out of range")
    try:
        return cost, _bytes(found[4]), _bytes(found[5])
    except ValueError:
        raise PasswordError("the salt or the hash in that password hash is not base64") from None


def _derive(password: bytes, salt: bytes, cost: Cost, length: int) -> bytes:
    return hashlib.scrypt(
        password, salt=salt, n=1 << cost.log_cost, r=cost.block, p=cost.passes, maxmem=2 * _MOST_MEMORY, dklen=length
    )


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii").rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
