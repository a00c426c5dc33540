"""An HTTP proxy that refuses calls as a busy Kinesis does; run as a program, it prints its port.

It throttles, ends iterators early, fails and drops calls before or after the server has done what was asked,
and takes single records out of PutRecords. `GET /faults/RATE` sets how often, `GET /faults` tells what it did
and when each shard was read. With `GET /slow/RECORDS` answers that may hold more take three seconds,
with `GET /deny/OPERATION` nobody has the right to that.
"""

import collections
import json
import sys
import threading
import time
from http.server import ThreadingHTTPServer
from typing import Any

from fault_proxy import Faults, Forward

_JSON = {"Content-Type": "application/x-amz-json-1.1"}
_THROTTLED = "ProvisionedThroughputExceededException"
_KINDS = {
    "GetRecords": (_THROTTLED, "ExpiredIteratorException", "InternalFailure", "dropped", "answer lost"),
    "GetShardIterator": (_THROTTLED, "InternalFailure", "answer lost"),
    "ListShards": ("LimitExceededException", "InternalFailure"),
    "DescribeStreamSummary": ("LimitExceededException", "InternalFailure"),
    "PutRecords": (_THROTTLED, "InternalFailure", "answer lost", "in part"),
}


class Calls:
    """What went through: refusals by kind and operation, times of reads by shard."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kinds: collections.Counter[str] = collections.Counter()
        self.refused: collections.Counter[str] = collections.Counter()
        self.shard_of: dict[str, str] = {}
        self.reads: dict[str, list[float]] = {}
        self.signers: set[str] = set()
        self.slow_above = sys.maxsize
        self.denied = ""

    def read(self, iterator: str) -> None:
        self.reads.setdefault(self.shard_of.get(iterator, "?"), []).append(time.monotonic())

    def report(self) -> bytes:
        with self.lock:
            signers = sorted(self.signers)
            return json.dumps({"kinds": self.kinds, "reads": self.reads, "signers": signers}).encode()


class ForwardKinesis(Forward):
    """Forwards to a Kinesis on another port of this machine."""

    calls = Calls()

    def forward(self) -> None:
        body = self._body()
        if self.command == "GET":
            self._set(*self.path.strip("/").split("/"))
            return
        operation = self.headers.get("X-Amz-Target", "").partition(".")[2]
        if operation == self.calls.denied:
            self._refuse(400, "AccessDeniedException")
            return
        if operation == "GetRecords" and json.loads(body).get("Limit", 10_000) > self.calls.slow_above:
            time.sleep(3)
        self._count(operation, body)
        kind = self._kind(operation)
        if kind == "dropped":
            self.close_connection = True
        elif kind == "in part":
            self._put_in_part(json.loads(body))
        elif kind and kind != "answer lost":
            self._refuse(500 if kind == "InternalFailure" else 400, kind)
        else:
            answer = self._ask(body)
            self._learn(operation, body, answer[2])
            if kind:
                self.close_connection = True
            else:
                self._answer(*answer)

    do_GET = do_POST = forward  # noqa: N815

    def _set(self, what: str, value: str = "") -> None:
        if what == "slow":
            self.calls.slow_above = int(value or sys.maxsize)
        elif what == "deny":
            self.calls.denied = value
        elif value:
            self.faults.set(float(value))
        self._answer(200, {}, self.calls.report())

    def _refuse(self, status: int, kind: str) -> None:
        self._answer(status, _JSON, json.dumps({"__type": kind, "message": "injected"}).encode())

    def _kind(self, operation: str) -> str:
        kinds = _KINDS.get(operation)
        if not kinds or not self.faults.draw(operation, operation):
            return ""
        with self.calls.lock:
            # In turn: a random draw might leave one out.
            kind = kinds[self.calls.refused[operation] % len(kinds)]
            self.calls.refused[operation] += 1
            self.calls.kinds[kind] += 1
        return kind

    def _count(self, operation: str, body: bytes) -> None:
        with self.calls.lock:
            self.calls.signers.add(self.headers.get("Authorization", "").partition("=")[2].partition("/")[0])
            if operation == "GetRecords":
                self.calls.read(json.loads(body)["ShardIterator"])

    def _learn(self, operation: str, body: bytes, data: bytes) -> None:
        """Which shard an iterator is of."""
        if operation not in ("GetShardIterator", "GetRecords"):
            return
        asked, got = json.loads(body), json.loads(data)
        with self.calls.lock:
            if operation == "GetShardIterator":
                self.calls.shard_of[got.get("ShardIterator", "")] = asked["ShardId"]
            else:
                shard = self.calls.shard_of.get(asked["ShardIterator"], "?")
                self.calls.shard_of[got.get("NextShardIterator") or ""] = shard

    def _put_in_part(self, request: dict[str, Any]) -> None:
        """Every other record is refused; the others reach the server."""
        records = request["Records"]
        taken = records[::2]
        status, headers, data = self._ask(json.dumps({**request, "Records": taken}).encode())
        if status == 200:
            answers = iter(json.loads(data)["Records"])
            refused = {"ErrorCode": _THROTTLED, "ErrorMessage": "injected"}
            results = [refused if i % 2 else next(answers) for i in range(len(records))]
            data = json.dumps({"FailedRecordCount": len(records) - len(taken), "Records": results}).encode()
            headers = {name: value for name, value in headers.items() if "crc32" not in name.lower()}
        self._answer(status, headers, data)


def main() -> None:
    """`kinesis_proxy.py TARGET_PORT SEED`."""
    ForwardKinesis.target, ForwardKinesis.faults = int(sys.argv[1]), Faults(0, int(sys.argv[2]))
    server = ThreadingHTTPServer(("127.0.0.1", 0), ForwardKinesis)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
