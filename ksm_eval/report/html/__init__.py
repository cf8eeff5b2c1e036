"""The parts of the HTML report: to_html.py puts them together."""
