"""The workload of `pattern_job`, for tests of what a tracer sees."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tasks.workloads import Job

JOB = Path(__file__).parent / "pattern_job.py"


@dataclass
class Config:
    pattern: list = field(default_factory=list)
    file_bytes: int = 32 << 20
    argv: list = field(default_factory=list)


class Workload:
    Config = Config
    figures = ()
    says_done = True

    def __init__(self, config):
        self._config = config

    def problems(self):
        return []

    def needs(self):
        return {}

    def wants_gpu(self):
        return False

    def space_bytes(self):
        return self._config.file_bytes

    def job(self, folder, offload_dir, seed):
        path = folder / "pattern.json"
        path.write_text(json.dumps({**vars(self._config), "offload_dir": str(offload_dir)}))
        argv = [part.replace("{offload_dir}", str(offload_dir)) for part in self._config.argv]
        return Job("pattern", argv or [sys.executable, str(JOB), str(path)])

    def role(self, path):
        return "file"

    def expected(self, spans):
        moved = {"store": 0, "load": 0}
        for span in spans:
            if span.name in moved and span.end_ns is not None:
                moved[span.name] += span.size_bytes
        return {"read": moved["load"], "write": moved["store"]}

    def shares(self):
        return {}

    def doubts(self, spans):
        return []

    def python(self):
        return None

    def packages(self):
        return ()

    def files(self):
        return self._config.argv
