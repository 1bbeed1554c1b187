"""Identity: find the parties of a request, from LiteLLM's key and from the names that the request claims.

A user's own key always overrides a claim; the master key may speak for any user. LiteLLM's placeholder
`default_user_id` is not a user. A claim is never an error: `domain.claims` derives a stable name from it.
"""

from __future__ import annotations

import hashlib
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from litellm.proxy._types import SpecialHeaders
from litellm.proxy.auth.auth_utils import get_end_user_id_from_request_body

from usage_plugin.config import RESOLVER
from usage_plugin.domain.claims import Claimed, read_claim, stable_name
from usage_plugin.domain.pseudonyms import MASTER_KEY, is_key_hash, key_name
from usage_plugin.domain.subjects import ANONYMOUS, MOST_TAGS, Subjects, clean_name
from usage_plugin.errors import IdentityRequiredError, SubjectNameError
from usage_plugin.plugins.interface import Claim
from usage_plugin.proxy import request_scope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from usage_plugin.config import ActiveConfig, IdentityConfig
    from usage_plugin.domain.pseudonyms import Pseudonyms
    from usage_plugin.plugins.identity_resolvers import Resolvers

_PLACEHOLDER = "default_user_id"
_HEADER = "header:"
_ADMIN = "proxy_admin"
_SESSION_HEADERS = ("x-litellm-trace-id", "x-litellm-session-id", "x-claude-code-session-id")
"""The headers with a session, on routes where LiteLLM does not look for one; in LiteLLM's order."""

_AGENT_HEADER = "x-claude-code-agent-id"
_BY_LITELLM = "via_virtual_key"
"""Set on a key that LiteLLM authenticated itself. Older versions lack it, so their claims are looked up each time."""

_PROXY = "litellm.proxy.proxy_server"
_KEY_SETTING = "litellm_key_header_name"
_KEY_HEADERS = frozenset(header.value.lower() for header in SpecialHeaders)
"""Headers that carry keys: they never name a user, and plugins never get them."""


class Identification:
    """Names the parties of requests, by the configuration in force."""

    def __init__(self, config: ActiveConfig, pseudonyms: Pseudonyms, resolvers: Resolvers) -> None:
        """Create it from the configuration, the pseudonyms of the data folder, and the resolvers of plugins."""
        self._config = config
        self._pseudonyms = pseudonyms
        self._resolvers = resolvers

    def subjects_of(self, key: Any, body: Mapping[str, Any]) -> Subjects:  # UserAPIKeyAuth
        """Return the parties of a request under the names that are stored; errors as in `resolve`."""
        return self._pseudonyms.keep(resolve(self._config.current.identity, key, body, self._resolvers))


def resolve(
    config: IdentityConfig,
    key: Any,  # UserAPIKeyAuth
    body: Mapping[str, Any],
    resolvers: Resolvers,
) -> Subjects:
    """Return the parties of a request under their real names; pseudonyms are applied later.

    Args:
        config: The order of sources, and the policy for requests without a user.
        key: LiteLLM's `UserAPIKeyAuth`.
        body: The request as hooks get it from LiteLLM.
        resolvers: The resolvers of plugins.

    Raises:
        IdentityRequiredError: The request names no user where one is required.
        SubjectNameError: A resolver returned an invalid name.
        ResolverFailedError: A resolver did not answer.
    """
    fold = config.casefold
    headers, metadata = _headers(body), _metadata(body)
    own = _own_user(key, fold=fold)
    said = _claim(key, body, headers)
    claim = _claimed(said, config)
    user = own
    for source in config.user if own is None else ():
        if source == "key":
            user = _key_name(key, fold=fold)
        elif source == "end_user":
            user = claim.name
        elif source.startswith(RESOLVER):
            named = resolvers.user_of(source.removeprefix(RESOLVER), _as_claim(said, key, body))
            user = clean_name(named, what="user", casefold=fold)
        else:
            user = _claimed(_header(body, source.removeprefix(_HEADER)), config).name
        if user is not None:
            break
    if user is None and config.on_missing == "deny":
        raise IdentityRequiredError
    return Subjects(
        user=user or ANONYMOUS,
        team=stable_name(key.team_id, what="team", casefold=fold),
        api_key=_key_hash(key),
        api_key_alias=stable_name(key.key_alias, what="key alias"),
        end_user=claim.name,
        organization=stable_name(key.org_id, what="organization", casefold=fold),
        session=_session(body, headers, metadata, claim),
        tags=_tags(key, metadata),
        agent=_or_nothing(headers.get(_AGENT_HEADER) or metadata.get("agent_id"), "agent"),
    )


def _own_user(key: Any, *, fold: bool) -> str | None:  # UserAPIKeyAuth
    """Return the user that a key belongs to; None for the master key and for keys of several users."""
    if key.user_id in (None, _PLACEHOLDER) or MASTER_KEY in (key.api_key, key.token):
        return None
    if _is_handed_on(key) and key.user_id == _of_proxy("litellm_proxy_admin_name"):
        return None
    return stable_name(key.user_id, what="user", casefold=fold)


def _key_name(key: Any, *, fold: bool) -> str | None:  # UserAPIKeyAuth
    """Return the name of a key without a user: its alias, else the beginning of its hash."""
    if _is_master(key):
        return None
    alias = stable_name(key.key_alias, what="key alias", casefold=fold)
    if alias is not None:
        return alias
    hashed = _key_hash(key)
    return key_name(hashed) if hashed else None


