"""What a job has of a scan, on its way through etcd."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpistream.model.block_set import BlockSet
from mpistream.model.job_share import JobShare, JournalExtent

EXTENTS = st.builds(JournalExtent, st.integers(0, 500), st.integers(0, 2**63), st.text(), st.integers(0, 2**50))
SHARES = st.builds(
    JobShare,
    st.text(min_size=1),
    st.builds(BlockSet.of, st.just(range(3, 40)), st.sets(st.integers(0, 50))),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.lists(EXTENTS, max_size=4).map(tuple),
    st.dictionaries(st.sampled_from(["frames", "electrons", "raw_bytes"]), st.integers(0, 2**50)),
    process=st.text(),
    problem=st.text(),
)


@given(SHARES)
def test_a_share_is_read_as_it_was_written(share: JobShare) -> None:
    assert JobShare.from_json(json.loads(json.dumps(share.to_json()))) == share


@given(SHARES)
def test_what_is_compared_with_etcd_is_what_etcd_gives_back(share: JobShare) -> None:
    """A job recognizes its own share, should the answer to writing it have been lost."""
    assert json.loads(json.dumps(share.to_json())) == share.to_json()


def test_a_changed_share_leaves_the_one_before_as_it_was() -> None:
    share = JobShare("job", BlockSet.of(range(4), [1]), ready=True)
    sealed = share.changed(sealed=True)
    assert (share.sealed, sealed.sealed, sealed.ready) == (False, True, True)
    assert share.blocks == BlockSet.of(range(4), [1]), "to_json and changed take nothing away"


def spoiled(name: str, value: Any) -> dict[str, Any]:
    share = JobShare("job", BlockSet(range(4)), journals=(JournalExtent(0, 1, "a"),))
    return {**share.to_json(), name: value}


@pytest.mark.parametrize(
    "value",
    [
        spoiled("blocks", None),
        spoiled("blocks", {"first": 0, "blocks": 4, "bits": "?"}),
        spoiled("journals", 3),
        spoiled("journals", [{"rank": 0}]),
        spoiled("journals", [{"rank": 0, "incarnation": 1, "path": "a", "bytes": 0, "colour": "red"}]),
        spoiled("colour", "red"),
        {"job": "job"},
        [],
    ],
)
def test_what_is_no_share_is_refused(value: Any) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        JobShare.from_json(value)
