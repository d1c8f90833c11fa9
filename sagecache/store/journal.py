"""The record of what is done: one line for each shard, written after the shard's files are safe on disk.

A line is ``<crc32c of the rest, 8 hex digits> <JSON>\n``. Each writer appends to a file of its own,
``journal-<token>.jsonl``; in an object store, where nothing can be appended to, it makes one a line. A
finished store holds one ``journal.jsonl``, sorted by shard. A line whose checksum fails, or that has no
newline, ends what is believed of its file.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sagecache.store.codec import checksum
from sagecache.store.files import is_remote, read_files, sync_folder, write_whole
from sagecache.store.fingerprint import sha256

FINISHED = "journal.jsonl"


@dataclass(frozen=True)
class ShardRecord:
    """A shard, how many rows it has, and its files: path below the group -> (bytes, sha256 of the file)."""

    shard: int
    rows: int
    files: dict[str, tuple[int, str]]

    def line(self) -> bytes:
        files = {name: list(facts) for name, facts in self.files.items()}
        content = {"shard": self.shard, "rows": self.rows, "files": files}
        text = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        return f"{checksum(text):08x} ".encode() + text + b"\n"

    def present(self, group: Path, known: Mapping[str, int], verify: bool = False) -> bool:
        """Whether all files are there with the recorded size, and with the recorded checksum if verify.

        known: path below the group -> bytes, from ``files.sizes``.
        """
        if any(known.get(name) != size for name, (size, _) in self.files.items()):
            return False
        paths = [group / name for name in self.files] if verify else []
        return all(
            sha256(data) == expected
            for data, (_, expected) in zip(read_files(paths), self.files.values(), strict=False)
        )


def parse(data: bytes) -> tuple[list[ShardRecord], int]:
    """The records before the first line that is torn or damaged, and the number of bytes they take."""
    records, good = [], 0
    for line in data.splitlines(keepends=True):
        text = line[9:-1]
        if not line.endswith(b"\n") or line[:9] != f"{checksum(text):08x} ".encode():
            break
        content = json.loads(text)
        files = {name: (size, crc) for name, (size, crc) in content["files"].items()}
        records.append(ShardRecord(content["shard"], content["rows"], files))
        good += len(line)
    return records, good


def journal_files(root: Path) -> list[Path]:
    return sorted([*root.glob("journal-*.jsonl"), *root.glob(FINISHED)])


def read_all(root: Path) -> dict[int, list[ShardRecord]]:
    """Every believed record of every journal, by shard. A shard redone has several; see ``current``."""
    records: dict[int, list[ShardRecord]] = {}
    try:
        found = read_files(journal_files(root))
    except FileNotFoundError:  # merged since they were listed
        found = read_files(journal_files(root))
    for data in found:
        for record in parse(data)[0]:
            known = records.setdefault(record.shard, [])
            if record not in known:
                known.append(record)
    return records


def current(
    records: list[ShardRecord], group: Path, known: Mapping[str, int], verify: bool = False
) -> ShardRecord | None:
    """The record that describes the files of the group, or None; known and verify as for ``present``.

    Two records of one shard exist only where a teacher that is not deterministic computed it twice;
    then sizes are not enough to tell them apart.
    """
    for record in records:
        if record.present(group, known, verify or len(records) > 1):
            return record
    return None


def cut_torn_tails(root: Path) -> None:
    """Truncate each journal after its last good line. Call it when alone in the store."""
    for path in [] if is_remote(root) else journal_files(root):
        data = path.read_bytes()
        good = parse(data)[1]
        if good < len(data):
            with open(path, "r+b") as file:
                file.truncate(good)
                os.fsync(file.fileno())


def merge(root: Path, records: list[ShardRecord]) -> bytes:
    """Write ``journal.jsonl`` sorted by shard, then remove the writers' own journals; returns its bytes."""
    data = b"".join(record.line() for record in sorted(records, key=lambda record: record.shard))
    target = root / FINISHED
    if not target.exists() or target.read_bytes() != data:
        write_whole(target, data)
    for path in root.glob("journal-*.jsonl"):
        path.unlink(missing_ok=True)
    sync_folder(root)
    return data


class JournalWriter:
    """Appends records to a file of its own, made with the first record; each line is on disk on return."""

    def __init__(self, root: Path) -> None:
        self._root, self._path = root, root
        self._descriptor: int | None = None

    def append(self, record: ShardRecord) -> None:
        if is_remote(self._root):
            write_whole(self._root / f"journal-{secrets.token_hex(8)}.jsonl", record.line())
            return
        if self._descriptor is None:
            self._path = self._root / f"journal-{secrets.token_hex(8)}.jsonl"
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            sync_folder(self._root)
        try:
            self._write(record.line())
        except OSError as error:
            self.close()  # the torn tail is cut by the next writer, and nothing may follow it
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def _write(self, rest: bytes) -> None:
        while rest:
            written = os.write(self._descriptor, rest)  # a disk that fills up takes a part, then it says why
            if written == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            rest = rest[written:]
        os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
