"""Every trace becomes an environment: stored dialogues into tasks, with personal data replaced, duplicates set aside and held-out tasks
apart."""

from cm2_agent.environments.compiling import UnfitTrace, named, task_from_trace, unfit
from cm2_agent.environments.entities import KEYS, entities_of
from cm2_agent.environments.personal import Redactor, key_from
from cm2_agent.environments.rules import CARD, EMAIL, KEY, PHONE, SHIPPED, Rule
from cm2_agent.environments.selecting import Distinct, Selection, distinct
from cm2_agent.environments.splitting import Split, split

__all__ = [
    "CARD",
    "EMAIL",
    "KEY",
    "KEYS",
    "PHONE",
    "SHIPPED",
    "Distinct",
    "Redactor",
    "Rule",
    "Selection",
    "Split",
    "UnfitTrace",
    "distinct",
    "entities_of",
    "key_from",
    "named",
    "split",
    "task_from_trace",
    "unfit",
]
