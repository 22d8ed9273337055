"""A small Neo4j server on 127.0.0.1: what the `neo4j` driver says over Bolt 5.4 when it logs in and reads.

No Neo4j server could be installed where these tests were written. The answers are made after ArtGraph's published
schema (`Artwork` nodes whose `name` is a file name; createdBy, hasStyle, hasGenre, about, madeOf), not recorded from
a server that holds its dump. Answers are found by the text of the query, so a query that is not asked as the schema
wants it gets none.
"""

from __future__ import annotations

import socketserver
import struct
import threading
from typing import Any

LOGON, RUN, PULL, RESET, ROUTE, GOODBYE = 0x6A, 0x10, 0x3F, 0x0F, 0x66, 0x02
SUCCESS, RECORD, IGNORED, FAILURE = 0x70, 0x71, 0x7E, 0x7F


def pack(value: Any) -> bytes:
    """PackStream, with headers of 32 bits throughout."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return b"\xcb" + struct.pack(">q", value)
    if isinstance(value, str):
        return b"\xd2" + struct.pack(">I", len(value.encode())) + value.encode()
    if isinstance(value, list):
        return b"\xd6" + struct.pack(">I", len(value)) + b"".join(map(pack, value))
    return b"\xda" + struct.pack(">I", len(value)) + b"".join(pack(k) + pack(v) for k, v in value.items())


def unpack(data: bytes, at: int = 0) -> tuple[Any, int]:
    """The value at a place, and the place after it; a message is a list whose first element is its tag."""
    mark, at = data[at], at + 1
    if mark < 0x80 or mark >= 0xF0:
        return (mark if mark < 0x80 else mark - 0x100), at
    if mark in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[mark], at
    if 0xC8 <= mark <= 0xCB:
        size = 1 << (mark - 0xC8)
        return int.from_bytes(data[at : at + size], "big", signed=True), at + size
    if mark >= 0xD0:  # a string, list or map whose length follows in 1, 2 or 4 bytes
        width = 1 << (mark & 3)
        length, at = int.from_bytes(data[at : at + width], "big"), at + width
        kind = {0xD0: 0x80, 0xD4: 0x90, 0xD8: 0xA0}[mark & 0xFC]
    else:
        kind, length = mark & 0xF0, mark & 0x0F
    if kind == 0x80:
        return data[at : at + length].decode(), at + length
    values: list = []
    if kind == 0xB0:
        values, at = [data[at]], at + 1
    for _ in range(length * (2 if kind == 0xA0 else 1)):
        value, at = unpack(data, at)
        values.append(value)
    return (dict(zip(values[::2], values[1::2], strict=True)) if kind == 0xA0 else values), at


class BoltServer(socketserver.ThreadingTCPServer):
    """`with BoltServer(answers) as server:`; answers maps a query to its column names and rows."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, answers: dict[str, tuple[list[str], list[list]]], password: str = "secret"):
        super().__init__(("127.0.0.1", 0), _Connection)
        self.answers, self.password = answers, password
        self.drop_after: int | None = None  # records, then the connection ends
        self.runs: list[tuple[str, str | None]] = []  # query and database
        self.pulls = 0
        self.address = f"127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> BoltServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class _Connection(socketserver.StreamRequestHandler):
    server: BoltServer

    def handle(self) -> None:
        assert self.rfile.read(20)[:4] == b"\x60\x60\xb0\x17"
        self.wfile.write(bytes([0, 0, 4, 5]))
        failed, columns, rows = False, [], []
        sent = 0
        while message := self._receive():
            tag, *fields = message
            if tag == GOODBYE:
                return
            if tag == RESET:
                failed = False
            if failed:
                self._send(IGNORED)
                continue
            if tag == LOGON and fields[0].get("credentials") != self.server.password:
                failed = self._fail("Security.Unauthorized", "The client is unauthorized.")
            elif tag == RUN:
                self.server.runs.append((fields[0], fields[2].get("db")))
                if fields[0] not in self.server.answers:
                    failed = self._fail("Statement.SyntaxError", f"Not asked as the schema wants it: {fields[0]}")
                    continue
                columns, rows = self.server.answers[fields[0]]
                self._send(SUCCESS, {"fields": columns, "t_first": 0})
            elif tag == PULL:
                self.server.pulls += 1
                for row in rows[: fields[0]["n"]]:
                    if sent == self.server.drop_after:
                        return
                    self._send(RECORD, row)
                    sent += 1
                rows = rows[fields[0]["n"] :]
                self._send(SUCCESS, {"has_more": True} if rows else {"type": "r", "t_last": 0, "db": "neo4j"})
            elif tag == ROUTE:
                roles = [{"addresses": [self.server.address], "role": role} for role in ("ROUTE", "READ", "WRITE")]
                self._send(SUCCESS, {"rt": {"ttl": 300, "db": fields[2].get("db", "neo4j"), "servers": roles}})
            else:
                self._send(SUCCESS, {"server": "Neo4j/5.26.0", "connection_id": "bolt-1", "hints": {}})

    def _fail(self, code: str, message: str) -> bool:
        self._send(FAILURE, {"code": f"Neo.ClientError.{code}", "message": message})
        return True

    def _receive(self) -> list | None:
        data = b""
        while (header := self.rfile.read(2)) not in (b"", b"\0\0"):
            data += self.rfile.read(int.from_bytes(header, "big"))
        return unpack(data)[0] if data else None

    def _send(self, tag: int, *fields: Any) -> None:
        data = bytes([0xB0 + len(fields), tag]) + b"".join(map(pack, fields))
        for start in range(0, len(data), 0xFFFF):
            chunk = data[start : start + 0xFFFF]
            self.wfile.write(len(chunk).to_bytes(2, "big") + chunk)
        self.wfile.write(b"\0\0")
