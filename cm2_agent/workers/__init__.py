"""Scoring by workers: on PostgreSQL a trace that is stored becomes a job, which any process of `cm2 work` may do."""
