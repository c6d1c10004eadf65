"""Draws a chest phantom: axial CT slices of invented patients, in the lung window, without any data.

Every patient has an individual body, lungs, heart, bones, tree of lung vessels and noise. A patient's slices are cuts
through the same body at neighbouring levels: they are similar, like the slices of one CT volume, and differ from those
of other patients. Grey levels are those of the lung window (centre -600, width 1500 HU): air 60, lung 80, fat 212,
muscle 238, bone 255.
"""

import math
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import ndimage
from threadpoolctl import threadpool_limits

from gansfp.errors import UsageError
from gansfp.simulation.vessels import draw_tree, share_of_vessels

SIDE = 256
SLICE_GAP = 0.035  # between a patient's neighbouring levels, as a share of the height of the lungs: about 8 mm
_ANGLES = 2048  # bins of tables of functions of the angle


def spline_matrix(knots: int) -> np.ndarray:
    """Returns cubic B-spline weights m, (SIDE, knots) float32: `m @ coarse @ m.T` is a smooth field of the slice."""
    t = np.linspace(1.0, knots - 2.0, SIDE)[:, None] - np.arange(knots)
    u = np.abs(t)
    weights = np.where(u < 1, 2 / 3 - u**2 + u**3 / 2, np.where(u < 2, (2 - u) ** 3 / 6, 0.0))
    return weights.astype(np.float32)


_COARSE, _MIDDLE, _FINE = (spline_matrix(knots) for knots in (6, 14, 40))
_Y, _X = (a.astype(np.float32) for a in np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j])


