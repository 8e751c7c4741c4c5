"""Tokens of identity providers: OpenID Connect discovery, JWTs (RFC 7519, 8725, 9068), introspection (RFC 7662).

Only addresses that the operator configured, or that the provider configured there names in its own metadata, are ever
fetched; nothing that a caller or a token names is. Nothing is fetched before a token asks for it, so that a provider
that is away stops no node; while it is away, keys that were fetched before go on working for a day.
"""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_plus, urlencode, urlsplit

import httpx
from joserfc import jwk, jws, jwt
from joserfc.errors import ClaimError, ExpiredTokenError, JoseError

from fedstac import __version__
from fedstac.domain import groups, strict_json
from fedstac.domain.addresses import is_safe
from fedstac.domain.errors import (
    InvalidToken,
    InvalidTokenAudience,
    MalformedJson,
    MissingPermission,
    Problem,
    Unavailable,
)
from fedstac.domain.groups import Identity
from fedstac.identity.issuers import Issuer
from fedstac.identity.provider_answers import (
    ANSWER_SECONDS,
    KEYS_FRESH_SECONDS,
    Introspections,
    ProviderAway,
    SigningKeys,
    fetch,
    read_key,
)
from fedstac.runtime.outages import Outage

MAX_TOKEN = 8192  # characters
TYPES = (None, "jwt", "at+jwt", "application/at+jwt", "application/jwt")  # of the header typ, in lower case
_JWT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)", re.ASCII)
_CLAIMS = ("iss", "aud", "exp", "nbf", "iat")  # that decide about a token, in this order
_EMBEDDED = ("jwk", "jku", "x5u", "x5c")


@dataclass(frozen=True, slots=True)
class CodeLogin:
    """A login in a browser: at which issuer, where the browser comes back to, and what its ID token has to repeat."""

    issuer: str
    redirect_uri: str
    nonce: str


@dataclass(frozen=True, slots=True)
class LoginTokens:
    """What a provider gives for a login. refresh: what renews the access token; None where the provider gives none."""

    access: str = field(repr=False)
    refresh: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Proven:
    """An identity, and the moment (time.time) from which its token no longer proves it; None: the token has no end."""

    identity: Identity
    expires: float | None


