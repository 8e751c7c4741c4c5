"""An identity provider that runs in a process of its own, and tokens good and bad."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx
from joserfc import jws
from joserfc.jwk import ECKey, Key, RSAKey

from fedstac.demo.identity_provider import CLIENT
from tests.identity.provider import NODE_CLIENT, NODE_SECRET
from tests.support.nodes import Api
from tests.support.places import REPOSITORY
from tests.support.waiting import PATIENCE

AUDIENCE = "https://west.example"


CREATE = "urn:mace:egi.eu:group:esgf.vo.egi.eu:project:CMIP6:institution:NCAR:role=CREATE#aai.egi.eu"


AT_NODES = "urn:mace:egi.eu:group:esgf.vo.egi.eu:node:*:role=CREATE#aai.egi.eu"


class Provider:
    """A provider's process, and the keys that it publishes."""

    def __init__(self) -> None:
        self.rsa: Key = RSAKey.generate_key(2048, {"kid": "rsa"})
        self.ec: Key = ECKey.generate_key("P-256", {"kid": "ec"})
        self.url = ""
        self._http = httpx.Client(trust_env=False, timeout=PATIENCE)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or starts it again under the same address; it knows nothing of before."""
        port = self.url.rpartition(":")[2] or "0"
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-m", "tests.identity.provider", port]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY, env=environment)
        assert self._process.stdout is not None
        self.url = json.loads(self._process.stdout.readline())["url"]
        self._tell_claims()

    def begin_anew(self) -> None:
        """Let it forget everything, or start it: one process serves one test after another, and some stop it."""
        if self._process is None:
            self.start()
        else:
            self._http.delete(f"{self.url}/_control").raise_for_status()
            self._tell_claims()

    def _tell_claims(self) -> None:
        self.set(key=self.rsa.as_dict(private=True), jwks=public(self.ec, self.rsa), claims={
            "aud": AUDIENCE, "sub": "alice", "name": "Alice Example", "email": "alice@example.org",
            "eduperson_entitlement": [CREATE, AT_NODES], "groups": ["cmip"],
        })  # fmt: skip

    def stop(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            self._process = None

    def close(self) -> None:
        self.stop()
        self._http.close()

    def set(self, **values: Any) -> None:
        self._http.post(f"{self.url}/_control", json=values).raise_for_status()

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self._http.get(f"{self.url}/_control").json()
        return found

    def asked(self, path: str) -> int:
        return int(self.state["counts"].get(path, 0))

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Return claims of a good token; None leaves one out."""
        now = int(time.time())
        good = {
            "iss": self.url, "aud": AUDIENCE, "sub": "alice", "iat": now, "nbf": now, "exp": now + 600,
            "name": "Alice Example", "client_id": CLIENT, "scope": "openid",
            "eduperson_entitlement": [CREATE, AT_NODES],
        } | changes  # fmt: skip
        return {name: value for name, value in good.items() if value is not None}

    def token(self, header: Mapping[str, Any] | None = None, key: Key | None = None, **changes: Any) -> str:
        """Return a token signed with the RSA key, with other claims or headers where they are named."""
        signed_with = key or self.rsa
        algorithm = "RS256" if signed_with.key_type == "RSA" else "ES256"
        head = {"alg": algorithm, "kid": signed_with.kid, **(header or {})}
        present = {name: value for name, value in head.items() if value is not None}
        return signed(present, json.dumps(self.claims(**changes)), signed_with)


def segment(value: object) -> str:
    """Return a part of a JWT: bytes as they are, anything else as JSON."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(header: Mapping[str, Any], payload: str, key: Key) -> str:
    """Return a JWS of any header and payload, with none of a library's checks."""
    text = f"{segment(header)}.{segment(payload.encode())}"
    return f"{text}.{segment(jws.JWSRegistry.algorithms[header['alg']].sign(text.encode(), key))}"


def public(*keys: Key) -> dict[str, Any]:
    return {"keys": [key.as_dict(private=False) for key in keys]}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


StartNode = Callable[..., Awaitable[Api]]


INTROSPECTS = {"introspect": True, "client_id": NODE_CLIENT, "client_secret": NODE_SECRET}
