"""`fetch_picture`: one picture from a public address of the web, for a pipeline that fetches only when asked to.

Whoever names an address to a server could have it look into the server's own network. So every address that a host
name stands for must be public, the connection goes to the very addresses that were checked, and each redirect is
checked alike. One clock holds for all of it, however slowly the other side drips. This file travels to the Hub.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from threading import Thread, Timer
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

MAX_REDIRECTS = 5


class FetchError(ValueError):
    """Says in one sentence why a picture was not fetched."""


def fetch_picture(url: str, max_bytes: int = 25_000_000, timeout: float = 20.0) -> bytes:
    """Fetches one picture; proxies, cookies and passwords of this machine are never used.

    Args:
        url (`str`): http or https, of a public host, at the usual port.
        max_bytes (`int`, *optional*, defaults to 25,000,000): what the picture may weigh.
        timeout (`float`, *optional*, defaults to 20.0): seconds for all of it, redirects included.

    Returns:
        `bytes`, as they were sent: nothing is unpacked.

    Raises:
        FetchError: if the address may not be asked, or gives no file of that size in that time.
    """
    deadline = time.monotonic() + timeout
    try:
        asked = _checked(url)
        for _ in range(MAX_REDIRECTS + 1):
            answer = _ask(asked, max_bytes, deadline)
            if isinstance(answer, bytes):
                return answer
            target = _checked(urljoin(asked.geturl(), answer))
            if asked.scheme == "https" and target.scheme == "http":  # who listens could put another picture there
                raise FetchError("The picture was not fetched: its https address leads on to an http address.")
            asked = target
        raise FetchError(f"The picture was not fetched: its address leads on more than {MAX_REDIRECTS} times.")
    except FetchError:
        raise
    except Exception as error:  # of the address, the resolver, TLS or HTTP: all mean that there is no picture
        is_late = isinstance(error, TimeoutError) or time.monotonic() >= deadline
        why = f"it took more than {timeout:g} seconds" if is_late else " ".join(str(error).split())[:200].rstrip(".")
        raise FetchError(f"The picture was not fetched: {why or type(error).__name__}.") from error


def _checked(url: Any) -> SplitResult:
    """The parts of an address, if it is one that may be asked."""
    if not isinstance(url, str) or len(url) > 8_000 or not url.isprintable() or any(sign in url for sign in ' \\"<>'):
        raise FetchError("The picture was not fetched: its address must be a text without spaces and line breaks.")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise FetchError("The picture was not fetched: its address must begin with http:// or https:// and a host.")
    if "@" in parts.netloc:
        raise FetchError("The picture was not fetched: leave user and password out of its address.")
    if not _is_usual_port(parts):
        raise FetchError(f"The picture was not fetched: leave port {parts.port} out of its address.")
    return parts


def _is_usual_port(parts: SplitResult) -> bool:
    # Pictures are at 80 and 443; behind other ports stand the databases and consoles of a host.
    return parts.port in (None, 443 if parts.scheme == "https" else 80)


def _is_public(address: str) -> bool:
    ip: Any = ipaddress.ip_address(address)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    # 6to4 and Teredo carry an address of IPv4 within; a gateway would lead on to it.
    inward = ip.version == 6 and (ip.is_site_local or ip.sixtofour or ip.teredo)
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or inward)


def _public_addresses(host: str, port: int, deadline: float) -> list[tuple]:
    """What a host name stands for, looked up once: `getaddrinfo`'s rows."""
    found: list[Any] = []

    def resolve() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:
            found.append(error)

    # A look-up cannot be broken off: after the deadline it is left to end alone, when the resolver gives up.
    thread = Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    if not found:
        raise TimeoutError
    if isinstance(found[0], Exception):
        raise FetchError(f"The picture was not fetched: there is no host {host!r}.") from found[0]
    if not found[0] or not all(_is_public(row[4][0]) for row in found[0]):
        raise FetchError(f"The picture was not fetched: {host!r} is not on the public internet.")
    return found[0]


def _ask(asked: SplitResult, max_bytes: int, deadline: float) -> bytes | str:
    """One request; the picture, or the address that it leads on to."""
    is_tls = asked.scheme == "https"
    host = (asked.hostname or "").encode("idna").decode("ascii")
    port = asked.port or (443 if is_tls else 80)
    kind: Any = http.client.HTTPSConnection if is_tls else http.client.HTTPConnection
    connection = kind(host, port, **({"context": ssl.create_default_context()} if is_tls else {}))
    clock = _Clock(_public_addresses(host, port, deadline), deadline)
    connection._create_connection = clock.connect  # TLS still checks the certificate for the name of the host
    target = (asked.path or "/") + (f"?{asked.query}" if asked.query else "")
    try:
        headers = {"User-Agent": "artgraph_vit", "Accept": "image/*", "Accept-Encoding": "identity"}
        connection.request("GET", quote(target, safe="/?%:=&~+!$,;'@()*[]|"), headers=headers)
        with connection.getresponse() as response:
            content = _content(response, max_bytes)
        if clock.has_rung:  # what a cut connection gave looks like the end of a file
            raise TimeoutError
        return content
    except Exception as error:
        raise TimeoutError if clock.has_rung else error from None
    finally:
        clock.stop()
        connection.close()


def _content(response: http.client.HTTPResponse, max_bytes: int) -> bytes | str:
    location = response.headers.get("Location")
    if response.status in (301, 302, 303, 307, 308) and location:
        return location
    if response.status != 200:
        raise FetchError(f"The picture was not fetched: the server answered {response.status}, not 200.")
    if response.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise FetchError("The picture was not fetched: the server packed it, and nothing is unpacked here.")
    announced, content = response.length, bytearray()
    while (announced or 0) <= max_bytes and len(content) <= max_bytes:
        part = response.read(min(65_536, max_bytes + 1 - len(content)))
        if not part:
            if len(content) < (announced or 0):
                raise FetchError("The picture was not fetched: the server broke off in its middle.")
            return bytes(content)
        content += part
    raise FetchError(f"The picture was not fetched: it has more than {max_bytes:,} bytes.")


class _Clock:
    """Cuts a connection when its time is up: a byte now and then would keep any timeout of a socket from ringing."""

    def __init__(self, rows: list[tuple], deadline: float):
        self.rows, self.deadline, self.has_rung = rows, deadline, False
        self._handle: socket.socket | None = None
        self._timer = Timer(max(0.0, deadline - time.monotonic()), self._ring)
        self._timer.daemon = True
        self._timer.start()

    def connect(self, *_: Any) -> socket.socket:
        """Stands in for `socket.create_connection`: connects to the addresses that were checked, and no others."""
        for row in self.rows:
            connected = socket.socket(row[0], socket.SOCK_STREAM)
            connected.settimeout(max(0.001, self.deadline - time.monotonic()))
            self._let_go()
            self._handle = connected.dup()  # TLS takes the socket over; a second handle can still cut it
            try:
                if self.has_rung:
                    raise TimeoutError
                connected.connect(row[4])
                return connected
            except OSError as error:
                connected.close()
                failure = error
        raise failure

    def stop(self) -> None:
        self._timer.cancel()
        self._let_go()

    def _let_go(self) -> None:
        if self._handle is not None:
            self._handle.close()

    def _ring(self) -> None:
        self.has_rung = True
        try:
            if self._handle is not None:
                self._handle.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side was faster
