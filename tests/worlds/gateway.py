"""A gateway between a client and a real HTTP server that loses a reply after the server has worked, or holds it for ever."""

import http.client
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Gateway(ThreadingHTTPServer):
    """Passes all requests on to `upstream`, but loses or holds those in `lose` or `hold` once.

    Each is given as `VERB END` or `VERB END WORD`: the verb, the end of the path, and a word that the body holds.
    """

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.upstream = urlsplit(upstream).netloc
        self.uri = f"http://127.0.0.1:{self.server_port}"
        self.lose: set[str] = set()
        self.hold: set[str] = set()
        self.released = threading.Event()
        self.requests: Counter[str] = Counter()  # by path, without its query

    @classmethod
    @contextmanager
    def before(cls, upstream: str) -> Iterator["Gateway"]:
        """A running gateway."""
        with cls(upstream) as gateway:
            threading.Thread(target=gateway.serve_forever, daemon=True).start()
            try:
                yield gateway
            finally:
                gateway.released.set()
                gateway.shutdown()

    def takes(self, requests: set[str], verb: str, path: str, body: bytes) -> bool:
        """Whether this request is among the `requests` to disturb; if so, it is removed from them."""
        for one in requests:
            of, end, *word = one.split()
            if verb == of and path.endswith(end) and all(each.encode() in body for each in word):
                requests.remove(one)
                return True
        return False


class _Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gateway

    def _pass(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests[path] += 1
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.takes(self.server.hold, self.command, path, body):
            self.server.released.wait()
            return self._hang_up()
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        content = answer.read()
        if self.server.takes(self.server.lose, self.command, path, body):
            return self._hang_up()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return None

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Nothing."""


for verb in ("GET", "POST", "PUT", "PATCH", "DELETE"):
    setattr(_Passing, f"do_{verb}", _Passing._pass)
