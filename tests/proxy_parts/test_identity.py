from __future__ import annotations

import hashlib
import re
from types import SimpleNamespace

import pytest

from usage_plugin.config import IdentityConfig
from usage_plugin.domain.subjects import ANONYMOUS, INTERNAL, MOST_TAGS
from usage_plugin.errors import IdentityRequiredError, SubjectNameError
from usage_plugin.plugins.identity_resolvers import Resolvers
from usage_plugin.proxy import request_scope
from usage_plugin.proxy.identity import resolve
from usage_plugin.testing.clock import FakeClock
from usage_plugin.tracking.notifications.plugin_failures import PluginFailures

NO_RESOLVERS = Resolvers({}, PluginFailures(FakeClock()))
MASTER = "litellm_proxy_master_key"


@pytest.fixture
def who(key):
    """Return a function that resolves a request with a key, a claim in the body and headers."""

    def who(config=None, *, headers=None, body=None, claim=None, **fields):
        request = {**({} if claim is None else {"user": claim}), **(body or {})}
        if headers is not None:
            request["proxy_server_request"] = {"headers": headers}
        return resolve(IdentityConfig(**(config or {})), key(**fields), request, NO_RESOLVERS)

    return who


# ── the user ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_key_of_ones_own_beats_what_the_body_claims(who):
    """The owner of a personal key is the user, regardless of the request's claims."""
    found = who(user_id="ann", claim="bo", headers={"x-user": "eva"})
    assert found.user == "ann"
    assert found.end_user == "bo"


@pytest.mark.parametrize(
    "order", [["key", "end_user"], ["end_user", "key"], ["header:x-user", "end_user"], ["end_user"]], ids=str
)
def test_no_order_of_sources_lets_a_claim_beat_a_key_of_ones_own(who, order):
    """The order of sources decides only between claims."""
    assert who({"user": order}, user_id="ann", claim="bo", headers={"x-user": "eva"}).user == "ann"


def test_an_invalid_claim_does_not_harm_who_has_a_key_of_their_own(who):
    """The user is the key's; the request's claim is still the end user, so that its limits hold."""
    for claim in ("a\nb", "x" * 300, ["bo"], '{"tenant": "t"}'):
        found = who(user_id="ann", claim=claim)
        assert found.user == "ann"
        assert re.fullmatch(r"renamed-([\w@.-]+-)?[0-9a-f]{16}", found.end_user)
    assert who(user_id="ann", claim='{"id": 1}').end_user == "1"


def test_the_master_key_may_speak_for_anybody(who):
    """With the master key, the request names the user."""
    assert who(api_key=MASTER, user_id="default_user_id", claim="bo").user == "bo"
    assert who(api_key=MASTER, user_id="admin", claim="bo").user == "bo"


def test_the_master_key_itself_is_nobody(who):
    """With the master key and no claim, the request is anonymous, and the key does not name a user."""
    assert who(api_key=MASTER, user_id="default_user_id", key_alias="master").user == ANONYMOUS


def test_litellms_placeholder_is_nobody(who):
    """`default_user_id`, LiteLLM's placeholder for a missing user, is not a user."""
    assert who(api_key=MASTER, user_id="default_user_id").user == ANONYMOUS
    assert who(user_id="default_user_id", claim="bo", key_alias="shared").user == "shared"


def test_a_key_that_is_nobodys_own_has_the_name_of_the_key(who):
    """A key without a user is named by its alias, or by the beginning of its hash, before any claim."""
    assert who(key_alias="ci", claim="bo").user == "ci"
    found = who(api_key="0123456789abcdef" * 4, claim="bo")
    assert found.user == "key-0123456789abcdef"


def test_claims_may_come_before_the_keys_name(who):
    """With end_user first, a shared key serves several people; requests without a claim get the key's name."""
    order = {"user": ["end_user", "key"]}
    assert who(order, key_alias="openwebui", claim="bo").user == "bo"
    assert who(order, key_alias="openwebui").user == "openwebui"


def test_litellms_end_user_comes_before_the_body(who):
    """The end user that LiteLLM has found in headers and body is the claim."""
    assert who(api_key=MASTER, end_user_id="eva", claim="bo").user == "eva"
    assert who(api_key=MASTER, end_user_id="eva", claim="bo").end_user == "eva"


@pytest.mark.parametrize("sent", ["x-openwebui-user-email", "X-OpenWebUI-User-Email"])
@pytest.mark.parametrize("named", ["x-openwebui-user-email", "X-OpenWebUI-User-Email"])
def test_a_header_can_name_the_user(who, named, sent):
    """A header in any case can be the source, before or after others."""
    order = {"user": [f"header:{named}", "key"]}
    if sent == sent.lower() or sent == named:
        assert who(order, key_alias="openwebui", headers={sent: "ann@corp.example"}).user == "ann@corp.example"
    assert who(order, key_alias="openwebui", headers={}).user == "openwebui"
    assert who(order, key_alias="openwebui").user == "openwebui"


