"""What a NIfTI file may do to its reader, one test or more a case of `docs/hazards.md`."""

from __future__ import annotations

import gzip
import resource
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nifti_phantom import AFFINE, MARKER_HU, MARKER_MM, SHAPE, expected, image, saved, voxels

from hepar.arguments import stated_phases
from hepar.errors import HeparError, InputRefused, UsageError
from hepar.io.nifti import read_ct, read_label
from hepar.resampling import resample_lattice
from hepar.stages.read import read_study
from hepar.study import Phase, Study

GIB = 2**30


def read_right(path: Path) -> Study:
    """The study of one file, every voxel of which has the HU of the place where it lies."""
    study = read_study(path)
    (series,) = study.series
    np.testing.assert_array_equal(series.volume.array, expected(series.volume.grid))
    return study


def refusal(path: Path, code: str) -> InputRefused:
    """How a file is refused."""
    with pytest.raises(InputRefused) as caught:
        read_study(path)
    assert caught.value.code == code
    assert caught.value.exit_code == 10
    assert caught.value.remedy
    return caught.value


def edited(path: Path, change: Callable[[bytearray], object]) -> Path:
    """The file with its inflated bytes changed."""
    data = bytearray(gzip.decompress(saved(path).read_bytes()))
    change(data)
    path.write_bytes(gzip.compress(bytes(data)))
    return path


def put(offset: int, layout: str, *values: float) -> Callable[[bytearray], object]:
    """Write values into a header."""
    return lambda data: struct.pack_into(layout, data, offset, *values)


def warned(study: Study, code: str) -> bool:
    return any(w.startswith(f"{code}: ") for w in study.warnings)


def test_property_NI01_qform_and_sform_that_differ_are_refused(tmp_path):
    mirrored = AFFINE.copy()
    mirrored[0] *= -1
    made = image()
    made.set_qform(mirrored, 1)
    made.set_sform(AFFINE, 2)
    refusal(saved(tmp_path / "a.nii.gz", made), "E_AFFINE_CONFLICT")


def test_property_NI02_a_qform_alone_is_enough(tmp_path):
    made = image()
    made.set_sform(None, 0)
    assert read_right(saved(tmp_path / "a.nii.gz", made)).series[0].volume.grid.shape == (
        12,
        64,
        48,
    )


@pytest.mark.parametrize("lean", [1.3, -2.4])
def test_property_NI04_shear_is_resampled_and_masks_go_back(tmp_path, lean):
    affine = AFFINE.copy()
    affine[1, 2] = lean
    made = nib.Nifti1Image(voxels(affine), affine)
    made.set_qform(None, 0)
    made.set_sform(affine, 1)
    study = read_study(saved(tmp_path / "a.nii.gz", made))
    (series,) = study.series
    assert warned(study, "W_SHEAR")
    assert series.verdict.code == "W_SHEAR"
    grid, lattice = series.volume.grid, series.lattice
    assert lattice is not None
    np.testing.assert_allclose(grid.matrix.T @ grid.matrix, np.eye(3), atol=1e-9)
    # The slices stay slices: only rows are interpolated, which blurs edges by less than a voxel.
    true = expected(grid)
    apart = np.abs(series.volume.array - true.astype(int)) > 5
    inside = resample_lattice(np.ones(lattice.shape, np.uint8), lattice, grid, order=0, fill=0) > 0
    steps = np.abs(np.diff(true, axis=1, prepend=true[:, :1])) > 0
    near = steps | np.roll(steps, -1, axis=1) | np.roll(steps, 1, axis=1)
    assert not (apart & inside & ~near).any()
    bright = series.volume.array > 175
    center = grid.index_to_world(np.argwhere(bright).astype(float)).mean(axis=0)
    assert np.abs(center - MARKER_MM).max() < 0.5
    back = resample_lattice(bright.astype(np.uint8), grid, lattice, order=0, fill=0).astype(bool)
    stored = voxels(affine).transpose(2, 1, 0) == MARKER_HU
    assert back.shape == stored.shape
    assert 2 * (back & stored).sum() / (back.sum() + stored.sum()) > 0.93
    label = read_label(
        saved(
            tmp_path / "l.nii.gz",
            nib.Nifti1Image((voxels(affine) == MARKER_HU).astype(np.uint8), affine),
        )
    )
    assert label.grid.is_close(grid)


def test_property_NI06_an_affine_that_is_not_finite_is_refused(tmp_path):
    made = nib.Nifti1Image(voxels(), None)
    made.header["sform_code"] = 1
    made.header["qform_code"] = 0
    made.header["srow_x"] = [np.nan] * 4
    path = tmp_path / "a.nii"
    path.write_bytes(made.header.binaryblock + bytes(4) + voxels().tobytes(order="F"))
    refusal(path, "E_AFFINE")


