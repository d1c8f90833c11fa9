import math

import numcodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sagecache.errors import SagecacheError
from sagecache.store.codec import (
    NORMAL_ERROR_DEGREES,
    ChecksumMismatch,
    NotEncodable,
    checksum,
    decode_depth,
    decode_normal,
    depth_error_bound,
    encode_depth,
    encode_normal,
    encode_row,
    failed_row,
    pack,
    require_bounds,
    unpack_into,
    without_checksum,
)
from sagecache.store.spec import OK, SETTINGS, UNREADABLE, build_fields

finite = st.floats(-(2.0**99), 2.0**99, width=32)
anything = st.one_of(finite, st.floats(0.5, 12, width=32), st.just(2.5))


@settings(max_examples=80, deadline=None)
@given(hnp.arrays(np.float32, (4, 5), elements=anything), hnp.arrays(bool, (4, 5)))
def test_depth_comes_back_within_the_stated_bound(depth, valid):
    codes, depth_range = encode_depth(depth, valid)
    decoded = decode_depth(codes, np.array(depth_range, np.float32))
    assert codes.max(initial=0) <= 4095
    assert np.array_equal(codes > 0, valid)
    assert np.array_equal(np.isnan(decoded), ~valid)
    error = np.abs(decoded[valid].astype(np.float64) - depth[valid])
    assert error.max(initial=0) <= depth_error_bound(np.array(depth_range))


def test_the_bound_is_about_an_eighth_of_a_thousandth_of_the_range():
    depth = np.random.default_rng(0).uniform(2.0, 2.6, (64, 48)).astype(np.float32)
    valid = np.ones(depth.shape, bool)
    codes, depth_range = encode_depth(depth, valid)
    bound = depth_error_bound(np.array(depth_range))
    error = np.abs(decode_depth(codes, np.array(depth_range, np.float32)) - depth)
    assert bound / np.ptp(depth) < 1.25e-4
    assert error.max() > 0.8 * bound  # the bound is not a loose one
    assert {codes.min(), codes.max()} == {1, 4095}  # the whole range of codes is used


def test_constant_depth_is_exact():
    codes, depth_range = encode_depth(np.full((3, 3), 1.7, np.float32), np.ones((3, 3), bool))
    assert np.array_equal(decode_depth(codes, depth_range), np.full((3, 3), 1.7, np.float32))


def test_depth_decodes_in_batches_each_with_its_own_range():
    rng = np.random.default_rng(1)
    depth = rng.normal(size=(3, 4, 5)).astype(np.float32)
    encoded = [encode_depth(one, np.ones((4, 5), bool)) for one in depth]
    codes, ranges = np.stack([c for c, _ in encoded]), np.array([r for _, r in encoded], np.float32)
    one_by_one = np.stack([decode_depth(c, r) for c, r in zip(codes, ranges, strict=True)])
    assert np.array_equal(decode_depth(codes, ranges), one_by_one)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2e30])
def test_depth_without_a_code_is_refused_where_it_counts(bad):
    depth = np.ones((2, 2), np.float32)
    depth[1, 1] = bad
    valid = np.ones((2, 2), bool)
    with pytest.raises(NotEncodable):
        encode_depth(depth, valid)
    valid[1, 1] = False
    assert encode_depth(depth, valid)[0][1, 1] == 0


def unit_normals(count: int) -> np.ndarray:
    """A Fibonacci sphere, (3, count): about evenly spread, both hemispheres, poles and equator included."""
    k = np.arange(count) + 0.5
    z, angle = 1 - 2 * k / count, math.pi * (1 + math.sqrt(5)) * k
    ring = np.sqrt(1 - z**2)
    axes = np.concatenate([np.eye(3), -np.eye(3)], axis=1)
    return np.concatenate([np.stack([ring * np.cos(angle), ring * np.sin(angle), z]), axes], axis=1)