@pytest.mark.parametrize("request_part", [None, {}, {"headers": None}])
def test_a_request_without_headers_names_nobody_by_header(who, request_part):
    """If LiteLLM passes no headers, a header source names no user."""
    assert who({"user": "header:x-user"}, api_key=MASTER, body={"proxy_server_request": request_part}).user == ANONYMOUS


def test_whom_nothing_names_is_the_shared_subject(who):
    """A request without any name belongs to (anonymous)."""
    found = who({"user": ["end_user"]}, api_key=MASTER)
    assert found.user == ANONYMOUS
    assert (found.team, found.end_user, found.organization, found.session, found.tags) == (None, None, None, None, ())


@pytest.mark.parametrize("claim", [None, "", "  "])
def test_whom_nothing_names_can_be_denied(who, claim):
    """With on_missing: deny, a request without a user is refused."""
    with pytest.raises(IdentityRequiredError):
        who({"on_missing": "deny"}, api_key=MASTER, claim=claim)
    assert who({"on_missing": "deny"}, api_key=MASTER, claim="bo").user == "bo"


def test_nobody_can_claim_to_be_nobody(who):
    """If names are required, the shared subject's name and LiteLLM's placeholder are refused as claims."""
    for claim in (ANONYMOUS, INTERNAL, "default_user_id"):
        with pytest.raises(SubjectNameError):
            who({"on_missing": "deny"}, api_key=MASTER, claim=claim)


@pytest.mark.parametrize(
    "claim", ["[1, 2]", "a\x00b", "x" * 300, ["bo"], "\ud800", '{"tenant": "t"}', '{"id'], ids=repr
)
def test_a_claim_that_is_no_name_gets_a_substitute(who, claim):
    """An invalid claim is one user, the same each time: it does not refuse the request and does not escape limits."""
    found = who(api_key=MASTER, claim=claim).user
    assert re.fullmatch(r"renamed-([\w@.-]+-)?[0-9a-f]{16}", found)
    assert who(api_key=MASTER, claim=claim).user == found
    assert who({"on_missing": "deny"}, api_key=MASTER, claim=claim).user == found


@pytest.mark.parametrize(("claim", "user"), [(5, "5"), (True, ANONYMOUS), ({"id": "bo"}, "bo"), ([], ANONYMOUS)])
def test_a_claim_need_not_be_text(who, claim, user):
    """Numbers and objects are read as in LiteLLM; a boolean names no user."""
    assert who(api_key=MASTER, claim=claim).user == user


def test_a_json_claim_can_be_mapped(who):
    """With identity.json_field, that field of a JSON claim is the user."""
    mapped = {"json_field": "account_uuid"}
    assert who(mapped, api_key=MASTER, claim='{"device_id": "d", "account_uuid": "bo", "session_id": "s"}').user == "bo"
    assert who(mapped, api_key=MASTER, claim=' {"account_uuid": " bo "}').user == "bo"
    assert who(mapped, api_key=MASTER, claim="bo").user == "bo"
    assert who(mapped, api_key=MASTER, claim='{"other": "bo"}').user == ANONYMOUS


@pytest.mark.parametrize(
    "claim", ['{"account_uuid": {"a": 1}}', '{"account_uuid": "{]"}', '{"account_uuid": "a\\u0000"}']
)
def test_a_mapped_field_that_is_no_name_gets_a_substitute(who, claim):
    """An invalid value of the operator's chosen field is one user, the same each time."""
    found = who({"json_field": "account_uuid"}, api_key=MASTER, claim=claim)
    assert found.user.startswith("renamed-")
    assert found == who({"json_field": "account_uuid"}, api_key=MASTER, claim=claim)


def test_a_mapped_field_that_is_missing_names_nobody(who):
    """With identity.json_field no other field names the user, not even in broken JSON."""
    for claim in ('{"account_uuid": ', "{" * 5_000, '{"account_uuid": null, "user_id": "bo"}'):
        assert who({"json_field": "account_uuid"}, api_key=MASTER, claim=claim).user == ANONYMOUS
    assert who({"json_field": "account_uuid"}, api_key=MASTER, claim='{"account_uuid": 5}').user == "5"
    assert who({"json_field": "account_uuid"}, api_key=MASTER, claim='{"account_uuid": "bo", "x').user == "bo"


def test_names_are_cleaned(who):
    """Names from every source are trimmed."""
    found = who(user_id=" ann ", team_id=" research ", key_alias=" k ", org_id=" corp ", claim=" bo ")
    assert (found.user, found.team, found.api_key_alias, found.organization, found.end_user) == (
        "ann",
        "research",
        "k",
        "corp",
        "bo",
    )


