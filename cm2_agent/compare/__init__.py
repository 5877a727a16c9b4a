"""What experiments on a bundled desk need: whole rounds of scored rollouts, sampled without a graph."""
