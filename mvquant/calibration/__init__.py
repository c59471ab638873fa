"""Calibration data: text or conversations in, token sequences out, the same ones for whoever asks."""

from mvquant.calibration.conversations import Conversation
from mvquant.calibration.enough import few_tokens
from mvquant.calibration.sequences import calibration_batches
from mvquant.calibration.texts import calibration_texts

__all__ = ["Conversation", "calibration_batches", "calibration_texts", "few_tokens"]
