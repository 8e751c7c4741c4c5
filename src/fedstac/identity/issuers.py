"""The identity providers that an operator configures (FEDSTAC_ISSUERS)."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from fedstac.domain.addresses import is_safe
from fedstac.settings import Misconfigured

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519")


class Issuer(BaseModel):
    """One identity provider, as the operator configures it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: str  # exactly as in the provider's metadata
    audience: str = ""  # instead of the setting
    algorithms: tuple[str, ...] = ALGORITHMS
    required_scopes: tuple[str, ...] = ()
    introspect: bool = False  # its tokens are opaque, or are to be asked about all the same
    client_id: str = ""  # of this node, for introspection
    client_secret: str = Field("", repr=False)
    client_secret_file: str = ""
    login_client_id: str = ""  # the public client of `fedstac login`
    login_scope: str = "openid profile email offline_access"

    @field_validator("issuer")
    @classmethod
    def _is_safe(cls, url: str) -> str:
        if urlsplit(url).query or urlsplit(url).fragment or not is_safe(url, of=url):
            raise ValueError("is no https address (http is for loopback only)")
        return url

    @field_validator("algorithms")
    @classmethod
    def _are_asymmetric(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names or set(names) - set(ALGORITHMS):
            raise ValueError(f"may only hold {', '.join(ALGORITHMS)}")
        return names

    @model_validator(mode="after")
    def _can_introspect(self) -> Issuer:
        if self.introspect and not (self.client_id and (self.client_secret or self.client_secret_file)):
            raise ValueError("introspect needs client_id, and client_secret or client_secret_file")
        return self

    @property
    def secret(self) -> str:
        """Return the client's secret. A file is read each time, so that it can be changed in place."""
        return self.client_secret or Path(self.client_secret_file).read_text().strip()


def issuers_of(text: str, audience: str) -> tuple[Issuer, ...]:
    """Return the issuers of the setting: a JSON array, or the name of a file with one. Misconfigured if it is wrong."""
    if not text.strip():
        return ()
    try:
        raw = text if text.lstrip().startswith("[") else Path(text).read_text()
        issuers = TypeAdapter(tuple[Issuer, ...]).validate_json(raw)
    except OSError as error:
        raise Misconfigured(f"FEDSTAC_ISSUERS: {error}") from None
    except ValidationError as error:
        faults = (f"{'/'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise Misconfigured(f"FEDSTAC_ISSUERS: {'; '.join(faults)}") from None
    issuers = tuple(each.model_copy(update={"audience": each.audience or audience}) for each in issuers)
    for each in issuers:
        if not each.audience:
            raise Misconfigured(f"FEDSTAC_ISSUERS: say the audience of {each.issuer}'s tokens, or FEDSTAC_AUDIENCE")
    if len({each.issuer for each in issuers}) < len(issuers):
        raise Misconfigured("FEDSTAC_ISSUERS: an issuer is there twice")
    if sum(each.introspect for each in issuers) > 1:  # an opaque token would be shown to the wrong one
        raise Misconfigured("FEDSTAC_ISSUERS: only one issuer can introspect; an opaque token names none")
    return issuers