def _is_master(key: Any) -> bool:  # UserAPIKeyAuth
    return MASTER_KEY in (key.api_key, key.token) or _is_handed_on(key)


def _is_handed_on(key: Any) -> bool:  # UserAPIKeyAuth
    """Whether this is the master key as a `custom_auth` returns it, which LiteLLM does not replace by its alias.

    A user that a `custom_auth` returns with it has been authenticated, so it still overrides a claim.
    """
    role = key.user_role
    if role is None or key.api_key == MASTER_KEY or getattr(role, "value", role) != _ADMIN:
        return False
    master = _of_proxy("master_key")
    # LiteLLM hashes keys that begin with sk- and leaves others unchanged.
    return isinstance(master, str) and key.api_key is not None and key.api_key in _forms_of(master)


@lru_cache(maxsize=1)
def _forms_of(master: str) -> tuple[str, str]:
    return master, hashlib.sha256(master.encode()).hexdigest()


def _key_hash(key: Any) -> str | None:
    """Return LiteLLM's hash of the key; hash any other value here, since it may be the key itself."""
    value = key.api_key or key.token
    if not isinstance(value, str) or not value:
        return None
    if _is_handed_on(key):
        return MASTER_KEY
    if is_key_hash(value):
        return value
    return hashlib.sha256(value.encode()).hexdigest()


def _claim(key: Any, body: Mapping[str, Any], headers: Mapping[str, str]) -> object:  # UserAPIKeyAuth
    """Return the request's claim about its end user.

    LiteLLM has looked for one if it authenticated the key itself. If a `custom_auth` did that, or no key was needed,
    its own function is called here. It skips objects and lists, which are claims too.
    """
    if key.end_user_id is not None:
        return key.end_user_id
    found = None
    if key.api_key != MASTER_KEY and _PROXY in sys.modules and not getattr(key, _BY_LITELLM, False):
        found = get_end_user_id_from_request_body(body, headers)
    metadata = body.get("metadata")
    of_metadata = metadata.get("user_id") if isinstance(metadata, dict) else None
    if found is None:
        user = body.get("user")
        # LiteLLM would have found a text here; or the text is the session with which LiteLLM replaced an object.
        return user if user is not None or isinstance(of_metadata, str) else of_metadata
    return None if found == of_metadata == body.get("litellm_session_id") else found


def _claimed(claim: object, config: IdentityConfig) -> Claimed:
    claimed = read_claim(claim, json_field=config.json_field, casefold=config.casefold)
    return claimed._replace(name=None) if claimed.name == _PLACEHOLDER else claimed


def _as_claim(claim: object, key: Any, body: Mapping[str, Any]) -> Claim:  # UserAPIKeyAuth
    return Claim(
        end_user=claim,
        headers={name: value for name, value in _headers(body).items() if not _carries_key(name)},
        # Older versions of LiteLLM do not keep the claims.
        jwt=getattr(key, "jwt_claims", None) or {},
        key_alias=key.key_alias,
        team=key.team_id,
        organization=key.org_id,
    )


def _header(body: Mapping[str, Any], name: str) -> str | None:
    name = name.lower()
    return None if _carries_key(name) else _headers(body).get(name)


def _headers(body: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the client's headers by lower-case name.

    They come from the connection: on pass-through routes LiteLLM passes none, since the whole body is the client's.
    """
    scope = request_scope.current.get()
    if scope is not None:
        return scope.client_headers
    found = (body.get("proxy_server_request") or {}).get("headers") or {}
    return {str(name).lower(): value for name, value in found.items()}


def _carries_key(name: str) -> bool:
    return name in _KEY_HEADERS or name == str((_of_proxy("general_settings") or {}).get(_KEY_SETTING)).lower()


def _of_proxy(name: str) -> Any:  # any of its globals
    """Return a setting of the running proxy, which may change it; None if no proxy runs in this process."""
    return getattr(sys.modules.get(_PROXY), name, None)


def _session(
    body: Mapping[str, Any], headers: Mapping[str, str], metadata: Mapping[str, Any], claim: Claimed
) -> str | None:
    """Return the session from LiteLLM, else from a header, else from the claim; an invalid one is ignored."""
    found = _or_nothing(body.get("litellm_session_id") or metadata.get("session_id"), "session")
    if found is None and not headers.keys().isdisjoint(_SESSION_HEADERS):
        found = _or_nothing(next(headers[name] for name in _SESSION_HEADERS if name in headers), "session")
    return found or claim.session


def _tags(key: Any, metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the valid tags, the key's first, so that a client cannot displace them.

    The User-Agent, which LiteLLM adds as a tag, is useless here and removed.
    """
    given: list[Any] = []
    for source in (key.metadata, key.team_metadata, metadata):
        if source and isinstance(source, dict) and isinstance(tags := source.get("tags"), list):
            given += tags
    if not given:
        return ()
    names = [_or_nothing(tag, "tag") for tag in given]
    return tuple(dict.fromkeys([name for name in names if name and not name.startswith("User-Agent:")]))[:MOST_TAGS]


def _metadata(body: Mapping[str, Any]) -> Mapping[str, Any]:
    found = body.get("litellm_metadata") if "litellm_metadata" in body else body.get("metadata")
    return found if isinstance(found, dict) else {}


def _or_nothing(value: object, what: str) -> str | None:
    """Return a normalized name that no limit needs; an invalid one is ignored."""
    if value is None:
        return None
    try:
        return clean_name(value, what=what)
    except SubjectNameError:
        return None
