"""Fetching a picture: what is refused before anything is asked, and servers that lie, drip or lead astray.

The servers listen on 127.0.0.1, which the library refuses; tests that must reach them allow exactly that.
"""

import contextlib
import socket
import ssl
import subprocess
import threading
import time
from functools import partial

import pytest

from artgraph_vit.model import fetching
from artgraph_vit.model.fetching import FetchError, fetch_picture

PICTURE = bytes(range(256)) * 40
OK = b"HTTP/1.1 200 OK\r\n"
REAL_LOOK_UP = socket.getaddrinfo


class Server:
    """Answers each connection by `answer(connection, request)`, and keeps what it was asked."""

    def __init__(self, answer, context: ssl.SSLContext | None = None):
        self.answer, self.context, self.requests, self.connections = answer, context, [], 0
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self.port}/picture.jpg"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                self.connections += 1
                threading.Thread(target=self._handle, args=(connection,), daemon=True).start()

    def _handle(self, connection):
        with contextlib.suppress(OSError), connection:
            if self.context:
                connection = self.context.wrap_socket(connection, server_side=True)
            request = b""
            while b"\r\n\r\n" not in request:
                part = connection.recv(65_536)
                if not part:
                    return
                request += part
            self.requests.append(request.decode())
            self.answer(connection, request)


@pytest.fixture
def serve(monkeypatch):
    """`serve(answer)`: a server; `answer` is what it sends, or a function of the connection and the request."""
    servers = []

    def start(answer, context=None) -> Server:
        send = answer if callable(answer) else lambda connection, _: connection.sendall(answer)
        servers.append(Server(send, context))
        return servers[-1]

    yield start
    for server in servers:
        server.listening.close()


@pytest.fixture
def allow_local(monkeypatch):
    """What no option of the library does: 127.0.0.1 counts as public, and any port as usual."""
    monkeypatch.setattr(fetching, "_is_public", lambda address: address == "127.0.0.1")
    monkeypatch.setattr(fetching, "_is_usual_port", lambda parts: True)


