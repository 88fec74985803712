"""Mutated files inside a series: the same volume or a code, never an exception, a hang or a lie."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from mutants import DEADLINE_S, QUICK, SLICES, base, judge, mutant
from reading_truth import misplaced
from synthetic_dicom import save

from hepar.stages.read import read_study

HERE = Path(__file__).parent
FULL, BATCH = 3_000, 400
_MAX_PEAK_KIB = 1 << 20
# Cannot be told from another scan: 47 of 3,000 where only uncompressed and RLE files were read.
_MAX_LEGITIMATE = 0.15


def run(first: int, last: int) -> list[dict[str, str]]:
    """Outcomes of mutants, read in a process of their own."""
    done = subprocess.run(
        [sys.executable, HERE / "mutants.py", str(first), str(last)],
        capture_output=True,
        text=True,
        timeout=60 + (last - first),
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    begun = [line["begins"] for line in lines if "begins" in line]
    assert done.returncode == 0, (
        f"seed {begun[-1:]} crashed or took over {DEADLINE_S} s: {done.stderr[-1500:]}"
    )
    assert lines[-1]["peak_kib"] < _MAX_PEAK_KIB
    outcomes = [line for line in lines if "word" in line]
    assert [line["seed"] for line in outcomes] == list(range(first, last))
    return outcomes


def check(first: int, last: int) -> None:
    outcomes = run(first, last)
    bad = [line for line in outcomes if line["word"] in ("wrong", "exception")]
    assert not bad, "\n".join(str(line) for line in bad)
    counts = Counter(line["word"] for line in outcomes)
    print(f"mutants {first} to {last}: {dict(counts)}")
    assert counts["legitimate"] <= _MAX_LEGITIMATE * len(outcomes), counts
    # Damage that nothing notices and nothing changes would mean that nothing was damaged.
    assert counts["coded"] > 0.2 * len(outcomes), counts


def test_property_mutants_are_harmless_or_coded() -> None:
    check(0, QUICK)


@pytest.mark.full
@pytest.mark.parametrize("first", range(QUICK, FULL, BATCH))
def test_property_many_mutants_are_harmless_or_coded(first: int) -> None:
    check(first, min(first + BATCH, FULL))


def test_closed_form_mutants_differ_and_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    (path, *_) = save(base("explicit")[:1], tmp_path)
    content = path.read_bytes()
    mutated = [mutant(content, seed)[0] for seed in range(100)]
    assert mutated == [mutant(content, seed)[0] for seed in range(100)]
    assert sum(one != content for one in mutated) > 90
    assert len(set(mutated)) > 90


@pytest.mark.parametrize("fault", ["intercept", "pixel", "shifted"])
def test_closed_form_the_judge_tells_what_a_file_says_from_what_it_does_not(
    fault: str, tmp_path: Path
) -> None:
    slices = base("explicit")
    if fault == "intercept":
        slices[3].data.RescaleIntercept = "-1020"
    paths = save(slices, tmp_path)
    study = read_study(tmp_path)
    if fault == "pixel":
        study.series[0].volume.array[3, 8, 8] += 1
    elif fault == "shifted":
        array = study.series[0].volume.array
        array[:] = np.roll(array, 1, axis=2)
    volume = study.series[0].volume
    assert volume.array.shape[0] == SLICES
    assert misplaced(volume.array, volume.grid.affine, slices) is not None
    word, _ = judge(study, slices, paths[3], 3, paths[3].stat().st_size)
    assert word == ("legitimate" if fault == "intercept" else "wrong")
