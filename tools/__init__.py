"""Tools of the project itself: the documentation's site, the graph of imports."""
