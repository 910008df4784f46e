"""``python -m tests.integration.ray_cluster``: a real Ray cluster of three nodes, one with a GPU by name, until its
standard input closes. To be started in a network namespace: Ray listens on all of the machine's addresses."""

import os
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def main() -> None:
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(**node)
    cluster.add_node(**node, num_gpus=1)
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
