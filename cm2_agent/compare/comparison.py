"""A comparison in a folder: a file a finished cell, and from these the summary and the manifest."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cm2_agent.benchmarks.training_desk import TrainingDesk
from cm2_agent.errors import StoreError, TrainError
from cm2_agent.types.json_file import write_json

from .claim import claim
from .experiment import Cell, Experiment
from .manifest import comparable, manifest, provenance
from .results import pending, summary
from .trial import LOCKS, Trial

EXPERIMENT, SUMMARY, MANIFEST = "experiment.json", "comparison.json", "manifest.json"


class Comparison:
    """An experiment that is carried out in the folder `out`, cell by cell, by one process or several. It goes on where
    it was killed; one of another experiment is refused.

    Args:
        desk: where the arms are compared.
        experiment: what is compared.
        out: the folder.
        progress: called with what is being done, how much of it is done, and how much there is.

    Raises:
        StoreError: the folder holds another experiment.
    """

    def __init__(
        self,
        desk: TrainingDesk,
        experiment: Experiment,
        out: Path,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.desk, self.experiment, self.out = desk, experiment, out
        self.progress = progress or (lambda what, done, total: None)
        self.trial = Trial(desk=desk, experiment=experiment, out=out, progress=self.progress)
        mark, what = out / EXPERIMENT, {"desk": desk.name, **experiment.to_json()}
        if not mark.exists():
            write_json(mark, what)
        elif json.loads(mark.read_text(encoding="utf-8")) != json.loads(json.dumps(what)):
            raise StoreError(f"{out} holds another experiment ({mark.name}); give another folder with --out")

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """The finished cells by their keys."""
        files = sorted((self.out / "cells").glob("[!.]*.json"))
        return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}

    def run(self, most: int | None = None) -> dict[str, Any]:
        """Carry out what is left, at most so many cells; returns the summary, which is in `comparison.json` too.

        Several processes may work in one folder: each takes cells that no other one has begun, and waits where those
        that are left are all begun, since the test's cells are known only when all are tuned.
        """
        done = 0
        while (most is None or done < most) and (left := pending(self.experiment, self.results)):
            self.progress("cells", len(self.results), len(self.results) + len(left))
            if any(self._finish_unclaimed(cell) for cell in left):
                done += 1
            else:
                time.sleep(1)  # others have begun all that is left; files tell nobody when they end
        return self.save()

    def _finish_unclaimed(self, cell: Cell) -> bool:
        """Carry a cell out, unless another process has begun it or finished it since."""
        with claim(self.out / LOCKS / cell.key) as mine:
            if not mine or self._file(cell).exists():
                return False
            self.finish(cell)
            self.save()
            return True

    def _file(self, cell: Cell) -> Path:
        return self.out / "cells" / f"{cell.key}.json"

    def finish(self, cell: Cell) -> dict[str, Any]:
        """Carry out one cell and write its file."""
        result = self.trial.run(cell)
        result["provenance"] = provenance(self.desk, self.experiment, cell, self.trial.evaluation(cell))
        write_json(self._file(cell), result)
        return result

    def save(self) -> dict[str, Any]:
        """Write summary and manifest of what is finished, and return the summary."""
        results = self.results
        found = {**summary(self.experiment, results), "left": len(pending(self.experiment, results))}
        write_json(self.out / SUMMARY, found)
        write_json(self.out / MANIFEST, manifest(self.desk, self.experiment, results))
        return found


def repeat(desk: TrainingDesk, row: Mapping[str, Any], experiment: Experiment, out: Path) -> dict[str, Any]:
    """Carry out the cell of a manifest's row again, in a folder of its own; returns what differs, by name, with what
    was written then and what came now. Times may differ, and so may the commit: it is among the differences.

    Raises:
        TrainError: the row is of another desk, reward or set of tasks than there is now, so that its numbers could not
            come again.
    """
    cell = Cell(**row["cell"])
    then = row["provenance"]
    comparison = Comparison(desk, experiment, out)
    now = provenance(desk, experiment, cell, comparison.trial.evaluation(cell))
    for name in ("desk", "experiment", "checklist", "reward", "training_tasks", "evaluation_tasks"):
        if then[name] != now[name]:
            raise TrainError(
                f"{row['key']}: the {name.replace('_', ' ')} was {then[name]!r} and is {now[name]!r}; check out commit"
                f" {then['commit']}, whose numbers these are"
            )
    result = comparable(comparison.finish(cell))
    result = json.loads(json.dumps(result))
    return {
        **{name: [then[name], now[name]] for name in ("commit", "code", "hardware") if then[name] != now[name]},
        **{name: [row["figures"][name], value] for name, value in result.items() if row["figures"][name] != value},
    }
