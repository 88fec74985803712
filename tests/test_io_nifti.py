"""The NIfTI door: positions against SimpleITK, and every unsafe file refused with its code."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given
from hypothesis import strategies as st

from hepar.errors import InputRefused
from hepar.io.nifti import read_label, read_nifti, write_nifti
from small_ct import POSES, Pose, body, corners, grid_of, volume

_AFFINE = np.diag([-0.8, -0.7, 2.5, 1.0])


def _itk_world(image: sitk.Image, index_zyx: np.ndarray) -> np.ndarray:
    return np.array(
        [
            image.TransformContinuousIndexToPhysicalPoint([float(v) for v in i[::-1]])
            for i in index_zyx
        ]
    )


@given(pose=POSES, suffix=st.sampled_from([".nii", ".nii.gz"]))
def test_oracle_simpleitk_reads_ours_at_the_same_places(
    pose: Pose, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    grid, path = grid_of(pose), tmp_path_factory.mktemp("nifti") / f"a{suffix}"
    hu = body(grid.shape)
    write_nifti(path, hu, grid)
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), hu)
    here, there = grid.index_to_world(corners(grid)), _itk_world(image, corners(grid))
    assert np.linalg.norm(here - there, axis=1).max() < 0.01


@given(pose=POSES, suffix=st.sampled_from([".nii", ".nii.gz"]))
def test_oracle_we_read_simpleitks_at_the_same_places(
    pose: Pose, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    grid, path = grid_of(pose), tmp_path_factory.mktemp("nifti") / f"a{suffix}"
    hu = body(grid.shape)
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing(grid.spacing_mm[::-1])
    image.SetOrigin(grid.origin_mm)
    image.SetDirection(grid.matrix[:, ::-1].ravel().tolist())
    sitk.WriteImage(image, str(path))
    read = read_nifti(path)
    assert read.array.dtype == np.int16
    np.testing.assert_array_equal(read.array, hu)
    assert read.grid.distance_mm(grid) < 0.01


@given(pose=POSES)
def test_property_writing_and_reading_returns_the_volume(
    pose: Pose, tmp_path_factory: pytest.TempPathFactory
) -> None:
    grid, path = grid_of(pose), tmp_path_factory.mktemp("nifti") / "a.nii.gz"
    write_nifti(path, body(grid.shape), grid)
    read = read_nifti(path)
    np.testing.assert_array_equal(read.array, body(grid.shape))
    assert read.grid.is_close(grid)


def test_the_same_volume_gives_the_same_bytes_and_one_affine(tmp_path: Path) -> None:
    v = volume()
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, v.array, v.grid)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    header = nib.load(tmp_path / "a.nii.gz").header
    (sform, s_code), (qform, q_code) = header.get_sform(True), header.get_qform(True)
    assert (s_code, q_code) == (1, 1)
    np.testing.assert_allclose(sform, qform, atol=1e-4)
    assert header.get_xyzt_units()[0] == "mm"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (np.bool_, np.uint8),
        (np.uint8, np.uint8),
        (np.int16, np.int16),
        (np.uint16, np.uint16),
        (np.int64, np.int32),
        (np.float32, np.float32),
        (np.float16, np.float32),
    ],
)
def test_dtypes_are_kept_or_widened(tmp_path: Path, dtype: Any, stored: Any) -> None:
    v = volume()
    labels = (v.array > 0).astype(dtype)
    write_nifti(tmp_path / "a.nii.gz", labels, v.grid)
    assert nib.load(tmp_path / "a.nii.gz").header.get_data_dtype() == stored
    np.testing.assert_array_equal(read_label(tmp_path / "a.nii.gz").array, labels.astype(np.uint8))


def test_an_array_of_another_shape_is_not_written(tmp_path: Path) -> None:
    v = volume()
    with pytest.raises(ValueError, match="grid"):
        write_nifti(tmp_path / "a.nii", v.array[1:], v.grid)
    assert list(tmp_path.iterdir()) == []


# --- What a header may say, read right -------------------------------------------------------


def _xyz() -> np.ndarray:
    return body((6, 8, 10)).transpose(2, 1, 0)


def _image(values: np.ndarray | None = None, affine: np.ndarray = _AFFINE) -> Any:
    image = nib.Nifti1Image(_xyz() if values is None else values, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    return image


def _saved(tmp_path: Path, image: Any, name: str = "a.nii.gz") -> Path:
    path = tmp_path / name
    nib.save(image, path)
    return path


def test_scaling_is_applied_once(tmp_path: Path) -> None:
    raw = bytearray(_image((_xyz() + 1024).astype(np.uint16)).to_bytes())
    raw[112:120] = np.array([1.0, -1024.0], "<f4").tobytes()
    path = tmp_path / "a.nii"
    path.write_bytes(raw)
    np.testing.assert_array_equal(read_nifti(path).array, body((6, 8, 10)))


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_a_slope_of_zero_or_nan_means_unscaled(tmp_path: Path, slope: float) -> None:
    raw = bytearray(_image().to_bytes())
    raw[112:120] = np.array([slope, 0.0], "<f4").tobytes()
    path = tmp_path / "a.nii"
    path.write_bytes(raw)
    np.testing.assert_array_equal(read_nifti(path).array, body((6, 8, 10)))


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1e-3), ("micron", 1e3), ("unknown", 1.0)])
def test_units_are_honored(tmp_path: Path, unit: str, factor: float) -> None:
    affine = _AFFINE.copy()
    affine[:3, 3] = (10.0, 20.0, 30.0)
    scaled = affine.copy()
    scaled[:3] *= factor
    image = _image(affine=scaled)
    image.header.set_xyzt_units(unit)
    grid = read_nifti(_saved(tmp_path, image)).grid
    np.testing.assert_allclose(grid.spacing_mm, (2.5, 0.7, 0.8), rtol=1e-5)
    np.testing.assert_allclose(grid.origin_mm, (-10.0, -20.0, 30.0), rtol=1e-5)


@pytest.mark.parametrize("only", ["qform", "sform"])
def test_one_coded_affine_is_enough(tmp_path: Path, only: str) -> None:
    image = _image()
    if only == "qform":
        image.set_sform(None, 0)
    else:
        image.set_qform(None, 0)
    grid = read_nifti(_saved(tmp_path, image)).grid
    np.testing.assert_allclose(grid.spacing_mm, (2.5, 0.7, 0.8), rtol=1e-5)


@pytest.mark.parametrize("dtype", [">i2", "<i4", "<f4", "<f8"])
def test_number_formats_and_nifti_2(tmp_path: Path, dtype: str) -> None:
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        image = kind(_xyz().astype(dtype), _AFFINE)
        image.set_sform(_AFFINE, 1)
        np.testing.assert_array_equal(read_nifti(_saved(tmp_path, image)).array, body((6, 8, 10)))


def test_a_gzip_stream_named_nii_is_recognized(tmp_path: Path) -> None:
    path = _saved(tmp_path, _image())
    renamed = path.rename(tmp_path / "a.nii")
    np.testing.assert_array_equal(read_nifti(renamed).array, body((6, 8, 10)))


def test_a_single_time_point_is_a_volume(tmp_path: Path) -> None:
    image = _image(_xyz()[..., None])
    np.testing.assert_array_equal(read_nifti(_saved(tmp_path, image)).array, body((6, 8, 10)))


def test_padding_below_air_becomes_air_and_halves_are_rounded(tmp_path: Path) -> None:
    values = _xyz().astype(np.float32)
    values[0, 0, 0], values[1, 0, 0] = -3024.0, 40.4
    read = read_nifti(_saved(tmp_path, _image(values))).array
    assert read[0, 0, 0] == -1024
    assert read[0, 0, 1] == 40


def test_a_rounded_rotation_is_made_orthonormal(tmp_path: Path) -> None:
    affine = _AFFINE.copy()
    affine[0, 2] = 2.5 * 5e-4
    grid = read_nifti(_saved(tmp_path, nib.Nifti1Image(_xyz(), affine))).grid
    np.testing.assert_allclose(grid.matrix.T @ grid.matrix, np.eye(3), atol=1e-9)


# --- What is refused -------------------------------------------------------------------------


def _conflict() -> Any:
    image = _image()
    other = _AFFINE.copy()
    other[:3, 3] = (0.0, 0.0, 3.0)
    image.set_qform(other, 1)
    return image


def _with(change: Callable[[Any], None], image: Any) -> Any:
    change(image)
    return image


def _nan() -> np.ndarray:
    values = _xyz().astype(np.float32)
    values[2, 2, 2] = np.nan
    return values


def _flat() -> np.ndarray:
    affine = _AFFINE.copy()
    affine[1, 2] = 9.0
    return affine


REFUSED: dict[str, tuple[str, Callable[[], Any]]] = {
    "conflict": ("E_AFFINE_CONFLICT", _conflict),
    "no affine": ("E_NO_AFFINE", lambda: nib.Nifti1Image(_xyz(), None)),
    "nan": ("E_NONFINITE", lambda: _image(_nan())),
    "4D": ("E_NDIM", lambda: _image(np.stack([_xyz()] * 2, -1))),
    "2D": ("E_NDIM", lambda: _image(_xyz()[..., 0])),
    "complex": ("E_DTYPE", lambda: _image(_xyz().astype(np.complex64))),
    "flat": ("E_AFFINE", lambda: nib.Nifti1Image(_xyz(), _flat())),
    "meters meant as mm": (
        "E_UNITS",
        lambda: _with(lambda i: i.header.set_xyzt_units("meter"), _image()),
    ),
    "too dense": ("E_HU_IMPLAUSIBLE", lambda: _image(_xyz().astype(np.int32) + 40000)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsafe_files_are_refused(tmp_path: Path, case: str) -> None:
    code, make = REFUSED[case]
    with pytest.raises(InputRefused) as caught:
        read_nifti(_saved(tmp_path, make()))
    assert caught.value.code == code
    assert caught.value.remedy
    assert str(tmp_path) not in str(caught.value)


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[-6] ^= 0xFF  # inside the CRC of the trailer
    return bytes(changed)


def _claim_more(data: bytes) -> bytes:
    raw = bytearray(gzip.decompress(data))
    raw[42:48] = np.array([500, 500, 500], "<i2").tobytes()
    return gzip.compress(bytes(raw))


def _claim_everything(data: bytes) -> bytes:
    raw = bytearray(gzip.decompress(data))
    raw[42:48] = np.array([32767, 32767, 32767], "<i2").tobytes()
    return gzip.compress(bytes(raw))


def _non_finite_affine(data: bytes) -> bytes:
    raw = bytearray(gzip.decompress(data))
    raw[280:284] = np.array([np.nan], "<f4").tobytes()
    raw[252:254] = b"\0\0"
    return gzip.compress(bytes(raw))


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (_cut, "E_TRUNCATED"),
        (lambda data: data[:200], "E_TRUNCATED"),
        (lambda data: gzip.decompress(data)[:1000], "E_TRUNCATED"),
        (lambda data: gzip.decompress(data)[:100], "E_TRUNCATED"),
        (_claim_more, "E_TRUNCATED"),
        (_flip, "E_CORRUPT"),
        (_claim_everything, "E_MEMORY"),
        (_non_finite_affine, "E_AFFINE"),
        (lambda data: b"", "E_NOT_NIFTI"),
        (lambda data: b"hello" * 200, "E_NOT_NIFTI"),
    ],
)
def test_damaged_files_are_refused(
    tmp_path: Path, damage: Callable[[bytes], bytes], code: str
) -> None:
    path = _saved(tmp_path, _image())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputRefused) as caught:
        read_nifti(path)
    assert caught.value.code == code


@given(position=st.integers(0, 10**6), value=st.integers(1, 255))
def test_property_one_changed_byte_of_a_gzip_is_never_read_as_another_volume(
    position: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = _saved(tmp_path_factory.mktemp("gz"), _image())
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= value
    path.write_bytes(bytes(data))
    try:
        read = read_nifti(path)
    except InputRefused:
        return
    # Bytes of the gzip header (time, name, flags) are not part of the volume.
    np.testing.assert_array_equal(read.array, body((6, 8, 10)))


# --- Labels ----------------------------------------------------------------------------------


def test_float_labels_near_integers_are_rounded(tmp_path: Path) -> None:
    labels = np.arange(480).reshape(10, 8, 6) % 3
    path = _saved(tmp_path, _image((labels * 0.9999).astype(np.float32)))
    read = read_label(path).array
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, labels.transpose(2, 1, 0))


def test_many_instances_need_int32(tmp_path: Path) -> None:
    labels = np.arange(480, dtype=np.int32).reshape(10, 8, 6)
    assert read_label(_saved(tmp_path, _image(labels))).array.dtype == np.int32


@pytest.mark.parametrize("factor", [10.92, -1.0])
def test_values_that_are_no_labels_are_refused(tmp_path: Path, factor: float) -> None:
    labels = (np.arange(480).reshape(10, 8, 6) % 3 * factor).astype(np.float32)
    with pytest.raises(InputRefused, match="E_LABEL_VALUES"):
        read_label(_saved(tmp_path, _image(labels)))


def test_the_real_volume_and_its_labels_share_a_grid(real_data: Path) -> None:
    folder = real_data / "totalsegmentator_example_ct"
    ct = read_nifti(folder / "example_ct.nii.gz")
    liver = read_label(folder / "example_seg" / "liver.nii.gz")
    assert ct.grid.shape == (112, 101, 122)
    np.testing.assert_allclose(ct.grid.spacing_mm, 3.0, atol=1e-5)
    assert liver.grid.is_close(ct.grid)
    assert np.median(ct.array[liver.array > 0]) == 46
