"""The graders of an OpenAI evaluation as a checklist: what a model judges becomes a question, the rest functions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cm2_agent.errors import TraceError
from cm2_agent.importers.chat import mapping_of
from cm2_agent.types.checklist_item import ChecklistModel, ItemModel
from cm2_agent.types.json_values import JSON

_UNEXACT = (
    "OpenAI computes it by means that its documentation does not fix (tokens, embeddings), so that pass and fail could"
    " differ. Take fuzzy_match, or write a check function"
)
_SAMPLE = re.compile(r"\{\{\s*sample\.\w+\s*\}\}")
_ITEM = re.compile(r"\{\{\s*item[.\w\[\]]*\s*\}\}")


@dataclass(frozen=True, kw_only=True)
class Graders:
    """The checklist, and the source of the module that holds its functions (None where it needs none)."""

    checklist: ChecklistModel
    checks: str | None


def read_graders(data: JSON) -> Graders:
    """An evaluation (`testing_criteria`), a list of graders, or one → its checklist. `multi` becomes its parts, weighed
    as a sum of them weighs them.

    Raises:
        TraceError: it holds no grader, or one that a checklist cannot carry out to the same verdict; the message names
            it and why.

    >>> check = {"type": "string_check", "name": "polite", "input": "{{ sample.output_text }}", "operation": "like"}
    >>> [item.id for item in read_graders([{**check, "reference": "please"}]).checklist.items]
    ['polite']
    """
    known = mapping_of(data)
    listed = data if isinstance(data, list) else known.get("testing_criteria", [known.get("grader", data)])
    graders = [pair for one in (listed if isinstance(listed, list) else []) for pair in _single(mapping_of(one))]
    if not graders:
        raise TraceError("holds no grader; expected an evaluation with testing_criteria, or a list of graders")
    items: list[ItemModel] = []
    functions: list[str] = []
    used: set[str] = set()
    for grader, weight in graders:
        identity = _identity(str(grader.get("name") or grader.get("type")), used)
        if grader.get("type") in ("score_model", "label_model"):
            items.append(ItemModel(id=identity, question=_question(grader), turn="trace", weight=weight))
            continue
        items.append(ItemModel(id=identity, check=identity, kind="hold", turn="trace", weight=weight))
        doc = str(grader.get("name") or identity).replace("\\", " ").replace('"', "'").replace("\n", " ")
        functions.append(
            f'def {identity}(view: View) -> bool:\n    "{doc}"\n    return passes({dict(grader)!r}, view)\n'
        )
    name = str(known.get("name") or "openai-evals")
    head = (
        '"""Graders of an evaluation, written by cm2 import openai-evals."""\n\nfrom cm2_agent import View\n'
        "from cm2_agent.rewards.openai_graders import passes\n\n\n"
    )
    checks = head + "\n\n".join(functions) if functions else None
    return Graders(checklist=ChecklistModel(name=name, items=tuple(items)), checks=checks)


def _single(grader: Mapping[str, JSON]) -> Iterator[tuple[Mapping[str, JSON], float]]:
    """A grader with its weight; the parts of one that combines others."""
    kind, name = grader.get("type"), grader.get("name")
    if kind == "string_check":
        if grader.get("operation") not in ("eq", "ne", "like", "ilike"):
            raise TraceError(
                f"grader {name!r} has operation {grader.get('operation')!r}; expected eq, ne, like or ilike"
            )
    elif kind == "text_similarity":
        if grader.get("evaluation_metric") != "fuzzy_match":
            raise TraceError(f"grader {name!r} measures {grader.get('evaluation_metric')}: {_UNEXACT}")
        if not isinstance(grader.get("pass_threshold"), int | float):
            raise TraceError(f"grader {name!r} has no pass_threshold; expected a number from 0 to 1")
    elif kind == "multi":
        parts = mapping_of(grader.get("graders"))
        weights = _weights(str(grader.get("calculate_output") or ""), set(parts), name)
        for part, weight in weights.items():
            for inner, share in _single({"name": part, **mapping_of(parts[part])}):
                yield inner, weight * share
        return
    elif kind not in ("score_model", "label_model"):
        raise TraceError(
            f"grader {name!r} is of type {kind!r}; expected string_check, text_similarity, score_model, label_model or"
            " multi. Code of a file is never run: write a check function of your own"
        )
    yield grader, 1.0


def _weights(expression: str, parts: set[str], name: JSON) -> dict[str, float]:
    """The weights of a sum of parts (`0.7 * a + 0.3 * b`, `(a + b) / 2`). Raises TraceError for what is none."""

    def terms(node: ast.expr, scale: float) -> Iterator[tuple[str, float]]:
        if isinstance(node, ast.Name) and node.id in parts:
            yield node.id, scale
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            yield from terms(node.left, scale)
            yield from terms(node.right, scale)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
            left, right = node.left, node.right
            if isinstance(node.op, ast.Mult) and isinstance(left, ast.Constant):
                left, right = right, left
            if not isinstance(right, ast.Constant) or not isinstance(right.value, int | float) or not right.value > 0:
                raise ValueError
            yield from terms(left, scale * right.value if isinstance(node.op, ast.Mult) else scale / right.value)
        else:
            raise ValueError

    found: dict[str, float] = {}
    try:
        for part, weight in terms(ast.parse(expression.strip() or "?", mode="eval").body, 1.0):
            found[part] = found.get(part, 0.0) + weight
    except (SyntaxError, ValueError, RecursionError):
        raise TraceError(
            f"grader {name!r} calculates {expression[:80]!r}; expected a sum of its graders with positive weights, such"
            " as 0.7 * a + 0.3 * b: a checklist pays items, each by its weight"
        ) from None
    return found


def _question(grader: Mapping[str, JSON]) -> str:
    """The grader's instructions as a yes/no question. Raises TraceError where they show what a judge does not see."""
    said = grader.get("input")
    messages = [str(mapping_of(one).get("content")) for one in (said if isinstance(said, list) else [])]
    text = " ".join(_SAMPLE.sub("the assistant's last reply", "\n".join(messages)).split())
    if _ITEM.search(text):
        raise TraceError(
            f"grader {grader.get('name')!r} shows its model {_ITEM.findall(text)[0]}, which a judge of dialogues does"
            " not see. Write the question yourself, or a check function"
        )
    if grader.get("type") == "label_model":
        labels, good = grader.get("labels"), grader.get("passing_labels")
        return f"{text} Of the labels {_listed(labels)}: is the right one {' or '.join(map(str, good or []))}?"
    low, high = (*(grader.get("range") or (0, 1)), 1)[:2]
    return f"{text} On a scale from {low} to {high}: is the score at least {grader.get('pass_threshold', high)}?"


def _listed(values: JSON) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list) else str(values)


def _identity(name: str, used: set[str]) -> str:
    base = re.sub(r"\W+", "_", name.casefold()).strip("_") or "grader"
    base = base if base.isidentifier() and base.isascii() else f"grader_{len(used) + 1}"
    found = base
    while found in used:
        found = f"{base}_{len(used) + 1}"
    used.add(found)
    return found


__all__ = ["Graders", "read_graders"]
