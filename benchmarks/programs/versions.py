"""Prints the versions of those of the named distributions that are installed."""

import sys
from importlib.metadata import distributions

print(*sorted({f"{each.name} {each.version}" for each in distributions() if each.name in sys.argv[1:]}), sep=", ")
