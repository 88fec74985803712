"""Tissue codes shared by procedural anatomies, label maps and painting."""

from __future__ import annotations

from enum import IntEnum


class Tissue(IntEnum):
    """One code a voxel of an anatomy. Lesions lie on top, in their own instance map."""

    AIR = 0
    FAT = 1
    MUSCLE = 2
    BONE = 3
    LUNG = 4
    HEART = 5
    LIVER = 6
    SPLEEN = 7
    KIDNEY_CORTEX = 8
    KIDNEY_MEDULLA = 9
    STOMACH = 10
    BOWEL = 11
    BOWEL_GAS = 12
    GALLBLADDER = 13
    PANCREAS = 14
    AORTA = 15
    CAVA = 16
    PORTAL_VEIN = 17
    HEPATIC_VEIN = 18
    SKIN = 19
    FLUID = 20
    MASS = 21
    TABLE = 22
    CORTICAL_BONE = 23
    GUT_WALL = 24
    MYOCARDIUM = 25
    PERFUSION = 26  # liver that is fed by arteries alone


LIVER_TISSUES = (Tissue.LIVER, Tissue.PERFUSION, Tissue.PORTAL_VEIN, Tissue.HEPATIC_VEIN)
