"""Generated series: every pixel at its place with its HU, however the files are written."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from random_series import (
    QUICK,
    UNCOMPRESSED,
    Draw,
    as_files,
    draw,
    images,
    what_was_read,
    write,
)
from reading_truth import misplaced
from synthetic_dicom import Slice
from transfer_syntaxes import COMPRESSORS, OPENJPEG_MIN_PIXELS

from hepar.geometry import Grid, canonical
from hepar.stages.read import read_study
from hepar.study import Study

FULL, BATCH = 5_000, 100
CHANGES = ("renamed", "reversed", "recompressed", "folders", "flipped")


def wrong(study: Study, volumes: list[list[Slice]]) -> str | None:
    """None when each phase was read once and exactly."""
    left = list(volumes)
    if len(study.series) != len(left):
        return f"{len(study.series)} series for {len(left)} phases"
    for series in study.series:
        volume = series.volume
        found = [misplaced(volume.array, volume.grid.affine, slices) for slices in left]
        if None not in found:
            return "; ".join(filter(None, found))
        del left[found.index(None)]
    return None


def recompressed(drawn: Draw, folder: Path) -> None:
    """The same series in another transfer syntax."""
    few = drawn.seed % 72 != 6
    others = [s for s in UNCOMPRESSED if few and s != drawn.syntax] or [
        s
        for s in COMPRESSORS
        if not s.endswith("GDCM")
        and s != drawn.syntax
        and (s != "JPEG2000" or min(drawn.place.matrix) >= OPENJPEG_MIN_PIXELS)
    ]
    syntax = random.Random(drawn.seed).choice(others)
    write(as_files(drawn, images(drawn), syntax), folder)


def flipped(drawn: Draw, folder: Path) -> None:
    """The same patient, the pixels of each image stored from another corner."""
    flips = ((0,), (1,), (0, 1))[drawn.seed % 7 % 3]
    write(as_files(drawn, images(drawn, *flips)), folder)


def upright(study: Study) -> list[tuple[bytes, Grid]]:
    """Every volume turned to the nearest axial orientation, in an order of its own."""
    turned = [canonical(series.volume.array, series.volume.grid) for series in study.series]
    return sorted(((array.tobytes(), grid) for array, grid in turned), key=lambda pair: pair[0])


def renamed(seed: int, change: str, first: Path, second: Path) -> None:
    """The same files under other names, in another order or in several folders."""
    rng = random.Random(seed)
    files = sorted(first.iterdir())
    for k, path in enumerate(files):
        name = {
            "renamed": f"{rng.getrandbits(64):016x}",
            "reversed": f"{len(files) - k:04d}.dcm",
            "folders": f"{k % 3}/{k:04d}.dcm",
        }[change]
        (second / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, second / name)


def check(seed: int, folder: Path) -> None:
    """Read the series of a seed, and one in three written another way as well."""
    drawn = draw(seed)
    volumes = images(drawn)
    write(as_files(drawn, volumes), folder / "first")
    study = read_study(folder / "first")
    fault = wrong(study, volumes)
    assert fault is None, f"seed {seed}: {fault}; {drawn}"
    if seed % 3 == 0:
        change = CHANGES[seed // 3 % len(CHANGES)]
        if change == "flipped":
            flipped(drawn, folder / "second")
        elif change == "recompressed":
            recompressed(drawn, folder / "second")
        else:
            renamed(seed, change, folder / "first", folder / "second")
        again = read_study(folder / "second")
        if change == "flipped":
            pairs = list(zip(upright(study), upright(again), strict=True))
            assert all(a == b for (a, _), (b, _) in pairs), f"seed {seed}, {change}: {drawn}"
            assert all(g.is_close(h, 1e-3) for (_, g), (_, h) in pairs), f"seed {seed}: {drawn}"
            return
        assert what_was_read(again) == what_was_read(study), f"seed {seed}, {change}: {drawn}"


@pytest.mark.parametrize("seed", range(QUICK))
def test_property_a_generated_series_is_read_exactly(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("first", range(QUICK, FULL, BATCH))
def test_property_many_generated_series_are_read_exactly(first: int, tmp_path: Path) -> None:
    failed = []
    for seed in range(first, min(first + BATCH, FULL)):
        try:
            check(seed, tmp_path / str(seed))
        except Exception as error:  # Every seed of the batch is tried, and each failure named.
            failed.append(f"seed {seed}: {type(error).__name__}: {error}")
    assert not failed, "\n".join(failed)
