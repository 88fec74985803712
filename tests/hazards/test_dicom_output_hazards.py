"""DICOM output, one test or more a case of `docs/hazards.md`: the right voxels, the right numbers.

A SEG is judged by the places that its own frames claim, and by the images that they name.
"""

from __future__ import annotations

import shutil
import subprocess
from itertools import cycle, permutations, product
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom_case import (
    PROVENANCE,
    DicomCase,
    frames_of,
    places,
    read_series,
    write_case,
    wrong_pixels,
)
from synthetic_dicom import Place, Slice, ct_slice, enhanced, save, stack

import hepar.stages.dicom_out
from hepar.geometry import Grid
from hepar.infer.measure import feret_axes_mm
from hepar.io.dicom_write import write_dicom_series
from hepar.io.nifti import read_label, write_nifti
from hepar.io.seg_masks import read_seg_masks
from hepar.stages.stored_voxels import as_stored
from hepar.study import Volume

# Off every pixel center, so that rounding of a position changes no label.
CENTER_MM, LIVER_MM = np.array([1.03, -2.07, 30.3]), 15.13
LESIONS_MM = (((6.1, -3.2, -4.9), 5.07), ((-7.2, 4.6, 6.1), 4.03))


def anatomy(world_mm: np.ndarray) -> np.ndarray:
    """A ball of a liver with two balls of lesions that no flip or turn maps onto itself."""
    numbers = healthy(world_mm)
    for number, (offset, radius) in enumerate(LESIONS_MM, start=2):
        far = np.linalg.norm(world_mm - CENTER_MM - np.array(offset), axis=-1)
        numbers[far < radius] = number
    return numbers


def healthy(world_mm: np.ndarray) -> np.ndarray:
    """The liver alone."""
    return (np.linalg.norm(world_mm - CENTER_MM, axis=-1) < LIVER_MM).astype(int)


def pixels_of(numbers: np.ndarray) -> list[int]:
    """Pixels of the liver and of both lesions."""
    return [int((numbers == k).sum()) for k in (1, 2, 3)]


def in_seg(path: Path) -> list[int]:
    """The same in a SEG."""
    found = [0, 0, 0]
    for frame in frames_of(path):
        found[frame.segment - 1] += int(frame.mask.sum())
    return found


def assert_on_images(found: DicomCase, images: list[Slice], truth=anatomy) -> None:
    """Every pixel of every image is in the right segment, and each frame names its image."""
    assert wrong_pixels(found.seg, truth) == 0
    expected = np.sum([pixels_of(truth(one.place.world_mm())) for one in images], axis=0)
    assert in_seg(found.seg) == expected.tolist()
    corners = {str(one.data.SOPInstanceUID): one.place.corner_mm for one in images}
    for frame in frames_of(found.seg):
        ((uid, _),) = frame.sources
        np.testing.assert_allclose(frame.world_mm[0, 0], corners[uid], atol=1e-6)


# Each order of the axes and each combination of directions at once; all 48 in `make test-full`.
QUICK = set(zip(cycle(permutations(range(3))), product((1, -1), repeat=3), strict=False))
ORIENTATIONS = [
    pytest.param(*one, id=str(one), marks=() if one in QUICK else pytest.mark.full)
    for one in product(permutations(range(3)), product((1, -1), repeat=3))
]


@pytest.fixture
def without_report(monkeypatch):
    """Leaves the SR out, which takes most of the time."""
    groups = []
    monkeypatch.setattr(
        hepar.stages.dicom_out, "write_sr", lambda path, said, *a, **k: groups.append(said)
    )
    monkeypatch.setattr(hepar.stages.dicom_out, "read_sr", lambda path: groups[-1])


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_property_OU02_seg_and_nifti_say_the_same_in_every_orientation(
    tmp_path, without_report, order, signs
):
    """48: rows, columns and slices along any axis, either way."""
    matrix = np.zeros((3, 3))
    matrix[list(order), range(3)] = signs
    shape, spacing = (9, 10, 12), (4.0, 3.5, 3.0)
    corner = CENTER_MM + 0.31 - matrix @ (np.array(spacing) * (np.array(shape) - 1) / 2)
    grid = Grid(shape, spacing, tuple(map(float, corner)), tuple(map(float, matrix.flat)))
    hu = np.full(grid.shape, 40, np.int16)
    hu[anatomy(places(grid)) == 0] = -900
    study = tmp_path / "study"
    write_dicom_series(study, Volume(hu, grid), description="pv", series_number=1)
    found = write_case(study, anatomy, tmp_path / "out")
    assert wrong_pixels(found.seg, anatomy) == 0
    assert in_seg(found.seg) == pixels_of(anatomy(places(grid)))
    assert min(in_seg(found.seg)) > 0
    write_nifti(tmp_path / "mask.nii.gz", *as_stored(found.lesions.label, found.case.aligned))
    mask = read_label(tmp_path / "mask.nii.gz")
    for frame in frames_of(found.seg):
        index = np.rint(mask.grid.world_to_index(frame.world_mm)).astype(int)
        label = mask.array[tuple(np.moveaxis(index, -1, 0))]
        assert (label[frame.mask] == (1 if frame.segment == 1 else 2)).all()


