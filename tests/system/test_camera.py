"""Producers to which the camera's own processes push: scans that nobody announces, over real sockets."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpistream.control.coordination import Coordination
from mpistream.control.session_registry import SessionRegistry
from mpistream.launch.local import MPI_ENVIRONMENT, etcd_command, free_port
from mpistream.launch.processes import ChildProcess
from mpistream.model.scan import CountingParameters
from mpistream.model.session import Session
from tests.system.camera_push import CameraSession, Pusher, RasterScan
from tests.system.command_line import CommandLine, endpoint_in, etcd_values, etcdctl, finish, wait_until
from tests.system.datasets import assert_frames_of, assert_same_events
from tests.system.sector_writer import BACKGROUND, SECTORS, XRAY
from tests.system.test_processes import AGGREGATOR, PRODUCERS, Deployment
