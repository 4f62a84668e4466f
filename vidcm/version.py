"""The version of the package, for whatever records it; imports nothing."""

__version__ = "0.1.0"