def test_oracle_OU02_three_readers_decode_the_same_voxels(tmp_path):
    images = stack(12)
    save(images, tmp_path / "study")
    found = write_case(tmp_path / "study", anatomy, tmp_path / "out")
    assert_on_images(found, images)
    expected = np.stack([anatomy(one.place.world_mm()) for one in images])
    # highdicom, onto the volume of the source images.
    sources = [pydicom.dcmread(p) for p in sorted((tmp_path / "study").iterdir())]
    seg = hd.seg.segread(found.seg)
    volume = seg.get_volume(combine_segments=True)
    volume = volume.match_geometry(hd.get_volume_from_series(sources))
    index = np.stack(np.meshgrid(*map(np.arange, volume.array.shape), indexing="ij"), axis=-1)
    world = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    np.testing.assert_array_equal(volume.array, anatomy(world))
    by_image = seg.get_pixels_by_source_instance(
        [one.SOPInstanceUID for one in sources],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
    )
    np.testing.assert_array_equal(by_image, expected)
    # SimpleITK sees frames without their meaning, in the same order and of the same pixels.
    frames = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(found.seg))) > 0
    np.testing.assert_array_equal(frames, [frame.mask for frame in frames_of(found.seg)])


def tilted() -> list[Slice]:
    """Images of a gantry tilted by 15 degrees, the recipe of GE09."""
    cosine, sine = np.cos(np.deg2rad(15)), np.sin(np.deg2rad(15))
    orientation = (1.0, 0.0, 0.0, 0.0, float(cosine), float(-sine))
    return [ct_slice(k, Place((-24.0, -32.0, 5.0 * k), orientation)) for k in range(16)]


def test_property_GE09_a_seg_lies_on_the_tilted_images(tmp_path):
    images = tilted()
    save(images, tmp_path / "study")
    found = write_case(tmp_path / "study", anatomy, tmp_path / "out")
    frames = frames_of(found.seg)
    corners = {str(one.data.SOPInstanceUID): one.place for one in images}
    for frame in frames:
        ((uid, _),) = frame.sources
        np.testing.assert_allclose(frame.world_mm, corners[uid].world_mm(), atol=1e-6)
    # The masks came from voxels that lie up to half a pixel beside the images'.
    for number in (1, 2, 3):
        truth = [anatomy(one.place.world_mm()) == number for one in images]
        mine = {frame.sources[0][0]: frame.mask for frame in frames if frame.segment == number}
        uids = [str(one.data.SOPInstanceUID) for one in images]
        masks = [mine.get(uid, np.zeros((64, 48), bool)) for uid in uids]
        both = np.logical_and(truth, masks).sum()
        assert 2 * both / (np.sum(truth) + np.sum(masks)) > 0.93
        centers = [
            np.concatenate([one.place.world_mm()[m] for one, m in zip(images, part, strict=True)])
            for part in (truth, masks)
        ]
        assert np.linalg.norm(centers[0].mean(0) - centers[1].mean(0)) < 0.5


def shuffled() -> list[Slice]:
    """Files whose names and numbers say nothing of their order."""
    images = stack(12)
    for k, one in enumerate(images):
        one.data.InstanceNumber = (7 * k) % 12 + 1
    return images


def lost_one() -> list[Slice]:
    """A series without its sixth image."""
    return [one for k, one in enumerate(stack(13)) if k != 5]


def noisy() -> list[Slice]:
    """Positions that one spacing is fitted to."""
    offsets = 0.12 * np.random.default_rng(3).uniform(-1, 1, 12)
    return stack(depths_mm=[5.0 * k + float(d) for k, d in enumerate(offsets)])


