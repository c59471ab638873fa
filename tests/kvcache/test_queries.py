"""Rounding queries with the bits of the keys."""

import pytest
import torch

from mvquant.arch import model_view
from mvquant.cache_formats import KeyFormat
from mvquant.errors import PlanError
from mvquant.kvcache.codec import key_codec
from mvquant.kvcache.queries import query_codec
from tests.kvcache.plans import plan_of_view
from tests.tiny_models import tiny_config

VIEW = model_view(tiny_config("llama"))


def test_each_query_head_is_rounded_as_its_kv_head_would_be():
    plan = plan_of_view(VIEW)
    queries = torch.randn(2, 4, 9, 16, generator=torch.Generator().manual_seed(0))
    codec, keys = query_codec(plan, 0, 4, torch.float32), key_codec(plan, 0, torch.float32)
    assert codec is not None
    rounded = codec.decode(codec.encode(queries), torch.float32)
    for member in range(2):  # of a group: query heads 0 and 1 share KV head 0
        of_group = queries[:, member::2]
        assert torch.equal(rounded[:, member::2], keys.decode(keys.encode(of_group), torch.float32))


def test_scales_are_per_token_whatever_the_keys_have():
    plan = plan_of_view(VIEW, keys=KeyFormat(scales="channel", chunk=32))
    codec = query_codec(plan, 1, 4)
    assert codec is not None
    assert codec.chunk == 1


def test_nothing_is_made_where_nothing_is_rounded():
    assert query_codec(plan_of_view(VIEW, (16,)), 0, 4) is None


def test_heads_that_do_not_share_evenly_are_refused():
    with pytest.raises(PlanError, match="5 query heads do not share 2 KV heads evenly"):
        query_codec(plan_of_view(VIEW), 0, 5)
