"""``python -m mpistream`` is the ``mpistream`` command."""

from mpistream.cli import main

main()
