"""Where the admin server may listen, and what whoever asks there has to show."""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from cryptography import x509

from netsvc.address import Address
from netsvc.listeners.certificates import CertificateError, read_file, shown
from netsvc.listeners.opening import check_address
from netsvc.plan import AdminUse

__all__ = ["LOCALHOST", "check_admin", "is_exposed", "may_be_read_by_others", "places", "read_clients", "read_token"]

#: What `localhost` and a bare port stand for.
LOCALHOST = ("127.0.0.1", "::1")
#: Characters of a token.
SHORTEST_TOKEN, LONGEST_TOKEN = 16, 1024
#: Certificates that sign those of clients.
MOST_CLIENT_CERTIFICATES = 100

_TOKEN = re.compile(rb"[\x21-\x7e]+")
_SCHEMES = ("inet", "tcp", "tcp6", "unix", "systemd")


def check_admin(use: AdminUse) -> list[str]:
    """Say in a line each why it cannot be served as it is asked for. Reads the files that it names, opens no port."""
    try:
        return [f"{use.place}admin cannot listen on {use.address.text}: {each}" for each in _mistakes(use)]
    except ValueError as error:
        return [f"{use.place}admin cannot listen on {use.address.text}: {error}"]


def _mistakes(use: AdminUse) -> list[str]:
    address = use.address
    if address.kind != "stream" or address.scheme not in _SCHEMES:
        return ["it takes a port, HOST:PORT, unix:PATH or tls:PORT:…"]
    if address.proxy is not None or address.limits:
        return ["proxy: and guard: are for the listeners of services; leave them out"]
    if use.client_ca is not None and address.tls is None:
        return ["client certificates need TLS; write tls:PORT:cert=FILE:key=FILE"]
    if is_exposed(address) and use.token_file is None and use.client_ca is None:
        return [
            "others than this machine may reach it; listen on localhost or unix:PATH, or set a token file, "
            "or with tls: a client CA"
        ]
    if use.token_file is not None:
        read_token(use.token_file)
    if use.client_ca is not None:
        read_clients(use.client_ca)
    check_address(address)
    return []


def is_exposed(address: Address) -> bool:
    """Tell whether others than this machine may reach an address. What is not known for sure may be reached."""
    if address.scheme == "unix" or address.place.startswith("systemd:domain=UNIX:"):
        return False
    if address.scheme == "systemd":
        return True
    if _is_localhost(address):
        return False
    try:
        return not ipaddress.ip_address((address.host or "").partition("%")[0]).is_loopback
    except ValueError:
        # A name may be that of another address tomorrow.
        return True


def _is_localhost(address: Address) -> bool:
    """Tell whether it is `localhost`, which a bare port is as well; but not `tls:` with one, which is for others."""
    name = (address.host or "").lower()
    return address.scheme == "inet" and (name == "localhost" or (not name and address.tls is None))


def places(address: Address) -> Sequence[Address]:
    """List what is to be opened for an address. The first must be there, others are left out if the system has none."""
    if address.scheme == "unix" and not re.search(r":mode=\d", address.place):
        # Twisted's own default lets in everybody on the machine.
        return [replace(address, text=f"{address.text}:mode=600", place=f"{address.place}:mode=600")]
    if _is_localhost(address):
        return [replace(address, host=host) for host in LOCALHOST]
    return [address]


def read_token(path: str) -> bytes:
    """Read the word that whoever asks must know. Raises `ValueError` with a line that names the file."""
    token = read_file(path).strip()
    if not SHORTEST_TOKEN <= len(token) <= LONGEST_TOKEN or not _TOKEN.fullmatch(token):
        raise ValueError(
            f"{shown(path)}: a token is one word of {SHORTEST_TOKEN} to {LONGEST_TOKEN} characters of ASCII; "
            "make one with: openssl rand -hex 32"
        )
    return token


def may_be_read_by_others(path: str) -> bool:
    """Tell whether every user of the machine may read a file."""
    with suppress(OSError):
        return bool(os.stat(path).st_mode & stat.S_IROTH)
    return False


def read_clients(path: str) -> list[x509.Certificate]:
    """Read the certificates, in PEM form, that sign those of clients. Raises `ValueError` with a line."""
    data = read_file(path)
    try:
        found = x509.load_pem_x509_certificates(data)
    except ValueError:
        raise CertificateError(f"{shown(path)}: no certificate in PEM form") from None
    if len(found) > MOST_CLIENT_CERTIFICATES:
        raise CertificateError(f"{shown(path)}: more than {MOST_CLIENT_CERTIFICATES} certificates")
    return found
