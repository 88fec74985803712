"""What a run says about itself, and the deterministic switch."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from datetime import timedelta

import numpy as np
import pytest

from hepar.provenance import (
    Provenance,
    code_sha256,
    deterministic,
    package_versions,
    sha256_file,
    sha256_tree,
)


def test_closed_form_paths_shrink_to_names():
    command = ["/usr/bin/hepar", "segment", "/home/jane_doe/st udy", "-o", "out", "--phase"]
    record = Provenance.begin([*command, "art=/home/jane_doe/a.nii.gz", "--model=C:\\m\\lite"])
    shown = record.as_dict()["command"]
    assert "jane_doe" not in json.dumps(record.as_dict())
    assert shown.startswith("hepar segment 'st udy' -o out --phase art=a.nii.gz")


def test_property_the_stable_part_knows_no_time():
    first = Provenance.begin(["hepar"], seed=3, hashes={"model": "ab"})
    later = Provenance(("x",), "cpu", 3, {"model": "ab"}, first.started + timedelta(hours=1))
    assert first.stable() == later.stable()
    assert first.stable()["packages"]["numpy"] == np.__version__
    assert first.stable()["hashes"] == {"model": "ab"}


def test_closed_form_seconds():
    record = Provenance.begin(["hepar"])
    shown = record.as_dict(record.started + timedelta(seconds=61.5))
    assert shown["seconds"] == 61.5
    assert shown["started"] < shown["finished"]
    json.dumps(shown)


def test_oracle_file_hash(tmp_path):
    data = bytes(range(256)) * 9000  # more than one piece
    (tmp_path / "x").write_bytes(data)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def test_property_tree_hash_sees_names_and_bytes_but_not_order_or_byte_code(tmp_path):
    def make(name: str, files: dict[str, bytes]) -> str:
        for path, data in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(data)
        return sha256_tree(tmp_path / name)

    base = make("a", {"x.py": b"1", "d/y.py": b"2"})
    assert make("b", {"d/y.py": b"2", "x.py": b"1", "__pycache__/x.pyc": b"3", ".h": b""}) == base
    assert make("c", {"x.py": b"1", "d/z.py": b"2"}) != base
    assert make("d", {"x.py": b"1", "d/y.py": b"3"}) != base
    many = {f"{7 * k % 40:02d}.py": bytes([k]) for k in range(40)}
    digest = hashlib.sha256()
    for name in sorted(many):
        digest.update(f"{name}\0{hashlib.sha256(many[name]).hexdigest()}\n".encode())
    assert make("e", many) == digest.hexdigest()
    assert len(code_sha256()) == 64


def test_closed_form_an_absent_package_is_said_to_be_absent():
    assert package_versions(["numpy", "no-such-package-here"]) == {
        "numpy": np.__version__,
        "no-such-package-here": None,
    }


def test_property_import_is_torch_free():
    code = (
        "import sys; import hepar.provenance as p; p.Provenance.begin(['x']).as_dict();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def torch_restored(monkeypatch):
    import torch

    # Set and taken away again, so that monkeypatch puts the environment back as it was.
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield torch
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def test_property_the_same_seed_gives_the_same_numbers(torch_restored):
    torch = torch_restored

    def draw(seed: int) -> tuple[float, float, float]:
        deterministic(seed)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draw(5) == draw(5)
    assert all(a != b for a, b in zip(draw(5), draw(6), strict=True))
    assert torch.are_deterministic_algorithms_enabled()
