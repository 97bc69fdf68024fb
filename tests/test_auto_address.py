"""`--address auto`: which cluster it is, and one message where that one cannot be joined."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from sweep import doctor


def test_a_head_that_is_gone_is_told_with_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("OFFLOAD_SWEEP_STATE", str(tmp_path))
    assert doctor.main(["--address", "auto"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"sweep.doctor: --address auto: found {address}, but ")
    assert err.endswith("name its head: --address HOST:PORT\n")
