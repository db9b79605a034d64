"""The ``mpistream`` command: one subcommand per process, and those with which people work."""

import logging
import os
import signal
import sys
from typing import Any, NoReturn

import click

from mpistream import __version__
from mpistream.model.errors import MpistreamError


class LazyGroup(click.Group):
    """Loads a subcommand's module only when it is called. ``lazy``: MODULE, or MODULE:NAME where its name there is
    another one.
    """

    def __init__(self, *args: Any, lazy: dict[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lazy:
            return None
        from importlib import import_module

        module, _, attribute = self._lazy[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), attribute or cmd_name)
        return command


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    lazy={
        "demo": "mpistream.cli.demo",
        "testbed": "mpistream.cli.testbed",
        "status": "mpistream.cli.status",
        "scan": "mpistream.cli.scans",
        "trace": "mpistream.cli.scans",
        "session": "mpistream.cli.session",
        "reference": "mpistream.cli.reference",
        "job": "mpistream.cli.job",
        "simulate": "mpistream.cli.data",
        "info": "mpistream.cli.data",
        "verify": "mpistream.cli.data",
        "show": "mpistream.cli.data",
        "export": "mpistream.cli.data",
        "series": "mpistream.cli.series",
        "dark": "mpistream.cli.references",
        "calibrate": "mpistream.cli.references",
        "produce": "mpistream.cli.processes",
        "aggregate": "mpistream.cli.processes",
        "consume": "mpistream.cli.processes",
        "count": "mpistream.cli.count",
        "camera": "mpistream.cli.camera",
        "bench": "mpistream.cli.bench",
        "doctor": "mpistream.cli.doctor",
    },
)
@click.version_option(__version__)
def mpistream() -> None:
    """Streams 4D Camera frames into an MPI job that counts electrons and leaves a sparse 4D-STEM dataset.

    Try `mpistream testbed run --source sim:32x32 --output scan.h5` first: it does everything on this machine.
    """


def main() -> None:
    """Exit status: 0 done, 1 it could not be done (the message says why and what to do), 2 wrong usage, 3 a scan's
    dataset has only what had arrived, 130 interrupted.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("mpistream").setLevel(logging.INFO)
    # Asked to end by a scheduler, a command tidies up as after Ctrl-C. Long-running processes set their own handlers.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        mpistream(prog_name="mpistream", standalone_mode=False)
    except MpistreamError as error:
        _fail(error)
    except BrokenPipeError:
        # who read the output has gone; what is left in the buffer must not complain once more at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        _fail(
            MpistreamError(f"{error.filename}: {error.strerror}", "check the path, its permissions and the space left")
        )
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("mpistream: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        # The interpreter ends now and puts back the default actions on its way. Who is asked to end while it does so,
        # as an MPI rank that hears of it last, must not seem to have been killed.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


def _fail(error: MpistreamError) -> NoReturn:
    print(f"mpistream: error: {error}", file=sys.stderr)
    sys.exit(1)
