"""`sw-python run --show`: the program as a child process, and the picture of its traces when it has ended."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import redirect_stdout
from functools import partial

from .run import start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .._config import Config

_FORWARDED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}


def run_and_show(path: str, command: list[str], environ: dict[str, str], config: Config) -> int:
    """Run the program to its end, print its traces to stderr, and end as it ended; stdout is all the program's."""
    run = os.urandom(8).hex()
    environ["SW_AGENT_RUN"] = run
    if "local" not in config.to:
        environ["SW_EXPORT_TO"] = ",".join((*config.to, "local"))
    try:
        status = _run(path, command, environ)
    except OSError as error:
        sys.stderr.write(f"sw-python run: {path}: {error.strerror}\n")
        return 126
    from .show import print_run

    with redirect_stdout(sys.stderr):
        print_run(config.path, run)
    return _end_as(os.waitstatus_to_exitcode(status))


def _run(path: str, command: list[str], environ: dict[str, str]) -> int:
    """Start the program and wait for it, passing on what is sent to this process; return its wait status.

    Raises:
        OSError: it cannot be started.
    """
    watched = _FORWARDED | {signal.SIGCHLD}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # were it ignored, children would leave no status
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    try:
        spawn = partial(os.posix_spawn, setsigmask=before, setsigdef=(signal.SIGPIPE, signal.SIGXFSZ))
        pid = start(spawn, path, command, environ)
        while True:
            number = _next_signal(watched)
            if number == signal.SIGCHLD:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    return status
            elif number is not None:
                os.kill(pid, number)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _next_signal(watched: set[signal.Signals]) -> int | None:
    """Wait for a signal; None for one from the terminal, such as Ctrl-C, which goes to the program too."""
    if hasattr(signal, "sigwaitinfo"):
        info = signal.sigwaitinfo(watched)
        by_kernel = info.si_code > 0  # SI_KERNEL, CLD_EXITED, …; from kill(2) it is SI_USER, 0
        return None if by_kernel and info.si_signo != signal.SIGCHLD else info.si_signo
    number = signal.sigwait(watched)  # macOS does not tell who sent it
    return None if number in (signal.SIGINT, signal.SIGQUIT) and os.isatty(0) else number


def _end_as(code: int) -> int:
    """Return the program's exit status, or die of the signal that it died of."""
    if code >= 0:
        return code
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core of this process would explain nothing
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    return 128 - code
