"""CM2 traces agents, scores every trace by checklists into SQL, and trains on the stored traces.

These are the names that most programs need: `watch`, `run` and `guard`, checklists and scores, the store, the trainers,
and the data types. Each is imported when it is first used.
"""

import lazy_loader

__version__ = "0.1.0"

# The names stand once, in `__init__.pyi`: type checkers and the loader read them there.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
