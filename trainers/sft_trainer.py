"""TRL's SFTTrainer on rows of tokens."""

from __future__ import annotations

from trl import SFTTrainer

from .divergence import StopsWhenAstray
from .master_weights import MasterWeightsMixin


class RowSFTTrainer(StopsWhenAstray, MasterWeightsMixin, SFTTrainer):
    """SFTTrainer that stops when it goes astray, and steps on float32 master weights of a half-precision model."""
