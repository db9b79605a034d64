"""What a producer starts in order to listen to the camera."""

import logging
from contextlib import ExitStack
from dataclasses import dataclass

from mpistream.control.camera_registry import CameraRegistry
from mpistream.control.coordination import Coordination
from mpistream.control.session_registry import SessionRegistry
from mpistream.model.config import Config
from mpistream.pipeline.courier import Courier
from mpistream.pipeline.producing.camera_intake import CameraIntake
from mpistream.pipeline.producing.camera_scans import CameraAnnouncer, CameraScans, CountingOf, Opening
from mpistream.pipeline.producing.news import CameraChange, CameraRefusal, News
from mpistream.transport.mailbox import Mailbox
from mpistream.transport.sockets import Sockets

_log = logging.getLogger(__name__)

#: Messages of each peer that wait in this process before they wait where they come from: 42 MB.
_MOST_WAITING = 256


@dataclass(frozen=True)
class CameraListening:
    """``host``, ``port``: where the camera's own processes push; ``counting_of``: how the scans are counted that they
    announce thereby.
    """

    host: str
    port: int
    counting_of: CountingOf

    def start(
        self,
        config: Config,
        sector: int,
        etcd: Coordination,
        sockets: Sockets,
        courier: Courier,
        news: Mailbox[News],
        closing: ExitStack,
    ) -> CameraIntake:
        """Raises SocketError. What is to be closed at the end goes to ``closing``."""

        def on_refusal(opening: Opening, reason: str) -> None:
            news.put(CameraRefusal(opening, reason))

        inlet = sockets.camera_inlet(self.host, self.port, _MOST_WAITING)
        registry = CameraRegistry(etcd)
        scans = CameraScans(config, SessionRegistry(etcd), registry, self.counting_of)
        intake = CameraIntake(config, sector, inlet, CameraAnnouncer(scans, sector, courier, on_refusal))
        closing.callback(intake.close)
        closing.callback(registry.watch(lambda change: news.put(CameraChange(change))).close)
        _log.info("the camera pushes sector %d to %s", sector, inlet.endpoint)
        return intake
