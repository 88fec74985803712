"""The DICOM door: positions against SimpleITK, HU slice by slice, and hazards by their codes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import MRImageStorage, RLELossless, SecondaryCaptureImageStorage

from hepar.errors import InputRefused
from hepar.geometry import Grid
from hepar.io.dicom import read_dicom
from hepar.io.dicom_regular import onto_frames
from hepar.io.dicom_write import write_dicom_series
from hepar.stages.read import read_study
from hepar.study import Series, SeriesVerdict, Volume
from small_ct import POSES, Pose, body, corners, grid_of, volume

Files = list[Path]
_SHAPE = (8, 8, 10)


def _write(folder: Path, v: Volume | None = None, **options: object) -> Files:
    arguments: dict[str, object] = {"description": "portal", "series_number": 3, **options}
    return list(write_dicom_series(folder, v or volume(shape=_SHAPE), **arguments))  # type: ignore[arg-type]


def _edit(path: Path, change: Callable[[pydicom.Dataset], None]) -> None:
    data = pydicom.dcmread(path)
    change(data)
    data.save_as(path)


def _read(folder: Path) -> tuple[tuple[Series, ...], tuple[SeriesVerdict, ...]]:
    series, verdicts = read_dicom(folder)
    for verdict in verdicts:
        assert str(folder.parent) not in f"{verdict.source} {verdict.reason}"
    return series, verdicts


def _refusal(folder: Path) -> SeriesVerdict:
    series, verdicts = _read(folder)
    assert series == ()
    assert [v.status for v in verdicts] == ["refused"]
    return verdicts[0]


def _shuffle(files: Files, seed: int) -> None:
    """Give files names in another order, without suffix."""
    names = [f"{n:016x}" for n in random.Random(seed).sample(range(2**60), len(files))]
    for path, name in zip(files, names, strict=True):
        path.rename(path.with_name(name))


# --- Positions -------------------------------------------------------------------------------


@given(pose=POSES, seed=st.integers(0, 99))
def test_property_a_series_reads_back_at_its_own_places_in_any_file_order(
    pose: Pose, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    grid = grid_of(pose)
    folder = tmp_path_factory.mktemp("dicom") / "series"
    hu = body(grid.shape)
    _shuffle(_write(folder, Volume(hu, grid)), seed)
    (series,), _ = _read(folder)
    read = series.volume
    # The reader counts slices along the normal, so a mirrored grid comes back with z reversed.
    index = np.argwhere(np.ones(grid.shape, bool))
    there = read.grid.world_to_index(grid.index_to_world(index.astype(float)))
    nearest = np.rint(there).astype(int)
    assert np.abs((there - nearest) * np.asarray(read.grid.spacing_mm)).max() < 0.01
    np.testing.assert_array_equal(read.array[tuple(nearest.T)], hu[tuple(index.T)])
    names = [pydicom.dcmread(f).SOPInstanceUID for f in series.frames.files]
    assert len(set(names)) == grid.shape[0]


@given(pose=POSES)
def test_oracle_simpleitk_sees_the_same_voxels_at_the_same_places(
    pose: Pose, tmp_path_factory: pytest.TempPathFactory
) -> None:
    grid = grid_of(pose)
    folder = tmp_path_factory.mktemp("dicom") / "series"
    _write(folder, Volume(body(grid.shape), grid))
    (series,), _ = _read(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    values = sitk.GetArrayFromImage(image)
    read = series.volume
    for index in corners(read.grid):
        point = read.grid.index_to_world(index)
        there = np.array(image.TransformPhysicalPointToContinuousIndex(point.tolist()))
        nearest = np.rint(there).astype(int)
        assert np.abs((there - nearest) * np.array(image.GetSpacing())).max() < 0.01
        x, y, z = nearest
        assert values[z, y, x] == read.array[tuple(index.astype(int))]


def test_spacing_is_taken_from_positions(tmp_path: Path) -> None:
    for path in _write(tmp_path / "s"):
        _edit(path, lambda d: d.__setattr__("SliceThickness", "5"))
        _edit(path, lambda d: d.__setattr__("SpacingBetweenSlices", "-1"))
    (series,), _ = _read(tmp_path / "s")
    np.testing.assert_allclose(series.volume.grid.spacing_mm, (2.5, 0.8, 0.7), atol=1e-9)


def test_written_series_are_the_same_for_the_same_seed_and_valid(tmp_path: Path) -> None:
    first, again = _write(tmp_path / "a"), _write(tmp_path / "b")
    other = _write(tmp_path / "c", uid_seed="1")
    assert [f.read_bytes() for f in first] == [f.read_bytes() for f in again]
    uids = [pydicom.dcmread(f).SOPInstanceUID for f in (*first, *other)]
    assert len(set(uids)) == len(uids)
    data = pydicom.dcmread(first[0])
    assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID
    assert data.SeriesInstanceUID.is_valid
    assert data.SOPInstanceUID.is_valid


def test_the_evidence_for_the_phase_is_kept_or_left_out(tmp_path: Path) -> None:
    _write(tmp_path / "a", contrast="Iopromide", acquisition_time="101530")
    _write(tmp_path / "b", contrast="Iopromide", acquisition_time="101530", tags=False)
    (told,), _ = _read(tmp_path / "a")
    (silent,), _ = _read(tmp_path / "b")
    assert told.tags["SeriesDescription"] == "portal"
    assert told.tags["ContrastBolusAgent"] == "Iopromide"
    assert told.tags["AcquisitionTime"] == "101530"
    assert told.verdict.description == "portal"
    assert not {"SeriesDescription", "ContrastBolusAgent"} & set(silent.tags)
    assert "101530" not in silent.tags.values()
    assert not any("PHANTOM" in text for text in told.tags.values())


# --- HU --------------------------------------------------------------------------------------


def test_rescale_is_per_slice(tmp_path: Path) -> None:
    v = volume(shape=_SHAPE)

    def change(data: pydicom.Dataset) -> None:
        k = data.InstanceNumber - 1
        slope, intercept = (1.0, 0.5, 0.25)[k % 3], (-1024.0, -1000.0)[k % 2]
        stored = (v.array[k].astype(float) - intercept) / slope
        data.RescaleSlope, data.RescaleIntercept = str(slope), str(intercept)
        data.PixelData = np.rint(stored).astype("<u2").tobytes()

    for path in _write(tmp_path / "s", v):
        _edit(path, change)
    (series,), _ = _read(tmp_path / "s")
    np.testing.assert_array_equal(series.volume.array, np.maximum(v.array, -1000))


def test_an_intercept_of_minus_32768_does_not_wrap(tmp_path: Path) -> None:
    v = volume(shape=_SHAPE)

    def change(data: pydicom.Dataset) -> None:
        stored = v.array[data.InstanceNumber - 1].astype(np.int64) + 32768
        data.RescaleIntercept, data.PixelData = "-32768", stored.astype("<u2").tobytes()

    for path in _write(tmp_path / "s", v):
        _edit(path, change)
    (series,), _ = _read(tmp_path / "s")
    np.testing.assert_array_equal(series.volume.array, v.array)


@pytest.mark.parametrize("declared", [True, False])
def test_padding_becomes_air(tmp_path: Path, declared: bool) -> None:
    v = volume(shape=_SHAPE)
    array = v.array.copy()
    array[:, :2, :2] = -3024
    for path in _write(tmp_path / "s", Volume(array, v.grid)):
        if declared:
            _edit(path, lambda d: d.add_new(0x00280120, "SS", -3024))
    (series,), _ = _read(tmp_path / "s")
    assert (series.volume.array[:, :2, :2] == -1024).all()
    np.testing.assert_array_equal(series.volume.array[:, 2:], v.array[:, 2:])


def test_padding_at_a_high_value_becomes_air_and_a_tissue_value_does_not(tmp_path: Path) -> None:
    v = volume(shape=_SHAPE)
    array = v.array.copy()
    array[:, 0, 0] = 3071
    for name, value in (("high", 3071 + 1024), ("tissue", 50 + 1024)):
        for path in _write(tmp_path / name, Volume(array, v.grid)):
            _edit(path, lambda d, value=value: d.add_new(0x00280120, "US", value))
    (high,), _ = _read(tmp_path / "high")
    (tissue,), _ = _read(tmp_path / "tissue")
    assert (high.volume.array[:, 0, 0] == -1024).all()
    np.testing.assert_array_equal(tissue.volume.array, array)


def test_rle_equals_uncompressed(tmp_path: Path) -> None:
    v = volume(shape=_SHAPE)
    files = _write(tmp_path / "rle", v, transfer_syntax=RLELossless)
    assert pydicom.dcmread(files[0]).file_meta.TransferSyntaxUID == RLELossless
    (series,), _ = _read(tmp_path / "rle")
    np.testing.assert_array_equal(series.volume.array, v.array)


def test_deflated_equals_uncompressed(tmp_path: Path) -> None:
    v = volume(shape=_SHAPE)
    for path in _write(tmp_path / "s", v):
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        data.save_as(path)
    (series,), _ = _read(tmp_path / "s")
    np.testing.assert_array_equal(series.volume.array, v.array)


def test_monochrome1_changes_no_hu(tmp_path: Path) -> None:
    v = volume(shape=_SHAPE)
    for path in _write(tmp_path / "s", v):
        _edit(path, lambda d: d.__setattr__("PhotometricInterpretation", "MONOCHROME1"))
    (series,), (verdict,) = _read(tmp_path / "s")
    assert verdict.code == "W_MONOCHROME1"
    np.testing.assert_array_equal(series.volume.array, v.array)


def test_signed_values_without_rescale_are_hu_with_a_warning(tmp_path: Path) -> None:
    v = volume(shape=_SHAPE)

    def change(data: pydicom.Dataset) -> None:
        del data.RescaleSlope, data.RescaleIntercept
        data.PixelRepresentation = 1
        data.PixelData = v.array[data.InstanceNumber - 1].astype("<i2").tobytes()

    for path in _write(tmp_path / "s", v):
        _edit(path, change)
    (series,), (verdict,) = _read(tmp_path / "s")
    assert verdict.code == "W_NO_RESCALE"
    np.testing.assert_array_equal(series.volume.array, v.array)


# --- Stacks ----------------------------------------------------------------------------------


def _passes(folder: Path, change: Callable[[pydicom.Dataset, int], None]) -> list[Volume]:
    """Two passes written into one series and one folder."""
    volumes = [volume(seed, _SHAPE) for seed in (1, 2)]
    for number, v in enumerate(volumes):
        for path in _write(folder / str(number), v, uid_seed=str(number)):
            _edit(path, lambda d, number=number: change(d, number))
            shutil.move(path, folder / f"{number}{path.name}")
        (folder / str(number)).rmdir()
    return volumes


def _same_series(data: pydicom.Dataset, number: int) -> None:
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    data.FrameOfReferenceUID = "1.2.3.5"
    data.InstanceNumber += 8 * number


def _by_number(data: pydicom.Dataset, number: int) -> None:
    _same_series(data, number)
    data.AcquisitionNumber = number + 1


def _by_time(data: pydicom.Dataset, number: int) -> None:
    _same_series(data, number)
    data.AcquisitionTime = ("101010", "101040")[number]


def _by_a_time_for_each_slice(data: pydicom.Dataset, number: int) -> None:
    _same_series(data, number)
    data.AcquisitionTime = f"10{number:02d}{data.InstanceNumber:02d}"
    data.InstanceNumber = 1


def _by_order_alone(data: pydicom.Dataset, number: int) -> None:
    _same_series(data, number)


def _by_offset(data: pydicom.Dataset, number: int) -> None:
    _by_number(data, number)
    x, y, z = (float(v) for v in data.ImagePositionPatient)
    data.ImagePositionPatient = [x, y, z + 1.25 * number]


@pytest.mark.parametrize(
    "change", [_by_number, _by_time, _by_a_time_for_each_slice, _by_order_alone, _by_offset]
)
def test_two_passes_in_one_series_are_told_apart(
    tmp_path: Path, change: Callable[[pydicom.Dataset, int], None]
) -> None:
    volumes = _passes(tmp_path, change)
    series, verdicts = _read(tmp_path)
    assert [v.status for v in verdicts] == ["usable", "usable"]
    assert len({v.series_id for v in verdicts}) == 2
    for read, wanted in zip(series, volumes, strict=True):
        np.testing.assert_array_equal(read.volume.array, wanted.array)


def test_passes_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    def change(data: pydicom.Dataset, number: int) -> None:
        _same_series(data, number)
        data.InstanceNumber = 1

    _passes(tmp_path, change)
    assert _refusal(tmp_path).code == "E_AMBIGUOUS_STACK"


def test_step_and_shoot_acquisitions_are_one_volume(tmp_path: Path) -> None:
    for path in _write(tmp_path / "s"):
        _edit(path, lambda d: d.__setattr__("AcquisitionNumber", 1 + (d.InstanceNumber - 1) // 4))
    (series,), _ = _read(tmp_path / "s")
    assert series.volume.grid.shape == _SHAPE


def test_two_series_in_one_folder_stay_apart(tmp_path: Path) -> None:
    study = {"study_uid": "1.2.3", "frame_of_reference_uid": "1.2.3.5"}
    _write(tmp_path / "a", volume(1, _SHAPE), series_number=5, **study)
    _write(tmp_path / "b", volume(2, _SHAPE), series_number=4, **study)
    series, _ = _read(tmp_path)
    assert [s.tags["SeriesNumber"] for s in series] == ["4", "5"]
    np.testing.assert_array_equal(series[0].volume.array, volume(2, _SHAPE).array)


def test_a_second_copy_of_a_file_is_left_out_and_said(tmp_path: Path) -> None:
    files = _write(tmp_path / "s")
    shutil.copy(files[3], tmp_path / "s" / "copy")
    (series,), (verdict,) = _read(tmp_path / "s")
    assert (verdict.status, verdict.code) == ("repaired", "W_DUP_INSTANCE")
    np.testing.assert_array_equal(series.volume.array, volume(shape=_SHAPE).array)


def test_a_localizer_and_a_stray_orientation_are_set_aside_and_listed(tmp_path: Path) -> None:
    files = _write(tmp_path / "s")
    for name, image_type in (("scout", ["ORIGINAL", "PRIMARY", "LOCALIZER"]), ("stray", None)):
        data = pydicom.dcmread(files[0])
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.{len(name)}.9"
        data.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        if image_type:
            data.ImageType = image_type
        data.save_as(tmp_path / "s" / name)
    (series,), verdicts = _read(tmp_path / "s")
    assert series.volume.grid.shape == _SHAPE
    assert sorted(v.status for v in verdicts) == ["unused", "unused", "usable"]
    assert sum(v.n_files for v in verdicts) == 10


def test_uneven_positions_within_five_percent_are_fitted_and_said(tmp_path: Path) -> None:
    for path in _write(tmp_path / "s"):

        def change(data: pydicom.Dataset) -> None:
            x, y, z = (float(v) for v in data.ImagePositionPatient)
            data.ImagePositionPatient = [x, y, z + 0.08 * (-1) ** data.InstanceNumber]

        _edit(path, change)
    (series,), (verdict,) = _read(tmp_path / "s")
    assert verdict.code == "W_SPACING_NOISE"
    assert abs(series.volume.grid.spacing_mm[0] - 2.5) < 0.02


def _along(grid: Grid) -> np.ndarray:
    """HU that are linear in the world, which linear interpolation keeps."""
    index = np.argwhere(np.ones(grid.shape, dtype=bool))
    world = grid.index_to_world(index.astype(float)) - np.asarray(grid.origin_mm)
    return (world @ np.array([3.0, -4.0, 5.0]) - 30.0).reshape(grid.shape)


def _linear_series(
    folder: Path, move: Callable[[int], tuple[float, float, float]], distance_mm: float = 2.5
) -> None:
    """A series of linear HU (steps of 0.05) whose images are moved, values and places alike."""
    grid = Grid.axial((12, 20, 16), (distance_mm, 0.8, 0.7), (-5.0, 12.0, -40.0))
    files = _write(folder, Volume(np.zeros(grid.shape, np.int16), grid))
    hu = _along(grid)
    for k, path in enumerate(files):

        def change(data: pydicom.Dataset, k: int = k) -> None:
            step = np.asarray(move(k))
            position = np.array([float(v) for v in data.ImagePositionPatient]) + step
            data.ImagePositionPatient = [f"{v:.6f}" for v in position]
            stored = np.rint((hu[k] + step @ np.array([3.0, -4.0, 5.0]) + 1024) * 20)
            data.PixelData = stored.astype(np.uint16).tobytes()
            data.PixelRepresentation = 0
            data.RescaleSlope, data.RescaleIntercept = "0.05", "-1024"

        _edit(path, change)


@pytest.mark.parametrize("lean", [(0.0, 0.33), (0.0, -0.8), (0.21, 0.4), (-0.35, 0.0)])
def test_closed_form_a_tilted_stack_is_moved_back_by_its_positions(
    tmp_path: Path, lean: tuple[float, float]
) -> None:
    _linear_series(tmp_path / "s", lambda k: (lean[0] * k, lean[1] * k, 0.0))
    (series,), (verdict,) = _read(tmp_path / "s")
    assert verdict.code == "W_GANTRY_TILT"
    assert verdict.status == "repaired"
    grid, frames = series.volume.grid, series.frames
    assert frames is not None
    index = np.argwhere(np.ones(grid.shape, dtype=bool))
    offset = grid.index_to_world(index.astype(float)) - frames.origins_mm[index[:, 0]]
    pixel = (offset @ frames.axes[:, 1:]) / np.asarray(frames.pixel_mm)
    last = np.asarray(frames.shape) - 1
    inside = ((pixel > -1e-3) & (pixel < last + 1e-3)).all(axis=1).reshape(grid.shape)
    outside = ((pixel < -0.51) | (pixel > last + 0.51)).any(axis=1).reshape(grid.shape)
    assert inside.sum() >= 12 * 19 * 15
    assert np.abs(series.volume.array - _along_world(grid))[inside].max() <= 1.03
    assert (series.volume.array[outside] == -1024).all()
    within = ((pixel > -0.49) & (pixel < last + 0.49)).all(axis=1).reshape(grid.shape)
    assert (series.volume.array[within] > -1000).all()


def _along_world(grid: Grid) -> np.ndarray:
    """`_along` of the series' own origin, on any grid."""
    index = np.argwhere(np.ones(grid.shape, dtype=bool)).astype(float)
    world = grid.index_to_world(index) - np.array([-5.0, 12.0, -40.0])
    return (world @ np.array([3.0, -4.0, 5.0]) - 30.0).reshape(grid.shape)


