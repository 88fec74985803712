"""How many CT images a second the DICOM node takes in, beside two other receivers.

    .venv/bin/python benchmarks/node_throughput.py -o benchmarks/node_throughput.json
    .venv/bin/python benchmarks/node_throughput.py --associations 1 --size 512

As many of dcmtk's `storescu` as there are associations send at once, each a study of its own, to a
receiver on the loopback: hepar's node, whose images are on the disk (fsync) before they are
acknowledged; the same with pynetdicom alone, as its storescp application keeps them, without and
with fsync; and dcmtk's `storescp --fork`, without. Receivers take turns. Timed is from the start of
the first sender to the end of the last. Counted are the senders that failed, and the images that
are there afterwards. The load of the machine before each is listed, for its other work counts too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RECEIVERS = ("hepar", "pynetdicom", "pynetdicom fsync", "dcmtk")


def write_studies(folder: Path, studies: int, images: int, size: int) -> None:
    """Studies of noise, a folder each."""
    sys.path[:0] = [str(ROOT / "tests" / "hazards")]
    from synthetic_dicom import Place, ct_slice, save

    noise = np.random.default_rng(0).normal(0, 20, (8, size, size)).astype(np.int16)
    place = Place((0.0, 0.0, 0.0), matrix=(size, size))
    for study in range(studies):
        uid = f"1.2.826.0.1.3680043.8.498.{study + 1}"
        slices = (ct_slice(k, place, study=uid, hu=noise[k % 8]) for k in range(images))
        save(slices, folder / f"{study:03d}")


def receive(receiver: str, port: int, folder: Path, associations: int) -> None:
    """Be a receiver until SIGTERM."""
    if receiver == "dcmtk":
        command = ["storescp", "--fork", "-od", str(folder), "-aet", "HEPAR", str(port)]
        os.execvp(command[0], command)
    if receiver == "hepar":
        from hepar.server.node import listening
        from hepar.server.settings import Node, Peer
        from hepar.server.spool import Spool

        peers = (Peer(ae_title="BENCH", host="127.0.0.1"),)
        settings = Node(port=port, peers=peers, max_associations=associations)
        with listening(settings, Spool(folder), lambda line: None):
            signal.sigwait({signal.SIGTERM})
        return
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    def keep(event: Any) -> int:
        with (folder / f"{event.request.AffectedSOPInstanceUID}.dcm").open("wb") as stream:
            stream.write(event.encoded_dataset())
            if receiver.endswith("fsync"):
                stream.flush()
                os.fsync(stream.fileno())
        return 0

    entity = AE("HEPAR")
    entity.maximum_associations = 2 * associations  # who has left counts for a while
    entity.supported_contexts = AllStoragePresentationContexts
    server = entity.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)]
    )
    signal.sigwait({signal.SIGTERM})
    server.shutdown()


def measure(receiver: str, studies: Path, associations: int) -> dict[str, Any]:
    """One receiver, once."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=studies.parent) as place:
        port = _free_port()
        arguments = ["--receive", receiver, "--port", str(port), "--folder", place]
        command = [sys.executable, __file__, "--associations", str(associations), *arguments]
        server = subprocess.Popen(command)
        _await(port)
        started = time.perf_counter()
        senders = [
            subprocess.Popen(
                ["storescu", "-aet", "BENCH", "-aec", "HEPAR", "127.0.0.1", str(port), "+sd", one],
                env={**os.environ, "TCP_NODELAY": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for one in sorted(studies.iterdir())
        ]
        failed = sum(sender.wait() != 0 for sender in senders)
        seconds = time.perf_counter() - started
        server.send_signal(signal.SIGTERM)
        server.wait()
        images = Path(place).glob("inbox/*/*.dcm" if receiver == "hepar" else "*.*")
        kept = sum(path.stat().st_size > 0 for path in images)
    return {
        "receiver": receiver,
        "seconds": seconds,
        "images_per_s": kept / seconds,
        "kept": kept,
        "senders_failed": failed,
        "load_before": load,
    }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _await(port: int) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(f"nothing listens at {port}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--associations", type=int, default=16)
    parser.add_argument("--images", type=int, default=300, help="of each association")
    parser.add_argument("--size", type=int, default=64, help="of the matrix")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--receivers", nargs="+", choices=RECEIVERS, default=RECEIVERS)
    parser.add_argument("--receive", choices=RECEIVERS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.receive:
        if given.receive != "dcmtk":  # it would inherit the mask
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        receive(given.receive, given.port, given.folder, given.associations)
        return
    with tempfile.TemporaryDirectory(dir=ROOT / "benchmarks") as place:
        studies = Path(place) / "studies"
        studies.mkdir()
        write_studies(studies, given.associations, given.images, given.size)
        runs = []
        for _ in range(given.rounds):
            for receiver in given.receivers:
                runs.append(measure(receiver, studies, given.associations))
                print(json.dumps(runs[-1]), flush=True)
    summary = {
        receiver: statistics.median(r["images_per_s"] for r in runs if r["receiver"] == receiver)
        for receiver in given.receivers
    }
    document = {
        "machine": {"cpu": platform.processor(), "cores": os.cpu_count()},
        "associations": given.associations,
        "images_each": given.images,
        "matrix": given.size,
        "images_per_s_median": summary,
        "runs": runs,
    }
    print(json.dumps(summary, indent=2))
    if given.out:
        given.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
