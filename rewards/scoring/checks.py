"""Checks that run: a function, a function's name or data becomes a function of a View, and its answers a column."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from cm2_agent.errors import ChecklistError
from cm2_agent.types.check_specs import (
    FORMS,
    AtMost,
    Called,
    NeverCalled,
    NoToolError,
    OnlyCalled,
    Parsed,
    Replied,
    compile_pattern,
    parse_check,
)
from cm2_agent.types.checklist_item import Check, CheckFunction, Item
from cm2_agent.types.json_values import content_hash
from cm2_agent.types.secrets import error_text
from cm2_agent.types.view import View

from .shaping import ItemColumn

Resolved: TypeAlias = Callable[[View], bool]


def resolve(check: Check, functions: Mapping[str, CheckFunction] | None = None, *, item: str = "") -> Resolved:
    """The check as a function of a view. Raises ChecklistError: a name that no function was given for, malformed data,
    an async function."""
    where = f"item {item!r}: " if item else ""
    if isinstance(check, str):
        given = functions or {}
        if check not in given:
            hint = f"; as a check of its own it is written {{{check}: …}}" if check in FORMS else ""
            known = ", ".join(sorted(given)) or "none were given"
            raise ChecklistError(
                f"{where}the check names the function {check!r}, which is not among the given ones ({known}){hint};"
                " pass it in Python (functions=) or by --checks MODULE"
            )
        check = given[check]
    if isinstance(check, Mapping):
        try:
            return _from_data(parse_check(check))
        except ChecklistError as error:
            raise ChecklistError(f"{where}{error}") from error
    if not callable(check):
        raise ChecklistError(
            f"{where}the check is {check!r}; expected a function of a view, a function's name, or data"
        )
    if inspect.iscoroutinefunction(check) or inspect.iscoroutinefunction(type(check).__call__):
        raise ChecklistError(
            f"{where}the check {getattr(check, '__name__', check)!r} is async; expected a plain function of a view"
        )
    return check


def _from_data(data: Parsed) -> Resolved:
    if isinstance(data, Called):
        name, wanted, before = data.called, data.with_ or None, data.before
        if data.succeeded:
            return lambda view: any(call.response is not None and not call.failed for call in view.calls(name, wanted))
        return lambda view: view.called(name, with_=wanted, before=before)
    if isinstance(data, OnlyCalled):
        return _only_called(data)
    if isinstance(data, NeverCalled):
        banned = frozenset([data.never_called] if isinstance(data.never_called, str) else data.never_called)
        return lambda view: all(call.name not in banned for call in view.all_calls)
    if isinstance(data, AtMost):
        limits = data.at_most
        if isinstance(limits, int):
            return lambda view: len(view.all_calls) <= limits
        return lambda view: all(
            sum(call.name == name for call in view.all_calls) <= most for name, most in limits.items()
        )
    if isinstance(data, NoToolError):
        only = None if data.no_tool_error is True else data.no_tool_error
        names = None if only is None else frozenset([only] if isinstance(only, str) else only)
        return lambda view: not any(call.failed and (names is None or call.name in names) for call in view.all_calls)
    if isinstance(data, Replied):
        return lambda view: bool(view.replies)
    pattern = compile_pattern(data.reply_matches)
    return lambda view: any(pattern.search(_utf8(reply)) is not None for reply in view.replies)


def _only_called(data: OnlyCalled) -> Resolved:
    """Every successful call is matched to a listed one of its own (the largest matching, by augmenting paths: a call
    may fit several)."""
    among = frozenset(data.among)

    def check(view: View) -> bool:
        done = [call for call in view.all_calls if call.name in among and call.response is not None and not call.failed]
        fits = [{id(call) for call in view.calls(one.called, one.with_ or None)} for one in data.only_called]
        user_of: dict[int, int] = {}  # listed call → the done call that uses it up

        def place(index: int, tried: set[int]) -> bool:
            for listed, allowed in enumerate(fits):
                if listed not in tried and id(done[index]) in allowed:
                    tried.add(listed)
                    if listed not in user_of or place(user_of[listed], tried):
                        user_of[listed] = index
                        return True
            return False

        return all(place(index, set()) for index in range(len(done)))

    return check


def _utf8(text: str) -> str:
    """Text that RE2 can read: lone surrogates, which a model can emit through broken JSON escapes, become question
    marks."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def run_check(function: Resolved, item: Item, views: Sequence[View]) -> ItemColumn:
    """The item's column over a turn's views, one after each of its S steps (docs/method.md, "Kinds").

    A reach check is asked until it first answers yes, a hold check at the end alone (the ends-decided checks are hold
    items), an avoid check until it first answers yes, which is the violation. A check that raises or answers anything
    but true or false gives NULL: the checker's failure, never the agent's. Without a step every column stays in row 0,
    which is false."""
    if not views:
        return ItemColumn(value=False)
    asked = views[-1:] if item.kind == "hold" else views
    for row, view in enumerate(asked, len(views) - len(asked) + 1):
        try:
            answer = function(view)
        except Exception as error:  # whatever a user's function raises is its own failure, and this item's alone
            return _failed(f"the check raised {type(error).__name__}: {error_text(error)}")
        if not isinstance(answer, bool | np.bool_):
            return _failed(f"the check returned {type(answer).__name__} {str(answer)[:80]!r}; expected true or false")
        if answer and item.kind == "avoid":
            return ItemColumn(value=False, explanation=f"violated at step {row} of the scope")
        if answer:
            return ItemColumn(value=True, first_true_step=row)
    return ItemColumn(value=True, first_true_step=len(views)) if item.kind == "avoid" else ItemColumn(value=False)


