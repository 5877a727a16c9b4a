"""Figures about scores: agreement with people, ranking, differences between reward versions, and the report."""
