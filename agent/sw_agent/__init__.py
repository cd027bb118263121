"""The toolkit: what a program imports to see, move and make spans itself. Without a running agent it does nothing."""

from .carrier import ContextCarrier
from .snapshot import ContextSnapshot, capture
from .toolkit import follows_from, tag, trace, trace_id, uninstall

__all__ = ["ContextCarrier", "ContextSnapshot", "capture", "follows_from", "tag", "trace", "trace_id", "uninstall"]
