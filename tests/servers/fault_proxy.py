"""An HTTP proxy that refuses some requests as a busy S3 does; run as a program, it prints its port.

Half of the refusals come after the server has done what was asked: the client cannot tell the two apart.
Conditional writes go one at a time: S3 decides them atomically, moto looks first and writes then.
`GET /faults` tells how many refusals there were, `GET /faults/RATE` sets how many there are to be, and
`GET /delay/SECONDS` how long each request takes beside.
"""

import collections
import contextlib
import http.client
import random
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
# Fewer than the attempts of any client under test: at 30 % one request in 170,000 would fail by bad luck.
_IN_A_ROW = 7
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}


class Faults:
    """A seeded sequence of which requests fail, and how many did.

    It begins anew whenever the rate is set, whatever tests ran before, and with a refusal. At a rate below
    one no request is refused more than seven times in a row.
    """

    def __init__(self, rate: float, seed: int) -> None:
        self._seed, self._lock = seed, threading.Lock()
        self.injected = 0
        self.delay_seconds = 0.0
        self.set(rate)

    def set(self, rate: float) -> None:
        """Refuses that part of the requests from now on."""
        with self._lock:
            self.rate = rate
            self._sequences: dict[str, random.Random] = {}
            self._in_a_row: collections.Counter[str] = collections.Counter()

    def draw(self, request: str, sequence: str = "") -> str:
        """`before`, `after` or nothing.

        Args:
          request: the same for all attempts at it.
          sequence: each has draws of its own.
        """
        with self._lock:
            first = sequence not in self._sequences
            draw = self._sequences.setdefault(sequence, random.Random(f"{self._seed} {sequence}"))
            chance, kind = 0.0 if first else draw.random(), draw.choice(("before", "after"))
            if chance >= self.rate or (self.rate < 1 and self._in_a_row[request] >= _IN_A_ROW):
                self._in_a_row.pop(request, None)
                return ""
            self._in_a_row[request] += 1
            self.injected += 1
            return kind


class Forward(BaseHTTPRequestHandler):
    """Forwards to another port of this machine."""

    protocol_version = "HTTP/1.1"
    target = 0
    faults = Faults(0, 0)
    conditional = threading.Lock()

    def setup(self) -> None:
        super().setup()
        self.upstream = http.client.HTTPConnection("127.0.0.1", self.target, timeout=60)

    def finish(self) -> None:
        self.upstream.close()
        super().finish()

    def forward(self) -> None:
        body = self._body()
        if self.path.startswith("/faults"):
            if self.path[8:]:
                self.faults.set(float(self.path[8:]))
            self._answer(200, {}, str(self.faults.injected).encode())
            return
        if self.path.startswith("/delay/"):
            self.faults.delay_seconds = float(self.path[7:])
            self._answer(200, {}, b"0")
            return
        time.sleep(self.faults.delay_seconds)
        # Amazon's clients send an id with each request, the same with every attempt.
        fault = self.faults.draw(self.headers.get("amz-sdk-invocation-id", self.path))
        if fault != "before":
            with self.conditional if self.headers.get("If-None-Match") else contextlib.nullcontext():
                answer = self._ask(body)
        self._answer(*((503, {}, _SLOW_DOWN) if fault else answer))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        self.upstream.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
        answer = self.upstream.getresponse()
        data = answer.read()
        # The length of an answer to HEAD is that of the object.
        hops = _HOP_BY_HOP - {"content-length"} if self.command == "HEAD" else _HOP_BY_HOP
        return answer.status, {k: v for k, v in answer.headers.items() if k.lower() not in hops}, data

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Says nothing."""


def main() -> None:
    """`fault_proxy.py TARGET_PORT RATE SEED`."""
    Forward.target, Forward.faults = int(sys.argv[1]), Faults(float(sys.argv[2]), int(sys.argv[3]))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Forward)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
