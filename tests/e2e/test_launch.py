"""`sw-python run`: a program under the agent sees, says and does what it does without, and is traced."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from launched import SW_PYTHON, own_environ
from sw_agent import _config_schema
from sw_agent._launchers import bootstrap_folder
from sw_agent.export.store import read_trace, read_traces

BIN = Path(sys.executable).parent
WHO_AM_I = """
import json, os, sys
print(json.dumps({"argv": sys.argv, "path": sys.path, "file": __file__, "name": __name__,
                  "executable": sys.executable, "orig": sys.orig_argv[1:], "flags": list(sys.flags),
                  "warnoptions": sys.warnoptions, "sitecustomize": "sitecustomize" in sys.modules,
                  "excepthook": sys.excepthook is sys.__excepthook__, "pid": os.getpid()}))
"""
IS_TRACED = "import sys; b = sys.modules.get('sw_agent._bootstrap'); print(bool(b and b.is_running()))"
START_CHILD = (
    f"import os, subprocess, sys; os.environ.update({{}})\nsubprocess.run([sys.executable, '-c', {IS_TRACED!r}])"
)
ONE_SPAN = "from opentelemetry import trace; trace.get_tracer('t').start_span('work').end()"


@pytest.fixture
def environ(tmp_path):
    return own_environ(tmp_path, SW_EXPORT_PATH=str(tmp_path / "traces.db"))


@pytest.fixture
def call(tmp_path, environ):
    """Run a command to its end, in the test's folder; the variables given are added, those that are None removed."""

    def call(*command, **variables):
        merged = {**environ, **variables}
        return subprocess.run(
            list(map(str, command)),
            cwd=tmp_path,
            env={name: str(value) for name, value in merged.items() if value is not None},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return call


@pytest.fixture
def run(call):
    """Run a command under the agent."""
    return lambda *arguments, **variables: call(SW_PYTHON, "run", *arguments, **variables)


def traces(tmp_path):
    store = str(tmp_path / "traces.db")
    return read_traces(store) if os.path.exists(store) else []


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)


# What a program can be


