"""Axes against an analytic sphere, mirrored maps, resizing, and the errors of specs and builders."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from sagecache.errors import SagecacheError
from sagecache.teachers.base import (
    Teacher,
    TeacherSpec,
    check_crops,
    convert_normals,
    file_hash,
    mirror_maps,
    resize_maps,
    usable_device,
)


def test_a_device_is_one_that_torch_has(monkeypatch):
    assert usable_device("cpu") == torch.device("cpu")
    with pytest.raises(SagecacheError, match="unknown device 'gpu'"):
        usable_device("gpu")
    with pytest.raises(SagecacheError, match="device 'meta' is asked for, and torch can't use it: "):
        usable_device("meta")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("cuda", "cuda:1"):
        with pytest.raises(
            SagecacheError, match=f"'{name}' is asked for, and torch sees none. Set device='cpu'"
        ):
            usable_device(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        SagecacheError, match="'cuda:7' is asked for, and torch sees 2 GPUs, the first is cuda:0"
    ):
        usable_device("cuda:7")


def test_a_device_that_is_there_and_fails_is_told(monkeypatch):
    def fails(*_, device):
        raise AssertionError("Torch not compiled with CUDA enabled\n  a trace")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "zeros", fails)
    with pytest.raises(SagecacheError, match="can't use it: Torch not compiled with CUDA enabled. Set"):
        usable_device("cuda")


def test_the_documented_teacher_is_one():
    text = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    names = {"TeacherSpec": TeacherSpec}
    exec(text.split("```python\n")[1].split("```")[0], names)
    teacher = names["FlatTeacher"]()
    assert set(Teacher.__annotations__) | {"fingerprint", "__call__"} <= set(dir(teacher))
    assert set(teacher.spec.as_dict()) == {field.name for field in fields(TeacherSpec)}


def sphere(size=33):
    """Outward normals (1, 3, h, w) of a sphere seen by an orthographic camera along +z, y down."""
    axis = np.linspace(-0.7, 0.7, size)
    x, y = np.meshgrid(axis, axis)
    # The visible half faces the camera: its outward normal has z < 0.
    z = -np.sqrt(1 - x**2 - y**2)
    return torch.tensor(np.stack([x, y, z]), dtype=torch.float32)[None]


def test_opengl_normals_of_a_sphere_become_ours():
    ours = sphere()
    # The same directions with y up and z to the viewer: the top of the sphere (small row) points up.
    opengl = torch.stack([ours[:, 0], -ours[:, 1], -ours[:, 2]], 1)
    assert opengl[0, 1, 0, 16] > 0.5 and opengl[0, 2, 16, 16] > 0.99
    torch.testing.assert_close(convert_normals(opengl, "opengl"), ours)
    torch.testing.assert_close(convert_normals(3 * ours, "opencv"), ours)


def test_a_normal_without_direction_is_nan_and_unknown_axes_are_an_error():
    normals = sphere(5)
    normals[..., 2, 2] = 0
    assert convert_normals(normals, "opencv")[0, :, 2, 2].isnan().all()
    with pytest.raises(SagecacheError, match="did you mean 'opengl'"):
        convert_normals(normals, "opengll")


def test_mirrored_maps_of_a_symmetric_shape_are_the_shape_itself():
    normals = sphere()
    depth = normals[:, 2:]  # z of the surface: nearest in the middle
    out = mirror_maps(dict(depth=depth, normal=normals))
    torch.testing.assert_close(out["normal"], normals)
    torch.testing.assert_close(out["depth"], depth)


def test_mirroring_moves_pixels_and_keeps_nz():
    normals = torch.nn.functional.normalize(torch.randn(2, 3, 4, 6), dim=1)
    out = mirror_maps(dict(normal=normals))["normal"]
    torch.testing.assert_close(out[:, 0], -normals[:, 0].flip(2))
    torch.testing.assert_close(out[:, 1:], normals[:, 1:].flip(3))


def test_resizing_keeps_pixel_areas():
    ramp = torch.arange(12.0).expand(1, 1, 8, 12)
    half = resize_maps(ramp, (6, 4))
    # map pixel i sees pixel 2 i + .5
    torch.testing.assert_close(half[0, 0, 2, 1:-1], 2 * torch.arange(1.0, 5.0) + 0.5)
    assert resize_maps(ramp, (12, 8)) is ramp
    grown = resize_maps(ramp, (24, 16))[0, 0, 5, 4:-4]
    torch.testing.assert_close(grown, (torch.arange(4.0, 20.0) + 0.5) / 2 - 0.5)


def test_spec_refuses_unknown_outputs_and_kinds():
    with pytest.raises(SagecacheError, match="outputs"):
        TeacherSpec("x", (8, 8), (4, 4), ("albedo",), "affine", "")
    with pytest.raises(SagecacheError, match="did you mean 'affine'"):
        TeacherSpec("x", (8, 8), (4, 4), ("depth",), "afine", "")
    with pytest.raises(SagecacheError, match="maps of 4x4 for crops of 8x6.*aspect"):
        TeacherSpec("x", (8, 6), (4, 4), ("depth",), "affine", "")


def test_crops_of_another_size_or_type_are_refused():
    check_crops(np.zeros((2, 16, 8, 3), np.uint8), (8, 16))
    for wrong in (np.zeros((2, 8, 16, 3), np.uint8), np.zeros((2, 16, 8, 3), np.float32)):
        with pytest.raises(SagecacheError, match="input_size"):
            check_crops(wrong, (8, 16))


def test_file_hash_follows_bytes_not_names(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    (tmp_path / "b").write_bytes(b"x" * 100_000)
    assert file_hash(tmp_path / "a") == file_hash(tmp_path / "b")
    (tmp_path / "b").write_bytes(b"x" * 99_999 + b"y")
    assert file_hash(tmp_path / "a") != file_hash(tmp_path / "b")
