"""A hand-worked cohort scored by a system that tells types apart: every figure is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hepar import reproduce as module
from hepar.data.cohort import read_cohort
from hepar.data.lesion_table import read_lesion_types
from hepar.data.protocol import read_protocol
from hepar.errors import InputRefused, UsageError
from hepar.geometry import Grid
from hepar.infer.labels import predict_map
from hepar.infer.network import Tiling
from hepar.infer.tiling import predict
from hepar.io.nifti import write_nifti
from hepar.paper_run import Job
from hepar.recipe_data import CohortData
from hepar.reproduce import reproduce
from hepar.resampling import resample
from hepar.score_cohort import scored_cases
from hepar.score_types import PatientBranch
from hepar.study import LESION_TYPES
from hepar.systems.base import Diagnosing, InputSpec
from hepar.train.loop import TrainResult

SPACING = (3.0, 2.0, 2.0)  # 12 mm^3 a voxel
GRID = Grid.axial((8, 16, 16), SPACING)
CLASSES = ("background", *LESION_TYPES, "liver")
LIVER = (slice(1, 7), slice(2, 14), slice(2, 14))
SURE, ELSE = 0.82, 0.02  # of a voxel's class, and of each other


class ByHu(nn.Module):
    """Names a voxel by the mean HU of the phases shown: class k at 100 k, sure by 0.82."""

    def __init__(self, *, classes=CLASSES, patch=(8, 8, 8), spacing_mm=None) -> None:
        super().__init__()
        self.input_spec = InputSpec(
            dims=3,
            phases=("ART", "PV"),
            class_names=classes,
            windows_hu=((0.0, 1000.0),),
            slice_offsets_mm=(0.0,),
            spacing_mm=spacing_mm,
            patch=patch,
            stride=1,
            needs_liver=False,
            window=patch,
            whole_windows=True,
        )
        self.gain = nn.Parameter(torch.tensor(10.0))

    def forward(self, image, present):
        there = present.reshape(*present.shape, 1, 1, 1)
        total = torch.where(there, image[:, :, 0], torch.zeros(())).sum(1)
        return torch.round(total / there.sum(1) * self.gain).long()

    def loss(self, outputs, targets):
        return self.gain * 0

    def targets(self, batch):
        return batch.label

    def decode(self, outputs):
        sure = nn.functional.one_hot(outputs, len(self.input_spec.class_names)).movedim(-1, 1)
        return sure * (SURE - ELSE) + ELSE


class WithBranch(ByHu):
    """Says of each window how much of it each type fills."""

    def patient(self, outputs):
        share = nn.functional.one_hot(outputs, len(CLASSES)).float().mean((1, 2, 3))
        return share[:, 1:9]


def block(z, y, x):
    return tuple(slice(*pair) for pair in (z, y, x))


# Each is 2 x 3 x 3 voxels of 12 mm^3: 216 mm^3, above the 113 mm^3 that count.
A, B = block((2, 4), (3, 6), (3, 6)), block((2, 4), (9, 12), (9, 12))


def put(folder: Path, name: str, said, true, *, art=True) -> tuple[str, list[str]]:
    """A patient whose image says `said` and whose truth is `true`, each (type, where) pairs."""
    hu, label, instances = (np.zeros(GRID.shape, t) for t in (np.int16, np.uint8, np.uint8))
    hu[LIVER], label[LIVER] = 900, 1
    for kind, where in said:
        hu[where] = 100 * (1 + LESION_TYPES.index(kind))
    lines = []
    for number, (kind, where) in enumerate(true, 1):
        label[where], instances[where] = 2, number
        lines.append(f"{name},{number},{kind}")
    for what, array in (("pv", hu), ("label", label), ("instances", instances)):
        write_nifti(folder / f"{name}-{what}.nii.gz", array, GRID)
    other = np.zeros_like(hu)
    other[0, 0, 0] = 1
    write_nifti(folder / f"{name}-art.nii.gz", other, GRID)
    art_file = f"{name}-art.nii.gz" if art else ""
    files = f"{art_file},{name}-pv.nii.gz,{name}-label.nii.gz,{name}-instances.nii.gz"
    return f"{name},P-{name},{files}", lines


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("typed")
    patients = {
        "right": ([("hcc", A), ("cyst", B)], [("hcc", A), ("cyst", B)]),
        "confused": ([("icc", A)], [("hcc", A)]),
        "missed": ([], [("fnh", A)]),
        "false": ([("cyst", B)], []),
    }
    rows = ["case_id,patient_id,art,pv,label,instances,split"]
    lesions = ["case_id,lesion_id,type"]
    for name, (said, true) in patients.items():
        row, lines = put(folder, name, said, true, art=False)
        rows.append(f"{row},test")
        lesions += lines
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    (folder / "lesions.csv").write_text("\n".join(lesions) + "\n")
    return folder / "cohort.csv"


def scored(path: Path, system: nn.Module, **changes) -> dict:
    data = CohortData(path=path, margin_mm=None)
    types = read_lesion_types(path.parent / "lesions.csv", "reproduce")
    known = {"types": types} | changes
    found = scored_cases(read_cohort(path), system, data, "cpu", lambda text: None, **known)
    return {case.case_id: case for case in found}


def test_closed_form_lesions_types_and_patient_scores_of_a_hand_worked_cohort(cohort):
    cases = scored(cohort, ByHu())
    typed = {name: case.typed for name, case in cases.items()}
    counts = {
        name: (t.n_reference, t.n_predicted, t.tp_reference, t.tp_predicted)
        for name, t in typed.items()
    }
    assert counts == {
        "right": (2, 2, 2, 2),
        # Its type is wrong, but the lesion was found.
        "confused": (1, 1, 1, 1),
        "missed": (1, 0, 0, 0),
        "false": (0, 1, 0, 0),
    }
    assert sorted(typed["right"].pairs) == [("cyst", "cyst"), ("hcc", "hcc")]
    assert typed["confused"].pairs == (("hcc", "icc"),)
    assert (typed["missed"].missed, typed["false"].false) == (("fnh",), ("cyst",))
    assert {name: case.dice for name, case in cases.items() if case.outcome == "both"} == {
        "right": 1.0,
        "confused": 1.0,
    }
    assert all(case.liver is not None and case.liver.dice == 1.0 for case in cases.values())
    nothing = dict.fromkeys(LESION_TYPES, 0.0)
    assert typed["right"].reference_mm3 == nothing | {"hcc": 216.0, "cyst": 216.0}
    assert typed["right"].scores["mask_size"] == nothing | {"hcc": 0.216, "cyst": 0.216}
    elsewhere = dict.fromkeys(LESION_TYPES, ELSE)
    expected = {
        "right": elsewhere | {"hcc": SURE, "cyst": SURE},
        "confused": elsewhere | {"icc": SURE},
        "missed": elsewhere,
        "false": elsewhere | {"cyst": SURE},
    }
    for name, scores in expected.items():
        # The map is kept in half precision.
        assert typed[name].scores["livermax"] == pytest.approx(scores, abs=1e-3)
    assert set(typed["right"].scores) == {"livermax", "mask_size"}


def test_oracle_a_patient_branch_counts_where_it_is_highest(cohort):
    cases = scored(cohort, WithBranch())
    assert isinstance(WithBranch(), Diagnosing)
    assert not isinstance(ByHu(), Diagnosing)
    hu = np.zeros(GRID.shape, int)
    hu[A], hu[B] = 1, 6
    share = {"hcc": 0.0, "cyst": 0.0}
    # Windows of 8^3, half of each covered by the next.
    for y in (0, 4, 8):
        for x in (0, 4, 8):
            window = hu[:, y : y + 8, x : x + 8]
            share["hcc"] = max(share["hcc"], float((window == 1).mean()))
            share["cyst"] = max(share["cyst"], float((window == 6).mean()))
    expected = dict.fromkeys(LESION_TYPES, 0.0) | share
    assert cases["right"].typed.scores["plan"] == pytest.approx(expected, abs=1e-6)
    assert PatientBranch(WithBranch()).scores == dict.fromkeys(LESION_TYPES, 0.0)


def test_property_only_the_phases_named_are_shown(tmp_path):
    row, lines = put(tmp_path, "a", [("hcc", A)], [("hcc", A)])
    lone, more = put(tmp_path, "b", [("hcc", A)], [("hcc", A)], art=False)
    path = tmp_path / "cohort.csv"
    path.write_text(f"case_id,patient_id,art,pv,label,instances\n{row}\n{lone}\n")
    (tmp_path / "lesions.csv").write_text("\n".join(["case_id,lesion_id,type", *lines, *more]))
    shown = scored(path, ByHu(), phases=("PV",))
    assert [case.typed.tp_reference for case in shown.values()] == [1, 1]
    # The arterial image is empty, and who has none is left out.
    alone = scored(path, ByHu(), phases=("ART",))
    assert {name: case.typed.tp_reference for name, case in alone.items()} == {"a": 0}


def test_errors_no_types_and_no_way_to_tell_them(cohort):
    with pytest.raises(InputRefused, match=r"lesion 1 of instances has no row") as caught:
        scored(cohort, ByHu(), types={})
    assert caught.value.code == "E_LESION_TABLE"
    with pytest.raises(UsageError, match="cannot be scored by types") as refused:
        scored(cohort, ByHu(classes=("background", "liver", *LESION_TYPES)))
    assert refused.value.code == "E_RECIPE"


def test_closed_form_rows_of_one_training_share_its_runs(cohort, tmp_path, monkeypatch):
    weights = tmp_path / "weights"
    weights.write_bytes(b"w")
    trained = []

    def start(job, own, recipe, seed, fold):
        trained.append(own)
        return TrainResult(weights, 1, None, 1, 0, 2.0)

    monkeypatch.setattr(module, "_trained", start)
    monkeypatch.setattr(module, "_network", lambda recipe, run: ByHu())
    work = Job("lidia", cohort, "toy", tmp_path / "out", seeds=(0,), rows=("focal",))
    text = reproduce(work, "table3").read_text()
    assert trained == ["focal"]
    table = text.split("###")[1]
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if line[:3] == "| +"}
    # HCC 0.75: one found, one tied with two others. FNH 0.5. Cyst 2.5 of 3. Five types nobody has.
    assert "0.694" in rows["+Focal Loss"]
    assert "0.694" in rows["+LiverMax"]
    assert "not run" in rows["+IFM"]
    assert "the mean of 3 types" in text
    assert "AUC-8: every row less +Focal Loss" in text
    protocol = read_protocol(cohort, typed=True)
    whole = module.run(work, "focal", 0, None, protocol)
    shown = module.run(work, "focal@PV", 0, None, protocol)
    assert trained == ["focal", "focal"]
    assert (tmp_path / "out" / "focal@PV-toy-0.json").exists()
    # Nobody has another phase, so that nothing changes but what the run is called.
    assert shown.cases == whole.cases
    assert shown.recipe_sha256 != whole.recipe_sha256
    assert module.run(work, "focal@ART", 0, None, protocol).cases == ()


@pytest.mark.parametrize("spacing_mm", [None, (4.0, 3.0, 2.5)])
def test_oracle_a_map_is_what_tiling_gives_brought_back(spacing_mm):
    system = ByHu(spacing_mm=spacing_mm)
    rng = np.random.default_rng(0)
    hu = rng.integers(0, 900, GRID.shape).astype(np.int16)
    found = predict_map(system, {"PV": hu}, GRID)
    target = GRID if spacing_mm is None else GRID.with_spacing(spacing_mm)
    moved = hu
    if spacing_mm is not None:
        moved = np.rint(resample(hu, GRID, target, fill=-1024)).astype(np.int16)
    expected = predict(system, {"PV": moved}, target.spacing_mm)
    if spacing_mm is not None:
        expected = np.stack([resample(one, target, GRID, antialias=False) for one in expected])
    assert (found.dtype, found.shape) == (np.float16, (10, *GRID.shape))
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_property_watching_changes_no_probability():
    system, seen = ByHu(), []
    hu = {"PV": np.random.default_rng(1).integers(0, 900, GRID.shape).astype(np.int16)}
    plain = predict_map(system, hu, GRID)
    np.testing.assert_array_equal(
        plain, predict_map(system, hu, GRID, tiling=Tiling(watch=seen.append))
    )
    assert len(seen) == 9
