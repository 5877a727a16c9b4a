"""The command line `cm2`: one file for each command."""

from __future__ import annotations


def main() -> None:
    """The `cm2` command."""
    from cm2_agent.cli.app import app

    app()


__all__ = ["main"]
