"""The schema of a config (`recipe`), and the functions that build datasets and models from it (`setup`).

May import peers and below, in the order of docs/architecture.md.
"""
