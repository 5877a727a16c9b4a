"""Rewards handed to other frameworks: TRL, verifiers, verl and ART. The names stand in `__init__.pyi`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
