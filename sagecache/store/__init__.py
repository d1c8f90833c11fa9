"""Targets on disk: a plain Zarr v3 group with a plan, a journal and a fingerprint beside it."""

from sagecache.store.joined import JoinedReader
from sagecache.store.reader import Failure, StoreReader
from sagecache.store.spec import StorePlan, TargetField, build_fields
from sagecache.store.verification import Problem
from sagecache.store.writer import StoreWriter, is_others_empty_start, pending, set_aside

__all__ = [
    "Failure",
    "JoinedReader",
    "Problem",
    "StorePlan",
    "StoreReader",
    "StoreWriter",
    "TargetField",
    "build_fields",
    "is_others_empty_start",
    "pending",
    "set_aside",
]
