"""Annotations and images, and how they become batches, without Paddle.

May import config, storage and core.
"""
