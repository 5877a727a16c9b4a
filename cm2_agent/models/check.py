"""`check_model`: what a model's folder says of stops, tools, thinking and formats, and a dialogue there and back.

Neither numbers of weights nor code of the folder are loaded: its configuration, the names and sizes of its weights, its
tokenizer and its chat template are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage

from cm2_agent.errors import ModelError, require_extra
from cm2_agent.models.adapters import plain_model
from cm2_agent.models.chat_template import history_hash, reasoning_of, template_messages
from cm2_agent.models.control_words import control_words_of
from cm2_agent.models.folder_check import FolderCheck, check_folder, vocabulary_findings
from cm2_agent.models.loading import load_tokenizer
from cm2_agent.models.local import LocalChatModel
from cm2_agent.models.model_files import read_json
from cm2_agent.models.model_source import model_source
from cm2_agent.models.reasoning_text import opening_tag
from cm2_agent.models.stop_tokens import configured_stops, eos_ids
from cm2_agent.models.template_probe import TOOL, completion_of, shared_length

__all__ = ["ModelCheck", "TokenLine", "check_model", "check_tokenizer"]

_NAME = TOOL["function"]["name"]
_ARGUMENTS = {"text": "Ada Lovelace", "count": 7}
_FRESH, _SAMPLED = "prompt", "sampled"


@dataclass(frozen=True)
class TokenLine:
    """One token of the dialogue: who it is from, its id and its text."""

    source: str
    id: int
    text: str


@dataclass(frozen=True, kw_only=True)
class ModelCheck:
    """What was found. `problems` are what would be lost, or keeps the model from being loaded or trained; `notes` what
    is worth knowing and loses nothing. `weights` are the model's class, size and dtype, "none" where it has none.

    `tokens` are those of a dialogue of five messages: a question, a call, its result, an answer, a question."""

    name: str
    weights: str = "none"
    stops: dict[int, str] = field(default_factory=dict)
    ending: str = ""
    tools: str = "cannot be used"
    calls: str = "none"
    thinking: str = "none"
    control_words: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tokens: list[TokenLine] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether it can be trained, weights provided, and nothing would be lost."""
        return not self.problems


def check_model(folder: str | Path, *, tools: bool = True) -> ModelCheck:
    """Check the folder of a model or of a LoRA adapter: whether its weights are whole, fit its configuration, its base
    and its tokenizer, and what the chat template does. No weight is read, and no code of the folder is run. `tools`
    False asks for dialogues without tools. A folder with a tokenizer alone is checked for formats, as `weights` says.

    Raises ModelError where the folder has neither a model nor a tokenizer, MissingExtra without the extra `train`.

    >>> from tempfile import TemporaryDirectory
    >>> from cm2_agent.models import byte_tokenizer, check_model
    >>> with TemporaryDirectory() as folder:
    ...     _ = byte_tokenizer().save_pretrained(folder)
    ...     check = check_model(folder)
    >>> check.ok, check.calls.partition(":")[0], check.stops
    (True, 'hermes', {258: '<|im_end|>'})
    >>> check.weights
    'none: formats alone were checked'
    """
    require_extra("train", "Checks of models", "torch", "transformers")
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(
            f"there is no folder {str(folder)!r}; expected the folder of a model, an adapter or a tokenizer"
        )
    source = model_source(folder)
    parts = check_folder(source)
    found = ModelCheck(name=folder.resolve().name, weights=parts.weights)
    try:
        tokenizer = load_tokenizer(source, ask=False)
        found = check_tokenizer(tokenizer, name=found.name, eos=_stops_of(folder, parts), tools=tools)
    except ModelError as error:
        if parts.model is None and not parts.problems:
            raise
        parts.problems.append(str(error))
    else:
        if parts.rows is not None:
            used = {token.id for token in found.tokens} | set(found.stops)
            used |= {tokenizer.pad_token_id} - {None}
            problems, notes = vocabulary_findings(tokenizer, parts.rows, used)
            parts.problems += problems
            parts.notes += notes
        if "response_schema" in _settings(folder):
            found.notes.append(
                "its response_schema is of a form that transformers no longer reads; the format of calls was found by a"
                " probe"
            )
    problems, notes = [*parts.problems, *found.problems], [*parts.notes, *found.notes]
    return replace(found, weights=parts.weights, problems=problems, notes=notes)


def _stops_of(folder: Path, parts: FolderCheck) -> tuple[int, ...]:
    """The stop tokens that training would find."""
    if parts.model is not None:
        return configured_stops(plain_model(parts.model))
    for name in ("generation_config.json", "config.json"):
        if (folder / name).exists():
            return eos_ids(read_json(folder / name).get("eos_token_id"))
    return ()


