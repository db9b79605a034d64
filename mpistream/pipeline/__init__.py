"""Where the stages meet each other and etcd.

producer:    read -> send                                                (producing/)
aggregator:  receive -> forward                                          (aggregator.py)
rank:        receive -> assemble -> count -> journal -> gather -> write  (ranks/)
leader:      one rank of every job: what its ranks are told, and, where it conducts, what becomes of scans  (leading/)
"""
