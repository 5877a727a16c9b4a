"""What our trainers change in all of TRL's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .divergence import StopsWhenAstray
from .master_weights import MasterWeightsMixin
from .output_folder import saving


class TRLMixin(StopsWhenAstray, MasterWeightsMixin):
    """Stops when it goes astray, steps on float32 master weights of a half-precision model, and writes no model card:
    TRL's says of which base model and data set it is, and knows neither.
    """

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes nothing; run.json and report.json say what was trained on what."""

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with saving(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(*args, **kwargs)
