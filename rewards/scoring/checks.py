"""Checks that run: a function, a function's name or data becomes a function of a View, and its answers a column."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from cm2_agent.errors import ChecklistError
from cm2_agent.types.check_specs import FORMS, parse_check
from cm2_agent.types.checklist_item import Check, CheckFunction, Item, Kind
from cm2_agent.types.json_values import content_hash
from cm2_agent.types.not_applicable import NOT_APPLICABLE, NotApplicable
from cm2_agent.types.secrets import error_text
from cm2_agent.types.trace import Trace
from cm2_agent.types.view import View

from .data_checks import FailureUnknown, LastingCheck, data_check
from .payments import INAPPLICABLE
from .shaping import ItemColumn

Resolved: TypeAlias = Callable[[View], bool | NotApplicable]
UNKNOWN_FAILURE = "failure not recorded"
"""The reason of a NULL that hangs on whether a call failed: the recording is to blame, no agent and no judge."""


def resolve(
    check: Check,
    functions: Mapping[str, CheckFunction] | None = None,
    *,
    item: str = "",
    kind: Kind = "reach",
) -> Resolved:
    """The check as a function of a view, of the item of this id and kind. Raises ChecklistError: a name that no
    function was given for, malformed data, an async function."""
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
            return data_check(parse_check(check), forbidden=kind == "avoid")
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


def run_check(check: Resolved, item: Item, trace: Trace, turn: int | None, steps: int) -> ItemColumn:
    """The item's column over a scope of so many steps, 1 or more (docs/method.md, "Kinds").

    A reach check is asked after each step until it first answers yes, a hold check at the end alone (the ends-decided
    checks are hold items), an avoid check until it first answers yes, which is the violation. A check that raises an
    Exception or answers anything but true or false gives NULL, which is the agent's where it follows the trace. So does
    one that hangs on whether a call failed where the recording does not tell. Where the last answer is NOT_APPLICABLE,
    and none was yes, the item does not apply."""
    try:
        row = _first_row(check, item, trace, turn, steps)
    except _DoesNotApply:
        return INAPPLICABLE
    except FailureUnknown as error:
        return ItemColumn(value=None, reason=UNKNOWN_FAILURE, cause="infrastructure", explanation=str(error))
    except Exception as error:  # whatever a user's function raises is its own failure, and this item's alone
        return failed(error)
    if item.kind == "avoid":
        violation = None if row is None else f"violated at step {row} of the scope"
        return ItemColumn(value=row is None, first_true_step=steps if row is None else None, explanation=violation)
    if row is None:
        return ItemColumn(value=False)
    return ItemColumn(value=True, first_true_step=steps if item.kind == "hold" else row)


def _first_row(check: Resolved, item: Item, trace: Trace, turn: int | None, steps: int) -> int | None:
    """The first row, among those in which an item of its kind is asked, in which the check answers yes."""
    if isinstance(check, LastingCheck):
        step = check.first_step(View(trace=trace, turn=turn, seen=steps, agent=item.agent))
        return None if step is None else step + 1
    answer: bool | NotApplicable = False
    for row in range(steps if item.kind == "hold" else 1, steps + 1):
        answer = check(View(trace=trace, turn=turn, seen=row, agent=item.agent))
        if answer is NOT_APPLICABLE:
            continue
        if not isinstance(answer, bool | np.bool_):
            raise _NoAnswer(
                f"returned {type(answer).__name__} {str(answer)[:80]!r}; expected true, false or NOT_APPLICABLE"
            )
        if answer:
            return row
    if answer is NOT_APPLICABLE:
        raise _DoesNotApply
    return None


class _DoesNotApply(Exception):
    """The item does not apply to the scope."""


class _NoAnswer(Exception):
    """A check answered something else than true or false."""


FAILED = "check failed"
_BROUGHT_ABOUT = (RecursionError, MemoryError)
"""What a dialogue can bring about by its size or depth."""


def failed(error: BaseException) -> ItemColumn:
    """The column of a check that raised. A dialogue is held to be the cause of what it can bring about, and of what
    stops more than the check."""
    try:
        what = error_text(error)
    except Exception:  # an exception's text is the user's code too
        what = "(its text cannot be read)"
    why = what if isinstance(error, _NoAnswer) else f"raised {type(error).__name__}: {what}"
    by_content = isinstance(error, _BROUGHT_ABOUT) or not isinstance(error, Exception)
    return ItemColumn(
        value=None,
        reason=FAILED,
        cause="content" if by_content else "infrastructure",
        explanation=f"the check {why}",
    )


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
