"""The quickstart: a bundled sample desk, its tiny policy, and the run that ties them together."""

import lazy_loader

# The names stand once, in `__init__.pyi`: type checkers and the loader read them there.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
