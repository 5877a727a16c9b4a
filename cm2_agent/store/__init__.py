"""The store: runs, tasks, checklists, scores and labels in one SQL database, and the revisions of its schema."""

import lazy_loader

# The names stand once, in `__init__.pyi`: type checkers and the loader read them there.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
