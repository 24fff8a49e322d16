"""Image files and videos: decoding, sizes, listing, and drawing boxes on pictures.

May import core and storage.
"""
