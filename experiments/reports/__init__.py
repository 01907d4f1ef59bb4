"""How results are shown: in the terminal, as Markdown, LaTeX, pictures and a page."""
