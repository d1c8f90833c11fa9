"""Targets decoded in torch: against the store's numpy decoder, and against the values that went in."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sagecache.data.targets import _directions, dequantise
from sagecache.store.codec import (
    NORMAL_ERROR_DEGREES,
    decode_depth,
    decode_normal,
    depth_error_bound,
    encode_depth,
    encode_normal,
)


def ball(size: int = 24) -> dict[str, np.ndarray]:
    """Depth, normals and mask of a sphere of radius 10 px seen by an orthographic camera."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    height = np.sqrt(np.clip(100 - x**2 - y**2, 0, None))
    normal = np.stack([x, y, -height]) / 10
    return {"depth": 500 - height, "normal": normal, "mask": x**2 + y**2 < 99}


def stored(sample: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The batch of one that a loader would hand over."""
    codes, depth_range = encode_depth(sample["depth"], sample["mask"])
    return {
        "depth": torch.from_numpy(codes)[None],
        "depth_range": torch.tensor([depth_range], dtype=torch.float32),
        "normal": torch.from_numpy(encode_normal(sample["normal"], sample["mask"]))[None],
        "mask": torch.from_numpy(sample["mask"])[None],
    }


def test_a_ball_comes_back_within_the_codecs_bounds():
    sample = ball()
    raw = stored(sample)
    decoded = dequantise(raw)
    mask = sample["mask"]
    assert decoded["depth"].shape == (1, 1, 24, 24) and decoded["depth"].dtype == torch.float32
    assert decoded["normal"].shape == (1, 3, 24, 24) and decoded["normal"].dtype == torch.float32
    assert decoded["mask"].shape == (1, 1, 24, 24) and decoded["mask"].dtype == torch.bool
    np.testing.assert_array_equal(decoded["mask"][0, 0].numpy(), mask)
    error = np.abs(decoded["depth"][0, 0].numpy() - sample["depth"])[mask].max()
    assert error <= depth_error_bound(raw["depth_range"].numpy())[0]
    cosine = (decoded["normal"][0].numpy() * sample["normal"]).sum(0)[mask]
    assert np.degrees(np.arccos(cosine.clip(-1, 1))).max() <= NORMAL_ERROR_DEGREES
    assert (decoded["normal"][0, 2].numpy()[mask] < 0).all(), "normals look at the camera"


def test_nothing_is_invented_off_the_mask():
    sample = ball()
    decoded = dequantise(stored(sample))
    outside = torch.from_numpy(~sample["mask"])
    assert (decoded["depth"][0, 0][outside] == 0).all()
    assert (decoded["normal"][0][:, outside] == 0).all()


def test_every_normal_code_agrees_with_the_stores_decoder():
    u, v = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    codes = np.stack([u, v])
    decoded = dequantise({"normal": torch.from_numpy(codes)[None]})["normal"][0].numpy()
    np.testing.assert_allclose(decoded, decode_normal(codes), atol=1e-6, rtol=0)


@settings(max_examples=30, deadline=None)
@given(
    low=st.floats(-1e3, 1e3, width=32),
    step=st.floats(0, 10, width=32),
    seed=st.integers(0, 2**32 - 1),
)
def test_depth_agrees_with_the_stores_decoder(low, step, seed):
    codes = np.random.default_rng(seed).integers(0, 4096, (2, 5, 7), dtype=np.uint16)
    codes[:, 0, :2] = [0, 4095]
    depth_range = np.array([[low, step], [step, low / 7]], dtype=np.float32)
    raw = {"depth": torch.from_numpy(codes), "depth_range": torch.from_numpy(depth_range)}
    decoded = dequantise(raw)
    expected = decode_depth(codes, depth_range)
    np.testing.assert_allclose(decoded["depth"][:, 0].numpy(), np.nan_to_num(expected), rtol=1e-6, atol=1e-4)
    np.testing.assert_array_equal(decoded["mask"][:, 0].numpy(), ~np.isnan(expected))


def test_a_failed_row_has_an_empty_mask_and_finite_values():
    raw = {name: torch.zeros_like(value) for name, value in stored(ball()).items()}
    decoded = dequantise(raw)
    assert not decoded["mask"].any()
    assert all(torch.isfinite(value.float()).all() for value in decoded.values())


@pytest.mark.parametrize(
    "fields, expected",
    [
        (("depth", "depth_range"), {"depth", "mask"}),
        (("normal", "mask"), {"normal", "mask"}),
        (("mask",), {"mask"}),
        (("depth_range",), set()),
    ],
)
def test_fields_that_the_store_lacks_stay_absent(fields, expected):
    raw = stored(ball())
    assert set(dequantise({name: raw[name] for name in fields})) == expected


def test_a_depthless_pixel_on_the_mask_is_no_target():
    raw = stored(ball())
    raw["depth"][0, 12, 12] = 0
    decoded = dequantise(raw)
    assert not decoded["mask"][0, 0, 12, 12] and decoded["mask"].sum() == raw["mask"].sum() - 1


def test_float_tensors_cross_the_batch_in_their_own_range():
    sample = ball()
    near, far = stored(sample), stored({**sample, "depth": sample["depth"] * 3})
    batch = {name: torch.cat([near[name], far[name]]) for name in near}
    depth = dequantise(batch)["depth"]
    torch.testing.assert_close(depth[1:], dequantise(far)["depth"], atol=0, rtol=0)
    torch.testing.assert_close(depth[:1], dequantise(near)["depth"], atol=0, rtol=0)


def test_a_lossless_store_is_handed_on_as_it_is():
    sample = ball()
    mask = sample["mask"]
    exact = {name: np.where(mask, sample[name], np.nan).astype(np.float32) for name in ("depth", "normal")}
    raw = {name: torch.from_numpy(values)[None] for name, values in exact.items()}
    for extra in ({}, {"mask": torch.from_numpy(mask)[None]}):
        decoded = dequantise(raw | extra)
        assert np.array_equal(decoded["mask"][0, 0].numpy(), mask)
        assert np.array_equal(decoded["depth"][0, 0].numpy(), np.where(mask, exact["depth"], 0))
        assert np.array_equal(decoded["normal"][0].numpy(), np.where(mask, exact["normal"], 0))
    alone = dequantise({"normal": raw["normal"]})
    assert np.array_equal(alone["mask"][0, 0].numpy(), mask)


def test_what_decodes_first_does_not_decide_who_may_learn_from_it():
    """Under inference mode first, then where a gradient passes."""
    _directions.cache_clear()
    raw = stored(ball())
    with torch.inference_mode():
        dequantise(raw)
    weight = torch.ones((), requires_grad=True)
    (dequantise(raw)["normal"] * weight).sum().backward()
    assert weight.grad.isfinite()
