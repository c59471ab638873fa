"""Levels for normal channels, against published tables and the conditions of Lloyd and Max."""

import pytest
import torch

from mvquant.kvcache.codebooks import borders, normal_error, normal_levels

# Max (1960), table 1: mean squared error of the optimum quantizer with 2^bits levels.
PUBLISHED_ERRORS = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}


@pytest.mark.parametrize(("bits", "error"), PUBLISHED_ERRORS.items())
def test_errors_are_the_published_ones(bits: int, error: float):
    assert normal_error(bits) == pytest.approx(error, rel=2e-3)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
def test_levels_rise_and_are_symmetric(bits: int):
    levels = normal_levels(bits)
    assert len(levels) == 2**bits
    assert bool((levels.diff() > 0).all())
    torch.testing.assert_close(levels, -levels.flip(0))


def test_more_bits_leave_less_error():
    errors = [normal_error(bits) for bits in (1, 2, 3, 4, 5, 6, 7, 8, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0


def test_the_error_is_what_samples_lose():
    samples = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels = normal_levels(3)
    rounded = levels[torch.bucketize(samples, borders(levels))]
    assert float((rounded - samples).square().mean()) == pytest.approx(normal_error(3), rel=0.02)