def test_case_is_folded_only_where_asked_for(who):
    """Ann and ann are two users, unless identity.casefold merges them."""
    assert who(user_id="Ann", team_id="Research").user == "Ann"
    folded = who({"casefold": True}, user_id="Ann", team_id="Research", org_id="Corp", claim="BO")
    assert (folded.user, folded.team, folded.organization, folded.end_user) == ("ann", "research", "corp", "bo")
    assert who({"casefold": True}, api_key=MASTER, claim="BO").user == "bo"
    assert who({"casefold": True, "user": "header:x-user"}, api_key=MASTER, headers={"x-user": "Eva"}).user == "eva"


# ── other dimensions ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_keys_hash_is_kept_and_never_the_key(key):
    """The API key is LiteLLM's hash; a plain key, if one ever arrives, is hashed."""
    assert (
        resolve(IdentityConfig(), key(api_key="sk-secret-1234"), {}, NO_RESOLVERS).api_key
        == hashlib.sha256(b"sk-secret-1234").hexdigest()
    )
    raw = key().model_copy(update={"api_key": "sk-secret-1234", "token": None})
    assert resolve(IdentityConfig(), raw, {}, NO_RESOLVERS).api_key == hashlib.sha256(b"sk-secret-1234").hexdigest()
    assert resolve(IdentityConfig(), key(api_key="0123abcd" * 8), {}, NO_RESOLVERS).api_key == "0123abcd" * 8
    for secret in ("sk-1", "plain-secret", "0123ABCD" * 8):
        kept = resolve(IdentityConfig(), key(api_key=secret), {}, NO_RESOLVERS).api_key
        assert re.fullmatch("[0-9a-f]{64}", kept)
        assert secret not in kept


def test_no_key_no_hash(key):
    """A request without a key has no API key, and is anonymous."""
    nothing = key().model_copy(update={"api_key": None, "token": None})
    found = resolve(IdentityConfig(), nothing, {}, NO_RESOLVERS)
    assert (found.api_key, found.user) == (None, ANONYMOUS)


def test_the_key_brings_team_organization_and_alias(who):
    """Team, organization and alias come from the key, never from the body."""
    found = who(
        team_id="research",
        org_id="corp",
        key_alias="laptop",
        user_id="ann",
        body={"team_id": "sales", "metadata": {"team": "sales", "user_api_key_team_id": "sales"}},
    )
    assert (found.team, found.organization, found.api_key_alias) == ("research", "corp", "laptop")


