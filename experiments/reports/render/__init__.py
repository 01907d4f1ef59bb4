"""Renderers: sections as a terminal's text, Markdown, LaTeX and HTML."""
