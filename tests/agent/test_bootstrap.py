"""What happens in a traced process before the program: plugins found, brought in when needed, and contained."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from launched import SW_PYTHON, own_environ
from sw_agent import _bootstrap, _command

PLUGIN = """
from sw_agent.plugin import Option, Plugin
plugin = Plugin("mine", options=[Option("greeting", "hello", "what it says")], requires="mylib>=2,<3")

@plugin.before("mylib:work")
def say_so(instance, args, kwargs):
    print(plugin.settings["greeting"], *args)
"""
PROGRAM = "print('start'); import mylib; mylib.work('args'); mylib.work('args'); print('end')"


class Site:
    """A folder on PYTHONPATH with a library, and a distribution that brings a plugin for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "mylib.py").write_text("def work(*args): print('work', *args)\n")
        self.distribution("mylib", "2.5")
        self.plugin(PLUGIN)

    def distribution(self, name: str, version: str, entry_points: str = "") -> None:
        info = self.folder / f"{name}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entry_points)

    def plugin(self, code: str, entry: str = "mine = theplugin:plugin [mylib]") -> None:
        (self.folder / "theplugin.py").write_text(code)
        self.distribution("theplugin", "1.0", f"[console_scripts]\nx = y:z\n\n[sw_agent.plugins]\n{entry}\n")

    def run(self, *options: str, program: str = PROGRAM, **variables: str) -> subprocess.CompletedProcess[str]:
        environ = own_environ(self.folder, PYTHONPATH=str(self.folder), SW_EXPORT_TO="none")
        return subprocess.run(
            [SW_PYTHON, "run", *options, "-c", program],
            env={**environ, **variables},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


UNTOUCHED = "start\nwork args\nwork args\nend\n"


def test_a_plugin_of_somebody_elses_is_found_and_installed_with_its_options(site):
    done = site.run(SW_PLUGIN_MINE_GREETING="good morning")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "start\ngood morning args\nwork args\ngood morning args\nwork args\nend\n"


def test_a_plugin_is_not_imported_before_its_library(site):
    site.plugin("print('plugin imported')" + PLUGIN)

    done = site.run(program="import sys; print('mylib' in sys.modules, 'theplugin' in sys.modules); import mylib")

    assert done.stdout == "False False\nplugin imported\n"


def test_a_plugin_without_triggers_is_brought_in_at_the_start(site):
    site.plugin("print('plugin imported')" + PLUGIN, entry="mine = theplugin:plugin")

    assert site.run(program="print('start')").stdout == "plugin imported\nstart\n"


def test_a_plugin_that_is_a_part_of_its_library_waits_for_the_librarys_end(site):
    (site.folder / "mylib.py").unlink()
    (site.folder / "mylib").mkdir()
    (site.folder / "mylib" / "__init__.py").write_text("print('library'); def work(*args): ...".replace("; ", "\n"))
    (site.folder / "mylib" / "tracing.py").write_text(PLUGIN)
    site.distribution("theplugin", "1.0", "[sw_agent.plugins]\nmine = mylib.tracing:plugin [mylib]\n")

    assert site.run().stdout == "start\nlibrary\nhello args\nhello args\nend\n"


def test_a_library_that_is_loaded_already_is_handled_at_once(site):
    (site.folder / "early.py").write_text("import mylib; print('early')\n")
    (site.folder / "earlier.dist-info").mkdir()
    site.distribution("earlier", "1", "[sw_agent.plugins]\nanother = early:plugin\n")

    done = site.run()

    assert done.stdout.startswith("early\nstart\nhello args\nwork args\n")


@pytest.mark.parametrize(
    "options",
    [
        {"SW_AGENT_DISABLE_PLUGINS": "mine"},
        {"SW_PLUGIN_MINE_ENABLED": "false"},
        {"SW_AGENT_ENABLED": "false"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_plugin_that_is_off_leaves_its_library_untouched(site, options):
    site.plugin("print('plugin imported')" + PLUGIN)

    done = site.run(**options)

    assert (done.returncode, done.stdout, done.stderr) == (0, UNTOUCHED, "")


def test_a_plugin_is_switched_off_by_the_command_line_and_the_file(site):
    assert site.run("--disable", "mine").stdout == UNTOUCHED
    (site.folder / "agent.toml").write_text("[plugins.mine]\nenabled = false\n")
    assert site.run().stdout == UNTOUCHED


FAILURES = {
    "raises on import": ("raise RuntimeError('on purpose')", "plugin mine failed"),
    "ends the process on import": ("raise SystemExit(5)", "plugin mine failed"),
    "imports what is not there": ("import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
    "is no Python": ("def broken(:", "SyntaxError"),
    "has no such attribute": ("", "module 'theplugin' has no attribute 'plugin'"),
    "is no plugin": ("plugin = 3", "theplugin:plugin is no Plugin"),
    "has another name": (PLUGIN.replace('"mine"', '"other"'), "is named 'other', its entry point 'mine'"),
    "raises in install": (
        PLUGIN + "\ndef install(settings): raise RuntimeError('on purpose')\nplugin.install = install",
        "plugin mine failed",
    ),
    "has a target that is not there": (PLUGIN.replace("mylib:work", "mylib:gone"), "mylib:gone does not exist"),
    "raises in its interceptor": (PLUGIN.replace("    print(", "    raise RuntimeError("), "mylib:work failed"),
    "requires what is no requirement": (PLUGIN.replace("mylib>=2,<3", "mylib >>> 2"), "plugin mine failed"),
}


@pytest.mark.parametrize(("code", "said"), FAILURES.values(), ids=FAILURES)
def test_a_plugin_that_fails_is_contained_and_said_once(site, code, said):
    site.plugin(code)

    done = site.run(SW_PLUGIN_MINE_GREETING="hi")  # so that the check of the configuration imports it too

    assert (done.returncode, done.stdout) == (0, UNTOUCHED)
    assert said in done.stderr
    assert done.stderr.count("the program goes on without it") == 1


def test_an_entry_point_that_names_nothing_is_contained(site):
    site.plugin(PLUGIN, entry="mine = nothing_of_that_name:plugin [mylib]")

    done = site.run()

    assert (done.returncode, done.stdout) == (0, UNTOUCHED)
    assert "No module named 'nothing_of_that_name'" in done.stderr


def test_a_plugin_for_other_versions_of_its_library_is_left_out_with_a_line_that_says_so(site):
    site.distribution("mylib", "3.1")

    done = site.run()

    assert (done.returncode, done.stdout) == (0, UNTOUCHED)
    assert done.stderr == ("sw-python: WARNING: plugin mine is left out: mylib 3.1 is installed, supported is <3,>=2\n")


def test_broken_metadata_of_other_distributions_is_no_concern(site):
    site.distribution("odd", "1", "no section\n[sw_agent.plugins]\nno equals sign\n# a = b:c\n; a = b:c\n[half\n")
    (site.folder / "binary.dist-info").mkdir()
    (site.folder / "binary.dist-info/entry_points.txt").write_bytes(b"[sw_agent.plugins]\n\xff = x:y\n")
    (site.folder / "file.dist-info").write_text("no folder")

    assert site.run().stdout.startswith("start\nhello args\n")


def test_starting_twice_is_starting_once(site):
    again = "import os; os.environ['SW_EXPORT_TO'] = 'wrong'; from sw_agent import _bootstrap; _bootstrap.start()"

    done = site.run(program=f"{again}\n{PROGRAM}")

    assert (done.stdout.count("hello"), done.stderr) == (2, "")


def test_a_process_without_stderr_runs(site):
    code = f"import os, subprocess, sys; os.environ['SW_EXPORT_TO'] = 'wrong'; os.close(2)\n" \
           f"sys.exit(subprocess.call([sys.executable, '-c', {PROGRAM!r}]))"  # fmt: skip

    done = site.run(program=code)

    assert (done.returncode, done.stdout) == (0, UNTOUCHED)


@pytest.mark.parametrize(
    ("argv", "left_alone"),
    [
        (["python", "/venv/bin/sw-python", "run", "app.py"], True),
        (["python", "-c", "from multiprocessing.resource_tracker import main;main(5)"], True),
        (["python", "-c", "from multiprocessing.forkserver import main; main(1, 2, [], **{})"], False),
        (
            ["python", "-c", "from multiprocessing.spawn import spawn_main; spawn_main()", "--multiprocessing-fork"],
            False,
        ),
        (["python", "app.py", "sw-python"], False),
        (["python"], False),
        ([], False),
    ],
)
def test_processes_that_do_no_work_of_the_programs_are_left_alone(argv, left_alone):
    assert _bootstrap._is_left_alone(argv) is left_alone


@pytest.mark.parametrize(
    ("code", "module"),
    [
        ("from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=5, pipe_handle=7)", "spawn"),
        ("from multiprocessing.forkserver import main; main(1, 2, [], **{})", "forkserver"),
        ("import sys; from multiprocessing.forkserver import main; main(1, 2, [], **{})", "forkserver"),  # 3.14
        ("from multiprocessing.resource_tracker import main;main(5)", "resource_tracker"),
        ("from multiprocessing.pool import Pool; Pool(2).map(print, range(2))", ""),
        ("import sys; print(sys.argv)", ""),
    ],
)
def test_the_processes_of_multiprocessing_are_told_from_programs(code, module):
    assert _command.module_of_multiprocessing(["python", "-s", "-c", code]) == module


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_a_program_of_several_processes_has_one_program_span(site, method):
    program = (
        "import multiprocessing\n"
        f"process = multiprocessing.get_context({method!r}).Process(target=print, args=('in the child',))\n"
        "process.start(); process.join()"
    )

    done = site.run("--program-span", program=program, SW_EXPORT_TO="console")

    assert (done.returncode, done.stdout) == (0, "in the child\n")
    assert len(done.stderr.splitlines()) == 1
    assert "'-c'" in done.stderr
