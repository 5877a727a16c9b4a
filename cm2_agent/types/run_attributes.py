"""Names of the attributes by which a run says what it was part of; they travel as LangChain metadata and as span
attributes."""

from __future__ import annotations

# Names of the attributes by which a run says what it was part of. They travel as LangChain metadata and as span
# attributes.
TASK_ID = "cm2.task.id"


TASK_VERSION = "cm2.task.version"


TASK_TURNS = "cm2.task.turns"
"""The number of scripted turns, absent for a simulated user."""


ROLLOUT = "cm2.rollout"


GROUP = "cm2.group"
"""Which sampling of the task this was: rollouts of one group share it."""


CENSORED_TURN = "cm2.gate.turn"
"""The turn whose unsatisfied strict item ended the rollout."""


GATE = "cm2.gate.checklist"
"""Hash of the checklist whose strict items gated the rollout; absent where nothing did."""


CUT = "cm2.cut"
"""Why the rollout ended early for another reason than the gate, such as a limit of steps."""


GUARD = "cm2.guard.rejected"
"""What a run-time guard did not let pass: a list of `{"attempt": id, "failed": [item, …], "worth": less than
the chosen one's by this much (0 or below), "messages": [message, …]}`."""


GUARD_ATTEMPT = "cm2.guard.attempt"
"""Metadata of the calls within one attempt at a guarded turn: which attempt it was."""


GUARD_OUTCOME = "cm2.guard.outcome"
"""`accepted`: what the user was told passed the guard; `blocked`: nothing did, and the guard's own words were said."""


FACTS = "cm2.facts"
"""The name of the custom event by which a node tells facts of its run while it runs: a mapping of attributes."""


TOOL_BACKENDS = "cm2.tool.backends"
"""`{tool: real | record | replay | simulate | hybrid}` as canonical JSON."""


TOOL_BACKEND = "cm2.tool.backend"
"""Who answered one call: `real`, `record` (real, and written down), `replay` or `simulate`."""


TOOL_FAULT = "cm2.tool.fault"
"""The fault that was injected into one call: `timeout`, `error`, `empty` or `truncated`."""


SIMULATOR = "cm2.simulator"
"""What simulated the tools of the run: model, prompt, settings and seed; absent where nothing did."""


FAULTS = "cm2.tool.faults"
"""The rates and the seed of the faults injected into the run, as canonical JSON; absent where none were."""


USER = "cm2.user"
"""What simulated the user: model, prompt and settings; absent for scripted turns."""
