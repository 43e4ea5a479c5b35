# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Drawing without a screen."""

import matplotlib

from modeling_internimage.label_maps import class_colours  # noqa: F401  (imported from here)


matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402, F401  (imported from here)