class Providers:
    """The configured issuers. One per process; `identify` may be called by any number of requests at once."""

    def __init__(
        self, configured: Sequence[Issuer], http: httpx.AsyncClient, *, groups_claim: str, leeway: float
    ) -> None:
        self.configured = tuple(configured)
        self._providers = {each.issuer: _Provider(each, http, leeway) for each in configured}
        self._introspecting = next((p for p in self._providers.values() if p.issuer.introspect), None)
        self._groups_claim = groups_claim

    async def identify(self, token: str) -> Proven | None:
        """Return whose token this is; None if it is no token of an issuer's here.

        InvalidToken, InvalidTokenAudience or MissingPermission (a scope) for a token that is refused. Unavailable if
        it cannot be decided now because the issuer does not answer.
        """
        if len(token) > MAX_TOKEN:
            raise InvalidToken(f"the token has over {MAX_TOKEN} characters; ask for one with fewer claims")
        if not self._providers:
            return None
        parts = _JWT.fullmatch(token)
        unproven = _json_object(parts[2]) if parts is not None else None
        provider = self._introspecting if unproven is None else self._issuer_of(unproven)
        if provider is None:
            return None
        if parts is None or unproven is None or provider.issuer.introspect:
            claims = await provider.introspect(token)
        else:
            claims = await provider.verify(token, parts)
        if claims is None:
            return None
        provider.check_scope(claims)
        who = groups.identity(provider.issuer.issuer, claims, groups_claim=self._groups_claim)
        expires = claims.get("exp")
        return Proven(who, None if expires is None else float(expires) + provider.leeway)

    async def authorization_url(self, login: CodeLogin, *, state: str, challenge: str) -> str:
        """Return the provider's page on which somebody logs in (RFC 6749, 4.1.1; RFC 7636). Unavailable without one."""
        return await self._providers[login.issuer].authorization_url(login, state=state, challenge=challenge)

    async def redeem(self, login: CodeLogin, *, code: str, verifier: str) -> LoginTokens:
        """Return the tokens for the code that a browser brought back from its provider.

        InvalidToken unless the ID token beside them is of this login. Unavailable where the provider does not answer,
        or not with tokens.
        """
        return await self._providers[login.issuer].redeem(login, code=code, verifier=verifier)

    async def renew(self, issuer: str, refresh: str) -> LoginTokens:
        """Return newer tokens for a refresh token (RFC 6749, 6); the same one where the provider gives no other.

        InvalidToken where the provider takes it no longer, or is none of ours. Unavailable where it does not answer.
        """
        if issuer not in self._providers:
            raise InvalidToken(f"this node takes no logins of {issuer} any more; log in again")
        return await self._providers[issuer].renew(refresh)

    async def revoke(self, issuer: str, refresh: str) -> None:
        """Take a refresh token back at its provider (RFC 7009), if the provider can be asked and does that."""
        if issuer in self._providers:
            await self._providers[issuer].revoke(refresh)

    def _issuer_of(self, claims: Mapping[str, Any]) -> _Provider:
        """Return the configured issuer that a JWT names. That it is of that issuer has still to be proven."""
        provider = self._providers.get(iss) if isinstance(iss := claims.get("iss"), str) else None
        if provider is None:
            names = ", ".join(self._providers)
            raise InvalidToken(f"the token is of no identity provider that this node takes; it takes {names}")
        return provider


@asynccontextmanager
async def providers(configured: Sequence[Issuer], *, groups_claim: str, leeway: float) -> AsyncIterator[Providers]:
    """Yield the issuers of a process. Certificates and proxies are the environment's; redirects are not followed."""
    headers = {"User-Agent": f"fedstac/{__version__}", "Accept": "application/json", "Accept-Encoding": "identity"}
    async with httpx.AsyncClient(timeout=ANSWER_SECONDS, follow_redirects=False, headers=headers) as http:
        yield Providers(configured, http, groups_claim=groups_claim, leeway=leeway)


