"""Makes certificates of all kinds, and shakes hands with a TLS server in memory."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport

from netsvc.listen.tls import Certificates
from netsvc.plan.address import TLS

#: A key for every certificate that needs none of its own: to make one takes longer than the tests.
KEY = ec.generate_private_key(ec.SECP256R1())


class Pem:
    """A self-signed certificate and its key, as PEM."""

    def __init__(
        self, *names: str, days: tuple[float, float] = (-1, 30), key: Any = None, passphrase: bytes = b""
    ) -> None:
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0] if names else "nobody")])
        now = datetime.datetime.now(datetime.UTC)
        self.expires = now + datetime.timedelta(days=days[1])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=days[0]))
            .not_valid_after(self.expires)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        )
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False
            )
        certificate = builder.sign(key, hashes.SHA256())
        self.serial = certificate.serial_number
        self.cert = certificate.public_bytes(serialization.Encoding.PEM)
        encryption: Any = (
            serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        )
        self.key = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8 if passphrase else serialization.PrivateFormat.TraditionalOpenSSL,
            encryption,
        )

    @property
    def both(self) -> bytes:
        """What a file with both has."""
        both: bytes = self.key + self.cert
        return both

    def write(self, directory: Path, name: str = "a") -> tuple[Path, Path]:
        """Write NAME.crt and NAME.key."""
        cert, key = directory / f"{name}.crt", directory / f"{name}.key"
        cert.write_bytes(self.cert)
        key.write_bytes(self.key)
        return cert, key


def small_rsa() -> Any:
    """Make a key that OpenSSL finds too small."""
    return rsa.generate_private_key(public_exponent=65537, key_size=1024)


def plain_factory(kind: type[Protocol] = Protocol) -> Any:
    """Make a factory that logs nothing."""
    factory = Factory.forProtocol(kind)
    factory.noisy = False
    return factory


def client_context(*protocols: str) -> ssl.SSLContext:
    """Make a client's context, which trusts everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


class Handshake:
    """A client in memory, over the protocol that a TLS factory builds."""

    def __init__(
        self,
        factory: Any,
        name: str | None = None,
        protocols: Sequence[str] = (),
        version: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
    ) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = client_context(*protocols)
        context.maximum_version = version
        self.client = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self.protocol = factory.buildProtocol(None)
        self.transport = StringTransport()
        self.protocol.makeConnection(self.transport)

    def move(self, more: bytes = b"") -> bool:
        """Carry bytes each way, those of the client with `more` behind them; return whether there were any."""
        data = self._outgoing.read() + more
        if data:
            self.protocol.dataReceived(data)
        answer = self.transport.value()
        self.transport.clear()
        self._incoming.write(answer)
        return bool(data or answer)

    def complete(self) -> Handshake:
        """Shake hands. Raises `ssl.SSLError` if the server will not."""
        for _ in range(10):
            try:
                self.client.do_handshake()
            except ssl.SSLWantReadError:
                self.move()
                continue
            self.move()
            return self
        raise AssertionError("no end of the handshake")

    @property
    def serial(self) -> int:
        """The serial number of the server's certificate."""
        der = self.client.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der).serial_number


def pair(place: tuple[Path, Path]) -> TLS:
    """Name the two files that `Pem.write` wrote."""
    return TLS(str(place[0]), str(place[1]))


def serial(certificates: Certificates, name: str | None = None) -> int:
    """Return the serial number of the certificate that a client gets."""
    return Handshake(certificates.wrap(plain_factory()), name).complete().serial


def rewrite(path: Path, data: bytes) -> None:
    """Replace a file, so that it looks different whatever the clock of the filesystem."""
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(data)
    new.replace(path)


def write_directory(tmp_path: Path) -> dict[str, Pem]:
    """Write certificates of every form into a directory; live.example.org is the first by the names of the files."""
    made = {
        "one": Pem("one.example.org", "www.one.example.org", key=KEY),
        "two": Pem("two.example.org", "WILD.one.example.org", key=KEY),
        "wild": Pem("*.one.example.org", key=KEY),
        "live": Pem("live.example.org", key=KEY),
        "none": Pem(key=KEY),
    }
    (tmp_path / "one.pem").write_bytes(made["one"].both)
    made["two"].write(tmp_path, "two")
    (tmp_path / "wild.pem").write_bytes(made["wild"].cert)
    (tmp_path / "wild.key").write_bytes(made["wild"].key)
    (tmp_path / "none.pem").write_bytes(made["none"].both)
    (tmp_path / "live.example.org").mkdir()
    (tmp_path / "live.example.org" / "fullchain.pem").write_bytes(made["live"].cert)
    (tmp_path / "live.example.org" / "privkey.pem").write_bytes(made["live"].key)
    (tmp_path / "README").write_text("not a certificate")
    (tmp_path / ".hidden.pem").write_text("neither")
    (tmp_path / "empty").mkdir()
    return made


#: What the files of a certificate may be, certificate and key, and what is said of it.
BROKEN = {
    "not PEM": (b"\x30\x82", None, "no certificate in PEM form"),
    "empty": (b"", None, "no certificate in PEM form"),
    "cut": (b"-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n", None, "the certificate is broken"),
    "no key": (None, b"", "no private key in PEM form"),
    "broken key": (
        None,
        b"-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----\n",
        "the private key is broken",
    ),
    "another key": (None, Pem("x").key, "does not match the first certificate"),
    "a passphrase": (None, Pem("x", passphrase=b"x").key, "the key is encrypted"),
}