@pytest.fixture
def look_up(monkeypatch):
    """`look_up(*addresses)`: every name stands for these; a list of lists answers differently each time."""

    def answer_with(*addresses):
        answers = iter(addresses) if isinstance(addresses[0], list) else None
        asked = []

        def getaddrinfo(host, port, *arguments, **options):
            asked.append(host)
            rows = []
            for address in next(answers) if answers else addresses:
                rows += REAL_LOOK_UP(address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
            return rows

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return asked

    return answer_with


@pytest.fixture
def no_connection(monkeypatch):
    """The addresses that were connected to; none is reached."""
    tried = []

    def connect(self, address):
        tried.append(address)
        raise ConnectionRefusedError("refused by the test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    return tried


def refused(url, match, **options):
    with pytest.raises(FetchError, match=match) as caught:
        fetch_picture(url, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("The picture was not fetched: ")
    assert message.endswith(".")
    assert len(message) < 300


# What is never asked


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "１２７.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[::]",
        "[fe80::1]",
        "[fec0::1]",
        "[fd00::1]",
        "[2002:7f00:1::]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::1]",
        "[ff02::1]",
        "[2001::1]",
        "0.0.0.0",
        "0",
        "169.254.169.254",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.255.255.250",
        "255.255.255.255",
        "240.0.0.1",
    ],
)
def test_a_host_that_is_not_public_is_refused_without_a_connection(host, no_connection):
    for scheme in ("http", "https"):
        refused(f"{scheme}://{host}/picture.jpg", "is not on the public internet|there is no host")
    assert no_connection == []


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_a_public_address_is_connected_to_exactly(address, look_up, no_connection):
    asked = look_up(address)
    refused("http://museum.example/a.jpg", "refused by the test")
    assert [tried[:2] for tried in no_connection] == [(address, 80)]
    assert asked == ["museum.example"]


def test_a_local_server_sees_no_connection(serve, monkeypatch):
    server = serve(OK + b"\r\n" + PICTURE)
    monkeypatch.setattr(fetching, "_is_usual_port", lambda parts: True)
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"):
        refused(f"http://{host}:{server.port}/", "is not on the public internet")
    assert server.connections == 0


@pytest.mark.parametrize("addresses", [("10.0.0.7",), ("8.8.8.8", "127.0.0.1"), ("::1", "8.8.8.8")])
def test_a_name_is_refused_if_any_of_its_addresses_is_private(addresses, look_up, no_connection):
    look_up(*addresses)
    refused("http://museum.example/a.jpg", "'museum.example' is not on the public internet")
    assert no_connection == []


def test_a_name_is_looked_up_once_so_that_its_second_answer_means_nothing(look_up, no_connection):
    asked = look_up(["8.8.8.8"], ["127.0.0.1"])
    refused("http://rebinding.example/a.jpg", "refused by the test")
    assert asked == ["rebinding.example"]
    assert no_connection == [("8.8.8.8", 80)]


def test_a_name_that_does_not_exist(monkeypatch):
    def getaddrinfo(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    refused("http://nowhere.example/", "there is no host 'nowhere.example'")


def test_a_resolver_that_hangs_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(2))
    start = time.monotonic()
    refused("http://museum.example/", r"it took more than 0\.3 seconds", timeout=0.3)
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("file:///etc/passwd", "must begin with http"),
        ("ftp://museum.example/a.jpg", "must begin with http"),
        ("data:image/png;base64,AAAA", "must begin with http"),
        ("gopher://museum.example/", "must begin with http"),
        ("//museum.example/a.jpg", "must begin with http"),
        ("museum.example/a.jpg", "must begin with http"),
        ("", "must begin with http"),
        ("http://", "must begin with http"),
        ("http:///a.jpg", "must begin with http"),
        ("http://:80/a.jpg", "must begin with http"),
        ("http://ada:secret@museum.example/a.jpg", "leave user and password out"),
        ("http://@museum.example/a.jpg", "leave user and password out"),
        ("http://museum.example/a b.jpg", "without spaces"),
        ("http://museum.example/a.jpg\n", "without spaces and line breaks"),
        ("http://museum.example/\r\nHost: other", "without spaces"),
        ("http://museum.example\\@other.example/", "without spaces"),
        ("http://museum.example/\x00", "without spaces"),
        ("http://museum.example/" + "a" * 9_000, "without spaces"),
        ("http://museum.example:6379/", "leave port 6379 out"),
        ("http://museum.example:443/", "leave port 443 out"),
        ("http://museum.example:0/", "leave port 0 out"),
        ("http://museum.example:x/", "Port could not be cast"),
        ("http://museum.example:99999/", "Port out of range"),
        ("http://[::1/", "Invalid IPv6"),
        ("http://mus\u2100um.example/", "invalid characters"),
        ("http://" + "ü" * 80 + ".example/", "codec|label"),
        ("http://a..example/", "codec|label"),
        (b"http://museum.example/", "must be a text"),
        (None, "must be a text"),
    ],
)
def test_an_address_that_may_not_be_asked(url, match, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    refused(url, match)


def test_the_password_is_not_repeated():
    with pytest.raises(FetchError) as caught:
        fetch_picture("http://ada:secret@museum.example/a.jpg")
    assert "secret" not in str(caught.value)


def test_a_host_in_another_script_is_looked_up_by_its_ascii_name(look_up, no_connection):
    asked = look_up("8.8.8.8")
    refused("http://müseum.example/a.jpg", "refused by the test")
    assert asked == ["xn--mseum-kva.example"]


# What a server may do


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: %d\r\n\r\n" % len(PICTURE) + PICTURE,
        OK + b"\r\n" + PICTURE,
        OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n" % len(PICTURE) + PICTURE + b"\r\n0\r\n\r\n",
        OK + b"Content-Encoding: identity\r\n\r\n" + PICTURE,
    ],
)
def test_a_picture_comes_as_it_was_sent(answer, serve, allow_local, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server = serve(answer)
    assert fetch_picture(f"{server.url}?q=é&r=%20#part") == PICTURE
    (request,) = server.requests
    assert request.startswith("GET /picture.jpg?q=%C3%A9&r=%20 HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{server.port}\r\n" in request
    assert "Accept-Encoding: identity\r\n" in request
    assert "cookie" not in request.lower()
    assert "authorization" not in request.lower()


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "the server answered 404, not 200"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "the server answered 204"),
        (b"HTTP/1.1 206 Partial\r\n\r\nabc", "the server answered 206"),
        (b"HTTP/1.1 302 Found\r\n\r\n", "the server answered 302"),
        (b"HTTP/1.1 500 Oh\r\n no\r\n\r\n", "the server answered 500"),
        (OK + b"Content-Encoding: gzip\r\n\r\n" + PICTURE, "nothing is unpacked here"),
        (OK + b"Content-Encoding: br\r\n\r\n" + PICTURE, "nothing is unpacked here"),
        (OK + b"Content-Length: 1000001\r\n\r\n", "it has more than 1,000,000 bytes"),
        (OK + b"Content-Length: 99999999999999999999\r\n\r\n", "it has more than 1,000,000 bytes"),
        (OK + b"\r\n" + b"x" * 1_000_001, "it has more than 1,000,000 bytes"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nF4241\r\n" + b"x" * 1_000_001, "it has more than 1,000,000 bytes"),
        (OK + b"Content-Length: 90\r\n\r\nshort", "broke off in its middle"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n90\r\nshort", "IncompleteRead"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nshort", "IncompleteRead"),
        (OK + b"X: " + b"y" * 70_000 + b"\r\n\r\n", "got more than 65536 bytes"),
        (OK + b"X: y\r\n" * 200 + b"\r\n", "got more than 100 headers"),
        (b"SSH-2.0-OpenSSH\r\n", "SSH"),
        (b"", "Remote end closed connection without response"),
    ],
)
def test_an_answer_that_is_no_picture(answer, match, serve, allow_local):
    refused(serve(answer).url, match, max_bytes=1_000_000, timeout=5)


