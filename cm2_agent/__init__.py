"""CM2: an agent SDK with pluggable checklist rewards. The face: what users type, each name imported when it is first
used.

The names stand once, in `__init__.pyi`: type checkers read them there, and so does the loader.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