def test_property_NI07_one_time_point_is_a_volume(tmp_path):
    read_right(saved(tmp_path / "a.nii.gz", image(voxels()[..., None])))


def test_property_NI08_a_4d_file_needs_stated_phases(tmp_path):
    shifts = (0, 7, 20, 11)
    path = saved(tmp_path / "a.nii.gz", image(np.stack([voxels() + s for s in shifts], axis=-1)))
    assert "#0" in refusal(path, "E_NDIM").remedy
    stated = stated_phases(
        tuple(f"{p}={path}#{k}" for k, p in enumerate(("nc", "art", "pv", "dl")))
    )
    study = read_study(tmp_path, stated)
    assert [s.assigned for s in study.series] == list(Phase)
    for series, shift in zip(study.series, shifts, strict=True):
        right = expected(series.volume.grid) + shift
        np.testing.assert_array_equal(series.volume.array, right)
    for part, code in ((f"{path}#4", "E_NDIM"), (f"{path}x#0", "E_NO_IMAGE")):
        with pytest.raises(InputRefused) as caught:
            read_study(None, {Phase.PV: Path(part)})
        assert caught.value.code == code
    with pytest.raises(UsageError) as twice:
        read_study(None, {Phase.PV: Path(f"{path}#1"), Phase.ART: Path(f"{path}#1")})
    assert twice.value.code == "E_PHASE_TWICE"


def test_property_NI09_few_values_that_are_no_numbers_become_air(tmp_path):
    values = voxels().astype(np.float32)
    values[0, 0, 0], values[20, 30, 6] = np.nan, np.inf
    study = read_study(saved(tmp_path / "a.nii.gz", image(values)))
    (series,) = study.series
    assert warned(study, "W_NONFINITE")
    right = expected(series.volume.grid)
    right[0, 0, 0] = right[6, 30, 20] = -1024
    np.testing.assert_array_equal(series.volume.array, right)
    values.flat[: values.size // 1000 + 1] = np.nan
    refusal(saved(tmp_path / "b.nii.gz", image(values)), "E_NONFINITE")


def test_property_NI10_slope_and_intercept_are_applied_once(tmp_path):
    stored = (voxels() + 1024).astype(np.uint16)
    data = bytearray(image(stored).to_bytes())
    data[112:120] = struct.pack("<ff", 1, -1024)
    path = tmp_path / "a.nii"
    path.write_bytes(data[:352] + stored.tobytes(order="F"))
    read_right(path)


def test_property_NI12_a_windowed_picture_is_refused(tmp_path):
    picture = np.clip((voxels() + 160) / 400 * 255, 0, 255).astype(np.uint8)
    refusal(saved(tmp_path / "a.nii.gz", image(picture)), "E_HU_IMPLAUSIBLE")


def test_property_NI13_double_precision_is_read_exactly(tmp_path):
    read_right(saved(tmp_path / "a.nii.gz", image(voxels().astype(np.float64))))


def test_property_NI14_a_gzip_stream_that_ends_early_is_refused(tmp_path):
    path = saved(tmp_path / "a.nii.gz")
    data = path.read_bytes()
    for share in (2 / 3, 0.1, 0.99):
        path.write_bytes(data[: int(len(data) * share)])
        refusal(path, "E_TRUNCATED")


def test_property_NI15_a_changed_byte_of_a_gzip_is_noticed(tmp_path):
    noisy = voxels() + np.random.default_rng(3).integers(-9, 9, SHAPE).astype(np.int16)
    path = saved(tmp_path / "a.nii.gz", image(noisy))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    refusal(path, "E_CORRUPT")


def test_property_NI17_a_gzip_named_nii_is_recognized(tmp_path):
    read_right(saved(tmp_path / "a.nii.gz").rename(tmp_path / "a.nii"))


def test_property_NI18_a_lie_about_the_size_costs_no_memory(tmp_path):
    path = edited(tmp_path / "a.nii.gz", put(42, "<hhh", 512, 512, 2000))
    tracemalloc.start()
    try:
        refusal(path, "E_TRUNCATED")
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


def test_property_NI19_a_negative_size_is_refused(tmp_path):
    refusal(edited(tmp_path / "a.nii.gz", put(42, "<h", -48)), "E_MALFORMED")


@pytest.mark.parametrize("sform_code", [0, 1])
def test_property_NI20_a_voxel_size_of_zero_is_never_taken_for_one(tmp_path, sform_code):
    def change(data: bytearray) -> None:
        struct.pack_into("<fff", data, 80, 0, 0, 0)
        struct.pack_into("<hh", data, 252, 1, sform_code)

    refusal(edited(tmp_path / "a.nii.gz", change), "E_NO_GEOMETRY")


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1e-3), ("micron", 1e3)])
def test_property_NI21_other_units_are_honored_and_said(tmp_path, unit, factor):
    scaled = AFFINE.copy()
    scaled[:3] *= factor
    made = image(voxels(), scaled)
    made.header.set_xyzt_units(unit)
    path = saved(tmp_path / "a.nii.gz", made)
    study = read_study(path)
    (series,) = study.series
    assert warned(study, "W_UNITS")
    np.testing.assert_allclose(series.volume.grid.spacing_mm, (5, 1, 1), rtol=1e-5)
    agrees = series.volume.array == expected(series.volume.grid)
    assert (~agrees).mean() < 1e-3  # float32 of the header moves voxels that lie on a border
    # A unit that contradicts the size of a body is refused, not believed.
    lying = image()
    lying.header.set_xyzt_units(unit)
    refusal(saved(tmp_path / "b.nii.gz", lying), "E_UNITS")