def _settings(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / "tokenizer_config.json")
    except ModelError:
        return {}


def check_tokenizer(tokenizer: Any, *, name: str, eos: Sequence[int] = (), tools: bool = True) -> ModelCheck:
    """Check a tokenizer with its chat template; `eos` are the stop tokens of the model's generation config.

    Raises ModelError where there is no chat template."""
    config = SimpleNamespace(_name_or_path=name, max_position_embeddings=None)
    config.get_text_config = lambda: config
    network = SimpleNamespace(config=config, generation_config=SimpleNamespace(eos_token_id=list(eos)))
    model = LocalChatModel(model=network, tokenizer=tokenizer, model_name=name, model_version="not loaded")
    profile = model.template
    special, marks = control_words_of(tokenizer)
    trip = _Trip(model, tools=tools and not profile.problems)
    found = ModelCheck(
        name=name,
        stops={id_: str(tokenizer.decode([id_])) for id_ in sorted(model._stops.ids)},
        ending=model._stops.ending,
        tools="shown" if not profile.problems else "cannot be used",
        calls=_calls(model) if not profile.problems else "none",
        thinking=_thinking(model),
        control_words=len(special | marks),
    )
    if tools:
        found.problems.extend(profile.problems)
    if model._stops.problem is not None:
        found.problems.append(model._stops.problem)
    trip.run()
    found.problems.extend(trip.problems)
    found.notes.extend([*_notes(model), *trip.notes])
    found.tokens.extend(trip.tokens)
    return found


def _calls(model: LocalChatModel) -> str:
    profile = model.template
    return f"{profile.calls.name}: {profile.calls.example}"


def _thinking(model: LocalChatModel) -> str:
    try:
        opened = model._dialogue.rendered([{"role": "user", "content": "Hello"}], None).text
    except Exception:  # jinja's own errors and what a template raises share no base
        return "the template refuses a user's message"
    tag = opening_tag(opened)
    shown = "not shown again" if model.template.reasoning_key is None else f"shown as {model.template.reasoning_key}"
    return f"the prompt opens it with {tag}; {shown}" if tag else shown


def _notes(model: LocalChatModel) -> list[str]:
    profile, tokenizer = model.template, model.tokenizer
    notes = [f"a call does not carry {loss} there and back" for loss in profile.losses if not profile.problems]
    if not profile.problems:
        if not profile.several_calls:
            notes.append("one call a message")
        if profile.short_ids:
            notes.append("ids of calls are written in nine letters and digits")
        if profile.arguments_as_text:
            notes.append("arguments are given to the template as a string of JSON")
    if model._stops.added:
        notes.append(
            f"the chat template ends a message with {' or '.join(model._stops.added)}, which the configuration does not"
            " name: it is a stop token too"
        )
    special = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    for id_ in sorted(model._stops.ids - special):
        if id_ < len(tokenizer):
            what = (
                f"{tokenizer.decode([id_])!r} ({id_}), which is text in this tokenizer: answers end where they hold it"
            )
        else:
            what = f"token {id_}, which this tokenizer does not have"
        notes.append(f"the configuration stops at {what}")
    if not profile.system_shown:
        notes.append("a system message is refused or not shown")
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id in model._stops.ids:
        notes.append("the padding token is a stop token: padding is told by the mask alone")
    return notes


