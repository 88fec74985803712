"""The DICOM door: a node that listens, in a thread, as long as the server runs."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hepar.server.extra import needed
from hepar.server.settings import Node
from hepar.server.spool import Spool

if TYPE_CHECKING:
    from hepar.server.receiver import Receiver


@contextmanager
def listening(
    settings: Node, spool: Spool, progress: Callable[[str], None]
) -> Iterator[tuple[str, int]]:
    """Receive images while the block runs.

    Args:
        settings: of the node.
        spool: keeps what comes.
        progress: told where it listens, and who was turned away, once each.

    Yields:
        The address and port that it listens at.

    Raises:
        UsageError: `E_SERVE_SETTINGS`, it cannot listen there, or a peer's host has no address;
            `E_SERVE_PACKAGES`, pynetdicom is not installed.
    """
    pynetdicom = needed("pynetdicom")
    from hepar.server.receiver import Receiver

    _silence()
    pynetdicom._config.LOG_HANDLER_LEVEL = "none"
    receiver, stop = Receiver(settings, spool, progress), threading.Event()
    thread = threading.Thread(target=_run, args=(receiver, stop), name="dicom-node")
    thread.start()
    try:
        host, port = receiver.listens_at
        progress(f"DICOM node {settings.ae_title} listens at {host}:{port}.")
        yield host, port
    finally:
        stop.set()
        thread.join()
        receiver.close()


def _run(receiver: Receiver, stop: threading.Event) -> None:
    while not stop.is_set():
        receiver.step()


def _silence() -> None:
    """Keep remarks of libraries out of the log: they quote what was sent, which may be a name."""
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"py(net)?dicom\b")
