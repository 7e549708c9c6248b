"""Who may start: exact packing, largest first, gaps filled, nobody kept out. Schedules are simulated to their end."""

from __future__ import annotations

import itertools
import random

import pytest

from raysft.cluster.admission import Admission, Node, fits
from raysft.spec.resources import Shape

pytestmark = pytest.mark.unit

SPOT = (("ray.io/market-type", "spot"),)


def _gpus(gpus: float, workers: int = 1, labels: tuple[tuple[str, str], ...] = ()) -> Shape:
    return Shape(workers, 1, gpus, labels)


@pytest.mark.parametrize(
    ("shapes", "nodes", "expected"),
    [
        ([_gpus(1)] * 8, [(8, 8)], True),
        ([_gpus(1)] * 9, [(16, 8)], False),
        ([_gpus(1, 8)], [(8, 4), (8, 4)], True),  # workers of a group may be on several nodes
        ([_gpus(8)], [(8, 4), (8, 4)], False),  # a worker of eight GPUs may not
        ([_gpus(3)] * 3, [(4, 4)] * 2, False),  # 9 of 8 GPUs
        ([_gpus(3)] * 2 + [_gpus(2)], [(4, 4)] * 2, False),  # 8 of 8, but not as 3 + 3 + 2
        ([_gpus(0.5)] * 4, [(4, 2)], True),
        ([_gpus(0.6)] * 3, [(4, 2)], False),  # shares of one GPU only
        ([_gpus(0.5), _gpus(1)], [(4, 1)], False),
        ([_gpus(0.25)] * 3 + [_gpus(1)], [(4, 2)], True),
        ([Shape(1, 2, 0)] * 2, [(3, 0)], False),
        ([Shape(1, 2, 0)] * 2, [(2, 0), (2, 0)], True),
        ([Shape(1, 0.1, 0)] * 10, [(1, 0)], True),  # tenths are not exact in binary
    ],
)
def test_what_fits(shapes: list[Shape], nodes: list[tuple[float, float]], expected: bool) -> None:
    assert fits(shapes, [Node(cpus, gpus) for cpus, gpus in nodes]) is expected
    assert fits(shapes[::-1], [Node(cpus, gpus) for cpus, gpus in nodes[::-1]]) is expected


def test_labels_choose_nodes() -> None:
    nodes = [Node(4, 1, SPOT), Node(4, 1)]
    assert fits([_gpus(1, labels=SPOT), _gpus(1)], nodes)
    assert not fits([_gpus(1, labels=SPOT)] * 2, nodes)


def test_sizes_that_divide_each_other_are_packed_wherever_they_can_be() -> None:
    """Against every way to share out GPUs: two nodes of two GPUs, up to five processes."""
    nodes = [Node(99, 2), Node(99, 2)]
    for count in range(1, 6):
        for sizes in itertools.combinations_with_replacement([0.25, 0.5, 1, 2], count):
            bins = [[1.0, 1.0], [1.0, 1.0]]  # the GPUs of each node
            assert fits([_gpus(size) for size in sizes], nodes) == _packable(list(sizes), bins), sizes


def _packable(sizes: list[float], nodes: list[list[float]]) -> bool:
    """By trying every place."""
    if not sizes:
        return True
    size, rest = sizes[0], sizes[1:]
    for node in nodes:
        if size == 2 and node == [1.0, 1.0]:
            node[:] = [0.0, 0.0]
            if _packable(rest, nodes):
                return True
            node[:] = [1.0, 1.0]
        for gpu in range(2):
            if size <= 1 and node[gpu] >= size:
                node[gpu] -= size
                if _packable(rest, nodes):
                    return True
                node[gpu] += size
    return False


def test_a_large_unit_is_not_kept_out_by_small_ones() -> None:
    """One large unit behind two that run; small ones come without end, and fill only what it leaves."""
    admission = Admission([Node(16, 8)])
    assert admission.choose([("a", _gpus(6))]) == "a"
    waiting = [("large", _gpus(1, 8)), *((f"small {n}", _gpus(1)) for n in range(100))]
    assert admission.choose(waiting) is None  # past the large one, a small one would keep it from its eight
    admission.ended("a")
    assert admission.choose(waiting) == "large"


def test_small_units_fill_the_gap_beside_what_waits() -> None:
    admission = Admission([Node(16, 8)])
    assert admission.choose([("a", _gpus(6))]) == "a"
    waiting = [("large", _gpus(1, 6)), *((f"small {n}", _gpus(1)) for n in range(9))]
    started = [admission.choose(waiting[:1] + waiting[1 + n :]) for n in range(3)]
    assert started == ["small 0", "small 1", None]  # eight less six
    admission.ended("small 0")
    assert admission.choose([waiting[0], *waiting[3:]]) == "small 2"
    admission.ended("a")
    assert admission.choose([waiting[0], *waiting[4:]]) == "large"


def test_what_comes_before_in_the_order_may_start_although_another_waits() -> None:
    admission = Admission([Node(16, 8)])
    admission.choose([("a", _gpus(7))])
    large = ("large", _gpus(1, 8))
    assert admission.choose([large]) is None
    assert admission.choose([("measure", _gpus(1)), large]) == "measure"


def test_what_fits_on_no_node_keeps_nobody_waiting() -> None:
    admission = Admission([Node(4, 1)])
    assert admission.choose([("never", _gpus(2)), ("small", _gpus(1))]) == "small"


@pytest.mark.parametrize("seed", range(40))
def test_every_unit_starts_and_nothing_is_taken_twice(seed: int) -> None:
    draw = random.Random(seed)
    nodes = [Node(draw.choice([4, 8, 16]), draw.choice([0, 1, 2, 4, 8])) for _ in range(draw.randint(1, 4))]
    shapes = [
        shape
        for _ in range(60)
        if fits(
            [
                shape := Shape(
                    draw.choice([1, 1, 2, 4, 8]), draw.choice([0.5, 1, 2]), draw.choice([0, 0.25, 0.5, 1, 2, 4])
                )
            ],
            nodes,
        )
    ]
    waiting = {str(index): shape for index, shape in enumerate(shapes)}
    order = sorted(waiting, key=lambda key: [-amount for amount in waiting[key].size])
    admission, running, starts = Admission(nodes), dict[str, Shape](), list[str]()
    for _ in range(20 * len(shapes) + 1):
        chosen = admission.choose([(key, waiting[key]) for key in order if key in waiting])
        if chosen is not None:
            running[chosen] = waiting.pop(chosen)
            starts.append(chosen)
            assert fits(running.values(), nodes)
        elif running:
            key = draw.choice(list(running))
            del running[key]
            admission.ended(key)
        else:
            break
    assert waiting == {}
    assert len(starts) == len(shapes)
