"""A TCP link between a client and a server that a test can cut, or that delivers a message late."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import closing, suppress
from enum import Enum

_MOST_BYTES = 65_536
_PATIENCE = 60.0
"""Seconds for the server's answer to a message that is delivered late."""


class _Order(Enum):
    """The fate of the next message of a client."""

    FORWARD = "both receive everything"
    CUT_BEFORE = "the server does not receive it"
    CUT_AFTER = "the client does not receive the answer"
    HOLD = "it is held back"


class Link:
    """Accept connections on a port of the loopback, and forward them to a server.

    Attributes:
        server: the host and the port of the server.
        port: the port of the link.
    """

    def __init__(self, host: str, port: int) -> None:
        """Listen for connections to a server."""
        self.server = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._order = _Order.FORWARD
        self._held: tuple[socket.socket, bytearray] | None = None
        self._open: set[socket.socket] = set()
        """The sockets that threads use, and close."""
        self._kept: list[socket.socket] = []
        """The connections to the server of messages that were held back."""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Close all connections, and accept no more."""
        # Otherwise the thread that waits for a connection keeps the port open.
        _shut_down(self._listener)
        self._listener.close()
        with self._lock:
            ends, kept, self._held = list(self._open), self._kept, None
        for end in ends:
            # Their threads close them: a number of a closed socket can belong to another one at once.
            _shut_down(end)
        for end in kept:
            end.close()

    def cut_next(self, *, is_acted_on: bool) -> None:
        """Cut the connection at the next message of a client.

        Args:
            is_acted_on: whether the server receives the message, and answers it, before the cut.
        """
        with self._lock:
            self._order = _Order.CUT_AFTER if is_acted_on else _Order.CUT_BEFORE

    def hold_next(self) -> None:
        """Hold back the next message of a client, until `deliver`. Other connections are not affected."""
        with self._lock:
            self._order = _Order.HOLD

    @property
    def is_holding(self) -> bool:
        """Whether a message is held back now."""
        return self._held is not None

    def deliver(self) -> bytes:
        """Deliver the message that was held back, also if its client is gone; return the server's answer."""
        with self._lock:
            assert self._held is not None, "no message was held back"
            server, message = self._held
            self._held = None
            server.settimeout(_PATIENCE)
            server.sendall(message)
            return server.recv(_MOST_BYTES)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        with closing(client), suppress(OSError):
            server = socket.create_connection(self.server)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {client, server}
            is_held = False
            try:
                is_held = self._relay(client, server)
            finally:
                with self._lock:
                    self._open -= {client, server}
                if not is_held:
                    server.close()

    def _relay(self, client: socket.socket, server: socket.socket) -> bool:
        """Forward messages until one end closes; return whether the connection to the server is kept for later."""
        is_cut_by_answer = False
        while True:
            readable, _, _ = select.select([client, server], [], [])
            if server in readable:
                answer = server.recv(_MOST_BYTES)
                if not answer or is_cut_by_answer:
                    return False
                client.sendall(answer)
            if client in readable:
                message = client.recv(_MOST_BYTES)
                if not message:
                    return False
                with self._lock:
                    order, self._order = self._order, _Order.FORWARD
                    if order is _Order.HOLD:
                        self._held = (server, bytearray(message))
                        self._kept.append(server)
                if order is _Order.HOLD:
                    self._collect(client)
                    return True
                if order is _Order.CUT_BEFORE:
                    return False
                is_cut_by_answer = is_cut_by_answer or order is _Order.CUT_AFTER
                server.sendall(message)

    def _collect(self, client: socket.socket) -> None:
        """Add the rest of the messages of a client to the one that is held back."""
        with suppress(OSError):
            while message := client.recv(_MOST_BYTES):
                with self._lock:
                    if self._held is None:
                        return
                    self._held[1].extend(message)


def _shut_down(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
