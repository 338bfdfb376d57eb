"""Run folders on disk: layout, atomic writes, reading back."""

from isoloss.files import ResultsError
from isoloss.storage import check_out_folder
from isoloss.store.checkpoint import Checkpoint
from isoloss.store.results import (
    Results,
    after_decay_folder,
    decay_folder,
    equivalent_folder,
    open_results,
    report_folder,
    run_folder,
)

__all__ = [
    "Checkpoint",
    "Results",
    "ResultsError",
    "after_decay_folder",
    "check_out_folder",
    "decay_folder",
    "equivalent_folder",
    "open_results",
    "report_folder",
    "run_folder",
]
