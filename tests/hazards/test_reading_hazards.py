"""Cases of the hazard catalogue that meet the DICOM door, one test or more an id."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from file_cases import FILE_CASES, jpeg_ls_of_twelve_bits_signed
from hazard_case import Case
from more_cases import DEPTHS_MM, MORE_CASES, tilted
from reading_truth import misplaced, resampled_wrong
from study_cases import STUDY_CASES
from synthetic_dicom import (
    CANARIES,
    MARKER_HU,
    Place,
    Scene,
    Slice,
    Storage,
    ct_slice,
    enhanced,
    phantom,
    save,
    stack,
)
from transfer_syntaxes import COMPRESSORS

from hepar.errors import InputRefused
from hepar.stages.phases import assign_phases
from hepar.stages.read import read_study
from hepar.study import Study

CASES = {case.id: case for case in (*STUDY_CASES, *FILE_CASES)}
_MAX_INFLATED_BYTES = 200 << 20
_CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def fault(study: Study, scene: Scene, tolerance_mm: float = 0.01) -> str | None:
    """None when each volume of the scene was read once, voxel by voxel, and nothing else was."""
    if len(study.series) != len(scene.volumes):
        return f"{len(study.series)} series for {len(scene.volumes)} volumes"
    left = list(scene.volumes)
    for series in study.series:
        array, affine = series.volume.array, series.volume.grid.affine
        if array.dtype != np.int16:
            return f"HU are {array.dtype}"
        found = [misplaced(array, affine, slices, tolerance_mm) for slices in left]
        if None not in found:
            return f"{series.verdict.series_id}: {'; '.join(filter(None, found))}"
        del left[found.index(None)]
    return None


def resampled_fault(study: Study, slices: list[Slice]) -> str | None:
    """None when the only series is these images, interpolated."""
    if len(study.series) != 1:
        return f"{len(study.series)} series"
    volume = study.series[0].volume
    return resampled_wrong(volume.array, volume.grid.affine, slices, MARKER_HU)


def codes(study: Study) -> set[str]:
    """Every code that is said of a study."""
    said = {warning.partition(":")[0] for warning in study.warnings}
    return said | {verdict.code for verdict in study.verdicts if verdict.code}


def tells_no_secret(text: str, folder: Path) -> bool:
    """Whether a text holds neither the patient's data nor where the files lie."""
    return not any(secret in text for secret in (*CANARIES, str(folder.parent)))


def refusal(folder: Path) -> InputRefused:
    """The refusal of a folder, which names nobody."""
    with pytest.raises(InputRefused) as caught:
        read_study(folder)
    assert tells_no_secret(f"{caught.value}", folder)
    assert caught.value.remedy
    return caught.value


def of_outcome(outcome: str) -> list[object]:
    return [pytest.param(case, id=case.id) for case in CASES.values() if case.outcome == outcome]


@pytest.mark.parametrize("case", of_outcome("read"))
def test_property_a_case_that_can_be_read_is_right_and_says_its_code(
    case: Case, tmp_path: Path
) -> None:
    scene = case.build(tmp_path / "study")
    study = read_study(tmp_path / "study")
    if case.resampled:
        assert resampled_fault(study, scene.volumes[0]) is None
    else:
        assert fault(study, scene, case.tolerance_mm) is None
    if case.code:
        assert case.code in codes(study)
    else:
        assert not codes(study)
    assert tells_no_secret(f"{study.warnings}{study.verdicts}", tmp_path / "study")


@pytest.mark.parametrize("case", of_outcome("refused"))
def test_property_a_case_that_cannot_be_read_is_refused_with_its_code(
    case: Case, tmp_path: Path
) -> None:
    case.build(tmp_path / "study")
    assert refusal(tmp_path / "study").code == case.code


@pytest.mark.parametrize("case", of_outcome("set aside"))
def test_property_a_harmful_file_is_set_aside_and_the_study_is_right(
    case: Case, tmp_path: Path
) -> None:
    scene = case.build(tmp_path / "study")
    study = read_study(tmp_path / "study")
    assert fault(study, scene) is None
    refused = [verdict for verdict in study.verdicts if verdict.status == "refused"]
    assert [verdict.code for verdict in refused] == [case.code]


def _beside() -> list[object]:
    """A series in one compressed syntax is for `full`; the mixed ones below hold them all."""
    alone = {"X03", "X04", "X05", "X06"}
    return [
        pytest.param(case, id=case.id, marks=[pytest.mark.full] if case.id in alone else [])
        for case in MORE_CASES
    ]


@pytest.mark.parametrize("case", _beside())
def test_property_a_case_beside_the_catalogue(case: Case, tmp_path: Path) -> None:
    scene = case.build(tmp_path / "study")
    if case.outcome == "refused":
        assert refusal(tmp_path / "study").code == case.code
    elif case.resampled:
        assert resampled_fault(read_study(tmp_path / "study"), scene.volumes[0]) is None
    else:
        assert fault(read_study(tmp_path / "study"), scene) is None