def test_a_body_without_end_is_read_no_further_than_the_limit(serve, allow_local):
    sent = []

    def flood(connection, _):
        connection.sendall(OK + b"\r\n")
        while True:
            sent.append(connection.send(b"x" * 65_536))

    refused(serve(flood).url, "it has more than 100,000 bytes", max_bytes=100_000)
    assert sum(sent) < 20_000_000  # the limit, and what the buffers of the connection hold


def test_a_picture_of_just_the_limit_is_fetched(serve, allow_local):
    for header in (b"", b"Content-Length: %d\r\n" % len(PICTURE)):
        server = serve(OK + header + b"\r\n" + PICTURE)
        assert fetch_picture(server.url, max_bytes=len(PICTURE)) == PICTURE
        refused(server.url, "it has more than", max_bytes=len(PICTURE) - 1)


# Redirects


def lead_to(*targets):
    """Leads on to each of the targets in turn, the last one again and again."""
    left = list(targets)

    def answer(connection, _):
        target = left.pop(0) if len(left) > 1 else left[0]
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: " + target.encode() + b"\r\n\r\n")

    return answer


def test_a_redirect_is_followed(serve, allow_local):
    picture = serve(OK + b"\r\n" + PICTURE)
    first = serve(lead_to(picture.url))
    assert fetch_picture(first.url) == PICTURE
    relative = serve(
        lambda connection, request: (
            connection.sendall(OK + b"\r\n" + PICTURE)
            if b"/there" in request
            else lead_to("/there")(connection, request)
        )
    )
    assert fetch_picture(relative.url) == PICTURE


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ("http://10.0.0.1/a.jpg", "'10.0.0.1' is not on the public internet"),
        ("http://169.254.169.254/latest/meta-data/", "is not on the public internet"),
        ("//[::1]/", "is not on the public internet"),
        ("file:///etc/passwd", "must begin with http"),
        ("http://ada:secret@museum.example/", "leave user and password out"),
        ("http://museum.example/a b", "without spaces"),
    ],
)
def test_a_redirect_is_checked_like_the_address_itself(target, match, serve, allow_local):
    refused(serve(lead_to(target)).url, match)


