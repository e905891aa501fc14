"""..."""

from __future__ import annotations

from .album import PHOTOGRAPHS, SCALES, SKIMAGE, SKLEARN, Photograph
from .decode import MAX_PIXELS, OTHER_PICTURES, SNIFFED, decode, open_image, square, to_rgb, to_tensor
from .imageset import (
    BLOCKS_KEPT,
    IN_MEMORY_BYTES,
    UNLABELLED,
    Batch,
    ImageSet,
    Reader,
    Skipped,
    Spans,
    Windows,
)
from .sources import MOST_ROWS, Names, RowNames, load_images
from .textures import (
    BLUE_YELLOW,
    CELL,
    CLASSES,
    GRAIN,
    GREY,
    HIGH,
    LOW,
    MAKERS,
    MARGIN,
    MIDDLE,
    RED_GREEN,
    SMALLEST,
    SPLITS,
    STOP_FLANKS,
    STROKES,
    Array,
    Maker,
    Options,
    Paint,
    Plan,
    Truth,
    draw,
    truth,
)
