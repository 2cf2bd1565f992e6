"""One repository of one registry: its manifests and blobs (OCI distribution specification 1.1)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from shim.config import Config
from shim.errors import Damaged, NoSuchSnapshot, RegistryFailed
from shim.reference import Reference
from shim.registry.transport import (
    FINISH_SECONDS,
    Body,
    Interrupted,
    Response,
    Transport,
    describe,
    read_small,
    read_some,
)
from shim.snapshot.manifest import LARGEST_MANIFEST, MANIFEST

BLOCK = 1 << 20  # bytes that are read at once

_LIES = "the registry is damaged, or lies"
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(?:\d{1,18}|\*)", re.ASCII)
_UPLOADED = re.compile(r"(?:bytes=)?0-(\d{1,18})", re.ASCII)


class Repository:
    """Where a reference leads. Its methods make one attempt each: failures may be Interrupted."""

    def __init__(self, reference: Reference, config: Config, *, push: bool = False) -> None:
        self.reference = reference
        self.place = f"{reference.registry}/{reference.repository}"
        self._transport = Transport(reference.registry, config)
        self._scope = f"repository:{reference.repository}:pull{',push' if push else ''}"
        self._path = f"/v2/{reference.repository}"

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    def abort(self) -> None:
        """End what is being read in other threads."""
        self._transport.abort()

    # Reading

    def manifest(self) -> bytes:
        """The manifest that the reference names, as it is there.

        Raises NoSuchSnapshot; Damaged if it is another than the reference's digest says.
        """
        which = self.reference.digest or self.reference.tag
        url = f"{self._path}/manifests/{which}"
        what = f"the manifest of {self.reference.text}"
        with self._transport.request(
            "GET", url, scope=self._scope, headers={"Accept": MANIFEST}
        ) as response:
            if response.status == 404:
                raise NoSuchSnapshot(
                    f"there is no {self.reference.text} in the registry",
                    hint="is it spelled right?",
                )
            self._expect(response, what, 200)
            found = read_small(response, LARGEST_MANIFEST, what)
            stated = response.headers.get("Docker-Content-Digest", "")
        digest = f"sha256:{hashlib.sha256(found).hexdigest()}"
        wanted = self.reference.digest or (stated if stated.startswith("sha256:") else digest)
        if digest != wanted:
            raise Damaged(f"{what} is {digest}, not {wanted}", hint=_LIES)
        return found

    def has_blob(self, digest: str) -> bool:
        """Whether a blob is there."""
        url = f"{self._path}/blobs/{digest}"
        with self._transport.request("HEAD", url, scope=self._scope) as response:
            if response.status != 404:
                self._expect(response, f"blob {digest}", 200)
            return response.status == 200

    @contextmanager
    def blob(self, digest: str, size: int, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """The bytes of a blob, and where they begin: at `start`, or 0 if ranges are ignored."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        url = f"{self._path}/blobs/{digest}"
        what = f"blob {digest} of {self.place}"
        with self._transport.request("GET", url, scope=self._scope, headers=headers) as response:
            if response.status == 404:
                raise RegistryFailed(f"{what} is missing there", hint="push the snapshot again")
            self._expect(response, what, 200, 206)
            first = _first(response, start, what)
            length = response.headers.get("Content-Length", "")
            if length and length != str(size - first):
                raise RegistryFailed(
                    f"{what} has {length[:20]} bytes from {first} on, not {size - first}",
                    hint=_LIES,
                )
            yield first, _blocks(response)

    # Writing

    def begin_upload(self) -> str:
        """Begin to upload a blob: the URL of its session."""
        url = f"{self._path}/blobs/uploads/"
        with self._transport.request("POST", url, scope=self._scope, body=b"") as response:
            self._expect(response, "an upload", 202)
            return self._location(response)

    def uploaded(self, session: str) -> tuple[int, str]:
        """How many bytes of an upload are there, and its URL now; (0, "") if it is gone."""
        with self._transport.request("GET", session, scope=self._scope) as response:
            found = _UPLOADED.fullmatch(response.headers.get("Range", ""))
            if response.status not in (200, 202, 204) or not found:
                return 0, ""
            count = int(found[1]) + 1 if found[1] != "0" else 0  # 0-0 is nothing, or one byte
            return count, self._location(response, session)

    def continue_upload(self, session: str, body: Body, first: int, count: int) -> str:
        """Send `count` bytes from `first` on as a part of a blob: the session's URL now."""
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(count),
            "Content-Range": f"{first}-{first + count - 1}",
        }
        with self._transport.request(
            "PATCH", session, scope=self._scope, headers=headers, body=body, patience=FINISH_SECONDS
        ) as response:
            if response.status in (404, 416):
                raise Interrupted(f"{self.place} has lost the upload")
            self._expect(response, "a part of a blob", 202, 204)
            return self._location(response, session)

    def finish_upload(self, session: str, digest: str, body: Body | bytes, count: int) -> None:
        """Send what is left of a blob, `count` bytes, and let the registry check its digest."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(count)}
        url = f"{session}{'&' if '?' in session else '?'}digest={quote(digest, safe='')}"
        with self._transport.request(
            "PUT", url, scope=self._scope, headers=headers, body=body, patience=FINISH_SECONDS
        ) as response:
            if response.status in (404, 416):
                raise Interrupted(f"{self.place} has lost the upload")
            if response.status == 400:
                raise Damaged(
                    f"blob {digest} was not taken by {self.place}: {describe(response)}",
                    hint="it may have changed on the disk: see `thaw verify`",
                )
            self._expect(response, f"blob {digest}", 201, 202, 204)

    def put_manifest(self, manifest: bytes) -> None:
        """Give the reference's tag, or digest, to a manifest whose blobs are all there."""
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        url = f"{self._path}/manifests/{self.reference.tag or digest}"
        with self._transport.request(
            "PUT", url, scope=self._scope, headers={"Content-Type": MANIFEST}, body=manifest
        ) as response:
            self._expect(response, "the manifest", 201)
            stated = response.headers.get("Docker-Content-Digest", "")
        if not stated:
            stated = f"sha256:{hashlib.sha256(self.manifest()).hexdigest()}"
        if stated != digest:
            raise RegistryFailed(
                f"{self.place} has made {stated[:80]!r} of manifest {digest}",
                hint="it changes what it is given: snapshots cannot be kept there",
            )

    def _location(self, response: Response, otherwise: str = "") -> str:
        where = response.headers.get("Location", "") or otherwise
        if not where:
            raise RegistryFailed(
                f"{self.place} says no place for an upload", hint="try again later"
            )
        return self._transport.joined(self._transport.base, where)

    def _expect(self, response: Response, what: str, *statuses: int) -> None:
        if response.status in statuses:
            return
        hint = "is it a registry?"
        if response.status in (401, 403):
            hint = f"credentials for {self.reference.registry} belong into registry.auth"
        raise RegistryFailed(
            f"{self.place} does not give or take {what}: it answers {describe(response)}", hint=hint
        )


def _first(response: Response, start: int, what: str) -> int:
    """Which byte of a blob an answer begins with."""
    if response.status == 200:
        return 0
    found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if not found or int(found[1]) != start:
        raise RegistryFailed(f"{what}: not the range that was asked for", hint="try again later")
    return start


def _blocks(response: Response) -> Iterator[bytes]:
    while block := read_some(response, BLOCK):
        yield block
