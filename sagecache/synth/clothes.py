"""What a body wears, and the colours of skin, face and hair, evaluated at surface points.

``body_fields`` gives each vertex smooth coordinates (where along the arm, the leg, the trunk); a garment
is a set of limits on them. Evaluated at each ray hit, so hems are smooth at any resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sagecache.synth.body import Body, Shape
from sagecache.synth.textures import Print, mix, noise_tile, pick, sample_print, sample_tile, soft_step

SKIN = np.array(
    [
        [0.95, 0.80, 0.71],
        [0.91, 0.72, 0.60],
        [0.82, 0.61, 0.47],
        [0.66, 0.46, 0.34],
        [0.47, 0.31, 0.23],
        [0.36, 0.24, 0.18],
    ]
)
HAIR = np.array(
    [[0.13, 0.10, 0.08], [0.30, 0.20, 0.13], [0.56, 0.43, 0.27], [0.22, 0.15, 0.11], [0.42, 0.24, 0.14]]
)
LIP = np.array([0.74, 0.38, 0.36])
# Columns of the vertex fields. Lengths are in trunk lengths (hip to neck); ARM and LEG count joints:
# 0 shoulder or hip, 1 elbow or knee, 2 wrist or ankle, 3 tips.
X, Y, Z, ARM, LEG, ARM_SHARE, HEAD, EYE = range(8)
FIELDS = 8


@lru_cache(maxsize=4)
def _shares(body: Body) -> np.ndarray:
    """Skin weight of each vertex (V, 3) on arms, head with neck, and eyes."""
    starts = (
        ("upperarm", "lowerarm", "wrist", "finger", "metac"),
        ("neck02", "neck03", "head", "eye"),
        ("eye",),
    )
    picks = [np.array([name.startswith(part) for name in body.labels]) for part in starts]
    return body.weights @ np.stack(picks, 1).astype(np.float32)


def body_fields(body: Body, shape: Shape) -> np.ndarray:
    """Smooth coordinates (V, FIELDS) float32 of each vertex at rest."""
    trunk = shape.heads[body.bone["neck01"]][2] - shape.heads[body.bone["spine05"]][2]
    local = (shape.vertices - shape.heads[body.bone["spine05"]]) / trunk
    arm = _along(
        body,
        shape,
        (("upperarm",), ("lowerarm",), ("wrist", "finger", "metac")),
        ("upperarm01", "lowerarm01", "wrist", "finger3-3"),
    )
    leg = _along(
        body,
        shape,
        (("upperleg",), ("lowerleg",), ("foot", "toe")),
        ("upperleg01", "lowerleg01", "foot", "toe2-3"),
    )
    return np.concatenate([local, arm[:, None], leg[:, None], _shares(body)], 1).astype(np.float32)


def trunk(fields: np.ndarray) -> np.ndarray:
    """Which vertices (V,) belong to the trunk: no limb, no head."""
    return (fields[:, ARM] < 0.02) & (fields[:, LEG] < 0.02) & (fields[:, HEAD] < 0.1)


def _along(body, shape, groups, joints):
    """Position along a limb, 0..3: the skin-weighted mean of the position along each segment."""
    total = np.zeros(body.num_vertices)
    for side in (".L", ".R"):
        points = [shape.heads[body.bone[name + side]] for name in joints]
        for index, names in enumerate(groups):
            bones = [name.startswith(names) and name.endswith(side) for name in body.labels]
            start, span = points[index], points[index + 1] - points[index]
            share = (shape.vertices - start) @ span / (span @ span)
            total += body.weights[:, bones].sum(1) * (index + np.clip(share, 0, 1))
    return total


@dataclass(frozen=True)
class Garment:
    """Limits of one garment: covers hem..top of the trunk, arms up to sleeve, legs up to leg (joints)."""

    colour: np.ndarray
    pattern: Print
    hem: float = -9.0  # lowest trunk height
    top: float = 9.0  # highest trunk height
    sleeve: float = -1.0  # below 0: no sleeves and no shoulders
    leg: float = 9.0
    leg_from: float = -9.0  # socks start here
    neck: float = 0.22  # radius of the neckline, trunk lengths
    trim: float = 0.85  # shade of the ribbed hem

    def depth(self, f: np.ndarray) -> np.ndarray:
        """Signed distance inside the garment (N,), trunk lengths."""
        inside = np.minimum(f[:, Z] - self.hem, self.top - f[:, Z])
        inside = np.minimum(inside, (self.leg - f[:, LEG]) * 0.55)
        inside = np.minimum(inside, (f[:, LEG] - self.leg_from) * 0.55)
        if self.sleeve >= 0:
            inside = np.minimum(inside, (self.sleeve - f[:, ARM]) * 0.45)
        else:
            inside = np.minimum(inside, (0.35 - f[:, ARM_SHARE]) * 0.25)
        if self.top > 1:
            throat = np.sqrt(f[:, X] ** 2 + (f[:, Y] + 0.12) ** 2 * 0.6 + (f[:, Z] - 1.05) ** 2)
            inside = np.minimum(inside, np.minimum(throat - self.neck, (0.4 - f[:, HEAD]) * 0.2))
        return inside


@dataclass(frozen=True)
class Dress:
    """Everything that colours one person."""

    skin: np.ndarray
    hair: np.ndarray
    hair_share: float  # how much of the scalp's skin it hides
    hairline: float
    garments: tuple[Garment, ...]
    hat: Print | None
    hat_colour: np.ndarray
    landmarks: np.ndarray  # (3, 3) nose, left eye, right eye, in field coordinates
    head: np.ndarray  # (2, 3) centre and half extent of the head
    mouth: float  # how far the mouth lies below the nose, in eye distances
    eye_centres: np.ndarray  # (2, 3)
    eye_radius: float
    iris: np.ndarray
    folds: np.ndarray  # (2,) phase of the wrinkles


def sample_dress(body: Body, shape: Shape, fields: np.ndarray, rng, palette: str) -> Dress:
    """Draw skin, hair and clothes for one body."""
    infant = shape.group == "infant"
    skin = np.clip(SKIN[rng.integers(len(SKIN))] * rng.uniform(0.93, 1.05) + rng.normal(0, 0.012, 3), 0, 1)
    face = body.keypoints(fields[:, :3])[:3]
    head = fields[fields[:, HEAD] > 0.8, :3]
    eyes = fields[:, EYE] > 0.5
    left, right = (fields[eyes & (sign * fields[:, X] > 0), :3] for sign in (1, -1))
    centres = np.stack([(points.min(0) + points.max(0)) / 2 for points in (left, right)])
    hat = rng.random() < (0.2 if infant else 0.06)
    hat_colour = pick(rng, palette)
    return Dress(
        skin=skin,
        hair=np.clip(HAIR[rng.integers(len(HAIR))] + rng.normal(0, 0.02, 3), 0.02, 1),
        hair_share=rng.uniform(0.35, 0.92) if infant else 0.97,
        hairline=rng.uniform(0.10, 0.26) if infant else rng.uniform(-0.02, 0.14),
        garments=_infant_outfit(rng, palette) if infant else _older_outfit(rng, palette),
        hat=sample_print(rng, hat_colour, palette, ["plain", "dots"], (6, 10)) if hat else None,
        hat_colour=hat_colour,
        landmarks=face,
        head=np.stack([(head.min(0) + head.max(0)) / 2, np.ptp(head, axis=0) / 2]),
        mouth=0.60 if infant else 0.72,
        eye_centres=centres,
        eye_radius=float(np.ptp(left, axis=0).max() / 2),
        iris=np.clip(np.array([0.20, 0.14, 0.10]) + rng.uniform(0, 0.12) * np.array([0.3, 0.8, 1.4]), 0, 1),
        folds=rng.random(2),
    )


def _garment(rng, palette, kinds=("plain", "plain", "stripes", "dots", "stars", "stripes"), **limits):
    colour = pick(rng, palette)
    return Garment(colour, sample_print(rng, colour, palette, list(kinds), (4.5, 9.0)), **limits)


def _infant_outfit(rng, palette):
    """Nappy; bodysuit with short sleeves; sleepsuit to wrists and feet; shirt with trousers."""
    kind = rng.choice(["nappy", "bodysuit", "sleepsuit", "two"], p=[0.22, 0.28, 0.33, 0.17])
    socks = (
        (_garment(rng, palette, ("plain",), leg=4.0, leg_from=rng.uniform(1.7, 1.9)),)
        if rng.random() < 0.35
        else ()
    )
    white = np.clip(np.array([0.94, 0.94, 0.95]) + rng.normal(0, 0.015, 3), 0, 1)
    nappy = Garment(white, Print("plain", white, 1.0, 0.0, np.zeros(2)), top=0.24, leg=0.22, trim=0.92)
    if kind == "nappy":
        return (nappy, *socks)
    if kind == "bodysuit":
        sleeve = rng.choice([-1.0, 0.55, 2.0], p=[0.2, 0.55, 0.25])
        return (nappy, _garment(rng, palette, leg=0.2, sleeve=sleeve, neck=rng.uniform(0.2, 0.26)), *socks)
    if kind == "sleepsuit":
        feet = rng.random() < 0.6
        return (
            _garment(rng, palette, leg=4.0 if feet else 1.85, sleeve=1.93, neck=rng.uniform(0.18, 0.24)),
        ) + (() if feet else socks)
    legs = _garment(rng, palette, ("plain", "stripes", "plain"), top=0.3, leg=rng.choice([0.8, 1.85]))
    sleeve = rng.choice([0.55, 1.93])
    return (legs, _garment(rng, palette, hem=0.12, sleeve=sleeve, neck=rng.uniform(0.19, 0.25)), *socks)


def _older_outfit(rng, palette):
    """Trousers or shorts, a shirt, mostly shoes."""
    legs = _garment(
        rng, palette, ("plain", "plain", "stripes"), top=0.2, leg=rng.choice([0.75, 1.9], p=[0.35, 0.65])
    )
    shirt = _garment(
        rng,
        palette,
        hem=rng.uniform(0.02, 0.14),
        sleeve=rng.choice([-1.0, 0.6, 1.95], p=[0.1, 0.5, 0.4]),
        neck=rng.uniform(0.16, 0.22),
    )
    shoes = (_garment(rng, palette, ("plain",), leg=4.0, leg_from=1.93),) if rng.random() < 0.8 else ()
    return (legs, shirt, *shoes)


def albedo(dress: Dress, f: np.ndarray, pixel: float):
    """Display colour (N, 3) and wrinkle strength (N,) at fields f (N, FIELDS); pixel in trunk lengths."""
    colour = _skin(dress, f, pixel)
    cloth = np.zeros(len(f), np.float32)
    grain = sample_tile(noise_tile(3, 5, 1), f[:, X] * 1.3 + f[:, Y] * 0.7, f[:, Z] * 1.3 + f[:, Y] * 0.4)
    for garment in dress.garments:
        depth = garment.depth(f)
        cover = soft_step(depth, max(0.6 * pixel, 0.004))
        second = garment.pattern.cover(f[:, X] + 0.35 * f[:, Y], f[:, Z] - 0.2 * f[:, Y], pixel)[:, None]
        fabric = mix(garment.colour, garment.pattern.colour, second)
        rib = soft_step(0.035 - depth, 0.008)[:, None]  # the hem
        fabric = fabric * (1 - (1 - garment.trim) * rib) * (1 + 0.05 * grain[:, None])
        # the cloth's rim shades the skin next to it
        rim = 0.16 * np.exp(-np.maximum(-depth, 0) / 0.02)[:, None]
        colour = colour * (1 - rim)
        colour += (fabric - colour) * cover[:, None]
        cloth = np.maximum(cloth, cover)
    return np.clip(colour, 0, 1), cloth


def _skin(dress, f, pixel):
    """Skin with blush, mouth, brows, eyes and hair or a hat."""
    nose, left, right = dress.landmarks
    eye_line = (left + right) / 2
    gap = abs(left[0] - right[0])
    point = f[:, :3]
    colour = np.repeat(dress.skin[None], len(f), 0).astype(np.float32)
    mottle = sample_tile(noise_tile(2, 3, 2), f[:, X] * 0.8 + f[:, Y], f[:, Z] * 0.8)
    colour *= 1 + 0.03 * mottle[:, None] * np.float32([0.5, 1.0, 1.0])
    head = f[:, HEAD] > 0.4
    if head.any():
        colour[head] = _face(dress, point[head], colour[head], (nose, eye_line, gap), pixel)
        colour[head] = _scalp(dress, point[head], colour[head], pixel)
    eye = f[:, EYE] > 0.5
    if eye.any():
        colour[eye] = _eyes(dress, point[eye], pixel)
    # palms, knees and finger tips are redder
    red = np.clip(f[:, ARM] - 2.3, 0, 0.5) + np.clip(f[:, LEG] - 2.3, 0, 0.5)
    colour *= 1 - red[:, None] * np.float32([0.0, 0.12, 0.12])
    return colour


def _face(dress, point, colour, frame, pixel):
    nose, eye_line, gap = frame
    front = soft_step(eye_line[1] + 0.6 * gap - point[:, 1], 0.1 * gap)  # front is -y
    for sign in (1, -1):
        cheek = ((point[:, 0] - sign * 0.75 * gap) / (0.35 * gap)) ** 2 + (
            (point[:, 2] - nose[2] + 0.2 * gap) / (0.30 * gap)
        ) ** 2
        colour = colour * (1 - (0.5 * front * np.exp(-cheek))[:, None] * np.float32([-0.02, 0.16, 0.14]))
        brow = ((point[:, 0] - sign * 0.55 * gap) / (0.30 * gap)) ** 2 + (
            (point[:, 2] - eye_line[2] - 0.42 * gap) / (0.07 * gap)
        ) ** 2
        cover = 0.55 * dress.hair_share * front * soft_step(1 - brow, 0.5)
        colour = mix(colour, 0.6 * dress.hair + 0.4 * dress.skin, cover[:, None])
    mouth = (point[:, 0] / (0.40 * gap)) ** 2 + (
        (point[:, 2] - nose[2] + dress.mouth * gap) / (0.11 * gap)
    ) ** 2
    cover = 0.6 * front * soft_step(1 - mouth, 0.45)
    return mix(colour, LIP * (0.35 + 0.75 * dress.skin.mean()), cover[:, None])


def _scalp(dress, point, colour, pixel):
    """Hair behind a ragged hairline, or a hat with a straight one."""
    centre, half = dress.head
    local = (point - centre) / half
    wave = sample_tile(noise_tile(6, 3, 3), local[:, 0] * 0.5 + dress.folds[0], local[:, 1] * 0.5)
    line = 0.62 * local[:, 2] + 0.60 * local[:, 1]  # up and back
    if dress.hat is not None:
        edge = line + 0.02
        second = dress.hat.cover(point[:, 0], point[:, 2], pixel)[:, None]
        cloth = mix(dress.hat_colour, dress.hat.colour, second)
        cloth = cloth * (1 - 0.15 * soft_step(0.12 - edge, 0.02)[:, None])
        return mix(colour, cloth, soft_step(edge, 0.02)[:, None])
    angle = np.arctan2(local[:, 0], local[:, 1] + 0.2)
    strands = sample_tile(noise_tile(24, 2, 4), angle * 0.9, local[:, 2] * 0.12 + 0.1 * wave)
    cover = dress.hair_share * soft_step(
        line - 2.2 * dress.hairline + 0.06 * wave, 0.10 + 0.1 * (1 - dress.hair_share)
    )
    hair = dress.hair * (1 + 0.35 * strands[:, None])
    return mix(colour, hair, cover[:, None])


def _eyes(dress, point, pixel):
    """White, iris and pupil about the axis that looks forward."""
    centre = np.where(point[:, :1] > 0, dress.eye_centres[:1], dress.eye_centres[1:])
    radius = np.hypot(point[:, 0] - centre[:, 0], point[:, 2] - centre[:, 2]) / dress.eye_radius
    width = max(0.08, pixel / dress.eye_radius)
    iris = soft_step(0.52 - radius, width)[:, None]
    pupil = soft_step(0.22 - radius, width)[:, None]
    white = np.array([0.90, 0.88, 0.86])
    return white + iris * (dress.iris - white) - pupil * iris * (dress.iris - 0.03) * 0.9