def test_closed_form_uneven_distances_are_resampled_by_position(tmp_path: Path) -> None:
    depths = np.cumsum([0, *np.random.default_rng(3).uniform(-0.6, 0.6, 11)])
    _linear_series(tmp_path / "s", lambda k: (0.0, 0.0, float(depths[k])))
    (series,), (verdict,) = _read(tmp_path / "s")
    assert verdict.code == "W_NON_UNIFORM"
    np.testing.assert_allclose(
        series.volume.array, _along_world(series.volume.grid), atol=1.03, rtol=0
    )


def test_closed_form_a_series_that_changes_its_distance_is_no_gap(tmp_path: Path) -> None:
    _linear_series(tmp_path / "s", lambda k: (0.0, 0.0, 2.5 * max(0, k - 5)))
    (series,), (verdict,) = _read(tmp_path / "s")
    assert verdict.code == "W_NON_UNIFORM"
    assert abs(series.volume.grid.spacing_mm[0] - 2.5) < 1e-6
    np.testing.assert_allclose(
        series.volume.array, _along_world(series.volume.grid), atol=1.03, rtol=0
    )


def test_closed_form_wider_distances_with_numbers_left_out_are_gaps(tmp_path: Path) -> None:
    _linear_series(tmp_path / "s", lambda k: (0.0, 0.0, 2.5 * max(0, k - 5)))
    for k, path in enumerate(sorted((tmp_path / "s").iterdir())):
        _edit(path, lambda d, k=k: d.__setattr__("InstanceNumber", k + 1 + max(0, k - 5)))
    _, (verdict,) = _read(tmp_path / "s")
    assert verdict.code == "E_SLICE_GAP"


