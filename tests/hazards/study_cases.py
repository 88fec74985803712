"""Cases of the catalogue about what belongs together and where it lies: PH and GE."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import numpy as np
from hazard_case import Case, lone
from synthetic_dicom import AXIAL, MARKER_HU, Place, Scene, Slice, ct_slice, phantom, save, stack

_CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
_OTHER_HU = 200


def _two_passes(folder: Path, first: list[Slice], second: list[Slice], *, clock: bool) -> Scene:
    """Two passes of one series, numbered through."""
    for k, one in enumerate([*first, *second]):
        one.data.InstanceNumber = k + 1
        if clock:
            late = k >= len(first)
            one.data.AcquisitionTime = one.data.ContentTime = "101040" if late else "101010"
    save([*first, *second], folder)
    return Scene([first, second], (MARKER_HU, _OTHER_HU))


def acquisition_numbers(folder: Path) -> Scene:
    """Two phases in one series, told apart by AcquisitionNumber and time."""
    return _two_passes(folder, stack(), stack(acquisition=2, marker_hu=_OTHER_HU), clock=True)


def times_only(folder: Path) -> Scene:
    """Two phases in one series, told apart by time alone."""
    return _two_passes(folder, stack(), stack(marker_hu=_OTHER_HU), clock=True)


def shifted_by_half_a_step(folder: Path) -> Scene:
    """Two phases whose slices lie between one another's."""
    second = stack(first_mm=2.5, acquisition=2, marker_hu=_OTHER_HU)
    return _two_passes(folder, stack(), second, clock=False)


def two_series(folder: Path) -> Scene:
    """Two series mixed in one folder."""
    first, second = stack(), stack(series="1.2.3.5", marker_hu=_OTHER_HU)
    save([*first, *second], folder)
    return Scene([first, second], (MARKER_HU, _OTHER_HU))


def two_patients(folder: Path) -> Scene:
    """Two patients mixed in one folder."""
    first = stack()
    second = stack(study="1.2.99", series="1.2.99.1", marker_hu=_OTHER_HU)
    for one in second:
        one.data.PatientID, one.data.PatientName = "OTHER", "OTHER^P"
    save([*first, *second], folder)
    return Scene([first, second], (MARKER_HU, _OTHER_HU))


def native_called_portal_venous(folder: Path) -> Scene:
    """An aorta of 40 HU in a series that calls itself portal venous."""
    slices = []
    for one in stack():
        x, y = np.moveaxis(one.place.world_mm()[..., :2], -1, 0)
        hu = phantom(one.place.world_mm())
        hu[(x - 3.1) ** 2 + (y - 15.2) ** 2 < 8.3**2] = 40
        k = len(slices)
        slices.append(ct_slice(k, one.place, hu=hu, SeriesDescription="PORTAL VENOUS"))
    return lone(slices, folder)


def portal_venous_alone(folder: Path) -> Scene:
    """One phase of the four."""
    return lone(stack(SeriesDescription="portal venous"), folder)


def dose_modulation(folder: Path) -> Scene:
    """Tube current and exposure that change from slice to slice."""
    slices = stack()
    for k, one in enumerate(slices):
        one.data.XRayTubeCurrent, one.data.Exposure = 100 + k, 50 + k
    return lone(slices, folder)


def missing_slice(folder: Path) -> Scene:
    """One slice is missing."""
    slices = stack()
    del slices[5]
    return lone(slices, folder)


def missing_block(folder: Path) -> Scene:
    """Five slices are missing."""
    slices = stack(20)
    del slices[9:14]
    return lone(slices, folder)


def same_file_twice(folder: Path) -> Scene:
    """A copy of one file."""
    slices = stack()
    save([*slices, copy.deepcopy(slices[5])], folder)
    return Scene([slices])


def _jitter(folder: Path, amplitude_mm: float) -> Scene:
    # The stream of the catalogue's own recipe.
    noise = np.random.RandomState(0).uniform(-amplitude_mm, amplitude_mm, 12)
    return lone(stack(depths_mm=[5 * k + float(noise[k]) for k in range(12)]), folder)


