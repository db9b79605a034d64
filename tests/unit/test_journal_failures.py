"""Journals on disks that refuse, and in processes that die in the middle of a record."""

import errno
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from mpistream.model.errors import NoRoomError, StorageError
from mpistream.model.scan import Durability
from mpistream.storage import journal as journal_module
from mpistream.storage.journal import FILE_HEAD_BYTES, JournalWriter, examine_journal, read_journal
from tests.unit.test_journal import UID, assert_equal, make_block

BLOCKS = [make_block(seed, 40, block=seed) for seed in range(6)]


@contextmanager
def file_size_limit(size):
    """No write of this process reaches beyond ``size`` bytes of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def writer(tmp_path):
    writer = JournalWriter.create(tmp_path / "rank.journal", UID, 7, Durability.WRITE)
    yield writer
    writer.close()


@pytest.mark.parametrize("room", [0, 1, 100, 1000, 5000])
def test_a_failed_append_does_not_count_and_can_be_repeated(writer, room):
    writer.append(BLOCKS[:2])
    good = writer.bytes
    with file_size_limit(good + room), pytest.raises(StorageError, match="cannot be written") as caught:
        writer.append(BLOCKS[2:])
    assert caught.value.remedy
    assert writer.bytes == good
    assert_equal(read_journal(writer.path, good), BLOCKS[:2])
    assert examine_journal(writer.path).blocks == [0, 1]
    for block in BLOCKS[2:]:
        writer.append([block])
    assert_equal(read_journal(writer.path, writer.bytes), BLOCKS)


def test_what_a_failed_append_left_goes_before_the_next_one(writer, monkeypatch):
    """Also where it could not be removed at once."""
    writer.append(BLOCKS[:1])
    truncate, good = os.ftruncate, writer.bytes

    def refuse(descriptor, size):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "ftruncate", refuse)
    with file_size_limit(good + 3000), pytest.raises(StorageError):
        writer.append(BLOCKS[1:])
    assert writer.path.stat().st_size == good + 3000
    with pytest.raises(StorageError, match="Input/output error"):
        writer.append(BLOCKS[1:2])
    monkeypatch.setattr(os, "ftruncate", truncate)
    writer.append(BLOCKS[5:])
    assert writer.path.stat().st_size == writer.bytes
    assert_equal(read_journal(writer.path, writer.bytes), [BLOCKS[0], BLOCKS[5]])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_apart(writer, monkeypatch, number):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwritev", refuse)
    with pytest.raises(NoRoomError, match=os.strerror(number)) as caught:
        writer.append(BLOCKS)
    assert "free space" in caught.value.remedy
    with pytest.raises(NoRoomError, match="cannot be made"):
        JournalWriter.create(writer.path.with_name("other"), UID, 7, Durability.WRITE)
    # otherwise it could not be made later
    assert os.listdir(writer.path.parent) == ["rank.journal"]


def test_short_writes_are_gone_on_with(writer, monkeypatch):
    write = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: write(fd, [buffers[0][:7]], offset))
    writer.append(BLOCKS)
    assert_equal(read_journal(writer.path, writer.bytes), BLOCKS)
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: 0)
    with pytest.raises(StorageError, match="Input/output error"):
        writer.append(BLOCKS)


def test_what_is_not_on_the_disk_does_not_count(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(journal_module, "flush_to_disk", flushed.append)
    folder = tmp_path / "one" / "two"
    writer = JournalWriter.create(folder / "rank.journal", UID, 7, Durability.FSYNC)
    assert set(flushed) == {tmp_path, tmp_path / "one", folder}
    synced = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    writer.append(BLOCKS[:1])
    assert len(synced) == 1
    good = writer.bytes

    def refuse(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", refuse)
    with pytest.raises(StorageError, match="Input/output error"):
        writer.append(BLOCKS[1:])
    assert (writer.bytes, writer.path.stat().st_size) == (good, good)
    monkeypatch.undo()
    writer.append(BLOCKS[1:])
    assert_equal(read_journal(writer.path, writer.bytes), BLOCKS)


def test_a_journal_is_made_once(writer):
    writer.append(BLOCKS[:1])
    with pytest.raises(StorageError, match="exists") as caught:
        JournalWriter.create(writer.path, UID, 8, Durability.WRITE)
    assert "keep it" in caught.value.remedy
    assert_equal(read_journal(writer.path, writer.bytes), BLOCKS[:1])
    with pytest.raises(StorageError, match="cannot be made"):
        JournalWriter.create(writer.path / "below" / "a-file", UID, 8, Durability.WRITE)


def test_after_closing_nothing_is_written(tmp_path):
    writer = JournalWriter.create(tmp_path / "rank.journal", UID, 7, Durability.WRITE)
    writer.close()
    writer.close()
    with pytest.raises(StorageError):
        writer.append(BLOCKS)
    assert writer.path.stat().st_size == FILE_HEAD_BYTES


def test_a_process_that_dies_within_a_record(tmp_path):
    points = tmp_path / "points"
    points.mkdir()
    (points / "rank.torn-journal").touch()
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.unit.test_journal_failures import *\n"
        "writer = JournalWriter.create(Path(sys.argv[1]), UID, 7, Durability.WRITE)\n"
        "(points := Path(sys.argv[2]) / 'rank.torn-journal').rename(points.with_name('later'))\n"
        "writer.append(BLOCKS[:2])\n"
        "points.with_name('later').rename(points)\n"
        "writer.append(BLOCKS[2:])\n"
    )
    path = tmp_path / "rank.journal"
    done = subprocess.run(
        [sys.executable, "-c", program, path, points],
        env={**os.environ, "MPISTREAM_FAULT_POINTS": str(points)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    examined = examine_journal(path)
    assert examined.blocks == [0, 1]
    assert examined.totals["torn_bytes"] > 0
    assert_equal(read_journal(path, examined.bytes), BLOCKS[:2])