class _Trip:
    """A dialogue as it would be sampled: each of the model's messages is what the template writes for it."""

    def __init__(self, model: LocalChatModel, *, tools: bool) -> None:
        self.model, self.offered = model, [TOOL] if tools else None
        self.tokenizer = model.tokenizer
        self.special = sorted(control_words_of(self.tokenizer)[0])
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.tokens: list[TokenLine] = []

    def run(self) -> None:
        """Write the five messages, and look for what is lost."""
        word = next((w for w in self.special if self.tokenizer.convert_tokens_to_ids(w) in self.model._stops.ids), "")
        asked = HumanMessage("Where is order 7?")
        history: list[BaseMessage] = [asked]
        said = ["Where is order 7?"]
        try:
            if self.offered:
                call = self._write(history, AIMessage("", tool_calls=[_call()]))
                history += [call, ToolMessage("It was shipped.", name=_NAME, tool_call_id=call.tool_calls[0]["id"])]
                said.append("It was shipped.")
            history += [self._write(history, AIMessage("Your order was shipped.")), HumanMessage(f"Thanks {word}")]
            said += ["Your order was shipped.", f"Thanks {word}".strip()]
            last = self._prompt(history)
        except _Lost:
            return
        text = self.tokenizer.decode(last)
        lost = [words for words in said if words not in text]
        if lost:
            self.problems.append(f"the last prompt does not hold {', '.join(map(repr, lost))}")
        clean = self.model.prompt_ids([*history[:-1], HumanMessage("Thanks")], self.offered)
        if word and last.count(self._id(word)) != clean.count(self._id(word)):
            self.problems.append(f"{word} in a user's words becomes a special token")
        whole = self._rendered(history)
        if whole is not None and whole != text:
            at = shared_length(whole, text)
            self.notes.append(
                "the template writes earlier messages otherwise than they were sampled, and the sampled tokens stay:"
                f" {text[at : at + 40]!r}, the template {whole[at : at + 40]!r}"
            )

    def _id(self, word: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(word))

    def _rendered(self, history: Sequence[BaseMessage]) -> str | None:
        return self._text(template_messages(history, self.model.template), self.offered)

    def _text(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, *, asks: bool = True
    ) -> str | None:
        try:
            return str(self.model._dialogue.rendered(messages, tools, asks=asks))
        except Exception:  # jinja's own errors and what a template raises share no base
            return None

    def _prompt(self, history: Sequence[BaseMessage]) -> list[int]:
        """The next prompt; adds what is new in it."""
        try:
            ids = self.model.prompt_ids(history, self.offered)
        except Exception as error:
            self.problems.append(f"the template refuses the dialogue after {len(history)} messages: {str(error)[:200]}")
            raise _Lost from error
        known = [token.id for token in self.tokens]
        if ids[: len(known)] != known:
            self.notes.append(f"the dialogue is encoded afresh after {len(history)} messages: a row of its own")
            self.tokens, known = [], []
        self._add(_FRESH, ids[len(known) :])
        return ids

    def _write(self, history: Sequence[BaseMessage], message: AIMessage) -> AIMessage:
        """The message as the model would sample it after this history."""
        from cm2_agent.models.generation import Generation, Request

        prompt = self._prompt(history)
        shown = template_messages([*history, message], self.model.template)
        try:
            whole = str(self.model._dialogue.rendered(shown, self.offered, asks=False))
        except Exception as error:
            self.problems.append(f"the template refuses an assistant's message: {str(error)[:200]}")
            raise _Lost from error
        words = self._text([*shown[:-1], {"role": "assistant", "content": "CM2WORDS"}], self.offered, asks=False) or ""
        before = words.partition("CM2WORDS")[0] if "CM2WORDS" in words else ""
        text = completion_of(self.model._dialogue.rendered(shown[:-1], self.offered).text, whole, before)[0]
        opened = opening_tag(self.tokenizer.decode(prompt[-64:]))
        closing = opened.replace("<", "</", 1).replace("[", "[/", 1)
        if opened and closing not in text:  # the template leaves out thinking that the model must end
            text = f"{closing}\n\n{text}"
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        stop = next((place for place, id_ in enumerate(ids) if id_ in self.model._stops.ids), None)
        ids = ids if stop is None else ids[: stop + 1]
        request = Request(
            prompt_ids=prompt, sampling=self.model._sampling({}), stop_ids=self.model._stops.ids, seed=(0,)
        )
        drawn = Generation(completion_ids=ids, logprobs=[0.0] * len(ids), stopped=stop is not None)
        hashed = history_hash(history, self.offered)
        result = self.model._result(request, drawn, hashed, None, self.offered)
        read = result.generations[0].message
        assert isinstance(read, AIMessage)
        self._compare(read, message, text)
        self._add(_SAMPLED, ids)
        return read

    def _compare(self, read: AIMessage, written: AIMessage, text: str) -> None:
        wanted = [(call["name"], call["args"]) for call in written.tool_calls]
        got = [(call["name"], call["args"]) for call in read.tool_calls]
        if got == wanted and read.content == written.content:
            return
        found = f"calls {got}" if wanted else f"words {read.content!r}"
        why = "".join(f" ({call['error']})" for call in read.invalid_tool_calls)
        thought = f" and thinking {reasoning_of(read)!r}" if reasoning_of(read) else ""
        self.problems.append(f"a message written as {text[:200]!r} is read as {found}{thought}{why}")
        if wanted and not got:
            raise _Lost

    def _add(self, source: str, ids: Sequence[int]) -> None:
        self.tokens.extend(TokenLine(source, id_, str(self.tokenizer.decode([id_]))) for id_ in ids)


class _Lost(Exception):
    """The dialogue cannot go on."""


def _call() -> Any:
    return {"name": _NAME, "args": dict(_ARGUMENTS), "id": "call_0123456789abcdef", "type": "tool_call"}
