"""The server of the live page: for this machine alone, read-only, and deaf to pages of other sites that a browser
shows beside it.

A page from elsewhere can send requests to 127.0.0.1, and by DNS rebinding under a name of its own: only requests to
the server's own names are answered. It can't embed what is served (Cross-Origin-Resource-Policy), frame it, or make it
load or run anything else (Content-Security-Policy)."""

import errno
import socketserver
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ..system.errors import UserError
from .live import Watched

HOST = "127.0.0.1"
HERE = Path(__file__).parent
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
TEXT = "text/plain; charset=utf-8"
# All that can be asked for: no path is ever made of what was sent.
ROUTES: dict[str, tuple[str, Callable[[Watched], bytes | None]]] = {
    "/": ("text/html; charset=utf-8", Watched.page),
    "/live.css": ("text/css; charset=utf-8", lambda _: (HERE / "live.css").read_bytes()),
    "/live.js": ("text/javascript; charset=utf-8", lambda _: (HERE / "live.js").read_bytes()),
    "/kernels-a.png": ("image/png", lambda watched: watched.kernels(0)),
    "/kernels-b.png": ("image/png", lambda watched: watched.kernels(1)),
}


class LiveServer(ThreadingHTTPServer):
    """Serves a `Watched` on 127.0.0.1 from when it is made; `serve_forever` answers. port: 0 for any that is free;
    `server_port` is the one it has. Raises UserError where the port can't be had."""

    daemon_threads = True  # a browser that keeps a connection doesn't keep the command

    def __init__(self, watched: Watched, port: int):
        self.watched = watched
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            if isinstance(error, OverflowError):
                problem = "ports are 0 to 65535"
            elif error.errno == errno.EADDRINUSE:
                problem = "something listens there already; --port 0 takes one that is free"
            else:
                problem = error.strerror
            raise UserError(f"--port {port}: {problem}") from None
        names = [f"{host}:{self.server_port}" for host in (HOST, "localhost")]
        self.hosts = {*names, *((HOST, "localhost") if self.server_port == 80 else ())}

    def server_bind(self) -> None:
        """Without HTTPServer's question for the name of 127.0.0.1, which waits where no name server answers."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that has left is no error."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    timeout = 10  # seconds for a request to arrive

    def do_GET(self):
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts:
            self._send(421, TEXT, f"This is http://{HOST}:{self.server.server_port}/ and nothing else.\n".encode())
            return
        kind, make = ROUTES.get(self.path.partition("?")[0], (TEXT, lambda _: None))
        content = make(self.server.watched)
        if content is None:
            self._send(404, TEXT, b"There is nothing of this name.\n")
        else:
            self._send(200, kind, content)

    do_HEAD = do_GET

    def send_error(self, code, message=None, explain=None):
        """What the library refuses: a method other than those above (501), or what is no request."""
        code = 405 if code == 501 else code
        self._send(code, TEXT, f"{code}: only GET and HEAD are answered.\n".encode())

    def _send(self, code, kind, content):
        self.close_connection = True
        self.send_response(code)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        if code == 405:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def version_string(self):
        return "alexnet_mp"

    def log_message(self, *_):
        pass
