"""What our trainers change in all of TRL's."""

from __future__ import annotations

from typing import Any

from .divergence import StopsWhenAstray
from .master_weights import MasterWeightsMixin


class TRLMixin(StopsWhenAstray, MasterWeightsMixin):
    """Stops when it goes astray, steps on float32 master weights of a half-precision model, and writes no model card:
    TRL's says of which base model and data set it is, and knows neither.
    """

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes nothing; run.json and report.json say what was trained on what."""
