"""Reads YAML configs, checks them against the constructors of their components, and builds the components.

Steps: yaml_nodes -> merge, references (all three by load) -> check -> registry.build. May import core.
"""
