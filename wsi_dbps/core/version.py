"""The package's version, as written into every file it makes."""

from importlib.metadata import version

__version__ = version("wsi-dbps")