@pytest.mark.parametrize(
    ("program", "service"),
    [
        (["app.py"], "app"),
        (["python", "app.py"], "app"),
        (["python", "-u", "-X", "dev", "app.py"], "app"),
        (["-m", "app"], "app"),
        (["python", "-m", "app"], "app"),
        (["-c", ONE_SPAN], "python"),
        (["sh", "-c", "python app.py"], "sh"),
        (["./tool"], "tool"),
        (["--", "app.py"], "app"),
        (["folder"], "folder"),
        (["zipped"], "zipped"),
        (["zipped.pyz"], "zipped"),
    ],
    ids=" ".join,
)
def test_every_way_to_name_a_program_is_traced_and_names_the_service(run, tmp_path, program, service):
    write(tmp_path, app=ONE_SPAN)
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder", __main__=ONE_SPAN)
    for name in ("zipped", "zipped.pyz"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("__main__.py", ONE_SPAN)
    (tmp_path / "tool").write_text(f"#!{sys.executable}\n{ONE_SPAN}\n")
    (tmp_path / "tool").chmod(0o755)

    done = run(*program)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [(trace.service, trace.root_name) for trace in traces(tmp_path)] == [(service, "work")]


def test_a_program_read_from_stdin_is_traced(tmp_path, environ):
    done = subprocess.run([SW_PYTHON, "run", "-"], input=ONE_SPAN, text=True, cwd=tmp_path, env=environ, check=True)

    assert done.returncode == 0
    assert len(traces(tmp_path)) == 1


def test_a_command_beside_the_launcher_is_found_without_an_activated_environment(run, tmp_path):
    done = run("sw-python", "--version", PATH=os.defpath)

    assert done.returncode == 0
    assert done.stdout.startswith("sw-python ")


def test_python_of_an_environment_that_is_not_activated_knows_its_own_path(run, tmp_path):
    done = run("python", "-c", "import sys; print(sys.executable)", PATH="/nowhere")

    assert done.stdout.strip() == str(BIN / "python")


@pytest.mark.parametrize("name", ["nothing-of-that-name", "./nothing", "/nowhere/nothing"])
def test_a_command_that_does_not_exist_is_127(run, name):
    done = run(name)

    assert (done.returncode, done.stdout) == (127, "")
    assert done.stderr == f"sw-python run: {name}: command not found\n"


def test_a_file_that_cannot_be_executed_is_126(run, tmp_path):
    (tmp_path / "data.txt").write_text("data")

    for name in ("./data.txt", "/"):
        done = run(name)
        assert (done.returncode, done.stdout) == (126, "")
        assert done.stderr == f"sw-python run: {name}: cannot be executed\n"


def test_a_script_without_interpreter_line_is_the_shells_as_ever(run, tmp_path):
    (tmp_path / "script").write_text("echo from the shell $1; exit 5\n")
    (tmp_path / "script").chmod(0o755)

    for options in ((), ("--show",)):
        done = run(*options, "./script", "x")
        assert (done.returncode, done.stdout) == (5, "from the shell x\n")


def test_a_script_that_does_not_exist_is_pythons_to_complain_about(run, call):
    under, plain = run("nothing.py"), call(sys.executable, "nothing.py")

    assert (under.returncode, under.stderr) == (plain.returncode, plain.stderr)


# What a program sees


@pytest.mark.parametrize("variables", [{}, {"PYTHONPATH": "lib:/other"}, {"PYTHONSAFEPATH": "1"}], ids=str)
@pytest.mark.parametrize("program", [["app.py", "--x", "y z"], ["-m", "pkg.app", "-c"]], ids=" ".join)
def test_a_program_sees_of_itself_what_it_sees_without_the_agent(run, call, tmp_path, program, variables):
    (tmp_path / "pkg").mkdir()
    write(tmp_path, app=WHO_AM_I)
    write(tmp_path / "pkg", app=WHO_AM_I)

    plain, under = call(sys.executable, *program, **variables), run(*program, **variables)

    assert (under.returncode, under.stderr) == (plain.returncode, plain.stderr)
    if plain.returncode == 0:
        expected, seen = json.loads(plain.stdout), json.loads(under.stdout)
        assert expected.pop("pid") != seen.pop("pid")
        assert seen == expected


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(3)",
        "import sys; sys.exit('a message')",
        "1 / 0",
        "def broken(:",
        "import os; os._exit(7)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os; os.abort()",
        "import signal; signal.raise_signal(signal.SIGINT)",
        "import sys; print('out'); print('err', file=sys.stderr); sys.stdout.write('no newline')",
        "import warnings; warnings.warn('a warning')",
        "import sys; sys.stderr.close(); sys.stdout.close()",
        "import sitecustomize",
        "import threading; threading.Thread(target=lambda: 1 / 0, name='T').start()",
    ],
)
@pytest.mark.parametrize("options", [(), ("--show",)], ids=["exec", "show"])
def test_a_program_ends_and_says_what_it_does_without_the_agent(run, call, tmp_path, code, options):
    write(tmp_path, app=code)

    plain, under = call(sys.executable, "app.py"), run(*options, "app.py")

    said = under.stderr.removesuffix(NO_TRACE) if options else under.stderr
    assert (under.returncode, under.stdout, said) == (plain.returncode, plain.stdout, plain.stderr)


NO_TRACE = (
    "sw-python: no trace: the program made no spans (--program-span puts one around all of it), or the agent was off"
    " in it\n"
)


def test_the_program_is_the_launched_process_itself(tmp_path, environ):
    program = [SW_PYTHON, "run", "-c", "import os; print(os.getpid())"]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environ)
    out, _ = process.communicate(timeout=60)

    assert int(out) == process.pid


def test_signals_that_python_ignores_for_itself_are_not_ignored_in_the_program(run):
    assert run("sh", "-c", "kill -PIPE $$; echo survived").returncode == -signal.SIGPIPE


# The sitecustomize that is hidden

# The launcher is a Python program too: without -I it would run the test's sitecustomize as well, for itself.
ISOLATED_LAUNCHER = (sys.executable, "-I", SW_PYTHON, "run")