def test_a_redirect_to_a_private_server_does_not_reach_it(serve, monkeypatch):
    inner = serve(OK + b"\r\nsecret")
    outer = serve(lead_to(f"http://localhost:{inner.port}/"))
    public = []

    def is_public(address):  # the first look-up is allowed, as if the outer server stood on the internet
        public.append(address)
        return len(public) == 1

    monkeypatch.setattr(fetching, "_is_public", is_public)
    monkeypatch.setattr(fetching, "_is_usual_port", lambda parts: True)
    refused(outer.url, "'localhost' is not on the public internet")
    assert (len(outer.requests), inner.connections) == (1, 0)


def test_a_loop_of_redirects_ends(serve, allow_local):
    server = serve(lead_to("/picture.jpg"))
    refused(server.url, "leads on more than 5 times")
    assert len(server.requests) == 6


# Time


def drip(head: bytes, part: bytes):
    def answer(connection, _):
        connection.sendall(head)
        while True:
            connection.sendall(part)
            time.sleep(0.05)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        drip(b"", b"H"),
        drip(OK + b"X: ", b"y"),
        drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        drip(OK + b"\r\n", b"x"),
        drip(OK + b"Content-Length: 100000\r\n\r\n", b"x"),
        drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        lambda connection, _: time.sleep(3),
        drip(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nX: ", b"y"),
    ],
    ids=["status", "header", "continue", "body", "body with length", "chunks", "silence", "redirect"],
)
def test_a_server_that_drips_does_not_hold_on_to_its_guest(answer, serve, allow_local):
    start = time.monotonic()
    refused(serve(answer).url, r"it took more than 0\.5 seconds", timeout=0.5)
    assert 0.4 < time.monotonic() - start < 1.5


def test_the_time_is_for_all_redirects_together(serve, allow_local):
    def late(connection, request):
        time.sleep(0.2)
        lead_to("/again")(connection, request)

    start = time.monotonic()
    refused(serve(late).url, r"it took more than 0\.5 seconds", timeout=0.5)
    assert time.monotonic() - start < 1


def test_nothing_stays_behind(serve, allow_local):
    before = {thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)}
    server = serve(OK + b"\r\n" + PICTURE)
    for _ in range(5):
        fetch_picture(server.url)
    refused(serve(b"").url, "Remote end closed")
    deadline = time.monotonic() + 2
    while {thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)} - before:
        assert time.monotonic() < deadline, "a timer is left"
        time.sleep(0.01)


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for museum.example that signs itself, and its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    request = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=museum.example"
    )
    command = [
        *request.split(),
        "-addext",
        "subjectAltName=DNS:museum.example",
        "-keyout",
        path,
        "-out",
        f"{path}.crt",
    ]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("openssl is not here to make a certificate")
    with open(path, "a") as file, open(f"{path}.crt") as signed:
        file.write(signed.read())
    return path


@pytest.fixture
def tls(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_a_certificate_that_nobody_signed_is_refused(serve, tls, allow_local):
    server = serve(OK + b"\r\n" + PICTURE, tls)
    refused(server.url, "CERTIFICATE_VERIFY_FAILED")
    assert server.requests == []


def test_the_certificate_must_be_for_the_host_of_the_address(
    serve, tls, allow_local, look_up, certificate, monkeypatch
):
    trusting = partial(ssl.create_default_context, cafile=str(certificate))
    monkeypatch.setattr(ssl, "create_default_context", trusting)
    look_up("127.0.0.1")
    server = serve(OK + b"\r\n" + PICTURE, tls)
    assert fetch_picture(f"https://museum.example:{server.port}/") == PICTURE
    refused(f"https://other.example:{server.port}/", "Hostname mismatch")

    down = serve(lead_to("http://museum.example/"), tls)
    refused(f"https://museum.example:{down.port}/", "its https address leads on to an http address")

    dripping = serve(drip(OK + b"\r\n", b"x"), tls)
    refused(f"https://museum.example:{dripping.port}/", "it took more than 0.5 seconds", timeout=0.5)


def test_a_handshake_that_never_ends_is_cut(serve, allow_local):
    server = serve(OK)  # waits for a request in plain text, and so says nothing
    start = time.monotonic()
    refused(server.url.replace("http:", "https:"), "it took more than 0.5 seconds", timeout=0.5)
    assert time.monotonic() - start < 1.5
