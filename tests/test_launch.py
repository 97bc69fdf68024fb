"""What is kept of supervisors on a node: a log that only its owner reads and that does not grow for ever."""

from tasks import launch


def test_the_log_is_its_owners_and_bounded(state, monkeypatch):
    monkeypatch.setattr(launch, "_LOG_BYTES", 100)
    log = state / "supervisor.log"
    log.write_text("of an earlier version\n")
    log.chmod(0o644)
    for _ in range(50):
        with launch._log() as file:
            file.write("something went wrong\n")
    files = sorted(state.glob("supervisor.log*"))
    assert [path.name for path in files] == ["supervisor.log", "supervisor.log.1"]
    assert all(path.stat().st_size <= 130 and path.stat().st_mode & 0o777 == 0o600 for path in files)
    assert log.read_text().endswith("something went wrong\n")