@pytest.mark.parametrize(
    "hidden",
    [
        "import sys; sys.stderr.write('the hidden one\\n'); answer = 42",
        "raise RuntimeError('on purpose')",
        "import nothing_of_that_name",
        "raise ImportError('sitecustomize', name='sitecustomize')",
        "def broken(:",
        b"name = '\xff'",
        "import sys; del sys.modules['sitecustomize']",
        "import sys; sys.path.append('/added')",
    ],
    ids=str,
)
@pytest.mark.parametrize("place", ["sitecustomize.py", "sitecustomize/__init__.py"])
def test_the_hidden_sitecustomize_runs_as_without_the_agent(call, tmp_path, hidden, place):
    (tmp_path / "site" / place).parent.mkdir(parents=True)
    (tmp_path / "site" / place).write_bytes(hidden if isinstance(hidden, bytes) else hidden.encode())
    code = (
        "import sys; m = sys.modules.get('sitecustomize')\n"
        "print(getattr(m, '__file__', m), getattr(m, '__name__', m), getattr(m, 'answer', None), sys.path)"
    )
    variables = {"PYTHONPATH": str(tmp_path / "site")}

    plain = call(sys.executable, "-c", code, **variables)
    under = call(*ISOLATED_LAUNCHER, "-c", code, **variables)

    assert (under.returncode, under.stdout, under.stderr) == (plain.returncode, plain.stdout, plain.stderr)


