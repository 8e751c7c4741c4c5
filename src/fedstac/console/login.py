"""Login and logout: by an identity provider with a code and PKCE, or with a token of this node pasted once."""

from __future__ import annotations

import base64
import hmac
import secrets
from typing import Any
from urllib.parse import parse_qsl, urlencode

import structlog
from starlette.responses import Response

from fedstac.api.call import Call
from fedstac.console import pages, visits
from fedstac.console.visits import ConsolePlace, Visit
from fedstac.domain import digests
from fedstac.domain.errors import BadRequest, InvalidToken, MissingPermission, Problem, Unauthenticated
from fedstac.identity.issuers import Issuer
from fedstac.identity.oidc import MAX_TOKEN, CodeLogin, LoginTokens

ATTEMPT_SECONDS = 600  # that somebody has to log in
ATTEMPT_FIELDS = ("state", "nonce", "verifier", "csrf", "next", "issuer")
log = structlog.get_logger()


def _issuers(call: Call) -> list[Issuer]:
    """Return the providers with whom one can log in here."""
    return [each for each in call.services.principals.issuers if each.login_client_id]


async def get_login(visit: Visit) -> Response:
    """Show how one can log in here."""
    call, place = visit.call, visit.place
    target = place.return_path(call.query_params.get("next", ""))
    if visit.session is not None:
        return pages.redirect(target)
    return _login_page(visit, target)


def _login_page(visit: Visit, target: str, problem: Problem | None = None) -> Response:
    attempt = {"csrf": secrets.token_urlsafe(32), "next": target}
    content = {
        "issuers": [
            {"name": each.issuer, "query": urlencode({"issuer": each.issuer, "next": target})}
            for each in _issuers(visit.call)
        ],
        "csrf": attempt["csrf"], "next": target, "problem": problem,
    }  # fmt: skip
    answer = pages.html(visit, "login.html", content, status=problem.status if problem else 200)
    if not content["issuers"]:  # else a login that is under way in another tab would be lost
        answer.headers.append("set-cookie", _attempt_cookie(visit.place, attempt))
    return answer


async def get_start(visit: Visit) -> Response:
    """Send the browser to the identity provider."""
    call, place = visit.call, visit.place
    name = call.query_params.get("issuer", "")
    issuer = next((each for each in _issuers(call) if each.issuer == name), None)
    if issuer is None:
        raise BadRequest("this node has no login with that identity provider; go back to the login")
    attempt = {
        "state": secrets.token_urlsafe(32), "nonce": secrets.token_urlsafe(32), "verifier": secrets.token_urlsafe(48),
        "next": place.return_path(call.query_params.get("next", "")), "issuer": issuer.issuer,
    }  # fmt: skip
    challenge = digests.challenge_of(attempt["verifier"])
    url = await call.services.principals.providers.authorization_url(
        _code_login(place, attempt), state=attempt["state"], challenge=challenge
    )
    answer = pages.redirect(url)
    answer.headers.append("set-cookie", _attempt_cookie(place, attempt))
    return answer


async def get_callback(visit: Visit) -> Response:
    """Take the browser back from the identity provider, and open a session."""
    call, attempt = visit.call, _attempt_of(visit)
    state = attempt.get("state", "")
    if not state or not hmac.compare_digest(call.query_params.get("state", "").encode(), state.encode()):
        raise MissingPermission("this is not the answer to a login of this browser; begin again")
    if call.query_params.get("iss", attempt["issuer"]) != attempt["issuer"]:  # RFC 9207
        raise MissingPermission("the answer came from another identity provider; begin again")
    if attempt["issuer"] not in [each.issuer for each in _issuers(call)]:
        raise MissingPermission("this node has no login with that identity provider any more; begin again")
    code = call.query_params.get("code", "")
    if not code:
        raise MissingPermission("the identity provider did not let you in; begin again")
    tokens = await call.services.principals.providers.redeem(
        _code_login(visit.place, attempt), code=code, verifier=attempt["verifier"]
    )
    return await _enter(visit, tokens, attempt["next"], issuer=attempt["issuer"])


async def post_login(visit: Visit) -> Response:
    """Open a session with a token that somebody pasted."""
    call, attempt = visit.call, _attempt_of(visit)
    if _issuers(call):
        raise MissingPermission("here one logs in with the identity provider")
    form = await visits.read_form(call)
    expected = attempt.get("csrf", "")
    visits.check_source(call, form, expected or secrets.token_urlsafe(8))
    token = form.get("token", "").strip()
    try:
        if not token or len(token) > MAX_TOKEN:
            raise Unauthenticated("paste a token of this node")
        return await _enter(visit, LoginTokens(token), attempt.get("next", ""))
    except (Unauthenticated, InvalidToken) as problem:
        return _login_page(visit, visit.place.return_path(attempt.get("next", "")), problem)


async def post_logout(visit: Visit) -> Response:
    """End the session."""
    await visits.log_out(visit.call)
    log.info("console session closed", actor=visit.caller.name)
    answer = pages.redirect(f"{visit.place.root}/login")
    answer.headers.append("set-cookie", visit.place.cookie("session", "", seconds=0))
    return answer


async def _enter(visit: Visit, tokens: LoginTokens, target: str, *, issuer: str = "") -> Response:
    secret, principal = await visits.open_session(visit.call, tokens, issuer=issuer)
    log.info("console session opened", actor=principal.name, by=issuer or "token")
    place = visit.place
    answer = pages.redirect(place.return_path(target))
    answer.headers.append("set-cookie", place.cookie("session", secret, seconds=visits.LONGEST.total_seconds()))
    answer.headers.append("set-cookie", place.cookie("login", "", seconds=0))
    return answer


def _code_login(place: ConsolePlace, attempt: dict[str, str]) -> CodeLogin:
    return CodeLogin(attempt["issuer"], f"{place.base_url}{visits.FOLDER}/callback", attempt["nonce"])


# what a browser keeps of a login that is under way; nobody else reads or writes it


def _attempt_cookie(place: ConsolePlace, attempt: dict[str, str]) -> str:
    value = base64.urlsafe_b64encode(urlencode(attempt).encode()).rstrip(b"=").decode()
    return place.cookie("login", value, seconds=ATTEMPT_SECONDS)


def _attempt_of(visit: Visit) -> dict[str, Any]:
    """Return the login that the browser began; without one, nothing."""
    value = visits.cookies_of(visit.call).get(visit.place.cookie_name("login"), "")
    try:
        text = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).decode()
        attempt = dict(parse_qsl(text, max_num_fields=len(ATTEMPT_FIELDS)))
    except ValueError:
        return {}
    is_whole = attempt.keys() >= {"state", "nonce", "verifier", "issuer", "next"}
    return attempt if is_whole or attempt.keys() == {"csrf", "next"} else {}
