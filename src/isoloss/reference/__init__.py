"""Logs of Tahir and Katz's own code, read as our paths and tables, and ours written as theirs."""

from isoloss.reference.exchange import Exported, Imported, export_reference, import_reference
from isoloss.reference.logs import from_keras, to_keras

__all__ = ["Exported", "Imported", "export_reference", "from_keras", "import_reference", "to_keras"]
