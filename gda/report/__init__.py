"""The one self-contained HTML report: numbers, sentences, plots and pictures."""
