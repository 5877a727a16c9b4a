"""Graphs: the agent's tool loop, conversations of many turns, users, tools and who answers in their place. The names
stand in `__init__.pyi`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
