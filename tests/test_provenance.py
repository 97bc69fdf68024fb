"""Where a result comes from: made-up /sys and /proc trees, a recorded log page, and this machine as it is."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from tasks import machine, provenance, smart
from tasks.mounts import Mount
from tests.conftest import trial_config

CONTROLLER = "sys/devices/pci0000:40/0000:40:01.1/0000:41:00.0/nvme/nvme0"


def plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def link(root: Path, name: str, target: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(root / target)


@pytest.fixture
def nvme(tmp_path: Path) -> Path:
    """A machine with one NVMe drive on the second of two NUMA nodes."""
    pci = "sys/devices/pci0000:40/0000:40:01.1/0000:41:00.0"
    block = f"{CONTROLLER}/nvme0n1"
    plant(
        tmp_path,
        {
            f"{pci}/numa_node": "1",
            f"{pci}/current_link_speed": "16.0 GT/s PCIe",
            f"{pci}/current_link_width": "4",
            f"{pci}/max_link_speed": "32.0 GT/s PCIe",
            f"{pci}/max_link_width": "4",
            f"{CONTROLLER}/model": "Samsung PM9A3 960GB",
            f"{CONTROLLER}/firmware_rev": "GDC5602Q",
            f"{CONTROLLER}/serial": "S64HNX0T",
            f"{CONTROLLER}/transport": "pcie",
            f"{CONTROLLER}/hwmon3/temp1_input": "36850",
            f"{block}/size": "1875385008",
            f"{block}/queue/rotational": "0",
            f"{block}/queue/physical_block_size": "4096",
            f"{block}/queue/write_cache": "write through",
        },
    )
    link(tmp_path, f"{block}/device", CONTROLLER)
    link(tmp_path, "sys/block/nvme0n1", block)
    return tmp_path


def test_an_nvme_drive_tells_all_but_its_serial_number(nvme: Path) -> None:
    assert provenance.drive("nvme0n1", nvme) == {
        "name": "nvme0n1",
        "model": "Samsung PM9A3 960GB",
        "firmware": "GDC5602Q",
        "transport": "nvme pcie",
        "rotational": False,
        "size_bytes": 1875385008 * 512,
        "physical_block_bytes": 4096,
        "write_cache": "write through",
        "numa_node": 1,
        "pcie": {
            "address": "0000:41:00.0",
            "current_speed": "16.0 GT/s PCIe",
            "current_width": "4",
            "max_speed": "32.0 GT/s PCIe",
            "max_width": "4",
        },
    }
    assert provenance.health("nvme0n1", nvme)["temperature_c"] == 37


def test_a_drive_with_several_paths_is_found_through_its_first_controller(nvme: Path) -> None:
    plant(nvme, {"sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n2/size": "8"})
    link(nvme, "sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0", CONTROLLER)
    at = "sys/devices/virtual/nvme-subsystem/nvme-subsys0"
    link(nvme, f"{at}/nvme0n2/device", at)
    link(nvme, "sys/block/nvme0n2", f"{at}/nvme0n2")
    told = provenance.drive("nvme0n2", nvme)
    assert (told["firmware"], told["numa_node"], told["size_bytes"]) == ("GDC5602Q", 1, 4096)


def test_a_sata_drive_has_its_own_files(tmp_path: Path) -> None:
    disk = "sys/devices/pci0000:00/0000:00:17.0/ata3/host2/target2:0:0/2:0:0:0"
    plant(
        tmp_path,
        {
            "sys/devices/pci0000:00/0000:00:17.0/numa_node": "-1",
            f"{disk}/model": "ST4000NM0035",
            f"{disk}/rev": "TN05",
            f"{disk}/hwmon/hwmon0/temp1_input": "41000",
            f"{disk}/block/sda/queue/rotational": "1",
        },
    )
    link(tmp_path, f"{disk}/block/sda/device", disk)
    link(tmp_path, "sys/block/sda", f"{disk}/block/sda")
    told = provenance.drive("sda", tmp_path)
    assert (told["model"], told["firmware"], told["transport"], told["rotational"]) == (
        "ST4000NM0035",
        "TN05",
        "sata",
        True,
    )
    assert told["numa_node"] == told["pcie"] == told["size_bytes"] == "unknown"
    health = provenance.health("sda", tmp_path)
    assert (health["temperature_c"], health["percentage_used"]) == (41, "unknown")


def log_page() -> bytes:
    """A SMART log as the specification lays it out: 310 K, 3 % used, 100 % spare, 128-bit counters."""
    page = bytearray(512)
    struct.pack_into("<BHBBB", page, 0, 0, 310, 100, 10, 3)
    for offset, value in ((32, 1 << 70), (48, 123_456), (64, 7), (128, 4321), (144, 5), (160, 2)):
        page[offset : offset + 16] = value.to_bytes(16, "little")
    return bytes(page)


def test_a_log_page_is_read_as_the_specification_lays_it_out() -> None:
    assert smart.parse(log_page()) == smart.Health(
        temperature_c=37,
        percentage_used=3,
        available_spare_percent=100,
        data_read_bytes=(1 << 70) * 512_000,
        data_written_bytes=123_456 * 512_000,
        power_on_hours=4321,
        media_errors=2,
        critical_warning=0,
    )
    with pytest.raises(ValueError, match="512 bytes"):
        smart.parse(log_page()[:511])


def test_the_command_asks_for_the_smart_log_of_the_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def ioctl(node: int, request: int, command: Any) -> int:
        seen.update({name: getattr(command, name) for name, *_ in command._fields_}, request=request)
        import ctypes

        ctypes.memmove(command.address, log_page(), 512)
        return 0

    monkeypatch.setattr(smart.fcntl, "ioctl", ioctl)
    (tmp_path / "nvme0").touch()
    assert smart.health(tmp_path / "nvme0").percentage_used == 3
    # sizeof(struct nvme_admin_cmd) is 72: _IOWR('N', 0x41, ...) is 0xC0484E41 in every strace of nvme-cli
    assert seen["request"] == 0xC0484E41
    assert (seen["opcode"], seen["nsid"], seen["data_bytes"]) == (2, 0xFFFFFFFF, 512)
    assert seen["cdw10"] == 0x007F0002


def test_what_is_no_nvme_drive_refuses_and_is_unknown(nvme: Path) -> None:
    with pytest.raises(OSError, match=r"nvme9|ioctl"):
        smart.health(nvme / "dev/nvme9")
    plant(nvme, {"dev/nvme0": ""})
    with pytest.raises(OSError, match="ioctl"):
        smart.health(nvme / "dev/nvme0")
    health = provenance.health("nvme0n1", nvme)
    assert (health["temperature_c"], health["percentage_used"]) == (37, "unknown")


def test_settings_of_a_node(tmp_path: Path) -> None:
    cpu, vm = "sys/devices/system/cpu", "proc/sys/vm"
    plant(
        tmp_path,
        {
            "etc/os-release": 'NAME="x"\nPRETTY_NAME="Ubuntu 24.04 LTS"',
            f"{cpu}/cpu0/cpufreq/scaling_governor": "performance",
            f"{cpu}/cpu1/cpufreq/scaling_governor": "powersave",
            f"{cpu}/cpu0/cpufreq/scaling_driver": "intel_pstate",
            f"{cpu}/cpu1/cpufreq/scaling_driver": "intel_pstate",
            f"{cpu}/intel_pstate/no_turbo": "1",
            f"{cpu}/smt/control": "on",
            "sys/devices/system/node/node0/cpulist": "0-31",
            "sys/devices/system/node/node1/cpulist": "32-63",
            "sys/devices/system/node/node10/cpulist": "",
            "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
            f"{vm}/swappiness": "60",
            "proc/uptime": "350735.47 234388.90",
            "proc/loadavg": "0.20 0.18 0.12 1/80 11206",
        },
    )
    told = provenance.node(tmp_path)
    assert told["os"] == "Ubuntu 24.04 LTS"
    assert told["cpu_governor"] == "performance, powersave"
    assert (told["cpu_driver"], told["cpu_boost"], told["smt"]) == ("intel_pstate", "off", "on")
    assert told["numa_nodes"] == {"0": "0-31", "1": "32-63", "10": "unknown"}
    assert told["transparent_hugepages"] == "madvise"
    assert (told["vm"]["swappiness"], told["vm"]["dirty_ratio"]) == (60, "unknown")
    assert (told["uptime_s"], told["load_average"]) == (350735.47, [0.20, 0.18, 0.12])


def test_gpus_are_told_with_their_place(tmp_path: Path) -> None:
    pci = "sys/devices/pci0000:00/0000:00:06.0"
    plant(
        tmp_path,
        {
            "proc/driver/nvidia/gpus/0000:00:06.0/information": "Model: \t\t NVIDIA H200\nGPU UUID: \t GPU-8b8d\n"
            "Video BIOS: \t 96.00.a5.00.1a\nGPU Firmware: \t 580.159.04",
            f"{pci}/numa_node": "0",
            f"{pci}/current_link_speed": "32.0 GT/s PCIe",
            f"{pci}/current_link_width": "16",
        },
    )
    link(tmp_path, "sys/bus/pci/devices/0000:00:06.0", pci)
    (told,) = provenance.gpus(tmp_path)
    assert (told["model"], told["firmware"], told["numa_node"]) == ("NVIDIA H200", "580.159.04", 0)
    assert told["pcie"]["current_width"] == "16"
    assert "8b8d" not in str(told)


def test_where_there_is_nothing_everything_is_unknown(tmp_path: Path) -> None:
    told = provenance.node(tmp_path)
    assert told["gpus_detail"] == []
    assert set(told["vm"].values()) == {"unknown"}
    for name in ("os", "cpu_governor", "numa_nodes", "transparent_hugepages", "uptime_s", "load_average", "gpu_driver"):
        assert told[name] == "unknown"
    assert set(provenance.drive("sdx", tmp_path).values()) == {"sdx", "unknown"}
    assert set(provenance.health("sdx", tmp_path).values()) == {"unknown"}
    assert provenance.mount_line(Mount("/", "8:1", "ext4", "/dev/sda1", "rw"), tmp_path) == "unknown"


def test_the_mount_line_is_the_kernels_own(tmp_path: Path) -> None:
    first = "30 1 7:3 / /mnt/a\\040b rw,noatime shared:1 - xfs /dev/loop3 rw,attr2"
    over = "31 1 7:3 / /mnt/a\\040b rw shared:1 - xfs /dev/loop3 rw"
    plant(tmp_path, {"proc/self/mountinfo": f"{first}\n{over}"})
    mount = Mount("/mnt/a b", "7:3", "xfs", "/dev/loop3", "rw,noatime,rw,attr2")
    assert provenance.mount_line(mount, tmp_path) == first


def test_health_is_read_before_and_after(nvme: Path) -> None:
    facts = {"drives": [provenance.drive("nvme0n1", nvme)]}
    with provenance.watched(facts, nvme):
        plant(nvme, {f"{CONTROLLER}/hwmon3/temp1_input": "48000"})
    health = facts["drives"][0]["health"]
    assert (health["begin"]["temperature_c"], health["end"]["temperature_c"]) == (37, 48)


def test_this_machine_can_be_told_by_anybody() -> None:
    told = machine.facts() | provenance.node()
    json.dumps(told)
    assert told["load_average"] != "unknown"
    for name in os.listdir("/sys/block"):
        json.dumps([provenance.drive(name), provenance.health(name)])


@pytest.mark.root
def test_a_trial_says_where_it_was_made(run_here) -> None:  # type: ignore[no-untyped-def]
    workload = {"kind": "pattern", "pattern": [(0, 4096)]}
    record, _ = run_here(trial_config("none", backing="disk", workload=workload))
    assert record["verdict"]["state"] == "valid"
    assert [one["name"] for one in record["device"]["drives"]] == record["storage"]["drives"]
    assert set(record["device"]["drives"][0]["health"]) == {"begin", "end"}
    assert record["device"]["dev"] in record["device"]["mount"].split()
    assert record["device"]["image_free_bytes"] > 0
    assert record["node"]["cgroup_version"] in (1, 2, "unknown")
    assert record["node"]["tools"]["mkfs.xfs"]
    again, _ = run_here(trial_config("none", backing="disk", workload=workload))
    assert again["fingerprint"] == record["fingerprint"]
    assert run_here(trial_config("none"))[0]["device"]["drives"] == []
