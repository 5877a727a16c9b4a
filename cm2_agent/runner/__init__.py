"""Tasks to rollouts to scores: where graphs, rewards and the store meet."""
