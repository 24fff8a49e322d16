"""Use of trained models: `detector` runs one on images, `export` writes one for deployment (Paddle Inference, ONNX).

May import assembly and below.
"""
