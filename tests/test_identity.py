"""What a node says of itself for a fingerprint: the same again, different where the node is, and nothing touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks import identity, lease, provenance
from tasks.identity import WRITTEN, question
from tests.conftest import trial_config

BLOCKS = [p.name for p in Path("/sys/block").iterdir() if (p / "queue/max_sectors_kb").is_file()]


def of(config: dict[str, Any]) -> dict[str, Any]:
    return identity.identity(question(config))


def directory(path: Path, **storage: Any) -> dict[str, Any]:
    workload = {"kind": "command", "argv": ["true"]}
    return trial_config("none", workload=workload, storage={"kind": "directory", "path": str(path), **storage})


def command(*argv: str, **keys: Any) -> dict[str, Any]:
    return trial_config("none", workload={"kind": "command", "argv": list(argv), **keys})


def test_it_is_json_and_the_same_again(state: Path, tmp_path: Path) -> None:
    for config in (directory(tmp_path), trial_config(workload={"kind": "tensor_io"}), command("true")):
        first = of(config)
        assert json.loads(json.dumps(first)) == first == of(config)


def test_another_process_says_the_same(state: Path, tmp_path: Path) -> None:
    config = directory(tmp_path)
    code = "import json, sys; from tasks import identity as i; c = json.loads(sys.argv[1]); "
    code += "print(json.dumps(i.identity(i.question(c))))"
    argv = [sys.executable, "-c", code, json.dumps(config)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", env=environment, check=True)
    assert json.loads(done.stdout) == of(config)


def test_nothing_that_varies_is_in_it(state: Path, tmp_path: Path) -> None:
    told = json.dumps(of(directory(tmp_path)))
    for word in ("free", "uptime", "load_average", "temperature", "current_link", "health", "boot_id", "hostname"):
        assert word not in told


def test_cells_that_depend_on_the_same_ask_one_question(state: Path) -> None:
    first, second = (trial_config(workload={"kind": "tensor_io", "loops": n}) for n in (1, 2))
    assert question(first) == question(second)
    assert question(first) != question(trial_config(fs="ext4", workload={"kind": "tensor_io"}))
    assert len({question(first), question(second)}) == 1


def test_tools_are_those_that_shape_the_result(state: Path, tmp_path: Path) -> None:
    assert set(of(directory(tmp_path))["tools"]) == set()
    assert set(of(trial_config("ftrace", workload={"kind": "tensor_io"}))["tools"]) == {"mkfs.xfs"}
    wanting = trial_config("auto", workload={"kind": "tensor_io"}, ceiling={"enabled": None})
    assert set(of(wanting)["tools"]) == {"mkfs.xfs", "fio", "bpftrace"}


def test_a_folder_that_is_not_there_is_left_to_the_trial(state: Path) -> None:
    assert "unknown" in of(directory(Path("/nowhere/at/all")))["storage"]


# --- files that a command names --------------------------------------------------------------------------------------


def test_a_changed_script_is_another_node(state: Path, tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text("print(1)")
    config = command("python3", "{script}", "--more={script}", "absent", values={"script": str(script)})
    before = of(config)["files"]
    assert set(before) == {"python3", str(script)}
    script.write_text("print(2)")
    after = of(config)["files"]
    assert {name for name in before if before[name] != after[name]} == {str(script)}
    os.utime(script, (0, 0))
    assert of(config)["files"] == after


def test_only_the_first_word_is_looked_for_among_programs(state: Path) -> None:
    assert set(of(command("echo", "ls", "/proc/uptime", "/dev/null", "{{x}}", "a" * 5000, "nul\0"))["files"]) == {
        "echo"
    }


def test_a_large_file_is_told_by_size_beginning_and_end(state: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(identity, "_WHOLE_FILE_BYTES", 100)
    monkeypatch.setattr(identity, "_PART_BYTES", 10)
    file = tmp_path / "large"
    contents = [b"a" * 200, b"b" + b"a" * 199, b"a" * 199 + b"b", b"a" * 201]
    told = set()
    for content in contents:
        file.write_bytes(content)
        told.add(of(command("true", str(file)))["files"][str(file)])
    assert len(told) == len(contents)


def test_what_the_job_writes_itself_is_marked(state: Path, tmp_path: Path) -> None:
    log, data = tmp_path / "log", tmp_path / "data"
    data.write_text("x")
    asked = question(command("true", f"--log={log}", str(data)))
    told = identity.identity(asked)
    log.write_text("written meanwhile")
    identity.mark_written(told, asked)
    assert (told["files"][str(log)], told["files"][str(data)] != WRITTEN) == (WRITTEN, True)


# --- queues ----------------------------------------------------------------------------------------------------------


def test_settings_that_the_trial_makes_itself_do_not_count(state: Path, tmp_path: Path) -> None:
    if not of(directory(tmp_path))["storage"].get("queue"):
        pytest.skip("this folder is on no block device")
    assert "max_sectors_kb" in of(directory(tmp_path, queue={"max_sectors_kb": None}))["storage"]["queue"]
    own = of(directory(tmp_path, queue={"max_sectors_kb": 128, "scheduler": "none"}))["storage"]["queue"]
    assert not {"max_sectors_kb", "scheduler", "nr_requests"} & set(own)


@pytest.mark.root
def test_a_limit_that_a_trial_holds_is_not_the_nodes(state: Path, tmp_path: Path) -> None:
    config = directory(tmp_path, queue={"max_sectors_kb": None})
    before = of(config)
    drives = identity.request_devices(*identity.device_numbers(tmp_path))
    folder = f"/sys/block/{next(iter(drives)).name}/queue"
    if not (Path(folder) / "max_sectors_kb").is_file():
        pytest.skip("no queue to set")
    held = {"device": None, "folder": folder, "values": {"max_sectors_kb": "7"}, "diskseq": None}
    attempt = lease.Lease.take("t-held")
    # As a killed attempt leaves it: written down, and not given back. Nothing is set here, so nothing is undone.
    attempt._held.append({"kind": "queue", "boot_id": lease.boot_id(), **held})
    attempt._write()
    assert of(config)["storage"]["queue"]["max_sectors_kb"] == "7"
    attempt._held.clear()
    attempt._write()
    assert of(config) == before


def test_firmware_settings_and_packages_are_in_it(state: Path, tmp_path: Path, monkeypatch: Any) -> None:
    config = trial_config(backing="disk", workload={"kind": "tensor_io"}, storage={"path": str(tmp_path)})
    before = of(config)
    monkeypatch.setattr(provenance, "drive", lambda name, drive=provenance.drive: drive(name) | {"firmware": "new"})
    monkeypatch.setattr(provenance, "settings", lambda: {"vm": {"swappiness": 1}})
    after = of(config)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"settings", "storage"} if before["storage"].get("drives") else {"settings"}
    assert before["packages"]["torch"]


def test_a_question_travels(state: Path) -> None:
    import pickle

    asked = question(trial_config(workload={"kind": "tensor_io"}))
    assert pickle.loads(pickle.dumps(asked)) == asked  # noqa: S301 - its own
    assert replace(asked, place="/elsewhere") != asked
