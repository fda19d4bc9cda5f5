"""The privacy report of a run: one record, written as JSON, Markdown and HTML."""
