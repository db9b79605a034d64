"""Where the stages meet each other and etcd: one module per process.

producer:    read -> send                                   (producer.py)
aggregator:  receive -> forward                             (aggregator.py)
rank:        receive -> assemble -> count -> gather -> write   (rank.py, receiver.py, leader.py)
"""
