"""`mpistream verify`: what it finds, and what it calls good."""

import json
import shutil

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpistream.cli.data import verify as command
from mpistream.model import h5_layout as layout
from mpistream.model.errors import StorageError
from mpistream.storage import verify
from mpistream.storage.reader import open_dataset
from mpistream.storage.verify import verify_dataset
from tests.mpi.launcher import run_mpi
from tests.mpi.program_write import rejected_records, scan_frames
from tests.scans import FIRST_FRAME

FRAMES = sorted(scan_frames(3))
NAMES = ["sector 0", "sector 1", "sector 2", "sector 3", "frames", "electrons", "checksums", "images", "counters"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """0 to 3 frames at each of 9 x 5 positions, with centroids, written by 3 ranks; some records were rejected."""
    path = tmp_path_factory.mktemp("verify") / "scan.h5"
    run_mpi(3, "tests.mpi.program_write", path, "parallel", 2**20, 3, '{"counting": {"centroids": true}}')
    return path


@pytest.fixture
def copy(path, tmp_path):
    return shutil.copy(path, tmp_path / "copy.h5")


@pytest.fixture(params=[False, True], ids=["at once", "in small parts"])
def parts(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(verify, "_CHUNK_FRAMES", 4)
        monkeypatch.setattr(verify, "_CHUNK_BLOCKS", 2)
        # the default was bound when frame_runs was defined
        monkeypatch.setattr("mpistream.model.virtual_images.frame_runs.__defaults__", (100,))


def outcomes(path):
    return {check.name: check.outcome for check in verify_dataset(path).checks}


def text_of(path, name):
    return next(check.text for check in verify_dataset(path).checks if check.name == name)


def test_a_dataset_as_it_should_be(path, parts):
    verification = verify_dataset(path)
    assert [check.name for check in verification.checks] == NAMES
    assert {check.outcome for check in verification.checks} == {"good"}
    assert verification.findings == ()
    assert (verification.frames, verification.electrons) == (len(FRAMES), sum(len(frame[3]) for frame in FRAMES))
    assert "in 3 parts" in text_of(path, "checksums")


def test_what_the_file_says_of_its_delivery(path):
    with open_dataset(path) as dataset:
        delivery = dataset.delivery
    assert delivery.complete
    assert [end.sector for end in delivery.ends] == [0, 1, 2, 3]
    assert delivery.rejected.tolist() == sorted(rejected_records(FRAMES))
    assert len(delivery.rejected) > 3
    assert delivery.checksums["n_frames"].sum() == len(FRAMES)


@pytest.mark.parametrize("frames_at_most", [0, 1])
def test_scans_with_few_frames(tmp_path, frames_at_most):
    run_mpi(3, "tests.mpi.program_write", tmp_path / "scan.h5", "serial", 2**20, frames_at_most)
    assert set(outcomes(tmp_path / "scan.h5").values()) == {"good"}


def change(name, row, value):
    def damage(file):
        file[name][row] = value(file[name][row]) if callable(value) else value

    return damage


def change_end(sector, **changes):
    def damage(file):
        attributes = file[layout.DELIVERY].attrs
        ends = json.loads(attributes["ends"])
        ends[sector] |= changes
        attributes["ends"] = json.dumps(ends)

    return damage


def forget_rejected(file):
    """Those of sector 0."""
    rows = file[layout.REJECTED][:]
    replace(file, layout.REJECTED, rows[rows["sector"] != 0])


def reject_what_is_there(file):
    rows = file[layout.REJECTED][:]
    there = next(frame for frame in FRAMES if not frame[2])
    replace(file, layout.REJECTED, np.append(rows, np.array([(there[1], 2)], layout.REJECTED_DTYPE)))


def forget_a_slab(file):
    replace(file, layout.CHECKSUMS, file[layout.CHECKSUMS][:-1])


def swap_events(file):
    """Two electrons of the fullest frame change places."""
    offsets = file[layout.OFFSETS][:].astype(int)
    first = offsets[np.argmax(np.diff(offsets))]
    file[layout.INDICES][first : first + 2] = file[layout.INDICES][first : first + 2][::-1]


def lose_a_frame(file):
    """A row is gone from all arrays, as if it had never been."""
    offsets = file[layout.OFFSETS][:].astype(int)
    row = next(row for row in range(5, len(FRAMES)) if FRAMES[row][3] and not FRAMES[row][2])
    begin, end = offsets[row : row + 2]
    for name in (layout.SCAN_POSITION, layout.FRAME_NUMBER, layout.MISSING_SECTORS):
        replace(file, name, np.delete(file[name][:], row))
    replace(
        file, layout.OFFSETS, np.delete(np.where(offsets > begin, offsets - (end - begin), offsets), row).astype("u8")
    )
    for name in (layout.INDICES, layout.CENTROIDS):
        replace(file, name, np.delete(file[name][:], slice(begin, end), axis=0))


def replace(file, name, values):
    del file[name]
    file[name] = values


DAMAGES = {
    "an electron elsewhere": (change(layout.INDICES, 0, lambda pixel: pixel ^ 1), {"checksums"}),
    "electrons out of order": (swap_events, {"electrons", "checksums"}),
    "an electron outside the frame": (change(layout.INDICES, 7, 576 * 576), {"electrons", "checksums"}),
    "a centroid": (change(layout.CENTROIDS, 9, lambda pair: pair + 1), {"checksums"}),
    "offsets that fall": (change(layout.OFFSETS, 30, 0), {"frames", "checksums"}),
    "offsets beyond the end": (change(layout.OFFSETS, 30, 2**62), {"frames", "checksums"}),
    "a position outside the scan": (change(layout.SCAN_POSITION, 8, 45), {"frames", "checksums"}),
    "positions out of order": (change(layout.SCAN_POSITION, -1, 0), {"frames", "checksums"}),
    "a frame of another scan": (
        change(layout.FRAME_NUMBER, 3, 10**9),
        {"frames", "checksums", "sector 0", "sector 1", "sector 2", "sector 3"},
    ),
    "a frame twice": (change(layout.FRAME_NUMBER, 3, FRAMES[11][1]), {"frames", "checksums", "sector 2"}),
    "a sector that is called missing": (
        change(layout.MISSING_SECTORS, 2, lambda bits: bits ^ 4),
        {"sector 2", "checksums", "counters"},
    ),
    "a frame without sectors": (change(layout.MISSING_SECTORS, 2, 15), {"frames", "checksums"}),
    "a fifth sector": (change(layout.MISSING_SECTORS, 2, lambda bits: bits | 16), {"frames", "checksums"}),
    "a frame is lost": (
        lose_a_frame,
        {"sector 0", "sector 1", "sector 2", "sector 3", "checksums", "counters", "images"},
    ),
    "an image": (change(layout.ELECTRON_COUNT, (2, 2), lambda count: count + 1), {"images"}),
    "the pattern": (change(layout.DIFFRACTION_SUM, (5, 5), 77), {"images"}),
    "the bright field": (change(layout.BRIGHT_FIELD, (0, 0), 10**6), {"images"}),
    "the center of mass": (change(layout.CENTER_OF_MASS, (0, 0, 1), 3.25), {"images"}),
    "a counter": (lambda file: file[layout.COUNTERS].attrs.modify("electrons", 5), {"counters"}),
    "forgotten rejected records": (forget_rejected, {"sector 0"}),
    "a record rejected and there": (reject_what_is_there, {"rejected"}),
    "a digest": (change_end(1, digest=3), {"sector 1"}),
    "checksums of fewer frames": (forget_a_slab, {"checksums"}),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_what_is_wrong_is_found(copy, kind, parts):
    damage, expected = DAMAGES[kind]
    with h5py.File(copy, "r+") as file:
        damage(file)
    bad = {check.name for check in verify_dataset(copy).checks if check.outcome == "bad"}
    # an electron that moves can also leave the order or a detector, a row that is wrong much else
    possible = NAMES if "frames" in expected else {*expected, "images", "electrons"}
    assert expected <= bad <= set(possible)
    assert verify_dataset(copy).findings


def test_sectors_of_which_nobody_knows_what_was_sent(copy):
    with h5py.File(copy, "r+") as file:
        change_end(0, cut="its producer was gone for 30 s", records=0, digest=0)(file)
        change_end(2, digest=None)(file)
    found = outcomes(copy)
    assert (found["sector 0"], found["sector 1"], found["sector 2"]) == ("unknown", "good", "unknown")
    assert "its producer was gone for 30 s" in text_of(copy, "sector 0")
    assert verify_dataset(copy).findings == ()


def test_the_text_says_how_many_records_there_are(copy):
    with h5py.File(copy, "r+") as file:
        change_end(2, digest=3, records=len(FRAMES) + 2)(file)
    assert text_of(copy, "sector 2") == f"{len(FRAMES)} records are there, its producer sent {len(FRAMES) + 2}"
    with h5py.File(copy, "r+") as file:
        change_end(2, records=len(FRAMES))(file)
    assert "sent others" in text_of(copy, "sector 2")


def test_datasets_that_do_not_say_what_was_sent(copy, tmp_path):
    with h5py.File(copy, "r+") as file:
        del file[layout.DELIVERY]
        record = json.loads(file[layout.PROVENANCE].attrs["scan_record"])
        file[layout.PROVENANCE].attrs["scan_record"] = json.dumps(record | {"routing_version": 3})
    found = outcomes(copy)
    assert found == {
        **dict.fromkeys(("frames", "electrons", "images", "counters"), "good"),
        **dict.fromkeys(("deliveries", "checksums"), "unknown"),
    }
    assert "metadata/delivery" in text_of(copy, "deliveries")
    with h5py.File(copy, "r+") as file:
        file[layout.FRAME_NUMBER][0] = FIRST_FRAME + len(FRAMES)
    assert outcomes(copy)["frames"] == "bad"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_flipped_bit_of_an_event_array_goes_unnoticed(copy, path, data):
    with h5py.File(path) as file:
        name = data.draw(st.sampled_from([*layout.EVENT_DTYPES, layout.CENTROIDS]))
        offset, size = file[name].id.get_offset(), file[name].id.get_storage_size()
    content = bytearray(path.read_bytes())
    content[offset + data.draw(st.integers(0, size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    copy.write_bytes(content)
    try:
        found = verify_dataset(copy).findings
    except StorageError as error:
        found = (error.message,)
    assert found


def test_what_cannot_be_read_is_damaged(copy, tmp_path):
    for name in (layout.BRIGHT_FIELD, layout.COUNTERS, layout.CHECKSUMS, layout.PROVENANCE):
        broken = shutil.copy(copy, tmp_path / "broken.h5")
        with h5py.File(broken, "r+") as file:
            del file[name]
        with pytest.raises(StorageError, match="damaged") as caught:
            verify_dataset(broken)
        assert caught.value.remedy
    with pytest.raises(StorageError, match="not there"):
        verify_dataset(tmp_path / "nothing.h5")


def test_the_command(path, copy):
    done = CliRunner().invoke(command, [str(path)])
    assert (done.exit_code, done.output.count(" good ")) == (0, len(NAMES))
    told = json.loads(CliRunner().invoke(command, [str(path), "--json"]).output)
    assert (told["good"], told["frames"], len(told["checks"])) == (True, len(FRAMES), len(NAMES))
    with h5py.File(copy, "r+") as file:
        file[layout.INDICES][-1] += 1
    done = CliRunner().invoke(command, [str(copy)])
    assert done.exit_code == 1
    assert isinstance(done.exception, StorageError)
    assert "WRONG" in done.output
    assert done.exception.remedy
    done = CliRunner().invoke(command, [str(copy), "--json"])
    assert done.exit_code == 1
    assert json.loads(done.output)["good"] is False
