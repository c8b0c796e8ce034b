"""The written report of a run: one self-contained HTML page, made from the files of the run alone."""

from cupola.report.page import write_report
from cupola.report.plots import loss_plot_svg
from cupola.report.records import RunRecords, read_records

__all__ = ["RunRecords", "loss_plot_svg", "read_records", "write_report"]
