"""Who is drawn: how often each disease, and which scanner looks at it. One row a cohort preset.

Shares are of patients. The rare kinds behind the type `other` are split in two, so that a test set
can hold kinds that no training patient ever showed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hepar.errors import UsageError


@dataclass(frozen=True)
class Population:
    """The patients a seed is drawn from.

    Attributes:
        primary: relative share of each of `LESION_TYPES` as a patient's leading disease.
        tumor_free: share of patients without any lesion.
        companions: share of patients with lesions that also have one of another type.
        rare: kinds of `other`: those of training, or all.
        obesity: parameters (a, b) of the beta distribution of habitus, 0 thin .. 1 obese.
        steatosis, cirrhosis: shares.
        scanner: name in `scanner.SCANNERS`.
    """

    primary: tuple[float, float, float, float, float, float, float, float]
    tumor_free: float = 0.2
    companions: float = 0.3
    rare: Literal["seen", "all"] = "seen"
    obesity: tuple[float, float] = (1.6, 2.2)
    steatosis: float = 0.25
    cirrhosis: float = 0.14
    scanner: str = "home"


# hcc, icc, metastasis, hemangioma, fnh, cyst, calcification, other
POPULATIONS: dict[str, Population] = {
    "general": Population(primary=(0.29, 0.11, 0.17, 0.13, 0.11, 0.06, 0.03, 0.10)),
    # The proportions of MPCT-FLLs (SAM+URIM, Dataset), where a case has one type.
    "sam_urim": Population(primary=(26, 0, 14, 25, 20, 36, 0, 0), companions=0.0),
    "lidia": Population(primary=(0.26, 0.10, 0.17, 0.13, 0.09, 0.08, 0.05, 0.12)),
    "lits": Population(primary=(0.30, 0.06, 0.44, 0.04, 0.02, 0.06, 0.02, 0.06), tumor_free=0.1),
    "external": Population(
        primary=(0.26, 0.10, 0.17, 0.13, 0.09, 0.08, 0.05, 0.12),
        rare="all",
        obesity=(1.2, 3.6),
        steatosis=0.12,
        cirrhosis=0.3,
        scanner="external",
    ),
}


def population(name: str) -> Population:
    """A preset by name.

    Raises:
        UsageError: E_RECIPE for a name that is not a preset.
    """
    if name not in POPULATIONS:
        raise UsageError(
            "E_RECIPE",
            "phantom",
            f"unknown cohort {name!r}",
            f"choose among {', '.join(POPULATIONS)}",
        )
    return POPULATIONS[name]
