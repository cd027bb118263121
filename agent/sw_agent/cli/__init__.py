"""The command `sw-python`: one module a command."""


def main() -> int:
    """Run the command line and return the exit status."""
    return 2
