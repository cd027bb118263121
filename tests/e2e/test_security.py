"""What docs/security.md says: files are their owner's, nothing listens, no stray code is run, no secret is said."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launched import PRELUDE, SW_PYTHON, Launch, own_environ
from made_spans import LARGE, send, span
from receivers import grpc_collector, http_collector, nobody
from sw_agent.export.store import Store, read_traces

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="rights of files are POSIX's")


# Files


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that everybody may write to, as /tmp is."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


def write(path: Path) -> list[str]:
    store = Store(str(path), LARGE)
    try:
        return [loss.detail for loss in send(store, [span()])]
    finally:
        store.close()


@pytest.fixture(params=[0, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_folders_and_files_are_the_users_alone_whatever_the_umask(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "a" / "b" / "traces.db"), LARGE)
    assert send(store, [span()]) == []
    try:
        rights = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a").rglob("*")}
        assert rights == {"b": 0o700} | dict.fromkeys(("traces.db", "traces.db-wal", "traces.db-shm"), 0o600)
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    finally:
        store.close()


def test_a_store_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    path.touch()
    first = Store(str(path), LARGE)
    assert send(first, [span(1)]) == []
    for name in os.listdir(tmp_path):
        (tmp_path / name).chmod(0o666)
    assert write(path) == []
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
    first.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("planted", ["traces.db", "traces.db-wal", "traces.db-shm"])
def test_a_file_that_another_user_has_put_there_is_not_written(shared: Path, planted: str) -> None:
    path = shared / "traces.db"
    assert write(path) == []
    (shared / planted).touch()
    (shared / planted).chmod(0o666)
    os.chown(shared / planted, 12345, -1)
    before = (shared / planted).read_bytes()

    (said,) = write(path)

    assert f"{planted} belongs to another user" in said
    assert (shared / planted).read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root writes into the files of others")
def test_root_may_write_into_a_users_store(tmp_path: Path) -> None:
    path = tmp_path / "traces.db"
    assert write(path) == []
    os.chown(path, 12345, -1)
    assert write(path) == []


def test_a_link_that_leads_elsewhere_makes_no_file_there(shared: Path, tmp_path: Path) -> None:
    (shared / "traces.db").symlink_to(tmp_path / "elsewhere")
    (said,) = write(shared / "traces.db")
    assert "File exists" in said
    assert not (tmp_path / "elsewhere").exists()


# The network


LISTENING = """
import os
def listening():
    states = {}
    for kind in "tcp", "tcp6":
        for line in open(f"/proc/self/net/{kind}").read().splitlines()[1:]:
            fields = line.split()
            states[f"socket:[{fields[9]}]"] = fields[3]
    opened = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if name.isdecimal()
              and os.path.lexists(f"/proc/self/fd/{name}")]
    return [states[name] for name in opened if states.get(name) in ("0A", "07")]
with S("work"):
    pass
trace.get_tracer_provider().force_flush()
print(listening())
import socket
with socket.create_server(("127.0.0.1", 0)):
    print(listening())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_nothing_listens_in_a_traced_program(launch: Launch, protocol: str) -> None:
    with (grpc_collector if protocol == "grpc" else http_collector)() as collector:
        app = launch(
            LISTENING,
            SW_EXPORT_TO="otlp,local",
            SW_EXPORT_ENDPOINT=collector.endpoint,
            SW_EXPORT_PROTOCOL=protocol,
        )
        assert app.end() == "[]\n['0A']\n"
        assert collector.names == ["work"]


COMMANDS = ["traces"], ["show", "last"], ["plugins"], ["doctor"], ["config"]
WATCHED = f"""
import sys
def hook(event, arguments):
    if event == "socket.bind":
        print("NETWORK", event, arguments)
sys.addaudithook(hook)
from sw_agent.cli import main
for command in {COMMANDS}:
    main(command)
import socket
socket.create_server(("127.0.0.1", 0)).close()
"""


def test_no_command_listens(launch: Launch, tmp_path: Path) -> None:
    app = launch("with S('work'): pass")
    app.end()
    done = subprocess.run(
        [sys.executable, "-c", WATCHED],
        cwd=tmp_path,
        env=own_environ(tmp_path, SW_EXPORT_PATH=app.store),
        capture_output=True,
        text=True,
        check=True,
    )
    said = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("NETWORK")]
    assert said == ["socket.bind"]  # that of the test's own server
    assert "work" in done.stdout


# Code that lies about


