"""The store: runs, checklists and scores in one SQL database."""