@dataclass(frozen=True)
class Patient:
    """One invented patient.

    The unit of length is half the picture's side (1 is 128 px). x points right, y points down, z runs from the apex of
    the lungs (0) to their base (1). Grey levels are those of an 8-bit picture; bone may be above 255.
    """

    width: float  # half axes of the body
    height: float
    squareness: float  # exponent of the superellipse: 2 is an ellipse, 3 is nearly a box
    centre: tuple[float, float]
    tilt: float  # radians
    fat: float  # thickness under the skin
    breasts: float  # size, 0 for none
    lung: tuple[float, float]  # half axes of a lung at mid level
    lung_gap: float  # half the distance between the lungs' centres
    lung_shapes: np.ndarray  # (2, 2, 4) harmonics of the two lungs' outlines: cosine and sine parts
    heart: tuple[float, float, float]  # x, y, size
    heart_shape: np.ndarray  # (2, 4) harmonics of its outline
    diaphragm: float  # z where the liver enters the right lung
    ribs: np.ndarray  # (n,) angles
    spine: float  # size
    table: tuple[float, float, float]  # y, curvature, thickness
    round_field: bool  # the scanner's round field of view, black outside
    greys: dict[str, float]
    noise: tuple[float, float, float]  # grey levels, grain (px), streak share
    bend: np.ndarray  # (2, 2, 6, 6) displacements in x and y at the apex and the base, for irregular outlines
    mottle: np.ndarray  # (2, 14, 14) where the chest wall is muscle and where it is fat, at the apex and the base
    haze: np.ndarray  # (2, 14, 14) opacities of the lungs
    vessels: np.ndarray  # (n, 4) points of the tree: x, y, z, width class


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draws a patient from `rng`."""
    u, normal = rng.uniform, rng.standard_normal
    width, air = u(0.74, 0.93), u(54, 63)
    lung = (width * u(0.33, 0.39), u(0.36, 0.47))
    gap = width * u(0.41, 0.45)
    heart = (u(0.02, 0.14), u(-0.2, -0.06), u(0.16, 0.25))
    return Patient(
        width=width,
        height=lung[1] + u(0.13, 0.22),
        squareness=u(2.0, 2.6),
        centre=(u(-0.05, 0.05), u(-0.12, 0.04)),
        tilt=0.06 * normal(),
        fat=u(0.02, 0.11),
        breasts=u(0.18, 0.28) if rng.random() < 0.4 else 0.0,
        lung=lung,
        lung_gap=gap,
        lung_shapes=normal((2, 2, 4)) * np.array([0.05, 0.05, 0.03, 0.02]),
        heart=heart,
        heart_shape=normal((2, 4)) * np.array([0.08, 0.07, 0.05, 0.04]),
        diaphragm=u(0.7, 1.05),
        ribs=np.linspace(0, 2 * np.pi, rng.integers(13, 19), endpoint=False) + u(0, 0.4),
        spine=u(0.085, 0.12),
        table=(u(0.02, 0.12), u(0.05, 0.35), u(0.03, 0.08)),
        round_field=rng.random() < 0.7,
        greys={
            "air": air,
            "lung": air + u(8, 30),
            "fat": u(204, 216),
            "muscle": u(230, 240),
            "blood": u(234, 246),
            "bone": u(248, 275),
        },
        noise=(u(2.0, 9.0), u(0.45, 0.9), u(0.0, 0.5)),
        bend=0.045 * normal((2, 1, 6, 6)) + 0.02 * normal((2, 2, 6, 6)),
        mottle=normal((14, 14)) + 0.5 * normal((2, 14, 14)),
        haze=normal((14, 14)) + 0.6 * normal((2, 14, 14)) - u(0.9, 4.0),
        vessels=draw_tree(rng, lung, gap),
    )


def draw_slice(patient: Patient, level: float, rng: np.random.Generator) -> np.ndarray:
    """Draws the slice at `level` (0 apex, 1 base) with new noise: (256, 256) uint8, in about 10 ms."""
    p, grey = patient, patient.greys
    x, y = _body_coordinates(p, level)
    picture = np.full((SIDE, SIDE), grey["air"], np.float32)
    _paint_table(picture, p)

    skin, heart = _body(p, x, y), _heart(p, x, y, level)
    body = _soft(skin, 0.008)
    _blend(picture, body, grey["fat"])
    wall = _soft(skin - p.fat, 0.008) * _soft(_field(p.mottle, level, _MIDDLE) + 0.7, 0.25)
    _blend(picture, wall, grey["muscle"])
    pleura = np.minimum(_lungs(p, x, y, level), skin - 0.06)
    lungs = _soft(np.minimum(pleura, -_between(p, x, y, heart)), 0.007)
    _blend(picture, _soft(pleura + 0.05, 0.012) * body, grey["muscle"])  # the muscles between the ribs
    _paint_bones(picture, p, x, y, level, pleura)
    _paint_mediastinum(picture, p, x, y, heart)
    _blend(picture, lungs, grey["lung"])
    _blend(picture, lungs * 0.6 * _soft(_field(p.haze, level, _MIDDLE), 0.3), grey["muscle"])
    _blend(picture, lungs * share_of_vessels(p.vessels, level, p.centre, SIDE), grey["blood"])
    _paint_airways(picture, p, x, y, level)
    picture += _noise(p, body, rng)
    if p.round_field:
        picture *= np.hypot(_X, _Y) < 1.0
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _field(ends: np.ndarray, level: float, spline: np.ndarray) -> np.ndarray:
    """Returns the field at `level`, (256, 256) float32, between those at the apex and the base, (2, knots, knots)."""
    return spline @ ((1 - level) * ends[0] + level * ends[1]).astype(np.float32) @ spline.T


def _body_coordinates(p: Patient, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y of every pixel in the patient's coordinates: shifted, tilted and bent."""
    x, y = _X - p.centre[0], _Y - p.centre[1]
    cos, sin = math.cos(p.tilt), math.sin(p.tilt)
    return (
        cos * x + sin * y + _field(p.bend[0], level, _COARSE),
        cos * y - sin * x + _field(p.bend[1], level, _COARSE),
    )


