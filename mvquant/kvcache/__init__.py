"""The K and V cache in packed integers: plans, codecs, and round trips for study."""

from mvquant.cache_formats import KeyFormat, ValueFormat
from mvquant.cache_plan import CachePlan, HeadKeys, LayerKeys, check_cache_plan_fits, load_cache_plan
from mvquant.kvcache.attach import AttachedCache, quantized_cache
from mvquant.kvcache.cache import QuantizedKVCache, quantized_kv_cache
from mvquant.kvcache.choose import key_plan, key_plan_from_stats
from mvquant.kvcache.codec import Codec, key_codec, value_codec
from mvquant.kvcache.keeping import HeldBytes
from mvquant.kvcache.roundtrip import roundtrip, value_roundtrip

__all__ = [
    "AttachedCache",
    "CachePlan",
    "Codec",
    "HeadKeys",
    "HeldBytes",
    "KeyFormat",
    "LayerKeys",
    "QuantizedKVCache",
    "ValueFormat",
    "check_cache_plan_fits",
    "key_codec",
    "key_plan",
    "key_plan_from_stats",
    "load_cache_plan",
    "quantized_cache",
    "quantized_kv_cache",
    "roundtrip",
    "value_codec",
    "value_roundtrip",
]
