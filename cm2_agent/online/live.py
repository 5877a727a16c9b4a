"""The live path of a graph's runs: from the user's thread to the saver, and from there to scorer and sinks.

What goes wrong here never comes back to the caller; it is counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cm2_agent.errors import ConflictError
from cm2_agent.incidents import logger
from cm2_agent.online.middleware import Middleware
from cm2_agent.online.saver import Saver
from cm2_agent.online.scoring import ScoringPath
