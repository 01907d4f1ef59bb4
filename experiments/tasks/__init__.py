"""The tasks: data, model and measures of a kind of problem, a folder for each."""
