"""The loads, in the order of a whole run."""