class _Provider:
    """One issuer: its metadata and keys, and its answers about opaque tokens."""

    def __init__(self, issuer: Issuer, http: httpx.AsyncClient, leeway: float) -> None:
        self.issuer, self.leeway = issuer, leeway
        self._http = http
        self._outage = Outage(f"the identity provider {issuer.issuer}")
        self._keys = SigningKeys(self._fetch_keys)
        self._metadata: tuple[float, dict[str, Any]] | None = None
        self._introspections = Introspections()

    # --- JWTs ---

    async def verify(self, token: str, parts: re.Match[str]) -> Mapping[str, Any]:
        """Return the claims of a JWT. InvalidToken unless its signature, issuer, audience and times hold."""
        header = _json_object(parts[1])
        if header is None:
            raise InvalidToken("the token's header is no JSON object; log in again")
        self._check_header(header)
        kid, algorithm = header.get("kid"), header["alg"]
        try:
            keys = await self._keys.of(kid, algorithm)
            claims = _verified_claims(token, keys, algorithm)
            is_new = kid is None or not keys  # the provider may sign with a key that is not here yet
            if claims is None and is_new and await self._keys.renew():
                claims = _verified_claims(token, await self._keys.of(kid, algorithm), algorithm)
        except ProviderAway as error:
            raise self._unavailable(error) from None
        if claims is None:
            raise InvalidToken("the token's signature is of no key of its issuer; log in again")
        self._check_claims(claims)
        if claims.get("exp") is None:
            raise InvalidToken("the token has no end (claim exp); log in again")
        return claims

    def _check_header(self, header: Mapping[str, Any]) -> None:
        """Refuse a header before any key is looked for (RFC 8725, 3.1, 3.10, 3.11)."""
        if embedded := [name for name in _EMBEDDED if name in header]:
            raise InvalidToken(f"the token brings its own key ({embedded[0]}); only the issuer's keys are taken")
        if "crit" in header:
            raise InvalidToken(
                "the token has critical headers (crit), none of which is understood here; ask for one without"
            )
        if header.get("alg") not in self.issuer.algorithms:
            algorithms = ", ".join(self.issuer.algorithms)
            raise InvalidToken(f"the token's algorithm is not taken; ask for one signed with {algorithms}")
        kind = header.get("typ")
        if (kind.lower() if isinstance(kind, str) else kind) not in TYPES:
            raise InvalidToken("this is no access token (header typ); send the one that you got beside it")
        if not isinstance(header.get("kid"), str | None):
            raise InvalidToken("the token's header kid is no text; log in again")

    def _check_claims(self, claims: Mapping[str, Any]) -> None:
        """Refuse a token of another issuer, for another service, or outside its time (RFC 7519, 4.1)."""
        registry = jwt.JWTClaimsRegistry(  # NumericDates may be fractions, and so may what they are compared with
            now=time.time(),  # type: ignore[arg-type]
            leeway=self.leeway,  # type: ignore[arg-type]
            iss={"essential": True, "value": self.issuer.issuer},
            aud={"essential": True, "value": self.issuer.audience},
        )
        try:  # a claim that is null says nothing; other claims than these decide about no token
            registry.validate({name: claims[name] for name in _CLAIMS if claims.get(name) is not None})
        except ClaimError as error:
            raise self._refusal(error, claims) from None

    def _refusal(self, error: ClaimError, claims: Mapping[str, Any]) -> Problem:
        """Return the problem of a token that the registry refuses, with what its holder can do."""
        [name, *_] = sorted(error.claim.split(","), key=_CLAIMS.index)
        match name:
            case "iss":
                return InvalidToken(f"the token is not of {self.issuer.issuer} (claim iss); log in there")
            case "aud":
                return InvalidTokenAudience(
                    f"the token is for another service (claim aud); ask for one for {self.issuer.audience}"
                )
            case "exp" if isinstance(error, ExpiredTokenError):
                return InvalidToken("the token has expired; log in again")
            case "nbf" | "iat" if isinstance(claims[name], int | float) and not isinstance(claims[name], bool):
                why = "is not valid yet" if name == "nbf" else "was issued in the future"
                return InvalidToken(f"the token {why} (claim {name}); are the clocks right?")
        return InvalidToken(f"the token's claim {name} is no number of seconds; log in again")

    def check_scope(self, claims: Mapping[str, Any]) -> None:
        """Refuse a token without the scopes that the operator requires."""
        if missing := set(self.issuer.required_scopes) - groups.scopes(claims):
            raise MissingPermission(f"the token lacks the scope {', '.join(sorted(missing))}; log in with it")

    # --- logins in a browser ---

    async def authorization_url(self, login: CodeLogin, *, state: str, challenge: str) -> str:
        try:
            endpoint = await self._endpoint("authorization_endpoint")
        except ProviderAway as error:
            raise self._unavailable(error) from None
        scope = " ".join(dict.fromkeys(("openid", *self.issuer.login_scope.split())))
        query = urlencode({
            "response_type": "code", "client_id": self.issuer.login_client_id, "redirect_uri": login.redirect_uri,
            "scope": scope, "state": state, "nonce": login.nonce,
            "code_challenge": challenge, "code_challenge_method": "S256",
        })  # fmt: skip
        return f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{query}"

    async def redeem(self, login: CodeLogin, *, code: str, verifier: str) -> LoginTokens:
        form = {
            "grant_type": "authorization_code", "code": code, "redirect_uri": login.redirect_uri,
            "client_id": self.issuer.login_client_id, "code_verifier": verifier,
        }  # fmt: skip
        try:
            answer = await self._tokens(form, "the code of the login is used or too old; begin again")
            access, proof = answer.get("access_token"), answer.get("id_token")
            if not isinstance(access, str) or not isinstance(proof, str):
                raise ProviderAway("it answered a code without an access token and an ID token")
            subject = await self._subject_of(proof, login.nonce)
        except ProviderAway as error:
            raise self._unavailable(error) from None
        if (parts := _JWT.fullmatch(access)) and (claims := _json_object(parts[2])) and claims.get("sub") != subject:
            raise InvalidToken("the two tokens of the login are of different people; log in again")
        return LoginTokens(access, _refresh_token(answer))

    async def renew(self, refresh: str) -> LoginTokens:
        form = {"grant_type": "refresh_token", "refresh_token": refresh, "client_id": self.issuer.login_client_id}
        try:
            answer = await self._tokens(form, "the login has ended at the identity provider; log in again")
            access = answer.get("access_token")
            if not isinstance(access, str):
                raise ProviderAway("it answered a refresh token without an access token")
        except ProviderAway as error:
            raise self._unavailable(error) from None
        return LoginTokens(access, _refresh_token(answer) or refresh)

    async def revoke(self, refresh: str) -> None:
        form = {"token": refresh, "token_type_hint": "refresh_token", "client_id": self.issuer.login_client_id}
        with suppress(ProviderAway, httpx.HTTPError, httpx.InvalidURL, TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._http.post(await self._endpoint("revocation_endpoint"), data=form)

    async def _tokens(self, form: Mapping[str, str], refusal: str) -> dict[str, Any]:
        """Return the answer of the token endpoint. InvalidToken with this text where it refuses what it is given."""
        endpoint = await self._endpoint("token_endpoint")
        try:
            return await fetch(self._http, "POST", endpoint, data=form)
        except ProviderAway as error:
            if error.status in (400, 401):  # RFC 6749, 5.2
                raise InvalidToken(refusal) from None
            raise

    async def _subject_of(self, proof: str, nonce: str) -> str:
        """Return whose login an ID token proves (OpenID Connect Core 1.0, 3.1.3.7). InvalidToken for any other."""
        parts = _JWT.fullmatch(proof) if len(proof) <= MAX_TOKEN else None
        header = _json_object(parts[1]) if parts is not None else None
        if header is None:
            raise InvalidToken("the provider's ID token cannot be read; log in again")
        self._check_header(header)
        kid, algorithm = header.get("kid"), header["alg"]
        claims = _verified_claims(proof, await self._keys.of(kid, algorithm), algorithm)
        if claims is None and await self._keys.renew():
            claims = _verified_claims(proof, await self._keys.of(kid, algorithm), algorithm)
        if claims is None:
            raise InvalidToken("the ID token's signature is of no key of its issuer; log in again")
        audience, client = claims.get("aud"), self.issuer.login_client_id
        audiences = audience if isinstance(audience, list) else [audience]
        ends, subject = claims.get("exp"), claims.get("sub")
        if claims.get("iss") != self.issuer.issuer or client not in audiences:
            raise InvalidToken("the ID token is of another issuer, or for another service; log in again")
        if len(audiences) > 1 and claims.get("azp") != client:
            raise InvalidToken("the ID token is for several services, and was not issued to this one; log in again")
        if not isinstance(ends, int | float) or ends + self.leeway < time.time():
            raise InvalidToken("the ID token has expired; log in again")
        if claims.get("nonce") != nonce or not isinstance(subject, str) or not subject:
            raise InvalidToken("the ID token is not of this login; log in again")
        return subject

    # --- introspection ---

    async def introspect(self, token: str) -> Mapping[str, Any] | None:
        """Return the claims that the issuer answers a token with; None if it is not active, or of another issuer."""
        try:
            claims = await self._introspections.of(token, self._introspect)
        except ProviderAway as error:
            raise self._unavailable(error) from None
        if claims is not None:
            self._check_claims(claims)
        return claims

    async def _introspect(self, token: str) -> Mapping[str, Any] | None:
        endpoint = await self._endpoint("introspection_endpoint")
        try:
            user, secret = quote_plus(self.issuer.client_id), quote_plus(self.issuer.secret)  # RFC 6749, 2.3.1
        except OSError as error:
            raise ProviderAway(f"the client's secret cannot be read: {error}") from None
        basic = base64.b64encode(f"{user}:{secret}".encode()).decode()
        form = {"token": token, "token_type_hint": "access_token"}
        answer = await fetch(self._http, "POST", endpoint, data=form, headers={"Authorization": f"Basic {basic}"})
        self._outage.ended()
        if answer.get("active") is not True:
            return None
        return {"iss": self.issuer.issuer, **answer}  # the issuer itself may leave it out

    # --- what the provider publishes ---

    async def _fetch_keys(self) -> list[jwk.Key]:
        try:
            keys = await self._published_keys()
        except ProviderAway as error:
            self._outage.failed(error)
            raise
        self._outage.ended()
        return keys

    async def _published_keys(self) -> list[jwk.Key]:
        answer = await fetch(self._http, "GET", await self._endpoint("jwks_uri"))
        entries = answer.get("keys")
        keys = [key for entry in entries if (key := read_key(entry))] if isinstance(entries, list) else []
        if not keys:
            raise ProviderAway("it publishes no key that could sign a token")
        return keys

    async def _endpoint(self, name: str) -> str:
        """Return an address of the provider's metadata (OpenID Connect Discovery 1.0, section 4)."""
        if self._metadata is None or self._metadata[0] < time.monotonic():
            url = self.issuer.issuer.rstrip("/") + "/.well-known/openid-configuration"
            metadata = await fetch(self._http, "GET", url)
            if metadata.get("issuer") != self.issuer.issuer:
                raise ProviderAway("its metadata is of another issuer")
            self._metadata = time.monotonic() + KEYS_FRESH_SECONDS, metadata
        endpoint = self._metadata[1].get(name)
        if not isinstance(endpoint, str) or not is_safe(endpoint, of=self.issuer.issuer):
            raise ProviderAway(f"its metadata has no usable {name}")
        return endpoint

    def _unavailable(self, error: ProviderAway) -> Problem:
        self._outage.failed(error)
        return Unavailable(
            f"the identity provider {self.issuer.issuer} cannot be asked just now; try again", retry_after=10
        )


def _refresh_token(answer: Mapping[str, Any]) -> str | None:
    """Return the refresh token of an answer; None where there is none that can be kept."""
    token = answer.get("refresh_token")
    return token if isinstance(token, str) and 0 < len(token) <= MAX_TOKEN else None


def _json_object(segment: str) -> dict[str, Any] | None:
    """Return the JSON object in a segment of a JWT; None if it is no object, or has a name twice."""
    try:
        value = strict_json.parse(base64.b64decode(segment + "=" * (-len(segment) % 4), altchars=b"-_", validate=True))
    except (ValueError, MalformedJson):
        return None
    return value if isinstance(value, dict) else None


def _verified_claims(token: str, keys: Sequence[jwk.Key], algorithm: str) -> dict[str, Any] | None:
    """Return the claims if one of the keys signed them, else None."""
    for key in keys:
        try:
            jws.deserialize_compact(
                token, key, registry=_JwsRegistry(algorithms=[algorithm], strict_check_header=False)
            )
        except (JoseError, ValueError, TypeError):
            continue
        return _json_object(token.split(".")[1])
    return None


class _JwsRegistry(jws.JWSRegistry):
    """joserfc's limits for a token whose length is checked already."""

    max_header_length = MAX_TOKEN
