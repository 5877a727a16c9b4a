"""Tasks from stored traces: personal data replaced, duplicates left out, held-out tasks by entity."""

from cm2_agent.datasets.entities import KEYS, entities_of
from cm2_agent.datasets.filters import Distinct, Selection, distinct
from cm2_agent.datasets.from_traces import UnfitTrace, task_from_trace, unfit, with_content_id
from cm2_agent.datasets.splits import Split, split
from cm2_agent.redaction.pii_rules import CARD, CREDENTIAL, EMAIL, IBAN, JWT, KEY, PEM, PHONE, SHIPPED, SSN
from cm2_agent.redaction.redactor import Redactor, key_from
from cm2_agent.redaction.rule import Rule

__all__ = [
    "CARD",
    "CREDENTIAL",
    "EMAIL",
    "IBAN",
    "JWT",
    "KEY",
    "KEYS",
    "PEM",
    "PHONE",
    "SHIPPED",
    "SSN",
    "Distinct",
    "Redactor",
    "Rule",
    "Selection",
    "Split",
    "UnfitTrace",
    "distinct",
    "entities_of",
    "key_from",
    "split",
    "task_from_trace",
    "unfit",
    "with_content_id",
]
