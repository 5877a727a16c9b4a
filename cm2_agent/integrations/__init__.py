"""Rewards handed to other frameworks (TRL, verifiers, verl, ART), and verdicts sent back to Langfuse, Phoenix and
LangSmith."""

import lazy_loader

# The names stand once, in `__init__.pyi`: type checkers and the loader read them there.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