DEPENDENCIES = (
    "opentelemetry",
    "rich",
    "tomli",
    "packaging",
    "requests",
    "urllib3",
    "google",
    "grpc",
    "typing_extensions",
)


def plant(folder: Path, *names: str) -> None:
    """Put modules there that leave a mark where one of them is run."""
    for name in names:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'RUN')!r}, 'a').write('{name} ')\n")


def test_nothing_in_the_working_folder_is_run(tmp_path: Path) -> None:
    program, here = tmp_path / "program", tmp_path / "here"
    program.mkdir()
    here.mkdir()
    (program / "app.py").write_text(f"{PRELUDE}with S('work'): pass\n")
    plant(here, *sys.stdlib_module_names, *DEPENDENCIES, "sw_agent", "sw_agent_plugins", "sitecustomize", "evil")
    (here / "evil-1.dist-info").mkdir()
    (here / "evil-1.dist-info/entry_points.txt").write_text("[sw_agent.plugins]\nevil = evil:plugin\n")
    (here / ".env").write_text("SW_EXPORT_TO=console\n")
    environ = own_environ(tmp_path, SW_EXPORT_PATH=str(tmp_path / "traces.db"))

    for command in (["run", "--program-span", str(program / "app.py")], *COMMANDS):
        done = subprocess.run([SW_PYTHON, *command], cwd=here, env=environ, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), command
        assert not (here / "RUN").exists(), f"{command}: {(here / 'RUN').read_text()}"
        assert "evil" not in done.stdout

    assert [trace.spans for trace in read_traces(environ["SW_EXPORT_PATH"])] == [2]


def test_no_key_of_agent_toml_names_code_that_is_run(tmp_path: Path) -> None:
    """All keys that take text, and all options of plugins that do, name a module that leaves a mark."""
    plant(tmp_path, "evil")
    (tmp_path / "app.py").write_text(
        f"import threading, concurrent.futures, asyncio, multiprocessing, logging\n{PRELUDE}with S('work'): pass\n"
    )
    (tmp_path / "agent.toml").write_text("""
[agent]
name = "evil:name"
instance_name = "evil"
namespace = "evil.namespace"
[export]
path = "evil.db"
redact = ["evil"]
[plugins.threading]
detached = ["evil.run", "evil"]
""")
    done = subprocess.run(
        [SW_PYTHON, "run", "app.py"], cwd=tmp_path, env=own_environ(tmp_path), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [trace.root_name for trace in read_traces(str(tmp_path / "evil.db"))] == ["work"]
    assert not (tmp_path / "RUN").exists()


# What is said


FAILING = """
from sw_agent._containment import contain
card = "4111111111111111"
def fail(value, headers={"Authorization": "Bearer hunter2-0123456789"}):
    raise ValueError(f"https://me:hunter2@host/?token=hunter2 {headers} {value}")
with S("work", attributes={"value": "of-an-attribute"}) as span:
    try:
        fail(card)
    except ValueError as error:
        contain("a plugin", error)
"""


def test_a_traceback_of_the_agent_shows_no_secret_and_no_values(launch: Launch) -> None:
    _, err = launch(FAILING, SW_EXPORT_REDACT=r"\b4\d{15}\b").end_with_stderr()
    assert "a plugin failed" in err
    assert "ValueError: https://REDACTED:REDACTED@host/" in err
    for secret in ("hunter2", "4111111111111111", "of-an-attribute"):
        assert secret not in err


@pytest.mark.parametrize(
    ("protocol", "header"),
    [
        ("http/protobuf", "x-tenant=hunt%0Aer2"),
        ("http/protobuf", "x-tenant=%E2%82%ACer2"),
        ("http/protobuf", "bad name=hunter2"),
        ("grpc", "bad name=hunter2"),
    ],
)
def test_a_header_that_cannot_be_sent_is_not_said(launch: Launch, protocol: str, header: str) -> None:
    with nobody() as endpoint:
        app = launch(
            "with S('work', attributes={'value': 'of-an-attribute'}): pass",
            OTEL_EXPORTER_OTLP_HEADERS=header,
            SW_EXPORT_TO="otlp",
            SW_EXPORT_ENDPOINT=endpoint,
            SW_EXPORT_PROTOCOL=protocol,
        )
        _, err = app.end_with_stderr()
    assert "sw-python: WARNING: spans " in err
    for secret in ("hunt", "er2", "of-an-attribute"):
        assert secret not in err
