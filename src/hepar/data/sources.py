"""The explicit table of data sources: what a recipe's `data` section asks for, opened.

Each kind is imported when it is asked for: only cohorts on disk need readers of image files.
"""

from __future__ import annotations

from pathlib import Path

from hepar.data.sampling import SampleSource
from hepar.recipe_data import DataSettings
from hepar.systems.base import InputSpec


def open_source(
    data: DataSettings, spec: InputSpec, *, seed: int, cache_dir: Path | None
) -> SampleSource:
    """The source a recipe's `data` section asks for.

    Args:
        data: one member of the recipe's data union.
        spec: what the system wants to see.
        seed: the recipe's seed.
        cache_dir: folder for prepared cases; `None` keeps them in memory only.
    """
    if data.kind == "organ":
        from hepar.data.organ_source import OrganSource

        return OrganSource(data, spec, seed=seed, cache_dir=cache_dir)
    if data.kind == "cohort":
        from hepar.data.cohort_cases import CohortCases
        from hepar.data.tumor_source import CaseSource

        return CaseSource(CohortCases(data, spec, cache_dir=cache_dir), data, spec, seed=seed)
    from hepar.data.phantom_cases import PhantomCases
    from hepar.data.tumor_source import CaseSource

    return CaseSource(PhantomCases(data, spec, cache_dir=cache_dir), data, spec, seed=seed)
