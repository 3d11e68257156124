"""A cluster that shrinks to its predictors is noticed; one that has room, may grow, or gets nodes back is not."""

from ray_jobs.room_watch import LOOK_S, PATIENCE_S, RoomWatch
from ray_jobs.sizing import GIB, Cluster, Node, Resources


class World:
    """Time and nodes that a test moves; seconds pass in the steps in which a run asks."""

    def __init__(self, *num_cpus: int) -> None:
        self.now = 100.0
        self.limits: dict[str, float] = {}
        self.set(*num_cpus)
        self.watch = RoomWatch(Resources(num_predictors=2), lambda: self.now, lambda: self.cluster)

    def set(self, *num_cpus: int) -> None:
        self.nodes = tuple(Node(float(number), 0.0, 64 * GIB) for number in num_cpus)

    @property
    def cluster(self) -> Cluster:
        return Cluster(self.nodes, self.limits)

    def waits(self, seconds: float) -> str | None:
        """The first trouble while nothing arrives for so long."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.5
            if (found := self.watch.trouble()) is not None:
                return found
        return None


def test_predictors_that_take_all_that_is_left_are_said() -> None:
    world = World(0, 2, 2)
    assert world.waits(10 * PATIENCE_S) is None
    world.set(0, 2)
    assert world.waits(PATIENCE_S - 2 * LOOK_S) is None
    assert "on the 2 CPUs that are left 2 predictors leave no room" in str(world.waits(3 * LOOK_S))


def test_a_node_that_comes_back_in_time_is_enough() -> None:
    world = World(2)
    assert world.waits(PATIENCE_S - 2 * LOOK_S) is None
    world.set(2, 1)
    assert world.waits(LOOK_S) is None
    world.set(2)
    assert world.waits(PATIENCE_S - 2 * LOOK_S) is None


def test_an_autoscaler_is_waited_for() -> None:
    world = World(2)
    world.limits = {"CPU": 8.0}
    assert world.waits(10 * PATIENCE_S) is None


def test_rows_that_arrive_are_room_enough() -> None:
    world = World(2)
    for _ in range(20):
        assert world.waits(PATIENCE_S / 2) is None
        world.watch.arrived()
