"""Families of attacks, read from data files: how to change a failing trace, and what must stay unpaid then."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cm2_agent.errors import ChecklistError
from cm2_agent.types.check_specs import FORMS
from cm2_agent.types.json_values import content_hash
from cm2_agent.types.yaml_source import YamlError, read_yaml

from .draft import How

Where = Literal["reply", "message", "reasoning", "user", "tool", "arguments"]
PLACEHOLDER = re.compile(r"\$\{([a-z_]+)\}")
OF_ITEM = ("id", "question", "pass_condition", "good", "quote_from")
"""Placeholders of an item that is unpaid: the text is written once for each."""
OF_TRACE = ("step", "quote", "value", "near", "longer", "tool", "call")
"""Placeholders of the dialogue."""
MOST_TEXT = 200_000
"""Characters of a template's text, as often as it is repeated."""


class Template(BaseModel):
    """One way of changing a failing trace, in each turn in which something is unpaid."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    where: Where = Field(description="What is changed.")
    how: How = Field(default="append", description="Of a reply: append (default), prepend or replace.")
    text: str | None = Field(default=None, min_length=1, description="What is written there, with placeholders.")
    repeat: Annotated[int, Field(ge=1, le=5000, strict=True)] = Field(default=1, description="How often.")
    encode: Literal["tags", "zero_width"] | None = Field(
        default=None, description="tags: in invisible tag characters; zero_width: with invisible spaces in its words."
    )
    change: Literal["near_arguments", "duplicate_ids"] | None = Field(
        default=None, description="Instead of a text: the last call's arguments miss by one; a failed call gets a twin."
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if (self.text is None) == (self.change is None):
            raise ValueError("give exactly one of text and change")
        if self.change is not None and self.where != "arguments":
            raise ValueError(f"{self.change} changes calls: where must be arguments")
        if self.how != "append" and self.where != "reply":
            raise ValueError(f"how: {self.how} is for a reply")
        if self.text is not None:
            unknown = sorted(set(PLACEHOLDER.findall(self.text)) - {*OF_ITEM, *OF_TRACE})
            if unknown:
                known = ", ".join((*OF_ITEM, *OF_TRACE))
                raise ValueError(f"${{{unknown[0]}}} is no placeholder; expected one of {known}")
            if len(self.text) * self.repeat > MOST_TEXT:
                raise ValueError(f"the text is longer than {MOST_TEXT} characters")
        return self


class Family(BaseModel):
    """One family of attacks as its file writes it: every key there is."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    name: str = Field(min_length=1, pattern=r"^[a-z0-9][a-z0-9 \-]*$", description="In small letters.")
    description: str = Field(min_length=1, description="What it tries.")
    source: str = Field(min_length=1, description="Where it was described.")
    unpaid: str = Field(min_length=1, description="What must stay unpaid, in words.")
    satisfies: tuple[str, ...] = Field(
        default=("replied",), description="Checks that the changed trace rightly satisfies: they are not counted."
    )
    templates: tuple[Template, ...] = Field(min_length=1, max_length=64)

    @model_validator(mode="after")
    def _known(self) -> Self:
        unknown = [name for name in self.satisfies if name not in FORMS]
        if unknown:
            raise ValueError(f"satisfies: {unknown[0]!r} is no check; expected some of {', '.join(FORMS)}")
        return self


def shipped_families() -> tuple[Family, ...]:
    """The families that come with the package, by name.

    >>> from cm2_agent.rewards.certificate.families import shipped_families
    >>> len(shipped_families()) >= 15
    True
    """
    return read_families(files("cm2_agent.rewards.certificate").joinpath("attacks"))


def load_families(folder: str | Path | None = None, *, only: Sequence[str] = ()) -> tuple[Family, ...]:
    """The shipped families and those of a folder's YAML files, which replace shipped ones of their name; `only` those
    named. Raises ChecklistError."""
    found = {one.name: one for one in shipped_families()}
    if folder is not None:
        path = Path(folder)
        if not path.is_dir():
            raise ChecklistError(f"{folder} is no folder; expected one with attack families as YAML files")
        more = read_families(path)
        if not more:
            raise ChecklistError(f"{folder} holds no .yaml file; expected one a family of attacks")
        found |= {one.name: one for one in more}
    unknown = [name for name in only if name not in found]
    if unknown:
        raise ChecklistError(
            f"there is no family of attacks {unknown[0]!r}; expected some of {', '.join(sorted(found))}"
        )
    return tuple(found[name] for name in sorted(found) if not only or name in only)


def read_families(folder: Traversable) -> tuple[Family, ...]:
    """The families of a folder's YAML files, by name. Raises ChecklistError."""
    families = [_read(one) for one in folder.iterdir() if one.name.endswith(".yaml")]
    names = [one.name for one in families]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ChecklistError(f"two files name the family of attacks {twice!r}; give each its own name")
    return tuple(sorted(families, key=lambda one: one.name))


def families_hash(families: Sequence[Family]) -> str:
    """Names all that the families do: 12 hexadecimal digits."""
    return content_hash([one.model_dump(mode="json") for one in families])[:12]


def _read(file: Traversable) -> Family:
    try:
        document = read_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ChecklistError(f"{file.name}: cannot be read: {error}") from error
    except YamlError as error:
        raise ChecklistError(f"{file.name}:{error.line}: {error}") from error
    try:
        return Family.model_validate(document.data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        line = document.line(tuple(first["loc"]))
        raise ChecklistError(f"{file.name}:{line}: {place}: {first['msg'].removeprefix('Value error, ')}") from error


__all__ = [
    "MOST_TEXT",
    "OF_ITEM",
    "PLACEHOLDER",
    "Family",
    "Template",
    "families_hash",
    "load_families",
    "shipped_families",
]
