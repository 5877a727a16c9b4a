"""Checklists written by a model and tried on perturbed references."""
