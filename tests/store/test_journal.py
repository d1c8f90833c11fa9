import errno
import os

import pytest

from sagecache.store import journal
from sagecache.store.files import sizes
from sagecache.store.fingerprint import sha256
from sagecache.store.journal import JournalWriter, ShardRecord, parse


def record(shard: int, data: bytes = b"data") -> ShardRecord:
    return ShardRecord(shard, 4, {f"depth/c/{shard}": (len(data), sha256(data))})


def put(group, shard: int, data: bytes = b"data") -> None:
    path = group / "depth" / "c" / str(shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_a_journal_cut_at_any_byte_keeps_its_whole_lines():
    lines = [record(k).line() for k in range(3)]
    data = b"".join(lines)
    for length in range(len(data) + 1):
        records, good = parse(data[:length])
        whole = sum(length >= sum(map(len, lines[: k + 1])) for k in range(3))
        assert [r.shard for r in records] == list(range(whole))
        assert good == sum(map(len, lines[:whole]))


def test_a_flipped_bit_ends_what_is_believed():
    lines = [record(k).line() for k in range(3)]
    for bit in range(8 * len(lines[1])):
        damaged = bytearray(lines[1])
        damaged[bit // 8] ^= 1 << bit % 8
        assert [r.shard for r in parse(lines[0] + bytes(damaged) + lines[2])[0]] == [0]


def test_each_writer_has_its_own_file_and_all_are_read(tmp_path):
    first, second = JournalWriter(tmp_path), JournalWriter(tmp_path)
    first.append(record(0))
    second.append(record(2))
    first.append(record(1))
    first.close()
    second.close()
    assert len(journal.journal_files(tmp_path)) == 2
    assert sorted(journal.read_all(tmp_path)) == [0, 1, 2]


def test_a_writer_that_wrote_nothing_leaves_no_file(tmp_path):
    JournalWriter(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_torn_tails_are_cut_so_that_later_lines_count(tmp_path):
    path = tmp_path / "journal-aa.jsonl"
    path.write_bytes(record(0).line() + record(1).line()[:-9])
    journal.cut_torn_tails(tmp_path)
    with path.open("ab") as file:
        file.write(record(2).line())
    assert sorted(journal.read_all(tmp_path)) == [0, 2]


def test_a_record_counts_only_with_its_files(tmp_path):
    put(tmp_path, 0)
    assert record(0).present(tmp_path, sizes(tmp_path), verify=True)
    assert not record(1).present(tmp_path, sizes(tmp_path))
    put(tmp_path, 0, b"dat")
    assert not record(0).present(tmp_path, sizes(tmp_path))
    put(tmp_path, 0, b"daXa")
    assert record(0).present(tmp_path, sizes(tmp_path))
    assert not record(0).present(tmp_path, sizes(tmp_path), verify=True)


def test_of_two_records_the_one_of_the_files_on_disk_counts(tmp_path):
    put(tmp_path, 0, b"new!")
    old, new = record(0, b"old!"), record(0, b"new!")
    assert journal.current([old, new], tmp_path, sizes(tmp_path)) == new
    assert (
        journal.current([old], tmp_path, sizes(tmp_path)) == old
    )  # same size, and nothing to tell them apart by
    assert journal.current([], tmp_path, {}) is None


def test_merging_gives_the_same_bytes_for_any_history(tmp_path):
    results = []
    for name, orders in (("a", [[0, 1, 2]]), ("b", [[2], [1, 0]]), ("c", [[1, 1, 0], [2, 1]])):
        root = tmp_path / name
        root.mkdir()
        for order in orders:
            writer = JournalWriter(root)
            for shard in order:
                writer.append(record(shard))
            writer.close()
        records = [entries[0] for _, entries in sorted(journal.read_all(root).items(), reverse=True)]
        journal.merge(root, records)
        assert [p.name for p in root.iterdir()] == ["journal.jsonl"]
        results.append((root / "journal.jsonl").read_bytes())
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("full", ["says so", "takes nothing"])
def test_a_line_that_does_not_fit_on_the_disk_is_an_error_that_says_why(tmp_path, monkeypatch, full):
    writer, real, left = JournalWriter(tmp_path), os.write, [5]

    def write(descriptor, data):
        if not left:
            if full == "takes nothing":
                return 0
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data[: left.pop()])

    monkeypatch.setattr(journal.os, "write", write)
    with pytest.raises(OSError) as error:
        writer.append(record(0))
    assert error.value.errno == errno.ENOSPC and error.value.strerror == os.strerror(errno.ENOSPC)
    (path,) = journal.journal_files(tmp_path)
    assert error.value.filename == str(path) and path.stat().st_size == 5
    assert journal.read_all(tmp_path) == {}
    monkeypatch.setattr(journal.os, "write", real)
    writer.append(record(1))  # there is room again: not behind the torn line
    writer.close()
    assert sorted(journal.read_all(tmp_path)) == [1]


def test_a_line_written_in_pieces_is_whole(tmp_path, monkeypatch):
    writer, real = JournalWriter(tmp_path), os.write
    monkeypatch.setattr(journal.os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    writer.append(record(0))
    writer.close()
    assert journal.read_all(tmp_path) == {0: [record(0)]}
