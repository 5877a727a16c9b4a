"""The quickstart: a bundled sample app, its tiny policy, and the run that ties them together."""
