"""Maps -> stored values -> chunk bytes, and back. Lossy steps state their bound and refuse what exceeds it.

``encode_*`` and ``decode_*`` are plain numpy; ``pack`` and ``unpack_into`` add blosc and crc32c exactly
as the Zarr codecs ``bytes``, ``blosc``, ``crc32c`` do, so any Zarr v3 library reads the chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import google_crc32c
import numcodecs.blosc
import numpy as np

from sagecache.errors import SagecacheError
from sagecache.store.spec import DEPTH_LEVELS, OK, SETTINGS, Setting, TargetField

# With threads, blosc may write its blocks in the order in which they finish (other bytes each time), decodes
# these small chunks 1.35x slower, and starts threads that a fork would lose.
numcodecs.blosc.use_threads = False

NORMAL_ERROR_DEGREES = 1.0  # the largest angle between a unit normal and what oct8 gives back
_CHECKSUM_BYTES = 4
_crc32c, _decompress = google_crc32c.value, numcodecs.blosc.decompress  # found once, not for each chunk
_RESIDUE = 0x48674BC7  # crc32c of any bytes followed by their own crc32c: so nothing need be copied apart


class NotEncodable(ValueError):
    """These values have no code: not finite, too large, or without direction."""


class ChecksumMismatch(ValueError):
    """The bytes are not those that were written."""


# ------------------------------------------------------------------------------------------------ depth
def encode_depth(depth: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Depth -> codes over the instance's own range; returns codes (H, W) uint16 and (lo, step).

    depth (H, W) float, any unit; valid (H, W) bool. Codes are 1..4095 where valid, 0 elsewhere.
    lo and step are float32 values. Error: see ``depth_error_bound``. Raises NotEncodable where a
    valid depth is not finite or exceeds 1e30.
    """
    values = depth[valid].astype(np.float32).astype(np.float64)
    codes = np.zeros(depth.shape, np.uint16)
    if values.size == 0:
        return codes, (0.0, 0.0)
    if not np.isfinite(values).all() or np.abs(values).max() > 1e30:
        raise NotEncodable("depth is not finite, or beyond 1e30")
    lo, hi = values.min(), values.max()
    step = np.float32((hi - lo) / (DEPTH_LEVELS - 1))
    if lo + float(step) * (DEPTH_LEVELS - 1) < hi:  # rounded down: the top level would miss the largest depth
        step = np.nextafter(step, np.float32(np.inf))
    level = np.rint((values - lo) / float(step)) if step > 0 else np.zeros_like(values)
    codes[valid] = level.astype(np.uint16) + 1
    return codes, (float(lo), float(step))


def decode_depth(codes: np.ndarray, depth_range: np.ndarray | None = None) -> np.ndarray:
    """Codes -> float32 depth, NaN where there is none.

    codes (..., H, W) uint16 with depth_range (..., 2) float32 (lo, step); or float32, which stays as it is.
    """
    if codes.dtype.kind == "f":
        return codes
    lo, step = np.moveaxis(np.asarray(depth_range, np.float32)[..., None, None], -3, 0)
    depth = lo + (codes.astype(np.float32) - 1) * step
    return np.where(codes > 0, depth, np.float32(np.nan))


def mask_of_depth(codes: np.ndarray, out: np.ndarray) -> None:
    """The mask of instances that have both, without reading it: depth stands where the mask is true.

    codes: stored depth, uint16 or float32; out: bool, of the same shape.
    """
    if codes.dtype.kind == "f":
        np.equal(codes, codes, out=out)  # NaN off the mask
    else:
        np.not_equal(codes, 0, out=out)


def depth_error_bound(depth_range: np.ndarray) -> np.ndarray:
    """Largest |decoded - true| depth of an instance: half a step, plus the rounding of float32 arithmetic.

    depth_range (..., 2); returns (...) float64. Half a step is 1 / 8188 of the instance's range.
    """
    lo, step = np.moveaxis(np.asarray(depth_range, np.float64), -1, 0)
    largest = np.maximum(np.abs(lo), np.abs(lo + step * (DEPTH_LEVELS - 1)))
    return 0.5 * step + 2.0**-22 * np.maximum(largest, step * DEPTH_LEVELS) + 2.0**-149


# ---------------------------------------------------------------------------------------------- normals
def _sign(values: np.ndarray) -> np.ndarray:
    return np.where(values >= 0, np.float32(1), np.float32(-1))  # sign(0) = 1, or the folded rim would vanish