@pytest.mark.parametrize(
    ("body", "session"),
    [
        ({"litellm_session_id": "s-1"}, "s-1"),
        ({"metadata": {"session_id": "s-2"}}, "s-2"),
        ({"litellm_metadata": {"session_id": "s-3"}, "metadata": {"session_id": "s-2"}}, "s-3"),
        ({"litellm_session_id": "s-1", "metadata": {"session_id": "s-2"}}, "s-1"),
        ({"litellm_session_id": {"a": 1}}, None),
        ({"litellm_session_id": "a\x00b"}, None),
        ({"metadata": "text"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_a_session_is_found_or_left_out(who, body, session):
    """The session comes from LiteLLM's field or the metadata; an invalid one is omitted."""
    assert who(user_id="ann", body=body).session == session


def test_tags_are_taken_without_user_agents(who):
    """Tags come from the metadata, without duplicates, in order, without the User-Agent tags that LiteLLM adds."""
    tags = ["prod", "User-Agent: openai", "User-Agent: openai/1.0", " batch ", "prod"]
    assert who(user_id="ann", body={"metadata": {"tags": tags}}).tags == ("prod", "batch")
    assert who(user_id="ann", body={"litellm_metadata": {"tags": ["a"]}, "metadata": {"tags": ["b"]}}).tags == ("a",)


def test_at_most_16_tags_are_kept(who):
    """Of more than 16 tags the first 16 valid ones are kept."""
    tags = [None, 5, "a\nb", "", "x" * 300, '{"a": 1}', *(f"tag-{number}" for number in range(100))]
    found = who(user_id="ann", body={"metadata": {"tags": tags}}).tags
    assert found == tuple(f"tag-{number}" for number in range(MOST_TAGS))
    assert MOST_TAGS == 16


@pytest.mark.parametrize(
    "metadata", [None, "text", [], 5, {"tags": None}, {"tags": "prod"}, {"tags": {"a": 1}}, {"tags": 5}], ids=repr
)
def test_strange_metadata_has_no_tags(who, metadata):
    """Metadata that is not a mapping, or tags that are not a list, yield no tags."""
    assert who(user_id="ann", body={"metadata": metadata}).tags == ()


# ── in a running proxy ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def proxy_server(litellm_proxy, monkeypatch):
    """LiteLLM's proxy as a module, with a master key."""
    monkeypatch.setattr(litellm_proxy, "master_key", "sk-the-master-key")
    return litellm_proxy


HANDED_ON = {"api_key": "sk-the-master-key", "user_role": "proxy_admin"}


@pytest.mark.parametrize("master", ["sk-the-master-key", "a master key of another form"])
def test_the_master_key_is_known_behind_a_custom_auth(proxy_server, monkeypatch, who, master):
    """The master key is recognised as LiteLLM's hash of it or in plain text, and the request names the user."""
    monkeypatch.setattr(proxy_server, "master_key", master)
    handed_on = {**HANDED_ON, "api_key": master}
    for body, user in (({"user": "carol"}, "carol"), ({"metadata": {"user_id": "dave"}}, "dave"), ({}, ANONYMOUS)):
        found = who(body=body, **handed_on)
        assert (found.user, found.api_key) == (user, MASTER)
    assert who(claim="carol", **handed_on, user_id=proxy_server.litellm_proxy_admin_name).user == "carol"


def test_a_user_that_a_custom_auth_names_beats_the_request(proxy_server, who):
    """The user was authenticated, even if the request has the master key."""
    assert who(claim="carol", **HANDED_ON, user_id="eve").user == "eve"


@pytest.mark.parametrize("other", [{"api_key": "sk-another"}, {"user_role": "internal_user"}, {"user_role": None}])
def test_another_key_names_itself(proxy_server, who, other):
    """The key alone or the role alone is not sufficient."""
    assert who(claim="carol", **{**HANDED_ON, **other}).user.startswith("key-")


@pytest.mark.parametrize("master", [None, ""])
def test_without_a_master_key_no_key_is_it(proxy_server, monkeypatch, who, master):
    """A proxy without a master key recognises no key as one."""
    monkeypatch.setattr(proxy_server, "master_key", master)
    assert who(claim="carol", **HANDED_ON).user.startswith("key-")


def test_the_session_in_the_place_of_an_object_is_no_user(proxy_server, who):
    """On /v1/messages LiteLLM overwrites an object that has a session: a session must not become a user."""
    body = {"metadata": {"user_id": "5e55-10n5"}, "litellm_session_id": "5e55-10n5"}
    for key in ({"api_key": MASTER}, HANDED_ON):
        assert who(body=body, **key).user == ANONYMOUS


@pytest.fixture
def connected(monkeypatch):
    """Return a function that sets the headers of the current connection."""

    def connected(**headers):
        asked = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
        here = request_scope.RequestScope("/anthropic/v1/messages", asked)
        monkeypatch.setattr(request_scope, "current", SimpleNamespace(get=lambda: here))

    return connected


def test_headers_are_those_of_the_connection(connected, who):
    """Headers in the body are ignored: on pass-through routes the client has written all of it."""
    connected(x_u="ann", x_claude_code_session_id="s-1", x_claude_code_agent_id="explorer")
    found = who({"user": "header:X-U"}, api_key=MASTER, headers={"x-u": "bo"})
    assert (found.user, found.session, found.agent) == ("ann", "s-1", "explorer")


def test_of_two_headers_with_one_name_the_last_counts(connected, monkeypatch, who):
    """Of two headers with the same name the last one counts, as in LiteLLM."""
    asked = [(b"x-u", b"ann"), (b"x-u", b"bo")]
    monkeypatch.setattr(request_scope, "current", SimpleNamespace(get=lambda: request_scope.RequestScope("/", asked)))
    assert who({"user": "header:x-u"}, api_key=MASTER).user == "bo"


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "x-litellm-api-key", "x-goog-api-key", "x-own-key"])
def test_a_header_with_a_key_names_nobody(proxy_server, monkeypatch, connected, who, header):
    """A key must not be stored as a name, nor be shown to a plugin."""
    monkeypatch.setitem(proxy_server.general_settings, "litellm_key_header_name", "X-Own-Key")
    connected(**{header: "sk-secret"})
    assert who({"user": f"header:{header}"}, api_key=MASTER).user == ANONYMOUS


@pytest.mark.parametrize(
    ("body", "session"),
    [
        ({}, "claimed"),
        ({"litellm_session_id": "litellms"}, "litellms"),
        ({"metadata": {"session_id": "metas"}}, "metas"),
    ],
)
def test_a_session_in_a_claim_comes_last(who, body, session):
    """A session that LiteLLM has found takes precedence over the session in a claim."""
    claim = '{"device_id": "d", "account_uuid": "", "session_id": "claimed"}'
    assert who(user_id="ann", claim=claim, body=body).session == session
