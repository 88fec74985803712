"""What the DICOM node does for its peers: C-ECHO, and C-STORE of CT images into the spool."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    AllTransferSyntaxes,
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
)
from pynetdicom import AE, evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_RELEASE
from pynetdicom.transport import AddressInformation

from hepar.errors import HeparError, InputRefused, UsageError
from hepar.io.dicom_decoding import is_decodable
from hepar.server import doorkeeper
from hepar.server.bounded_socket import MAX_PDU_BYTES, BoundedSocket
from hepar.server.doorkeeper import Doorkeeper, Rejection, Request, plain_address
from hepar.server.instance import Unacceptable, preamble, study_of
from hepar.server.settings import FILE, Node
from hepar.server.spool import Spool, check_room

VERIFICATION = UID("1.2.840.10008.1.1")
IMAGES = (CTImageStorage, EnhancedCTImageStorage)
IDLE_S = 60.0
SUCCESS, DUPLICATE, NO_SUCH_CLASS, OUT_OF_RESOURCES = 0x0000, 0x0111, 0x0122, 0xA700
_STORE_REQUEST, _NO_UID = 0x0001, "0"
_LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K)
_FAREWELL_S = 5.0
_MAX_REMARKS = 256


@dataclass(eq=False)
class _Visit:
    """An association.

    Attributes:
        address: of the peer.
        association: pynetdicom's.
        connection: its socket.
        sender: names it in the spool.
        studies: of which it sent images.
        owed: images, with their studies, that came and could not be kept.
        goodbye: it has asked for its release, and the spool knows.
    """

    address: str
    association: Association
    connection: BoundedSocket
    sender: str = field(default_factory=lambda: secrets.token_hex(8))
    studies: set[str] = field(default_factory=set)
    owed: set[tuple[str, str]] = field(default_factory=set)
    goodbye: bool = False


class Receiver:
    """A service class provider of Verification and CT storage; all but its handlers in one thread.

    Args:
        settings: of the node.
        spool: keeps what comes.
        progress: told who was turned away, once each.

    Raises:
        UsageError: `E_SERVE_SETTINGS`, it cannot listen there, or a peer's host has no address.
    """

    def __init__(self, settings: Node, spool: Spool, progress: Callable[[str], None]) -> None:
        self._settings, self._spool, self._progress = settings, spool, progress
        self._peers = {(peer.ae_title, at) for peer in settings.peers for at in _found(peer.host)}
        addresses = {address for _, address in self._peers}
        # One host does not keep the others out.
        hosts = {peer.host for peer in settings.peers}
        self._share = max(1, settings.max_associations // len(hosts))
        self._entity = _entity(settings)
        self._visits: dict[Association, _Visit] = {}
        self._remarks: set[tuple[str, str]] = set()
        try:
            self._door = Doorkeeper(settings.host, settings.port, addresses, self._admit)
        except OSError as error:
            raise _unusable(
                f"node: it cannot listen at {settings.host}:{settings.port}: {error.strerror}."
            ) from None

    @property
    def listens_at(self) -> tuple[str, int]:
        """Address and port."""
        return self._door.listens_at

    def step(self) -> None:
        """Let in who asks, and see off who has left: for a fifth of a second at most."""
        self._door.step()
        self._see_off()

    def close(self) -> None:
        """End every association; what they sent of is not complete."""
        self._door.close()
        for association in self._visits:
            association.abort(block=False)
        end = time.monotonic() + _FAREWELL_S
        while self._visits and time.monotonic() < end:
            self._see_off()
            time.sleep(0.01)
        for association, visit in self._visits.items():
            visit.connection.hang_up()
            association.join(_FAREWELL_S)
            self._part(visit)

    def _admit(self, request: Request) -> Rejection | None:
        """Give a caller its association, or say why not."""
        self._see_off()
        # Who was told goodbye is as good as gone; its threads end soon.
        staying = [visit for visit in self._visits.values() if not visit.goodbye]
        here = sum(visit.address == request.address for visit in staying)
        most = self._settings.max_associations
        if request.called != self._settings.ae_title:
            return self._reject(request, "calls another AE title", doorkeeper.CALLED_TITLE)
        if (request.calling, request.address) not in self._peers:
            return self._reject(request, "is no peer by its AE title", doorkeeper.CALLING_TITLE)
        if here >= self._share or len(staying) >= most or len(self._visits) >= 2 * most:
            return self._reject(request, "has too many associations", doorkeeper.FULL)
        visit = self._welcome(request)
        self._visits[visit.association] = visit
        try:
            visit.association.start()
        except RuntimeError:  # the system has no thread left
            del self._visits[visit.association]
            return self._reject(request, "comes when there are no threads left", doorkeeper.FULL)
        return None

    def _reject(self, request: Request, why: str, rejection: Rejection) -> Rejection:
        remark = (request.address, why)
        if remark not in self._remarks and len(self._remarks) < _MAX_REMARKS:
            self._remarks.add(remark)
            self._progress(f"DICOM node: rejected {request.address}, which {why}.")
        return rejection

    def _welcome(self, request: Request) -> _Visit:
        association = Association(self._entity, MODE_ACCEPTOR)
        request.socket.setblocking(True)
        connection = BoundedSocket(association, request.socket, bytes(request.pdu), self._held)
        association.set_socket(connection)
        association.acceptor.ae_title = self._settings.ae_title
        association.acceptor.maximum_length = MAX_PDU_BYTES
        association.acceptor.address_info = AddressInformation(*self.listens_at)
        association.acceptor.supported_contexts = deepcopy(self._entity.supported_contexts)
        association.requestor.address_info = AddressInformation(request.address, 0)
        visit = _Visit(request.address, association, connection)
        association.bind(evt.EVT_C_STORE, self._store, [visit])
        association.bind(evt.EVT_ACSE_RECV, self._release, [visit])
        association.bind(evt.EVT_DIMSE_RECV, _name_the_nameless)
        return visit

    def _held(self) -> int:
        """Bytes of unfinished images in memory."""
        return sum(visit.connection.held for visit in tuple(self._visits.values()))

    def _store(self, event: Any, visit: _Visit) -> int:
        """Keep an image; the status of the C-STORE response."""
        command, context = event.request, event.context
        sop_class, instance = str(command.AffectedSOPClassUID), str(command.AffectedSOPInstanceUID)
        if sop_class not in IMAGES or sop_class != context.abstract_syntax:
            return NO_SUCH_CLASS
        syntax = UID(context.transfer_syntax)
        try:
            with visit.connection.busy():
                data = command.DataSet.getvalue()
                study = study_of(sop_class, instance, syntax, data)
                self._keep(visit, study, instance, preamble(sop_class, instance, syntax), data)
        except Unacceptable as error:
            return error.status
        except InputRefused:
            return DUPLICATE
        except HeparError:
            return OUT_OF_RESOURCES
        return SUCCESS

    def _keep(self, visit: _Visit, study: str, instance: str, *parts: bytes) -> None:
        visit.owed.add((study, instance))
        if study not in visit.studies:
            self._spool.begin(study, visit.sender)
            visit.studies.add(study)
        check_room(self._spool.incoming, sum(len(part) for part in parts))
        try:
            self._spool.store(study, instance, parts)
        except InputRefused:  # the one that is here stays
            visit.owed.discard((study, instance))
            raise
        visit.owed.discard((study, instance))

    def _release(self, event: Any, visit: _Visit) -> None:
        """Tell the spool that a peer has sent what it had to, before the peer is told."""
        if not isinstance(event.primitive, A_RELEASE) or event.primitive.result is not None:
            return
        dimse = visit.association.dimse
        unheard = dimse.message is not None or not dimse.msg_queue.empty()
        for study in visit.studies:
            if unheard or any(study == of for of, _ in visit.owed):
                self._spool.broke_off(study, visit.sender)
            else:
                self._spool.end(study, visit.sender)
        visit.goodbye = True

    def _see_off(self) -> None:
        """Forget the associations that are over."""
        for association, visit in list(self._visits.items()):
            if not (association.is_alive() or association.dul.is_alive()):
                self._part(visit)
                del self._visits[association]

    def _part(self, visit: _Visit) -> None:
        if not visit.goodbye:
            for study in visit.studies:
                with suppress(OSError):  # a mark that stays says that it is not complete, too
                    self._spool.broke_off(study, visit.sender)
        visit.connection.close_for_good()


def transfer_syntaxes() -> list[UID]:
    """The transfer syntaxes that images may come in, the preferred first."""
    usable = [syntax for syntax in AllTransferSyntaxes if is_decodable(syntax)]
    return sorted(usable, key=lambda one: (one in _LOSSY, one != ExplicitVRLittleEndian))


def _name_the_nameless(event: Any) -> None:
    """Have a C-STORE request without SOPInstanceUID refused; pynetdicom would not answer it."""
    command = event.message.command_set
    if command.CommandField == _STORE_REQUEST and not command.get("AffectedSOPInstanceUID"):
        command.AffectedSOPInstanceUID = _NO_UID


def _entity(settings: Node) -> AE:
    entity = AE(settings.ae_title)
    entity.maximum_associations = settings.max_associations
    entity.maximum_pdu_size = MAX_PDU_BYTES
    entity.acse_timeout = doorkeeper.REQUEST_S
    entity.dimse_timeout = entity.network_timeout = IDLE_S
    entity.add_supported_context(VERIFICATION)
    for sop_class in IMAGES:
        entity.add_supported_context(sop_class, transfer_syntaxes())
    return entity


def _found(host: str) -> set[str]:
    """The addresses of a peer."""
    try:
        return {plain_address(str(entry[4][0])) for entry in socket.getaddrinfo(host, None)}
    except OSError:
        raise _unusable(f"node: no address is known of the peer at {host}.") from None


def _unusable(why: str) -> UsageError:
    remedy = "Correct the file; docs/serve.md lists its keys."
    return UsageError("E_SERVE_SETTINGS", "serve", f"{FILE}: {why}", remedy)
