"""Version of mmtune."""

__version__ = "0.1.0"
