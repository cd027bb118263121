"""Processes."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.managers
import multiprocessing.pool
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from handing_over import WAYS, Looked, Seen, look, place, way

PROGRAM = str(Path(__file__).with_name("ways.py"))
fork = multiprocessing.get_context("fork")


def send_look(sending: Any) -> None:
    sending.send(look())


def in_process(method: str) -> Seen:
    context: Any = multiprocessing.get_context(method)
    receiving, sending = context.Pipe(duplex=False)
    with place("builder"):
        process = context.Process(target=send_look, args=(sending,))
    with place("submitter"):
        process.start()
    seen: Seen = receiving.recv()
    process.join(30)
    return seen


for _method in ("fork", "spawn", "forkserver"):
    WAYS[f"Process, {_method}"] = lambda method=_method: in_process(method)  # type: ignore[misc]


@way("os.fork")
def _os_fork() -> Seen:
    reading, writing = os.pipe()
    with place("submitter"):
        child = os.fork()
        if not child:
            os.write(writing, pickle.dumps(look()))
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        return pickle.load(pipe)  # type: ignore[no-any-return]


@way("subprocess")
def _subprocess() -> Seen:
    with place("submitter"):
        return tuple(
            json.loads(subprocess.check_output([sys.executable, str(Path(__file__).with_name("ways.py")), "look"]))
        )


class Manager(multiprocessing.managers.BaseManager): ...


Manager.register("look", callable=lambda: list(look()))


@way("manager")
def _manager() -> Seen:
    with place("submitter"):
        manager = Manager(ctx=fork)
        manager.start()
        seen = tuple(manager.look()._getvalue())  # type: ignore[attr-defined]
    manager.shutdown()
    return seen


class LooksWhenPickled:
    def __init__(self) -> None:
        self.work = Looked()

    def __reduce__(self) -> Any:
        self.work()
        return str, ()


@way("multiprocessing.Queue feeder")
def _feeder() -> Seen:
    items: Any = fork.Queue()
    item = LooksWhenPickled()
    with place("submitter"):
        items.put(item)
    seen = item.work.seen()
    items.get(timeout=30)
    items.close()
    items.join_thread()
    return seen