def jitter_of_a_hundredth(folder: Path) -> Scene:
    """Positions rounded to a hundredth of a millimeter."""
    return _jitter(folder, 0.01)


def jitter_of_a_third(folder: Path) -> Scene:
    """Positions up to 0.3 mm off."""
    return _jitter(folder, 0.3)


def gantry_tilt(folder: Path) -> Scene:
    """A gantry tilted by 15 degrees: images shifted along z, not along their normal."""
    tilt = np.deg2rad(15)
    turned = (1.0, 0.0, 0.0, 0.0, float(np.cos(tilt)), float(-np.sin(tilt)))
    return lone([ct_slice(k, Place((-24.0, -32.0, 5.0 * k), turned)) for k in range(16)], folder)


def instances_backwards(folder: Path) -> Scene:
    """InstanceNumber runs against position."""
    slices = stack()
    for k, one in enumerate(slices):
        one.data.InstanceNumber = 12 - k
    return lone(slices, folder)


def random_names(folder: Path) -> Scene:
    """File names that say nothing."""
    return lone(stack(), folder, [f"{random.Random(k).getrandbits(64):x}" for k in range(12)])


def rows_from_below(folder: Path) -> Scene:
    """Rows that run from posterior to anterior."""
    turned = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
    return lone(stack(orientation=turned, origin_mm=(-24.0, 31.0, 60.0)), folder)


def columns_from_the_left(folder: Path) -> Scene:
    """Columns that run from left to right."""
    turned = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    return lone(stack(orientation=turned, origin_mm=(23.0, -32.0, 60.0)), folder)


def prone(folder: Path) -> Scene:
    """A patient on the stomach."""
    turned = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
    return lone(
        stack(orientation=turned, origin_mm=(23.0, 31.0, 0.0), PatientPosition="HFP"), folder
    )


def _coronal() -> list[Slice]:
    return stack(orientation=_CORONAL, origin_mm=(-24.0, -30.0, 60.0))


def coronal(folder: Path) -> Scene:
    """A coronal reformat, alone."""
    return lone(_coronal(), folder)


def oblique(folder: Path) -> Scene:
    """Images turned by 10 degrees in their plane."""
    cos, sin = float(np.cos(np.deg2rad(10))), float(np.sin(np.deg2rad(10)))
    return lone(stack(orientation=(cos, sin, 0.0, -sin, cos, 0.0)), folder)


def rounded_orientation(folder: Path) -> Scene:
    """Direction cosines of three decimals."""
    return lone(stack(orientation=(0.998, 0.06, 0.0, -0.06, 0.998, 0.0)), folder)


def one_coronal_image(folder: Path) -> Scene:
    """A coronal image in an axial series."""
    slices = stack()[:11]
    save([*slices, ct_slice(11, Place((-24.0, -32.0, 55.0), _CORONAL))], folder)
    return Scene([slices])


def localizer(folder: Path) -> Scene:
    """A localizer in an axial series."""
    slices = stack()
    picture = ct_slice(99, Place((-24.0, 0.0, 60.0), _CORONAL, matrix=(100, 80)))
    picture.data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save([*slices, picture], folder)
    return Scene([slices])


def smaller_matrix(folder: Path) -> Scene:
    """The last image has another matrix."""
    slices = stack()[:11]
    save([*slices, ct_slice(11, Place((-24.0, -32.0, 55.0), matrix=(32, 32)))], folder)
    return Scene([slices])


def _without(folder: Path, keyword: str, pixel_mm: float = 1.0) -> Scene:
    slices = stack(pixel_mm=(pixel_mm, pixel_mm))
    for one in slices:
        delattr(one.data, keyword)
    return lone(slices, folder)


def no_position(folder: Path) -> Scene:
    """No ImagePositionPatient."""
    return _without(folder, "ImagePositionPatient")


def no_pixel_spacing(folder: Path) -> Scene:
    """No PixelSpacing."""
    return _without(folder, "PixelSpacing", 0.8)


