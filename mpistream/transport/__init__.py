"""How blocks travel: sockets, routing, the aggregator."""
