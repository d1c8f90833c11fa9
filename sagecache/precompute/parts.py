"""A list of JSON records made in parts, so that a kill loses one part, and written once, whole, at the end.

Beside the result ``x.json`` lies ``x.meta.json``: what it was made from and its hash. While the work
goes on, parts lie in ``x.parts/``; the finished result has the same bytes however often it was cut off.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from sagecache.errors import SagecacheError
from sagecache.store.files import remove_leftovers, sync_folder, unused_name, write_whole
from sagecache.store.fingerprint import canonical, describe, diff
from sagecache.store.lock import FolderLock

PARTS_FIX = (
    "Use the configuration that made it, or --force: it sets the old file aside under another name "
    "(nothing is deleted) and computes all anew."
)

_NOT_OURS = "the file was not made by sagecache"
_DAMAGED_FIX = "Run with --force: it sets what is there aside under another name and computes all anew."


class Parts:
    """What is there of ``count`` parts and of the result that they become. Reads only."""

    def __init__(self, result: Path, identity: Mapping, count: int) -> None:
        """Raises SagecacheError where what is there was made from something else."""
        self.result, self.count = result, count
        self.meta = result.with_suffix(".meta.json")
        self._folder = result.with_suffix(".parts")
        self._identity = canonical(identity)
        self._refuse_other()
        self.finished = self._is_finished()

    def missing(self) -> list[int]:
        """Numbers of the parts still to be made."""
        return [] if self.finished else [k for k in range(self.count) if not self._part(k).exists()]

    @property
    def _manifest(self) -> Path:
        return self._folder / "manifest.json"

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number:06d}.json"

    def _refuse_other(self) -> None:
        known = None
        if self.meta.exists():
            known = self._read_meta()["identity"]
        elif self._manifest.exists():
            known = _read(self._manifest)
        elif self.result.exists():
            raise SagecacheError(_NOT_OURS, file=self.result, fix=PARTS_FIX)
        if known is not None and (differences := diff(known, self._identity)):
            raise SagecacheError(
                f"it was made from something else ({describe(differences)})", file=self.result, fix=PARTS_FIX
            )

    def _read_meta(self) -> dict:
        return _read_meta(self.meta)

    def _is_finished(self) -> bool:
        if not (self.meta.exists() and self.result.exists()):
            return False
        if _sha256(self.result.read_bytes()) != self._read_meta()["sha256"]:
            raise SagecacheError("the file was changed after it was made", file=self.result, fix=PARTS_FIX)
        return True


class PartsWriter(Parts):
    """Collects parts, each a list of records and a list of failures, into one result file."""

    def __init__(
        self,
        result: Path,
        identity: Mapping,
        count: int,
        shared: bool = False,
        waiting: Callable[[], None] | None = None,
    ) -> None:
        """Take up what is there; shared and waiting as in ``StoreWriter.open``.

        Raises SagecacheError where it was made from something else.
        """
        super().__init__(result, identity, count)
        self._lock, self._shared = None, shared
        if self.finished and not self._folder.exists():
            return  # nothing to write, not even a lock: the folder may be read-only
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self._folder, shared, waiting)
        self.finished = self._is_finished()  # by another run, perhaps, while we waited
        if self._lock.alone:
            remove_leftovers(self._folder)
        if not self.finished and not self._manifest.exists():
            write_whole(self._manifest, _json(self._identity))
        if shared and self._lock.alone:
            self._lock.share()

    def commit(self, part: int, records: list[dict], failed: list[dict]) -> None:
        write_whole(self._part(part), _json({"records": records, "failed": failed}))

    def finish(self) -> bool:
        """Join the parts in order. The result appears first, then its meta file; then the parts go.

        False where other writers still have parts to make: the last one finishes.
        """
        if self._shared and self.missing():
            return False
        if self._lock is not None:
            self._lock.become_alone()
            self.finished = self._is_finished()
        if not self.finished:
            parts = [_read(self._part(k), "records", "failed") for k in range(self.count)]
            data = _json_lines([record for part in parts for record in part["records"]])
            failed = [item for part in parts for item in part["failed"]]
            write_whole(self.result, data)
            meta = {"identity": self._identity, "sha256": _sha256(data), "failed": failed}
            write_whole(self.meta, _json(meta))
            self.finished = True
        return True

    def close(self) -> None:
        if self._lock is None:
            return
        try:
            if self.finished:  # under the lock: nobody may start parts in a folder that is going
                if self._folder.exists():  # another rank may have done so
                    shutil.rmtree(self._folder)
                sync_folder(self._folder.parent)
        finally:
            self._lock.release()

    def __enter__(self) -> PartsWriter:
        return self

    def __exit__(self, error: type[BaseException] | None, *_) -> None:
        failed_at_once = error is not None and not self._shared and len(self.missing()) == self.count
        if failed_at_once and self._lock is not None and not self.finished:
            self._manifest.unlink(missing_ok=True)  # it would only refuse the run that mends this one
        self.close()

    @property
    def failed(self) -> list[dict]:
        """Failures of the finished result."""
        return self._read_meta()["failed"]


def made_from(result: Path) -> dict:
    """The identity that stands beside a result. Raises SagecacheError where there is none."""
    meta = result.with_suffix(".meta.json")
    if not meta.exists():
        raise SagecacheError(_NOT_OURS, file=result, fix=PARTS_FIX)
    return _read_meta(meta)["identity"]


def set_parts_aside(result: Path) -> Path | None:
    """Move a result, its meta file and its parts into ``<name>.replaced``; nothing is deleted."""
    sources = [result, result.with_suffix(".meta.json"), result.with_suffix(".parts")]
    present = [path for path in sources if path.exists()]
    if not present:
        return None
    folder = unused_name(result.with_name(f"{result.name}.replaced"))
    folder.mkdir()
    for path in present:
        path.rename(folder / path.name)
    sync_folder(result.parent)
    return folder


def _read_meta(path: Path) -> dict:
    content = _read(path, "identity", "sha256", "failed")
    if not (isinstance(content["identity"], dict) and isinstance(content["failed"], list)):
        raise SagecacheError("the file is cut or damaged", file=path, fix=_DAMAGED_FIX)
    return content


def _read(path: Path, *keys: str) -> dict:
    """A JSON object with these keys. Raises SagecacheError for a file that is cut or holds something else."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict) or any(key not in content for key in keys):
        raise SagecacheError("the file is cut or damaged", file=path, fix=_DAMAGED_FIX)
    return content


def _json(value: object) -> bytes:
    return (json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n").encode()


def _json_lines(records: list[dict]) -> bytes:
    """A JSON list with one record a line."""
    lines = ",\n".join(json.dumps(record) for record in records)
    return f"[\n{lines}\n]\n".encode() if records else b"[]\n"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
