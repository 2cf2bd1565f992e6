"""Registration in etcd: a key that lives as long as its lease, which is kept alive.

etcd's v3 API over gRPC, without TLS. Whatever happens to us, the key is gone a lease later. An etcd
that is down or restarted is asked again until it answers: it keeps leases on its disk. Should
it have forgotten ours, the key is lost, and made anew.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from typing import Any

import grpc

from shim.conduct import Registration
from shim.errors import RegistrationFailed
from shim.proto.etcd_pb import (
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    LeaseRevokeRequest,
    LeaseRevokeResponse,
    PutRequest,
    PutResponse,
)
from shim.registration.backend import Backend
from shim.registration.filling import filled
from shim.registration.place import host_and_port, resolve

TTL = 10  # seconds that the key stays after our end
_SHARES = 3  # a lease is renewed when this part of it is over
_AGAIN = 0.5  # seconds until an etcd that did not answer is asked again
# The node's proxy is none of the pod's; and its own pool keeps clones' connections apart.
_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))


class Etcd(Backend):
    """One key under one lease."""

    def __init__(self, asked: Registration, identity: Mapping[str, Any], ttl: int = TTL) -> None:
        place, _, key = asked.target.partition("/")
        self._host, self._port = host_and_port(place)
        self._what = f"etcd at {place}"
        self._key = filled(key, identity).encode()
        self._value = json.dumps(dict(identity)).encode()
        self._ttl = ttl
        self._lease = 0
        self._channel: grpc.Channel | None = None

    def register(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        granted = self._call(
            "Lease/LeaseGrant", LeaseGrantRequest(ttl=self._ttl), LeaseGrantResponse, ends
        )
        if granted.error or not granted.id:
            raise RegistrationFailed(f"{self._what} grants no lease: {granted.error[:200]}")
        self._lease = granted.id  # of a put whose answer is lost it is not known whether it was
        put = PutRequest(key=self._key, value=self._value, lease=granted.id)
        self._call("KV/Put", put, PutResponse, ends)

    def keep(self, over: threading.Event) -> None:
        while not over.wait(self._ttl / _SHARES):
            while not over.is_set() and not self._renewed():
                over.wait(_AGAIN)

    def _renewed(self) -> bool:
        """Whether etcd has renewed the lease; False if it did not answer.

        Raises RegistrationFailed if it knows it no longer.
        """
        request = LeaseKeepAliveRequest(id=self._lease)
        ends = time.monotonic() + self._ttl / _SHARES
        try:
            renewed = self._call("Lease/LeaseKeepAlive", request, LeaseKeepAliveResponse, ends)
        except RegistrationFailed:
            return False
        if renewed.ttl <= 0:
            raise RegistrationFailed(f"{self._what} has forgotten the lease")
        return True

    def deregister(self, seconds: float) -> None:
        lease, self._lease = self._lease, 0
        if lease:
            ends = time.monotonic() + seconds
            request = LeaseRevokeRequest(id=lease)
            self._call("Lease/LeaseRevoke", request, LeaseRevokeResponse, ends, absent_is_fine=True)

    def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _call(
        self, method: str, request: Any, response: Any, ends: float, *, absent_is_fine: bool = False
    ) -> Any:
        """Ask. What fails is asked over a new connection next time, as the name may have moved."""
        try:
            channel = self._connected(ends)
            # Streams, as LeaseKeepAlive is one: what it answers first is the answer of a plain
            # call, too, and both have all their time from here.
            call = channel.stream_stream(
                f"/etcdserverpb.{method}",
                request_serializer=lambda message: message.encode(),
                response_deserializer=response.decode,
            )
            answers = call(iter([request]), timeout=max(ends - time.monotonic(), 0.001))
            try:
                return next(answers)
            finally:
                answers.cancel()
        except StopIteration:
            self.close()
            raise RegistrationFailed(f"{self._what} does not answer {method}") from None
        except grpc.RpcError as error:
            if absent_is_fine and error.code() == grpc.StatusCode.NOT_FOUND:
                return None
            self.close()
            raise RegistrationFailed(f"{self._what}: {str(error.details())[:200]}") from error

    def _connected(self, ends: float) -> grpc.Channel:
        if self._channel is None:
            left = max(ends - time.monotonic(), 0.001)
            found = resolve(self._host, self._port, left)
            of_ipv6 = ":" in found[0]
            if of_ipv6:
                target = "ipv6:" + ",".join(f"[{address}]:{self._port}" for address in found)
            else:
                fours = [address for address in found if ":" not in address]
                target = "ipv4:" + ",".join(f"{address}:{self._port}" for address in fours)
            self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        return self._channel
