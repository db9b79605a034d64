"""What stands in etcd, read over its HTTP gateway: nothing of mpistream takes part, and no connection is kept."""

import base64
import http.client
import json
from dataclasses import dataclass
from typing import Any

_TIMEOUT_SECONDS = 0.5


@dataclass(frozen=True)
class Stored:
    """The keys below some prefixes at one moment. ``leased`` are those that hang on a lease, with its id."""

    values: dict[str, Any]
    leased: dict[str, str]
    revision: int

    def below(self, prefix: str) -> dict[str, Any]:
        """By the rest of their keys."""
        return {key.removeprefix(prefix): value for key, value in self.values.items() if key.startswith(prefix)}


class EtcdView:
    """The keys of one deployment. Keys are given and returned without its prefix.

    Every member is asked in turn, since any of them may be killed, stopped or cut off; None where none answers.
    """

    def __init__(self, endpoints: list[str], prefix: str) -> None:
        self._endpoints = list(endpoints)
        self._prefix = prefix

    def read(self, *prefixes: str, since_revision: int = 0) -> Stored | None:
        """Everything below the prefixes that was created after ``since_revision``."""
        ranges = [self._range(prefix, since_revision) for prefix in prefixes]
        answer = self._call("kv/txn", {"success": [{"request_range": one} for one in ranges]})
        if answer is None:
            return None
        values, leased = {}, {}
        for response in answer.get("responses", []):
            for pair in response["response_range"].get("kvs", []):
                key = base64.b64decode(pair["key"]).decode().removeprefix(self._prefix)
                values[key] = _load(base64.b64decode(pair.get("value", "")))
                if pair.get("lease", "0") != "0":
                    leased[key] = pair["lease"]
        return Stored(values, leased, int(answer["header"]["revision"]))

    def _range(self, prefix: str, since_revision: int) -> dict[str, Any]:
        start = (self._prefix + prefix).encode()
        end = start[:-1] + bytes([start[-1] + 1])
        return {"key": _encode(start), "range_end": _encode(end), "min_create_revision": str(since_revision + 1)}

    def leases(self) -> set[str] | None:
        """Of the whole etcd."""
        answer = self._call("lease/leases", {})
        return None if answer is None else {lease["ID"] for lease in answer.get("leases", [])}

    def answers(self) -> bool:
        """Whether a majority of the members is there."""
        return self.read("nothing/") is not None

    def leader(self) -> str | None:
        """The endpoint of the member that leads; None where there is none."""
        for endpoint in list(self._endpoints):
            status = _post(endpoint, "maintenance/status", {})
            if status is not None and status.get("leader") == status["header"]["member_id"]:
                return endpoint
        return None

    def _call(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        for endpoint in list(self._endpoints):
            answer = _post(endpoint, path, body)
            if answer is not None:
                return answer
            self._endpoints.append(self._endpoints.pop(0))  # the next call begins with another one
        return None


def _post(endpoint: str, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
    host, _, port = endpoint.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("POST", f"/v3/{path}", json.dumps(body))
        response = connection.getresponse()
        answer = json.loads(response.read())
    except (OSError, ValueError, http.client.HTTPException):
        return None
    else:
        return answer if response.status == 200 else None
    finally:
        connection.close()


def _encode(key: bytes) -> str:
    return base64.b64encode(key).decode()


def _load(value: bytes) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value.decode(errors="replace")