def test_closed_form_a_mask_goes_back_onto_tilted_images(tmp_path: Path) -> None:
    """Each pixel of an image gets the label of the world's half that it lies in."""
    _linear_series(tmp_path / "s", lambda k: (0.0, 0.33 * k, 0.0))
    (series,), _ = _read(tmp_path / "s")
    grid, frames = series.volume.grid, series.frames
    assert frames is not None
    middle = 18.0

    def half(world: np.ndarray) -> np.ndarray:
        return (world[..., 1] > middle).astype(np.uint8)

    index = np.argwhere(np.ones(grid.shape, dtype=bool)).astype(float)
    mask = half(grid.index_to_world(index)).reshape(grid.shape)
    back = onto_frames(mask, grid, frames)
    rows = np.arange(20)[:, None, None] * frames.pixel_mm[0] * frames.axes[:, 1]
    columns = np.arange(16)[None, :, None] * frames.pixel_mm[1] * frames.axes[:, 2]
    for k, origin in enumerate(frames.origins_mm):
        world = origin + rows + columns
        near = np.abs(world[..., 1] - middle) < 0.41
        assert (back[k] == half(world))[~near].all()


def _gap(files: Files) -> None:
    files[4].unlink()


def _move(path: Path, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> None:
    def change(data: pydicom.Dataset) -> None:
        position = np.array([float(v) for v in data.ImagePositionPatient])
        data.ImagePositionPatient = (position + np.array([x, y, z])).tolist()

    _edit(path, change)


def _jump(files: Files) -> None:
    _move(files[5], x=3.0)


def _other_matrix(files: Files) -> None:
    def change(data: pydicom.Dataset) -> None:
        data.Rows, data.Columns = 4, 4
        data.PixelData = bytes(32)

    _edit(files[-1], change)


def _twin(files: Files) -> None:
    data = pydicom.dcmread(files[3])
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3.99"
    data.PixelData = bytes(len(data.PixelData))
    data.save_as(files[3].with_name("twin"))


def _conflicting_uid(files: Files) -> None:
    data = pydicom.dcmread(files[3])
    data.PixelData = bytes(len(data.PixelData))
    data.save_as(files[3].with_name("twin"))


def _setting(keyword: str, value: object, which: slice = slice(None)) -> Callable[[Files], None]:
    def apply(files: Files) -> None:
        for path in files[which]:
            _edit(path, lambda d: d.__setattr__(keyword, value))

    return apply


def _lacking(keyword: str, which: slice = slice(None)) -> Callable[[Files], None]:
    def apply(files: Files) -> None:
        for path in files[which]:
            _edit(path, lambda d: d.__delattr__(keyword))

    return apply


def _magnetic(files: Files) -> None:
    for path in files:

        def change(data: pydicom.Dataset) -> None:
            data.Modality = "MR"
            data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = MRImageStorage

        _edit(path, change)


def _short_pixels(files: Files) -> None:
    files[5].write_bytes(files[5].read_bytes()[:-100])


def _without_pixels(files: Files) -> None:
    data = files[5].read_bytes()
    files[5].write_bytes(data[: data.index(b"\xe0\x7f\x10\x00")] + b"\0" * 8)


def _bytes_changed(old: bytes, new: bytes) -> Callable[[Files], None]:
    def apply(files: Files) -> None:
        data = files[5].read_bytes()
        assert old in data
        files[5].write_bytes(data.replace(old, new, 1))

    return apply


def _half_an_rle_frame(files: Files) -> None:
    for path in files:
        _edit(path, lambda d: d.compress(RLELossless, generate_instance_uid=False))
    data = pydicom.dcmread(files[5])
    frame = next(pydicom.encaps.generate_frames(data.PixelData, number_of_frames=1))
    data.PixelData = pydicom.encaps.encapsulate([frame[: len(frame) // 4 * 2]])
    data.save_as(files[5])


_SYNTAX = b"1.2.840.10008.1.2.1\0"
HAZARDS: dict[str, tuple[str, Callable[[Files], None]]] = {
    "missing slice": ("E_SLICE_GAP", _gap),
    "shifted slice": ("E_MIXED_GEOMETRY", _jump),
    "mixed matrix": ("E_MIXED_MATRIX", _other_matrix),
    "mixed pixel spacing": ("E_MIXED_MATRIX", _setting("PixelSpacing", [1, 1], slice(6, 7))),
    "mixed frame of reference": (
        "E_MIXED_GEOMETRY",
        _setting("FrameOfReferenceUID", "1.2.9", slice(2, 3)),
    ),
    "different twin": ("E_DUPLICATE_SLICE", _twin),
    "one UID, two images": ("E_UID_CONFLICT", _conflicting_uid),
    "no position": ("E_NO_GEOMETRY", _lacking("ImagePositionPatient")),
    "no orientation of one": ("E_NO_GEOMETRY", _lacking("ImageOrientationPatient", slice(4, 5))),
    "no pixel spacing": ("E_NO_GEOMETRY", _lacking("PixelSpacing")),
    "skewed orientation": (
        "E_NO_GEOMETRY",
        _setting("ImageOrientationPatient", [1, 0, 0, 0.1, 0.99, 0]),
    ),
    "MR": ("E_WRONG_MODALITY", _magnetic),
    "PET": ("E_WRONG_MODALITY", _setting("Modality", "PT")),
    "multi-frame": ("E_MULTIFRAME", _setting("NumberOfFrames", 2)),
    "short pixel data": ("E_TRUNCATED", _short_pixels),
    "no pixel data": ("E_TRUNCATED", _without_pixels),
    "rows lie": ("E_TRUNCATED", _setting("Rows", 65535, slice(5, 6))),
    "half an RLE frame": ("E_DECODE", _half_an_rle_frame),
    "unknown syntax": (
        "E_UNSUPPORTED_TS",
        _bytes_changed(_SYNTAX, b"1.2.840.10008.1.2.9\0"),
    ),
    "slope zero": ("E_BAD_RESCALE", _setting("RescaleSlope", "0")),
    "slope that is no number": (
        "E_BAD_RESCALE",
        _bytes_changed(b"\x53\x10DS\x02\x001 ", b"\x53\x10DS\x02\x00na"),
    ),
    "unsigned without intercept": ("E_HU_IMPLAUSIBLE", _lacking("RescaleIntercept")),
    "intercept twice": ("E_HU_IMPLAUSIBLE", _setting("RescaleIntercept", "-2048")),
}


@pytest.mark.parametrize("hazard", HAZARDS)
def test_hazards_are_refused_by_code(tmp_path: Path, hazard: str) -> None:
    code, damage = HAZARDS[hazard]
    damage(_write(tmp_path / "s"))
    verdict = _refusal(tmp_path / "s")
    assert verdict.code == code
    assert verdict.reason


def test_a_gap_says_where(tmp_path: Path) -> None:
    _gap(_write(tmp_path / "s"))
    assert "63.00 to 68.00 mm" in _refusal(tmp_path / "s").reason


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    _short_pixels(_write(tmp_path / "s"))
    assert "0006.dcm" in _refusal(tmp_path / "s").reason


def test_a_header_cut_before_its_series_refuses_the_images_beside_it(tmp_path: Path) -> None:
    files = _write(tmp_path / "s")
    files[-1].write_bytes(files[-1].read_bytes()[:300])
    series, verdicts = _read(tmp_path / "s")
    assert series == ()
    assert [v.code for v in verdicts] == ["E_TRUNCATED", "E_TRUNCATED"]


def test_objects_that_are_no_slices_are_unused(tmp_path: Path) -> None:
    for path in _write(tmp_path / "s")[:2]:
        _edit(path, lambda d: d.__setattr__("SOPClassUID", SecondaryCaptureImageStorage))
    files = _write(tmp_path / "t")
    for path in files:
        _edit(path, lambda d: d.__setattr__("SOPClassUID", SecondaryCaptureImageStorage))
    series, verdicts = _read(tmp_path / "t")
    assert series == ()
    assert [(v.status, v.code) for v in verdicts] == [("unused", "E_NOT_CT")]


def test_two_slices_are_too_few(tmp_path: Path) -> None:
    for path in _write(tmp_path / "s")[2:]:
        path.unlink()
    _, (verdict,) = _read(tmp_path / "s")
    assert (verdict.status, verdict.code) == ("unused", "E_TOO_FEW_SLICES")


def test_files_that_are_no_dicom_and_links_are_passed_over(tmp_path: Path) -> None:
    files = _write(tmp_path / "s")
    (tmp_path / "s" / "README.txt").write_text("hello")
    (tmp_path / "s" / "Thumbs.db").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "s" / "empty").write_bytes(b"")
    (tmp_path / "elsewhere").write_bytes(files[0].read_bytes())
    (tmp_path / "s" / "link").symlink_to(tmp_path / "elsewhere")
    (series,), verdicts = _read(tmp_path / "s")
    assert len(verdicts) == 1
    assert len(series.frames.files) == 8


def test_a_lost_slice_is_made_up_only_where_asked_for(tmp_path: Path) -> None:
    _linear_series(tmp_path / "s", lambda k: (0.0, 0.0, 0.0), distance_mm=5.0)
    files = sorted((tmp_path / "s").iterdir())
    files[4].unlink()
    study = read_study(tmp_path / "s", interpolate_gaps=True)
    assert any(w.startswith("W_SLICE_INTERPOLATED") for w in study.warnings)
    volume = study.series[0].volume
    np.testing.assert_allclose(volume.array, _along_world(volume.grid), atol=1.03, rtol=0)
    files[5].unlink()
    with pytest.raises(InputRefused, match="E_SLICE_GAP"):
        read_study(tmp_path / "s", interpolate_gaps=True)


def test_files_without_a_preamble_are_read(tmp_path: Path) -> None:
    for path in _write(tmp_path / "s"):
        path.write_bytes(path.read_bytes()[132:])
    (series,), _ = _read(tmp_path / "s")
    np.testing.assert_array_equal(series.volume.array, volume(shape=_SHAPE).array)


def test_patients_are_never_merged(tmp_path: Path) -> None:
    _write(tmp_path / "a", patient_id="A")
    _write(tmp_path / "b", patient_id="B", uid_seed="2")
    with pytest.raises(InputRefused, match="E_MIXED_PATIENTS") as caught:
        read_dicom(tmp_path)
    assert caught.value.remedy


@pytest.mark.parametrize("keyword", ["PatientName", "PatientBirthDate"])
def test_two_studies_need_one_person(tmp_path: Path, keyword: str) -> None:
    for number in range(2):
        for path in _write(tmp_path / str(number), patient_id="ANON", uid_seed=str(number)):
            value = (("Doe^Jane", "Roe^John"), ("19500101", "19600101"))[
                keyword == "PatientBirthDate"
            ][number]
            _edit(path, lambda d, value=value: d.__setattr__(keyword, value))
    with pytest.raises(InputRefused, match="E_MIXED_PATIENTS") as caught:
        read_dicom(tmp_path)
    assert "Doe" not in str(caught.value)


def test_two_studies_without_a_patient_are_refused_and_one_is_not(tmp_path: Path) -> None:
    _write(tmp_path / "a", patient_id="")
    series, _ = read_dicom(tmp_path)
    assert len(series) == 1
    _write(tmp_path / "b", patient_id="", uid_seed="2")
    with pytest.raises(InputRefused, match="E_MIXED_PATIENTS"):
        read_dicom(tmp_path)


@given(position=st.integers(0, 10**6), value=st.integers(1, 255))
def test_property_a_damaged_header_byte_is_read_right_or_refused(
    position: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No raw exception, and the images that are left never move."""
    folder = tmp_path_factory.mktemp("dicom") / "s"
    files = _write(folder)
    data = bytearray(files[5].read_bytes())
    data[position % data.index(b"\xe0\x7f\x10\x00")] ^= value
    files[5].write_bytes(bytes(data))
    try:
        series, verdicts = read_dicom(folder)
    except InputRefused:
        return
    assert verdicts
    for one in series:
        assert one.volume.grid.shape[0] in (3, 8)


# --- Real series -----------------------------------------------------------------------------


def test_jpeg_2000_is_decoded_as_simpleitk_does(real_data: Path) -> None:
    folder = real_data / "totalsegmentator_example_ct_dicom"
    if not folder.is_dir():
        pytest.skip("the JPEG 2000 series is absent")
    (series,), _ = read_dicom(folder)
    assert series.volume.grid.shape == (20, 512, 512)
    np.testing.assert_allclose(series.volume.grid.spacing_mm, (2.0, 0.9765625, 0.9765625))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(series.frames.files)
    values = sitk.GetArrayFromImage(reader.Execute())
    np.testing.assert_array_equal(series.volume.array, np.maximum(values, -1024))


def test_a_series_beside_its_segmentations_is_found(real_data: Path) -> None:
    folder = real_data / "dcmqi_ct3slice_seg"
    if not folder.is_dir():
        pytest.skip("the dcmqi example is absent")
    series, verdicts = read_dicom(folder)
    assert [s.volume.grid.shape for s in series] == [(3, 512, 512)]
    assert sorted(v.status for v in verdicts) == ["unused", "unused", "usable"]
