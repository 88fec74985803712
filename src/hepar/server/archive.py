"""An archive is asked for new CT studies, and each comes to the spool when it no longer grows.

An archive has no word for "this study is complete" either: it is complete when the number of its CT
images has not changed for a while. What is here already is told from the spool, so that nothing has
to be remembered over a restart.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from hepar.provenance import hepar_version
from hepar.server.desk import Desk
from hepar.server.dicomweb import Dicomweb, Item, ListedStudy, values
from hepar.server.retries import PeerFailed, Retries, repeated
from hepar.server.settings import Settings
from hepar.server.spool import Spool, check_room, image_name, key_of

LOG = logging.getLogger(__name__)
_SENDER = "archive"
_MAX_IMAGE_BYTES = 2**31
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_EVIDENCE = ("0040A375", "00081115", "00081199", "00081155")
_SERIAL, _VERSIONS = "00181000", "00181020"


@contextmanager
def fetching(settings: Settings, folder: Path, desk: Desk) -> Iterator[None]:
    """Fetch new studies from the archive while the body runs.

    Args:
        settings: of the server; `pacs` is the archive.
        folder: of the server.
        desk: studies go to its spool.

    Raises:
        UsageError: `E_SERVE_SETTINGS`, `E_SERVE_PACKAGES`.
    """
    assert settings.pacs is not None
    with Dicomweb(settings.pacs, folder) as web:
        source = Source(web, desk.spool, settings, desk.model_sha256)
        with repeated(source.step, settings.pacs.poll_s, "W_PACS"):
            yield


@dataclass(frozen=True)
class _Seen:
    """How many CT images a study had, by series, and since when."""

    counts: Mapping[str, int]
    since: float


class Source:
    """An archive as a source of studies. For one thread.

    Args:
        web: the archive.
        spool: where studies go.
        settings: of the server: how far back studies are fetched, and when one is complete.
        model_sha256: of the model that is to segment them.
    """

    def __init__(self, web: Dicomweb, spool: Spool, settings: Settings, model_sha256: str) -> None:
        assert settings.pacs is not None
        self._web, self._spool, self._days = web, spool, settings.pacs.days
        self._quiet_s, self._model = settings.quiet_s, model_sha256
        self._retries = Retries(settings.pacs.poll_s)
        self._seen: dict[str, _Seen] = {}
        self._settled: dict[str, tuple[int | None, Mapping[str, int]]] = {}
        self._held = set[str]()

    def step(self) -> None:
        """Ask once, and fetch what is complete.

        Raises:
            PeerFailed: the archive is out of order.
        """
        since = date.today() - timedelta(days=self._days)
        studies = self._web.ct_studies(f"{since:%Y%m%d}")
        listed = {study.uid for study in studies}
        self._seen = {uid: seen for uid, seen in self._seen.items() if uid in listed}
        self._settled = {uid: known for uid, known in self._settled.items() if uid in listed}
        for uid in self._held - listed:  # what it still had of them is not to be had
            self._spool.broke_off(uid, _SENDER)
        self._held &= listed
        for study in studies:
            key = key_of(study.uid)
            if not self._retries.due(key):
                continue
            try:
                self._look_at(study)
                self._retries.succeeded(key)
            except PeerFailed as error:
                if error.down:
                    raise
                pause = self._retries.failed(key)
                LOG.warning("W_PACS: study %s: %s; again in %.3g s", key, error, pause)

    def _look_at(self, study: ListedStudy) -> None:
        instances, settled = self._settled.get(study.uid, (None, None))
        if instances is not None and instances == study.instances:
            return
        counts = {
            series: len(self._web.instances(study.uid, series)) if count is None else count
            for series, count in self._web.series(study.uid, "CT").items()
        }
        now, seen = time.monotonic(), self._seen.get(study.uid)
        if seen is None or seen.counts != counts:
            self._seen[study.uid] = seen = _Seen(counts, now)
            self._hold(study.uid, sum(counts.values()))
        if not counts or counts == settled or now - seen.since < self._quiet_s:
            return
        wanted = {series: self._web.instances(study.uid, series) for series in counts}
        if {series: len(uids) for series, uids in wanted.items()} != counts:
            del self._seen[study.uid]  # it has grown meanwhile
        elif self._have(study.uid, wanted):
            self._settled[study.uid] = study.instances, counts

    def _hold(self, study: str, images: int) -> None:
        """Let a study wait of which fewer images are here than the archive has."""
        arrival = self._spool.arrival(study)
        if arrival is not None and sum(1 for _ in arrival.folder.iterdir()) < images:
            self._spool.begin(study, _SENDER)
            self._held.add(study)
            self._settled.pop(study, None)

    def _have(self, study: str, wanted: Mapping[str, Collection[str]]) -> bool:
        """See that these images are here, by series; False while somebody else sends of it."""
        arrival = self._spool.arrival(study)
        if arrival is not None and arrival.sending > (study in self._held):
            return False
        here = {path.name for path in arrival.folder.iterdir()} if arrival is not None else set()
        missing = {
            series: uids
            for series, uids in wanted.items()
            if any(image_name(uid) not in here for uid in uids)
        }
        if arrival is None and self._done_before(study, wanted):
            LOG.info("study %s holds our results of these images already", key_of(study))
        elif missing:
            with self._spool.temporary() as folder:
                folder.mkdir(mode=0o700)
                for series, uids in missing.items():
                    self._fetch(study, series, uids, folder)
                self._held.discard(study)
                self._spool.add(study, folder, _SENDER)
        elif arrival is not None and (arrival.lost or study in self._held):
            self._held.discard(study)
            self._spool.end(study, _SENDER)  # what its sender owed came from here, or another way
        return True

    def _fetch(self, study: str, series: str, uids: Collection[str], folder: Path) -> None:
        """Fetch a series, whole or not at all."""
        got = set[str]()
        with self._web.retrieve(study, series) as files:
            for number, pieces in enumerate(files):
                if number == len(uids):
                    raise PeerFailed("the archive sent more images than it listed")
                path = folder / "arriving"
                _write(path, pieces)
                told = _uids(path)
                if told[:2] != (study, series) or told[2] not in uids or told[2] in got:
                    raise PeerFailed("the archive sent an image that was not asked for")
                got.add(told[2])
                path.rename(folder / image_name(told[2]))
        if len(got) < len(uids):
            raise PeerFailed(f"the archive sent {len(got)} of {len(uids)} images")

    def _done_before(self, study: str, wanted: Mapping[str, Collection[str]]) -> bool:
        """Whether the archive has our results of these very images, by this model and version.

        A report names every image that it was made from. Images of the study that it does not name
        may be newer than it, so that the study is done again.
        """
        images = {uid for uids in wanted.values() for uid in uids}
        try:
            reports = [
                _evidence(item)
                for series in self._web.series(study, "SR")
                for item in self._web.metadata(study, series)
                if values(item, _SERIAL) == [self._model]
                and values(item, _VERSIONS) == [hepar_version()]
            ]
            masks = {
                uid for s in self._web.series(study, "SEG") for uid in self._web.instances(study, s)
            }
        except PeerFailed as error:
            if error.down:
                raise
            return False  # it costs no more than doing the study again
        return any(images <= evidence and masks & evidence for evidence in reports)


def _evidence(item: Item) -> set[str]:
    """SOPInstanceUIDs of everything that a report was made from."""
    items = [item]
    for tag in _EVIDENCE[:-1]:
        items = [found for one in items for found in values(one, tag) if isinstance(found, dict)]
    return {uid for one in items for uid in values(one, _EVIDENCE[-1]) if isinstance(uid, str)}


def _write(path: Path, pieces: Iterator[bytes]) -> None:
    length = 0
    with path.open("wb") as stream:
        for piece in pieces:
            length += len(piece)
            if length > _MAX_IMAGE_BYTES:
                raise PeerFailed("the archive sent an image that is far too large")
            check_room(path.parent)
            stream.write(piece)


def _uids(path: Path) -> tuple[str, ...]:
    """UIDs of study, series and instance of a file."""
    import pydicom

    try:
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_UIDS))
        return tuple(str(data[keyword].value) for keyword in _UIDS)
    except Exception:  # pydicom raises many types on malformed bytes
        raise PeerFailed("the archive sent something that is no DICOM image") from None
