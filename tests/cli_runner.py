"""Typer's runner of commands, which builds the tree of commands and options once and not anew for each command."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import typer.testing
from typer.main import get_command
from typer.testing import Result

_command = cache(get_command)


class CliRunner(typer.testing.CliRunner):
    """`invoke` as Typer has it: what a command prints, how it ends, and what it raises."""

    def invoke(
        self,
        app: typer.Typer,
        args: str | Sequence[str] | None = None,
        input: bytes | str | None = None,
        env: Mapping[str, str | None] | None = None,
        catch_exceptions: bool = True,
        color: bool = False,
        **extra: Any,
    ) -> Result:
        command, code = _command(app), 0
        raised: BaseException | None = None
        name = extra.pop("prog_name", None) or self.get_default_prog_name(command)
        with self.isolation(input=input, env=env, color=color) as streams:
            try:
                command.main(args=args or (), prog_name=name, **extra)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
                raised = end if code else None
                if isinstance(end.code, str):
                    sys.stdout.write(f"{end.code}\n")
            except Exception as error:
                if not catch_exceptions:
                    raise
                code, raised = 1, error
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
            out, err, both = (stream.getvalue() for stream in streams)
        return Result(
            runner=self,
            stdout_bytes=out,
            stderr_bytes=err,
            output_bytes=both,
            return_value=None,
            exit_code=code,
            exception=raised,
        )
