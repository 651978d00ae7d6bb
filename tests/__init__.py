"""The tests; a package, so that nobody else's of this name, which some libraries bring along, takes its place."""
