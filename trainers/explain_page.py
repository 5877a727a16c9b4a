"""An explained trace as one HTML file that needs nothing else.

Every word of a trace is escaped, and the page's own policy forbids scripts, so that hostile dialogues are only ever
read.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

from .explain import Explanation, Part

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)


@dataclass(frozen=True, kw_only=True)
class Token:
    """One token as the page shows it: `text` is what it reads as, or its id; `about` what is known of it."""

    text: str
    about: str


def page(found: Explanation) -> str:
    """The HTML text. Its Content-Security-Policy allows the page's own style sheet, by its hash, and nothing else: no
    script, no image, no font, no form, no request."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    folder = files("cm2_agent") / "templates"
    style = (folder / "rows.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["visible"] = visible
    template = environment.from_string((folder / "rows.html").read_text(encoding="utf-8"))
    # The style sheet is ours; it alone is not escaped, since its hash is over what the browser reads.
    return template.render(found=found, tokens=_tokens, policy=policy, style=Markup(style))  # noqa: S704 (our own)


def visible(text: str) -> str:
    """The text with control, direction and invisible characters spelled out, and marks where lines end."""
    spelled = _INVISIBLE.sub(lambda one: one.group().encode("unicode_escape", "surrogatepass").decode(), text)
    return spelled.replace("\n", "⏎\n").replace("\t", "⇥")


def _tokens(part: Part) -> Iterator[Token]:
    for place, id in enumerate(part.ids):
        text = "" if part.texts is None else visible(part.texts[place])
        about = f"{id}: {part.fate}, {part.why}"
        if part.logprobs is not None and place < len(part.logprobs):
            about += f", log probability {part.logprobs[place]:.3f}"
        yield Token(text=text or str(id), about=visible(about))


__all__ = ["page", "visible"]
