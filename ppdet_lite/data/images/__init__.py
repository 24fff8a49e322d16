"""Image files and videos: decoding, sizes, listing, and drawing boxes on images.

May import core, config and storage.
"""
