"""The identity of a service at an identity provider: tokens by client credentials (RFC 6749, 4.4).

The secret stays in memory: it is in no message, in no log and in no file. A token is fetched when somebody needs one,
renewed before it ends, and thrown away with the process.
"""

from __future__ import annotations

import base64
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import quote_plus

import httpx

from fedstac import __version__
from fedstac.client.credentials import (
    ANSWER_SECONDS,
    EARLY_SECONDS,
    Away,
    ask,
    endpoint_in,
    metadata_of,
    refusal_reason,
)
from fedstac.client.transport import ClientError, LoginFailed, TokenSource, open_http
from fedstac.domain.addresses import is_safe
from fedstac.settings import Misconfigured

REST_SECONDS = 2.0  # after a failure, in which the provider is not asked again
UNSTATED_SECONDS = 300.0  # a token whose end nobody says is renewed after this


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """A confidential client of an identity provider."""

    issuer: str  # exactly as in the provider's metadata
    client_id: str
    client_secret: str = field(repr=False)
    scope: str = ""

    def __post_init__(self) -> None:
        if not is_safe(self.issuer, of=self.issuer):
            raise ValueError(f"{self.issuer!r} is no https address (http is for loopback only)")


@dataclass(frozen=True, slots=True)
class _Token:
    text: str = field(repr=False)
    renew_from: float  # time.monotonic
    end: float  # time.monotonic


class ServiceTokens:
    """The access token of a service, renewed in time; a TokenSource for clients, also from several threads."""

    def __init__(self, account: ServiceAccount, *, http: httpx.Client | None = None) -> None:
        self._account, self._http = account, http
        self._renewing = threading.Lock()  # whoever fetches a token has it
        self._token: _Token | None = None
        self._failure: ClientError | None = None  # of the last fetch
        self._rest_until = 0.0  # time.monotonic

    def __call__(self) -> str:
        """Return a token that lasts.

        Away if the provider does not answer, LoginFailed if it refuses. A token that still lasts is returned while the
        provider is away, and while another thread renews it.
        """
        token, now = self._token, time.monotonic()
        if token is not None and now < token.renew_from:
            return token.text
        lasts = token is not None and now < token.end
        if not self._renewing.acquire(blocking=not lasts):
            assert token is not None
            return token.text
        try:
            return self._renewed()
        finally:
            self._renewing.release()

    def _renewed(self) -> str:
        token, now = self._token, time.monotonic()
        if (token is None or now >= token.renew_from) and now >= self._rest_until:
            try:
                self._token = token = self._fetch()
            except ClientError as error:
                self._failure, self._rest_until = error, time.monotonic() + REST_SECONDS
            else:
                self._failure = None
        if token is not None and now < token.end:
            return token.text
        failure = self._failure or Away("the last token was refused, and there is no other yet; try again")
        raise type(failure)(str(failure))

    def forget(self) -> None:
        """Fetch another token next time: a server refuses this one, although it should last. It waits for nobody."""
        self._token = None

    def _fetch(self) -> _Token:
        """Ask the provider for a token (RFC 6749, 4.4.2)."""
        if self._http is not None:
            return self._ask(self._http)
        with open_http(httpx.Client, timeout=ANSWER_SECONDS, headers={"User-Agent": f"fedstac/{__version__}"}) as http:
            return self._ask(http)

    def _ask(self, http: httpx.Client) -> _Token:
        account = self._account
        endpoint = endpoint_in(metadata_of(account.issuer, http), "token_endpoint")
        if endpoint is None:
            raise LoginFailed(f"{account.issuer} names no token endpoint; tell its operators")
        form = {"grant_type": "client_credentials"} | ({"scope": account.scope} if account.scope else {})
        pair = f"{quote_plus(account.client_id)}:{quote_plus(account.client_secret)}"  # RFC 6749, 2.3.1
        basic = base64.b64encode(pair.encode()).decode()
        before = time.monotonic()
        answer = ask(endpoint, form, http, headers={"Authorization": f"Basic {basic}"})
        if "error" in answer:
            raise LoginFailed(
                f"{account.issuer} gives {account.client_id} no token: {refusal_reason(answer)}; are its id and its"
                f" secret right?"
            )
        text, lifetime = answer.get("access_token"), answer.get("expires_in", UNSTATED_SECONDS)
        is_bearer = isinstance(text, str) and text and str(answer.get("token_type", "")).lower() == "bearer"
        if not is_bearer or not isinstance(lifetime, int | float) or lifetime <= 0:
            raise LoginFailed(f"{account.issuer} answered without a bearer token; tell its operators")
        early = min(EARLY_SECONDS, lifetime / 2)
        return _Token(str(text), before + lifetime - early, before + lifetime)


def token_source(*, token: str, issuer: str, client_id: str, client_secret: str) -> TokenSource:
    """Return what gives the tokens of a replica node, by its settings. Misconfigured if they name no identity, or two.

    `token`: a fixed one, in place of client credentials.
    """
    account = {
        "FEDSTAC_REPLICA_ISSUER": issuer, "FEDSTAC_REPLICA_CLIENT_ID": client_id,
        "FEDSTAC_REPLICA_CLIENT_SECRET": client_secret,
    }  # fmt: skip
    missing = [name for name, value in account.items() if not value]
    if token and len(missing) < len(account):
        raise Misconfigured("FEDSTAC_REPLICA_TOKEN and FEDSTAC_REPLICA_CLIENT_ID are both set; leave one of them out")
    if token:
        return lambda: token
    if len(missing) == len(account):
        raise Misconfigured(
            f"a replica node announces in its own name: set FEDSTAC_REPLICA_TOKEN, or {', '.join(account)}"
        )
    if missing:
        raise Misconfigured(f"{', '.join(missing)} is missing: client credentials are an issuer, an id and a secret")
    try:
        return ServiceTokens(ServiceAccount(issuer, client_id, client_secret))
    except ValueError as error:
        raise Misconfigured(f"FEDSTAC_REPLICA_ISSUER: {error}") from None