def one_empty_orientation(folder: Path) -> Scene:
    """One image with an empty ImageOrientationPatient."""
    slices = stack()
    slices[4].data.ImageOrientationPatient = None
    return lone(slices, folder)


def oblong_pixels(folder: Path) -> Scene:
    """Pixels that are not square."""
    return lone(stack(pixel_mm=(1.0, 0.8)), folder)


def overlapping(folder: Path) -> Scene:
    """Slices of 5 mm, 2.5 mm apart."""
    return lone(stack(24, 2.5), folder)


def wrong_spacing_between_slices(folder: Path) -> Scene:
    """SpacingBetweenSlices of -1."""
    return lone(stack(SpacingBetweenSlices="-1"), folder)


def single_slice(folder: Path) -> Scene:
    """One image."""
    return lone(stack(1, first_mm=30.0), folder)


def cut_marker(folder: Path) -> Scene:
    """A field that begins within the ball."""
    return lone(stack(depths_mm=range(28, 78, 5)), folder)


def two_thousand_slices(folder: Path) -> Scene:
    """2,000 slices of 512 x 512, written one by one; only the first and last are kept."""
    kept = []
    for k in range(2000):
        place = Place((-256.0, -256.0, 0.5 * k), AXIAL, (1.0, 1.0), (512, 512))
        one = ct_slice(k, place)
        save([one], folder, [f"i{k:04d}.dcm"])
        if k in (0, 60, 1999):
            kept.append(one)
    return Scene([kept])


STUDY_CASES = (
    Case("PH01", "HANDLE", "", acquisition_numbers),
    Case("PH02", "HANDLE", "W_PHASE_BY_TIME", times_only),
    Case("PH03", "HANDLE", "", shifted_by_half_a_step),
    Case("PH04", "HANDLE", "", two_series),
    Case("PH05", "ERROR", "E_MIXED_PATIENTS", two_patients, "refused"),
    Case("PH10", "HANDLE", "", dose_modulation),
    Case("GE02", "ERROR", "E_SLICE_GAP", missing_slice, "refused"),
    Case("GE03", "ERROR", "E_SLICE_GAP", missing_block, "refused"),
    Case("GE04", "HANDLE", "W_DUP_INSTANCE", same_file_twice),
    Case("GE07", "HANDLE", "", jitter_of_a_hundredth, tolerance_mm=0.03),
    Case("GE08", "WARN", "W_SPACING_NOISE", jitter_of_a_third, tolerance_mm=0.6),
    Case("GE09", "HANDLE", "W_GANTRY_TILT", gantry_tilt, resampled=True),
    Case("GE10", "HANDLE", "", instances_backwards),
    Case("GE11", "HANDLE", "", random_names),
    Case("GE13", "HANDLE", "", rows_from_below),
    Case("GE14", "HANDLE", "", columns_from_the_left),
    Case("GE15", "HANDLE", "", prone),
    Case("GE16", "WARN", "W_NON_AXIAL", coronal),
    Case("GE17", "HANDLE", "", oblique),
    Case("GE18", "HANDLE", "", rounded_orientation, tolerance_mm=0.02),
    Case("GE19", "WARN", "W_DROPPED_SLICES", one_coronal_image),
    Case("GE20", "HANDLE", "", localizer),
    Case("GE21", "ERROR", "E_MIXED_MATRIX", smaller_matrix, "refused"),
    Case("GE22", "ERROR", "E_NO_GEOMETRY", no_position, "refused"),
    Case("GE23", "ERROR", "E_NO_GEOMETRY", no_pixel_spacing, "refused"),
    Case("GE24", "ERROR", "E_NO_GEOMETRY", one_empty_orientation, "refused"),
    Case("GE25", "HANDLE", "", oblong_pixels),
    Case("GE26", "HANDLE", "", overlapping),
    Case("GE27", "HANDLE", "", wrong_spacing_between_slices),
    Case("GE29", "ERROR", "E_TOO_FEW_SLICES", single_slice, "refused"),
    Case("GE32", "HANDLE", "", cut_marker),
)
