"""Looks: what a domain shows, from where, and through which camera. One renderer serves all of them.

A Look holds ranges only; every draw happens in ``scene`` and ``render``. Pairs are uniform ranges.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Photometry:
    """The camera after the scene: contrast about mid grey, exposure, blur (pixels), noise (sd in 0..1)."""

    contrast: tuple[float, float] = (1.0, 1.0)
    exposure: tuple[float, float] = (1.0, 1.0)
    blur: tuple[float, float] = (0.0, 0.0)
    noise: tuple[float, float] = (0.0, 0.0)
    tint: float = 0.0  # sd of the gain of each colour channel
    night: float = 0.0  # share of infrared night pictures, almost grey


@dataclass(frozen=True)
class Look:
    """One domain. Probabilities are tuples or dicts that sum to 1; angles in degrees."""

    name: str
    group: dict[str, float]  # body shapes: 'infant', 'older'
    kinds: dict[str, float]  # pose kinds of pose.KINDS
    people: tuple[float, ...]  # probability of 1, 2, … people
    elevation: tuple[float, float]  # camera above the horizon
    lying_elevation: tuple[float, float]  # the same for pictures whose first person lies
    torso_turn: float | None  # seen from above, torso and view differ by at most this; None: by any angle
    roll: float  # sd of the camera roll; 180 or more means any roll
    fill: tuple[float, float]  # extent of the people, as a share of the frame
    focal: tuple[float, float]  # focal length in frame widths
    floor: str  # 'sheet' (bedding) or 'room' (floor and wall) or 'any'
    palette: str  # colours of clothes, bedding and props: a key of colours.PALETTES
    blanket: float = 0.0  # probability
    blanket_size: tuple[float, float] = (0.25, 0.5)  # in body extents
    toys: tuple[float, ...] = (1.0,)  # probability of 0, 1, … toys
    rails: float = 0.0  # probability of crib rails between the camera and the bed
    ambient: tuple[float, float] = (0.4, 0.6)  # share of light that comes from everywhere
    lamp: float = 70.0  # sd of the lamp's azimuth about the camera's side; 180 or more means any
    photometry: Photometry = field(default_factory=Photometry)


# The unlabeled domain: infants in bed seen from above. Ranges follow the prototype's look N, measured
# to leave a student pretrained on 'source' room to learn, yet readable at 128 x 96 pixels.
TARGET = Look(
    name="target",
    group={"infant": 1.0},
    kinds={"supine": 0.68, "side": 0.15, "prone": 0.17},  # how young infants lie in a crib
    people=(0.92, 0.08),  # twins are rare
    elevation=(45, 88),  # a camera over the crib; at 45 degrees it stands beside it
    lying_elevation=(45, 88),
    torso_turn=60.0,  # an upright picture from the foot of the crib, the infant turned at most this far
    roll=7.0,
    fill=(0.6, 0.8),  # the infant fills the crib's frame
    focal=(1.0, 1.9),  # phone to camera module
    floor="sheet",
    palette="nursery",
    blanket=0.3,  # small ones that hide some joints but not the body
    blanket_size=(0.25, 0.5),
    toys=(0.5, 0.3, 0.2),
    rails=0.04,  # bars in front of the lens hide joints anywhere: keep them rare
    ambient=(0.1, 0.4),  # a window or one lamp: shadows model the body
    lamp=180.0,
    photometry=Photometry(
        contrast=(0.62, 1.0),  # dim rooms and cheap sensors flatten the picture
        exposure=(0.65, 1.10),  # darker, and bodies drown in the noise
        blur=(0.4, 1.1),
        noise=(0.004, 0.016),
        tint=0.06,  # lamps are anything but white
        night=0.35,  # baby cameras see in infrared at night
    ),
)

# The labeled domain of the pretrained student: older people, daylight, sharp. All azimuths and some
# lying bodies, so that backs are seen and left is not simply the picture's right.
SOURCE = Look(
    name="source",
    group={"older": 1.0},
    kinds={"stand": 0.70, "sit": 0.14, "supine": 0.06, "side": 0.03, "prone": 0.07},
    people=(0.7, 0.2, 0.1),
    elevation=(2, 32),  # a photographer's eye
    lying_elevation=(15, 75),  # people on the floor are seen from higher up
    torso_turn=None,
    roll=7.0,
    fill=(0.6, 0.95),
    focal=(1.0, 1.9),
    floor="room",
    palette="bright",
    toys=(0.8, 0.2),
    ambient=(0.45, 0.6),
    photometry=Photometry(exposure=(0.95, 1.15), blur=(0.3, 0.6), noise=(0.006, 0.006), tint=0.03),
)

# What the detector learns from: every body, pose, view and colour. Photometry is clean because it is drawn
# anew each time a picture is used in training.
GENERIC = Look(
    name="generic",
    group={"infant": 0.6, "older": 0.4},
    kinds={"supine": 0.24, "prone": 0.14, "side": 0.12, "sit": 0.16, "crawl": 0.16, "stand": 0.18},
    people=(0.78, 0.16, 0.06),
    elevation=(0, 89),
    lying_elevation=(0, 89),
    torso_turn=None,
    roll=180.0,
    fill=(0.55, 1.0),
    focal=(0.85, 2.4),
    floor="any",
    palette="any",
    blanket=0.3,
    blanket_size=(0.3, 0.75),
    toys=(0.4, 0.3, 0.2, 0.1),
    rails=0.12,
    ambient=(0.05, 0.6),
    lamp=180.0,
)

# What the geometry teacher learns from: infants who lie, the head up in the picture, in any colour and light.
INFANTS = replace(
    GENERIC,
    name="infants",
    group={"infant": 1.0},
    kinds={"supine": 0.6, "side": 0.2, "prone": 0.2},
    people=(0.85, 0.15),
    elevation=(38, 89),
    lying_elevation=(38, 89),
    torso_turn=75.0,
    roll=12.0,
    fill=(0.55, 0.95),
    blanket_size=(0.25, 0.6),
    rails=0.08,
    ambient=(0.05, 0.55),
)

LOOKS = {look.name: look for look in (TARGET, SOURCE, GENERIC, INFANTS)}
