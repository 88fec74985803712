"""Where results can go: an archive takes them by STOW-RS, a DICOM node by C-STORE."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hepar.server.dicomweb import Dicomweb
from hepar.server.extra import needed
from hepar.server.retries import PeerFailed
from hepar.server.settings import Peer

_CONNECT_S, _SILENCE_S = 10.0, 60.0
# PS3.4 B.2.3: taken, though not as it was; and there already.
_WARNINGS, _DUPLICATE = range(0xB000, 0xC000), 0x0111


@dataclass(frozen=True)
class Thing:
    """A DICOM object to deliver.

    Attributes:
        file: where it lies.
        sop_class: SOPClassUID.
        instance: SOPInstanceUID.
        transfer_syntax: TransferSyntaxUID.
    """

    file: Path
    sop_class: str
    instance: str
    transfer_syntax: str


@runtime_checkable
class Receiver(Protocol):
    """Who takes results."""

    def send(self, things: Sequence[Thing]) -> Iterator[PeerFailed | None]:
        """Send objects of one study, and tell of each: None, it is there; or why it is not.

        Raises:
            PeerFailed: none of the rest can be sent now.
        """


class Archive:
    """An archive, asked over DICOMweb; each object in a request of its own.

    Args:
        web: the archive.
    """

    def __init__(self, web: Dicomweb) -> None:
        self._web = web

    def send(self, things: Sequence[Thing]) -> Iterator[PeerFailed | None]:
        """As `Receiver.send`."""
        for thing in things:
            try:
                self._web.store(thing.file, thing.instance)
            except PeerFailed as error:
                if error.down:
                    raise
                yield error
            else:
                yield None


class DicomNode:
    """A DICOM node; one association a study.

    Args:
        ae_title: as we call ourselves.
        peer: the node, with a port.

    Raises:
        UsageError: `E_SERVE_PACKAGES`.
    """

    def __init__(self, ae_title: str, peer: Peer) -> None:
        self._net = needed("pynetdicom")
        self._ae_title, self._peer = ae_title, peer

    def send(self, things: Sequence[Thing]) -> Iterator[PeerFailed | None]:
        """As `Receiver.send`."""
        association = self._associate(things)
        try:
            for thing in things:
                yield self._store(association, thing)
        finally:
            association.release()

    def _associate(self, things: Sequence[Thing]) -> Any:
        entity = self._net.AE(self._ae_title)
        entity.connection_timeout = _CONNECT_S
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = _SILENCE_S
        for sop_class, syntax in sorted({(one.sop_class, one.transfer_syntax) for one in things}):
            entity.add_requested_context(sop_class, syntax)
        association = entity.associate(
            self._peer.host,
            self._peer.port,
            ae_title=self._peer.ae_title,
            evt_handlers=[(self._net.evt.EVT_CONN_OPEN, _at_once)],
        )
        if not association.is_established:
            how = "refused the association" if association.is_rejected else "cannot be reached"
            raise PeerFailed(f"the receiver {how}", down=True)
        return association

    def _store(self, association: Any, thing: Thing) -> PeerFailed | None:
        if not any(one.abstract_syntax == thing.sop_class for one in association.accepted_contexts):
            return PeerFailed("the receiver does not take objects of its class")
        try:
            answer = association.send_c_store(thing.file)
        except RuntimeError:
            raise PeerFailed("the receiver broke off", down=True) from None
        if "Status" not in answer:
            raise PeerFailed("the receiver broke off, or does not answer", down=True)
        status = int(answer.Status)
        if status in (0, _DUPLICATE) or status in _WARNINGS:
            return None
        return PeerFailed(f"the receiver did not take it ({status:04X})")


def _at_once(event: Any) -> None:
    """Small packets leave at once (TCP_NODELAY): each object costs 40 ms more otherwise."""
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