def _failed(explanation: str) -> ItemColumn:
    return ItemColumn(value=None, reason="check failed", cause="infrastructure", explanation=explanation)


def load_functions(module: str | Path) -> dict[str, CheckFunction]:
    r"""The check functions of a Python module, by name: its public functions that take one argument, the view.

    It is what `--checks MODULE` does. The module is imported, so its code runs.

    Args:
        module: A dotted name, or the path of a .py file.

    Raises:
        ChecklistError: The module cannot be imported or holds no such function.

    >>> from pathlib import Path
    >>> from cm2_agent.rewards import load_functions
    >>> _ = Path("my_checks.py").write_text("def polite(view):\n    return 'please' in (view.reply or '')\n")
    >>> list(load_functions("my_checks.py"))  # then: load_checklist("support.yaml", load_functions("my_checks.py"))
    ['polite']
    """
    loaded = _import(module)
    found: dict[str, CheckFunction] = {
        name: value
        for name, value in vars(loaded).items()
        if inspect.isfunction(value)
        and not name.startswith("_")
        and value.__module__ == loaded.__name__
        and _takes_a_view(value)
    }
    if not found:
        raise ChecklistError(
            f"{module}: holds no check. Expected a public function of one argument, such as: def polite(view): …"
        )
    return found


def _takes_a_view(function: Callable[..., Any]) -> bool:
    parameters = list(inspect.signature(function).parameters.values())
    needed = [
        one for one in parameters if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    return len(needed) == 1 and bool(positional) and needed[0] is positional[0]


def _import(module: str | Path) -> ModuleType:
    text = str(module)
    try:
        if not text.endswith(".py"):
            return importlib.import_module(text)
        path = Path(text)
        if not path.is_file():
            raise ChecklistError(f"{text}: there is no such file. Expected a Python module with check functions")
        name = f"cm2_checks_{path.stem}_{content_hash(str(path.resolve()))[:8]}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ChecklistError(f"{text}: cannot be imported as a Python module")
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[name] = loaded  # dataclasses and inspect look their module up there
        spec.loader.exec_module(loaded)
        return loaded
    except ChecklistError:
        raise
    except Exception as error:  # an import runs the user's code, which may raise anything
        raise ChecklistError(
            f"{text}: cannot be imported: {type(error).__name__}: {error}. Expected a module or a .py file with checks"
        ) from error