# --- What the catalogue says beyond a code -----------------------------------------------------


def test_property_PH05_the_refusal_counts_patients_and_names_none(tmp_path: Path) -> None:
    CASES["PH05"].build(tmp_path / "study")
    assert "2" in refusal(tmp_path / "study").message


def test_property_PH06_time_against_tags(tmp_path: Path) -> None:
    slices = stack(SeriesDescription="portal venous", ContrastBolusStartTime="101100")
    for one in slices:
        one.data.AcquisitionTime = "101010"
    save(slices, tmp_path / "study")
    phased = assign_phases(read_study(tmp_path / "study"))
    assert any("W_PHASE_TAG_CONFLICT" in text for text in phased.warnings)


@pytest.mark.parametrize(("case", "place"), [("GE02", "20.00"), ("GE03", "40.00")])
def test_property_GE02_GE03_the_refusal_says_where_the_gap_is(
    case: str, place: str, tmp_path: Path
) -> None:
    CASES[case].build(tmp_path / "study")
    assert place in refusal(tmp_path / "study").message


def test_property_GE04_one_uid_for_two_images_is_refused(tmp_path: Path) -> None:
    slices = stack()
    other = ct_slice(5, slices[5].place, hu=np.roll(slices[5].hu, 3, axis=0))
    other.data.SOPInstanceUID = slices[5].data.SOPInstanceUID
    save([*slices, other], tmp_path / "study")
    assert refusal(tmp_path / "study").code == "E_UID_CONFLICT"


@pytest.mark.parametrize("degrees", [-20.0, 4.0, 30.0])
@pytest.mark.parametrize("multi", [False, True], ids=["classic", "enhanced"])
def test_property_GE09_any_tilt(degrees: float, multi: bool, tmp_path: Path) -> None:
    slices = tilted(degrees)
    save([enhanced(slices)] if multi else slices, tmp_path / "study")
    study = read_study(tmp_path / "study")
    assert resampled_fault(study, slices) is None
    assert "W_GANTRY_TILT" in codes(study)


def test_property_GE09_a_tag_of_tilt_on_upright_images_changes_nothing(tmp_path: Path) -> None:
    slices = stack(GantryDetectorTilt="15")
    save(slices, tmp_path / "study")
    assert fault(read_study(tmp_path / "study"), Scene([slices])) is None


@pytest.mark.parametrize("multi", [False, True], ids=["classic", "enhanced"])
def test_property_non_uniform_distances_are_read_by_true_position(
    multi: bool, tmp_path: Path
) -> None:
    slices = stack(depths_mm=DEPTHS_MM)
    save([enhanced(slices)] if multi else slices, tmp_path / "study")
    study = read_study(tmp_path / "study")
    assert resampled_fault(study, slices) is None
    assert any(code.startswith("W_") for code in codes(study))


def test_property_GE16_a_reformat_beside_an_axial_series_is_not_used(tmp_path: Path) -> None:
    axial = stack(acquisition=1)
    coronal = stack(orientation=_CORONAL, origin_mm=(-24.0, -30.0, 60.0), series="1.2.3.5")
    save(axial, tmp_path / "study" / "a")
    save(coronal, tmp_path / "study" / "b")
    study = read_study(tmp_path / "study")
    assert fault(study, Scene([axial])) is None
    assert "W_NON_AXIAL" in codes(study)


def test_property_GE18_axes_far_from_orthonormal_are_refused(tmp_path: Path) -> None:
    save(stack(orientation=(0.98, 0.06, 0.0, -0.06, 0.998, 0.0)), tmp_path / "study")
    assert refusal(tmp_path / "study").code == "E_NO_GEOMETRY"


def test_property_GE19_a_gap_that_the_odd_image_leaves_is_refused(tmp_path: Path) -> None:
    slices = stack()
    odd = ct_slice(5, Place((-24.0, -32.0, 25.0), _CORONAL))
    save([*slices[:5], odd, *slices[6:]], tmp_path / "study")
    assert refusal(tmp_path / "study").code == "E_SLICE_GAP"


