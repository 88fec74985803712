"""Arrays in a file: what is written is what is mapped, and only what is looked at is read."""

from __future__ import annotations

import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from safetensors.numpy import load_file

from fake_systems import spec_2d, spec_3d
from hepar.data import array_file, cache
from hepar.data.array_file import arrays_hash, map_arrays, stamp, write_arrays
from hepar.data.cache import ArrayCache
from hepar.data.patches import draw_patch, whole_case
from hepar.data.prepared_case import PreparedCase, foreground_voxels, slice_contents
from hepar.data.sampling import collate
from hepar.errors import ResourceExhausted
from hepar.recipe_data import PatchSettings

TYPES = ("bool", "i1", "u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")


def made(key: int, shape: tuple[int, ...] = (3, 4, 5)) -> dict[str, np.ndarray]:
    hu = np.random.default_rng(key).integers(-1000, 1000, shape).astype(np.int16)
    return {"hu": hu, "liver": hu > 0, "lesions": np.zeros((0, 3), np.int32)}


def never() -> dict[str, np.ndarray]:
    raise AssertionError("it was there already")


def verified(monkeypatch) -> list[str]:
    """The files read from end to end, as they are."""
    digest, files = array_file._digest, []

    def noted(file, places):
        files.append(Path(file.name).name)
        return digest(file, places)

    monkeypatch.setattr(array_file, "_digest", noted)
    return files


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5),
        arrays_of.arrays(st.sampled_from(TYPES), arrays_of.array_shapes(min_side=0, max_dims=4)),
        max_size=4,
    )
)
def test_oracle_what_is_written_is_what_safetensors_and_a_map_read(tmp_path_factory, arrays):
    path = tmp_path_factory.mktemp("f") / "a.safetensors"
    write_arrays(path, arrays)
    found = map_arrays(path)
    assert found is not None
    theirs = load_file(path)
    assert found.arrays.keys() == theirs.keys() == arrays.keys()
    for name, value in found.arrays.items():
        assert value.tobytes() == theirs[name].tobytes() == arrays[name].tobytes()
        assert (value.dtype, value.shape) == (theirs[name].dtype, arrays[name].shape)
        assert value.size == 0 or not value.flags.writeable
    assert arrays_hash(found.arrays) == arrays_hash(arrays)


def test_property_a_file_is_verified_and_sliced_without_being_in_memory(tmp_path):
    path = tmp_path / "a.safetensors"
    whole = made(0, (64, 256, 256))["hu"]  # 8 MiB
    write_arrays(path, {"hu": whole})
    tracemalloc.start()
    try:
        found = map_arrays(path)
        piece = found.arrays["hu"][40].astype(np.float32)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(piece, whole[40])
    assert most < 2 * 2**20


@pytest.mark.parametrize("after", [-1, 1, 4096])
def test_property_a_file_of_another_length_is_no_use(after, tmp_path):
    path = tmp_path / "a.safetensors"
    write_arrays(path, made(0))
    good = path.read_bytes()
    path.write_bytes(good[:after] if after < 0 else good + b"\0" * after)
    assert map_arrays(path) is None


@pytest.mark.parametrize(
    "header", [b"[]", b"{}", b'{"__metadata__": 3}', b'{"a": {}}', b"\xff", b'{"__metadata__": {}']
)
def test_property_a_header_of_nonsense_is_no_use(header, tmp_path):
    path = tmp_path / "a.safetensors"
    for length in (len(header), 2**63):
        path.write_bytes(length.to_bytes(8, "little") + header)
        assert map_arrays(path) is None


def test_property_a_process_verifies_a_file_once(tmp_path, monkeypatch):
    ArrayCache(tmp_path).get({"k": 1}, lambda: made(1))
    files = verified(monkeypatch)
    ours = ArrayCache(tmp_path)
    for _ in range(3):
        np.testing.assert_array_equal(ours.get({"k": 1}, never)["hu"], made(1)["hu"])
    assert len(files) == 1


def test_property_maps_beyond_the_most_are_opened_again_unverified(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MOST_MAPS", 2)
    ours = ArrayCache(tmp_path)
    for key in range(6):
        ours.get({"k": key}, lambda key=key: made(key))
    files = verified(monkeypatch)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    for _ in range(3):
        for key in range(6):
            np.testing.assert_array_equal(ours.get({"k": key}, never)["hu"], made(key)["hu"])
    assert files == []
    assert before is None or len(os.listdir("/proc/self/fd")) <= before


def test_property_arrays_outlive_the_replacement_of_their_file(tmp_path):
    path = tmp_path / "a.safetensors"
    write_arrays(path, made(1))
    old = map_arrays(path)
    write_arrays(path, made(2))
    np.testing.assert_array_equal(old.arrays["hu"], made(1)["hu"])
    assert stamp(path) != old.stamp
    new = map_arrays(path, old.stamp)
    np.testing.assert_array_equal(new.arrays["hu"], made(2)["hu"])


def test_property_a_disk_that_gives_back_something_else_is_a_typed_error(tmp_path, monkeypatch):
    def loses_a_byte(path, arrays):
        write_arrays(path, arrays)
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))

    monkeypatch.setattr(cache, "write_arrays", loses_a_byte)
    with pytest.raises(ResourceExhausted) as caught:
        ArrayCache(tmp_path).get({"k": 1}, lambda: made(1))
    assert (caught.value.code, caught.value.exit_code) == ("E_OUTPUT_WRITE", 12)


@pytest.mark.parametrize("dims", [2, 3])
def test_property_samples_of_a_mapped_case_are_those_of_one_in_memory(dims, tmp_path):
    """Tensors of them too: PyTorch warns of arrays that cannot be written to."""
    spec = (
        spec_2d(patch=(16, 16))
        if dims == 2
        else spec_3d(patch=(4, 16, 16), class_names=("liver", "tumor"))
    )
    hu = np.random.default_rng(0).integers(-200, 300, (len(spec.phases), 6, 20, 24))
    label = np.zeros(hu.shape[1:], np.uint8)
    label[1:5, 4:16, 4:20], label[2:4, 6:9, 6:9] = 1, 2
    liver = label > 0
    memory = PreparedCase(
        case_id="a",
        hu=hu.astype(np.int16),
        present=np.ones(len(spec.phases), bool),
        label=label,
        liver=liver,
        spacing_mm=(2.0, 1.0, 1.0),
        contents=slice_contents(label, liver),
        lesions=np.array([[2, 7, 7]], np.int32),
        foreground=foreground_voxels(label),
    )
    names = ("hu", "present", "label", "liver", "contents", "lesions", "foreground")
    write_arrays(tmp_path / "a", {name: getattr(memory, name) for name in names})
    mapped = replace(memory, **map_arrays(tmp_path / "a").arrays)
    both = []
    for case in (memory, mapped):
        rng = np.random.default_rng(1)
        samples = [draw_patch(case, spec, PatchSettings(), rng) for _ in range(6)]
        pieces = whole_case(case, spec).pieces
        both.append([*collate(samples)[0].__dict__.values(), *collate(pieces)[0].__dict__.values()])
    tensors = [[t for t in found if isinstance(t, torch.Tensor)] for found in both]
    assert len(tensors[0]) >= 8
    assert all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))
