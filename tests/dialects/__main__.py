"""Records all spans of `tests/dialects/recorded` anew, each by the instrumentation that writes them, in an environment
of its own: `make spans`, or `python -m tests.dialects NAME …` for some. Vercel's needs Node.js and npm."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
RECORDED = Path(__file__).with_name("recorded")
_OURS = ("lazy_loader", "opentelemetry-sdk==1.45.2", "pydantic", "openai==3.57.0", "httpx")
# The official instrumentation and the package that it writes by are not pinned together: these two fit.
_OFFICIAL = ("opentelemetry-instrumentation-openai-v2==2.4b0", "opentelemetry-util-genai==1.1b0")
_EARLIER = ("opentelemetry-instrumentation-openai-v2==2.3b0", "wrapt<2")
_LANGCHAIN = ("langchain==1.5.2", "langchain-openai==1.7.4", "langgraph==1.2.24")
ENVIRONMENTS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("openai-v2", "openai-v2-details"): _OFFICIAL,
    ("openai-v2-events",): _EARLIER,
    ("openinference-openai", "openinference-langchain"): (
        "openinference-instrumentation-openai==0.1.66",
        "openinference-instrumentation-langchain==0.1.80",
        *_LANGCHAIN,
    ),
    ("traceloop-openai",): ("opentelemetry-instrumentation-openai==0.62.4",),
    ("traceloop-openai-indexed",): ("opentelemetry-instrumentation-openai==0.40.14", "wrapt<2"),
    ("vercel",): (),
}
"""What is recorded in one environment → its packages."""
_NODE = (
    *("ai@6.0.326", "@ai-sdk/openai-compatible@2.0.92", "zod@4.6.7"),
    *("@opentelemetry/sdk-trace-node@2.12.1", "@opentelemetry/sdk-trace-base@2.12.1", "@opentelemetry/api@1.9.1"),
)


def main(wanted: list[str]) -> None:
    known = [name for names in ENVIRONMENTS for name in names]
    if unknown := sorted(set(wanted) - set(known)):
        raise SystemExit(f"nothing is recorded as {', '.join(unknown)}; expected some of {', '.join(known)}")
    for names, packages in ENVIRONMENTS.items():
        chosen = [name for name in names if not wanted or name in wanted]
        if chosen:
            with tempfile.TemporaryDirectory() as folder:
                _record(chosen, packages, Path(folder))


def _record(names: list[str], packages: tuple[str, ...], folder: Path) -> None:
    python = str(folder / "venv" / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *_OURS, *packages], check=True)
    if "vercel" in names:
        (folder / "package.json").write_text("{}", encoding="utf-8")
        subprocess.run(["npm", "install", "--silent", *_NODE], cwd=folder, check=True)
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name in names:
        command = [python, "-m", "tests.dialects.record", name, str(RECORDED / f"{name}.json")]
        subprocess.run(command, cwd=folder, env=variables, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
