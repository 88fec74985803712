"""Imaging features of a lesion, each with the numbers that it stands on.

They follow the words of LI-RADS v2018 (American College of Radiology) for the major features of
hepatocellular carcinoma, and of targetoid lesions, hemangiomas, cysts and calcifications. They are
measurements of contrast in HU against their noise, not a radiologist's reading, and no LI-RADS
category follows from them: categories need a patient at risk, prior scans and judgement.

What counts as a visible difference is said in `lesion_view.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from hepar.infer.lesion_regions import RIM_SHARE
from hepar.infer.lesion_view import (
    BLUR_HU,
    SURE,
    SURE_OF_SEVERAL,
    VISIBLE_HU,
    LesionView,
    Measured,
    visible,
)
from hepar.lesion_evidence import FeatureState, ImagingFeature
from hepar.study import Phase

# Fluid is no denser, and a cyst does not enhance.
FLUID_HU = (-10.0, 20.0)
# Nothing but calcium is as dense without contrast; with it, vessels are, but not in every phase.
CALCIUM_HU, CALCIUM_ENHANCED_HU = 130.0, 250.0
CALCIUM_VOXELS = 3
# A capsule or rim goes around; nodules stand apart.
AROUND_SHARE = 0.7
NODULE_HU = 25.0
# Scanners agree on a difference of HU to no less.
CALIBRATION_HU = 5.0
# Voxels as near to what is not liver may hold a rib, the more so after registration.
SURFACE_MM = 5.0
SIZE_MM = 10.0
LATE = ("PV", "DL")


def imaging_features(view: LesionView, long_axis_mm: float) -> tuple[ImagingFeature, ...]:
    """Every feature of one lesion, in the order of `lesion_evidence.FEATURES`.

    Args:
        view: the lesion and its phases.
        long_axis_mm: `measure.feret_axes_mm`.
    """
    calcium = calcification(view)
    nodules = peripheral_nodular(view)
    rim = rim_aphe(view, nodules)
    return (
        size(view, long_axis_mm),
        nonrim_aphe(view, rim, nodules, calcium),
        washout(view),
        capsule(view),
        rim,
        nodules,
        fluid(view),
        calcium,
    )


def size(view: LesionView, long_axis_mm: float) -> ImagingFeature:
    """Whether the long axis reaches 10 mm; its ends are uncertain by a third of a pixel each."""
    u = view.regions.pixel_mm * np.sqrt(2.0) / 3.0
    numbers = {"long_axis_mm": long_axis_mm, "long_axis_u_mm": float(u)}
    if abs(long_axis_mm - SIZE_MM) <= SURE * u:
        why = f"the long axis of {long_axis_mm:.0f} mm cannot be told from 10 mm at this pixel size"
        return _feature("size_10_mm", "not_assessable", numbers, why)
    state: FeatureState = "present" if long_axis_mm > SIZE_MM else "absent"
    return _feature("size_10_mm", state, numbers, f"the long axis measures {long_axis_mm:.0f} mm")


def nonrim_aphe(
    view: LesionView, rim: ImagingFeature, nodules: ImagingFeature, calcium: ImagingFeature
) -> ImagingFeature:
    """Arterial hyperenhancement that is not of the rim alone: the lesion is brighter than liver."""
    name = "nonrim_aphe"
    if not view.usable("ART"):
        return _feature(name, "not_assessable", {}, view.lacking("ART"))
    found = view.contrast("ART", view.regions.body)
    if found is None:
        return _feature(name, "not_assessable", {}, "the arterial scan does not cover the lesion")
    numbers = {"art_contrast_hu": found.hu, "art_contrast_u_hu": found.u}
    state = visible(found)
    if state == "present":
        if calcium.state == "present":
            return _feature(name, "absent", numbers, "it is dense for its calcium")
        if rim.state == "present":
            return _feature(name, "absent", numbers, "its rim enhances more than its middle")
        if nodules.state == "present":
            return _feature(name, "absent", numbers, "its rim enhances in nodules")
        rise = view.rise("ART")
        if rise is not None:
            numbers |= {"art_rise_hu": rise.hu, "art_rise_u_hu": rise.u}
            if visible(rise) != "present":
                return _feature(name, "absent", numbers, "it was as bright without contrast medium")
        middle = view.contrast("ART", view.regions.center)
        if not view.regions.resolved and (middle is None or visible(middle) != "present"):
            why = "brighter than the liver, but too small to tell its rim from its middle"
            return _feature(name, "not_assessable", numbers, why)
    return _feature(name, state, numbers, _said(found, "the liver in the arterial phase"))


def washout(view: LesionView) -> ImagingFeature:
    """Nonperipheral washout: not darker than liver at first, and visibly darker later.

    Looked for in the center, so that a dark rim alone is none. What was darker than liver from the
    first enhanced phase on, by more than noise and calibration, has nothing to wash out, and what
    is brighter than liver in the end has filled in.
    """
    name = "washout"
    late = [phase for phase in LATE if view.usable(phase)]
    if not late:
        return _feature(name, "not_assessable", {}, view.lacking(*LATE))
    phases = [phase for phase in ("ART", *LATE) if view.usable(phase)]
    if len(phases) < 2:
        return _feature(name, "not_assessable", {}, "one enhanced phase alone shows no washout")
    region = view.regions.center if view.regions.resolved else view.regions.body
    course = {phase: view.contrast(phase, region) for phase in phases}
    seen = {phase: found for phase, found in course.items() if found is not None}
    numbers = {f"{p.lower()}_contrast_hu": m.hu for p, m in seen.items()}
    numbers |= {f"{p.lower()}_contrast_u_hu": m.u for p, m in seen.items()}
    if len(seen) < 2:
        return _feature(
            name, "not_assessable", numbers, "one enhanced phase alone covers the lesion"
        )
    (first, begin), *later = seen.items()
    dark = [(p, m) for p, m in later if visible(m.reversed()) == "present"]
    if begin.hu < -max(SURE * begin.u, CALIBRATION_HU):
        why = f"darker than the liver by {-begin.hu:.0f} HU from the {_long(first)} phase on"
        return _feature(name, "absent", numbers, why)
    last, end = later[-1]
    for phase, found in dark if end.hu < 0 else ():
        fall = begin.minus(found)
        if visible(fall) == "present":
            why = (
                f"its contrast to the liver falls from {begin.hu:.0f} HU ({_long(first)}) to "
                f"{found.hu:.0f} \u00b1 {found.u:.0f} HU ({_long(phase)})"
            )
            return _feature(name, "present", numbers, why)
    if any(visible(m.reversed()) == "not_assessable" for _, m in later):
        return _feature(name, "not_assessable", numbers, _too_noisy(end))
    contrast = f"{end.hu:.0f} \u00b1 {end.u:.0f} HU"
    why = f"its contrast to the liver is {contrast} in the {_long(last)} phase"
    return _feature(name, "absent", numbers, why)


def capsule(view: LesionView) -> ImagingFeature:
    """A thin bright border in the portal venous or delayed phase, most of the way around.

    The mask's border may be off by a pixel or two, so the brightest of the shells around it counts.
    It must be brighter than the liver and than the lesion; an average of both never is.
    """
    name = "capsule"
    late = [phase for phase in LATE if view.usable(phase)]
    if not late:
        return _feature(name, "not_assessable", {}, view.lacking(*LATE))
    regions = view.regions
    if not regions.resolved:
        return _feature(name, "not_assessable", {}, _TOO_SMALL)
    numbers: dict[str, float] = {}
    best: tuple[FeatureState, str] = ("absent", "")
    for phase in late:
        inside = view.mean(phase, regions.center)
        shells = regions.shells(-regions.border_mm, regions.border_mm)
        peak = view.brightest(phase, shells)
        if inside is None or peak is None:
            continue
        shell, found = peak
        level = max(inside.hu, view.liver_hu[phase])
        excess = found.minus(Measured(level, inside.u if level == inside.hu else 0.0))
        around = view.share_above(phase, shell, level + VISIBLE_HU / 2)
        within = regions.shells(regions.border_mm, 2 * regions.border_mm)
        beyond = view.brightest(phase, within)
        key = phase.lower()
        numbers |= {f"{key}_border_hu": excess.hu, f"{key}_border_u_hu": excess.u}
        numbers |= {f"{key}_around_share": around}
        state = visible(excess, SURE_OF_SEVERAL)
        thick = beyond is not None and beyond[1].hu - level > excess.hu / 2
        if state == "present" and (around < AROUND_SHARE or thick):
            state = "absent"
        words = f"{_said(excess, 'liver and lesion')} around {100 * around:.0f} % of it"
        why = f"its border in the {_long(phase)} phase is {words}"
        why += ", and no thin line" if thick else ""
        if not best[1] or _RANK[state] > _RANK[best[0]]:
            best = (state, why)
    if not best[1]:
        return _feature(name, "not_assessable", numbers, "no late scan covers the lesion")
    return _feature(name, best[0], numbers, best[1])


def rim_aphe(view: LesionView, nodules: ImagingFeature) -> ImagingFeature:
    """Arterial enhancement strongest in the rim, around it: brighter than middle and liver."""
    name = "rim_aphe"
    regions = view.regions
    if not view.usable("ART"):
        return _feature(name, "not_assessable", {}, view.lacking("ART"))
    if not regions.resolved:
        return _feature(name, "not_assessable", {}, _TOO_SMALL)
    center = view.mean("ART", regions.center)
    peak = view.brightest("ART", regions.shells(0.0, RIM_SHARE * regions.radius_mm))
    if center is None or peak is None:
        return _feature(name, "not_assessable", {}, "the arterial scan does not cover the lesion")
    shell, found = peak
    over_center = found.minus(center)
    over_liver = Measured(found.hu - view.liver_hu["ART"], found.u)
    level = max(center.hu, view.liver_hu["ART"]) + VISIBLE_HU / 2
    around = view.share_above("ART", shell, level)
    numbers = {
        "rim_over_center_hu": over_center.hu,
        "rim_over_center_u_hu": over_center.u,
        "rim_over_liver_hu": over_liver.hu,
        "rim_over_liver_u_hu": over_liver.u,
        "around_share": around,
    }
    states = [visible(over_center, SURE_OF_SEVERAL), visible(over_liver, SURE_OF_SEVERAL)]
    if "absent" in states or around < AROUND_SHARE or nodules.state == "present":
        state: FeatureState = "absent"
    else:
        state = "present" if set(states) == {"present"} else "not_assessable"
    why = (
        f"its arterial rim is {_said(over_center, 'its middle')} and "
        f"{_said(over_liver, 'the liver')} around {100 * around:.0f} % of it"
    )
    if nodules.state == "present":
        why = "its rim enhances in nodules, not all around"
    return _feature(name, state, numbers, why)


def peripheral_nodular(view: LesionView) -> ImagingFeature:
    """Bright nodules in parts of the arterial rim, around a middle no brighter than the liver."""
    name = "peripheral_nodular"
    regions = view.regions
    if not view.usable("ART"):
        return _feature(name, "not_assessable", {}, view.lacking("ART"))
    if not regions.resolved:
        return _feature(name, "not_assessable", {}, _TOO_SMALL)
    center = view.mean("ART", regions.center)
    sectors = view.sectors("ART", regions.rim)
    if center is None or len(sectors) < 4:
        return _feature(name, "not_assessable", {}, "too little of its rim was seen")
    level = max(center.hu, view.liver_hu["ART"])
    nodules = [m for m in sectors.values() if m.hu - level >= max(NODULE_HU, 3.0 * m.u)]
    share = len(nodules) / len(sectors)
    brightest = max(m.hu for m in sectors.values()) - level
    noise = max(m.u for m in sectors.values())
    numbers = {"nodular_share": share, "nodule_hu": brightest, "nodule_u_hu": noise}
    dark = visible(Measured(center.hu - view.liver_hu["ART"], center.u)) != "present"
    why = f"{100 * share:.0f} % of its arterial rim is at least {NODULE_HU:.0f} HU brighter"
    why += " than middle and liver"
    if not nodules and 3.0 * noise > 2 * NODULE_HU:
        return _feature(name, "not_assessable", numbers, "its rim is too noisy for nodules")
    present = bool(nodules) and share < AROUND_SHARE and dark
    return _feature(name, "present" if present else "absent", numbers, why)


def fluid(view: LesionView) -> ImagingFeature:
    """Attenuation of fluid in every phase: nothing in the lesion enhances."""
    name = "fluid"
    regions = view.regions
    region = regions.center if regions.resolved else regions.body
    seen = {p: view.mean(p, region) for p in view.volumes if view.usable(p)}
    found = {p: m for p, m in seen.items() if m is not None}
    if not found:
        return _feature(name, "not_assessable", {}, "no scan covers the lesion")
    numbers = {f"{p.lower()}_hu": m.hu for p, m in found.items()}
    numbers |= {f"{p.lower()}_u_hu": m.u for p, m in found.items()}
    darkest = min(m.hu for m in found.values())
    densest = max(found.values(), key=lambda m: m.hu)
    low, high = FLUID_HU
    why = f"its middle has {_between(darkest, densest.hu)} HU in {len(found)} of 4 phases"
    if low <= darkest and densest.hu <= high and SURE * densest.u <= BLUR_HU:
        return _feature(name, "present", numbers, why)
    if not regions.resolved and darkest < high + 2 * VISIBLE_HU:
        return _feature(
            name, "not_assessable", numbers, why + ", averaged with the liver around it"
        )
    if SURE * densest.u > BLUR_HU and densest.hu <= high + SURE * densest.u:
        return _feature(name, "not_assessable", numbers, _too_noisy(densest))
    return _feature(name, "absent", numbers, why)


def calcification(view: LesionView) -> ImagingFeature:
    """Voxels as dense as calcium: without contrast medium, or, lacking that, in every phase."""
    name = "calcification"
    regions = view.regions
    mask = regions.whole & (regions.surface_mm > SURFACE_MM)
    phases = [p for p in view.volumes if view.usable(p)]
    if not mask.any():
        return _feature(name, "not_assessable", {}, "it lies at the surface, where a rib may be")
    if not phases:
        return _feature(name, "not_assessable", {}, "no scan covers the lesion")
    plain = "NC" in phases
    used = ["NC"] if plain else phases
    least = np.minimum.reduce([view.volumes[p] for p in used])
    noise = max(view.noise[p].sd_hu[0] for p in used)
    level = max(
        CALCIUM_HU if plain else CALCIUM_ENHANCED_HU,
        max(view.liver_hu[p] for p in used) + 5.0 * noise,
    )
    labels, count = ndimage.label(mask & (least > level), structure=np.ones((3, 3, 3)))
    largest = int(np.bincount(labels.ravel())[1:].max()) if count else 0
    numbers = {
        "threshold_hu": level,
        "dense_voxels": float(largest),
        "dense_ml": largest * regions.voxel_ml,
        "densest_hu": float(least[mask].max()),
    }
    scans = "the non-contrast phase" if plain else "every phase there is"
    if largest >= CALCIUM_VOXELS:
        why = f"{largest} neighboring voxels exceed {level:.0f} HU in {scans}"
        return _feature(name, "present", numbers, why)
    why = f"hardly a voxel exceeds {level:.0f} HU in {scans}"
    return _feature(name, "absent", numbers, why)


_TOO_SMALL = "it is too small at this pixel size to tell its rim from its middle"
_RANK: dict[FeatureState, int] = {"absent": 0, "not_assessable": 1, "present": 2}


def _feature(
    name: str, state: FeatureState, numbers: Mapping[str, float], why: str
) -> ImagingFeature:
    said = why.replace(" -", " \N{MINUS SIGN}")
    return ImagingFeature(
        name=name, state=state, numbers=dict(numbers), reason=said[:1].upper() + said[1:] + "."
    )


def _long(phase: str) -> str:
    return Phase(phase).long_name


def _said(found: Measured, other: str) -> str:
    word = "brighter" if found.hu >= 0 else "darker"
    return f"{abs(found.hu):.0f} \u00b1 {found.u:.0f} HU {word} than {other}"


def _too_noisy(found: Measured) -> str:
    return f"a mean over it is uncertain by {found.u:.0f} HU, too much to tell"


def _between(low: float, high: float) -> str:
    a, b = f"{low:.0f}", f"{high:.0f}"
    return a if a == b else f"{a} to {b}"
