"""How blocks travel: sockets, news between threads, the aggregator."""
