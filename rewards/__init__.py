"""Rewards: checklists and their scorer, judges, what can be put beside them, and checklists that a model writes."""

import lazy_loader

# The names stand once, in `__init__.pyi`: type checkers and the loader read them there.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
