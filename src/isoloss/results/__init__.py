"""Run folders on disk: layout, atomic writes, reading back."""

from isoloss.results.files import check_out_folder
from isoloss.results.reading import Results, decay_folder, open_results, report_folder, run_folder
from isoloss.results.run import ResultsError

__all__ = [
    "Results",
    "ResultsError",
    "check_out_folder",
    "decay_folder",
    "open_results",
    "report_folder",
    "run_folder",
]
