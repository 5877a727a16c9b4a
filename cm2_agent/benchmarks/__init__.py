"""Public benchmarks as environments to run agents in, each in a folder of its own."""
