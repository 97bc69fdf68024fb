"""What the `tensor_io` workload expects of the device, and when it doubts its phases."""

from tasks.workloads import Span
from tasks.workloads.tensor_io import Config, Workload

MIB = 1 << 20


def span(name, api="aio", size=MIB, loop=0, end=1, **attributes):
    facts = {"api": api, "tensor_device": "cpu", "size_bytes": str(size), "loop": str(loop), **attributes}
    return Span("tensor_io", name, 0, end, None if name == "warmup" else size, None, facts)


def expected(spans, **config):
    return Workload(Config(**config)).expected(spans)


def test_every_load_and_store_is_expected_and_a_warm_up_is_one_of_each():
    spans = [span("warmup"), *(span("store", loop=n) for n in range(3)), *(span("load", loop=n) for n in range(2))]
    assert expected(spans) == {"read": 3 * MIB, "write": 4 * MIB}


def test_what_did_not_end_is_not_expected():
    assert expected([span("store"), span("load", end=None), span("init")]) == {"read": 0, "write": MIB}


def test_without_fsync_only_the_last_posix_store_of_a_tensor_must_reach_the_device():
    spans = [span("store", api, size, n) for api in ("posix", "aio") for size in (MIB, 4 * MIB) for n in range(3)]
    assert expected(spans, fsync=True) == {"read": 0, "write": 2 * 3 * 5 * MIB}
    assert expected(spans, fsync=False) == {"read": 0, "write": 5 * MIB + 3 * 5 * MIB}


def test_a_warm_load_is_doubted():
    workload = Workload(Config())
    cold, warm = span("load", resident_pages="0"), span("load", resident_pages="256")
    assert workload.doubts([cold]) == []
    (doubt,) = workload.doubts([cold, warm, warm])
    assert doubt == "2 loads were not cold: 256 pages of the file were in memory before the first of them"