def _by_angle(table: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Evaluates a function of the angle around the origin by its table of `_ANGLES` values."""
    return table[(np.arctan2(y, x) * (_ANGLES / (2 * math.pi))).astype(np.int32) % _ANGLES]


def _ripple(shape: np.ndarray) -> np.ndarray:
    """Returns 1 plus harmonics 2, 3, ... of an outline, (_ANGLES,) float32; shape: (2, n) cosine and sine parts."""
    angles = np.arange(2, 2 + shape.shape[1])[:, None] * np.linspace(0, 2 * np.pi, _ANGLES, endpoint=False)
    return (1 + shape[0] @ np.cos(angles) + shape[1] @ np.sin(angles)).astype(np.float32)


def _soft(distance: np.ndarray, width: float) -> np.ndarray:
    """Returns 0 outside (negative), 1 inside, with a linear edge of `width` on both sides, like partial volume."""
    return np.clip(distance / (2 * width) + 0.5, 0, 1)


def _blend(picture: np.ndarray, share: np.ndarray, grey: float) -> None:
    picture += share * (grey - picture)


def _ellipse(x: np.ndarray, y: np.ndarray, cx: float, cy: float, a: float, b: float) -> np.ndarray:
    """Returns roughly the signed distance to an ellipse's outline, positive inside."""
    return (1 - np.sqrt(((x - cx) / a) ** 2 + ((y - cy) / b) ** 2)) * min(a, b)


def _body(p: Patient, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns about the distance to the skin, positive inside."""
    a, b, e = p.width, p.height, p.squareness
    radius = (np.abs(x / a) ** e + np.abs(y / b) ** e) ** (1 / e)
    distance = (1 - radius) * b
    if p.breasts:
        for side in (-1, 1):
            bump = _ellipse(x, y, side * a * 0.47, -b * 0.72, p.breasts * 1.5, p.breasts)
            distance = np.maximum(distance, bump)
    return distance


def _lungs(p: Patient, x: np.ndarray, y: np.ndarray, level: float) -> np.ndarray:
    """Returns about the distance to the outer pleura, positive inside. The liver cuts into the right lung (left)."""
    size = math.sqrt(min(max(1 - (1 - level) ** 3, 0.05), 1))  # narrow at the apex
    edges = []
    for side, shape in zip((-1, 1), p.lung_shapes, strict=True):
        dx, dy = (x - side * p.lung_gap) / (p.lung[0] * size), y / (p.lung[1] * (0.4 + 0.6 * size))
        edges.append((_by_angle(_ripple(shape), dx, dy) - np.sqrt(dx**2 + dy**2)) * p.lung[0])
    if level > p.diaphragm - 0.25:
        grown = level - p.diaphragm + 0.25
        edges[0] = np.minimum(edges[0], -_ellipse(x, y, -p.lung_gap * 0.9, -0.08, grown * 0.75, grown * 0.8))
    return np.maximum(*edges)


def _between(p: Patient, x: np.ndarray, y: np.ndarray, heart: np.ndarray) -> np.ndarray:
    """Returns about the distance to the outline of the tissue between the lungs, positive inside."""
    middle = np.maximum(heart, 0.045 - np.abs(x - 0.02 * np.sin(5 * y)))
    return np.maximum(middle, _ellipse(x, y, 0, p.lung[1] * 0.72, p.spine * 1.5, p.spine * 1.6))


def _heart(p: Patient, x: np.ndarray, y: np.ndarray, level: float) -> np.ndarray:
    """Returns about the signed distance to the outline of heart and great vessels, small at the apex, large below."""
    cx, cy, size = p.heart
    grown = size * (0.7 + 0.5 * min(max((level - 0.3) / 0.35, 0), 1))
    dx, dy = x + 0.35 * (y - cy) - cx, (y - cy) / 1.2
    return _by_angle(_ripple(p.heart_shape), dx, dy) * grown - np.hypot(dx, dy)


def _paint_mediastinum(picture: np.ndarray, p: Patient, x: np.ndarray, y: np.ndarray, heart: np.ndarray) -> None:
    grey = p.greys
    _blend(picture, _soft(heart, 0.01), 0.5 * (grey["muscle"] + grey["fat"]))
    _blend(picture, _soft(heart - 0.02, 0.01), grey["muscle"])  # under a thin layer of fat
    aorta = _ellipse(x, y, 0.075, p.lung[1] * 0.42, p.spine * 0.62, p.spine * 0.62)
    _blend(picture, _soft(aorta, 0.008), grey["blood"])


def _paint_airways(picture: np.ndarray, p: Patient, x: np.ndarray, y: np.ndarray, level: float) -> None:
    """Paints the trachea, and below its fork the two main bronchi."""
    spread = max(0.0, level - 0.38) * 0.75
    radius = 0.042 if level < 0.38 else 0.034
    for side in (-1, 1) if 0 < spread < 0.16 else (0,) if spread == 0 else ():
        tube = _ellipse(x, y, side * spread, p.heart[1] + 0.2, radius, radius)
        _blend(picture, _soft(tube + 0.012, 0.008), p.greys["muscle"])
        _blend(picture, _soft(tube, 0.008), p.greys["air"])


def _paint_bones(
    picture: np.ndarray, p: Patient, x: np.ndarray, y: np.ndarray, level: float, pleura: np.ndarray
) -> None:
    """Paints ribs (a sector of the chest wall in a band outside the pleura), vertebra, canal, processes and sternum."""
    grey, bottom = p.greys, p.lung[1] * 0.78
    band = 0.022 - np.abs(pleura + 0.034)
    angles = np.linspace(0, 2 * np.pi, _ANGLES, endpoint=False)[:, None] - (p.ribs + 1.3 * level)
    nearest = _by_angle(np.abs((angles + np.pi) % (2 * np.pi) - np.pi).min(axis=1).astype(np.float32), x, y)
    # A rib runs obliquely through the slice, so it is a long oval with marrow inside.
    rib = np.minimum(band, (0.105 - nearest) * 0.35)
    _blend(picture, _soft(rib, 0.006), grey["bone"])
    _blend(picture, _soft(rib - 0.012, 0.006), grey["muscle"] + 4)
    size = p.spine
    vertebra = _ellipse(x, y, 0, bottom, size * 1.15, size)
    arch = _ellipse(x, y, 0, bottom + size * 1.4, size * 1.5, size * 0.45)
    process = np.minimum(0.018 - np.abs(x), np.minimum(y - bottom - size, bottom + size * 3.0 - y))
    canal = _ellipse(x, y, 0, bottom + size * 1.25, size * 0.45, size * 0.4)
    _blend(picture, _soft(np.maximum(np.maximum(vertebra, arch), process), 0.007), grey["bone"])
    _blend(picture, _soft(vertebra - 0.016, 0.01), grey["bone"] - 14)
    _blend(picture, _soft(canal, 0.007), grey["muscle"])
    sternum = _ellipse(x, y, 0.0, -p.lung[1] - 0.05, 0.1, 0.03)
    _blend(picture, _soft(sternum, 0.006), grey["bone"])


def _paint_table(picture: np.ndarray, p: Patient) -> None:
    """Paints the scanner's table: two curved sheets below the back."""
    gap, curvature, thickness = p.table
    top = p.centre[1] + p.height + gap
    for offset, grey in ((0.0, 140.0), (thickness, 200.0)):
        sheet = 0.009 - np.abs(_Y - top - offset + curvature * _X**2 * 0.5)
        _blend(picture, _soft(sheet, 0.006) * (np.abs(_X) < 0.8), grey)


def _noise(p: Patient, body: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns grainy noise in grey levels, stronger in the body, with horizontal streaks as from wide shoulders."""
    strength, grain, streak = p.noise
    white = rng.standard_normal((SIDE, SIDE), dtype=np.float32)
    noise = ndimage.gaussian_filter(white, grain, truncate=3.0) * np.float32(2 * np.sqrt(np.pi) * grain)
    streaks = ndimage.uniform_filter1d(white[::-1], 41, axis=1) * np.float32(np.sqrt(41) * streak)
    clouds = _FINE @ rng.standard_normal((40, 40)).astype(np.float32) @ _FINE.T
    return strength * (noise + streaks + 0.3 * clouds) * (0.35 + 0.65 * body)


def phantoms(
    patients: int, slices_per_patient: int, seed: int, pool: Executor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draws `slices_per_patient` neighbouring slices of each of `patients` invented patients.

    pool: of processes that draw the patients; without it this process draws all of them. Threads would be slower than
    one thread, because the work is many short calls that hold the interpreter's lock.

    Returns
    -------
    slices: (patients * slices_per_patient, 256, 256) uint8; the slices of a patient follow each other
    groups: (patients * slices_per_patient,) str, the patient of each slice: "patient_0000", "patient_0001", ...

    A patient depends only on `seed` and the patient's number. More patients do not change the first ones.
    """
    if patients < 1 or slices_per_patient < 1:
        raise UsageError(
            f"got patients={patients}, slices_per_patient={slices_per_patient}, expected 1 or more of each"
        )

    scan = partial(_scan, slices_per_patient=slices_per_patient, seed=seed)
    slices = np.empty((patients, slices_per_patient, SIDE, SIDE), np.uint8)
    # Several BLAS threads are slower for such small matrices, and much slower if other work uses the cores.
    with threadpool_limits(1, user_api="blas"):
        scans = pool.map(scan, range(patients), chunksize=8) if pool else map(scan, range(patients))
        for number, of_patient in enumerate(scans):
            slices[number] = of_patient
    groups = np.repeat([f"patient_{i:04d}" for i in range(patients)], slices_per_patient)
    return slices.reshape(-1, SIDE, SIDE), groups


def _scan(number: int, slices_per_patient: int, seed: int) -> np.ndarray:
    """Draws the slices of patient `number`: (slices_per_patient, 256, 256) uint8."""
    rng = np.random.default_rng([seed, number])
    patient = draw_patient(rng)
    first = rng.uniform(0.25, max(0.3, 0.88 - SLICE_GAP * slices_per_patient))
    levels = first + SLICE_GAP * np.arange(slices_per_patient)
    return np.stack([draw_slice(patient, level, rng) for level in levels])
