"""What tests of etcd's keys and leases share."""

import json
import os

from mpistream.control.coordination import Coordination
from mpistream.control.process_identity import this_process
from mpistream.model.errors import CoordinationError
from tests.etcd_server import EtcdServer


def answers(coordination: Coordination) -> bool:
    try:
        return bool(coordination.check())
    except CoordinationError:
        return False


def revoke_lease(server: EtcdServer, etcd: Coordination, key: str) -> None:
    stored = json.loads(server.etcdctl("get", etcd.prefix + key, "--write-out=json"))
    server.etcdctl("lease", "revoke", f"{stored['kvs'][0]['lease']:x}")


def mine(**more: object) -> dict[str, object]:
    return {"pid": os.getpid(), "host": "edge", "process": this_process(), **more}
