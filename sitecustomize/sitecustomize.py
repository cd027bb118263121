"""Start the agent in this interpreter, then run the `sitecustomize` that this file hides.

`sw-python run` puts this file's folder first on PYTHONPATH; Python imports it at start-up, before the program. Any
Python may come by here, also one that does not have the agent, so: the standard library only, and syntax that every
Python reads.
"""

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))


def _start_agent():
    try:
        from sw_agent import _bootstrap
    except ImportError:
        return  # an interpreter without the agent: another version or another environment
    _bootstrap.start()


def _run_hidden_sitecustomize():
    """Import the `sitecustomize` that Python would have found; what it raises is handled by `site` as ever."""
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE]
    ours = sys.modules.pop("sitecustomize", None)
    try:
        import sitecustomize  # noqa: F401
    except ImportError as error:
        if getattr(error, "name", None) != "sitecustomize":
            raise
        sys.modules["sitecustomize"] = ours  # there is none; Python's import ends by looking itself up


try:
    _start_agent()
except Exception as error:  # the program starts whatever happens here
    sys.stderr.write("sw-python: the agent could not start: %s: %s\n" % (type(error).__name__, error))
_run_hidden_sitecustomize()
