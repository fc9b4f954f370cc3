"""Codecs: fewer bytes for a message of gradients, at a known error."""

from caat.compression.codec import Codec
from caat.compression.feedback import Feedback
from caat.compression.spec import make_codec

__all__ = ["Codec", "Feedback", "make_codec"]
