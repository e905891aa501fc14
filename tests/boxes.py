"""Which pixels really change a unit: what `receptive_field` is held to."""

import torch

import zfkit
from zfkit.deconv.receptive_field import Box


def seen(net, height, width):
    """Which pixels change each unit of a one-channel net: bool (units' rows, units' columns, H, W).

    One pixel at a time is raised from 0. With positive weights and no biases nothing cancels, and a raised
    value is every pool's maximum: a unit that looks there changes, and no other.
    """
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(0.5, 1)
        pixels = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
        changed = net(pixels)[:, 0] > 0
    return changed.permute(1, 2, 0).unflatten(2, (height, width)).numpy()


def bounds(mask):
    """The smallest box around the pixels that are set."""
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    return Box(columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


def is_inside(box, height, width):
    return box.left >= 0 and box.top >= 0 and box.right <= width and box.bottom <= height


def assert_boxes_are_what_units_see(net, layer, height, width):
    """Every unit sees nothing outside its box; where the box lies in the image, up to all four edges."""
    model = zfkit.wrap_model(net, mean=0.0, scale=1.0, input_size=32)
    field, inside = zfkit.receptive_field(model, layer), 0
    everything = seen(net, height, width)
    for row in range(everything.shape[0]):
        for column in range(everything.shape[1]):
            box, mask = field.box(row, column), everything[row, column]
            if is_inside(box, height, width):
                inside += 1
                assert bounds(mask) == box
            elif mask.any():  # dilated filters may jump over the image's edge: the box is only a limit
                left, top, right, bottom = bounds(mask)
                assert box.left <= left and box.top <= top and right <= box.right and bottom <= box.bottom
    return inside
