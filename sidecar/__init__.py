"""auth-sidecar: an HTTP proxy that keeps the tokens of unmodified scripts fresh."""

__version__ = "0.1.0"
