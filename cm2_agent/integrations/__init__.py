"""Rewards handed to other frameworks: TRL, verifiers, verl and ART."""
