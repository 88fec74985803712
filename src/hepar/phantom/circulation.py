"""Contrast medium in the body: a gamma-variate first pass, recirculation, and compartments.

The aorta's enhancement is the injection (a box) through a chain of four mixing chambers (a gamma
variate), seen once as the first pass and again through a biexponential return (equilibration,
excretion). Every other curve is a sum, with weights above or at zero, of compartments: the aortic
curve convolved with a delay and a decay. A center of the tables (HU at the reference times) is
turned into such weights once, at the reference circulation; a patient's cardiac output, dose and
injection then change all curves together, as they do in patients (Bae, "Intravenous contrast medium
administration and scan timing at CT", Radiology 256:32, 2010).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import factorial

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls

Curves = Float[np.ndarray, "compartment t"]

END_S = 600
TIMES_S = np.arange(END_S + 1, dtype=float)

# First pass (HU s), return (HU, decay in s) twice, mixing chamber (s), delay (s), injection (s):
# fitted to an aorta of 260 HU above blood at 35 s, 120 at 70, 80 at 180, 62 at 300, 35 at 600.
FIRST_PASS = 4717.0
RETURN = ((54.5, 39.2), (105.0, 514.0))
CHAMBER_S, DELAY_S, INJECTION_S = 4.37, 4.64, 20.0

# Compartment: chambers, decay of each (s), delay (s); the portal bed precedes the last two.
_BEDS: dict[str, tuple[int, float, float]] = {
    "prompt": (1, 4.0, 1.5),
    "fast": (1, 16.0, 3.0),
    "medium": (1, 45.0, 4.0),
    "slow": (1, 130.0, 5.0),
    "retained": (1, 500.0, 8.0),
    "late": (2, 22.0, 12.0),
    "portal": (3, 4.5, 5.0),
}
COMPARTMENTS = ("blood", *_BEDS, "sinusoid", "venous", "central")


@dataclass(frozen=True)
class Circulation:
    """What makes one patient's curves differ from the reference's.

    Attributes:
        cardiac_output: relative to the reference; a slow heart brings contrast late and dense.
        iodine: dose over body weight, relative.
        injection_s: length of the injection.
    """

    cardiac_output: float = 1.0
    iodine: float = 1.0
    injection_s: float = INJECTION_S


def _chain(chambers: int, decay_s: float, delay_s: float) -> Float[np.ndarray, " t"]:
    """Impulse response of unit area: `chambers` equal mixing chambers after a delay."""
    s = np.clip(TIMES_S - delay_s, 0, None)
    response = s ** (chambers - 1) * np.exp(-s / decay_s) / factorial(chambers - 1)
    response[delay_s > TIMES_S] = 0
    return response / response.sum()


def _through(
    curve: Float[np.ndarray, " t"], bed: Float[np.ndarray, " t"]
) -> Float[np.ndarray, " t"]:
    return np.convolve(curve, bed)[: len(TIMES_S)]


@lru_cache(maxsize=256)
def compartments(circulation: Circulation) -> Curves:
    """Enhancement of every compartment, HU at whole seconds from 0 to 600 after injection begins.

    Args:
        circulation: the patient's.
    """
    output = circulation.cardiac_output
    # The same iodine in less blood a second: transit takes longer, the first pass is denser.
    slow = 1 / output
    injection = np.clip(circulation.injection_s - TIMES_S, 0, 1)
    bolus = _through(injection / injection.sum(), _chain(4, CHAMBER_S * slow, DELAY_S * slow))
    back = sum(height * np.exp(-TIMES_S / decay) for height, decay in RETURN)
    blood = circulation.iodine * (FIRST_PASS * slow * bolus + _through(bolus, np.asarray(back)))
    lag = slow**0.7
    central = _through(injection / injection.sum(), _chain(2, CHAMBER_S * slow, 2.0 * slow))
    beds = {name: _chain(n, tau * lag, delay * lag) for name, (n, tau, delay) in _BEDS.items()}
    curves = {"blood": blood} | {name: _through(blood, bed) for name, bed in beds.items()}
    curves["sinusoid"] = _through(curves["portal"], _chain(1, 18.0 * lag, 0.0))
    curves["venous"] = _through(curves["portal"], _chain(2, 5.0 * lag, 3.0))
    # Right heart and cava above the renal veins see the bolus before the lungs do.
    curves["central"] = circulation.iodine * FIRST_PASS * slow * central
    table = np.stack([curves[name] for name in COMPARTMENTS])
    table.setflags(write=False)
    return table


@lru_cache(maxsize=4096)
def weights(
    rises_hu: tuple[float, ...], times_s: tuple[float, ...]
) -> Float[np.ndarray, " compartment"]:
    """Compartments whose sum, in the reference patient, comes nearest to some enhancements.

    Args:
        rises_hu: HU above the unenhanced value.
        times_s: when, whole seconds.

    Returns:
        Weights of at least zero; those of a falling enhancement are below zero together.
    """
    rises = np.asarray(rises_hu)
    sign = -1.0 if rises.sum() < 0 else 1.0
    basis = compartments(Circulation())[:, [round(t) for t in times_s]].T
    # A small pull towards zero settles what a few times leave open.
    ridge = 0.02 * np.linalg.norm(basis) / len(COMPARTMENTS) * np.eye(len(COMPARTMENTS))
    solution, _ = nnls(np.vstack([basis, ridge]), np.r_[sign * rises, np.zeros(len(ridge))])
    solution = sign * solution
    solution.setflags(write=False)
    return solution


def at_time(curves: Curves, time_s: float) -> Float[np.ndarray, " compartment"]:
    """Compartments at one time, interpolated between whole seconds."""
    position = float(np.clip(time_s, 0, END_S))
    low = min(int(position), END_S - 1)
    share = position - low
    return curves[:, low] * (1 - share) + curves[:, low + 1] * share
