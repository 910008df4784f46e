"""Points on an existing Ray cluster: one task each, and a task that dies takes no other with it.

Written on Ray itself: the package hydra-ray-launcher (1.2.2) wants cloudpickle < 3, which joblib no longer allows,
waits for ever for what no node has, and gives up all points for one dead worker.
"""

import logging
import os
import platform
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.utils import JobReturn, configure_log

from eval.errors import KeelBenchError
from suite.launchers.points import Point, SweepToLaunch, Work, announce, told, work_of
from suite.sweep import mark_dead, read_state

log = logging.getLogger(__name__)

_GIB = 2**30
_CONNECT_SECONDS = 10.0


def launch(sweep: SweepToLaunch, points: Sequence[Point], options: Mapping[str, Any]) -> list[JobReturn]:
    """Carry out ``points``; returns when the last one has ended, however it did.

    Raises:
        KeelBenchError: no Ray, no cluster, or no node that has what a point asks for.
    """
    try:
        import ray
    except ImportError as error:
        raise KeelBenchError("hydra/launcher=ray needs Ray: pip install 'keelbench[ray]'") from error

    configure_log(sweep.config.hydra.hydra_logging, sweep.config.hydra.verbose)
    remote = dict(options["remote"])
    _connect(ray, dict(options["init"]))
    try:
        demands = [_demand(point, remote) for point in points]
        if not options["cluster_grows"]:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            refuse_unsatisfiable(nodes, {p.number: d for p, d in zip(points, demands, strict=True)})
        environment = {k: v for k, v in os.environ.items() if k.startswith(tuple(options["environment"]))}
        announce(points, pid=os.getpid(), host=platform.node())
        log.info("Ray: %d points of %s", len(points), sweep.folder)
        # A worker of its own for each point: nothing of one point's memory or state is left for the next.
        task = ray.remote(max_calls=1)(_carry_out)
        running = {
            task.options(**{**remote, **_as_options(demand), "name": f"{sweep.folder.name}/{point.number}"}).remote(
                work_of(sweep, point, environment)
            ): point
            for point, demand in zip(points, demands, strict=True)
        }
        _collect(ray, running)
    finally:
        ray.shutdown()
    return told(points)


def _carry_out(work: Work) -> None:
    if not work.point.resources.gpus:  # Ray leaves all of the node's visible to a task that asks for none
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    work.carry_out()


def _connect(ray: Any, init: dict[str, Any]) -> None:
    address = init.get("address")
    if not address:
        raise KeelBenchError(
            "hydra/launcher=ray: which cluster? Give hydra.launcher.init.address=HOST:PORT or RAY_ADDRESS; "
            "hydra.launcher.init.address=local starts one on this machine"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    host, _, port = str(address).rpartition(":")
    if host and port.isdigit():  # Ray itself would try for minutes
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        except OSError as error:
            raise KeelBenchError(f"no Ray cluster answers at {address}: {error}") from error
    try:
        ray.init(**init, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise KeelBenchError(f"Ray at {address}: {error}") from error


def _demand(point: Point, remote: Mapping[str, Any]) -> dict[str, float]:
    """By Ray's names of resources."""
    asked = point.resources
    own = {str(k): float(v) for k, v in (remote.get("resources") or {}).items()}
    return {"CPU": float(asked.cpus), "GPU": float(asked.gpus), "memory": (asked.memory_gb or 0) * _GIB, **own}


def _as_options(demand: Mapping[str, float]) -> dict[str, Any]:
    return {"num_cpus": demand["CPU"], "num_gpus": demand["GPU"], "memory": demand["memory"] or None}


def refuse_unsatisfiable(nodes: Sequence[Mapping[str, float]], demands: Mapping[int, Mapping[str, float]]) -> None:
    """
    Args:
        nodes: what each living node has in all, by Ray's names.
        demands: what each point asks for; a task runs on one node.

    Raises:
        KeelBenchError: a point for which no node is large enough; Ray would wait for ever for one.
    """
    stuck: dict[str, list[int]] = {}
    for number, demand in demands.items():
        if not any(all(node.get(k, 0) >= v for k, v in demand.items() if v) for node in nodes):
            stuck.setdefault(_told(demand), []).append(number)
    if stuck:
        has = "; ".join(sorted({_told({k: n.get(k, 0) for k in (*_NAMES, *_own(demands))}) for n in nodes}))
        raise KeelBenchError(
            "\n".join(
                f"point{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}: no node has {asked}"
                for asked, numbers in stuck.items()
            )
            + f"\nthe cluster's nodes have: {has}"
        )


_NAMES = {"CPU": "CPUs", "GPU": "GPUs", "memory": "GiB of memory"}


def _own(demands: Mapping[int, Mapping[str, float]]) -> list[str]:
    return sorted({k for demand in demands.values() for k in demand} - set(_NAMES))


def _told(amounts: Mapping[str, float]) -> str:
    figures = {k: v / _GIB if k == "memory" else v for k, v in amounts.items()}
    return ", ".join(f"{v:.4g} {_NAMES.get(k, k)}" for k, v in figures.items() if v) or "nothing"


def _collect(ray: Any, running: dict[Any, Point]) -> None:
    """Wait for all, one by one as they end; an error is its own point's."""
    try:
        while running:
            (reference, *_), _ = ray.wait(list(running), num_returns=1)
            try:
                ray.get(reference)
            except ray.exceptions.RayTaskError as error:  # raised outside of what records its own errors
                cause = error.cause
                told_error = str(cause) if isinstance(cause, KeelBenchError) else f"{type(cause).__name__}: {cause}"
                mark_dead(running[reference].folder, running[reference].task, told_error)
            except ray.exceptions.RayError as error:  # its process, or its whole node, is gone
                words = str(error).strip().splitlines() or [""]
                mark_dead(running[reference].folder, running[reference].task, f"{type(error).__name__}: {words[0]}")
            point = running.pop(reference)
            log.info("#%d %s: %s", point.number, read_state(point.folder), point.task)
    except BaseException as error:  # interrupted: Ray ends the tasks of a driver that leaves
        for point in running.values():
            mark_dead(point.folder, point.task, f"the sweep was stopped: {error!r}")
        raise
