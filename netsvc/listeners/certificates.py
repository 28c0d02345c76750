"""Finds and reads certificates with their keys, in PEM form."""

from __future__ import annotations

import datetime
import errno
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from netsvc.address import TLS
from netsvc.text import escape

__all__ = ["CarriedTLS", "CertificateError", "Identity", "Place", "find_places", "read_file", "read_identity", "shown"]

#: Certificates in a directory.
MOST_CERTIFICATES = 1000
#: Bytes of a file; a chain of the longest keys has a tenth.
LONGEST_FILE = 1024 * 1024
#: Bytes of a chain in DER form: Twisted sends 32 KiB of what a handshake begins with, and the rest never. This leaves
#: 4 KiB for the longest signature and what else comes with the chain. Chains in use have a tenth of it.
LONGEST_CHAIN = 28 * 1024
#: Characters of a path in a line; the system takes none that is longer.
LONGEST_PATH = 4096
#: What the tools of Let's Encrypt write for each name, in a directory of its own.
_CHAIN, _KEY = "fullchain.pem", "privkey.pem"
_PRIVATE_KEY = re.compile(rb"-----BEGIN ((?:[A-Z]+ )*PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL)


class CertificateError(ValueError):
    """A certificate that cannot be used: the text, one line, names the file and says why."""


def shown(path: str) -> str:
    """Show a path in a line: whoever may add a file to a directory chose its name."""
    return escape(path, LONGEST_PATH)


@dataclass(frozen=True)
class CarriedTLS(TLS):
    """The same, and what the files held, by their paths, when somebody could read them."""

    contents: Mapping[str, bytes] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Place:
    """The files of one certificate, which may be one file; `name` is what orders them in a directory."""

    name: str
    cert: str
    key: str

    def files(self) -> tuple[str, ...]:
        """List its files."""
        return tuple(dict.fromkeys((self.cert, self.key)))


@dataclass(frozen=True)
class Identity:
    """A certificate with the others of its chain, and its private key."""

    chain: tuple[x509.Certificate, ...]
    key: Any

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The host names that it is for: those of its subjectAltName, in lower case (RFC 6125, section 6.4.4)."""
        try:
            extension = self.chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except (x509.ExtensionNotFound, ValueError):
            return ()
        return tuple(name.lower() for name in extension.value.get_values_for_type(x509.DNSName))

    @property
    def begins(self) -> datetime.datetime:
        """The beginning of its validity."""
        return self.chain[0].not_valid_before_utc

    @property
    def expires(self) -> datetime.datetime:
        """The end of its validity."""
        return self.chain[0].not_valid_after_utc


def find_places(tls: TLS, known: Iterable[str] = ()) -> list[Place]:
    """List the certificates of a `tls:` address, in the order of their names.

    Those of a directory are every NAME.pem and NAME.crt, with the key in NAME.key if there is one, else in the same
    file; and in each directory in it NAME/fullchain.pem with NAME/privkey.pem. `known` are files that are not
    looked for. Raises `CertificateError`.
    """
    if tls.directory is None:
        cert, key = os.path.abspath(tls.cert or ""), os.path.abspath(tls.key or tls.cert or "")
        return [Place(os.path.basename(cert), cert, key)]
    directory = os.path.abspath(tls.directory)
    files = set(known) or set(_files_in(directory))
    places: dict[str, Place] = {}
    for path in sorted(files):
        parent, file = os.path.split(path)
        name, suffix = os.path.splitext(file)
        if parent != directory:
            if file == _CHAIN:
                place = Place(os.path.basename(parent), path, os.path.join(parent, _KEY))
                places.setdefault(place.name, place)
        elif suffix in (".pem", ".crt"):
            key = os.path.join(directory, f"{name}.key")
            places.setdefault(name, Place(name, path, key if key in files else path))
    if not places:
        raise CertificateError(f"{shown(directory)}: no certificate is there, neither NAME.pem nor NAME/{_CHAIN}")
    if len(places) > MOST_CERTIFICATES:
        raise CertificateError(
            f"{shown(directory)}: more than {MOST_CERTIFICATES} certificates; serve them at several ports"
        )
    return [places[name] for name in sorted(places)]


def _files_in(directory: str) -> Iterable[str]:
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.endswith((".pem", ".crt", ".key")):
                    yield entry.path
                elif entry.is_dir() and os.path.exists(os.path.join(entry.path, _CHAIN)):
                    yield os.path.join(entry.path, _CHAIN)
    except OSError as error:
        raise CertificateError(f"{shown(directory)}: {error.strerror}") from None


def read_file(path: str) -> bytes:
    """Read a file whole. Raises `CertificateError`."""
    try:
        # To open a pipe would wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            if status.st_size > LONGEST_FILE:
                raise OSError(errno.EFBIG, f"more than {LONGEST_FILE} bytes")
            return file.read(LONGEST_FILE)
    except OSError as error:
        raise CertificateError(f"{shown(path)}: {error.strerror}") from None


def read_identity(place: Place, contents: Mapping[str, bytes] | None = None) -> Identity:
    """Read a certificate and its key, from files or `contents`. Raises `CertificateError`."""
    cert, key = ((contents[path] if contents else read_file(path)) for path in (place.cert, place.key))
    if b"-----BEGIN CERTIFICATE-----" not in cert:
        raise CertificateError(f"{shown(place.cert)}: no certificate in PEM form")
    try:
        chain = tuple(x509.load_pem_x509_certificates(cert))
        public = chain[0].public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError(f"{shown(place.cert)}: the certificate is broken") from None
    size = sum(len(certificate.public_bytes(Encoding.DER)) for certificate in chain)
    if size > LONGEST_CHAIN:
        raise CertificateError(
            f"{shown(place.cert)}: the chain of {len(chain)} certificates has {size} bytes, more than {LONGEST_CHAIN}; "
            "keep the first, and those that sign it"
        )
    private = _private_key(place.key, key)
    if _spki(private.public_key()) != _spki(public):
        raise CertificateError(
            f"{shown(place.cert)}: the key in {shown(Path(place.key).name)} does not fit the first certificate"
        )
    return Identity(chain, private)


def _private_key(path: str, data: bytes) -> Any:
    found = _PRIVATE_KEY.search(data)
    if found is None:
        raise CertificateError(f"{shown(path)}: no private key in PEM form")
    try:
        return load_pem_private_key(found[0] + b"\n", None)
    except TypeError:
        raise CertificateError(
            f"{shown(path)}: the key has a passphrase, which nobody could type; remove it with openssl pkey"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError(f"{shown(path)}: the private key is broken") from None


def _spki(public: Any) -> bytes:
    encoded: bytes = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded
