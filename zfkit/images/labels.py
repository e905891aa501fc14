"""Labels by name: places in a network's list of classes, whatever the order of the set's own list."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from ..errors import ImageError
from .imageset import UNLABELLED, ImageSet


def align_labels(images: ImageSet, classes: Sequence[str], whose: str = "the network") -> ImageSet:
    """The set with labels that are places in `classes`, matched by name; -1 where a name is not there, with a warning.

    A folder named after 3 of a network's 200 classes has labels 0 to 2; the network knows them by other numbers.
    Upper and lower case, spaces and underscores are alike. Sets without names of classes, networks without (or with
    mere numbers for names), and equal lists leave the set as it is. Raises ImageError where no name is in both.

    >>> align_labels(images, model.classes).labels
    """
    own, classes = tuple(images.classes), tuple(classes)
    if not own or not classes or own == classes:
        return images
    place: dict[str, int] = {}
    for i, name in enumerate(classes):
        key = _key(name)
        place[key] = UNLABELLED if key in place else i  # ImageNet's "crane" is a bird, and a machine
    places = [place.get(_key(name), UNLABELLED) for name in own]
    strange = [name for name, i in zip(own, places, strict=True) if i == UNLABELLED]
    if len(strange) == len(own):
        if classes == tuple(str(i) for i in range(len(classes))):
            return images
        raise ImageError(
            f"{images.source!r} has {len(own)} classes ({_some(own)}) and {whose} {len(classes)} ({_some(classes)}), "
            "without a name in common: rename the one or the other"
        )
    if strange:
        warnings.warn(
            f"{len(strange)} of {len(own)} classes of {images.source!r} are none of those of {whose}, or not the only "
            f"ones of that name ({_some(strange)}): their pictures count as unlabelled",
            stacklevel=3,
        )
    return images.with_labels(classes, places)


def _key(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
