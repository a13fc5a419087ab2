"""The server of the watch page, only for browsers on this machine and only with the token.

    GET /<place>/          the page; ?token= sets the cookie that all else requires
    GET /<place>/stream    server-sent events: messages from `Pack.encode`, and `replaced`
    POST /<place>/do       a command as JSON

The threat is other pages in the same browser: foreign host names (DNS rebinding) and requests from pages of other
origins are refused, and the cookie is neither sent with those requests nor readable by any script. Browsers send a
host's cookies to all its ports, but a path's cookies only to that path: <place> is random, so that no other server on
this machine receives the cookie.
"""

import hmac
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from werkzeug.sansio.utils import host_is_trusted
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler
from werkzeug.wrappers import Request, Response

from ppo.outputs.untrusted import DamagedCheckpointError, parse_json
from ppo.settings import Refusal
from ppo.standard_streams import say_on_standard_error
from ppo.viewer.lookers import Looker, Lookers

HOST = "127.0.0.1"
_TRUSTED_HOSTS = (HOST, "localhost")
_MOST_THREADS = 32
_SECONDS_OF_SILENCE = 30.0
"""A connection that neither receives nor sends for this long is closed."""
_SECONDS_BETWEEN_SIGNS = 5.0
"""Interval of keep-alives to a page without messages: only sending reveals that a page has gone."""
_MOST_COMMAND_BYTES = 1000
_BYTES_ON_THEIR_WAY = 1 << 17
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

Do = Callable[[dict[str, Any]], bool]
"""Queues a page's command; returns whether there was room for it."""


def listen(port: int) -> socket.socket:
    """Return a socket that listens on a port of this machine.

    Raises:
        Refusal: the port is taken; the message names a free one.
    """
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen(4 * _MOST_THREADS)
    except OSError as error:
        listening.close()
        raise Refusal(
            f"port must be free on {HOST}, got {port} ({error.strerror}); try --port={free_port()}"
        ) from error
    return listening


def free_port() -> int:
    """Return a port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A context manager that serves a page from threads."""

    def __init__(self, listening: socket.socket, page: bytes, lookers: Lookers, do: Do) -> None:
        """Prepare to serve.

        Args:
            listening: from `listen`.
            page: the page.
            lookers: the open pages.
            do: receives the pages' commands.
        """
        self._listening = listening
        self._port: int = listening.getsockname()[1]
        self._page, self._lookers, self._do = page, lookers, do
        self._token, self._place = secrets.token_urlsafe(24), f"/{secrets.token_hex(8)}/"
        self._server: _Server | None = None

    @property
    def address(self) -> str:
        """The URL to open in a browser."""
        return f"http://{HOST}:{self._port}{self._place}?token={self._token}"

    def __enter__(self) -> "Server":
        """Start serving."""
        self._server = _Server(
            HOST, self._port, Request.application(self.answer), _Handler, fd=self._listening.fileno()
        )
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop serving; open streams are cut."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: Request) -> Response:
        """Answer a request."""
        response = self._refused(request) or self._served(request)
        response.headers.extend(_HEADERS)
        return response

    def _refused(self, request: Request) -> Response | None:
        """Return the refusal of a request that is not from our own page or user; None if it is allowed."""
        host, origin = request.headers.get("Host"), request.headers.get("Origin")
        if not host_is_trusted(host, _TRUSTED_HOSTS):
            return _text(f"This is served to {HOST} and localhost only.", 403)
        is_first = request.path == self._place and request.method == "GET"
        is_from_elsewhere = request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin"
        if origin not in (None, f"http://{host}") or (is_from_elsewhere and not is_first):
            return _text("Requests from other origins are refused.", 403)
        tokens = [request.cookies.get(_COOKIE, "")] + ([request.args.get("token", "")] if is_first else [])
        if not any(hmac.compare_digest(token.encode(), self._token.encode()) for token in tokens):
            return _text("Token missing or wrong: open the address that --mode=watch printed.", 403)
        return None

    def _served(self, request: Request) -> Response:
        name = request.path.removeprefix(self._place)
        method = _METHODS.get(name)
        if method is None:
            return _text("There is no such page.", 404)
        if request.method != method:
            return _text(f"Only {method} is answered here.", 405)
        if name == "stream":
            stream = _Stream(self._lookers)
            return Response(stream, mimetype="text/event-stream", headers={"X-Accel-Buffering": "no"})
        if name == "do":
            return self._done(request)
        response = Response(self._page, mimetype="text/html")
        # The page drops the token from its address: after a link from another site, a redirected request would lack the
        # SameSite=Strict cookie.
        response.set_cookie(_COOKIE, self._token, path=self._place, httponly=True, samesite="Strict")
        return response

    def _done(self, request: Request) -> Response:
        """Pass a command on; another site's page cannot send this content type without a CORS preflight."""
        if request.mimetype != "application/json" or not 0 < (request.content_length or 0) <= _MOST_COMMAND_BYTES:
            return _text("A command is a short JSON object.", 400)
        try:
            command = parse_json(request.get_data())
        except DamagedCheckpointError:
            command = None
        if not isinstance(command, dict):
            return _text("A command is a short JSON object.", 400)
        return Response(status=204) if self._do(command) else _text("Too many commands.", 503)


_METHODS = {"": "GET", "stream": "GET", "do": "POST"}
_COOKIE = "ppo_watch"


class _Stream:
    """The events for one page, until it closes or is replaced."""

    def __init__(self, lookers: Lookers) -> None:
        self._lookers = lookers
        self._looker: Looker = lookers.add()

    def __iter__(self) -> Iterator[bytes]:
        while not self._looker.is_replaced:
            messages = self._looker.take(_SECONDS_BETWEEN_SIGNS)
            yield "".join(f"event: {kind}\ndata: {text}\n\n" for kind, text in messages).encode() or b":\n\n"
        yield b"event: replaced\ndata: \n\n"

    def close(self) -> None:
        """Remove the page."""
        self._lookers.remove(self._looker)


class _Server(ThreadedWSGIServer):
    """Answers at most `_MOST_THREADS` requests at once, and reports an error in one line."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._free = threading.BoundedSemaphore(_MOST_THREADS)
        super().__init__(*arguments, **options)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return self._free.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def log(self, type: str, message: str, *arguments: Any) -> None:
        say_on_standard_error(f"ppo: {message % arguments if arguments else message}")


class _Handler(WSGIRequestHandler):
    """Handles one connection: times out if it is silent, and logs no requests."""

    timeout = _SECONDS_OF_SILENCE

    def setup(self) -> None:
        super().setup()
        # What a slow page has not read waits in its bounded `Looker`, not in the kernel, where it could be much more.
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BYTES_ON_THEIR_WAY)

    def log(self, type: str, message: str, *arguments: Any) -> None:
        pass


def _text(text: str, status: int) -> Response:
    return Response(f"{text}\n", status, mimetype="text/plain")
