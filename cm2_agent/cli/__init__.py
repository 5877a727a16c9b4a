"""The command line: one file a command group, one line of help each."""

from __future__ import annotations


def main() -> None:
    """The `cm2` command."""
    from cm2_agent.cli.app import app

    app()


__all__ = ["main"]
