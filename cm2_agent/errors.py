"""The errors a user can meet, as one tree.

    CM2Error
    ├── TaskError         a task file or a task that cannot be used
    ├── ChecklistError    a checklist that is malformed, or can never pay
    ├── TraceError        a recorded trace or an imported record that is not what it should be
    ├── ModelError        a chat model could not be loaded or did not answer
    │   └── ContextOverflowError  what it was to read is longer than its context
    ├── ToolError         a tool, real or simulated, failed for reasons that are not the agent's
    ├── UserError         a simulated user failed
    ├── JudgeError        a judge failed; never a score
    │   └── BudgetExhausted   the judge may not be asked any more: what it was about to judge stays unscored
    │       └── JudgeRefused      its provider refuses every request: the key, the model's name or the credit is missing
    ├── GuardError        a run-time guard rejected every reply of the agent
    ├── StoreError        the database cannot be read, written or understood
    │   ├── ConflictError     the same name and version with other content
    │   ├── ClaimLost         another process has taken a piece of work over
    │   └── SchemaError       the database's schema is not this version's
    ├── TrainError        these groups or settings cannot be trained on
    │   └── TrainingDiverged  training went astray, and nothing was saved
    ├── SendError         another tool does not take what is sent to it
    └── MissingExtra      an optional dependency is not installed

Every message says what was given, what was expected and what to do.
"""

from __future__ import annotations

from importlib.util import find_spec


class CM2Error(Exception):
    """The root of the tree; also what the command line reports without a traceback."""


class TaskError(CM2Error):
    """A task, or a file of tasks, cannot be used."""


class ChecklistError(CM2Error):
    """A checklist is malformed, refers to what does not exist, or holds an item that can never pay."""


class TraceError(CM2Error):
    """A recorded trace or an imported record is not what it should be."""


class ModelError(CM2Error):
    """A chat model could not be loaded, or did not answer."""


class ContextOverflowError(ModelError):
    """What a chat model was to read is longer than its context."""


class ToolError(CM2Error):
    """A tool failed for reasons that are not the agent's doing (time-out, dead server, malformed simulation)."""


class UserError(CM2Error):
    """A simulated user gave no usable message (time-out, refusal, empty reply); not the agent's doing."""


class JudgeError(CM2Error):
    """A judge gave no usable verdict. A judge's failure is never a score."""


class BudgetExhausted(JudgeError):
    """A call of the judge that its budget does not allow: no failure of the judge, so no verdict of NULL either."""


class JudgeRefused(BudgetExhausted):
    """A judge whose provider refuses a request as it would any: a key, a model of that name or credit is missing."""


class GuardError(CM2Error):
    """A guarded agent broke a strict item, and its guard raises instead of answering in its place."""


class StoreError(CM2Error):
    """The database cannot be opened, read or written."""


class ConflictError(StoreError):
    """The same name and version was stored before with other content."""


class ClaimLost(StoreError):
    """A piece of work was taken over by another process, which took this one for dead: it stores the work itself."""


class SchemaError(StoreError):
    """The database's schema is newer than, or unknown to, this version of the code."""


class TrainError(CM2Error):
    """These groups or settings cannot be trained on; the message says which, why and what to do."""


class TrainingDiverged(TrainError):
    """Training went astray: a loss, a gradient, a weight or a log-probability is no number, or the policy collapsed.
    Nothing was saved."""


class SendError(CM2Error):
    """Another tool cannot be reached, or refuses whatever is sent to it: a key is missing, say."""


class MissingExtra(CM2Error):
    """An optional dependency is not installed; the message is the pip line to type.

    >>> raise MissingExtra("openai", "OpenAI-compatible endpoints")
    Traceback (most recent call last):
    ...
    cm2_agent.errors.MissingExtra: OpenAI-compatible endpoints need an extra: pip install "cm2-agent[openai]"
    """

    def __init__(self, extra: str, what: str, *, then: str | None = None) -> None:
        """`then` is a second line to type after it."""
        super().__init__(
            f'{what} need an extra: pip install "cm2-agent[{extra}]"' + ("" if then is None else f" && {then}")
        )


def require_extra(extra: str, what: str, *modules: str) -> None:
    """Raises MissingExtra where one of the modules is not installed. Imports none of them.

    >>> require_extra("train", "Local chat models", "json")
    >>> require_extra("train", "Local chat models", "no_such_module")
    Traceback (most recent call last):
    ...
    cm2_agent.errors.MissingExtra: Local chat models need an extra: pip install "cm2-agent[train]"
    """
    for module in modules:
        try:
            found = find_spec(module) is not None
        except ImportError:  # an import hook refuses it
            found = False
        if not found:
            raise MissingExtra(extra, what)
