"""An answer that a guardrail keeps from the client has been paid for all the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.proxy.conftest import LIMITS, proxy_config, running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.proxy.conftest import Upstream

pytestmark = pytest.mark.proxy

GUARD = """
from fastapi import HTTPException
from litellm.integrations.custom_guardrail import CustomGuardrail


class Refusing(CustomGuardrail):
    async def async_post_call_success_hook(self, data, user_api_key_dict, response):
        raise HTTPException(400, "kept from you")
"""


def test_an_answer_that_a_guardrail_refuses_is_charged(tmp_path: Path, upstream: Upstream) -> None:
    """The provider has answered: the event is a failure with its tokens and its cost."""
    (tmp_path / "guard.py").write_text(GUARD)
    config = proxy_config(upstream, {"limits": LIMITS})
    parameters = {"guardrail": "guard.Refusing", "mode": "post_call", "default_on": True}
    config["guardrails"] = [{"guardrail_name": "refusing", "litellm_params": parameters}]
    with running(tmp_path, config) as proxy:
        text = json.dumps({"in": 0, "out": 1000})
        body = {
            "model": "cent",
            "user": "dollar-guard",
            "max_tokens": 2000,
            "messages": [{"role": "user", "content": text}],
        }
        answer = proxy.post("/v1/chat/completions", body)
        assert (answer.status_code, "kept from you" in answer.text) == (400, True)
        (event,) = proxy.events("dollar-guard")
        assert (event["status"], event["cost"], event["output_tokens"]) == ("failure", "0.01", 1000)
        account = proxy.limit("dollar", user="dollar-guard")
        assert (account["spent"], account["reserved"]) == ("0.01", "0.00")
