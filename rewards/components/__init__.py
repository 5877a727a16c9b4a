"""Rewards beside the checklist, and the stack that combines them."""
