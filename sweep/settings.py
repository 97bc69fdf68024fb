"""What Ray must find in the environment before it starts, on whatever machine and in whatever role."""

from __future__ import annotations

#: Ray's memory monitor would kill offload jobs, which fill memory on purpose. Its keepalive settings stay as they are:
#: a client that pings more often than servers expect is cut off, with the attempt it waits for (`too_many_pings`).
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # of attempts that were given up, which nobody asks any more
}

#: With this a Ray started by `ray.init` has 127.0.0.1 for its address, and listens there only; without it Ray takes
#: the machine's address on the network whatever it is told (ray._private.services.resolve_ip_for_localhost).
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

#: Object store of a node, in bytes: traces pass through it in pieces of a few MiB.
STORE_BYTES = 256 << 20
