"""Energy functions as OpenMM Forces; everything of TorchForce and PythonForce stands here."""
