"""Identity resolvers name the users of requests whose key has none; their failures never charge another user."""

from __future__ import annotations

from typing import Any

import pytest

from usage_plugin.config import IdentityConfig
from usage_plugin.domain.subjects import ANONYMOUS, Subjects
from usage_plugin.errors import ResolverFailedError, SubjectNameError
from usage_plugin.plugins import identity_resolvers as resolvers_module
from usage_plugin.plugins.identity_resolvers import Resolvers
from usage_plugin.plugins.interface import Claim, IdentityResolver
from usage_plugin.testing.clock import FakeClock
from usage_plugin.tracking.notifications.plugin_failures import PluginFailures


class Badges(IdentityResolver):
    name = "badges"

    def __init__(self) -> None:
        self.seen: list[Claim] = []
        self.answer: Any = None

    def user_of(self, claim: Claim) -> str | None:
        self.seen.append(claim)
        if isinstance(self.answer, Exception):
            raise self.answer
        return claim.jwt.get("email") or self.answer or claim.headers.get("x-badge")


class Who:
    """Resolve requests with a resolver."""

    def __init__(self, key: Any) -> None:
        self.badges = Badges()
        self.failures = PluginFailures(FakeClock())
        self.resolvers = Resolvers({"badges": self.badges}, self.failures)
        self.resolvers.choose(["badges"], [])
        self._key = key

    def __call__(self, *, headers: Any = None, claim: Any = None, config: Any = None, **fields: Any) -> Subjects:
        from usage_plugin.proxy.identity import resolve  # noqa: PLC0415  # imports LiteLLM

        chosen = IdentityConfig(**{"user": ["resolver:badges", "end_user"], **(config or {})})
        body = {"user": claim, "proxy_server_request": {"headers": headers or {}}}
        return resolve(chosen, self._key(**fields), body, self.resolvers)


@pytest.fixture
def who(litellm: Any, key: Any) -> Who:
    return Who(key)


def test_a_resolver_finds_who_it_is(who: Who) -> None:
    """A user may come from the headers or a verified token; if a resolver does not know it, the next source may."""
    assert who(headers={"X-Badge": "ann"}, claim="bo").user == "ann"
    assert who(headers={"X-Badge": "ann"}, jwt_claims={"email": "eva@corp"}).user == "eva@corp"
    assert who(claim="bo").user == "bo"
    assert who().user == ANONYMOUS
    claim = who.badges.seen[0]
    assert (claim.end_user, claim.headers, dict(claim.jwt)) == ("bo", {"x-badge": "ann"}, {})
    assert "hash-of-a-key" not in repr(claim)


def test_its_names_are_names_like_others(who: Who) -> None:
    """A resolver's answer is trimmed, folded and refused like any name."""
    who.badges.answer = "  Ann "
    assert who(config={"casefold": True}).user == "ann"
    who.badges.answer = "x" * 300
    with pytest.raises(SubjectNameError):
        who()


def test_a_key_of_ones_own_is_not_asked_about(who: Who) -> None:
    """The owner of a key takes precedence over every source, and no resolver is called."""
    assert who(user_id="eva", headers={"x-badge": "ann"}).user == "eva"
    assert who.badges.seen == []


@pytest.mark.parametrize("answer", [ValueError("oops"), 5, ["ann"]], ids=repr)
def test_one_that_raises_refuses_the_request(who: Who, answer: Any) -> None:
    """If a resolver fails, no other user is charged: the client gets 503, and the failure is counted."""
    from usage_plugin.proxy.handler import _as_answer  # noqa: PLC0415

    who.badges.answer = answer
    with pytest.raises(ResolverFailedError) as error:
        who(claim="bo")
    refused = _as_answer(error.value, "acompletion")
    assert (refused.code, refused.type, refused.headers) == ("503", "identity_unavailable", {"Retry-After": "1"})
    assert "oops" not in refused.message
    (source,) = who.failures._waiting
    assert source == ("unresolved", "badges", "user_of")


def test_one_that_takes_its_time_is_named_once(
    who: Who, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A resolver that blocks the worker is logged once."""
    monkeypatch.setattr(resolvers_module, "SLOW_NS", -1)
    for _ in range(3):
        who(headers={"x-badge": "ann"})
    assert caplog.text.count("identity.resolver_slow") == 1