def oct8_by_hand(u_code: int, v_code: int) -> tuple[float, float, float]:
    """The formula of docs/store-format.md in plain numbers."""
    u, v = (u_code - 128) / 127, (v_code - 128) / 127
    t = 1 - abs(u) - abs(v)
    fold = max(-t, 0.0)
    x = u - (fold if u >= 0 else -fold)
    y = v - (fold if v >= 0 else -fold)
    length = math.sqrt(x * x + y * y + t * t)
    return x / length, y / length, -t / length


def test_normals_of_the_whole_sphere_come_back_within_the_stated_angle():
    normals = unit_normals(200_000)
    codes = encode_normal(normals[:, None], np.ones((1, normals.shape[1]), bool))
    decoded = decode_normal(codes)[:, 0].astype(np.float64)
    angles = np.degrees(np.arccos(np.clip((normals * decoded).sum(0), -1, 1)))
    assert angles.max() < NORMAL_ERROR_DEGREES
    assert angles.max() > 0.8 * NORMAL_ERROR_DEGREES
    assert angles.mean() < 0.5
    assert codes.min() >= 1


def test_decoding_agrees_with_the_formula_for_every_code():
    codes = np.stack(np.meshgrid(np.arange(1, 256), np.arange(1, 256), indexing="ij")).astype(np.uint8)
    by_hand = [oct8_by_hand(u, v) for u in range(1, 256, 7) for v in range(1, 256, 7)]
    decoded = decode_normal(codes)[:, ::7, ::7].reshape(3, -1).T
    np.testing.assert_allclose(decoded, by_hand, atol=2e-6)


def test_the_camera_facing_normal_has_the_middle_code_and_fills_what_does_not_count():
    normal = np.zeros((3, 1, 2))
    normal[2, 0, 0] = -4.0  # any length will do
    codes = encode_normal(normal, np.array([[True, False]]))
    assert codes.tolist() == [[[128, 128]], [[128, 128]]]
    np.testing.assert_array_equal(decode_normal(codes)[:, 0, 0], [0, 0, -1])


@pytest.mark.parametrize("bad", [[0, 0, 0], [np.nan, 0, 1], [0, np.inf, 1]])
def test_normals_without_direction_are_refused_where_they_count(bad):
    normal = np.zeros((3, 1, 2))
    normal[:, 0, 0], normal[:, 0, 1] = (0, 0, -1), bad
    with pytest.raises(NotEncodable):
        encode_normal(normal, np.array([[True, True]]))
    encode_normal(normal, np.array([[True, False]]))


