"""The maps of massive values and of plans."""

import base64
import io
import re

from matplotlib.image import imread

from mvquant.report.html.massive_maps import massive_maps
from mvquant.report.html.material import Material
from mvquant.report.html.plan_maps import plan_views
from tests.report.comparisons import results
from tests.report.html.examples import analysis, plan, stats


def pixels(address):
    return (imread(io.BytesIO(base64.b64decode(address.partition(",")[2]))) * 255).round().astype(int)


def test_with_norms_the_massive_value_is_the_brightest_and_is_marked():
    maps = massive_maps(analysis(), stats())
    assert not maps.by_pair
    query, key, value = maps.groups["layer 0"]
    picture = pixels(query.picture)
    assert picture.shape[:2] == (4, 8)
    brightness = picture[..., :3].sum(-1)
    assert divmod(int(brightness.argmax()), 8) == (1, 6)
    assert query.caption == "1 massive in 1 of 4 heads"
    assert re.search(r'<svg x="81.25%"[^>]*><circle cy="37.5%"', query.overlay)
    assert key.caption.startswith("none massive")
    assert maps.top >= 3.0 * 1.1
    assert 'class="slow"' in key.overlay
    assert 'class="slow"' not in value.overlay


def test_without_norms_energies_by_pair_are_shown():
    maps = massive_maps(analysis(), None)
    assert maps.by_pair
    query, _ = maps.groups[""]
    assert pixels(query.picture).shape[:2] == (1, 4)
    assert int(pixels(query.picture)[0, :, :3].sum(-1).argmax()) == 2
    assert 'x="62.5%"' in query.overlay
    assert maps.top == 0.6 * 4


def test_without_an_analysis_there_is_nothing():
    assert massive_maps(None, stats()) is None


def test_a_plan_shows_in_how_many_heads_each_pair_is_protected():
    (view,) = plan_views(Material(results(), plans={"w3": plan()}))
    (protection,) = view.maps
    assert (protection.role, protection.unit, protection.count, protection.layers) == ("K", "pair", 4, (0, 1))
    assert pixels(protection.picture)[..., 3].tolist() == [[0, 0, 0, 255], [0, 0, 0, 128]]
    assert f"{plan().bits_per_weight:.3f} bits per weight" in view.figures
    assert view.reasons == ("most energy",)
    assert [cell.text for cell in view.modules.rows[0]][:4] == [
        "self_attn.k_proj", "0-1", "16\N{MULTIPLICATION SIGN}128", "w3a16"
    ]  # fmt: skip
