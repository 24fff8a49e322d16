"""From a YAML file to a checked tree of values, and from that to objects.

yaml_nodes -> merge, references (load) -> check -> registry.build. May import core.
"""
