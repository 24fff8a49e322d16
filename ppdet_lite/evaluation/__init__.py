"""A trained detector on images: detections, the COCO metric, pictures.

May import deployment and below.
"""
