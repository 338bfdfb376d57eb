"""Run folders on disk: layout, atomic writes, reading back."""

from isoloss.results.checkpoint import Checkpoint
from isoloss.results.files import ResultsError
from isoloss.results.reading import (
    Results,
    after_decay_folder,
    decay_folder,
    equivalent_folder,
    open_results,
    report_folder,
    run_folder,
)
from isoloss.results.reference import export_reference, import_reference
from isoloss.results.storage import check_out_folder

__all__ = [
    "Checkpoint",
    "Results",
    "ResultsError",
    "after_decay_folder",
    "check_out_folder",
    "decay_folder",
    "equivalent_folder",
    "export_reference",
    "import_reference",
    "open_results",
    "report_folder",
    "run_folder",
]
