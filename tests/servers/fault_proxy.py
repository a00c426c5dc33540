"""An HTTP proxy that refuses some requests as a busy S3 does; run as a program, it prints its port.

Half of the refusals come after the server has done what was asked: the client cannot tell the two apart.
Conditional writes go one at a time: S3 decides them atomically, moto looks first and writes then.
`GET /faults` tells how many refusals there were, `GET /faults/RATE` sets how many there are to be.
"""

import contextlib
import http.client
import random
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}


class Faults:
    """A seeded sequence of which requests fail, and how many did."""

    def __init__(self, rate: float, seed: int) -> None:
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.rate = rate
        self.injected = 0

    def draw(self) -> str:
        """`before`, `after` or nothing."""
        with self._lock:
            chance, kind = self._random.random(), self._random.choice(("before", "after"))
            if chance >= self.rate:
                return ""
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
            self.faults.rate = float(self.path[8:] or self.faults.rate)
            self._answer(200, {}, str(self.faults.injected).encode())
            return
        fault = self.faults.draw()
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
