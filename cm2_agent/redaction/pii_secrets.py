"""The rules for secrets: API keys, JSON Web Tokens, PEM blocks, passwords and other values that a word gives away."""

from __future__ import annotations

import re

from cm2_agent.redaction.rule import BASE32, Draw, Rule
from cm2_agent.types.secrets import (
    KEY_PREFIXES,
    credential_name,
    credential_value,
    find_credentials,
    find_jwts,
    find_keys,
    find_pem,
)

_LENGTHS = {"github_pat_": 60, "AKIA": 16, "ASIA": 16, "AIza": 35, "glpat-": 20, "hf_": 34}
_LENGTHS |= dict.fromkeys(("sk_live_", "sk_test_", "rk_live_", "rk_test_", "pk_live_"), 24)
_LENGTHS |= dict.fromkeys(("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "npm_"), 36)
"""How many characters follow a prefix in a placeholder: as many as in the issuer's keys, elsewhere 40."""


def _form(prefix: str) -> tuple[int, str]:
    return _LENGTHS.get(prefix, 40), BASE32.upper() if prefix in ("AKIA", "ASIA") else BASE32


def _make_key(value: str, draw: Draw) -> str:
    prefix = next((prefix for prefix in KEY_PREFIXES if value.startswith(prefix)), "")
    length, letters = _form(prefix)
    return f"{prefix}REDACTED{draw(letters, length - 8)}"


def _made_key(prefix: str) -> str:
    length, letters = _form(prefix)
    return f"{re.escape(prefix)}REDACTED[{letters[0]}-{letters[25]}2-7]{{{length - 8}}}"


def _make_jwt(value: str, draw: Draw) -> str:
    return f"eyJREDACTED.{draw(BASE32, 20)}.{draw(BASE32, 20)}"


def _make_credential(value: str, draw: Draw) -> str:
    return f"REDACTED{draw(BASE32, 16)}"


KEY = Rule("key", find=find_keys, make=_make_key, made="|".join(map(_made_key, (*KEY_PREFIXES, ""))))
JWT = Rule("jwt", find=find_jwts, make=_make_jwt, made=r"eyJREDACTED\.[a-z2-7]{20}\.[a-z2-7]{20}")
PEM = Rule("pem", find=find_pem)
CREDENTIAL = Rule(
    "credential",
    find=find_credentials,
    make=_make_credential,
    made="REDACTED[a-z2-7]{16}",
    key=credential_name,
    whole=credential_value,
)

__all__ = ["CREDENTIAL", "JWT", "KEY", "PEM"]
