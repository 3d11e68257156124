"""Notices when nodes were lost and the predictors, started again, take all that is left from the decoders."""

import time
from collections.abc import Callable

from ray_jobs.cluster import look
from ray_jobs.sizing import Cluster, Resources, num_decoders

PATIENCE_S = 120.0  # in which a node may come back
LOOK_S = 10.0


class RoomWatch:
    """Looks at the cluster while nothing arrives.

    Ray starts lost predictors again before decoders, so that a cluster that has shrunk to their number decodes nothing
    any more, and would wait for Ray's ten minutes. A cluster that may grow is left to its autoscaler.

    Args:
        resources: Of the running pipeline.
        clock: Seconds that only go on.
        look: The cluster as it is now.
    """

    def __init__(
        self,
        resources: Resources,
        clock: Callable[[], float] = time.monotonic,
        look: Callable[[], Cluster] = look,
    ) -> None:
        self._resources, self._clock, self._look = resources, clock, look
        self._had_room = self._looked = clock()

    def arrived(self) -> None:
        """Rows came: there is room."""
        self._had_room = self._clock()

    def trouble(self) -> str | None:
        """What to say of a cluster that has had no room for a decoder for `PATIENCE_S`; None otherwise."""
        now = self._clock()
        if now - max(self._had_room, self._looked) < LOOK_S:
            return None
        self._looked, cluster = now, self._look()
        if cluster.grows or num_decoders(self._resources, cluster) > 0:
            self._had_room = now
        if now - self._had_room < PATIENCE_S:
            return None
        return (
            f"nodes were lost, and on the {cluster.num_cpus_now:g} CPUs that are left {self._resources.num_predictors} "
            "predictors leave no room for a decoder: bring nodes back, or go on with as many predictors as fit now"
        )