def test_a_hidden_sitecustomize_that_ends_the_process_ends_it_as_without_the_agent(call, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.exit(4)")
    variables = {"PYTHONPATH": str(tmp_path)}

    plain = call(sys.executable, "-c", "print(1)", **variables)
    under = call(*ISOLATED_LAUNCHER, "-c", "print(1)", **variables)

    assert (under.returncode, under.stdout) == (plain.returncode, plain.stdout)
    assert under.stderr.splitlines()[-1] == plain.stderr.splitlines()[-1]  # the traceback has one frame more


def test_a_hidden_sitecustomize_that_cannot_be_read_is_said_as_without_the_agent(call, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text("answer = 42")
    (tmp_path / "site/sitecustomize.py").chmod(0)
    variables = {"PYTHONPATH": str(tmp_path / "site")}

    plain = call(sys.executable, "-c", "print(1)", **variables)
    under = call(*ISOLATED_LAUNCHER, "-c", "print(1)", **variables)

    assert (under.returncode, under.stdout, under.stderr) == (plain.returncode, plain.stdout, plain.stderr)


# Other interpreters, other processes


def other_interpreters():
    """Return the Pythons that pyenv has installed here; none of them has the agent."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    return sorted(root.glob("versions/*/bin/python"))


@pytest.mark.parametrize("python", other_interpreters() or [None], ids=lambda path: path and path.parts[-3])
def test_an_interpreter_without_the_agent_is_silent(run, call, python):
    if python is None:
        pytest.skip("pyenv has no other Python here")
    code = "import sys; print(sys.version, sys.path, 'sitecustomize' in sys.modules)"

    plain, under = call(python, "-c", code), run(python, "-c", code, PYTHONDONTWRITEBYTECODE="1")

    assert (under.returncode, under.stdout, under.stderr) == (plain.returncode, plain.stdout, plain.stderr)


@pytest.mark.parametrize("flag", ["-I", "-E", "-S"])
def test_a_program_that_shuts_its_environment_out_is_simply_not_traced(run, flag):
    done = run("python", flag, "-c", IS_TRACED)

    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


def test_child_processes_are_traced_as_far_down_as_they_go(run, tmp_path):
    write(tmp_path, child=f"import subprocess, sys; subprocess.run([sys.executable, '-c', {IS_TRACED!r}])")
    write(tmp_path, app="import os, subprocess, sys; os.chdir('/'); subprocess.run([sys.executable, sys.argv[1]])")

    assert run("app.py", tmp_path / "child.py").stdout == "True\n"


def test_a_child_in_another_folder_has_the_configuration_of_the_launch(run, tmp_path):
    (tmp_path / "agent.toml").write_text('[agent]\nname = "from the file"\n[export]\npath = "mine.db"\n')
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/agent.toml").write_text("this is no TOML")
    write(tmp_path, app=f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ONE_SPAN!r}], cwd='sub')")

    done = run("app.py", SW_EXPORT_PATH=None)

    assert (done.returncode, done.stderr) == (0, "")
    assert [trace.service for trace in read_traces(str(tmp_path / "mine.db"))] == ["from the file"]


def test_a_child_is_switched_off_by_its_own_environment(run):
    assert run("-c", START_CHILD.format({"SW_AGENT_ENABLED": "false"})).stdout == "False\n"


def test_a_child_whose_configuration_is_wrong_says_so_on_one_line_and_runs(run):
    done = run("-c", START_CHILD.format({"SW_EXPORT_TO": "oltp"}))

    assert (done.returncode, done.stdout) == (0, "False\n")
    assert done.stderr.startswith("sw-python: SW_EXPORT_TO: 'oltp' is none of auto, otlp, local, console, none")
    assert done.stderr.count("\n") == 1


def test_a_nested_run_doubles_nothing_and_the_inner_one_counts(run, tmp_path):
    write(tmp_path, app=f"import os\nprint(os.environ['PYTHONPATH'])\n{ONE_SPAN}")

    done = run("--service", "outer", "sw-python", "run", "--service", "inner", "app.py", PYTHONPATH="/other")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{bootstrap_folder()}{os.pathsep}/other\n"
    assert [trace.service for trace in traces(tmp_path)] == ["inner"]


def test_the_launcher_itself_is_not_traced_where_runs_are_nested(run, tmp_path):
    done = run("--program-span", "sw-python", "run", "-c", "pass")

    assert (done.returncode, done.stderr) == (0, "")
    (summary,) = traces(tmp_path)
    (span,) = read_trace(str(tmp_path / "traces.db"), summary.trace_id)
    assert (span.name, span.parent_id) == ("-c", None)


# Switching off


@pytest.mark.parametrize(
    "variables",
    [{"SW_AGENT_ENABLED": "false"}, {"SW_AGENT_ENABLED": "0"}, {"OTEL_SDK_DISABLED": "true"}],
    ids=lambda variables: next(iter(variables)),
)
def test_a_kill_switch_runs_the_program_as_if_there_were_no_agent(run, tmp_path, variables):
    (tmp_path / "agent.toml").write_text("this is no TOML, and nobody looks")
    code = "import os, sys; print(os.environ.get('PYTHONPATH'), [m for m in sys.modules if m.startswith('sw_agent')])"

    done = run("--show", "-c", code, **variables)

    assert (done.returncode, done.stdout, done.stderr) == (0, "None []\n", "")


def test_the_file_can_switch_the_agent_off(run, tmp_path):
    (tmp_path / "agent.toml").write_text("[agent]\nenabled = false\n")

    assert run("-c", "import os; print(os.environ.get('PYTHONPATH'))").stdout == "None\n"
    assert run("-c", IS_TRACED).stdout == "False\n"
    assert run("-c", IS_TRACED, SW_AGENT_ENABLED="true").stdout == "True\n"


@pytest.mark.parametrize(
    ("options", "toml", "message"),
    [
        ([], "[agent]\nnmae = 'x'", "agent.toml:2: [agent] has no key 'nmae'; did you mean 'name'?"),
        ([], "[agent", "agent.toml: this is no TOML: "),
        (["--config", "none.toml"], "", "none.toml: No such file or directory"),
        (["--to", "oltp"], "", "--to: 'oltp' is none of"),
        (["--to=local,none"], "", "--to: 'none' stands alone"),
        (["--disable", "threadin"], "", "--disable: there is no plugin 'threadin'; did you mean 'threading'?"),
        (["--shwo"], "", "there is no option --shwo; did you mean '--show'?"),
        (["-u"], "", "there is no option -u; an option of Python's? sw-python run python -u"),
        (["--service="], "", "--service needs a value: --service=…"),
        (["--service", "--show"], "", "--service needs a value: --service=…"),
        (["--show=yes"], "", "--show takes no value"),
    ],
)
def test_wrong_options_and_configurations_stop_the_launch_with_2(run, tmp_path, options, toml, message):
    (tmp_path / "agent.toml").write_text(toml)
    write(tmp_path, app="print('started')")

    done = run(*options, "app.py")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"sw-python run: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--"], ["--show"], ["-m"], ["-c"], ["--to"]], ids=" ".join)
def test_a_launch_without_a_program_says_what_is_missing(run, arguments):
    done = run(*arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_options_reach_the_program_and_all_that_it_starts(run, tmp_path):
    (tmp_path / "agent.toml").write_text('[agent]\nname = "file"\n')
    names = {variable for key in _config_schema.KEYS for variable in key.variables} | set(_config_schema.INTERNAL)
    code = f"import os; print({{name: os.environ[name] for name in {names} if name in os.environ}})"
    options = [
        "--service=shop",
        "--disable",
        "logging",
        "--disable=asyncio",
        "--to",
        "console",
        "--debug",
        "--program-span",
    ]

    done = run(*options, "-c", code, SW_EXPORT_PATH=None)

    assert eval(done.stdout.splitlines()[0]) == {
        "SW_AGENT_NAME": "shop",
        "SW_AGENT_DISABLE_PLUGINS": "logging,asyncio",
        "SW_EXPORT_TO": "console",
        "SW_AGENT_LOGGING_LEVEL": "DEBUG",
        "SW_AGENT_PROGRAM_SPAN": "true",
        "SW_AGENT_COMMAND": "-c",
        "SW_AGENT_CONFIG": str(tmp_path / "agent.toml"),
    }


# Watching the program to its end


def test_show_prints_the_waterfall_to_stderr_and_leaves_stdout_to_the_program(run, tmp_path):
    write(tmp_path, app=f"print('the result')\n{ONE_SPAN}\nimport sys; sys.exit(3)")
    (tmp_path / "other.py").write_text(ONE_SPAN.replace("work", "of another run"))
    run("other.py")

    done = run("--show", "--to", "none", "app.py")

    assert (done.returncode, done.stdout) == (3, "the result\n")
    assert "work" in done.stderr
    assert "of another run" not in done.stderr


WAITS = """
import signal, sys
watched = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}
signal.pthread_sigmask(signal.SIG_BLOCK, watched)
last = getattr(signal, sys.argv[1])
print("ready", flush=True)
while (number := signal.sigwait(watched)) != last:
    print("received", number.name, flush=True)
sys.exit(9)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_show_passes_signals_on_to_the_program(tmp_path, environ, name):
    write(tmp_path, app=WAITS)
    process = subprocess.Popen(
        [SW_PYTHON, "run", "--show", "app.py", name],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
        env=environ,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(getattr(signal, name))
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (out, process.returncode) == ("", 9)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="here nobody can tell who sent a signal")
def test_ctrl_c_in_a_terminal_reaches_a_shown_program_once(tmp_path, environ):
    """The launcher is stopped until the program has had its own SIGINT: two at a time would be one."""
    write(tmp_path, app=WAITS)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(SW_PYTHON, [SW_PYTHON, "run", "--show", "app.py", "SIGUSR1"], environ)
    said = b""
    with open(terminal, "r+b", buffering=0) as io:
        while b"ready" not in said:
            said += io.read(1024)
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        io.write(b"\x03")
        while b"received" not in said:
            said += io.read(1024)
        os.kill(pid, signal.SIGUSR1)  # its number is the higher one: the launcher takes it after the SIGINT
        os.kill(pid, signal.SIGCONT)
        try:
            while text := io.read(1024):
                said += text
        except OSError:  # how Linux tells the end of a terminal
            pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert said.count(b"received SIGINT") == 1


def test_show_dies_of_the_signal_that_the_program_died_of(run, tmp_path):
    write(tmp_path, app=f"{ONE_SPAN}\nimport os, signal; os.kill(os.getpid(), signal.SIGTERM)")

    done = run("--show", "app.py")

    assert done.returncode == -signal.SIGTERM
    assert "work" in done.stderr


# Weight


def test_a_small_program_loads_nothing_heavy(run, call):
    """What `hello.py` needs is all that is loaded: no SDK, no exporter, none of the libraries that plugins are for."""
    code = "print('hello'); import sys; print(*sorted(sys.modules))"
    _, plain = call(sys.executable, "-c", code).stdout.splitlines()
    _, under = run("-c", code).stdout.splitlines()

    added = {name for name in set(under.split()) - set(plain.split()) if not name.startswith("sw_agent")}
    heavy = (
        "opentelemetry", "asyncio", "ssl", "socket", "logging", "threading", "concurrent", "multiprocessing", "re",
        "typing", "dataclasses", "importlib", "tomllib", "tomli", "enum", "sqlite3", "json", "contextlib", "inspect",
        "celery", "aiohttp", "sw_agent_plugins",
    )  # fmt: skip
    assert not {name for name in added if name.partition(".")[0] in heavy}
    assert not {name for name in under.split() if name.startswith(("sw_agent.cli", "sw_agent.view"))}


def test_the_launcher_loads_nothing_heavy(run):
    done = run("-c", "pass", PYTHONPROFILEIMPORTTIME="1")

    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "sw_agent.cli.run" in loaded
    assert not loaded & {
        "argparse",
        "rich",
        "sqlite3",
        "importlib.metadata",
        "typing",
        "subprocess",
        "shutil",
        "signal",
    }
