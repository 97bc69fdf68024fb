"""What runs on a node: storage, tracers, samplers, workloads and the trial that ties them together."""