@pytest.mark.full
def test_property_GE33_two_thousand_slices_stay_under_twelve_gigabytes(tmp_path: Path) -> None:
    code = """
import resource, sys
import numpy as np
from pathlib import Path
from reading_truth import misplaced
from study_cases import two_thousand_slices
from hepar.stages.read import read_study
folder = Path(sys.argv[1])
scene = two_thousand_slices(folder)
(series,) = read_study(folder).series
volume = series.volume
assert volume.grid.shape == (2000, 512, 512), volume.grid.shape
for one in scene.volumes[0]:
    k = int(one.data.InstanceNumber) - 1
    assert np.array_equal(volume.array[k], one.hu)
    corner = volume.grid.index_to_world(np.array([k, 0.0, 0.0]))
    assert np.abs(corner - one.place.corner_mm).max() < 0.01
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "study")],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=here,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) < 12 * 2**20


@pytest.mark.parametrize("case", ["FI01", "FI02", "PX09", "PX15"])
def test_property_a_refusal_names_the_file(case: str, tmp_path: Path) -> None:
    CASES[case].build(tmp_path / "study")
    name = "i0003.dcm" if case == "PX09" else "i0005.dcm"
    assert name in refusal(tmp_path / "study").message


def test_property_PX16_the_refusal_names_the_transfer_syntax(tmp_path: Path) -> None:
    CASES["PX16"].build(tmp_path / "study")
    assert "1.2.840.10008.1.2.9" in refusal(tmp_path / "study").message


def test_property_FI15_what_a_bomb_inflates_to_is_never_held(tmp_path: Path) -> None:
    CASES["FI15"].build(tmp_path / "study")
    read_study(tmp_path / "study")  # What is loaded once is not the bomb's.
    tracemalloc.start()
    try:
        read_study(tmp_path / "study")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < _MAX_INFLATED_BYTES


# --- Transfer syntaxes -------------------------------------------------------------------------

STORAGES = {
    "unsigned 16": Storage(),
    "signed 16": Storage(signed=True, intercept=0.0),
    "unsigned 12": Storage(bits=12),
    "signed 12": Storage(signed=True, bits=12, intercept=0.0),
}


# One series of images of unlike syntaxes takes one decoding process; a series each is for `full`.
_EACH = [
    pytest.param(syntax, storage, marks=pytest.mark.full)
    for syntax in COMPRESSORS
    for storage in STORAGES
    if not (syntax.endswith("GDCM") and storage.endswith("12"))
]


@pytest.mark.parametrize(("syntax", "storage"), [*(("mixed", s) for s in STORAGES), *_EACH])
def test_property_lossless_compression_changes_no_voxel(
    syntax: str, storage: str, tmp_path: Path
) -> None:
    able = [s for s in COMPRESSORS if not (s.endswith("GDCM") and storage.endswith("12"))]
    slices = _noisy(STORAGES[storage])
    for k, one in enumerate(slices):
        COMPRESSORS[able[k % len(able)] if syntax == "mixed" else syntax](one.data)
    save(slices, tmp_path / "study")
    assert fault(read_study(tmp_path / "study"), Scene([slices])) is None


@pytest.mark.full
@pytest.mark.parametrize("syntax", ["RLE", "JPEG2000", "JPEG-LS", "JPEG-SV1"])
def test_property_FI13_a_compressed_enhanced_file_is_read_frame_by_frame(
    syntax: str, tmp_path: Path
) -> None:
    slices = _noisy(Storage(bits=12))
    one_file = enhanced(slices)
    COMPRESSORS[syntax](one_file.data)
    save([one_file], tmp_path / "study")
    assert fault(read_study(tmp_path / "study"), Scene([slices])) is None


def _noisy(storage: Storage) -> list[Slice]:
    """Small images with a texture, so that a pixel out of place shows."""
    noise = np.random.default_rng(5)
    slices = []
    for k in range(len(COMPRESSORS)):
        place = Place((-24.0, -32.0, 5.0 * k), pixel_mm=(1.8, 1.4), matrix=(36, 34))
        hu = phantom(place.world_mm()) + noise.integers(-20, 200, place.matrix)
        hu[:2, :] = -1000
        slices.append(ct_slice(k, place, storage, hu=np.clip(hu, -1024, 1024).astype(np.int16)))
    return slices


@pytest.mark.parametrize("syntax", ["JPEG-LS", "JPEG-SV1", *(f"JPEG-P14-{p}" for p in range(1, 8))])
def test_oracle_gdcm_decodes_what_the_encoders_here_write(syntax: str, tmp_path: Path) -> None:
    """GDCM holds libjpeg and CharLS: what it reads back is what any other program reads."""
    for bits, seed in ((12, 0), (16, 1)):
        image = np.random.default_rng(seed).integers(0, 1 << bits, (23, 17))
        image[5:14, 3:12], image[20:] = 7, (1 << bits) - 1
        place = Place((0.0, 0.0, 0.0), matrix=(23, 17))
        one = ct_slice(0, place, Storage(bits=bits), hu=np.zeros((23, 17), np.int16))
        one.data.RescaleIntercept = "0"
        one.data.PixelData = image.astype("<u2").tobytes()
        COMPRESSORS[syntax](one.data)
        (path,) = save([one], tmp_path, [f"{bits}.dcm"])
        read = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))
        np.testing.assert_array_equal(read.squeeze(), image)


def test_regression_PX14_the_case_is_compressed(tmp_path: Path) -> None:
    """The case must not test what it does not hold."""
    jpeg_ls_of_twelve_bits_signed(tmp_path / "study")
    data = pydicom.dcmread(tmp_path / "study" / "i0000.dcm")
    assert data.file_meta.TransferSyntaxUID == pydicom.uid.JPEGLSLossless
    assert len(data.PixelData) < 64 * 48
