"""The bank of anatomies: nothing is lost, nothing damaged is used."""

from __future__ import annotations

import tempfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepar.data.phantom_bank import Bank, read_bank, write_bank
from hepar.errors import InputRefused
from hepar.phantom.anatomy import Anatomy, anatomy
from hepar.phantom.lesions import LesionSpec
from hepar.phantom.scanner import paint


@pytest.fixture(scope="module")
def bodies() -> list[Anatomy]:
    return [anatomy(seed, shape=(8, 40, 48), spacing_mm=(24, 9, 9)) for seed in (4, 5)]


@pytest.fixture(scope="module")
def path(bodies, tmp_path_factory) -> Path:
    return write_bank(tmp_path_factory.mktemp("bank") / "a.bank", bodies)


def assert_same(a: Anatomy, b: Anatomy) -> None:
    for field in fields(Anatomy):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)
        else:
            assert x == y, field.name


def made_up(rng: np.random.Generator, shape: tuple[int, int, int], codes: int, mixed: bool):
    """Noise for an anatomy: every array on its own, so that nothing can be inferred."""
    spec = LesionSpec(
        id=1,
        type="other",
        kind="other",
        center_mm=(0.1, 1 / 3, -2.5),
        radii_mm=(4.0, 5.0, 6.0),
        shape_seed=7,
        irregularity=0.1,
        rim_mm=1.0,
        traits=("fluid",),
    )

    def draw(high: int, dtype: type) -> np.ndarray:
        return rng.integers(0, high, shape).astype(dtype)

    body = Anatomy(
        tissue=draw(min(codes, 256), np.uint8),
        liver=draw(2, np.bool_),
        instances=draw(min(codes, 256), np.uint8),
        parts=draw(8, np.uint8),
        lesions=(spec,),
        spacing_mm=(2.5, 1.4, 1.4),
        texture_seed=3,
        origin_mm=(0.1, 0.2, 0.3),
    )
    if mixed:
        second, share = draw(codes, np.uint16), draw(3, np.uint8)
        body = replace(body, second=second, share=share, cavity=draw(2, np.bool_))
    return body


@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    codes=st.sampled_from([1, 3, 40, 65536]),
    mixed=st.booleans(),
)
def test_property_any_anatomy_comes_back_bit_for_bit(seed, shape, codes, mixed):
    body = made_up(np.random.default_rng(seed), shape, codes, mixed)
    with tempfile.TemporaryDirectory() as folder:
        path = write_bank(Path(folder) / "a.bank", [body])
        assert_same(read_bank(path)[0], body)


def test_property_a_read_anatomy_is_painted_like_the_original(bodies, path):
    bank = read_bank(path)
    assert len(bank) == 2
    for original, read in zip(bodies, bank, strict=True):
        assert_same(read, original)
    a = paint(bodies[1], 3, phases=("ART",), misalignment_mm=2.0)
    b = paint(bank[-1], 3, phases=("ART",), misalignment_mm=2.0)
    np.testing.assert_array_equal(a.hu["ART"], b.hu["ART"])
    assert a.times_s == b.times_s


def test_property_a_slice_is_a_smaller_bank_and_an_index_is_checked(bodies, path):
    last = read_bank(path)[1:]
    assert isinstance(last, Bank)
    assert len(last) == 1
    assert_same(last[0], bodies[1])
    with pytest.raises(IndexError):
        read_bank(path)[2]


def test_property_the_same_anatomies_give_the_same_bytes(bodies, path, tmp_path):
    again = write_bank(tmp_path / "b.bank", iter(bodies))
    assert again.read_bytes() == path.read_bytes()


def test_errors_a_flipped_byte_is_refused_wherever_it_is(path, tmp_path):
    data = path.read_bytes()
    copy = tmp_path / "a.bank"
    for at in np.random.default_rng(0).integers(60, len(data) - 400, 12):
        changed = bytearray(data)
        changed[at] ^= 16
        copy.write_bytes(changed)
        with pytest.raises(InputRefused) as caught:
            list(read_bank(copy))
        assert caught.value.code == "E_BANK"
        assert "altered" in caught.value.message


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_errors_a_truncated_bank_is_refused_when_it_is_opened(kept, path, tmp_path):
    data = path.read_bytes()
    copy = tmp_path / "a.bank"
    copy.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(InputRefused) as caught:
        read_bank(copy)
    assert caught.value.code == "E_BANK"
    assert "Write it again" in caught.value.remedy


def test_errors_a_missing_file_and_another_zip_are_no_banks(tmp_path):
    import zipfile

    with pytest.raises(InputRefused, match="cannot be read"):
        read_bank(tmp_path / "none.bank")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("000000.xz", b"text")
    with pytest.raises(InputRefused, match="version"):
        read_bank(tmp_path / "other.zip")


def test_errors_a_failing_writer_leaves_no_file(bodies, tmp_path):
    def broken():
        yield bodies[0]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        write_bank(tmp_path / "a.bank", broken())
    assert list(tmp_path.iterdir()) == []
