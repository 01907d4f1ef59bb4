"""Settings of the trainers' tests."""


def pytest_ignore_collect(collection_path, config):
    """Leave the folder out with the slow tests: to import the trainers alone takes 10 s or more."""
    return True if "not slow" in config.getoption("markexpr", "") else None
