"""Who is trained on and who is tested: splits, folds, validation patients, another cohort."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hepar import reproduce as module
from hepar.cli import main
from hepar.data.protocol import read_protocol
from hepar.errors import InputRefused, UsageError
from hepar.evaluate.run_result import RunResult
from hepar.paper_run import Job
from hepar.reproduce import reproduce
from test_reproduce import SMALL, write_case

HEAD = "case_id,patient_id,art,pv,label"


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> tuple[Path, list[str]]:
    """Six patients on disk, and a row of `cohort.csv` for each."""
    folder = tmp_path_factory.mktemp("patients")
    return folder, [write_case(folder, f"c{n}", n) for n in range(6)]


def cohort_of(images, name: str, **columns) -> Path:
    """A table of the first patients, with a value a patient in each further column."""
    folder, rows = images
    lines = [",".join((HEAD, *columns))]
    values = zip(*columns.values(), strict=True)
    lines += [",".join((row, *each)) for row, each in zip(rows, values, strict=False)]
    path = folder / f"{name}.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def others_of(images, folder: Path, *numbers: int) -> Path:
    """A cohort of some of the patients, under other names."""
    folder.mkdir(parents=True)
    lines = [HEAD]
    for n in numbers:
        for kind in ("art", "pv", "label"):
            shutil.copy(images[0] / f"c{n}-{kind}.nii.gz", folder / f"h{n}-{kind}.nii.gz")
        lines.append(f"h{n},Q-{n},h{n}-art.nii.gz,h{n}-pv.nii.gz,h{n}-label.nii.gz")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    return folder / "cohort.csv"


TRAINED = ("train", "train", "validation")


@pytest.mark.parametrize(
    ("columns", "fold", "tested", "folds", "names"),
    [
        ({"split": (*TRAINED, "test")}, None, "test", (None,), ["c3"]),
        # A test split is taken before folds, and folds before validation patients.
        (
            {"split": (*TRAINED, "test"), "fold": ("0", "1", "0", "")},
            None,
            "test",
            (None,),
            ["c3"],
        ),
        ({"split": TRAINED, "fold": ("0", "1", "0")}, None, "folds", (0, 1), ["c0", "c2"]),
        ({"fold": ("0", "1", "2")}, 2, "folds", (2,), ["c2"]),
        ({"split": (*TRAINED, "Validation")}, None, "validation", (None,), ["c2", "c3"]),
    ],
)
def test_closed_form_who_is_tested(images, columns, fold, tested, folds, names):
    protocol = read_protocol(cohort_of(images, "who", **columns), fold)
    assert (protocol.tested, protocol.folds) == (tested, folds)
    assert [case.case_id for case in protocol.test_cases(folds[0])] == names


def test_closed_form_a_hold_out_is_tested_as_a_whole(images, tmp_path):
    others = others_of(images, tmp_path / "others", 4, 5)
    split = cohort_of(images, "split", split=TRAINED)
    folds = cohort_of(images, "folds", fold=("0", "1", "2"))
    for protocol in (read_protocol(split, None, others), read_protocol(folds, 1, others)):
        assert protocol.tested == "holdout"
        assert [case.case_id for case in protocol.test_cases(protocol.folds[0])] == ["h4", "h5"]
        protocol.refuse_shared()
    with pytest.raises(UsageError, match="on whom weights are chosen") as caught:
        read_protocol(folds, None, others)
    assert caught.value.code == "E_COHORT"


def test_property_hashes_tell_protocols_apart(images, tmp_path):
    others = [others_of(images, tmp_path / f"others{n}", *range(4, n)) for n in (5, 6)]
    one = cohort_of(images, "one", split=TRAINED)
    two = cohort_of(images, "two", split=("validation", "train", "train"))
    asked = [(path, None, apart) for path in (one, two) for apart in (None, *others)]
    hashes = [read_protocol(*each).sha256 for each in asked]
    assert len({*hashes}) == 6
    assert hashes == [read_protocol(*each).sha256 for each in asked]


def test_property_a_scan_that_was_trained_or_chosen_on_is_no_hold_out(images, tmp_path):
    others = others_of(images, tmp_path / "others", 1, 2, 3, 5)
    path = cohort_of(images, "leaking", split=(*TRAINED, "test"))
    work = Job("sam_urim", path, "toy", tmp_path / "out", holdout=others, overrides=SMALL)
    with pytest.raises(InputRefused, match="2 of 4 hold-out cases") as caught:
        reproduce(replace(work, rows=("sp",), seeds=(0,)), "table3")
    # The test split of the training cohort is neither trained nor chosen on.
    assert "h1 is c1; h2 is c2." in str(caught.value)
    assert "h3" not in str(caught.value)
    assert caught.value.code == "E_LEAKAGE"
    assert "--exclude" in caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_property_results_of_a_hold_out_lie_apart_and_weights_are_shared(
    images, tmp_path, capsys, monkeypatch
):
    path = cohort_of(images, "cohort-of-three", split=TRAINED)
    others = others_of(images, tmp_path / "OTHERS", 4, 5)
    out = tmp_path / "out"
    arguments = ["reproduce", "sam_urim", "table3", "--cohort", str(path), "-o", str(out), "-q"]
    arguments += ["--rows", "sp", "--seeds", "0", "-d", "cpu"]
    for change in SMALL:
        arguments += ["--set", change]
    main(arguments)
    plain = capsys.readouterr().out
    assert "Tested on the validation patients" in plain
    main([*arguments, "--holdout", str(others.parent)])
    apart = capsys.readouterr().out
    assert "Tested on every case of another cohort, OTHERS" in apart
    assert "Tested on the validation patients" not in apart
    folder = out / "holdout-OTHERS"
    assert sorted(p.name for p in folder.iterdir()) == [
        *("sp-toy-0.json", "table3-toy.csv", "table3-toy.md")
    ]
    first, second = (RunResult.read(f / "sp-toy-0.json") for f in (out, folder))
    assert (first.tested, second.tested) == ("validation", "holdout")
    assert [c.case_id for c in first.cases] == ["c2"]
    assert [c.case_id for c in second.cases] == ["h4", "h5"]
    assert first.weights_sha256 == second.weights_sha256
    assert [p.name for p in (out / "runs").iterdir()] == ["sp-toy-0"]

    # Once everything is done nothing is looked for; another cohort of that name is refused.
    def never(*_, **__):
        raise AssertionError("the table is made of files alone")

    monkeypatch.setattr(module, "train", never)
    monkeypatch.setattr("hepar.data.protocol.shared_scans", never)
    main([*arguments, "--holdout", str(others)])
    assert capsys.readouterr().out == apart
    fewer = others_of(images, tmp_path / "other" / "OTHERS", 4)
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--holdout", str(fewer)])
    assert caught.value.code == 2
    assert "E_RESULT" in capsys.readouterr().err
