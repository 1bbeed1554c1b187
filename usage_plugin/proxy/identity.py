"""Identity: whose request it is, from LiteLLM's key and from what the request claims.

A key of one's own always beats a claim; the master key may speak for anybody. LiteLLM's placeholder
`default_user_id` is nobody.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from usage_plugin.config import RESOLVER
from usage_plugin.domain.pseudonyms import MASTER_KEY, is_key_hash, key_name
from usage_plugin.domain.subjects import ANONYMOUS, MOST_TAGS, Subjects, clean_name
from usage_plugin.errors import SubjectNameError
from usage_plugin.plugins.interface import Claim

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usage_plugin.config import IdentityConfig
    from usage_plugin.plugins.resolving import Resolvers

_PLACEHOLDER = "default_user_id"
_HEADER = "header:"


class IdentityRequiredError(SubjectNameError):
    """The request names no user, and this proxy asks for one."""


def resolve(
    config: IdentityConfig,
    key: Any,  # UserAPIKeyAuth
    body: Mapping[str, Any],
    resolvers: Resolvers,
) -> Subjects:
    """Find everybody a request belongs to, under their real names: pseudonyms come after.

    Args:
        config: the order of sources, and what to do if none names anybody.
        key: LiteLLM's `UserAPIKeyAuth`.
        body: the request as LiteLLM hands it to hooks.
        resolvers: those that plugins bring.

    Raises:
        SubjectNameError: a name that cannot be taken, or none where one is required.
        ResolverFailedError: a resolver does not answer.
    """
    fold = config.casefold
    own = _own_user(key, fold=fold)
    claim = _claim(key, body)
    user = own
    for source in config.user if own is None else ():
        if source == "key":
            user = _key_name(key, fold=fold)
        elif source == "end_user":
            user = _claimed(claim, config)
        elif source.startswith(RESOLVER):
            named = resolvers.user_of(source.removeprefix(RESOLVER), _as_claim(claim, key, body))
            user = clean_name(named, what="user", casefold=fold)
        else:
            user = _claimed(_header(body, source.removeprefix(_HEADER)), config)
        if user is not None:
            break
    if user is None and config.on_missing == "deny":
        raise IdentityRequiredError
    return Subjects(
        user=user or ANONYMOUS,
        team=clean_name(key.team_id, what="team", casefold=fold),
        api_key=_key_hash(key),
        api_key_alias=clean_name(key.key_alias, what="key alias"),
        end_user=_or_nothing(claim, "end_user", fold=fold),
        organization=clean_name(key.org_id, what="organization", casefold=fold),
        session=_or_nothing(_session(body), "session"),
        tags=_tags(key, body),
    )


def _own_user(key: Any, *, fold: bool) -> str | None:  # UserAPIKeyAuth
    """Name the one person a key belongs to; None for the master key and for keys of several."""
    if key.user_id in (None, _PLACEHOLDER) or _is_master(key):
        return None
    return clean_name(key.user_id, what="user", casefold=fold)


def _key_name(key: Any, *, fold: bool) -> str | None:  # UserAPIKeyAuth
    """Name a key that is nobody's own by its alias, else by the beginning of its hash."""
    if _is_master(key):
        return None
    alias = clean_name(key.key_alias, what="key alias", casefold=fold)
    if alias is not None:
        return alias
    hashed = _key_hash(key)
    return key_name(hashed) if hashed else None


def _is_master(key: Any) -> bool:  # UserAPIKeyAuth
    return MASTER_KEY in (key.api_key, key.token)


def _key_hash(key: Any) -> str | None:
    """Give LiteLLM's hash of the key; what is none is hashed here, since it may be the key itself."""
    value = key.api_key or key.token
    if not isinstance(value, str) or not value:
        return None
    if is_key_hash(value):
        return value
    return hashlib.sha256(value.encode()).hexdigest()


def _claim(key: Any, body: Mapping[str, Any]) -> object:  # UserAPIKeyAuth
    """Find what the request says of its end user; LiteLLM has looked at headers and body already."""
    return key.end_user_id if key.end_user_id is not None else body.get("user")


def _claimed(claim: object, config: IdentityConfig) -> str | None:
    if config.json_field and isinstance(claim, str) and claim.lstrip().startswith("{"):
        try:
            claim = json.loads(claim).get(config.json_field)
        except (ValueError, RecursionError):
            raise SubjectNameError("The end user is neither a name nor valid JSON.") from None
    name = clean_name(claim, what="end user", casefold=config.casefold)
    return None if name == _PLACEHOLDER else name


def _as_claim(claim: object, key: Any, body: Mapping[str, Any]) -> Claim:  # UserAPIKeyAuth
    return Claim(
        end_user=claim,
        headers={str(name).lower(): value for name, value in _headers(body).items()},
        # Older versions of LiteLLM do not keep them.
        jwt=getattr(key, "jwt_claims", None) or {},
        key_alias=key.key_alias,
        team=key.team_id,
        organization=key.org_id,
    )


def _header(body: Mapping[str, Any], name: str) -> object:
    headers = _headers(body)
    return headers.get(name.lower(), headers.get(name))


def _headers(body: Mapping[str, Any]) -> Mapping[str, Any]:
    return (body.get("proxy_server_request") or {}).get("headers") or {}


def _session(body: Mapping[str, Any]) -> object:
    return body.get("litellm_session_id") or _metadata(body).get("session_id")


def _tags(key: Any, body: Mapping[str, Any]) -> tuple[str, ...]:
    """Take the tags that can be taken, those of the key first: a client must not push them out.

    LiteLLM adds the User-Agent as a tag, which nobody asked for.
    """
    given: list[Any] = []
    for source in (key.metadata, key.team_metadata, _metadata(body)):
        if isinstance(source, dict) and isinstance(tags := source.get("tags"), list):
            given += tags
    names = [_or_nothing(tag, "tag") for tag in given]
    return tuple(dict.fromkeys([name for name in names if name and not name.startswith("User-Agent:")]))[:MOST_TAGS]


def _metadata(body: Mapping[str, Any]) -> Mapping[str, Any]:
    found = body.get("litellm_metadata") if "litellm_metadata" in body else body.get("metadata")
    return found if isinstance(found, dict) else {}


def _or_nothing(value: object, what: str, *, fold: bool = False) -> str | None:
    """Clean a name that decides nothing for the request itself; one that cannot be taken is left out."""
    try:
        return clean_name(value, what=what, casefold=fold)
    except SubjectNameError:
        return None
