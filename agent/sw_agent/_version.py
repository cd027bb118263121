"""The agent's version, where the build reads it too: to ask the distribution for it would be to read files."""

VERSION = "0.1.0"
