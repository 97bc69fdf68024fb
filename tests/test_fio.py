"""fio: its argument list, and its JSON read whole or refused in words."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.placement import needs
from tasks import fio, machine
from tasks.errors import FioError
from tasks.fio import Load
from tests.conftest import trial_config

RECORDED = (Path(__file__).parent / "data" / "fio-3.33-randread.json").read_text()
GIB = 1 << 30


def test_a_recorded_output_gives_fios_own_numbers():
    own = json.loads(RECORDED[RECORDED.index("{") :])["jobs"][0]["read"]
    result = fio.parse(RECORDED, "read")
    assert (result.bytes, result.requests, result.seconds) == (own["io_bytes"], own["total_ios"], 1.001)
    assert result.gib_s == pytest.approx(own["bw_bytes"] / GIB, rel=1e-6)
    assert result.iops == pytest.approx(own["iops"], rel=1e-4)
    assert (result.p50_us, result.p99_us) == (978.944, 1449.984)


def test_what_was_not_done_is_no_zero():
    with pytest.raises(FioError, match="fio did no writes in its time"):
        fio.parse(RECORDED, "write")


def test_jobs_that_are_not_grouped_add_up():
    value = json.loads(RECORDED[RECORDED.index("{") :])
    value["jobs"] = [value["jobs"][0], json.loads(json.dumps(value["jobs"][0]))]
    value["jobs"][1]["read"]["runtime"] = 2002
    one, both = fio.parse(RECORDED, "read"), fio.parse(json.dumps(value), "read")
    assert (both.bytes, both.requests, both.seconds) == (2 * one.bytes, 2 * one.requests, 2.002)


def test_an_error_of_a_job_is_an_error():
    value = json.loads(RECORDED[RECORDED.index("{") :])
    value["jobs"][0]["error"] = 28
    with pytest.raises(FioError, match="fio failed with error 28"):
        fio.parse(json.dumps(value), "read")


@given(st.integers(0, len(RECORDED)), st.integers(0, 40), st.binary(max_size=20))
def test_damaged_output_is_read_or_refused_and_never_worse(cut, gap, junk):
    text = RECORDED[:cut] + junk.decode(errors="replace") + RECORDED[cut + gap :]
    try:
        result = fio.parse(text, "read")
    except FioError:
        return
    assert result.bytes > 0
    assert result.seconds > 0


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["jobs", "read", "error"]), inner),
        max_leaves=20,
    )
)
def test_any_other_json_is_refused(value):
    with pytest.raises(FioError):
        fio.parse(json.dumps(value), "read")


def test_arguments_are_a_list_and_jobs_share_the_file(monkeypatch):
    monkeypatch.setattr(fio, "engine", lambda: "libaio")
    argv = fio.arguments(Load("randwrite", 131072, 16, 3), Path("/m/fio/data"), 64 << 20, 1.5)
    assert {"--filename=/m/fio/data", "--rw=randwrite", "--direct=1", "--iodepth=16", "--numjobs=3"} <= set(argv)
    assert "--runtime=1500ms" in argv
    share = int(next(a for a in argv if a.startswith("--size=")).partition("=")[2])
    assert share % 131072 == 0
    assert f"--offset_increment={share}" in argv
    assert 3 * share <= 64 << 20
    once = fio.arguments(Load("write", 131072, 16), Path("/m/fio/data"), 64 << 20, None)
    assert not [a for a in once if "time" in a]


def test_without_an_asynchronous_engine_threads_make_the_depth(monkeypatch):
    monkeypatch.setattr(fio, "engine", lambda: "psync")
    argv = fio.arguments(Load("read", 4096, 8, 2), Path("/m/fio/data"), 1 << 20, 1.0)
    assert {"--ioengine=psync", "--iodepth=1", "--numjobs=16", "--size=65536"} <= set(argv)


def test_a_node_without_fio_says_what_to_install(monkeypatch, state):
    monkeypatch.setenv("PATH", "/nowhere")
    offer = machine.offer()
    assert "tool:fio" not in offer.capabilities
    assert offer.missing["tool:fio"] == "fio is not installed: apt-get install fio"


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, None),
        ({"ceiling": {"enabled": None}}, None),
        ({"ceiling": {"enabled": True}}, "ceiling.enabled"),
        ({"trace": {"measure_cost": True}}, "trace.measure_cost"),
    ],
)
def test_only_who_insists_on_fio_needs_it(changes, wanted):
    assert needs(trial_config(workload={"kind": "tensor_io"}, **changes)).get("tool:fio") == wanted