def slow_crc32c(data: bytes) -> int:
    """CRC-32C bit by bit (RFC 3720, reflected polynomial 82F63B78)."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_checksum_is_crc32c(data):
    assert checksum(data) == slow_crc32c(data)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["uint16", "uint8", "bool"]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=2, max_dims=3, max_side=9))
    )
)
def test_chunks_are_blosc_then_crc32c_as_numcodecs_reads_them(array):
    chunk = pack(array)
    assert int.from_bytes(chunk[-4:], "little") == slow_crc32c(chunk[:-4])
    plain = np.frombuffer(numcodecs.Blosc().decode(chunk[:-4]), array.dtype).reshape(array.shape)
    assert np.array_equal(plain, array)
    out = np.empty_like(array)
    unpack_into(chunk, out)
    assert np.array_equal(out, array)


def test_any_flipped_bit_and_any_cut_is_found():
    chunk = pack(np.arange(60, dtype=np.uint16).reshape(6, 10))
    out = np.empty((6, 10), np.uint16)
    for bit in range(8 * len(chunk)):
        damaged = bytearray(chunk)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ChecksumMismatch):
            unpack_into(bytes(damaged), out)
    for length in range(len(chunk)):
        with pytest.raises(ChecksumMismatch):
            without_checksum(chunk[:length])


def test_a_sound_chunk_of_another_shape_is_refused():
    with pytest.raises(ChecksumMismatch, match="does not hold"):
        unpack_into(pack(np.zeros((2, 3), np.uint16)), np.empty((2, 4), np.uint16))


def test_equal_values_give_equal_bytes_whatever_their_memory_layout():
    array = np.random.default_rng(0).integers(0, 4095, (16, 12)).astype(np.uint16)
    assert pack(array) == pack(np.asfortranarray(array)) == pack(array.astype(">u2"))


def test_a_row_holds_depth_and_normals_on_the_mask_only():
    rng = np.random.default_rng(0)
    mask = rng.random((1, 8, 6)) > 0.5
    depth = np.where(mask, rng.normal(size=(1, 8, 6)), np.nan).astype(np.float32)
    normal = np.where(mask, rng.normal(size=(3, 8, 6)), 0)
    fields = build_fields(["depth", "normal", "mask"])
    row = encode_row(fields, {"depth": depth, "normal": normal, "mask": mask})
    codes = np.empty((8, 6), np.uint16)
    unpack_into(row.chunks["depth"], codes)
    assert row.status == OK
    assert np.array_equal(codes > 0, mask[0])


def test_a_failed_row_has_chunks_of_zeros_and_cannot_be_ok():
    fields = build_fields(["depth", "normal"])
    row = failed_row(fields, (6, 8), UNREADABLE)
    normal = np.ones((2, 8, 6), np.uint8)
    unpack_into(row.chunks["normal"], normal)
    assert (row.status, row.depth_range, normal.any()) == (UNREADABLE, (0.0, 0.0), False)
    with pytest.raises(ValueError, match="cannot have the status ok"):
        failed_row(fields, (6, 8), OK)


def body_maps() -> dict[str, np.ndarray]:
    """A bulge before a far wall: smooth as real maps are."""
    y, x = np.mgrid[-1:1:32j, -1:1:24j]
    height = np.sqrt(np.clip(0.8 - x**2 - y**2, 0, None))
    normal = np.stack([x, y, -height - 0.1])
    return {
        "depth": (3 - height)[None].astype(np.float32),
        "normal": normal.astype(np.float32),
        "mask": (height > 0)[None],
    }


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_keeps_its_bound(setting):
    maps, fields = body_maps(), build_fields(["depth", "normal", "mask"], setting=setting)
    row = encode_row(fields, maps)
    require_bounds(fields, (24, 32), maps, row)
    sizes = {
        name: sum(map(len, encode_row(build_fields(maps, setting=name), maps).chunks.values()))
        for name in SETTINGS
    }
    assert sizes["compact"] < sizes["fast"] < sizes["lossless"]


def test_a_lossless_row_is_what_the_teacher_gave():
    maps, fields = body_maps(), build_fields(["depth", "normal", "mask"], setting="lossless")
    row = encode_row(fields, maps)
    for name, axes in (("depth", (32, 24)), ("normal", (3, 32, 24))):
        values = np.empty(axes, np.float32)
        unpack_into(row.chunks[name], values)
        assert np.array_equal(
            values, np.where(maps["mask"][0], maps[name].reshape(axes), np.nan), equal_nan=True
        )
    assert np.array_equal(decode_depth(values[0]), values[0], equal_nan=True)
    assert np.array_equal(decode_normal(values), values, equal_nan=True)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(("name", "value"), [("depth", np.inf), ("normal", np.nan), ("normal", 0.0)])
def test_what_has_no_code_is_refused_in_every_setting(setting, name, value):
    maps = body_maps()
    maps[name][:, 16, 12] = value
    with pytest.raises(NotEncodable):
        encode_row(build_fields(maps, setting=setting), maps)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["depth", "normal", "mask"])
def test_a_codec_that_loses_too_much_is_found_out(setting, name):
    maps, fields = body_maps(), build_fields(["depth", "normal", "mask"], setting=setting)
    row = encode_row(fields, maps)
    spoiled = {key: value.copy() for key, value in maps.items()}
    spoiled[name][:, 16, 12] = ~maps[name][:, 16, 12] if name == "mask" else -maps[name][:, 16, 12]
    with pytest.raises(SagecacheError, match="is off by"):
        require_bounds(fields, (24, 32), {**maps, name: spoiled[name]}, row)


def test_an_unknown_setting_is_refused():
    with pytest.raises(SagecacheError, match="unknown codec setting 'fst'.*fast"):
        build_fields(["depth"], setting="fst")
