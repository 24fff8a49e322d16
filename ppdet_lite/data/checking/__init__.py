"""What is wrong with a dataset: counted, listed, and repaired where possible.

May import core, storage and the rooms of data before it.
"""
