"""A broker that needs no server: kombu's folder of files, in which a message appears whole.

kombu's own (5.6) writes a message where a consumer may read it half-written.
"""

import os
import time
import uuid
from pathlib import Path
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps


class Channel(filesystem.Channel):
    def _put(self, queue: str, payload: Any, **_: Any) -> None:
        name = f"{time.monotonic_ns()}_{uuid.uuid4()}.{queue}.msg"
        hidden = Path(self.data_folder_out, f".{name}")
        hidden.write_text(dumps(payload))
        hidden.rename(Path(self.data_folder_out, name))


class Transport(filesystem.Transport):
    Channel = Channel


def settings(folder: Path) -> dict[str, object]:
    """Return the settings of a Celery application that has its broker in a folder."""
    folders = dict.fromkeys(("data_folder_in", "data_folder_out", "control_folder"), os.fspath(folder))
    return {
        "broker_url": "filesystem://",
        "broker_transport": "broker:Transport",
        "broker_transport_options": {**folders, "polling_interval": 0.05},
    }
