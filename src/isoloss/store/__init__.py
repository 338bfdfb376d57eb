"""Run folders on disk: how a run begins, goes on and ends there, and reading back."""

from isoloss.files import ResultsError
from isoloss.store.checkpoint import Checkpoint
from isoloss.store.folder import check_out_folder, report_folder, run_folder
from isoloss.store.results import Results, open_results

__all__ = [
    "Checkpoint",
    "Results",
    "ResultsError",
    "check_out_folder",
    "open_results",
    "report_folder",
    "run_folder",
]
