"""Programs that nobody here wrote: under the agent they print, return and do what they do without it."""

import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import toolz

from launched import SW_PYTHON, own_environ
from sw_agent.export.store import read_trace, read_traces

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    home = tmp_path / "home"
    home.mkdir()
    return own_environ(home, BLACK_CACHE_DIR=str(home), PYLINTHOME=str(home))


@pytest.fixture
def source_tree(tmp_path: Path) -> Path:
    """A tree of real source files, some of which black would change."""
    tree = tmp_path / "tree" / "toolz"
    shutil.copytree(Path(toolz.__file__).parent, tree, ignore=shutil.ignore_patterns("__pycache__"))
    return tree


def run(command: list[str], environ: dict[str, str], cwd: Path) -> tuple[int, str, str]:
    done = subprocess.run(command, env=environ, cwd=cwd, capture_output=True, text=True, timeout=280)
    return done.returncode, done.stdout, done.stderr


def lines(output: tuple[int, str, str]) -> tuple[int, list[str], list[str]]:
    """The output with its lines sorted: worker processes finish in any order."""
    status, stdout, stderr = output
    return status, sorted(stdout.splitlines()), sorted(stderr.splitlines())


def without_times(output: tuple[int, str, str]) -> tuple[int, str, str]:
    status, stdout, stderr = output
    return status, re.sub(r"=+", "=", re.sub(r"\d+\.\d+s", "N s", stdout)), stderr


def test_black_says_the_same_of_a_source_tree(environ, source_tree):
    command = [sys.executable, "-m", "black", "--check", "--line-length=60", "--workers=2", str(source_tree)]
    plain = run(command, environ, source_tree)
    shutil.rmtree(environ["BLACK_CACHE_DIR"])
    traced = run([SW_PYTHON, "run", *command], environ, source_tree)

    assert lines(traced) == lines(plain)
    assert plain[0] == 1
    assert "would reformat" in plain[2]


def test_black_formats_a_tree_to_the_same_bytes(environ, source_tree):
    def formatted(prefix: list[str], copy: Path) -> dict[str, bytes]:
        shutil.copytree(source_tree, copy)
        run([*prefix, sys.executable, "-m", "black", "--line-length=60", "--workers=2", str(copy)], environ, copy)
        return {str(path.relative_to(copy)): path.read_bytes() for path in sorted(copy.rglob("*.py"))}

    assert formatted([], source_tree.with_name("plain")) == formatted(
        [SW_PYTHON, "run"], source_tree.with_name("traced")
    )


def test_a_run_of_black_is_one_trace_through_several_processes_and_no_file_is_missing(environ, source_tree):
    environ["SW_PLUGIN_CONCURRENT_FUTURES_SPANS"] = "true"
    environ["SW_EXPORT_PATH"] = store = str(source_tree.parent / "traces.db")
    command = [sys.executable, "-m", "black", "--check", "--line-length=60", "--workers=2", str(source_tree)]
    run([SW_PYTHON, "run", "--program-span", *command], environ, source_tree)

    [summary] = read_traces(store)
    spans = read_trace(store, summary.trace_id)
    roots = [span for span in spans if span.parent_id is None]
    files = [span for span in spans if span.attributes.get("code.function.name") == "black.format_file_in_place"]
    assert len(roots) == 1
    assert len(files) == len(list(source_tree.rglob("*.py")))
    assert {span.parent_id for span in files} == {roots[0].span_id}
    assert roots[0].resource["process.pid"] not in {span.resource["process.pid"] for span in files}
    assert len({span.resource["process.pid"] for span in spans}) >= 2
    assert all(span.attributes["sw.wait_ms"] >= 0 for span in files)
    known = {span.span_id for span in spans}
    assert all(span.parent_id in known for span in spans if span.parent_id)


@pytest.mark.skipif(sys.version_info >= (3, 15), reason="dill, which pylint sends its jobs with, needs code.co_lnotab")
def test_pylint_with_two_jobs_says_the_same(environ, source_tree):
    command = [
        sys.executable,
        "-m",
        "pylint",
        "-j",
        "2",
        "--persistent=no",
        "--disable=all",
        "--enable=W,C",
        str(source_tree),
    ]
    plain = run(command, environ, source_tree.parent)
    traced = run([SW_PYTHON, "run", *command], environ, source_tree.parent)

    assert lines(traced) == lines(plain)
    assert "toolz/sandbox/parallel.py" in plain[1]


def test_pytest_passes_an_installed_packages_tests_alike(environ, tmp_path):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "--pyargs", "toolz"]
    plain = without_times(run(command, environ, tmp_path))
    traced = without_times(run([SW_PYTHON, "run", *command], environ, tmp_path))

    assert traced == plain
    assert plain[0] == 0
    assert re.search(r"\d+ passed", plain[1])


def test_http_server_serves_and_logs_the_same(environ, tmp_path):
    (tmp_path / "index.html").write_text("<p>hello")

    def served(prefix: list[str]) -> tuple[int, list[int], str]:
        server = subprocess.Popen(
            [*prefix, sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"],
            env=environ,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stdout is not None
            port = re.search(r"port (\d+)", server.stdout.readline()).group(1)
            statuses = []
            for path in ("", "index.html", "missing") * 10:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
                        assert answer.read() == b"<p>hello"
                        statuses.append(answer.status)
                except urllib.error.HTTPError as error:
                    statuses.append(error.code)
                    error.close()
            server.send_signal(signal.SIGINT)
            _, stderr = server.communicate(timeout=30)
            return server.returncode, statuses, re.sub(r"\[.*?\]", "[time]", stderr)
        finally:
            server.kill()
            server.wait()

    plain, traced = served([]), served([SW_PYTHON, "run"])
    assert traced == plain
    assert plain[1] == [200, 200, 404] * 10