def test_property_NI22_big_endian_is_read_exactly(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    made = nib.Nifti1Image(voxels().astype(">i2"), AFFINE, header)
    path = saved(tmp_path / "a.nii", made)
    assert path.read_bytes()[:4] == b"\0\0\x01\x5c"
    read_right(path)


def test_property_NI23_nifti_2_is_read_exactly(tmp_path):
    made = nib.Nifti2Image(voxels(), AFFINE)
    read_right(saved(tmp_path / "a.nii.gz", made))


def test_property_NI24_colors_are_refused(tmp_path):
    colors = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    refusal(saved(tmp_path / "a.nii.gz", nib.Nifti1Image(colors, AFFINE)), "E_DTYPE")


def test_property_NI25_64_bit_integers_are_read_exactly(tmp_path):
    made = nib.Nifti1Image(voxels().astype(np.int64), AFFINE, dtype="int64")
    read_right(saved(tmp_path / "a.nii.gz", made))


def test_property_NI26_a_slice_is_no_volume(tmp_path):
    refusal(saved(tmp_path / "a.nii.gz", image(voxels()[:, :, 6])), "E_NDIM")


def test_property_NI28_an_empty_file_is_no_nifti(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.touch()
    refusal(path, "E_NOT_NIFTI")


# --- Mutants ---------------------------------------------------------------------------------


def mutant(rng: np.random.Generator, plain: bytes) -> tuple[bytes, bool]:
    """A damaged file, and whether a checksum of the whole of it was left as it was."""
    kind = rng.integers(6)
    data = bytearray(plain if kind < 4 else gzip.compress(plain, 1, mtime=0))
    if kind == 0:  # the header alone, where every byte has a meaning
        for at in rng.integers(0, 352, rng.integers(1, 5)):
            data[at] = rng.integers(256)
    elif kind == 1:
        at = int(rng.integers(0, 340))
        data[at : at + 8] = rng.choice([b"\xff" * 8, bytes(8), struct.pack("<d", np.inf)])
    elif kind == 2:
        data = data[: rng.integers(0, len(data))]
    elif kind == 3:
        at, length = (int(n) for n in rng.integers(0, len(data), 2))
        data[at:at] = data[at : at + length]
    elif kind == 4:
        for at in rng.integers(0, len(data), rng.integers(1, 9)):
            data[at] ^= 1 << rng.integers(8)
    else:
        data = data[: rng.integers(0, len(data))]
    if kind < 4 and rng.random() < 0.5:
        data = bytearray(gzip.compress(bytes(data), 1, mtime=0))
    return bytes(data), kind >= 4


@pytest.mark.parametrize(
    ("seed", "count"), [(1, 100), pytest.param(2, 1000, marks=pytest.mark.full)]
)
def test_property_NI00_mutants_are_read_or_refused_by_code(tmp_path, seed, count):
    rng = np.random.default_rng(seed)
    made = image(voxels()[::2, ::2], np.diag([-2.0, -2.0, 5.0, 1.0]))
    plain = made.to_bytes()
    truth = read_ct(saved(tmp_path / "whole.nii", made)).volume
    path = tmp_path / "mutant.nii.gz"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    read, codes = 0, set()
    for number in range(count):
        data, checked = mutant(rng, plain)
        path.write_bytes(data)
        for reader in (lambda p: read_ct(p).volume, read_label):
            start = time.perf_counter()
            try:
                volume = reader(path)
            except HeparError as error:
                codes.add(error.code)
            else:
                read += 1
                if checked:  # whatever passes the checksum is the volume
                    np.testing.assert_array_equal(volume.array, truth.array)
            assert time.perf_counter() - start < 5, number
    assert 0 < read < 2 * count
    assert codes >= {"E_TRUNCATED", "E_CORRUPT", "E_NOT_NIFTI"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < GIB
