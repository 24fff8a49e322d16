"""Headers of image files, where a file is none."""

import os
import threading

import cv2
import numpy as np
from PIL import Image

from ppdet_lite.data.images.sizes import read_header


def test_the_header_of_a_pipe_is_not_waited_for(tmp_path):
    """Opening it would wait for somebody to write into it."""
    os.mkfifo(tmp_path / "1.jpg")
    answers = []
    thread = threading.Thread(target=lambda: answers.append(read_header(tmp_path / "1.jpg")), daemon=True)
    thread.start()
    thread.join(10)
    assert answers == [None]


def test_the_header_of_an_image_has_its_height_and_width(tmp_path):
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((5, 9, 3), np.uint8))
    assert tuple(read_header(tmp_path / "1.png")) == (5, 9, False)
    assert read_header(tmp_path / "2.png") is None


def test_the_header_of_an_image_that_pillow_refuses_to_decode(tmp_path):
    """Its limit of pixels, a global variable, stays as it is."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.new("1", (13500, 13500)).save(tmp_path / "large.png")
    assert tuple(read_header(tmp_path / "large.png")) == (13500, 13500, False)
    assert limit == Image.MAX_IMAGE_PIXELS is not None
