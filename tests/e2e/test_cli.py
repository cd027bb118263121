"""The command line as a newcomer and as a pipe meet it: `config`, `plugins`, `doctor`, help and mistakes."""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from launched import SW_PYTHON, own_environ
from sw_agent import _config
from sw_agent.cli import COMMANDS
from sw_agent.cli import config as config_command
from sw_agent.cli import doctor as doctor_command
from sw_agent.cli import run as run_command

READING = ("config", "plugins", "doctor", "traces", "show")


@pytest.fixture
def environ(tmp_path):
    return own_environ(tmp_path, COLUMNS="200")


@pytest.fixture
def sw_python(tmp_path, environ):
    def sw_python(*arguments, **variables):
        return subprocess.run(
            [SW_PYTHON, *arguments],
            env={**environ, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return sw_python


@pytest.fixture
def doctor(sw_python):
    """Return the doctor's findings and exit status."""

    def doctor(*arguments, **variables):
        done = sw_python("doctor", "--json", *arguments, **variables)
        assert done.stderr == ""
        return json.loads(done.stdout), done.returncode

    return doctor


def install(folder, name, version="1.0", entry_points=""):
    """Make a distribution in a folder that is put on PYTHONPATH."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entry_points)


# Help and mistakes


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)], ids=" ".join)
def test_help_lists_every_command(sw_python, arguments):
    done = sw_python(*arguments)

    assert (done.returncode, done.stderr) == (0, "")
    assert all(command in done.stdout for command in COMMANDS)
    assert "sw-python run --show app.py" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(sw_python, command):
    done = sw_python(command, "--help")

    assert (done.returncode, done.stderr) == (0, "")
    assert f"sw-python {command}" in done.stdout


def test_the_version_is_that_of_the_distribution(sw_python):
    assert sw_python("--version").stdout == "sw-python 0.1.0\n"


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("plugin", "; did you mean 'plugins'?"),
        ("app.py", "; did you mean `sw-python run app.py`?"),
        ("--debug", ""),
    ],
)
def test_an_unknown_command_is_2_and_names_the_nearest(sw_python, command, hint):
    done = sw_python(command)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"sw-python: there is no command {command!r}{hint}\n")


@pytest.mark.parametrize("command", READING)
def test_an_unknown_option_of_a_command_is_2(sw_python, command):
    done = sw_python(command, "--no-such-option")

    assert (done.returncode, done.stdout) == (2, "")
    assert "--no-such-option" in done.stderr


@pytest.mark.parametrize("arguments", [*((command,) for command in READING), *((c, "--help") for c in COMMANDS), ()])
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_reader_that_goes_away_is_no_error(tmp_path, environ, arguments, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [SW_PYTHON, *arguments],
        env={**environ, "PYTHONUNBUFFERED": unbuffered},
        cwd=tmp_path,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writer)

    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize("arguments", [["traces"], ["plugins"], ["config"], ["run", "--help"]])
@pytest.mark.parametrize(
    ("redirection", "said"), [(">&-", "stdout is closed"), (">/dev/full", "No space left on device")]
)
def test_output_that_cannot_be_written_is_said_in_one_line(tmp_path, environ, arguments, redirection, said):
    command = f'exec "$@" {redirection}'
    done = subprocess.run(
        ["sh", "-c", command, "sh", SW_PYTHON, *arguments],
        env=environ,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_a_picture_that_cannot_be_printed_changes_no_exit_status(tmp_path, environ, redirection):
    command = f'exec "$@" 2{redirection}'
    program = ["run", "--show", "--program-span", "-c", "raise SystemExit(7)"]
    done = subprocess.run(
        ["sh", "-c", command, "sh", SW_PYTHON, *program], env=environ, cwd=tmp_path, timeout=60, check=False
    )
    assert done.returncode == 7


# sw-python config


def test_config_prints_a_file_that_changes_nothing(sw_python, tmp_path):
    before = sw_python("doctor", "--json")
    printed = sw_python("config")
    (tmp_path / "agent.toml").write_text(printed.stdout)
    after = sw_python("doctor", "--json")

    assert (printed.returncode, printed.stderr) == (0, "")

    def values(done):
        found = json.loads(done.stdout)["configuration"]
        return {key: it["value"] for key, it in found.items() if not key.startswith("plugins.")}

    assert values(after) == values(before)
    assert sw_python("plugins").stdout == sw_python("plugins", SW_AGENT_CONFIG=os.devnull).stdout


def test_config_shows_every_key_default_and_variable_also_of_other_peoples_plugins(sw_python, tmp_path):
    install(tmp_path / "lib", "theirs", entry_points="[sw_agent.plugins]\ntheirs = theirs:plugin\nbad = nothing:p\n")
    (tmp_path / "lib/theirs.py").write_text(
        "from sw_agent.plugin import *\n"
        "options = [Option('limit', 3, 'how many \"at once\", größer'), Option('names', ['a\"b'], 'x')]\n"
        "plugin = Plugin('theirs', options=options)"
    )

    printed = sw_python("config", PYTHONPATH=str(tmp_path / "lib"), PYTHONIOENCODING="latin-1")  # TOML is UTF-8
    (tmp_path / "agent.toml").write_text(printed.stdout)

    for line in (
        "ratio = 1.0",
        "# a number, at least 0, at most 1; SW_SAMPLING_RATIO, OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG",
        'to = "auto"',
        "[plugins.theirs]",
        "limit = 3",
        "# a whole number; SW_PLUGIN_THEIRS_LIMIT",
        '# how many "at once", größer',
        'names = ["a\\"b"]',
        "[plugins.bad]",
    ):
        assert line in printed.stdout.splitlines()
    assert sw_python("run", "-c", "print('runs')", PYTHONPATH=str(tmp_path / "lib")).stdout == "runs\n"


# sw-python plugins


def test_plugins_says_which_are_on_and_why_others_are_not(sw_python, tmp_path):
    lib = tmp_path / "lib"
    points = "old = old:plugin [oldlib]\nbad = bad:plugin\nabsent = absent:plugin [absentlib]\n"
    install(lib, "theirs", "7.1", entry_points=f"[sw_agent.plugins]\n{points}")
    install(lib, "oldlib", "1.0")
    (lib / "old.py").write_text("from sw_agent.plugin import Plugin; plugin = Plugin('old', requires='oldlib>=2')")
    (lib / "absent.py").write_text(
        "from sw_agent.plugin import Plugin; plugin = Plugin('absent', requires='absentlib')"
    )
    (lib / "bad.py").write_text("raise RuntimeError('on purpose')")
    (tmp_path / "agent.toml").write_text('[plugins]\ndisable = ["logging"]\n')
    variables = {"PYTHONPATH": str(lib), "SW_PLUGIN_ASYNCIO_ENABLED": "false"}

    done = sw_python("plugins", "--json", **variables)
    table = sw_python("plugins", **variables)

    assert (done.returncode, done.stderr, table.returncode, table.stderr) == (0, "", 0, "")
    found = {it["name"]: it for it in json.loads(done.stdout)}
    expected = {
        "threading": ("on", None),
        "logging": ("off", "disabled by agent.toml"),
        "asyncio": ("off", "disabled by SW_PLUGIN_ASYNCIO_ENABLED"),
        "old": ("unsupported", "oldlib 1.0 is installed, supported is >=2"),
        "bad": ("failed", "RuntimeError: on purpose"),
        "absent": ("on", None),
    }
    assert {name: (found[name]["state"], found[name]["why"]) for name in expected} == expected
    assert (found["old"]["library"], found["old"]["version"], found["old"]["supported"]) == ("oldlib", "1.0", ">=2")
    assert found["absent"]["version"] is None
    assert (found["old"]["distribution"], found["threading"]["distribution"]) == ("theirs 7.1", "sw-python 0.1.0")
    for it in found.values():
        line = next(line for line in table.stdout.splitlines() if line.startswith(it["name"]))
        assert all(text in line for text in (it["state"], it["why"] or "", it["distribution"]))


def test_plugins_of_an_agent_that_is_switched_off_are_off(sw_python):
    found = json.loads(sw_python("plugins", "--json", SW_AGENT_ENABLED="false").stdout)

    assert {(it["state"], it["why"]) for it in found} == {("off", "the agent is off: SW_AGENT_ENABLED")}


def test_plugins_with_a_wrong_configuration_is_2(sw_python):
    done = sw_python("plugins", "--config", "none.toml")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "sw-python: none.toml: No such file or directory\n"


# sw-python doctor


def test_doctor_is_content_with_a_healthy_installation(doctor, sw_python):
    report, status = doctor()

    assert (status, report["healthy"], report["problems"]) == (0, True, [])
    assert report["interpreter"]["executable"] == sys.executable
    assert (Path(report["bootstrap"]) / "sitecustomize.py").is_file()
    assert report["collector"] is None
    assert (report["store"]["exists"], report["store"]["writable"]) == (False, True)
    assert sw_python("doctor").stdout.endswith("all is well\n")


def test_doctor_shows_each_value_with_its_source(doctor, sw_python, tmp_path):
    (tmp_path / "mine.toml").write_text("[sampling]\nratio = 0.5\n[plugins.threading]\nenabled = false\n")

    report, _ = doctor("--config", "mine.toml", SW_AGENT_NAME="shop", OTEL_BSP_MAX_QUEUE_SIZE="99")

    assert report["file"] == str(tmp_path / "mine.toml")
    configuration = report["configuration"]
    assert configuration["sampling.ratio"] == {"value": 0.5, "source": "mine.toml"}
    assert configuration["agent.name"] == {"value": "shop", "source": "SW_AGENT_NAME"}
    assert configuration["export.queue_size"] == {"value": 99, "source": "OTEL_BSP_MAX_QUEUE_SIZE"}
    assert configuration["plugins.threading.enabled"] == {"value": False, "source": "mine.toml"}
    assert configuration["export.batch_size"]["source"] == "default"
    text = sw_python("doctor", "--config", "mine.toml").stdout
    assert any(line.split() == ["sampling.ratio", "0.5", "mine.toml"] for line in text.splitlines())


def test_doctor_tries_the_collector(doctor):
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        report, status = doctor(SW_EXPORT_ENDPOINT=endpoint)
        assert (status, report["collector"]["reachable"]) == (0, True)
        assert report["collector"]["endpoint"] == f"{endpoint}/v1/traces"
        grpc, _ = doctor(SW_EXPORT_ENDPOINT=endpoint.removeprefix("http://"), SW_EXPORT_PROTOCOL="grpc")
        assert grpc["collector"]["reachable"]

    report, status = doctor(SW_EXPORT_ENDPOINT=endpoint)

    assert (status, report["collector"]["reachable"]) == (1, False)
    assert report["problems"][0].startswith(f"no collector answers at {endpoint}/v1/traces: ")


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize(
    "endpoint", ["http://bob:hun/ter2@127.0.0.1:9", "http://ter2@127.0.0.1:9", "bob:ter2@127.0.0.1:9"]
)
def test_no_command_shows_a_secret_of_the_configuration(sw_python, tmp_path, endpoint, protocol):
    (tmp_path / "agent.toml").write_text(f'[export]\nendpoint = "{endpoint}"\nredact = ["sw-[a-z]+2"]\n')
    variables = {
        "SW_EXPORT_PROTOCOL": protocol,
        "SW_AGENT_NAME": "sw-winter2",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer ter2,x-api-key=ter2",
        "OTEL_RESOURCE_ATTRIBUTES": "db.url=redis://:ter2@h,password=ter2,ter2",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "redis://:ter2@h",
        "OTEL_TRACES_SAMPLER": "http://u:ter2@h",
    }
    for command in (*((it,) for it in READING), ("doctor", "--json"), ("run", "--to", "http://u:ter2@h", "app.py")):
        done = sw_python(*command, **variables)
        assert "ter2" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_doctor_says_which_endpoint_it_tried_without_its_credentials(doctor):
    report, _ = doctor(SW_EXPORT_ENDPOINT="http://bob:hunter2@127.0.0.1:9", SW_EXPORT_REDACT="[a-z]*loop,65536|17")

    shown = "http://REDACTED:REDACTED@127.0.0.1:9/v1/traces"
    assert report["configuration"]["export.endpoint"] == {"value": shown, "source": "SW_EXPORT_ENDPOINT"}
    assert report["collector"]["endpoint"] == shown
    assert report["problems"][0].startswith(f"no collector answers at {shown}: ")
    assert type(report["configuration"]["export.batch_size"]["value"]) is int


def test_a_pattern_that_is_none_stops_the_launch(sw_python, tmp_path):
    (tmp_path / "agent.toml").write_text('[export]\nredact = ["("]\n')

    done = sw_python("run", "-c", "print('started')")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "sw-python run: agent.toml:2: [export] redact: '(' is no regular expression: missing )"
    )


def test_doctor_finds_a_store_that_cannot_be_used(doctor, tmp_path):
    (tmp_path / "notes.txt").write_text("this is no database " * 1000)

    for path in (str(tmp_path / "notes.txt"), str(tmp_path / "notes.txt/traces.db")):
        report, status = doctor(SW_EXPORT_PATH=path)
        assert status == 1
        assert report["problems"][0].startswith(f"the local store {path} cannot be used: ")


def test_doctor_shows_what_waits_for_a_collector(doctor, sw_python, tmp_path):
    path = str(tmp_path / "traces.db")
    settings = {"SW_EXPORT_PATH": path, "SW_EXPORT_TO": "otlp", "SW_EXPORT_ENDPOINT": "http://127.0.0.1:9"}
    program = "from opentelemetry import trace\nfor _ in range(3): trace.get_tracer('t').start_span('work').end()"
    sw_python("run", "--service", "shop", "-c", program, **settings)

    report, _ = doctor(**settings)
    text = sw_python("doctor", **settings).stdout

    (waiting,) = report["spool"]
    assert (waiting["service"], waiting["spans"]) == ("shop", 3)
    assert f"shop for http://127.0.0.1:9/v1/traces  3 spans, {waiting['bytes']} bytes, since 20" in text


def test_doctor_names_a_wrong_configuration(doctor, sw_python):
    report, status = doctor(SW_EXPORT_TO="oltp")

    assert (status, report["configuration"]) == (1, None)
    assert report["problems"] == [
        "SW_EXPORT_TO: 'oltp' is none of auto, otlp, local, console, none; did you mean 'otlp'?"
    ]
    assert "something is wrong" in sw_python("doctor", SW_EXPORT_TO="oltp").stdout


def test_doctor_lists_what_it_does_not_understand_without_calling_it_wrong(doctor):
    report, status = doctor(
        SW_AGENT_NAM="x",
        SW_PLUGIN_THREADING_SPNAS="true",
        SW_AGENT_COLLECTOR_BACKEND_SERVICES="oap:11800",
        SW_AGENT_NAME="fine",
        OTEL_TRACES_SAMPLER="jaeger_remote",
    )

    assert status == 0
    assert report["unknown_variables"] == {
        "SW_AGENT_COLLECTOR_BACKEND_SERVICES": None,
        "SW_AGENT_NAM": "SW_AGENT_NAME",
        "SW_PLUGIN_THREADING_SPNAS": "SW_PLUGIN_THREADING_SPANS",
    }
    assert any(note.startswith("OTEL_TRACES_SAMPLER: 'jaeger_remote'") for note in report["notes"])


@pytest.mark.parametrize("missing", [None, "_sigterm_handler", "export._plain_spans"])
def test_doctor_says_where_a_module_is_not_compiled(monkeypatch, missing):
    for name in ("_sigterm_handler", "export._plain_spans"):
        module, _, attribute = f"sw_agent.{name}".rpartition(".")
        monkeypatch.delattr(importlib.import_module(module), attribute, raising=False)
        monkeypatch.setitem(sys.modules, f"sw_agent.{name}", None if name == missing else ModuleType(name))
    notes = doctor_command.examine({}, {})["notes"]
    assert any("modules in C are not compiled" in note for note in notes) is (missing is not None)


def test_doctor_says_where_the_agent_is_off_and_which_plugin_is_left_out(doctor, tmp_path):
    package = tmp_path / "lib"
    install(package, "sw-old", entry_points="[sw_agent.plugins]\nold = sw_old:plugin\n")
    (package / "sw_old.py").write_text(
        "from sw_agent.plugin import Plugin\nplugin = Plugin('old', requires='packaging<1')\n"
    )
    report, status = doctor(PYTHONPATH=str(package), SW_AGENT_ENABLED="false")
    assert status == 0
    assert any(note.startswith("the agent is switched off: SW_AGENT_ENABLED") for note in report["notes"])
    report, status = doctor(PYTHONPATH=str(package))
    assert status == 0
    assert any(note.startswith("plugin old is left out: packaging ") for note in report["notes"])


def test_doctor_says_that_the_bootstrap_is_missing_and_that_another_python_comes_first(monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(doctor_command, "bootstrap_folder", lambda: str(tmp_path / "nowhere"))
    report = doctor_command.examine({}, {})
    assert report["problems"] == [f"there is no sitecustomize.py in {tmp_path / 'nowhere'}: install sw-python again"]
    assert any(note.startswith(f"`sw-python run python …` runs {python}: ") for note in report["notes"])


def test_doctor_finds_other_agents_and_the_one_whose_command_it_shares(doctor, tmp_path):
    for name in ("ddtrace", "newrelic"):
        install(tmp_path / "lib", name)
    report, status = doctor(PYTHONPATH=str(tmp_path / "lib"))
    assert status == 0
    found = [note.split(" is installed here: ") for note in report["notes"] if " is installed here: " in note]
    others = [name for name, consequence in found if consequence.startswith("in a program that it traces too")]
    assert others == ["ddtrace 1.0", "newrelic 1.0"]
    idle = {consequence.split("plugin ")[1] for _, consequence in found if "where a program uses it" in consequence}
    assert idle == {f"{plugin} makes no spans" for plugin in ("aiohttp-client", "aiohttp-server", "celery")}

    install(tmp_path / "lib", "apache_skywalking")
    report, status = doctor(PYTHONPATH=str(tmp_path / "lib"))
    assert status == 1
    assert "both own the command `sw-python`" in report["problems"][0]


def test_doctor_names_plugins_that_cannot_be_imported(doctor, tmp_path):
    install(tmp_path / "lib", "theirs", entry_points="[sw_agent.plugins]\nbad = nothing_of_that_name:plugin\n")

    report, status = doctor(PYTHONPATH=str(tmp_path / "lib"))

    assert status == 1
    assert report["problems"] == [
        "plugin bad of theirs 1.0 cannot be imported: ModuleNotFoundError: No module named 'nothing_of_that_name'"
    ]


def test_output_into_a_pipe_has_no_colours_and_fits_any_encoding(sw_python):
    for command in READING:
        done = sw_python(command, PYTHONIOENCODING="ascii", TERM="xterm-256color")
        assert "\x1b" not in done.stdout
        assert "Traceback" not in done.stderr


@pytest.mark.skipif(shutil.which("script") is None, reason="needs a program that makes a terminal")
def test_output_in_a_terminal_is_no_less(tmp_path, environ):
    done = subprocess.run(
        ["script", "-qec", f"{SW_PYTHON} plugins", "/dev/null"],
        env={**environ, "TERM": "xterm-256color"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert "concurrent-futures" in done.stdout


@pytest.mark.parametrize(("given", "kept"), [({}, "true"), ({"UWSGI_PY_CALL_UWSGI_FORK_HOOKS": "false"}, "false")])
def test_uwsgi_calls_what_python_calls_around_forks_unless_it_is_told_otherwise(given, kept):
    environ = dict(given)
    run_command.prepare(environ, _config.load({}, {}), ["/venv/bin/uwsgi", "--master"])
    assert environ["UWSGI_PY_CALL_UWSGI_FORK_HOOKS"] == kept


def test_the_configuration_is_printed_to_whatever_stands_for_stdout(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert config_command.run(None) == 0
    assert "[agent]" in sys.stdout.getvalue()
