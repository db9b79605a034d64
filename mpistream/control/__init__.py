"""What is known to all: the states of a scan and the etcd keys that hold them."""