@pytest.mark.parametrize("build", [shuffled, lost_one, noisy])
def test_property_OU02_each_frame_names_its_image(tmp_path, build):
    images = build()
    names = [f"{(5 * k) % len(images)}.dcm" for k in range(len(images))]
    save(images, tmp_path / "study", names)
    found = write_case(tmp_path / "study", anatomy, tmp_path / "out")
    if build is noisy:  # the voxels are up to 0.12 mm beside the images
        expected = np.sum([pixels_of(anatomy(one.place.world_mm())) for one in images], axis=0)
        assert np.abs(np.array(in_seg(found.seg)) / expected - 1).max() < 0.05
        assert {f.sources[0][0] for f in frames_of(found.seg)} <= {
            str(one.data.SOPInstanceUID) for one in images
        }
    else:
        assert_on_images(found, images)


@pytest.mark.parametrize("build", [shuffled, lost_one, noisy, tilted])
def test_property_OU02_a_seg_is_taken_back_as_a_mask(tmp_path, without_report, build):
    save(build(), tmp_path / "study")
    found = read_seg_masks(write_case(tmp_path / "study", anatomy, tmp_path / "out").seg)
    truth = anatomy(places(found.grid))
    if build is lost_one:  # there is no frame where there was no image
        truth[~found.liver.any(axis=(1, 2))] = 0
    for mine, theirs in (
        (found.liver, truth > 0),
        (found.lesions == 1, truth == 2),
        (found.lesions == 2, truth == 3),
    ):
        overlap = 2 * (mine & theirs).sum() / (mine.sum() + theirs.sum())
        assert overlap == 1 if build in (shuffled, lost_one) else overlap > 0.9


@pytest.mark.parametrize("phases", [1, 2])
def test_property_OU02_frames_of_an_enhanced_ct_keep_their_numbers(tmp_path, phases):
    images = stack(12)
    if phases == 2:
        images += stack(12, acquisition=2, AcquisitionTime="101510")
    one = enhanced(images, seed=5)
    save([one], tmp_path / "study")
    assert len(read_series(tmp_path / "study")) == phases
    found = write_case(tmp_path / "study", anatomy, tmp_path / "out")
    assert wrong_pixels(found.seg, anatomy) == 0
    expected = np.sum([pixels_of(anatomy(im.place.world_mm())) for im in images[:12]], axis=0)
    assert in_seg(found.seg) == expected.tolist()
    groups = one.data.PerFrameFunctionalGroupsSequence
    for frame in frames_of(found.seg):
        ((uid, number),) = frame.sources
        assert uid == one.data.SOPInstanceUID
        named = groups[number - 1]
        corner = named.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(frame.world_mm[0, 0], corner, atol=1e-6)
        if phases == 2:
            assert named.FrameContentSequence[0].FrameAcquisitionNumber == 2


def test_property_OU02_other_phases_are_further_sources(tmp_path):
    for phase in (1, 2):
        images = stack(12, series=f"1.2.3.{phase}", SeriesNumber=phase)
        save(images, tmp_path / "study" / str(phase))
    found = write_case(tmp_path / "study", anatomy, tmp_path / "out")
    assert wrong_pixels(found.seg, anatomy) == 0
    data = pydicom.dcmread(found.seg)
    assert [str(s.SeriesInstanceUID) for s in data.ReferencedSeriesSequence] == [
        *("1.2.3.2", "1.2.3.1")
    ]
    for frame in frames_of(found.seg):
        assert len(frame.sources) == 2  # the image it lies on, and the other phase's there


def test_property_OU03_no_lesion_is_said_and_valid(tmp_path):
    save(stack(12), tmp_path / "study")
    found = write_case(tmp_path / "study", healthy, tmp_path / "out")
    data = pydicom.dcmread(found.seg)
    assert [s.SegmentLabel for s in data.SegmentSequence] == ["Liver without lesions"]
    assert in_seg(found.seg)[1:] == [0, 0]
    assert wrong_pixels(found.seg, healthy) == 0
    (group,) = hd.sr.srread(found.sr).content.get_volumetric_roi_measurement_groups()
    summary = hd.sr.CodedConcept("111017", "DCM", "CAD Processing and Findings Summary")
    (said,) = group.get_qualitative_evaluations(summary)
    assert said.value.value == "111241"
    count = hd.sr.CodedConcept("246206008", "SCT", "Number of lesions")
    assert [float(m.value) for m in group.get_measurements(count)] == [0]


SPHERE_SPACINGS_MM = [(1.0, 1.0, 1.0), (2.5, 0.8, 0.8), (5.0, 0.7, 0.7)]


