"""Where text comes from: one module a source, and the mix of several."""

from transcoders.collecting.text.document import Document
from transcoders.collecting.text.sources import documents

__all__ = ["Document", "documents"]
