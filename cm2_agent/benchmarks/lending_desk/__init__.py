"""The second bundled desk, for experiments: a library's lending desk whose tasks have as many turns as one asks for."""
