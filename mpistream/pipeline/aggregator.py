"""An aggregator process: between the producers at the microscope and the ranks of the MPI jobs."""

import logging
import os
import socket
from contextlib import ExitStack
from functools import partial

from mpistream.control.registry import AggregatorEntry
from mpistream.model.config import Config
from mpistream.model.routing_table import RoutingTable
from mpistream.pipeline.courier import Courier
from mpistream.pipeline.process import connect_etcd, new_incarnation, on_termination, open_registry
from mpistream.transport.aggregator import Aggregator
from mpistream.transport.interface import own_address
from mpistream.transport.mailbox import Mailbox
from mpistream.transport.sockets import Sockets

_log = logging.getLogger(__name__)

_TURN_SECONDS = 0.5


def run_aggregator(config: Config) -> None:
    """Forwards until it is told to end."""
    tables: Mailbox[RoutingTable | None] = Mailbox()  # None: end
    on_termination(lambda: tables.put(None))
    host, options = own_address(config.network), config.aggregator
    with ExitStack() as closing:
        registry = open_registry(config, closing.enter_context(connect_etcd(config)))
        courier = closing.enter_context(Courier())
        sockets = Sockets()
        closing.callback(sockets.close)
        sockets.wait_for(tables)
        data_inlet = sockets.data_inlet(host, options.data_port)
        answer_inlet = sockets.answer_inlet(host, options.answer_port)
        aggregator = Aggregator(sockets, data_inlet, answer_inlet)
        watch = registry.watch_routing(tables.put)
        closing.callback(watch.close)
        registration = registry.register_aggregator(
            AggregatorEntry(
                options.name,
                socket.gethostname(),
                os.getpid(),
                data_inlet.endpoint,
                answer_inlet.endpoint,
                new_incarnation(),
            )
        )
        closing.callback(registration.close)
        _log.info("aggregator takes blocks at %s", data_inlet.endpoint)
        while True:
            sockets.wait(_TURN_SECONDS)
            for table in tables.take():
                if table is None:
                    return
                aggregator.adopt(table)
            aggregator.forward()
            courier.say(partial(registry.write_status, "aggregators", options.name, aggregator.status()))
