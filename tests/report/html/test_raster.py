import base64
import io

import numpy as np
import pytest
from matplotlib.image import imread

from mvquant.report.html.raster import data_address, ink, viridis


def decoded(address):
    kind, _, content = address.partition(",")
    assert kind == "data:image/png;base64"
    return (imread(io.BytesIO(base64.b64decode(content))) * 255).round().astype(int)


def test_a_picture_reads_back_as_its_colours():
    picture = decoded(data_address([[0.0, 0.5, 1.0], [1.0, 0.0, 0.25]], viridis()))
    assert picture.shape == (2, 3, 4)
    assert picture[0, 0].tolist() == picture[1, 1].tolist() == [68, 1, 84, 255]
    assert picture[0, 2].tolist() == [253, 231, 37, 255]


def test_ink_grows_from_invisible_to_full():
    picture = decoded(data_address([[0.0, 0.2, 1.0]], ink(10, 20, 30)))
    assert picture[0, :, 3].tolist() == [0, 51, 255]
    assert picture[0, 2, :3].tolist() == [10, 20, 30]


@pytest.mark.parametrize(("value", "alpha"), [(-3.0, 0), (7.0, 255)])
def test_numbers_beyond_the_ends_stay_at_the_ends(value, alpha):
    assert decoded(data_address([[value]], ink(0, 0, 0)))[0, 0, 3] == alpha


def test_brightness_of_the_map_rises():
    reds, greens, blues = np.frombuffer(viridis()[0], "uint8").reshape(256, 3).T.astype(float)
    assert (np.diff(0.2126 * reds + 0.7152 * greens + 0.0722 * blues) > -0.6).all()
