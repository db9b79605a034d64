"""An aggregator process: between the producers at the microscope and the ranks of the MPI job."""

import logging
import os
import socket

from mpistream.control.registry import AggregatorEntry
from mpistream.model.config import Config
from mpistream.model.routing_table import RoutingTable
from mpistream.pipeline.process import connect_etcd, on_termination, open_registry
from mpistream.transport.aggregator import Aggregator
from mpistream.transport.mailbox import Mailbox
from mpistream.transport.sockets import Sockets

_log = logging.getLogger(__name__)


def run_aggregator(config: Config) -> None:
    """Forwards until it is told to end."""
    tables: Mailbox[RoutingTable | None] = Mailbox()  # None: end
    on_termination(lambda: tables.put(None))
    host, options = config.network.host, config.aggregator
    with connect_etcd(config) as etcd:
        registry = open_registry(config, etcd)
        sockets = Sockets()
        sockets.wait_for(tables)
        data_inlet = sockets.data_inlet(host, options.data_port)
        answer_inlet = sockets.answer_inlet(host, options.answer_port)
        aggregator = Aggregator(sockets, data_inlet, answer_inlet)
        watch = registry.watch_routing(tables.put)
        registration = registry.register_aggregator(
            AggregatorEntry(options.name, socket.gethostname(), os.getpid(), data_inlet.endpoint, answer_inlet.endpoint)
        )
        _log.info("aggregator takes blocks at %s", data_inlet.endpoint)
        try:
            while True:
                sockets.wait(timeout_seconds=1.0)
                for table in tables.take():
                    if table is None:
                        return
                    aggregator.adopt(table)
                aggregator.forward()
        finally:
            sockets.close()
            registration.close()
            watch.close()
