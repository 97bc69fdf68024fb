"""Verdicts: valid only where nothing was lost and all three byte counts agree; every doubt with its numbers."""

from __future__ import annotations

import pytest

from tasks.verdict import Verdict, other_count

MIB = 1 << 20
EXPECTED = {"read": 64 * MIB, "write": 32 * MIB}
MOVED = {"read": 65 * MIB, "write": 33 * MIB, "discard": 0}


def judged(
    faults: dict[str, int] | None = None,
    expected: dict[str, int] | None = EXPECTED,
    traced: dict[str, int] | None = MOVED,
    counted: dict[str, int] = MOVED,
    doubts: tuple[str, ...] = (),
) -> Verdict:
    return Verdict.of_trace(faults or {}, expected, traced, counted, doubts)


def test_a_trace_without_a_flaw_is_valid() -> None:
    assert judged({"lost": 0, "unmatched": 0, "blind": 0}) == Verdict("valid", [])


def test_more_than_expected_is_what_a_filesystem_adds() -> None:
    assert judged(expected={"read": 1, "write": 1}).state == "valid"


def test_without_a_tracer_the_counters_alone_are_judged() -> None:
    assert judged(traced=None).state == "valid"
    assert judged(traced=None, counted={**MOVED, "read": 60 * MIB}).state == "invalid"


def test_a_job_that_moved_next_to_nothing_of_what_it_should_has_failed() -> None:
    verdict = judged(traced=None, counted={**MOVED, "read": 4096})
    assert verdict.state == "failed"
    (reason,) = verdict.reasons
    told = "the job should read 64 MiB and the device saw 4 KiB: "
    assert reason == f"{told}the job read nothing, or the page cache answered"
    mapped = Verdict.of_trace({}, EXPECTED, None, {**MOVED, "read": 0}, (), {"read": 0.5})
    assert mapped.state == "failed"
    assert "set limits.memory below what is offloaded" in mapped.reasons[0]


@pytest.mark.parametrize(("share", "state"), [(0.9, "valid"), (0.95, "invalid")])
def test_a_workload_says_what_share_of_its_bytes_the_device_must_see(share: float, state: str) -> None:
    moved = {**MOVED, "read": 60 * MIB}
    verdict = Verdict.of_trace({}, EXPECTED, moved, moved, (), {"read": share})
    assert verdict.state == state
    assert state == "valid" or "(at least 95% of it must show)" in verdict.reasons[0]


def test_without_an_expectation_trace_and_counters_are_judged() -> None:
    assert judged(expected=None).state == "valid"
    assert judged(expected=None, traced={**MOVED, "read": 0}).state == "invalid"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("lost", "17 events were lost between kernel and tracer; raise trace.buffer_size"),
        ("unmatched", "17 requests had an issue without a completion, or a completion without an issue"),
        ("overtaken", "17 completions went unseen, or a sector was issued twice; use trace.tracer: ftrace"),
        ("malformed", "17 entries of the trace could not be read"),
    ],
)
def test_every_fault_of_the_tracer_is_a_reason(fault: str, words: str) -> None:
    assert judged({fault: 17}) == Verdict("invalid", [words])


@pytest.mark.parametrize("missing", [1, 2])
def test_a_tracer_that_did_not_see_its_own_reads_was_not_live(missing: int) -> None:
    (reason,) = judged({"blind": missing}).reasons
    assert reason.startswith(f"{missing} of the tracer's own two control reads are missing: it was not live")


def test_a_byte_missing_from_the_trace_is_named_exactly() -> None:
    verdict = judged(traced={**MOVED, "write": 33 * MIB - 4096})
    assert verdict == Verdict(
        "invalid", ["the trace holds 34598912 bytes of writes, the device counted 34603008: 4 KiB missing"]
    )


def test_a_byte_too_many_in_the_trace_is_named_exactly() -> None:
    verdict = judged(traced={**MOVED, "discard": 512})
    assert verdict == Verdict(
        "invalid", ["the trace holds 512 bytes of discards, the device counted 0: 512 B too many"]
    )


@pytest.mark.parametrize(
    ("op", "words"),
    [
        ("read", "64 MiB, the device saw 1.50 MiB: the job read less, or the page cache answered the rest"),
        ("write", "32 MiB, the device saw 1.50 MiB: the job wrote less, or the rest never reached the device"),
    ],
)
def test_fewer_bytes_than_the_job_should_have_moved(op: str, words: str) -> None:
    moved = {**MOVED, op: 3 * MIB // 2}
    assert judged(traced=moved, counted=moved) == Verdict("invalid", [f"the job should {op} {words}"])


def test_doubts_of_the_workload_are_reasons() -> None:
    assert judged(doubts=("3 loads were not cold",)) == Verdict("invalid", ["3 loads were not cold"])


def test_all_reasons_are_told() -> None:
    verdict = judged({"lost": 1, "unmatched": 2}, counted={"read": 0, "write": 0, "discard": 0}, doubts=("cold?",))
    assert verdict.state == "failed"
    assert len(verdict.reasons) == 2 + 2 + 2 + 1


def test_failed_keeps_its_reasons() -> None:
    assert Verdict.failed("a", "b") == Verdict("failed", ["a", "b"])


@pytest.mark.parametrize(
    ("traced", "counted", "again", "wrong"),
    [
        ({"read": 3, "write": 2}, {"read": 3, "write": 2}, 0, 0),
        ({"read": 3, "write": 2}, {"read": 4, "write": 2}, 5, 1),
        ({"read": 3, "write": 2}, {"read": 3, "write": 6}, 5, 0),
        ({"read": 3, "write": 2}, {"read": 3, "write": 8}, 5, 1),
        ({"read": 3, "write": 2}, {"read": 3, "write": 1}, 5, 1),
        ({"read": 3, "write": 2}, {"read": 3, "write": 8}, None, 0),
        ({"read": 3, "write": 2}, {"read": 2, "write": 8}, None, 1),
        (None, {"read": 2, "write": 8}, None, 0),
    ],
)
def test_requests_are_counted_as_the_device_does(traced, counted, again, wrong):
    assert len(other_count(traced, counted, again)) == wrong
