"""An HTTP server on this machine that misbehaves as it is told to: cuts, stalls, lies about sizes and contents."""

import contextlib
import http.server
import socket
import struct
import threading
from collections import deque

FAULTS = ("cut", "stall", "silent", "reset", "garbage", "short", "long", "unknown length", "flip", "other file", "html",
          "404", "403", "429", "500", "503", "no range", "wrong range", "refused range", "drip", "loop")  # fmt: skip


class FaultyServer(http.server.ThreadingHTTPServer):
    """Serves ``content`` under every path, with the faults in turn, and without any when they are used up."""

    daemon_threads = True

    def __init__(self, content: bytes, faults=(), at: int = 0, linked: str | None = None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.faults, self.at, self.linked = content, deque(faults), at, linked
        self.ranges: list[str | None] = []  # of the requests for the file
        self.released = threading.Event()  # ends what stalls

    def handle_error(self, request, client_address):
        pass  # clients that gave up

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def serving(content: bytes, faults=(), at: int = 0, linked: str | None = None):
    """A server in a thread of its own; ``linked``: the hash that it gives as Hugging Face's hub does, by a redirect."""
    server = FaultyServer(content, faults, at, linked)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FaultyServer

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        if self.server.linked and not self.path.startswith("/stored"):
            self._head(302, {"Location": "/stored" + self.path, "X-Linked-Etag": f'"{self.server.linked}"'})
            return
        self.server.ranges.append(self.headers.get("Range"))
        fault = self.server.faults.popleft() if self.server.faults else None
        if fault in ("silent", "reset", "garbage", "html", "loop") or (fault or "").isdecimal():
            self._refuse(fault)
        else:
            self._send(fault)

    def _refuse(self, fault):
        if fault == "silent":
            self.server.released.wait(5)
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif fault == "garbage":
            self.wfile.write(b"\x00\xffnot what a server of files says\r\n\r\n")
        elif fault == "html":
            self._head(200, {"Content-Type": "text/html; charset=utf-8", "Content-Length": "12"})
            self.wfile.write(b"<html>login<")
        elif fault == "loop":
            self.server.faults.appendleft("loop")  # before the answer: a test may clear them when it has that
            self._head(302, {"Location": self.path})
        else:
            self._head(int(fault), {"Content-Length": "0"})
        self.close_connection = True

    def _send(self, fault):
        content, at = self.server.content, self.server.at
        if fault == "other file":
            content = bytes(255 - byte for byte in content[:4096]) + content[4096:]
        if fault == "flip":
            content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        asked, start = self.headers.get("Range"), 0
        if asked and fault != "no range":
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        if asked and (start >= len(content) or fault == "refused range"):
            self._head(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
            return
        body = content[start:]
        if fault == "wrong range" and asked:
            start, body = start // 2, content[start // 2 :]
        length = len(body) + {"short": -(len(body) // 3), "long": 1000}.get(fault, 0)
        about = {
            "Content-Type": "application/octet-stream",
            "ETag": '"changed"' if fault == "other file" else '"first"',
        }
        if fault != "unknown length":
            about["Content-Length"] = str(length)
        ranged = asked and fault != "no range"
        if ranged:
            about["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._head(206 if ranged else 200, about)
        stops = fault in ("cut", "stall", "unknown length", "drip")
        self.wfile.write(body[: min(at, len(body) - 1)] if stops else body)
        self.wfile.flush()
        if fault == "stall":
            self.server.released.wait(5)
        for _ in range(40 if fault == "drip" else 0):
            self.wfile.write(b"\0")
            self.wfile.flush()
            if self.server.released.wait(0.05):
                break
        self.close_connection = True

    def _head(self, code, about):
        self.send_response(code)
        for name, value in about.items():
            self.send_header(name, value)
        self.end_headers()
