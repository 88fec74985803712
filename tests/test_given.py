"""Masks that a person gave: where they lie, how they are read, what is measured in them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom.dataset import Dataset

from drawn_seg import Drawn, write_seg
from fake_systems import Echo, spec_3d
from given_masks import measured, on_source
from hepar.errors import InputRefused
from hepar.geometry import Box, Grid
from hepar.infer.bundle import Model
from hepar.infer.calibrate import TumorCalibration
from hepar.infer.lesion_map import lesions_from_probability
from hepar.io.dicom_write import write_dicom_series
from hepar.io.given_masks import read_given
from hepar.io.nifti import write_nifti
from hepar.stages.given import check_belongs, drawn_on, given_liver
from hepar.stages.tumor import find_lesions
from hepar.study import (
    AlignedStudy,
    LesionMap,
    LiverCase,
    Phase,
    PhasedStudy,
    PhaseReading,
    Series,
    SeriesVerdict,
    Study,
    Volume,
)
from liver_case import liver_case
from small_ct import volume

SMALL = (24, 75, 100)


@pytest.fixture(scope="module")
def patient() -> tuple[AlignedStudy, LiverCase, LesionMap]:
    """A liver with two lesions, stored upside down and turned, and its truth."""
    case, lesions = liver_case(shape=SMALL)
    return case.aligned, case, lesions


def test_oracle_a_given_label_map_measures_as_the_same_lesions_found(patient):
    aligned, case, truth = patient
    probability = (truth.instances[case.box.slices] > 0).astype(np.float32)
    found = lesions_from_probability(case, probability, TumorCalibration())
    label = on_source(truth.label, aligned)
    after, given = measured(aligned, label, label)
    np.testing.assert_array_equal(given.label, found.label)
    np.testing.assert_array_equal(given.instances, found.instances)
    assert (after.box, after.liver_ml) == (case.box, pytest.approx(case.liver_ml))
    assert given.tumor_burden == found.tumor_burden
    without = {"confidence": None}
    assert given.lesions == tuple(one.model_copy(update=without) for one in found.lesions)
    assert (found.given, given.probability) == ("", None)
    assert (
        given.given == "label 2 of a label map, 2 connected pieces, "
        "on the voxels of the portal venous series"
    )


def test_closed_form_ids_stay_and_volumes_are_counts(patient):
    aligned, case, truth = patient
    ids = np.zeros_like(truth.instances)
    ids[truth.instances == 1], ids[truth.instances == 2] = 700, 3
    _, found = measured(aligned, on_source(case.liver, aligned), on_source(ids, aligned))
    np.testing.assert_array_equal(found.instances, ids)
    assert [lesion.id for lesion in found.lesions] == [3, 700]
    for lesion, number in zip(found.lesions, (2, 1), strict=True):
        voxels = int((truth.instances == number).sum())
        assert lesion.volume_ml == pytest.approx(voxels * aligned.grid.voxel_ml)
        assert lesion.confidence is None
    assert found.given.startswith("2 lesions by their ids")


@pytest.mark.parametrize("value", [1, 2, 255])
def test_closed_form_a_mask_of_one_value_is_numbered_from_the_largest_piece(patient, value):
    aligned, case, truth = patient
    mask = (truth.instances > 0).astype(np.uint8) * np.uint8(value)
    _, found = measured(aligned, on_source(case.liver, aligned), on_source(mask, aligned))
    np.testing.assert_array_equal(found.instances, truth.instances)


def test_closed_form_labels_1_and_2_are_an_organ_only_where_1_fills_the_liver(patient):
    aligned, case, truth = patient
    liver = on_source(case.liver, aligned)
    _, labels = measured(aligned, liver, on_source(truth.label, aligned))
    _, ids = measured(aligned, liver, on_source(truth.instances, aligned))
    np.testing.assert_array_equal(labels.instances, ids.instances)
    assert labels.given.startswith("label 2 of a label map")
    assert ids.given.startswith("2 lesions by their ids")


def test_property_voxels_in_any_order_give_the_same_lesions(patient):
    aligned, _, truth = patient
    label = on_source(truth.label, aligned)
    _, expected = measured(aligned, label, label)
    for order, flips in list(product(permutations(range(3)), product((1, -1), repeat=3)))[::7]:
        turned = label.array.transpose(order)[tuple(slice(None, None, f) for f in flips)]
        corner = np.zeros(3)
        corner[list(order)] = [
            0 if f > 0 else n - 1 for f, n in zip(flips, turned.shape, strict=True)
        ]
        matrix = label.grid.matrix[:, list(order)] * flips
        grid = Grid(
            turned.shape,
            tuple(label.grid.spacing_mm[axis] for axis in order),
            tuple(float(v) for v in label.grid.index_to_world(corner)),
            tuple(float(v) for v in matrix.ravel()),
        )
        other = Volume(turned, grid)
        _, found = measured(aligned, other, other)
        np.testing.assert_array_equal(found.instances, expected.instances)
        assert not found.warnings


def test_closed_form_the_phase_a_mask_lies_on_becomes_the_reference():
    grids = {
        Phase.ART: Grid.axial((10, 20, 30), (5.0, 1.0, 1.0), (1.5, 0.0, 0.0)),
        Phase.PV: Grid.axial((10, 20, 30), (5.0, 1.0, 1.0)),
        Phase.DL: Grid.axial((10, 20, 30), (5.0, 1.0, 1.0)),
    }
    hu = np.zeros((10, 20, 30), np.int16)
    volumes = {phase: Volume(hu, grid) for phase, grid in grids.items()}
    phased = PhasedStudy(volumes, (), Study((), ()), grids)
    ones = np.ones((10, 20, 30), np.uint8)
    art, portal = Volume(ones, grids[Phase.ART]), Volume(ones, grids[Phase.DL])
    part = Volume(ones[:5], Grid.axial((5, 20, 30), (5.0, 1.0, 1.0), (1.5, 0.0, 10.0)))
    elsewhere = Volume(ones[:5], Grid.axial((5, 20, 30), (5.0, 1.0, 1.0), (0.5, 0.0, 0.0)))
    assert drawn_on(phased, read_given(art, None)).reference is Phase.ART
    assert drawn_on(phased, read_given(portal, None)).reference is Phase.PV
    assert drawn_on(phased, read_given(portal, art)).reference is Phase.ART
    assert drawn_on(phased, read_given(part, None)).reference is Phase.ART
    for unchanged in (read_given(None, None), read_given(elsewhere, None)):
        assert drawn_on(phased, unchanged) is phased


def in_series(uids: dict[Phase, tuple[str, str, str]], grid: Grid) -> PhasedStudy:
    """Phases on one grid, each a series with UIDs of study, series and frame of reference."""
    image = Volume(np.zeros(grid.shape, np.int16), grid)
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    series = tuple(
        Series(image, SeriesVerdict(str(p), "", "usable", ""), dict(zip(keywords, u, strict=True)))
        for p, u in uids.items()
    )
    readings = tuple(PhaseReading(phase, 1.0, "", str(phase)) for phase in uids)
    study = Study(series, tuple(one.verdict for one in series))
    volumes = dict.fromkeys(uids, image)
    return PhasedStudy(volumes, readings, study, dict.fromkeys(uids, grid))


def drawn_seg(path: Path, grid: Grid, series: str = "") -> Path:
    """A Segmentation of study 1.2.3 in frame of reference 1.2.3.5."""
    named = Dataset()
    named.SeriesInstanceUID = series
    tags = {"ReferencedSeriesSequence": [named]} if series else {}
    return write_seg(path, [Drawn(np.ones(grid.shape, bool), "tumor")], grid, **tags)


def test_closed_form_a_segmentation_lies_on_the_series_it_names(tmp_path):
    grid = Grid.axial((5, 9, 10), (5.0, 1.0, 1.0))
    coarse = Grid.axial((5, 4, 5), (5.0, 2.0, 2.0))
    art, portal = ("1.2.3", "1.1", "1.2.3.5"), ("1.2.3", "1.2", "1.2.3.5")
    phased = in_series({Phase.ART: art, Phase.PV: portal}, grid)
    for place in (grid, coarse):
        for series, phase in (("1.1", Phase.ART), ("1.2", Phase.PV), ("1.9", Phase.PV)):
            given = read_given(None, drawn_seg(tmp_path / "a.dcm", place, series))
            check_belongs(phased.study.series, given)
            assert drawn_on(phased, given).reference is phase
    # In whose frame of reference nothing else lies.
    given = read_given(None, drawn_seg(tmp_path / "b.dcm", coarse))
    apart = in_series({Phase.ART: art, Phase.PV: ("1.2.3", "1.2", "1.2.3.6")}, grid)
    assert drawn_on(apart, given).reference is Phase.ART


def test_closed_form_a_segmentation_of_another_study_or_frame_of_reference_is_refused(tmp_path):
    grid = Grid.axial((5, 9, 10), (5.0, 1.0, 1.0))
    given = read_given(None, drawn_seg(tmp_path / "a.dcm", grid, "1.1"))
    for uids in (("1.2.4", "1.1", "1.2.3.5"), ("1.2.3", "1.1", "1.2.3.6")):
        phased = in_series({Phase.PV: uids}, grid)
        with pytest.raises(InputRefused) as refusal:
            check_belongs(phased.study.series, given)
        assert refusal.value.code == "E_MASK_STUDY"
    with pytest.raises(InputRefused) as refusal:  # it lies where a series lies that is no phase
        drawn_on(phased, given)
    assert refusal.value.code == "E_MASK_STUDY"
    # Of a NIfTI file nothing is known.
    bare = in_series({Phase.PV: ("", "", "")}, grid)
    bare = replace(bare, study=replace(bare.study, series=()))
    check_belongs(bare.study.series, given)
    assert drawn_on(bare, given).reference is Phase.PV


def test_closed_form_masks_of_other_grids_are_brought_over_by_world_coordinates(patient):
    aligned, _, truth = patient
    label = on_source(truth.label, aligned)
    _, expected = measured(aligned, label, label)
    z, y, x = label.grid.spacing_mm
    finer = Volume(
        label.array.repeat(2, axis=1).repeat(2, axis=2),
        label.grid.with_spacing((z, y / 2, x / 2)),
    )
    box = Box.around(label.array > 0, (1, 2, 3))
    cut = Volume(label.array[box.slices], label.grid.crop(box))
    for other, words in ((finer, "brought onto"), (cut, "on a part of")):
        case, found = measured(aligned, other, other)
        np.testing.assert_array_equal(found.label, expected.label)
        resampled = [w for w in case.warnings if w.startswith("W_MASK_RESAMPLED: the mask lies")]
        assert len(resampled) == (other is finer)
        assert not found.warnings, "one file is not warned of twice"
        assert case.given == f"mask {words} the voxels of the portal venous series"


def moved(mask: Volume, *shift_mm: float) -> Volume:
    origin = tuple(float(a + b) for a, b in zip(mask.grid.origin_mm, shift_mm, strict=True))
    return Volume(mask.array, replace(mask.grid, origin_mm=origin))


def in_the_air(label: Volume) -> Volume:
    array = np.zeros_like(label.array)
    array[:, :26, :26] = 1
    return Volume(array, label.grid)


def of_200_ml_at_most(label: Volume) -> Volume:
    array = np.zeros_like(label.array)
    array[tuple(slice(a - 4, a + 4) for a in (12, 40, 68))] = 1
    return Volume(array, label.grid)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda label: moved(label, 900, 0, 0), "E_GRID_MISMATCH", "0 % of"),
        (lambda label: moved(label, 0, 0, 50), "E_GRID_MISMATCH", "within the portal venous"),
        (
            lambda label: Volume(label.array, Grid.axial(SMALL, (1.0, 1.0, 1.0))),
            "E_GRID_MISMATCH",
            "within the portal venous",
        ),
        (lambda label: Volume(label.array * 0, label.grid), "E_MASK_EMPTY", "No voxel"),
        (lambda label: Volume(label.array // 2 * 2, label.grid), "E_MASK_EMPTY", "no liver"),
        (lambda label: Volume(label.array * 3, label.grid), "E_MASK_VALUES", "3, 6"),
        (lambda label: Volume(label.array * 0.5, label.grid), "E_LABEL_VALUES", "0.5"),
        (lambda label: Volume(label.array * np.int8(-1), label.grid), "E_LABEL_VALUES", "-1"),
        (in_the_air, "E_MASK_IMAGE", "has a liver's HU"),
        (of_200_ml_at_most, "E_MASK_IMAGE", "ml"),
    ],
)
def test_closed_form_a_mask_that_cannot_be_this_patients_is_refused(patient, change, code, words):
    aligned, _, truth = patient
    label = change(on_source(truth.label, aligned))
    with pytest.raises(InputRefused) as refusal:
        measured(aligned, label, label)
    assert refusal.value.code == code
    assert words in refusal.value.message
    assert refusal.value.remedy


def test_closed_form_masks_of_liver_and_lesions_are_refused_each_for_its_own_values(patient):
    aligned, case, truth = patient
    liver, ids = on_source(case.liver, aligned), on_source(truth.instances, aligned)
    several = Volume(liver.array + 2 * (ids.array > 0), liver.grid)
    many = Volume(ids.array.astype(np.int32) * 70_000, ids.grid)
    for masks in ((several, ids), (liver, many)):
        with pytest.raises(InputRefused, match="Labels") as refusal:
            measured(aligned, *masks)
        assert refusal.value.code == "E_MASK_VALUES"


def test_closed_form_a_lesion_that_vanishes_between_voxels_is_refused(patient):
    aligned, case, truth = patient
    liver, ids = on_source(case.liver, aligned), on_source(truth.instances, aligned)
    z, y, x = ids.grid.spacing_mm
    fine = ids.array.repeat(4, axis=1).repeat(4, axis=2)
    fine[12, 160, 272] = 9
    finer = Volume(fine, ids.grid.with_spacing((z, y / 4, x / 4)))
    with pytest.raises(InputRefused, match=r"labels \[9\] vanish") as refusal:
        measured(aligned, liver, finer)
    assert refusal.value.code == "E_GRID_MISMATCH"


def test_closed_form_lesions_beside_the_liver_are_said_and_alone_refused(patient):
    aligned, case, truth = patient
    liver = case.liver.copy()
    liver[(truth.instances == 2) | (np.arange(SMALL[0]) < 8)[:, None, None]] = False
    ids = np.zeros_like(truth.instances)
    ids[2:4, 30:36, 20:26] = 5
    ids[truth.instances == 1] = 1
    masks = (on_source(liver, aligned), on_source(ids, aligned))
    after, found = measured(aligned, *masks)
    ml = 2 * 6 * 6 * aligned.grid.voxel_ml
    assert found.warnings == (
        f"W_TUMOR_OUTSIDE_LIVER: {ml:.1f} ml of the given tumor touch no liver and are measured "
        "all the same",
    )
    assert [lesion.id for lesion in found.lesions] == [1, 5]
    assert after.liver_ml == pytest.approx((liver | (ids > 0)).sum() * aligned.grid.voxel_ml)
    ids[ids == 1] = 0
    with pytest.raises(InputRefused, match="touches the liver") as refusal:
        measured(aligned, masks[0], on_source(ids, aligned))
    assert refusal.value.code == "E_MASK_IMAGE"


def test_closed_form_a_liver_half_in_fat_is_warned_of(patient):
    aligned, case, _ = patient
    reference = aligned.volumes[aligned.reference]
    hu = reference.array.copy()
    hu[:10][case.liver[:10]] = -100
    volumes = {**aligned.volumes, aligned.reference: Volume(hu, reference.grid)}
    given = read_given(on_source(case.liver, aligned), None)
    found = given_liver(replace(aligned, volumes=volumes), given.liver)
    assert "W_MASK_HU" in {w.split(":")[0] for w in found.warnings}


def test_closed_form_files_that_are_no_mask_are_refused(tmp_path):
    scan = volume(shape=(8, 8, 10), slice_mm=5.0)
    about = {"description": "x", "series_number": 1, "uid_seed": "a"}
    dicom = write_dicom_series(tmp_path / "ct", scan, **about)
    write_nifti(tmp_path / "ct.nii.gz", scan.array, scan.grid)
    for path, code in (
        (dicom[0], "E_MASK_FORMAT"),
        (tmp_path, "E_MASK_FORMAT"),
        (tmp_path / "ct.nii.gz", "E_LABEL_VALUES"),
        (tmp_path / "absent.nii.gz", "E_NO_IMAGE"),
    ):
        with pytest.raises(InputRefused) as refusal:
            read_given(path, path)
        assert refusal.value.code == code


def test_closed_form_hashes_are_those_of_the_files(tmp_path):
    grid = Grid.axial((8, 8, 8), (5.0, 5.0, 5.0))
    array = np.zeros(grid.shape, np.uint8)
    array[2:6, 2:6, 2:6] = 1
    for name in ("liver", "tumor"):
        write_nifti(tmp_path / f"{name}.nii", array, grid)
        array[3, 3, 3] = 0
    given = read_given(tmp_path / "liver.nii", str(tmp_path / "tumor.nii"))
    assert given.hashes == {
        f"given_{name}": hashlib.sha256((tmp_path / f"{name}.nii").read_bytes()).hexdigest()
        for name in ("liver", "tumor")
    }
    arrays = [Volume(array, grid), Volume(array, replace(grid, origin_mm=(1.0, 0.0, 0.0)))]
    first, second = (read_given(one, None).hashes["given_liver"] for one in arrays)
    assert first != second


def test_property_the_name_of_a_mask_is_not_repeated(patient, tmp_path):
    aligned, case, _ = patient
    z, y, x = aligned.source_grid.spacing_mm
    finer = aligned.source_grid.with_spacing((z, y / 2, x / 2))
    mask = on_source(case.liver.astype(np.uint8), aligned).array
    path = tmp_path / "Zztop_Canary_liver.nii"
    write_nifti(path, mask.repeat(2, axis=1).repeat(2, axis=2), finer)
    found = given_liver(aligned, read_given(path, None).liver)
    assert found.warnings[0].startswith("W_MASK_RESAMPLED: *_*_liver.nii lies")
    write_nifti(path, mask * 0, aligned.source_grid)
    for source in (path, tmp_path / "Zztop_Canary_absent.nii"):
        with pytest.raises(InputRefused) as refusal:
            read_given(source, None)
        assert "Canary" not in str(refusal.value)


class Everywhere(Echo):
    """A network that takes all it sees for liver."""

    def decode(self, outputs: torch.Tensor) -> torch.Tensor:
        return torch.stack([outputs * 0, outputs * 0 + 1, outputs * 0], dim=1)


def test_property_no_network_redraws_a_given_liver(patient):
    aligned, _, truth = patient
    label = on_source((truth.label > 0).astype(np.uint8), aligned)
    case = given_liver(aligned, read_given(label, None).liver)
    spec = spec_3d(class_names=("background", "liver", "tumor"), needs_liver=False)
    model = Model("tumor", Everywhere(spec), {})
    kept, found = find_lesions(case, model)
    np.testing.assert_array_equal(kept.liver, truth.label > 0)
    assert not found.warnings
    redrawn, _ = find_lesions(replace(case, given=""), model)
    assert redrawn.liver_ml != kept.liver_ml
