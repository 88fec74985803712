"""The web door: a page with the studies, uploads, results for scripts, and STOW-RS.

It runs in a thread with a loop of its own, and knows of the studies what `Desk` tells.
"""

from __future__ import annotations

import _thread
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import Route, Router

from hepar.batch.job import RECORD, read_record
from hepar.errors import UsageError
from hepar.render.viewer import NAME as VIEWER
from hepar.server import stow
from hepar.server.connections import MAX_HEAD_BYTES, Connection
from hepar.server.desk import Case, Desk
from hepar.server.gate import Gate, not_found, page
from hepar.server.settings import Web
from hepar.server.study_page import (
    VIEWER_SCRIPTS,
    document,
    script,
    studies_page,
    style,
    viewer,
)
from hepar.server.tokens import read_tokens
from hepar.server.uploads import Uploads

LOG = logging.getLogger(__name__)
_STARTS_S, _GOODBYE_S = 60.0, 3
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".csv": "text/csv; charset=utf-8",
    ".png": "image/png",
    ".gz": "application/gzip",
    ".dcm": "application/dicom",
}
# A report holds its pictures and its style itself, and no script.
_REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox allow-same-origin"
)
_VIEWER_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@contextmanager
def open_web(
    folder: Path, desk: Desk, settings: Web, progress: Callable[[str], None]
) -> Iterator[None]:
    """Listen within this block.

    Args:
        folder: of the server; holds the tokens.
        desk: of the same folder.
        settings: of the web door.
        progress: told the address.

    Raises:
        UsageError: `E_SERVE_TOKENS`, `E_SERVE_ADDRESS`.
    """
    tokens = read_tokens(folder)
    listener = _listener(settings)
    port = listener.getsockname()[1]
    app = Gate(_Door(desk, settings).routes(), tokens, settings.names, port)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # it would log addresses, which may hold tokens
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_GOODBYE_S,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
    )
    thread = threading.Thread(target=_run, args=(server, listener), name="web", daemon=True)
    thread.start()
    until = time.monotonic() + _STARTS_S
    while not server.started and thread.is_alive() and time.monotonic() < until:
        time.sleep(0.01)
    host = settings.host if ":" not in settings.host else f"[{settings.host}]"
    progress(f"Open http://{host}:{port}/?token={tokens.first}")
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(2 * _GOODBYE_S)


def _listener(settings: Web) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server((settings.host, settings.port), family=family, backlog=256)
    except OSError as error:
        raise UsageError(
            "E_SERVE_ADDRESS",
            "serve",
            f"Cannot listen at {settings.host}, port {settings.port}: {error.strerror or error}.",
            "Name another host or port under web: in serve.yaml.",
        ) from None


def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    try:
        server.run([listener])
    except BaseException:
        LOG.exception("E_INTERNAL: the web door failed")
    finally:
        if not server.should_exit:
            _thread.interrupt_main()  # a server that nobody reaches had better be started again


class _Door:
    """What is done with each request that was let in."""

    def __init__(self, desk: Desk, settings: Web) -> None:
        self.desk, self.settings = desk, settings
        self.uploads = Uploads(desk, settings)

    def routes(self) -> Router:
        """What is asked, and what answers."""
        return Router(
            [
                Route("/", self.front, methods=["GET"]),
                Route("/style.css", self.style, methods=["GET"]),
                Route("/studies.js", self.script, methods=["GET"]),
                Route("/{name}.js", self.viewer_script, methods=["GET"]),
                Route("/health", self.health, methods=["GET"]),
                Route("/studies", self.list_all, methods=["GET"]),
                Route("/studies", self.upload, methods=["POST"]),
                Route("/studies/{id}", self.tell, methods=["GET"]),
                Route("/studies/{id}", self.dismiss, methods=["DELETE"]),
                Route("/studies/{id}/viewer", self.viewer, methods=["GET"]),
                Route("/studies/{id}/files/{name:path}", self.file, methods=["GET"]),
                Route("/dicom-web/studies", self.store, methods=["POST"]),
                Route("/dicom-web/studies/{uid}", self.store, methods=["POST"]),
            ],
            redirect_slashes=False,
        )

    async def front(self, request: Request) -> Response:
        """The page."""
        who, most = request.state.who, self.settings.max_upload_mb
        return page(await run_sync(studies_page, self._cases(who), who, most))

    async def style(self, request: Request) -> Response:
        """The style of our pages."""
        return Response(style(), media_type="text/css")

    async def script(self, request: Request) -> Response:
        """The script of the page."""
        return Response(script(), media_type="text/javascript")

    async def viewer_script(self, request: Request) -> Response:
        """A script of the viewer."""
        path = VIEWER_SCRIPTS.get(f"{request.path_params['name']}.js")
        if path is None or not path.is_file():
            raise not_found()
        return FileResponse(path, media_type="text/javascript")

    async def viewer(self, request: Request) -> Response:
        """The images of a study with what was found, slice by slice."""
        case = self._case(request)
        place = self.desk.result(case.id)
        if place is None or VIEWER not in case.files:
            raise not_found()
        html = await run_sync(viewer, case, place)
        return HTMLResponse(html, headers={"Content-Security-Policy": _VIEWER_POLICY})

    async def health(self, request: Request) -> Response:
        """That the door is open, and nothing else."""
        return JSONResponse({"status": "ok"})

    async def list_all(self, request: Request) -> Response:
        """Every study of who asks."""
        return JSONResponse({"studies": [document(c) for c in self._cases(request.state.who)]})

    async def tell(self, request: Request) -> Response:
        """One study."""
        return JSONResponse(document(self._case(request)))

    async def upload(self, request: Request) -> Response:
        """Take a study in one file."""
        identifier = await self.uploads.receive(request, request.state.who)
        told = document(self.desk.case(identifier) or _queued(identifier))
        return JSONResponse(told, 202, {"Location": told["links"]["self"]})

    async def dismiss(self, request: Request) -> Response:
        """Remove an upload of who asks."""
        case = self._case(request)
        if case.owner != request.state.who:
            raise not_found()
        await run_sync(self.desk.dismiss, case.id)
        return Response(status_code=204)

    async def file(self, request: Request) -> Response:
        """A file of a result, if the result's own record names it."""
        case, name = self._case(request), request.path_params["name"]
        if name == VIEWER and request.headers.get("sec-fetch-dest") == "document":
            return RedirectResponse(f"/studies/{case.id}/viewer", 303)  # its scripts are inline
        place = self.desk.result(case.id)
        record = None if place is None else await run_sync(read_record, place)
        if place is None or record is None or name not in (*record["files"], RECORD):
            raise not_found()
        path = place / name
        try:
            status = await run_sync(os.stat, path)
        except FileNotFoundError:
            raise not_found() from None
        shown = path.suffix in (".html", ".json", ".png")
        return FileResponse(
            path,
            headers={"Content-Security-Policy": _REPORT_POLICY},
            media_type=_KINDS.get(path.suffix, "application/octet-stream"),
            filename=path.name,
            stat_result=status,
            content_disposition_type="inline" if shown else "attachment",
        )

    async def store(self, request: Request) -> Response:
        """Take images, as an archive sends them."""
        return await stow.store(request, self.uploads)

    def _cases(self, who: str) -> list[Case]:
        return [case for case in self.desk.cases() if case.owner in (None, who)]

    def _case(self, request: Request) -> Case:
        case = self.desk.case(request.path_params["id"])
        if case is None or case.owner not in (None, request.state.who):
            raise not_found()
        return case


def _queued(identifier: str) -> Case:
    return Case(identifier, "upload", "queued", time.time())
