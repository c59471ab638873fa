"""Running a model layer by layer from its files: one decoder layer in memory, hidden states in between.

`model` runs layers, `hidden` keeps what is between them, `measure` collects statistics, `quantize` drives a backend,
`work` is the folder from which an interrupted run goes on, `processes` those that share the sequences.
"""

from mvquant.layerwise.fingerprint import Fingerprint
from mvquant.layerwise.hidden import DEFAULT_LIMIT, HiddenStates
from mvquant.layerwise.log import LOG_FILE, log_text, warn_of
from mvquant.layerwise.measure import layerwise_stats
from mvquant.layerwise.model import LayerModel
from mvquant.layerwise.needs import Needs, require_room
from mvquant.layerwise.preflight import predict
from mvquant.layerwise.processes import ALONE, CPU, SharedWork, joined_processes, own_device, usable_device
from mvquant.layerwise.quantize import quantize_layers
from mvquant.layerwise.room import Room, available_disk, available_memory, available_room, operations_per_second
from mvquant.layerwise.work import StoredResults, WorkFolder, opened_work, require_no_earlier

__all__ = [
    "ALONE",
    "CPU",
    "DEFAULT_LIMIT",
    "LOG_FILE",
    "Fingerprint",
    "HiddenStates",
    "LayerModel",
    "Needs",
    "Room",
    "SharedWork",
    "StoredResults",
    "WorkFolder",
    "available_disk",
    "available_memory",
    "available_room",
    "joined_processes",
    "layerwise_stats",
    "log_text",
    "opened_work",
    "operations_per_second",
    "own_device",
    "predict",
    "quantize_layers",
    "require_no_earlier",
    "require_room",
    "usable_device",
    "warn_of",
]
