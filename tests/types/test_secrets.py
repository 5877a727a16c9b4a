"""Secrets in the texts of failures are masked, whatever wrote the text, before anything is cut off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm2_agent.types.secrets import credential_name, error_text, mask_secrets
from tests.redaction.personal import JWTS, KEYS, PEMS, SECRETS


@pytest.mark.parametrize("value", [*KEYS, *JWTS, *PEMS])
@pytest.mark.parametrize("around", ["{}", "401: Incorrect API key provided: {}.", '{{"error": {{"key": "{}"}}}}'])
def test_what_is_known_by_its_form_is_masked(value: str, around: str) -> None:
    masked = mask_secrets(around.format(value))
    assert value not in masked
    assert "***" in masked


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_so_is_what_a_word_gives_away(text: str, secret: str) -> None:
    assert secret not in mask_secrets(f"cannot connect: {text}")


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: my-internal-key. You can find your key at https://example.com/keys",
        "invalid api key 'my-internal-key'",
        "Basic bXktaW50ZXJuYWwta2V5",
    ],
)
def test_an_error_is_masked_generously(text: str) -> None:
    masked = mask_secrets(text)
    assert "my-internal-key" not in masked
    assert "bXktaW50" not in masked


@pytest.mark.parametrize(
    "text",
    ["no such table: runs", "time out after 60 s", "Expected PROVIDER:MODEL with its key set", "step 7 of turn 2"],
)
def test_an_ordinary_error_stays(text: str) -> None:
    assert mask_secrets(text) == text


@given(st.text(max_size=200), st.sampled_from(KEYS), st.integers(1, 250))
def test_nothing_of_a_key_is_left_where_the_text_is_cut(before: str, key: str, longest: int) -> None:
    text = error_text(ValueError(f"{before} {key}"), longest)
    assert len(text) <= longest
    assert key[8:16] not in text or key[8:16] in before


def test_an_error_without_a_text_is_its_type() -> None:
    assert error_text(KeyError()) == "KeyError"
    assert error_text(TimeoutError()) == "TimeoutError"


def test_a_name_that_ends_otherwise_is_none_of_a_secret() -> None:
    assert not any(
        map(credential_name, ("passwords_allowed", "token_count", "secretary", "tokens", "keys", "api_keys_url"))
    )
