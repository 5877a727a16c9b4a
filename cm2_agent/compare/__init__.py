"""Arms of training compared on a bundled desk: equal data, equal compute, many seeds (`cm2 compare`)."""
