"""A plugin of pytest's: list what the agent has contained, which no test sees, in the file `$CONTAINED_FAILURES`."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def pytest_sessionfinish() -> None:
    """Write a line for each place in the agent that has failed in this process."""
    containment = sys.modules.get("sw_agent._containment")
    if containment is not None:
        with Path(os.environ["CONTAINED_FAILURES"]).open("a") as file:
            file.writelines(f"{place}\n" for place in containment.failures)
