def register(descriptor: int) -> bool:
    """Write a byte into this descriptor at SIGTERM; return false where somebody else handles that signal."""

def unregister() -> None:
    """Let SIGTERM do again what it does by default, unless somebody else handles it now."""
