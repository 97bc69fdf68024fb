"""From a sweep's YAML to trials placed on Ray nodes: definition, plan, placement, execution, command line."""

__version__ = "0.1.0"
