"""A program that hands work over in every way Python has, and prints who each piece of work takes for its owner.

Each way has places: the `submitter` of the work, the `builder` of its object before, the `runner` who runs it. In each
place a context variable of the program's has the place's name, and a span of that name is current. The work looks at
both; printed is one JSON object, {way: [place of the variable, place of the span]}, with null for nobody's.
"""

from __future__ import annotations

import atexit
import contextvars
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

if sys.argv[1:] == ["gevent"]:
    from gevent import monkey

    monkey.patch_all()

from handing_over import WAYS, Seen, look, place, places

for part in ("ways_asyncio", "ways_pools", "ways_processes", "ways_that_stay", "ways_threads"):
    importlib.import_module(part)


def run(ways: dict[str, Callable[[], Seen]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, function in ways.items():
        try:
            seen = contextvars.Context().run(function)
            found[name] = [seen[0], places.get(seen[1], seen[1])]
        except Exception as error:
            found[name] = repr(error)
    return found


def at_exit(found: dict[str, Any]) -> None:
    seen = look()
    print(json.dumps({**found, "atexit": [seen[0], places.get(seen[1], seen[1])]}))


if __name__ == "__main__":
    if sys.argv[1:] == ["look"]:
        print(json.dumps(look()))
    elif sys.argv[1:] == ["gevent"]:
        from ways_greenlets import GEVENT_WAYS

        print(json.dumps(run(GEVENT_WAYS)))
    else:
        under_gevent = json.loads(subprocess.check_output([sys.executable, __file__, "gevent"]))
        with place("submitter"):
            atexit.register(at_exit, {**run(WAYS), **under_gevent})
