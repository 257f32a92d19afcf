"""The small handwritten digits that come with scikit-learn: real data without a download."""

from pathlib import Path

import numpy as np

from saccade._sources import Source
from saccade.data._base import DATA, ImageData, Images, channel_statistics, check_fraction

_SOURCE = Source(
    key="alpaydin1998digits",
    title="Optical Recognition of Handwritten Digits",
    authors="Alpaydin, E. and Kaynak, C.",
    venue="UCI Machine Learning Repository",
    year=1998,
    id="doi:10.24432/C50P49",
)


@DATA.add("digits")
def load_digits(root: Path, *, split_seed: int = 0, test_fraction: float = 0.2) -> ImageData:
    """1,797 grey digits of 8x8 pixels with values 0..16.

    The split is scikit-learn's `train_test_split`, stratified by class, so that results compare
    with those of any other program that asks for the same fraction and seed.

    Args:
        root: not read; the images are part of scikit-learn.
        split_seed: random state of the split.
        test_fraction: share of the images kept for the test.

    Raises:
        ImportError: without scikit-learn.
        ValueError: for a fraction outside (0, 1), or too small for one image per class.
    """
    try:
        from sklearn import datasets, model_selection
    except ImportError as error:
        raise ImportError(
            "the dataset 'digits' needs scikit-learn: pip install saccade[demo]"
        ) from error
    check_fraction(test_fraction)
    bunch = datasets.load_digits()
    images = bunch.images.astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    train, test = model_selection.train_test_split(
        np.arange(len(labels)), test_size=test_fraction, stratify=labels, random_state=split_seed
    )
    mean, std = channel_statistics(images[train], white=16.0)
    return ImageData(
        name="digits",
        classes=tuple("0123456789"),
        train=Images(images=images[train], labels=labels[train]),
        test=Images(images=images[test], labels=labels[test]),
        white=16.0,
        mean=mean,
        std=std,
        source=_SOURCE,
    )
