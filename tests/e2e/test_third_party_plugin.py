"""`examples/plugin`, a package with a plugin for its library, installed beside the agent and used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launched import SW_PYTHON, own_environ
from sw_agent.export.store import StoredSpan, read_trace, read_traces

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"
PROGRAM = """
import tinyqueue
from opentelemetry import trace
S = trace.get_tracer("program").start_as_current_span

def work(name):
    with S(name):
        return name

queue = tinyqueue.Queue()
for request in ("first", "second"):
    with S(request):
        job = queue.put(work, f"{request} job")
    print(job.wait())
print(queue.put(work, "nobody's job").wait())
queue.close()
"""
PRINTED = "first job\nsecond job\nnobody's job\n"
FAILING = """
from sw_agent.plugin import Plugin
plugin = Plugin("tinyqueue", requires="tinyqueue>=1,<2")

@plugin.{kind}("tinyqueue:Job.run")
def fail(*args):
    {body}
    raise RuntimeError("on purpose")
"""

BROKEN_ON_IMPORT = "raise RuntimeError('on purpose')"
BROKEN_IN_INSTALL = """
from sw_agent.plugin import Plugin
class Broken(Plugin):
    def install(self, settings=None):
        raise RuntimeError("on purpose")
plugin = Broken("tinyqueue")
"""


@pytest.fixture(scope="session")
def installed_example(tmp_path_factory) -> Path:
    """The folder that pip has installed the package into."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--target", str(folder), str(EXAMPLE)]
    subprocess.run(command, check=True, timeout=100)
    return folder


class Environment:
    def __init__(self, packages: Path, folder: Path) -> None:
        self.folder = folder
        self.store = str(folder / "traces.db")
        self.environ = own_environ(folder, PYTHONPATH=str(packages), SW_EXPORT_PATH=self.store)

    def sw_python(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SW_PYTHON, *arguments],
            env={**self.environ, **variables},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )

    def parents(self, *options: str, **variables: str) -> dict[str, str | None]:
        """Run the program; return the name of each span's parent, and of its grandparent after a slash."""
        done = self.sw_python("run", *options, "-c", PROGRAM, **variables)
        assert (done.stdout, done.stderr) == (PRINTED, "")
        spans = {
            span.span_id: span
            for summary in read_traces(self.store)
            for span in read_trace(self.store, summary.trace_id)
        }

        def path(span: StoredSpan) -> str:
            parent = spans.get(span.parent_id or "")
            return span.name if parent is None else f"{path(parent)}/{span.name}"

        return {span.name: path(span) for span in spans.values() if span.name.endswith("job")}


@pytest.fixture
def environment(installed_example: Path, tmp_path: Path) -> Environment:
    return Environment(installed_example, tmp_path)


FOLLOWED = {
    "first job": "first/first job",
    "second job": "second/second job",
    "nobody's job": "nobody's job",
}
NOT_FOLLOWED = {name: name for name in FOLLOWED}


def test_the_plugin_is_listed_with_its_librarys_version(environment):
    listed = {plugin["name"]: plugin for plugin in json.loads(environment.sw_python("plugins", "--json").stdout)}
    assert listed["tinyqueue"]["version"] == "1.2.0"
    assert "tinyqueue" in environment.sw_python("plugins").stdout
    assert "[plugins.tinyqueue]" in environment.sw_python("config").stdout


def test_jobs_run_in_the_context_of_who_puts_them(environment):
    assert environment.parents() == FOLLOWED


def test_an_option_gives_each_job_a_span(environment):
    assert environment.parents(SW_PLUGIN_TINYQUEUE_SPANS="true") == {
        "first job": "first/work/first job",
        "second job": "second/work/second job",
        "nobody's job": "work/nobody's job",
    }


def test_the_plugin_is_off_by_the_command_line(environment):
    assert environment.parents("--disable", "tinyqueue") == NOT_FOLLOWED


@pytest.mark.parametrize("variable", ["SW_PLUGIN_TINYQUEUE_ENABLED=false", "SW_AGENT_DISABLE_PLUGINS=tinyqueue"])
def test_the_plugin_is_off_by_a_variable(environment, variable):
    name, _, value = variable.partition("=")
    assert environment.parents(**{name: value}) == NOT_FOLLOWED


def test_the_plugin_is_off_by_the_file(environment):
    (environment.folder / "agent.toml").write_text("[plugins.tinyqueue]\nenabled = false\n")
    assert environment.parents() == NOT_FOLLOWED


def test_off_it_leaves_its_library_untouched(environment):
    program = "import tinyqueue; print(tinyqueue.Job.run.__code__.co_filename, tinyqueue.Job.run.__module__)"
    plain = subprocess.run(
        [sys.executable, "-c", program], env=environment.environ, capture_output=True, text=True, check=True
    )
    assert environment.sw_python("run", "-c", program).stdout != plain.stdout
    assert environment.sw_python("run", "--disable", "tinyqueue", "-c", program).stdout == plain.stdout


@pytest.mark.parametrize(
    ("kind", "body"),
    [("before", "pass"), ("intercept", "pass"), ("intercept", "args[0]()")],
    ids=["before the call", "around the call, before it", "around the call, after it"],
)
def test_an_interceptor_that_raises_is_said_once_and_the_program_goes_on(environment, tmp_path, kind, body):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tinyqueue_tracing.py").write_text(FAILING.format(kind=kind, body=body))
    path = f"{broken}{os.pathsep}{environment.environ['PYTHONPATH']}"
    done = environment.sw_python("run", "-c", PROGRAM, PYTHONPATH=path)
    assert done.stdout == PRINTED
    assert done.stderr.count("RuntimeError: on purpose") == 1
    assert "tinyqueue:Job.run" in done.stderr


@pytest.mark.parametrize("broken", [BROKEN_ON_IMPORT, BROKEN_IN_INSTALL], ids=["on import", "in install"])
def test_a_plugin_that_raises_is_left_out_and_the_program_goes_on(environment, tmp_path, broken):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tinyqueue_tracing.py").write_text(broken)
    path = f"{tmp_path / 'broken'}{os.pathsep}{environment.environ['PYTHONPATH']}"
    done = environment.sw_python("run", "-c", PROGRAM, PYTHONPATH=path)
    assert done.stdout == PRINTED
    assert done.stderr.count("RuntimeError: on purpose") == 1
    assert "plugin tinyqueue" in done.stderr
