"""Tool calls as transformers' own response parser reads them, for formats that a tokenizer or TRL describes.

Stricter than the parser alone, which reads a call that the text broke off and skips what it cannot read."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cm2_agent.models.tool_call_text import CallText

__all__ = ["TemplateFormat", "known_templates"]

_END = "\x00"  # ends every closing mark that may still grow, and is none itself
_THINKING = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True, kw_only=True)
class TemplateFormat:
    """A format that a `response_template` describes; `source` says where it is from."""

    spec: Mapping[str, Any]
    source: str

    @property
    def name(self) -> str:
        return f"response template of {self.source}"

    @property
    def example(self) -> str:
        """How a call begins, as the template says."""
        field = self.spec.get("fields", {}).get("tool_calls", {})
        return str(field.get("open") or field.get("open_pattern") or "a call as the chat template writes it")

    def read_whole(self, text: str, prefix: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, str, list[CallText]]:
        """Thinking, the text outside the calls, and the calls; `prefix` is the end of the prompt. Nothing is raised."""
        from transformers.utils.chat_parsing import ResponseParser

        try:
            parser = ResponseParser(
                dict(self.spec), prefix=prefix if self._anchored(prefix) else "", tools=[dict(tool) for tool in tools]
            )
            events = [*parser.initial_events, *parser.feed(text), *parser.feed(_END)]
            whole, _ = parser.finalize()
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            return "", "", [CallText(text=text, name=None, error=f"the call cannot be read: {str(error)[:300]}")]
        calls = self._calls(events, text)
        thinking = next((whole[key] for key in _THINKING if isinstance(whole.get(key), str)), "")
        said = whole.get("content")
        return _clean(thinking), _clean(said if isinstance(said, str) else ""), calls

    def _anchored(self, prefix: str) -> bool:
        import regex

        anchor = self.spec.get("start_anchor")
        if anchor is not None:
            return any(one in prefix for one in ([anchor] if isinstance(anchor, str) else anchor))
        return regex.search(self.spec["start_anchor_pattern"], prefix) is not None

    def _calls(self, events: Sequence[Mapping[str, Any]], text: str) -> list[CallText]:
        """The calls that were closed before the text ended, and one that is in error for each that was not."""
        calls: list[CallText] = []
        body: list[str] | None = None
        for event in events:
            if event.get("field") != "tool_calls":
                continue
            if event["type"] == "region_open":
                body = []
            elif event["type"] == "region_chunk" and body is not None:
                body.append(event["text"])
            elif event["type"] == "region_close":
                written = "".join(body or ())
                value = event["value"]
                calls += [self._call(one, written) for one in (value if isinstance(value, list) else [value])]
                body = None
        if body is not None:
            calls.append(CallText(text=_clean("".join(body)) or text, name=None, error="the tool call is not closed"))
        return calls

    def _call(self, value: Any, written: str) -> CallText:
        function = value.get("function") if isinstance(value, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        arguments = function.get("arguments", {}) if isinstance(function, dict) else None
        if not isinstance(name, str) or not name:
            return CallText(text=written, name=None, error="a call without a tool's name")
        if not isinstance(arguments, dict):
            return CallText(text=written, name=name, error="the arguments are not an object")
        if (skipped := self._skipped(written)) is not None:
            return CallText(text=written, name=name, error=f"an argument cannot be read: {skipped[:80]!r}")
        return CallText(text=written, name=name, arguments=arguments)

    def _skipped(self, written: str) -> str | None:
        """What stands between the arguments of a call in tags and is neither a closing tag nor punctuation."""
        import regex

        field = self.spec["fields"]["tool_calls"]
        pattern = field.get("content_args", {}).get("tag_pattern")
        if field.get("content") != "xml-inline" or pattern is None:
            return None
        rest = regex.sub(pattern, "", written, flags=regex.DOTALL)
        rest = regex.sub(r"</[\w:]+>|[\s,]", "", rest)
        return rest or None


def _clean(text: str) -> str:
    return text.replace(_END, "").strip()


def known_templates(tokenizer: Any) -> list[TemplateFormat]:
    """The response templates that may fit, best first: the tokenizer's own, TRL's for this chat template, and TRL's
    others, since a chat template of a newer revision often writes calls as the last did."""
    specs: list[tuple[Any, str]] = [(getattr(tokenizer, "response_template", None), "the tokenizer")]
    try:
        from trl import chat_template_utils
    except ImportError:
        pass
    else:
        marked = copy.copy(tokenizer)
        try:
            chat_template_utils.add_response_schema(marked)
        except (ValueError, AttributeError):  # TRL does not know the template
            pass
        else:
            specs.append((marked.response_template, "TRL"))
        specs += [
            (value, f"TRL ({name.removesuffix('_template')})")
            for name, value in sorted(vars(chat_template_utils).items())
            if name.endswith("_template") and isinstance(value, dict)
        ]
    return [
        TemplateFormat(spec=spec, source=source)
        for spec, source in specs
        if isinstance(spec, Mapping) and "tool_calls" in (spec.get("fields") or {})
    ]
