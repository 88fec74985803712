"""Arrays in chunks: any basic slice is that of the array, and costs the chunks that it meets."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from fake_systems import spec_3d
from hepar.data.cache import ArrayCache
from hepar.data.chunk_file import ChunkedArray, is_whole, open_chunks, write_chunks
from hepar.data.patches import draw_patch, whole_case
from hepar.data.prepared_case import PreparedCase, foreground_voxels, slice_contents
from hepar.data.sampling import collate
from hepar.errors import ResourceExhausted
from hepar.recipe_data import PatchSettings

TYPES = ("bool", "i1", "u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")


def never() -> None:
    raise AssertionError("nothing is damaged")


def opened(path: Path, arrays: dict[str, np.ndarray]):
    write_chunks(path, arrays)
    found = open_chunks(path, never)
    assert found is not None
    return found.arrays


def bodies(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5),
        arrays_of.arrays(
            st.sampled_from(TYPES), arrays_of.array_shapes(min_side=0, min_dims=0, max_dims=5)
        ),
        max_size=4,
    )
)
def test_oracle_what_is_written_is_what_is_read(tmp_path_factory, arrays):
    path = tmp_path_factory.mktemp("f") / "a.chunks"
    found = opened(path, arrays)
    assert is_whole(path)
    assert found.keys() == arrays.keys()
    for name, value in found.items():
        assert isinstance(value, ChunkedArray) == (arrays[name].ndim >= 3)
        assert (value.dtype, value.shape) == (arrays[name].dtype, arrays[name].shape)
        assert np.asarray(value).tobytes() == arrays[name].tobytes()
        assert value.nbytes == arrays[name].nbytes


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    whole = bodies((2, 70, 130, 65))
    return whole, opened(tmp_path_factory.mktemp("f") / "a.chunks", {"hu": whole})["hu"]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_oracle_basic_slices_are_those_of_numpy(large, data):
    whole, chunked = large
    key = data.draw(arrays_of.basic_indices(whole.shape, allow_newaxis=False))
    steps = [k.step for k in (key if isinstance(key, tuple) else (key,)) if isinstance(k, slice)]
    if any(step not in (None, 1) for step in steps):
        with pytest.raises(IndexError, match="step"):
            chunked[key]
    else:
        got = chunked[key]
        np.testing.assert_array_equal(got, whole[key])
        assert got.shape == whole[key].shape


@pytest.mark.parametrize("key", [2, -3, (0, 70), (0,) * 5, (..., ...), [0, 1], None, True, "a"])
def test_property_what_is_no_basic_slice_is_refused(key, large):
    with pytest.raises(IndexError):
        large[1][key]


def test_closed_form_a_patch_of_128_costs_less_than_3_4_of_its_bytes(tmp_path):
    """27 chunks of 64^3 voxels at most, 3.375 patches, for every array of a case."""
    shape = (2, 200, 210, 192)
    rng = np.random.default_rng(0)
    hu = np.broadcast_to(np.arange(shape[-1], dtype=np.int16), shape)
    arrays = opened(
        tmp_path / "a.chunks",
        {"hu": hu, "label": np.zeros(shape[1:], np.uint8), "liver": np.zeros(shape[1:], bool)},
    )
    most = 0.0
    places = [(0, 0, 0), (1, 1, 1), (63, 63, 63), (64, 64, 32)]
    places += [tuple(int(rng.integers(n - 127)) for n in shape[1:]) for _ in range(12)]
    for place in places:
        box = tuple(slice(at, at + 128) for at in place)
        for name, key in (("hu", (1, *box)), ("label", box), ("liver", box)):
            before = arrays[name].bytes_decompressed
            patch = arrays[name][key]
            cost = (arrays[name].bytes_decompressed - before) / patch.nbytes
            assert 1.0 <= cost <= 3.4
            most = max(most, cost)
    assert most == 3.375  # the chunks at (1, 1, 1) are whole ones
    before = arrays["hu"].bytes_decompressed
    arrays["hu"][0, :64, 64:128, :64]
    assert arrays["hu"].bytes_decompressed - before == 64**3 * 2


def test_closed_form_a_drawn_patch_unpacks_no_more_than_its_chunks(tmp_path):
    """Where to cut is known without a look at the volumes, and each of them is read once."""
    shape = (140, 200, 150)
    label = np.zeros(shape, np.uint8)
    label[20:120, 30:180, 30:120], label[60:64, 90:99, 90:99] = 1, 2
    arrays = {"hu": bodies((1, *shape)), "label": label, "liver": label > 0}
    found = opened(tmp_path / "a.chunks", arrays)
    case = PreparedCase(
        case_id="a",
        present=np.ones(1, bool),
        spacing_mm=(2.47, 1.9, 1.9),
        contents=slice_contents(label, label > 0),
        lesions=np.array([[62, 94, 94]], np.int32),
        foreground=foreground_voxels(label),
        **found,
    )
    spec = spec_3d(patch=(128, 128, 128), needs_liver=True)
    settings = PatchSettings(foreground_fraction=0.5)
    for seed in range(6):
        before = [found[name].bytes_decompressed for name in arrays]
        draw_patch(case, spec, settings, np.random.default_rng(seed))
        for name, were in zip(arrays, before, strict=True):
            unpacked = found[name].bytes_decompressed - were
            assert 1.0 <= unpacked / (128**3 * found[name].dtype.itemsize) <= 3.4


def test_property_threads_read_one_array_at_once(large):
    whole, chunked = large
    wrong, before = [], chunked.bytes_decompressed

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(15):
            z, y, x = (int(rng.integers(n)) for n in whole.shape[1:])
            part = (seed % 2, slice(z, z + 40), slice(y, y + 40), slice(x, x + 40))
            if not np.array_equal(chunked[part], whole[part]):
                wrong.append(part)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    chunked[...]
    assert chunked.bytes_decompressed - before > whole.nbytes


def test_property_samples_of_a_chunked_case_are_those_of_one_in_memory(tmp_path):
    spec = spec_3d(patch=(40, 40, 40), class_names=("liver", "tumor"), needs_liver=True)
    hu = bodies((len(spec.phases), 66, 80, 90))
    label = np.zeros(hu.shape[1:], np.uint8)
    label[10:60, 10:70, 10:80], label[20:24, 66:69, 66:69] = 1, 2
    liver = label > 0
    arrays = {"hu": hu, "label": label, "liver": liver}
    memory = PreparedCase(
        case_id="a",
        present=np.ones(len(spec.phases), bool),
        spacing_mm=(2.0, 1.0, 1.0),
        contents=slice_contents(label, liver),
        lesions=np.array([[21, 67, 67]], np.int32),
        foreground=foreground_voxels(label),
        **arrays,
    )
    kept = ArrayCache(tmp_path).get_chunked({"k": 1}, lambda: arrays)
    assert all(isinstance(value, ChunkedArray) for value in kept.values())
    chunked = replace(memory, **kept)
    wanted = PatchSettings(), PatchSettings(foreground_fraction=0.5)
    for seed in range(12):
        drawn = [
            draw_patch(case, spec, wanted[seed % 2], np.random.default_rng(seed))
            for case in (memory, chunked)
        ]
        for name in ("image", "label", "liver", "visible"):
            np.testing.assert_array_equal(getattr(drawn[0], name), getattr(drawn[1], name))
        collate(drawn)
    pieces = [whole_case(case, spec).pieces for case in (memory, chunked)]
    for mine, theirs in zip(*pieces, strict=True):
        np.testing.assert_array_equal(mine.image, theirs.image)
        np.testing.assert_array_equal(mine.label, theirs.label)
    assert torch.is_tensor(collate(pieces[1])[0].image)


def test_property_without_a_folder_chunked_arrays_are_plain_ones():
    cache = ArrayCache(None)
    made = []

    def make():
        made.append(1)
        return {"hu": bodies((1, 4, 5, 6))}

    for _ in range(2):
        assert isinstance(cache.get_chunked({"k": 1}, make)["hu"], np.ndarray)
    assert len(made) == 1


def test_property_a_full_disk_is_a_typed_error(tmp_path):
    """What a file may hold at most stands in for a disk without room."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(ResourceExhausted) as caught:
            write_chunks(tmp_path / "a.chunks", {"hu": bodies((1, 40, 50, 60))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (caught.value.code, caught.value.exit_code) == ("E_OUTPUT_WRITE", 12)
    assert not list(tmp_path.iterdir())
