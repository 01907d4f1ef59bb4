"""Networks that no library offers in the form the paper's code uses."""