@pytest.mark.parametrize("spacing", SPHERE_SPACINGS_MM, ids=str)
def test_closed_form_OU05_numbers_of_the_sr_are_those_of_the_seg(tmp_path, spacing):
    def sphere(world_mm: np.ndarray) -> np.ndarray:
        far = np.linalg.norm(world_mm - CENTER_MM, axis=-1)
        return (far < 18).astype(int) + (far < 10)

    count = int(np.ceil(42 / spacing[0]))
    shape = (count, *(int(40 / s) for s in spacing[1:]))
    corner = CENTER_MM - 0.5 * (np.array(shape) * spacing)[::-1]
    grid = Grid.axial(shape, spacing, tuple(map(float, corner)))
    hu = np.where(sphere(places(grid)) > 1, 60, 110).astype(np.int16)
    hu[sphere(places(grid)) == 0] = -200
    write_dicom_series(tmp_path / "study", Volume(hu, grid), description="pv", series_number=1)
    found = write_case(tmp_path / "study", sphere, tmp_path / "out", measured=True)
    content = hd.sr.srread(found.sr).content
    group = content.get_volumetric_roi_measurement_groups()[1]
    said = {m.name.value: (float(m.value), m.unit) for m in group.get_measurements()}
    assert {code: unit.value for code, (_, unit) in said.items() if code.isdigit()} == {
        "118565006": "ml",
        "103339001": "mm",
        "103340004": "mm",
    }
    assert {unit.scheme_designator for _, unit in said.values()} == {"UCUM"}
    lesion = [frame for frame in frames_of(found.seg) if frame.segment == 2]
    lesion.sort(key=lambda frame: frame.world_mm[0, 0, 2])
    step = np.diff([frame.world_mm[0, 0, 2] for frame in lesion])
    row, column = lesion[0].world_mm[0, 1] - lesion[0].world_mm[0, 0], lesion[0].world_mm[1, 0]
    pixel_mm2 = np.linalg.norm(row) * np.linalg.norm(column - lesion[0].world_mm[0, 0])
    volume_ml = sum(f.mask.sum() for f in lesion) * pixel_mm2 * step.mean() / 1000
    assert said["118565006"][0] == pytest.approx(volume_ml, rel=1e-3)
    assert said["118565006"][0] == pytest.approx(4 / 3 * np.pi, rel=0.05)
    axes = feret_axes_mm(np.array([frame.mask for frame in lesion]), spacing)
    for code, axis in zip(("103339001", "103340004"), axes, strict=True):
        assert said[code][0] == pytest.approx(axis, abs=0.1)
        assert said[code][0] == pytest.approx(20, abs=max(0.5, spacing[1]))


def test_property_OU07_both_objects_name_model_code_settings_input_and_warnings(tmp_path):
    save(stack(12), tmp_path / "study")
    warnings = ("W_GANTRY_TILT: s1 leans", "W_GANTRY_TILT: s2 leans", "W_SLICE_INTERPOLATED: s1")
    found = write_case(tmp_path / "study", anatomy, tmp_path / "out", warnings=warnings)
    hashes = {**PROVENANCE["hashes"], "code": PROVENANCE["code_sha256"]}
    for segment in pydicom.dcmread(found.seg).SegmentSequence:
        (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("hepar", "1.2.3")
        for name, digest in hashes.items():
            assert f"{name}_sha256={digest}" in algorithm.AlgorithmParameters
    report = pydicom.dcmread(found.sr)
    assert report.PreliminaryFlag == "PRELIMINARY"
    assert report.VerificationFlag == "UNVERIFIED"
    for group in hd.sr.srread(found.sr).content.get_volumetric_roi_measurement_groups():
        texts = [item.TextValue for item in group[0].ContentSequence if "TextValue" in item]
        assert {"hepar", "1.2.3"} <= set(texts)
        assert {f"{name}_sha256: {digest}" for name, digest in hashes.items()} <= set(texts)
    liver = hd.sr.srread(found.sr).content.get_volumetric_roi_measurement_groups()[0]
    words = [(e.name.value, e.value.value) for e in liver.get_qualitative_evaluations()]
    assert words[1:] == [("WARNING", "W_GANTRY_TILT"), ("WARNING", "W_SLICE_INTERPOLATED")]


@pytest.mark.full
@pytest.mark.parametrize("truth", [anatomy, healthy])
@pytest.mark.parametrize("build", [tilted, shuffled, lambda: [enhanced(stack(12))]])
def test_oracle_OU02_dciodvfy_finds_no_error(tmp_path, build, truth):
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy is not installed: make system")
    save(build(), tmp_path / "study")
    found = write_case(tmp_path / "study", truth, tmp_path / "out")
    for path in (found.seg, found.sr):
        said = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
        lines = (said.stdout + said.stderr).splitlines()
        assert any(line.startswith(("Segmentation", "Comprehensive3DSR")) for line in lines)
        assert [line for line in lines if line.startswith("Error")] == []