def encode_normal(normal: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Normals (3, H, W), any length > 0, camera frame -> octahedral codes (2, H, W) uint8, values 1..255.

    Where valid (H, W) is false the code is (128, 128), the direction to the camera. Error at most
    ``NORMAL_ERROR_DEGREES``. Raises NotEncodable where a valid normal is not finite or has no length.
    """
    kept = normal[:, valid].astype(np.float64)  # (3, M)
    size = np.abs(kept).sum(axis=0)
    if not np.isfinite(size).all() or (size < 1e-12).any():
        raise NotEncodable("a normal is not finite or has no length")
    u, v, towards = kept[0] / size, kept[1] / size, -kept[2] / size
    folded = towards < 0
    u, v = (
        np.where(folded, (1 - np.abs(v)) * _sign(u), u),
        np.where(folded, (1 - np.abs(u)) * _sign(v), v),
    )
    codes = np.full((2, *valid.shape), 128, np.uint8)
    codes[:, valid] = np.rint(np.stack([u, v]) * 127 + 128).astype(np.uint8)
    return codes


def decode_normal(codes: np.ndarray) -> np.ndarray:
    """Octahedral codes (..., 2, H, W) uint8 -> unit normals (..., 3, H, W) float32, camera frame.

    Normals of a lossless store (..., 3, H, W) float32 stay as they are, NaN off the mask.
    """
    if codes.dtype.kind == "f":
        return codes
    u, v = np.moveaxis((codes.astype(np.float32) - 128) / 127, -3, 0)
    towards = 1 - np.abs(u) - np.abs(v)
    fold = np.maximum(-towards, 0)
    normal = np.stack([u - _sign(u) * fold, v - _sign(v) * fold, -towards], axis=-3)
    return normal / np.linalg.norm(normal, axis=-3, keepdims=True)


# ------------------------------------------------------------------------------------------------ exact
def encode_exact(maps: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Maps (C, H, W) as float32, NaN where valid (H, W) is false. Raises NotEncodable as the others do."""
    stored = np.where(valid, maps, np.float32(np.nan)).astype(np.float32)
    kept = stored[:, valid]
    if not np.isfinite(kept).all() or (len(kept) == 3 and (np.abs(kept).sum(axis=0) < 1e-12).any()):
        raise NotEncodable("a value is not finite, or a normal has no length")
    return stored if len(stored) > 1 else stored[0]


# ------------------------------------------------------------------------------------------------- rows
@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One instance, ready to be written: its status, the (lo, step) of its depth, a chunk for each field."""

    status: int
    depth_range: tuple[float, float]
    chunks: dict[str, bytes]


def encode_row(fields: Sequence[TargetField], maps: Mapping[str, np.ndarray]) -> EncodedRow:
    """Encode one instance.

    maps: 'depth' (1, H, W) and 'normal' (3, H, W) float, 'mask' (1, H, W) bool, camera frame. Depth and
    normals count on the mask only, or everywhere in a store without a mask. Raises NotEncodable.
    """
    valid = maps["mask"][0] if "mask" in maps else np.ones(next(iter(maps.values())).shape[1:], bool)
    chunks, depth_range = {}, (0.0, 0.0)
    for field in fields:
        stored = _encode_field(field, maps[field.name], valid)
        if field.encoding == "instance_levels":
            stored, depth_range = stored
        chunks[field.name] = pack(stored, field.setting)
    return EncodedRow(OK, depth_range, chunks)


def require_bounds(
    fields: Sequence[TargetField], size: tuple[int, int], maps: Mapping[str, np.ndarray], row: EncodedRow
) -> None:
    """Decode a row and compare it with what was encoded: a fault of a library must not fill a store.

    maps: as for ``encode_row``; size: (width, height). Raises SagecacheError beyond the stated bounds.
    """
    valid = maps["mask"][0] if "mask" in maps else np.ones((size[1], size[0]), bool)
    for field in fields:
        stored = np.empty(field.shape(size), np.dtype(field.dtype).newbyteorder("<"))
        unpack_into(row.chunks[field.name], stored)
        error, bound = _ERRORS[field.encoding](stored, maps[field.name], valid, row.depth_range)
        if not (error <= bound).all():
            raise SagecacheError(
                f"the codec lost more than it may: '{field.name}' is off by {np.max(error):.3g}, "
                f"the bound is {np.min(bound):.3g}",
                fix="Reinstall numcodecs; if that does not help, report it.",
            )


def _depth_error(codes: np.ndarray, maps: np.ndarray, valid: np.ndarray, depth_range) -> tuple:
    depth = decode_depth(codes, np.array(depth_range))[valid].astype(np.float64)
    return np.abs(depth - maps[0][valid].astype(np.float32)), depth_error_bound(np.array(depth_range))


def _normal_error(codes: np.ndarray, maps: np.ndarray, valid: np.ndarray, _) -> tuple:
    true = maps[:, valid].astype(np.float64)
    cosine = (decode_normal(codes)[:, valid] * true).sum(axis=0) / np.linalg.norm(true, axis=0)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1))), np.float64(NORMAL_ERROR_DEGREES)


def _exact_error(stored: np.ndarray, maps: np.ndarray, valid: np.ndarray, _) -> tuple:
    true = np.where(valid, maps, np.nan).astype(np.float32).reshape(stored.shape)
    return np.where(np.isnan(true), ~np.isnan(stored), stored != true), np.float64(0)


def _mask_error(stored: np.ndarray, maps: np.ndarray, _, __) -> tuple:
    return stored != maps[0], np.float64(0)


_ERRORS = {
    "instance_levels": _depth_error,
    "oct8": _normal_error,
    "float32": _exact_error,
    "bool": _mask_error,
}


def failed_row(fields: Sequence[TargetField], size: tuple[int, int], status: int) -> EncodedRow:
    """A row that holds nothing but its status; chunks are written all the same, so that no index has gaps."""
    if status == OK:
        raise ValueError("a failed row cannot have the status ok")
    chunks = {field.name: pack(np.zeros(field.shape(size), field.dtype), field.setting) for field in fields}
    return EncodedRow(status, (0.0, 0.0), chunks)


ENCODERS: dict[str, Callable[[np.ndarray, np.ndarray], object]] = {
    "instance_levels": lambda maps, valid: encode_depth(maps[0], valid),
    "oct8": encode_normal,
    "bool": lambda maps, valid: np.ascontiguousarray(maps[0], bool),
    "float32": encode_exact,
}


def _encode_field(field: TargetField, maps: np.ndarray, valid: np.ndarray):
    return ENCODERS[field.encoding](maps, valid)


# ------------------------------------------------------------------------------------------ chunk bytes
def checksum(data: bytes) -> int:
    """crc32c (Castagnoli) of the bytes."""
    return google_crc32c.value(data)


def with_checksum(data: bytes) -> bytes:
    """The Zarr codec crc32c: the bytes, then their checksum, little-endian."""
    return data + checksum(data).to_bytes(_CHECKSUM_BYTES, "little")


def without_checksum(data: bytes) -> memoryview:
    """The bytes before the checksum. Raises ChecksumMismatch where the two do not belong together."""
    if checksum(data) != _RESIDUE:
        raise ChecksumMismatch("crc32c does not match")
    return memoryview(data)[:-_CHECKSUM_BYTES]


def shuffled(dtype: np.dtype) -> bool:
    """Byte shuffle pays for wide values only."""
    return np.dtype(dtype).itemsize > 1


def pack(array: np.ndarray, setting: Setting = SETTINGS["fast"]) -> bytes:
    """Stored values of one instance -> chunk bytes: little-endian, blosc, crc32c."""
    array = np.ascontiguousarray(array, np.dtype(array.dtype).newbyteorder("<"))
    shuffle = numcodecs.blosc.SHUFFLE if shuffled(array.dtype) else numcodecs.blosc.NOSHUFFLE
    return with_checksum(numcodecs.blosc.compress(array, setting.compressor.encode(), setting.level, shuffle))


def unpack_into(chunk: bytes, out: np.ndarray) -> None:
    """Chunk bytes -> out, a C-contiguous array of the stored dtype and shape. Raises ChecksumMismatch."""
    if _crc32c(chunk) != _RESIDUE:
        raise ChecksumMismatch("crc32c does not match")
    if int.from_bytes(chunk[4:8], "little") != out.nbytes:  # blosc header: bytes before compression
        raise ChecksumMismatch(f"the chunk does not hold {out.nbytes} bytes")
    _decompress(memoryview(chunk)[:-_CHECKSUM_BYTES], out)


def require_fast_checksum() -> None:
    """Raise where crc32c would run in pure Python, a hundred times slower than reading itself."""
    if google_crc32c.implementation != "c":
        raise SagecacheError(
            "google-crc32c has no compiled checksum on this machine",
            fix="Install a google-crc32c wheel with its C extension.",
        )
