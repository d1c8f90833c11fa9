"""The baked body: shapes of infants and older people, linear blend skinning, COCO-17 joints.

Reads the asset that ``tools/bake_bodies.py`` made and knows nothing of poses, clothes or cameras.
Rest frame: metres, x = the subject's left, -y = front, z = up. Posed frame: the world (z up).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from sagecache.errors import SagecacheError

ASSET = Path(__file__).parent / "assets" / "body.npz"
GROUPS = ("infant", "older")
# Concentration of the weights that mix three stored shapes: infants differ smoothly, so all three
# count; older bodies span children to adults, where an even mix would make every body an average.
MIX = {"infant": (0.6, 0.6, 0.6), "older": (2.0, 0.5, 0.0)}


def dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Scalar products (...,) of vectors (..., 3); much faster than a sum over a short axis."""
    return np.einsum("...i,...i->...", first, second)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) of any length -> unit length; a zero vector stays zero."""
    return vectors / np.maximum(np.sqrt(dot(vectors, vectors)), 1e-12)[..., None]


def rotation(axis, angle: float) -> np.ndarray:
    """Rotation matrix (3, 3) about axis (3,) by angle radians, right-handed (Rodrigues)."""
    x, y, z = unit(np.asarray(axis, float))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


@dataclass(frozen=True)
class Shape:
    """One body at rest: vertices (V, 3) and bone heads (J, 3), metres, rest frame."""

    vertices: np.ndarray
    heads: np.ndarray
    group: str


class Body:
    """Topology, skin weights and shape space shared by all bodies; immutable after loading."""

    def __init__(self, asset: dict[str, np.ndarray]) -> None:
        self.labels = [str(name) for name in asset["labels"]]
        self.bone = {name: index for index, name in enumerate(self.labels)}
        self.parents = asset["parents"].astype(int)
        self.faces = asset["faces"].astype(np.int32)  # (F, 3)
        count = len(asset["wi"])
        weights = np.zeros((count, len(self.labels)), np.float32)
        np.add.at(
            weights, (np.arange(count)[:, None], asset["wi"].astype(int)), asset["ww"].astype(np.float32)
        )
        self.weights = weights / weights.sum(1, keepdims=True)  # (V, J)
        self._skin = csr_matrix(self.weights)
        regressor = np.zeros((17, count), np.float32)
        regressor[asset["kp_r"], asset["kp_c"]] = asset["kp_w"]
        self._regressor = csr_matrix(regressor)
        corners = self.faces.ravel()
        rows = np.repeat(np.arange(len(self.faces)), 3)
        ones, shape = np.ones(len(corners), np.float32), (count, len(self.faces))
        self._vertex_from_face = csr_matrix((ones, (corners, rows)), shape)
        self._spaces = {
            group: (asset[f"{group}_mean"], asset[f"{group}_comp"].astype(np.float32), asset[f"{group}_coef"])
            for group in GROUPS
        }

    @classmethod
    def load(cls, path: Path = ASSET) -> Body:
        """Read the asset. Raises SagecacheError when it is missing."""
        if not path.is_file():
            raise SagecacheError("the baked body is missing", file=path, fix="Run tools/bake_bodies.py")
        with np.load(path) as asset:
            return cls(dict(asset))

    @property
    def num_vertices(self) -> int:
        return len(self.weights)

    def sample_shape(self, rng: np.random.Generator, group: str) -> Shape:
        """A new body as a convex mix of stored ones, so it never leaves the body model's range."""
        mean, components, coefficients = self._spaces[group]
        alpha = np.array(MIX[group])
        mix = np.zeros(3)
        mix[alpha > 0] = rng.dirichlet(alpha[alpha > 0])
        code = mix @ coefficients[rng.integers(0, len(coefficients), 3)]
        points = (mean + code @ components).reshape(-1, 3)
        return Shape(points[: self.num_vertices], points[self.num_vertices :].astype(np.float64), group)

    def bone_frames(self, heads: np.ndarray, turns: dict[int, np.ndarray], root: np.ndarray):
        """Forward kinematics: global rotations (J, 3, 3) and positions (J, 3) of all bones.

        turns {bone: (3, 3)} are rotations relative to the parent, written in rest axes; root (3, 3)
        turns the whole body. The root bone's head is the origin.
        """
        rotations = np.empty((len(heads), 3, 3))
        positions = np.zeros((len(heads), 3))
        rotations[0] = root @ turns[0] if 0 in turns else root
        for bone in range(1, len(heads)):
            parent = self.parents[bone]
            positions[bone] = positions[parent] + rotations[parent] @ (heads[bone] - heads[parent])
            rotations[bone] = rotations[parent] @ turns[bone] if bone in turns else rotations[parent]
        return rotations, positions

    def posed(self, shape: Shape, turns: dict[int, np.ndarray], root: np.ndarray) -> np.ndarray:
        """Linear blend skinning: vertices (V, 3) float32, metres, root bone at the origin."""
        rotations, positions = self.bone_frames(shape.heads, turns, root)
        offsets = positions - np.einsum("jab,jb->ja", rotations, shape.heads)
        transforms = np.concatenate([rotations.reshape(-1, 9), offsets], 1).astype(np.float32)
        blended = self._skin @ transforms  # (V, 12)
        linear = blended[:, :9].reshape(-1, 3, 3)
        return np.einsum("vab,vb->va", linear, shape.vertices.astype(np.float32)) + blended[:, 9:]

    def keypoints(self, vertices: np.ndarray) -> np.ndarray:
        """COCO-17 joints (17, 3) of posed or rest vertices: joint centres in limbs, face at the surface."""
        return self._regressor @ vertices

    def vertex_normals(self, vertices: np.ndarray) -> np.ndarray:
        """Outward unit normals (V, 3): the sum of the adjacent faces' normals, weighted by area."""
        a, b, c = (vertices[self.faces[:, corner]] for corner in range(3))
        return unit(self._vertex_from_face @ np.cross(b - a, c - a))
