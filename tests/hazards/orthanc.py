"""A real archive for tests, Orthanc with DICOMweb on this machine, and a scanner beside it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
PATIENCE_S = 120.0
AE_TITLE = "ORTHANC"


class Orthanc:
    """An empty archive, from `__enter__` to `__exit__`.

    Args:
        folder: of its own.
        caller: AE title that it knows, and expects at `caller_port`.

    Attributes:
        url: of its DICOMweb root.
        port: of its DICOM door.
    """

    def __init__(self, folder: Path, caller: str = "HEPAR", caller_port: int = 11112) -> None:
        self.program = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
        if not (Path(self.program).exists() and PLUGIN.exists() and shutil.which("storescu")):
            pytest.skip("Orthanc, its DICOMweb or storescu is not installed: make system")
        self.folder = folder
        self.port, self._http = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self._http}/dicom-web"
        self._configuration = {
            "Name": "archive",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "Plugins": [str(PLUGIN)],
            "HttpPort": self._http,
            "DicomPort": self.port,
            "DicomAet": AE_TITLE,
            "AuthenticationEnabled": False,
            "RemoteAccessAllowed": False,
            "DicomModalities": {"hepar": [caller, "127.0.0.1", caller_port]},
            "DicomCheckModalityHost": True,
            "DicomAlwaysAllowStore": True,  # the scanner's title is not listed
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Orthanc:
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.folder / "orthanc.json"
        settings.write_text(json.dumps(self._configuration))
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, with what it held before."""
        with (self.folder / "orthanc.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.program, str(self.folder / "orthanc.json")],
                stdout=log,
                stderr=log,
                env={**os.environ, "TCP_NODELAY": "1"},
            )
        wait_for(lambda: self._answers(), "Orthanc to answer")

    def stop(self) -> None:
        """Stop it, and wait until its ports and its database are free."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(PATIENCE_S)
            self._process = None

    def ask(self, path: str, accept: str = "application/dicom+json") -> bytes:
        """What it answers over DICOMweb."""
        request = urllib.request.Request(f"{self.url}/{path}", headers={"Accept": accept})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=PATIENCE_S
        ) as response:
            return bytes(response.read())

    def listed(self, path: str) -> list[dict[str, Any]]:
        """What it answers to a question over DICOMweb."""
        found: list[dict[str, Any]] = json.loads(self.ask(path) or b"[]")
        return found

    def instances(self, study: str, modality: str) -> list[tuple[str, str]]:
        """SeriesInstanceUID and SOPInstanceUID of all objects of one modality."""
        return [
            (series, instance["00080018"]["Value"][0])
            for item in self.listed(f"studies/{study}/series?Modality={modality}")
            for series in item["0020000E"]["Value"]
            for instance in self.listed(f"studies/{study}/series/{series}/instances")
        ]

    def file(self, study: str, series: str, instance: str) -> bytes:
        """An object, as it was sent."""
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        body = self.ask(f"studies/{study}/series/{series}/instances/{instance}", accept)
        head = body.index(b"\r\n\r\n") + 4
        return body[head : body.rindex(b"\r\n--")]

    def receive(self, files: Sequence[Path]) -> None:
        """Have a scanner send these files to it."""
        subprocess.run(
            ["storescu", "-aec", AE_TITLE, "-aet", "CT1", "127.0.0.1", str(self.port)]
            + [str(path) for path in files],
            check=True,
            capture_output=True,
            timeout=PATIENCE_S,
            env={**os.environ, "TCP_NODELAY": "1"},
        )

    def pass_on(self) -> None:
        """Have it send all that it holds to the node that it calls `hepar`."""
        root = self.url.removesuffix("dicom-web")
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{root}studies", timeout=PATIENCE_S) as response:
            held = response.read()
        with direct.open(f"{root}modalities/hepar/store", held, timeout=PATIENCE_S):
            pass

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "orthanc.log").read_text()[-2000:]
        try:
            self.listed("studies?limit=1")
        except OSError:
            return False
        return True


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def wait_for(condition: Any, what: str, seconds: float = PATIENCE_S) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.2)
