"""A live graph: watched, guarded, scored in the background."""
