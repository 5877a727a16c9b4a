"""Real servers on the package as users install it: `make apps`, and a stage of CI. One JSON line a server.

    python -m tests.apps

It needs a package index for the environment that it makes; CM2_APPS_ENVIRONMENT names one made before."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from tests.apps import langgraph_dev, servers
from tests.apps.environment import environment


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="cm2-apps-") as made:
        folder, began = Path(made), time.monotonic()
        where = environment(folder)
        print(json.dumps({"environment": round(time.monotonic() - began, 1)}), flush=True)
        print(json.dumps(langgraph_dev.check(where, folder / "langgraph-dev")), flush=True)
        for result in servers.check(where, folder):
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
