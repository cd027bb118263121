"""Start the agent in this interpreter, then run the `sitecustomize` that this file hides.

`sw-python run` puts this file's folder first on PYTHONPATH; Python imports it at start-up, before the program. Any
Python may come by here, also one that does not have the agent, so: the standard library only, and syntax that every
Python reads.
"""

import os
import sys


def _start_agent():
    if sys.version_info < (3, 10):
        return
    try:
        from sw_agent import _bootstrap
    except ImportError as error:
        if error.name == "sw_agent":
            return  # an interpreter of another environment, without the agent
        raise
    _bootstrap.start()


try:
    _start_agent()
except (Exception, SystemExit) as error:  # the program starts whatever happens here
    if sys.stderr is not None:
        sys.stderr.write("sw-python: the agent could not start: %s: %s\n" % (type(error).__name__, error))

# From here on all is as without this file: the next `sitecustomize` on the path, if there is one, takes this one's place
# in `sys.modules`; what its import raises, also that there is none, is handled by `site`, which imported this one. Only
# where another agent's `sitecustomize` has found and executed this one, none may be missing: that has work to do still.
sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(__file__)]
_this = sys.modules.pop("sitecustomize")
try:
    import sitecustomize
except ImportError as error:
    if getattr(error, "name", "") != "sitecustomize" or getattr(__spec__, "_initializing", False):
        raise
    sys.modules["sitecustomize"] = _this
