"""`hepar serve`: studies come in by DICOM, from an archive or from a browser; results go back.

This process listens and writes down what comes; each study runs in a worker process, as in a batch.
Killed at any moment, the same command goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hepar.batch.job import Engine
from hepar.errors import UsageError
from hepar.io.atomic import check_writable
from hepar.server.archive import fetching
from hepar.server.delivery import delivering
from hepar.server.desk import Desk
from hepar.server.extra import needed
from hepar.server.node import listening
from hepar.server.settings import read_settings
from hepar.server.spool import Spool
from hepar.train.interrupt import StopRequest


def run_server(
    folder: Path,
    engine: Engine | None = None,
    *,
    progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        folder: of the server: `serve.yaml`, and everything that it keeps; made if absent.
        engine: how studies are segmented; by the shipped model by default.
        progress: told where it listens, and of each study that ends.

    Raises:
        UsageError: `E_SERVE_SETTINGS`, `E_YAML`; `E_SERVE_RUNNING`, another process serves it;
            `E_SERVE_PACKAGES`, one is missing; `E_SERVE_TOKENS`, `E_SERVE_ADDRESS`.
        ModelIntegrityError: the model cannot be used.
        ResourceExhausted: `E_OUTPUT_WRITE`; `E_WORKER_DIED`, no worker can be started.
    """
    open_web = needed("hepar.server.web").open_web
    folder = folder.absolute()
    settings = read_settings(folder)
    check_writable(folder)
    with _alone(folder), StopRequest() as stop, ExitStack() as doors:
        spool = Spool(folder)
        spool.forsake()
        if settings.node is not None:
            doors.enter_context(listening(settings.node, spool, progress))
        desk = Desk(folder, spool, settings, engine or Engine(), progress)
        doors.callback(desk.end)
        if settings.pacs is not None and settings.pacs.fetch:
            doors.enter_context(fetching(settings, folder, desk))
        if settings.results_to is not None:
            doors.enter_context(delivering(settings, folder, desk, progress))
        doors.enter_context(open_web(folder, desk, settings.web, progress))
        while not stop():
            desk.step()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a server's folder for this process.

    Raises:
        UsageError: `E_SERVE_RUNNING`.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / ".serving").open("ab") as stream:
        try:
            import fcntl  # POSIX alone has it

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass
        except OSError:
            raise UsageError(
                "E_SERVE_RUNNING",
                "serve",
                f"Another hepar serve uses {folder.name}.",
                "Stop that one, or name another folder.",
            ) from None
        yield
