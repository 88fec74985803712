"""Results go back: SEG and SR of a study to the archive, or to a DICOM node, once.

    delivered/ID           what of the result of a study its receiver has

Their UIDs follow from study, model, input and result, so that an object that is sent again, because
we were killed before that was written down, changes nothing where it is.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hepar.batch.job import read_record
from hepar.batch.studies import Entry, listing_sha256
from hepar.io.atomic import atomic_path
from hepar.server.desk import Case, Desk
from hepar.server.dicomweb import Dicomweb
from hepar.server.receivers import Archive, DicomNode, Receiver, Thing
from hepar.server.retries import PeerFailed, Retries, repeated
from hepar.server.settings import Settings
from hepar.server.spool import key_of

LOG = logging.getLogger(__name__)
_EVERY_S = 2.0
_PAUSE_S = 10.0


@contextmanager
def delivering(
    settings: Settings, folder: Path, desk: Desk, progress: Callable[[str], None]
) -> Iterator[None]:
    """Send results to their receiver while the body runs.

    Args:
        settings: of the server; `results_to` names the receiver.
        folder: of the server.
        desk: knows the results.
        progress: told of each study that was sent.

    Raises:
        UsageError: `E_SERVE_SETTINGS`, `E_SERVE_PACKAGES`.
    """
    assert settings.results_to is not None
    with _receiver(settings, folder) as receiver:
        delivery = Delivery(receiver, settings.results_to, folder, desk, progress)
        with repeated(delivery.step, _EVERY_S, "W_NOT_DELIVERED"):
            yield


@contextmanager
def _receiver(settings: Settings, folder: Path) -> Iterator[Receiver]:
    if settings.results_to == "pacs":
        assert settings.pacs is not None
        with Dicomweb(settings.pacs, folder) as web:
            yield Archive(web)
    else:
        assert settings.node is not None
        peers = (peer for peer in settings.node.peers if peer.ae_title == settings.results_to)
        yield DicomNode(settings.node.ae_title, next(peer for peer in peers if peer.port))


class Delivery:
    """The way of results to their receiver. For one thread.

    Args:
        receiver: of all of them.
        name: as `results_to` names it.
        folder: of the server.
        desk: knows the results.
        progress: told of each study that was sent.
    """

    def __init__(
        self,
        receiver: Receiver,
        name: str,
        folder: Path,
        desk: Desk,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._receiver, self._name, self._desk, self._progress = receiver, name, desk, progress
        self._inbox, self._marks = desk.spool.inbox, folder / "delivered"
        self._marks.mkdir(mode=0o700, exist_ok=True)
        self._retries = Retries(_PAUSE_S)
        self._ended: dict[str, float] = {}

    def step(self) -> None:
        """Send what is done, and not there.

        Raises:
            PeerFailed: the receiver is out of order.
        """
        for mark in self._marks.iterdir():
            if not (self._desk.results / mark.name).is_dir():
                mark.unlink(missing_ok=True)
        for case in self._desk.cases():
            ours = case.door == "dicom" and case.state == "done"
            if not ours or self._ended.get(case.id) == case.changed:
                continue
            if self._retries.due(case.id):
                with suppress(FileNotFoundError):  # the desk has just removed it
                    self._deliver(case)

    def _deliver(self, case: Case) -> None:
        things = self._things(case)
        if things is None:
            return
        if not things:
            self._ended[case.id] = case.changed
            self._desk.note_delivery(case, "failed", "the study's headers allow no DICOM output")
            return
        there = self._there(case)
        owed = [thing for thing in things if key_of(thing.instance) not in there]
        failed = []
        sending = self._receiver.send(owed) if owed else iter(())
        try:
            for thing, failure in zip(owed, sending, strict=True):
                if failure is None:
                    there = there | {key_of(thing.instance)}
                    self._remember(case, there)
                else:
                    failed.append(f"{thing.file.name}: {failure}")
        except PeerFailed as error:
            self._desk.note_delivery(case, "waiting", str(error))
            raise
        if failed:
            pause = self._retries.failed(case.id)
            self._desk.note_delivery(case, "failed", "; ".join(failed))
            said = f"study {case.id}: {'; '.join(failed)}; again in {pause:.3g} s"
            LOG.warning("W_NOT_DELIVERED: %s", said)
            return
        self._retries.succeeded(case.id)
        self._ended[case.id] = case.changed
        self._desk.note_delivery(case, "sent")
        if owed:
            self._progress(f"{case.id}: sent to {self._name}")

    def _things(self, case: Case) -> list[Thing] | None:
        """The DICOM objects of a result; None where it is not made from the images as they are."""
        place = self._desk.results / case.id
        record = read_record(place)
        entry = Entry(case.id, case.id.encode(), self._inbox / case.id)
        if record is None or record["key"]["inputs"] != listing_sha256(entry):
            return None
        return [_thing(place / name) for name in sorted(record["files"]) if name.endswith(".dcm")]

    def _there(self, case: Case) -> frozenset[str]:
        """Hashes of the UIDs that the receiver is known to have."""
        try:
            mark = json.loads((self._marks / case.id).read_bytes())
            return frozenset(mark["instances"] if mark["receiver"] == self._name else ())
        except (OSError, ValueError, TypeError, KeyError):
            return frozenset()

    def _remember(self, case: Case, there: frozenset[str]) -> None:
        mark = {"receiver": self._name, "instances": sorted(there)}
        with atomic_path(self._marks / case.id) as temporary:
            temporary.write_text(json.dumps(mark), encoding="utf-8")


def _thing(file: Path) -> Thing:
    import pydicom

    data: Any = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SOPClassUID"])
    meta = data.file_meta
    return Thing(
        file,
        str(meta.MediaStorageSOPClassUID),
        str(meta.MediaStorageSOPInstanceUID),
        str(meta.TransferSyntaxUID),
    )
