"""What every request to the web door passes: is it meant for us, who asks, may that be done.

Whatever happens inside, the answer is a typed one, without a trace, and no browser lets another
site use it.
"""

from __future__ import annotations

import ipaddress
import logging
import traceback
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hepar.errors import HeparError, InputRefused, ResourceExhausted
from hepar.io.privacy import scrub
from hepar.render.template import environment
from hepar.server.tokens import Tokens

LOG = logging.getLogger(__name__)
OPEN = frozenset({"/health", "/style.css"})
_MAX_TARGET, _MAX_HEADERS, _MAX_HEAD = 2048, 100, 16 * 1024
_SAFE = frozenset({"GET", "HEAD"})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_NOTHING = ("E_NOT_FOUND", "There is nothing here.", "Look at / for what there is.")
_PLAIN = {
    404: _NOTHING,
    405: ("E_HTTP_REQUEST", "This cannot be done here.", "docs/serve.md says what can."),
}


class Refusal(HeparError):
    """A request that is refused.

    Args:
        status: of HTTP.
        code, message, remedy: as in every `HeparError`.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        remedy: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code, "web", message, remedy)
        self.status, self.headers = status, dict(headers or {})


def not_found() -> Refusal:
    """The same for what is not there and for what is another one's."""
    return Refusal(404, *_NOTHING)


def page(html: str, status: int = 200) -> Response:
    """A page of ours."""
    return HTMLResponse(html, status, {"Content-Security-Policy": PAGE_POLICY})


class Gate:
    """The application, guarded.

    Args:
        app: gets `scope["state"]["who"]`, the name of who asks.
        tokens: who may ask.
        names: by which the server is called, beside this machine's own; addresses always do.
        port: where it listens.
    """

    def __init__(self, app: ASGIApp, tokens: Tokens, names: tuple[str, ...], port: int) -> None:
        self.app, self.tokens = app, tokens
        self.names = _LOOPBACK | {name.lower() for name in names}
        self.cookie = f"hepar-{port}"  # cookies do not tell ports apart

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        # Files are sent whole; and what finds no route raises as everything else does.
        scope["headers"] = [(n, v) for n, v in scope["headers"] if n != b"range"]
        scope["app"] = self
        headers = Headers(scope=scope)
        try:
            self._check(scope, headers)
            if (token := _token_in_address(scope)) is not None:
                await self._session(token)(scope, receive, guarded)
                return
            scope["state"]["who"] = self._admitted(scope, headers)
            await self.app(scope, receive, guarded)
        except ClientDisconnect:
            return
        except Exception as error:
            problem = _refusal(error)
            if not started:
                await _answer(problem, scope, headers)(scope, receive, guarded)

    def _session(self, token: str) -> Response:
        """A token in the address becomes a cookie, and leaves the address."""
        if self.tokens.who(token) is None:
            raise _unknown()
        kept = f"{self.cookie}={token}; Path=/; HttpOnly; SameSite=Strict"
        return RedirectResponse("/", 303, {"Set-Cookie": kept})

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Refuse what nobody may ask."""
        if len(scope["raw_path"]) + len(scope["query_string"]) > _MAX_TARGET:
            raise Refusal(414, "E_HTTP_REQUEST", "The address is too long.", "Shorten it.")
        # The parser counts only what has not come whole yet.
        if len(headers) > _MAX_HEADERS or sum(len(n) + len(v) for n, v in headers.raw) > _MAX_HEAD:
            raise Refusal(431, "E_HTTP_REQUEST", "The headers are too long.", "Send fewer.")
        self._check_host(headers)
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal(
                415,
                "E_UPLOAD_KIND",
                "Bodies with a Content-Encoding are not taken.",
                "Send the file as it is.",
            )

    def _admitted(self, scope: Scope, headers: Headers) -> str | None:
        """Who asks; None where anyone may."""
        if scope["path"] in OPEN and scope["method"] in _SAFE:
            return None
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            who = self.tokens.who(bearer.strip())
        else:
            who = self.tokens.who(cookie_parser(headers.get("cookie", "")).get(self.cookie, ""))
            if who is not None and scope["method"] not in _SAFE:
                _check_origin(headers)
        if who is None:
            raise _unknown()
        return who

    def _check_host(self, headers: Headers) -> None:
        """Refuse requests that a browser was led to send here under another site's name."""
        hosts = headers.getlist("host")
        name = _hostname(hosts[0]) if len(hosts) == 1 else None
        if name is None or not (name in self.names or _is_address(name)):
            raise Refusal(
                421,
                "E_HOST",
                "The server is not called by this name.",
                "Use its address, or add the name to web.names of serve.yaml.",
            )


def _unknown() -> Refusal:
    """Whoever asks showed no token, or none of ours."""
    return Refusal(
        401,
        "E_TOKEN",
        "This needs a token of the server.",
        "Open the address that hepar serve tells at its start, with ?token=, or send "
        "Authorization: Bearer TOKEN; tokens.yaml in the server's folder has them.",
        {"WWW-Authenticate": "Bearer"},
    )


def _token_in_address(scope: Scope) -> str | None:
    if scope["path"] != "/" or scope["method"] != "GET":
        return None
    return QueryParams(scope["query_string"]).get("token")


def _hostname(host: str) -> str | None:
    try:
        parts = urlsplit(f"//{host}")
        if parts.netloc != host or parts.username is not None or parts.port == 0:
            return None
        return parts.hostname
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _check_origin(headers: Headers) -> None:
    """Refuse what a page of another site made a browser send."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    same = origin is not None and urlsplit(origin).netloc == headers.get("host")
    if site not in (None, "same-origin") or not (same or (origin is None and site is not None)):
        raise Refusal(
            403,
            "E_CROSS_SITE",
            "Another site asked for this.",
            "Use the server's own page, or the token in an Authorization header.",
        )


def _refusal(error: Exception) -> Refusal:
    """What is said of an error; the trace of a bug goes to the log, without names."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, HTTPException) and error.status_code in _PLAIN:
        return Refusal(error.status_code, *_PLAIN[error.status_code], error.headers)
    if isinstance(error, ResourceExhausted):
        return Refusal(507, error.code, error.message, error.remedy)
    if isinstance(error, InputRefused):
        return Refusal(400, error.code, error.message, error.remedy)
    trace = "".join(traceback.format_exception(error))
    LOG.error("E_INTERNAL: a bug of hepar in the web door\n%s", scrub(trace, ()))
    return Refusal(
        500,
        "E_INTERNAL",
        "This is a bug of hepar.",
        "Please report the trace in the server's log.",
    )


def _answer(problem: Refusal, scope: Scope, headers: Headers) -> Response:
    told = {"code": problem.code, "message": problem.message, "remedy": problem.remedy}
    if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
        response = page(environment().get_template("problem.html.j2").render(told), problem.status)
    else:
        response = JSONResponse(told, problem.status)
    response.headers.update(problem.headers)
    return response
