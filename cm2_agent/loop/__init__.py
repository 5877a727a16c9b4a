"""Rounds of run, score, train, evaluate and promote in one folder (`cm2 loop`)."""
