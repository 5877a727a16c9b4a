"""`python -m tests.docs_reference` makes docs/reference anew; `--check` names stale pages and exits 1."""

from __future__ import annotations

import argparse
import sys

from tests.docs_reference import COMMAND, stale, write

parser = argparse.ArgumentParser(
    prog=COMMAND, description="Bring the pages of docs/reference up to date with the code."
)
parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is stale")
if parser.parse_args().check:
    names = stale()
    if names:
        sys.exit(f"docs/reference is stale: {', '.join(names)}; type: {COMMAND}")
else:
    print("changed:", ", ".join(write()) or "nothing")
