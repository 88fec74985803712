"""The torso: skin, fat, muscle, spine, ribs and diaphragm; it calls for chest and arms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hepar.phantom.arms import paint_arms
from hepar.phantom.canvas import Canvas
from hepar.phantom.chest import paint_chest
from hepar.phantom.shapes import Frame, Noise, View, curve, superellipse_depth, tube_pieces
from hepar.phantom.tissue import Tissue

SPINE_Y_MM = 46.0
SPINE_PERIOD_MM = 33.0
RIB_PERIOD_MM = 27.0
ARMS_DOWN_SHARE = 0.15
WALL_MIN_MM = 6.0  # the aponeurosis in the midline, with its fasciae
TABLE_STEP_MM = 0.5


@dataclass(frozen=True)
class Torso:
    """A patient's frame in canonical millimeters; drawn once, sampled anywhere.

    `front`/`back`/`half_width` bound the cavity inside the muscle wall; fat and muscle lie
    outside it. `dome` is the height of the diaphragm over (y, x), tabled every 0.5 mm with its
    slope, so that a voxel's distance to it costs one look-up. `arms` is 0 where they are raised,
    else their bulk; `muscle_fat` is how much the back muscles have turned to fat, 0 .. 1.
    """

    front_mm: float
    back_mm: float
    half_width_mm: float
    wall_mm: float
    fat_front_mm: float
    fat_side_mm: float
    fat_back_mm: float
    spine_phase_mm: float
    rib_phase_mm: float
    right_dome_mm: float
    left_dome_mm: float
    saddle_mm: float
    heart_scale: float
    bone_scale: float
    arms: float = 0.0
    muscle_fat: float = 0.0

    @classmethod
    def draw(cls, rng: np.random.Generator, obesity: float) -> Torso:
        """Draw a torso; `obesity` 0 thin .. 1 obese."""
        fat = 5 + 26 * obesity
        right = rng.uniform(70, 90)
        return cls(
            front_mm=-rng.uniform(76, 88) - 22 * obesity,
            back_mm=rng.uniform(78, 86),
            half_width_mm=rng.uniform(122, 132) + 8 * obesity,
            wall_mm=rng.uniform(10, 14),
            fat_front_mm=fat * rng.uniform(0.8, 1.2),
            fat_side_mm=fat * rng.uniform(0.6, 1.1),
            fat_back_mm=fat * rng.uniform(0.6, 1.0),
            spine_phase_mm=rng.uniform(0, SPINE_PERIOD_MM),
            rib_phase_mm=rng.uniform(0, RIB_PERIOD_MM),
            right_dome_mm=right,
            left_dome_mm=right - rng.uniform(4, 18),
            saddle_mm=rng.uniform(12, 24),
            heart_scale=rng.uniform(0.88, 1.15),
            bone_scale=rng.uniform(0.92, 1.08),
            arms=rng.uniform(0.05, 1.0) if rng.random() < ARMS_DOWN_SHARE else 0.0,
            muscle_fat=float(rng.beta(1.3, 2.2)),
        )

    def skin_box_mm(self) -> tuple[float, float, float]:
        """Canonical front, back and half width of the skin."""
        front = self.front_mm - self.wall_mm - self.fat_front_mm
        back = SPINE_Y_MM + 64 + self.fat_back_mm
        return front, back, self.half_width_mm + self.wall_mm + self.fat_side_mm

    def skin_depth(self, view: View) -> np.ndarray:
        """Distance to the skin, negative inside, with the furrow over the spine."""
        front, back, half_width = self.skin_box_mm()
        furrow = 7 * np.exp(-((view.x / 16) ** 2)) * (view.y > 0)
        depth = superellipse_depth(view.y + furrow, view.x, front, back + 5, half_width)
        return np.maximum(depth, view.y + furrow - back + 1)  # the back lies flat on the table

    def muscle_depth(self, view: View) -> np.ndarray:
        """Distance to the outside of the muscle wall, negative inside."""
        furrow = 5 * np.exp(-((view.x / 14) ** 2)) * (view.y > 0)
        # In front the wall is the recti alone, thinnest in the midline.
        front, back = self.front_mm - 0.75 * self.wall_mm, SPINE_Y_MM + 62
        furrow = furrow - 3 * np.exp(-((view.x / 6) ** 2)) * (view.y < 0)
        return superellipse_depth(
            view.y + furrow, view.x, front, back, self.half_width_mm + self.wall_mm
        )

    def cavity_depth(self, view: View) -> np.ndarray:
        """Distance to the inside of the muscle wall, negative inside."""
        return superellipse_depth(view.y, view.x, self.front_mm, self.back_mm, self.half_width_mm)

    def dome_table(self) -> tuple[np.ndarray, np.ndarray]:
        """Height of the diaphragm and 1/sqrt(1 + slope^2), over canonical (y, x) at 0.5 mm."""
        y = np.arange(-160, 130, TABLE_STEP_MM, dtype=np.float32)[:, None]
        x = np.arange(-180, 180, TABLE_STEP_MM, dtype=np.float32)[None, :]
        middle, half = (self.front_mm + self.back_mm) / 2, (self.back_mm - self.front_mm) / 2
        v, u = np.abs(y - middle) / half, np.abs(x) / self.half_width_mm
        rho = np.clip((v**2.5 + u**2.5) ** 0.4, 0, 1)
        share = 1 / (1 + np.exp(x / 18))
        top = self.right_dome_mm * share + self.left_dome_mm * (1 - share)
        top = top - self.saddle_mm * np.exp(-(((x - 19) / 40) ** 2))
        attachment = -8 - 38 * np.clip((y - middle) / half, -1, 1)
        height = attachment + (top - attachment) * (1 - rho**3.2) ** 0.55
        gy, gx = np.gradient(height, TABLE_STEP_MM)
        return height.astype(np.float32), (1 / np.sqrt(1 + gy**2 + gx**2)).astype(np.float32)

    def dome_distance(self, view: View) -> np.ndarray:
        """Distance above the diaphragm (positive: chest), mm."""
        height, cosine = self.dome_table()
        row = np.clip((view.y + 160) / TABLE_STEP_MM, 0, height.shape[0] - 1).astype(np.int32)
        column = np.clip((view.x + 180) / TABLE_STEP_MM, 0, height.shape[1] - 1).astype(np.int32)
        index = row * height.shape[1] + column
        return (view.z - height.ravel()[index]) * cosine.ravel()[index]


def paint_torso(frame: Frame, torso: Torso, rng: np.random.Generator) -> Canvas:
    """Body wall, skeleton, lungs and heart; the abdominal cavity is left as fat."""
    view = frame.whole()
    cavity = torso.cavity_depth(view)
    dome = torso.dome_distance(view)
    canvas = Canvas(
        frame,
        np.zeros(frame.shape, np.uint8),
        cavity,
        dome,
        np.full(frame.shape, 1e3, np.float32),
        leanness=float(np.clip(1.25 - torso.fat_front_mm / 25, 0, 1)),
    )
    skin = torso.skin_depth(view)
    chest, back, arms = rng.spawn(3)  # what a field does not show must not change the rest
    wall = Noise.draw(rng, 36.0)
    muscle = torso.muscle_depth(view) + 2.6 * frame.sample(view, wall)
    muscle = np.minimum(muscle, cavity - WALL_MIN_MM)
    tissue = canvas.tissue
    tissue[skin < 0] = Tissue.SKIN
    tissue[skin < -2.0] = Tissue.FAT
    tissue[(muscle < 0) & (skin < -3.5)] = Tissue.MUSCLE
    # The flat muscles of the wall are layers with fat between them, below the ribs.
    layer = (np.abs(muscle + 0.55 * torso.wall_mm) < 0.9) & (view.z < -45) & (cavity > 1)
    tissue[layer & (np.abs(view.x) > 55)] = Tissue.FAT
    tissue[cavity < 0] = Tissue.FAT
    _ribs(canvas, torso, muscle)
    paint_chest(canvas, torso.right_dome_mm - torso.saddle_mm, torso.heart_scale, chest)
    _back_muscles(canvas, torso, back)
    _spine(canvas, torso)
    if torso.arms > 0:
        paint_arms(canvas, torso.skin_box_mm(), torso.arms, arms)
    return canvas


def _ribs(canvas: Canvas, torso: Torso, muscle: np.ndarray) -> None:
    frame = canvas.frame
    view = frame.view((-110, -160, -190), (300, 140, 190))
    if view is None:
        return
    depth = -muscle[view.slices]
    # Angle from the back (0) to the front (1); ribs sink as they run forward.
    angle = np.abs(np.arctan2(view.x, view.y - 5)) / np.float32(np.pi)
    level = (view.z + 180 * angle * np.sqrt(angle) + 14 - torso.rib_phase_mm) / RIB_PERIOD_MM
    number = np.round(level)
    height = np.abs(level - number) * RIB_PERIOD_MM
    end = np.clip(0.34 + 0.13 * number, 0, 0.78)
    middle = 0.5 * torso.wall_mm + 0.5
    across = (depth - middle) / (4.2 * torso.bone_scale)
    ring = np.sqrt((height / 6.5) ** 2 + across**2)
    here = (number >= 0) & (angle < end) & (angle > 0.12) & (ring < 1)
    canvas.put(view, here, Tissue.CORTICAL_BONE, ())
    canvas.put(view, here & (ring < 0.62), Tissue.BONE, ())
    sternum = (angle > 0.95) & (np.abs(across) < 1.2) & (view.z > 58) & (np.abs(view.x) < 17)
    canvas.put(view, sternum, Tissue.BONE, (Tissue.MUSCLE, Tissue.FAT))


def _spine(canvas: Canvas, torso: Torso) -> None:
    view = canvas.frame.view((-330, SPINE_Y_MM - 40, -60), (280, SPINE_Y_MM + 75, 60))
    if view is None:
        return
    s = torso.bone_scale
    y, x = view.y - SPINE_Y_MM, np.abs(view.x)
    along = np.mod(view.z + torso.spine_phase_mm, SPINE_PERIOD_MM) - SPINE_PERIOD_MM / 2
    flat = np.abs(along)
    # The body has a waist, a flat back and a disc of 7 mm above and below.
    waist = 1 - 0.12 * np.clip(1 - (flat / 12) ** 2, 0, 1)
    body = np.sqrt((y / 16.5) ** 2 + (x / 21.5) ** 2) - s * waist
    disc = flat > SPINE_PERIOD_MM / 2 - 3.5
    canal = np.sqrt(((y - 24) / 8) ** 2 + (x / 11) ** 2) - s
    arch = (canal < 0.65) & (along > -9) & (along < 10)
    spinous = (x < 3.2 + 0.06 * (y - 30)) & (y > 32) & (y < 56) & (along > -13) & (along < 5)
    transverse = (np.abs(y - 25 - 0.15 * x) < 3.4) & (x < 36) & (x > 8) & (np.abs(along - 2) < 4.5)
    canvas.put(view, (body < 0.12) & disc, Tissue.MUSCLE, ())
    bone = ((body < 0) & ~disc) | arch | spinous | transverse
    canvas.put(view, bone, Tissue.CORTICAL_BONE, ())
    inner = (body < -0.075) & (flat < SPINE_PERIOD_MM / 2 - 5)
    inner |= ((np.abs(y - 25 - 0.15 * x) < 1.8) & (x < 34) & (x > 12) & (np.abs(along - 2) < 3)) | (
        spinous & (x < 2) & (y > 35) & (y < 53)
    )
    canvas.put(view, inner, Tissue.BONE, ())
    canvas.put(view, canal < 0, Tissue.FAT, ())
    canvas.put(view, canal < -0.25, Tissue.MUSCLE, ())


def _back_muscles(canvas: Canvas, torso: Torso, rng: np.random.Generator) -> None:
    """Paraspinal blocks, psoas and crura, then the septa and the fat between the muscles."""
    frame = canvas.frame
    over = (Tissue.FAT, Tissue.LUNG)
    for side in (-1, 1):
        path = curve([(200, 84, 24 * side), (0, 84, 27 * side), (-320, 84, 30 * side)], 8)
        for view, f in tube_pieces(frame, path, np.linspace(15, 19, 8)):
            canvas.put(view, f < 0, Tissue.MUSCLE, over)
        psoas = curve([(-20, 50, 24 * side), (-90, 48, 36 * side), (-200, 40, 55 * side)], 9)
        for view, f in tube_pieces(frame, psoas, np.linspace(6, 24, 9)):
            canvas.put(view, f < 0, Tissue.MUSCLE, over)
        wide = rng.uniform(3.2, 5.2)
        crus = curve([(62, 14, 16 * side + 6), (20, 22, 25 * side + 4), (-45, 30, 18 * side)], 9)
        for view, f in tube_pieces(frame, crus, np.linspace(wide + 0.5, wide, 9)):
            canvas.put(view, f < 0, Tissue.MUSCLE, over)
    back = frame.view((-330, 55, -110), (280, 150, 110))
    if back is not None:
        _septa(canvas, back, torso.muscle_fat, rng)


def _septa(canvas: Canvas, view: View, share: float, rng: np.random.Generator) -> None:
    """Fat planes round the erector spinae and within it, and marbling beside the spine."""
    y, x = view.y - (SPINE_Y_MM + 40), np.abs(view.x)
    patchy = canvas.frame.sample(view, Noise.draw(rng, 22.0))
    block = np.sqrt((y / 21) ** 2 + ((x - 31) / 28) ** 2)
    width = (0.35 + 0.9 * share) * (0.6 + patchy)
    sheath = np.abs(block - 1) * 23 < width
    # Multifidus, longissimus and iliocostalis part along two slanting planes.
    for middle, slant in ((19.0, 0.25), (38.0, 0.5)):
        sheath |= (np.abs(x - middle - slant * y) < 0.7 * width) & (block < 1) & (y > -12)
    sheath &= (x > 9) & (y > -18)
    canvas.put(view, sheath, Tissue.FAT, (Tissue.MUSCLE,))
    grain = canvas.frame.sample(view, Noise.draw(rng, 6.0, (-330, 40, -130), (280, 170, 130)))
    deep = np.clip(1.15 - np.hypot(x - 14, y + 6) / 34, 0, 1) * share
    marbled = (grain + 0.5 * patchy > 1.0 - 0.95 * deep) & (block < 0.97) & (deep > 0.02)
    canvas.put(view, marbled, Tissue.FAT, (Tissue.MUSCLE,))
