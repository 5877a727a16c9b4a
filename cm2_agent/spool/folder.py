"""Where the spool of a store is, and what its files say of it."""

from __future__ import annotations

import hashlib
import os
from os import PathLike
from pathlib import Path

from sqlalchemy import make_url

from cm2_agent.incidents import logger
from cm2_agent.spool.files import LOCKS, Spool
from cm2_agent.store.schema import DEFAULT_PROJECT

__all__ = ["about", "default_folder", "spool_of"]

_VARIABLE = "CM2_SPOOL"
_BESIDE = ".spool"


def spool_of(url: str | None, project: str | None, folder: str | PathLike[str] | None) -> Spool | None:
    """The spool of the store behind a URL: in the folder that is given, else in the default one; None where there is
    neither (a database in memory, a store that is no database), and where files cannot be locked."""
    chosen = os.fspath(folder) if folder is not None else None if url is None else default_folder(url)
    if chosen is not None and not LOCKS:
        logger.warning("this system cannot lock files, so there is no spool: runs wait in memory alone")
        return None
    if chosen is None:
        return None
    return Spool(chosen, lambda: about(url, project), parents=folder is not None or not chosen.endswith(_BESIDE))


def about(url: str | None, project: str | None) -> dict[str, str]:
    """What the files of a spool say of whose runs they hold."""
    return {"store": _digest(url), "project": project or DEFAULT_PROJECT}


def default_folder(url: str) -> str | None:
    """The folder that CM2_SPOOL names, else one beside an SQLite file, else one under the user's state folder."""
    parsed = make_url(url)
    sqlite = parsed.get_backend_name() == "sqlite"
    if sqlite and (parsed.database in (None, "", ":memory:") or str(parsed.database).startswith("file:")):
        return None
    if given := os.environ.get(_VARIABLE):
        return given
    if sqlite:
        return f"{parsed.database}{_BESIDE}"
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return str(Path(state) / "cm2" / "spool" / _digest(url))


def _digest(url: str | None) -> str:
    """Which store it is, without its password and driver: alike however the URL is spelled."""
    if url is None:
        return "other"
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        name = os.path.realpath(parsed.database or "")
    else:
        name = f"{parsed.host or parsed.query.get('host', '')}:{parsed.port or 5432}/{parsed.database}"
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
