"""Small stores of random targets, made from a seed alone, for tests in this process and in others."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sagecache.store.codec import ENCODERS, EncodedRow, encode_row, failed_row
from sagecache.store.spec import OK, PLAN_ARRAYS, UNREADABLE, StorePlan, TargetField, build_fields
from sagecache.store.writer import StoreWriter

_TESTS = Path(__file__).parent
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@dataclass(frozen=True)
class Content:
    """What a store is made from, and what every reader must find in it."""

    plan: StorePlan
    fields: tuple[TargetField, ...]
    maps: list[dict[str, np.ndarray]]
    failed: frozenset[int] = frozenset()
    fingerprint: dict | None = None
    attributes: dict | None = None
    shard_size: int = 4

    def only(self, rows: Sequence[int]) -> Content:
        """The same instances, fewer of them or in another order."""
        arrays = {name: getattr(self.plan, name)[list(rows)] for name in PLAN_ARRAYS}
        failed = frozenset(rows.index(row) for row in self.failed if row in rows)
        plan = StorePlan(size=self.plan.size, **arrays)
        return replace(self, plan=plan, maps=[self.maps[row] for row in rows], failed=failed)

    def row(self, row: int) -> EncodedRow:
        if row in self.failed:
            return failed_row(self.fields, self.plan.size, UNREADABLE)
        return encode_row(self.fields, self.maps[row])

    def open(self, root: Path, **changes) -> StoreWriter:
        arguments = {
            "plan": self.plan,
            "fields": self.fields,
            "fingerprint": self.fingerprint or {"teacher": {"name": "toy", "weights": "aa"}, "padding": 1.25},
            "attributes": self.attributes or {"split": "x", "command": "sagecache precompute geo --split x"},
            "shard_size": self.shard_size,
        }
        return StoreWriter.open(root, **{**arguments, **changes})

    def commit(self, store: StoreWriter, shard: int) -> None:
        """Rows by id: those of a store that has grown stand in another order than ours."""
        rows = {tuple(pair): row for row, pair in enumerate(self.plan.ids.tolist())}
        todo = store.todo(shard)
        store.commit(shard, [self.row(rows[tuple(pair)]) for pair in store.plan.ids[list(todo)].tolist()])

    def write(self, root: Path) -> Path:
        with self.open(root) as store:
            for shard in store.missing():
                self.commit(store, shard)
            store.finish()
        return root


def make_content(
    count: int = 10,
    size: tuple[int, int] = (6, 8),
    outputs: tuple[str, ...] = ("depth", "normal", "mask"),
    shard_size: int = 4,
    failed: tuple[int, ...] = (),
    seed: int = 0,
    setting: str = "fast",
) -> Content:
    """Random targets: instances of images 5, 8, 11, … with one to three persons each."""
    rng = np.random.default_rng(seed)
    keys = [(5 + 3 * image, number) for image in range(count) for number in range(1 + image % 3)][:count]
    width, height = size
    plan = StorePlan(
        ids=np.array(keys, np.int64),
        image_sha256=rng.integers(0, 256, (count, 32), dtype=np.uint8),
        bbox=rng.uniform(0, 100, (count, 4)),
        target_from_image=rng.normal(size=(count, 3, 3)),
        size=size,
    )
    maps = []
    for _ in range(count):
        full = {
            "depth": rng.normal(3, 1, (1, height, width)).astype(np.float32),
            "normal": rng.normal(size=(3, height, width)).astype(np.float32),
            "mask": rng.random((1, height, width)) > 0.3,
        }
        maps.append({name: full[name] for name in outputs})
    fields = build_fields(outputs, "metric", "m", setting=setting)
    return Content(plan, fields, maps, frozenset(failed), shard_size=shard_size)


def expected(content: Content, row: int) -> dict[str, np.ndarray]:
    """Stored values of a row by the encoders alone, with no file in between."""
    maps = content.maps[row]
    valid = maps["mask"][0] if "mask" in maps else np.ones(content.plan.size[::-1], bool)
    found = {"status": np.uint8(OK), "target_from_image": content.plan.target_from_image[row]}
    for field in content.fields:
        values = ENCODERS[field.encoding](maps[field.name], valid)
        if field.encoding == "instance_levels":
            values, depth_range = values
            found["depth_range"] = np.array(depth_range, np.float32)
        found[field.name] = values
    return found


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal in every value, NaN where the other has NaN."""
    return np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f")


def memory_folder() -> tempfile.TemporaryDirectory:
    """A temporary folder, in memory where the system has such: these tests sync hundreds of files."""
    return tempfile.TemporaryDirectory(dir=MEMORY)


def python(*arguments: str | Path, **options) -> subprocess.Popen:
    """Start Python with this package and the tests importable, its output as text; use it in a with."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (_TESTS.parent, _TESTS)))}
    command = [sys.executable, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **{**pipes, **options})


def read_sum(reader, keys, queue) -> None:
    """For worker processes: put the sum of all depth codes of keys into queue."""
    queue.put(sum(int(reader.read(*key)["depth"].astype(int).sum()) for key in keys))


def tree(folder: Path) -> dict[str, str]:
    """Path -> sha256 of every file below folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
