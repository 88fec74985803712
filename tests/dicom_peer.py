"""What tests of the DICOM node send, and whom they are: a node that listens, and peers of it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
)
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import Verification

from hepar.server.node import listening
from hepar.server.settings import Node, Peer
from hepar.server.spool import Spool

TITLE, HOST = "SCANNER", "127.0.0.1"
NAME = "CANARY^ZZTOP"


@dataclass(frozen=True)
class Door:
    """A node that listens.

    Attributes:
        port: at `HOST`.
        spool: where its images go.
        said: its progress.
    """

    port: int
    spool: Spool
    said: list[str]

    def files(self) -> dict[str, pydicom.FileDataset]:
        """The images that it kept, by SOPInstanceUID."""
        found = [pydicom.dcmread(path) for path in self.spool.inbox.rglob("*.dcm")]
        assert len({str(one.SOPInstanceUID) for one in found}) == len(found)
        return {str(one.SOPInstanceUID): one for one in found}

    def nothing_is_kept(self) -> bool:
        """Whether nothing came, whole or half."""
        return not any(p.is_file() for p in self.spool.inbox.parent.rglob("*"))

    def marks(self) -> list[str]:
        """What is said of each sender that has not ended well: `sending` or `lost`."""
        names = [path.name for path in self.spool.open.iterdir()]
        return sorted("lost" if name.endswith(".lost") else "sending" for name in names)


@contextmanager
def door(folder: Path, *peers: Peer, **settings: Any) -> Iterator[Door]:
    """A node that listens while the block runs; by default for `TITLE` at `HOST`."""
    said: list[str] = []
    spool = Spool(folder)
    peers = peers or (Peer(ae_title=TITLE, host=HOST),)
    node = Node(**{"port": 0, "peers": peers, **settings})
    with listening(node, spool, said.append) as (_, port):
        yield Door(port, spool, said)


def image(study: str = "1.2.3", instance: str = "1.2.3.1", **tags: Any) -> Dataset:
    """A small CT image, which holds a name."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.PatientName = CTImageStorage, NAME
    for keyword, uid in (("SOPInstanceUID", instance), ("StudyInstanceUID", study)):
        data.add(DataElement(keyword, "UI", uid, validation_mode=IGNORE))
    data.Rows, data.Columns, data.BitsAllocated = 8, 8, 16
    data.PixelData = bytes(range(128))
    for keyword, value in tags.items():
        setattr(data, keyword, value)
    return data


def called(
    at: Door | int,
    title: str = TITLE,
    node: str = "HEPAR",
    syntax: UID = ExplicitVRLittleEndian,
    address: str = HOST,
) -> Association:
    """An association with the node, or with a port, or its refusal.

    Args:
        at: a node.
        title: of who calls.
        node: the title that is called.
        syntax: that is offered.
        address: that is called from.
    """
    entity = AE(title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 60
    entity.add_requested_context(Verification)
    for sop_class in (CTImageStorage, MRImageStorage):
        entity.add_requested_context(sop_class, syntax)
    port = at.port if isinstance(at, Door) else at
    return entity.associate(HOST, port, ae_title=node, bind_address=(address, 0))


def sent(association: Association, data: Dataset, **command: Any) -> int | None:
    """The status that the node answers to an image; None where it answers nothing.

    Args:
        association: with the node.
        data: the image.
        **command: what the request says otherwise than the image does.
    """
    association._reactor_checkpoint.clear()
    until(lambda: association._is_paused)
    ask(association, data, **command)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return None if answer is None else answer.Status


def ask(association: Association, data: Dataset, **command: Any) -> None:
    """Send an image, and wait for nothing."""
    context = next(c for c in association.accepted_contexts if c.abstract_syntax == CTImageStorage)
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID = command.get("sop_class", CTImageStorage)
    request.AffectedSOPInstanceUID = command.get("instance", data.SOPInstanceUID)
    request.DataSet = BytesIO(command.get("encoded") or encode(data, False, True))
    association.dimse.send_msg(request, context.context_id)


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for what happens soon."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def raw(at: Door) -> socket.socket:
    """A bare connection."""
    connection = socket.create_connection((HOST, at.port))
    connection.settimeout(60)
    return connection


def ended(connection: socket.socket) -> bytes:
    """What the node still says on a connection before it closes it."""
    said = b""
    try:
        while part := connection.recv(4096):
            said += part
    except ConnectionError:
        pass
    return said
